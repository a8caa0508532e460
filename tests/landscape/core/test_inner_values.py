"""A space whose network has inner values read or replaced, against the network written by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from checkpoints.problem import Normalization, Problem
from landscape.core.spaces import Inputs, Space, Weights
from landscape.hessian.operator import Curvature
from tests.attention import Change, by_hand, made, sharper, tokens, uniform

COUNT = 7
CHANGES: dict[str, dict[str, Change]] = {
    "uniform weights": {"weights": uniform},
    "masked weights": {"weights": lambda weights: weights * torch.arange(6).to(weights)},
    "curved logits": {"logits": sharper},
}


@pytest.fixture(scope="module", params=["weights", "inputs"])
def kind(request: pytest.FixtureRequest) -> type[Space]:
    return {"weights": Weights, "inputs": Inputs}[request.param]


@pytest.fixture(params=list(CHANGES))
def change(request: pytest.FixtureRequest) -> dict[str, Change]:
    return CHANGES[request.param]


def problem(batch_size: int = 3) -> Problem:
    """Seven examples, in batches of three: the last one is smaller."""
    targets = torch.arange(COUNT) % 4
    return Problem.of(made(), [(tokens(COUNT), targets)], batch_size=batch_size)


@pytest.fixture(scope="module")
def kept(kind: type[Space]) -> Curvature:
    """A product of the network as it is that is traced once for all tests: that takes seconds."""
    return Curvature(kind(problem()), keep=True)


def named(changes: dict[str, Change]) -> dict[str, Change]:
    return {f"attention.{name}": function for name, function in changes.items()}


def losses(network: Any, inputs: Tensor, targets: Tensor, changes: dict[str, Change]) -> Tensor:
    logits = by_hand(network, inputs, **changes)["head"]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


class ByHand(torch.nn.Module):
    """`by_hand` as a module, so that `functional_call` can give it other weights."""

    def __init__(self, changes: dict[str, Change]) -> None:
        super().__init__()
        self.network, self.changes = made(), changes

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return losses(self.network, inputs, targets, self.changes)


def dense_hessian(space: Space, changes: dict[str, Change]) -> Tensor:
    """Of the mean loss in the weights, or of the sum of the losses in all inputs."""
    network, examples = ByHand(changes), space.problem
    shapes = {name: value.shape for name, value in space.origin.items()}

    def loss(flat: Tensor) -> Tensor:
        pieces = torch.split(flat, [math.prod(shape) for shape in shapes.values()])
        point = {n: p.view(s) for (n, s), p in zip(shapes.items(), pieces, strict=True)}
        if isinstance(space, Inputs):
            return network(point["input"], examples.targets).sum()
        weights = {f"network.{name}": value for name, value in point.items()}
        return functional_call(
            network, weights, (examples.inputs["input"], examples.targets)
        ).mean()

    origin = torch.cat([value.flatten() for value in space.origin.values()])
    return torch.autograd.functional.hessian(loss, origin)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_landscape_is_that_of_the_changed_network(
    kind: type[Space], change: dict[str, Change], batch_size: int
) -> None:
    space = kind(problem(batch_size))
    plain = space.evaluate(space.origin)
    with space.replacing(named(change)), space.reading("attention.*") as values:
        found = space.evaluate(space.origin)
        outputs = space.outputs(space.origin, slice(2, 4))
    wanted = losses(made(), tokens(COUNT), space.problem.targets, change).detach()
    torch.testing.assert_close(torch.from_numpy(found.losses), wanted)
    assert not np.allclose(found.losses, plain.losses)
    step = by_hand(made(), tokens(COUNT)[2:4], **change)
    torch.testing.assert_close(outputs, step["head"], check_stride=False)
    for name, value in values.items():
        torch.testing.assert_close(value, step[name])
    np.testing.assert_array_equal(space.evaluate(space.origin).losses, plain.losses)


@pytest.mark.second_derivative
@pytest.mark.parametrize("keep", [False, True], ids=["plain", "traced"])
def test_hessian_products_are_those_of_the_changed_network(
    kind: type[Space], change: dict[str, Change], *, keep: bool
) -> None:
    space = kind(problem())
    generator = torch.Generator().manual_seed(5)
    with space.replacing(named(change)):
        operator = Curvature(space, keep=keep)
        vector = torch.randn(operator.size, generator=generator, dtype=torch.float64)
        product = operator.matvec(vector)
    assert (operator._split is not None) == keep, "it was not traced"
    exact = dense_hessian(space, change)
    torch.testing.assert_close(product, exact @ vector, rtol=1e-9, atol=1e-12)
    plain = Curvature(space).matvec(vector)
    assert (product - plain).norm() > 1e-2 * plain.norm(), "else this tests nothing"


@pytest.mark.second_derivative
def test_a_product_that_was_kept_is_computed_again_when_a_replacement_begins_or_ends(
    kept: Curvature, change: dict[str, Change]
) -> None:
    space = kept.space
    vector = torch.ones(kept.size, dtype=torch.float64)
    plain = kept.matvec(vector)
    with space.replacing(named(change)):
        changed = kept.matvec(vector)
        expected = Curvature(space).matvec(vector)
    torch.testing.assert_close(changed, expected, rtol=1e-9, atol=1e-12)
    assert (changed - plain).norm() > 1e-2 * plain.norm()
    torch.testing.assert_close(kept.matvec(vector), plain, rtol=1e-12, atol=1e-14)


@pytest.mark.second_derivative
def test_reading_changes_no_product(kept: Curvature) -> None:
    space, vector = kept.space, torch.ones(kept.size, dtype=torch.float64)
    for operator in (Curvature(space), kept):
        plain = operator.matvec(vector)
        with space.reading("*"):
            found = Curvature(space, keep=operator is kept).matvec(vector)
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.second_derivative
def test_a_value_is_differentiable_in_the_point_twice(kind: type[Space]) -> None:
    space = kind(problem())
    point = {name: value.clone().requires_grad_() for name, value in space.origin.items()}
    network, inputs, at = made(), tokens(COUNT), "input"
    if isinstance(space, Weights):
        at = "attention.key.weight"
        plain = network.attention.key.weight
    else:
        plain = inputs.requires_grad_()
    with space.reading("attention.weights") as values:
        space.outputs(point)
    found, wanted = values["attention.weights"], by_hand(network, inputs)["attention.weights"]
    for _ in range(2):
        (found,) = torch.autograd.grad(found.square().sum(), point[at], create_graph=True)
        (wanted,) = torch.autograd.grad(wanted.square().sum(), plain, create_graph=True)
        assert wanted.norm() > 1e-6
        torch.testing.assert_close(found, wanted)


def test_inner_values_are_listed_for_one_example_and_read_behind_the_normalization() -> None:
    whole = replace(problem(), normalization=Normalization((0.5,) * 6, (2.0,) * 6))
    space = Inputs(whole)
    listed = space.inner_values()
    assert listed == {name: tuple(v.shape) for name, v in by_hand(made(), tokens(1)).items()}
    with space.reading("act") as values:
        space.outputs(space.origin)
    wanted = torch.nn.functional.gelu((tokens(COUNT) - 0.5) / 2)
    torch.testing.assert_close(values["act"], wanted)


def test_inner_values_are_listed_of_a_network_that_takes_its_input_by_name() -> None:
    class ByName(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, *, pixels: Tensor) -> Tensor:
            return self.head(pixels)

    batches = [({"pixels": torch.ones(4, 3)}, torch.zeros(4, dtype=torch.int64))]
    loss = partial(torch.nn.functional.cross_entropy, reduction="none")
    listed = Weights(Problem.of(ByName(), batches, loss)).inner_values()
    assert listed == {"head": (1, 2)}


def test_the_problem_s_own_network_has_no_part_in_it(kind: type[Space]) -> None:
    whole = problem()
    space = kind(whole)
    plain = whole.model(tokens())
    with space.replacing({"attention.weights": uniform}):
        torch.testing.assert_close(whole.model(tokens()), plain, rtol=0, atol=0)


def test_an_unknown_name_is_refused(kind: type[Space]) -> None:
    space = kind(problem())
    refused = pytest.raises(ValueError, match="close names: attention.weights")
    with refused, space.reading(["attention.weight"]):
        pass
