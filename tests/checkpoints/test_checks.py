"""What is not a function of one example is refused before anything is measured."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import landscape
from checkpoints.losses import cross_entropy
from checkpoints.problem import Normalization, Problem

X, Y = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def plain() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))


class Around(nn.Module):
    """A network with something done to its inputs and outputs."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.net = plain()
        self.act = forward
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        return self.act(self, x)


def counting(self: Any, x: Tensor) -> Any:
    self.calls += 1
    return self.net(x) * self.calls


def keeping(self: Any, x: Tensor) -> Any:
    self.seen.add_(1)
    return self.net(x)


def batch_statistics(self: Any, x: Tensor) -> Any:
    out = self.net(x)
    return (out - out.mean(0)) / (out.std(0, unbiased=False) + 1)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "dropout in eval": (lambda s, x: s.net(functional.dropout(x)), "two passes over the same"),
    "noise": (lambda s, x: s.net(x + 0.01 * torch.randn_like(x)), "two passes over the same"),
    "a counter": (counting, "two passes over the same"),
    "a buffer": (keeping, "seen changes with every pass"),
    "centred": (lambda s, x: s.net(x) - s.net(x).mean(0), "mixes the examples of a batch"),
    "batch statistics": (batch_statistics, "mixes the examples of a batch"),
    "attention over the batch": (
        lambda s, x: functional.softmax(s.net(x) @ s.net(x).T, 1) @ s.net(x),
        "mixes the examples of a batch",
    ),
}


@pytest.mark.parametrize("probe", ["surface", "sensitivity"])
@pytest.mark.parametrize("how", REFUSED)
def test_a_network_that_is_no_function_of_one_example_is_refused(how: str, probe: str) -> None:
    forward, line = REFUSED[how]
    with pytest.raises(ValueError, match=line) as told:
        landscape.measure(probe, Problem.of(Around(forward), [(X, Y)]))
    assert "\n" not in str(told.value)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "(N, 1) - (N,)": lambda o, t: ((o[:, :1] - t) ** 2).mean(1),
    "the batch's mean": lambda o, t: functional.cross_entropy(o, t).expand(len(o)),
    "divided by the batch": lambda o, t: functional.cross_entropy(o, t, reduction="none") / len(o),
}


@pytest.mark.parametrize("how", LOSSES)
def test_a_loss_that_mixes_examples_is_refused(how: str) -> None:
    with pytest.raises(ValueError, match="the loss mixes examples"):
        landscape.measure("surface", Problem.of(plain(), [(X, Y)], LOSSES[how]), points=3)


SILENT: dict[str, Callable[[Any, Tensor], Any]] = {
    "reentrant checkpoint": lambda s, x: checkpoint(s.net, x, use_reentrant=True),
    "detached": lambda s, x: s.net(x).detach(),
    "no_grad": lambda s, x: torch.no_grad()(s.net)(x),
}


@pytest.mark.second_derivative
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("how", SILENT)
def test_where_no_gradient_reaches_what_moves_derivatives_are_refused(how: str) -> None:
    problem = Problem.of(Around(SILENT[how]), [(X, Y)])
    with pytest.raises(ValueError, match="no gradient reaches the weights"):
        landscape.measure("hessian", problem, top=1)
    if how != "reentrant checkpoint":
        with pytest.raises(ValueError, match="no gradient reaches the inputs"):
            landscape.measure("sensitivity", problem)
    assert np.isfinite(landscape.measure("surface", problem, points=3)["loss"]).all()


def test_layers_without_influence_and_frozen_ones_are_no_fault() -> None:
    network = plain()
    network.append(nn.Identity())
    network.unused = nn.Linear(3, 3)
    for parameter in network[1].parameters():
        parameter.requires_grad_(requires_grad=False)
    landscape.measure("sensitivity", Problem.of(network, [(X, Y)]), parts=("norms",))


def said(caplog: pytest.LogCaptureFixture, problem: Problem) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        landscape.measure("surface", problem, points=3, extent=0.1)
    return caplog.text


def test_what_is_probably_not_meant_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert "probabilities" in said(
        caplog, Problem.of(nn.Sequential(plain(), nn.Softmax(1)), [(X, Y)])
    )
    raw = Problem.of(plain(), [(X, Y)])
    assert not {"probabilit", "bytes", "inputs run"} & set(said(caplog, raw).split())
    bytes_ = Problem.of(plain(), [(X, Y)], normalization=Normalization((125.3,), (63.0,)))
    assert "look like those of bytes" in said(caplog, bytes_)
    assert "inputs run from -" in said(caplog, Problem.of(plain(), [((X - 0.5) / 0.2, Y)]))


NLL = nn.NLLLoss(reduction="none")


@pytest.mark.parametrize("loss", [NLL, partial(functional.nll_loss, reduction="none")])
@pytest.mark.parametrize(
    ("last", "line"),
    [
        (nn.Softmax(1), "look like probabilities"),
        (nn.Identity(), "are no log-probabilities"),
        (nn.LogSoftmax(1), ""),
    ],
)
def test_a_negative_log_likelihood_takes_log_probabilities(
    loss: Any, last: nn.Module, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    problem = Problem.of(nn.Sequential(plain(), last), [(X, Y)], loss)
    text = said(caplog, problem)
    assert line in text
    assert line or "probabilities" not in text
    assert problem.loss_unit == "nat"


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (19.0, False), (255.0, True)])
def test_columns_far_from_a_standard_deviation_of_1_are_named(
    factor: float, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    table = torch.linspace(-1, 1, 24).view(6, 4) * factor
    problem = Problem.of(nn.Linear(4, 3), [(table, torch.arange(6) % 3)])
    assert ("input runs from -255 to 255: distances" in said(caplog, problem)) == told


def test_the_class_that_a_partial_loss_ignores_is_no_wrong_label() -> None:
    loss = partial(functional.cross_entropy, reduction="none", ignore_index=9)
    landscape.measure("surface", Problem.of(plain(), [(X, Y.where(Y > 0, 9))], loss), points=1)
    with pytest.raises(ValueError, match="targets run from 1 to 9"):
        landscape.measure("surface", Problem.of(plain(), [(X, Y.where(Y > 0, 9))]), points=1)


@pytest.mark.parametrize("columns", [1, 3])
def test_accuracy_needs_a_column_per_class(columns: int) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, columns))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = (targets > 0).to(outputs.dtype)
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], wanted, reduction="none")

    result = landscape.measure("surface", Problem.of(network, [(X, Y)], loss), points=3)
    assert ("accuracy" in result) == (columns > 1)


@pytest.mark.parametrize(
    ("model", "targets", "line"),
    [
        (plain(), Y + 1, "targets run from 1 to 3, and the network has 3 outputs; expected 0 to 2"),
        (plain(), Y - 2, "targets run from -2 to 0"),
        (nn.Linear(5, 3), Y, "the network fails on the first examples: RuntimeError: mat1"),
    ],
)
def test_what_does_not_fit_is_one_line(model: nn.Module, targets: Tensor, line: str) -> None:
    with pytest.raises(ValueError, match=line) as told:
        landscape.measure("surface", Problem.of(model, [(X, targets)]))
    assert "\n" not in str(told.value)


# What a notebook hands over.


class Named(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *, pixels: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(pixels)}


HANDED: dict[str, Callable[[], Problem]] = {
    "class weights": lambda: Problem.of(
        plain(), [(X, Y)], nn.CrossEntropyLoss(weight=torch.ones(3), reduction="none")
    ),
    "DataParallel": lambda: Problem.of(nn.DataParallel(plain()), [(X, Y)]),
    "averaged": lambda: Problem.of(AveragedModel(plain()), [(X, Y)]),
    "compiled": lambda: Problem.of(torch.compile(plain(), backend="eager"), [(X, Y)]),  # type: ignore[arg-type]
    "a named input": lambda: Problem.of(Named(plain()), [({"pixels": X}, Y)]),
}


@pytest.mark.second_derivative
@pytest.mark.parametrize("how", HANDED)
def test_what_a_notebook_hands_over_is_the_same_network(how: str) -> None:
    options: dict[str, Any] = {"top": 1, "parts": ("eigenpairs",), "activations": "recompute"}
    expected = landscape.measure("hessian", Problem.of(plain(), [(X, Y)]), **options)
    found = landscape.measure("hessian", HANDED[how](), **options)
    np.testing.assert_allclose(found["eigenvalue"], expected["eigenvalue"], rtol=1e-4)


def test_a_float64_network_takes_float32_inputs() -> None:
    problem = Problem.of(plain().double(), [(X, Y)])
    assert problem.inputs["input"].dtype == torch.float64
    landscape.measure("surface", problem, points=3)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_named_for_what_it_is() -> None:
    with pytest.raises(ValueError, match="the model is TorchScript"):
        Problem.of(torch.jit.script(plain()), [(X, Y)])


# Layers whose usual kernels have no second derivative.


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, 0]).mean(1))


@pytest.mark.second_derivative
@pytest.mark.parametrize("activations", ["keep", "recompute"])
def test_fused_attention_has_the_curvature_of_its_formula(activations: str) -> None:
    problem = Problem.of(Attention().double(), [(X, Y)])
    options: dict[str, Any] = {"top": 2, "parts": ("eigenpairs",), "activations": activations}
    found = landscape.measure("hessian", problem, **options)
    with sdpa_kernel(SDPBackend.MATH):
        expected = landscape.measure("hessian", copy.copy(problem), **options)
    np.testing.assert_allclose(found["eigenvalue"], expected["eigenvalue"], rtol=1e-9)


@pytest.mark.second_derivative
@pytest.mark.parametrize("layer", [nn.Hardsigmoid(), nn.Hardswish(), nn.ReLU6()])
@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_piecewise_linear_activations_have_a_curvature(layer: nn.Module, matrix: str) -> None:
    class Elementary(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gate = (x + 3).clamp(0, 6) / 6
            return {"Hardsigmoid": gate, "Hardswish": x * gate, "ReLU6": x.clamp(0, 6)}[
                type(layer).__name__
            ]

    def top(middle: nn.Module) -> Any:
        network = plain()
        network[2] = middle
        problem = Problem.of(network.double(), [(X, Y)])
        options: dict[str, Any] = {"top": 1, "parts": ("eigenpairs",), "matrix": matrix}
        return landscape.measure("hessian", problem, **options)["eigenvalue"]

    np.testing.assert_allclose(top(layer), top(Elementary()), rtol=1e-8)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda o: o.cumsum(0),
        lambda o: o.flip(0).cumsum(0).flip(0),
        lambda o: o + 5 * (o - o[:1]),
        lambda o: o - o[-1:],
        lambda o: o if len(o) < 3 else o - o.mean(0),
    ],
)
def test_no_example_may_leak_into_another_in_either_direction(mixing: Any) -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return mixing(self.fc(x))

    torch.manual_seed(0)
    batches = [(torch.rand(12, 4), torch.arange(12) % 3)]
    with pytest.raises(ValueError, match="alone gives other outputs than among others"):
        landscape.measure("surface", Problem.of(Mixing(), batches), points=1)
    for loss in (lambda o, t: cross_entropy(o, t).cumsum(0), lambda o, t: o[:, 0] - o[0, 0]):
        problem = Problem.of(nn.Linear(4, 3), batches, loss)
        with pytest.raises(ValueError, match="the loss mixes examples"):
            landscape.measure("surface", problem, points=1)
