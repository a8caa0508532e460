from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from checkpoints.problem import Problem
from landscape.core import directions
from landscape.core.batch_size import prepared
from landscape.core.spaces import Inputs, Space, Weights
from tests.oracles import LinearRegression, make_problem


def plain_losses(problem: Problem, network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits = network(problem.inputs["input"])
    return nn.functional.cross_entropy(logits, problem.targets, reduction="none")


def test_the_origin_of_either_space_is_plain_evaluation(problem: Problem) -> None:
    wanted = plain_losses(problem, problem.model.eval())
    for space in (Weights(problem), Inputs(problem)):
        found = space.evaluate(space.origin)
        torch.testing.assert_close(torch.from_numpy(found.losses), wanted.cpu())
        hits = problem.model(problem.inputs["input"]).argmax(1) == problem.targets
        assert found.hits is not None
        assert (found.hits == hits.cpu().numpy()).all()


def test_linear_regression_has_its_closed_form_in_both_spaces() -> None:
    oracle = LinearRegression.random()
    problem = oracle.problem()
    step = torch.full_like(oracle.weight, 0.3)
    moved = Weights(problem).evaluate({"weight": oracle.weight + step}).losses
    torch.testing.assert_close(
        torch.from_numpy(moved), oracle.losses(oracle.weight + step, oracle.inputs)
    )
    shifted = Inputs(problem).evaluate({"input": oracle.inputs - 1}).losses
    torch.testing.assert_close(
        torch.from_numpy(shifted), oracle.losses(oracle.weight, oracle.inputs - 1)
    )


def test_the_problem_stays_bit_for_bit_as_it_was(problem: Problem) -> None:
    problem.model.train()
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    inputs = problem.inputs["input"].clone()
    problem = replace(problem, batch_norm="recompute", calibration=problem.inputs)
    for space in (Weights(problem, statistics=True), Inputs(problem)):
        drawn = directions.gaussian(space.origin, torch.Generator().manual_seed(0))
        space.evaluate(directions.displaced(space.origin, [drawn], [0.5]))
    assert problem.model.training
    assert all(p.requires_grad for p in problem.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in problem.model.state_dict().items())
    assert torch.equal(problem.inputs["input"], inputs)


def test_a_point_has_one_value_wherever_the_space_was_before(problem: Problem) -> None:
    space = Weights(problem)
    drawn = directions.gaussian(space.origin, torch.Generator().manual_seed(0))
    there = directions.displaced(space.origin, [drawn], [0.1])
    first = space.evaluate(there).losses
    space.evaluate(directions.displaced(space.origin, [drawn], [1e30]))
    space.evaluate(space.origin)
    assert (space.evaluate(there).losses == first).all()


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_batch_size_does_not_matter(problem: Problem, batch_size: int) -> None:
    whole = Weights(problem).evaluate(Weights(problem).origin)
    space = Weights(replace(problem, batch_size=batch_size))
    found = space.evaluate(space.origin)
    torch.testing.assert_close(torch.from_numpy(found.losses), torch.from_numpy(whole.losses))
    assert found.summary() == pytest.approx(whole.summary(), rel=1e-12)


def test_the_order_of_the_examples_does_not_matter(problem: Problem) -> None:
    order = torch.randperm(len(problem), generator=torch.Generator().manual_seed(0))
    shuffled = replace(
        problem,
        inputs={"input": problem.inputs["input"][order]},
        targets=problem.targets[order],
    )
    spaces = Weights(problem), Weights(shuffled)
    a, b = (space.evaluate(space.origin).summary() for space in spaces)
    assert a == pytest.approx(b, rel=1e-12)


def test_standard_errors_are_those_of_a_mean_over_examples(problem: Problem) -> None:
    space = Weights(problem)
    found = space.evaluate(space.origin)
    result = found.summary()
    assert result["loss"] == pytest.approx(found.losses.mean())
    assert result["loss_stderr"] == pytest.approx(found.losses.std(ddof=1) / 23**0.5)
    share = result["accuracy"]
    assert result["accuracy_stderr"] == pytest.approx((share * (1 - share) / 22) ** 0.5)


def test_recomputed_statistics_are_those_of_the_calibration_set_at_every_point(
    problem: Problem,
) -> None:
    """Against the network in training mode on the whole calibration set, layer by layer."""
    problem = replace(problem, batch_norm="recompute", calibration=problem.inputs)
    space = Weights(problem)
    drawn = directions.gaussian(space.origin, torch.Generator().manual_seed(1))
    point = directions.displaced(space.origin, [drawn], [0.3])
    reference = make_problem(problem.device).model.train()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(point[name])
        for module in reference.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        reference(problem.calibration["input"])
        reference.eval()
    torch.testing.assert_close(
        torch.from_numpy(space.evaluate(point).losses), plain_losses(problem, reference).cpu()
    )


def test_a_diverged_loss_is_stored_as_it_is(problem: Problem) -> None:
    space = Weights(problem)
    huge = {name: value * 1e200 for name, value in space.origin.items()}
    found = space.evaluate(huge).summary()
    assert not (found["loss"] < 1e100)
    assert found["accuracy"] == found["accuracy"]


def test_a_single_example_has_no_standard_error(device: torch.device) -> None:
    space = Weights(make_problem(device, count=1))
    assert space.evaluate(space.origin).summary()["loss_stderr"] != 0


def test_a_loss_that_is_a_mean_is_refused(problem: Problem) -> None:
    space = Weights(replace(problem, loss=nn.functional.cross_entropy))
    with pytest.raises(ValueError, match="one value per example"):
        space.evaluate(space.origin)


def test_integer_inputs_cannot_move() -> None:
    tokens = torch.zeros(4, 3, dtype=torch.long)
    problem = Problem.of(nn.Embedding(2, 2), [(tokens, torch.zeros(4, dtype=torch.long))])
    with pytest.raises(ValueError, match="are integers"):
        Inputs(problem)


def test_a_model_of_several_inputs_gets_them_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, dtype=torch.float64))

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left @ self.scale - right @ self.scale

    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    targets = torch.zeros(7, 1, dtype=torch.float64)
    batches = [({"left": left, "right": right}, targets)]
    problem = Problem.of(Two(), batches, lambda o, t: ((o - t) ** 2).sum(1), batch_size=3)
    wanted = (left - right).sum(1) ** 2
    for space in (Weights(problem), Inputs(problem)):
        torch.testing.assert_close(torch.from_numpy(space.evaluate(space.origin).losses), wanted)


def test_the_batch_size_is_the_problems_own_or_the_usual_one(problem: Problem) -> None:
    assert prepared(problem, {"weights": 0}).batch_size == 8
    assert prepared(replace(problem, batch_size=0), {"weights": 0}).batch_size == 23
    many = make_problem(problem.device, count=250, batch_size=0)
    assert prepared(many, {"weights": 0}).batch_size == 100


def test_recomputed_statistics_serve_the_input_space_too(problem: Problem) -> None:
    """The weights stay there, so the statistics are those of the calibration set, once."""
    recomputing = replace(problem, batch_norm="recompute", calibration=problem.inputs)
    weights, inputs = Weights(recomputing), Inputs(recomputing)
    found = inputs.evaluate(inputs.origin).losses
    np.testing.assert_allclose(found, weights.evaluate(weights.origin).losses, rtol=1e-12)
    running = Inputs(problem)
    assert not np.allclose(found, running.evaluate(running.origin).losses)


def test_a_loss_of_float32_is_summed_in_float64(problem: Problem) -> None:
    narrow = replace(problem, loss=lambda outputs, targets: outputs.float().logsumexp(1))
    space = Weights(narrow)
    assert space.evaluate(space.origin).losses.dtype == np.float64


@pytest.mark.second_derivative
def test_outputs_are_those_that_are_evaluated_and_can_be_differentiated_twice() -> None:
    problem = make_problem(torch.device("cpu"))
    for space in (Weights(problem), Inputs(problem)):
        losses = []
        for part in space.parts():
            found = space.outputs(space.origin, part)
            losses.append(problem.losses(found, problem.targets[part]))
        # the same operations, in another memory format
        np.testing.assert_allclose(
            torch.cat(losses).detach(), space.evaluate(space.origin).losses, rtol=1e-12
        )
        point = {name: value.clone().requires_grad_() for name, value in space.origin.items()}
        loss = problem.losses(space.outputs(point), problem.targets).sum()
        slopes = torch.autograd.grad(loss, list(point.values()), create_graph=True)
        size = sum((slope**2).sum() for slope in slopes)
        bends = torch.autograd.grad(size, list(point.values()))
        assert any((bend != 0).any() for bend in bends)


def test_parts_cover_every_example_once() -> None:
    space = Weights(make_problem(torch.device("cpu"), count=23, batch_size=8))
    assert [list(range(23))[part] for part in space.parts()] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 23)),
    ]
    assert [part.stop - part.start for part in space.parts(10)] == [10, 10, 3]


@pytest.mark.parametrize("kind", [Weights, Inputs])
def test_a_norm_that_looks_at_the_batch_is_refused(kind: type[Space]) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, track_running_stats=False))
    problem = Problem.of(model, [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))])
    with pytest.raises(ValueError, match="^1 is a batch norm without running statistics"):
        kind(problem)
