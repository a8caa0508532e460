"""Sharpness against quadratics whose worst steps are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

import landscape
from checkpoints.problem import Problem
from landscape.core.cli import main
from landscape.registry import PROBES
from tests.oracles import LinearRegression, make_problem

RADII = (0.1, 1.0)


def at_minimum(seed: int) -> LinearRegression:
    drawn = LinearRegression.random(seed)
    weight = torch.linalg.lstsq(drawn.inputs, drawn.targets).solution.T
    return replace(drawn, weight=weight)


def hessian(regression: LinearRegression) -> Tensor:
    """Of the rows of the weight matrix, each the same block."""
    return regression.inputs.T @ regression.inputs / len(regression.inputs)


def rises(result: object, name: str) -> Tensor:
    return torch.from_numpy(np.asarray(result[name])[:, 0])  # type: ignore[index]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_the_minimum_of_a_quadratic_the_worst_step_is_the_top_eigenvector(seed: int) -> None:
    regression = at_minimum(seed)
    values = torch.linalg.eigvalsh(hessian(regression))
    # More steps where the second eigenvalue is close to the first: the rate is their ratio.
    steps = int(np.ceil(10 / np.log(float(values[-1] / values[-2]))))
    result = landscape.measure(
        "sharpness", regression.problem(), ball="l2", radii=RADII, ascent_steps=steps, draws=200
    )
    half = 0.5 * torch.tensor(RADII, dtype=torch.float64) ** 2
    torch.testing.assert_close(rises(result, "ascent_rise"), half * values[-1], rtol=1e-6, atol=0)
    mean, error = rises(result, "average_rise"), rises(result, "average_rise_stderr")
    assert ((mean - half * values.mean()).abs() < 4 * error).all()
    assert (error > 0).all()
    assert (rises(result, "sampled_rise") > mean).all()
    assert (rises(result, "sampled_rise") < rises(result, "ascent_rise")).all()


def test_elsewhere_it_is_the_solution_of_the_trust_region_problem() -> None:
    regression = LinearRegression.random(3)
    block, slope = hessian(regression), torch.zeros(3, 5, dtype=torch.float64)
    slope = (regression.inputs @ regression.weight.T - regression.targets).T @ regression.inputs
    slope = slope / len(regression.inputs)
    values, vectors = torch.linalg.eigh(block)
    parts = slope @ vectors
    result = landscape.measure(
        "sharpness", regression.problem(), ball="l2", radii=RADII, ascent_steps=300
    )
    for radius, found in zip(RADII, rises(result, "ascent_rise"), strict=True):
        # (s - H) step = slope, with s above the top eigenvalue and |step| the radius
        def excess(s: float, radius: float = radius) -> float:
            return float((parts / (s - values)).norm()) - radius

        top = float(values[-1])
        s = brentq(excess, top + 1e-9, top + 1e6, xtol=1e-14)
        step = parts / (s - values)
        exact = (step * parts).sum() + 0.5 * (step**2 * values).sum()
        torch.testing.assert_close(found, exact, rtol=1e-7, atol=0)


def test_keskars_box_on_a_linear_loss_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 5, dtype=torch.float64, generator=generator)
    model = nn.Linear(5, 1, bias=False).double()
    problem = Problem.of(model, [(inputs, torch.zeros(7))], lambda outputs, _: 9 + outputs[:, 0])
    result = landscape.measure("sharpness", problem, ball="keskar", radii=[0.1])
    weight, slope = model.weight.detach()[0], inputs.mean(dim=0)
    exact = 0.1 * (slope.abs() * (weight.abs() + 1)).sum()
    torch.testing.assert_close(rises(result, "ascent_rise")[0], exact)
    share = 100 * exact / (1 + 9 + slope @ weight)
    torch.testing.assert_close(rises(result, "keskar")[0], share)


def rescaled(factor: float) -> Problem:
    """A network whose convolution before batch norm is scaled, which cancels."""
    problem = make_problem(torch.device("cpu"))
    network = problem.model
    with torch.no_grad():
        network.conv1.weight.mul_(factor)
        network.bn1.running_mean.mul_(factor)
        network.bn1.running_var.add_(network.bn1.eps).mul_(factor**2).sub_(network.bn1.eps)
    return problem


def test_the_adaptive_ball_does_not_see_a_rescaling_that_cancels() -> None:
    found = {
        (ball, factor): landscape.measure(
            "sharpness", rescaled(factor), ball=ball, radii=[0.05], ascent_steps=5, draws=3
        )
        for ball in ("adaptive", "l2")
        for factor in (1.0, 4.0)
    }
    for name in ("ascent_rise", "sampled_rise", "average_rise"):
        before, after = (found["adaptive", factor][name].item() for factor in (1.0, 4.0))
        assert after == pytest.approx(before, rel=1e-6)
    assert found["l2", 4.0]["ascent_rise"].item() != pytest.approx(
        found["l2", 1.0]["ascent_rise"].item(), rel=1e-3
    )


def test_groups_are_measured_as_if_alone() -> None:
    problem = make_problem(torch.device("cpu"))
    options = {"radii": [0.02], "ascent_steps": 3, "draws": 2}
    result = landscape.measure("sharpness", problem, group=10, **options)
    assert result.sizes["group"] == 3  # the last has three examples
    alone = landscape.measure("sharpness", problem.take(slice(0, 10)), **options)
    assert result["ascent_rise"][0, 0].item() == alone["ascent_rise"].item()
    assert result["ascent_rise_mean"].item() == pytest.approx(result["ascent_rise"].mean().item())
    assert result["loss"][0].item() == alone["loss"].item()
    whole = landscape.measure("sharpness", problem, **options)
    # Each group has a step of its own, so their mean is above what one step does to all.
    assert result["ascent_rise_mean"].item() > whole["ascent_rise_mean"].item()


def test_a_loss_that_diverges_within_the_radius_is_the_worst() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.ones_(model.weight)
    batch = (torch.ones(4, 3, dtype=torch.float64), torch.zeros(4))
    problem = Problem.of(model, [batch], lambda outputs, _: torch.exp(outputs[:, 0] ** 5))
    result = landscape.measure("sharpness", problem, ball="l2", radii=[1.0])
    assert np.isinf(result["ascent_rise"].item())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"radii": [0.1, 0.1]}, "radii 0.1 0.1; expected each once"),
        ({"group": 24}, "group 24; expected at most the 23 examples"),
        ({"radii": [0.0]}, "radii"),
        ({"ascent_steps": 0}, "ascent.steps"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        landscape.measure("sharpness", make_problem(torch.device("cpu")), **options)


def test_recomputed_statistics_are_refused() -> None:
    problem = make_problem(torch.device("cpu"))
    problem = replace(problem, batch_norm="recompute", calibration=problem.inputs)
    with pytest.raises(ValueError, match="the gradient through recomputed statistics"):
        landscape.measure("sharpness", problem)


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "sharp.h5")
    few = ["--examples", "10", "--radii", "0.01", "--ascent-steps", "2", "--draws", "1"]
    assert main(PROBES["sharpness"], ["--ckpt", "resnet8.pt", "--out", out, *few]) == 0
    assert "radius 0.01: the loss rises by" in "".join(capsys.readouterr())
    assert (tmp_path / "sharp.sharpness.png").is_file()
