"""Sharpness: how far the loss rises within a radius of the trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
import xarray as xr

from checkpoints import options
from checkpoints.options import option, seed_option
from checkpoints.problem import Problem, Tensors
from landscape.core import directions
from landscape.core.plan import Cell, Plan, Probe, Values
from landscape.core.spaces import Weights
from landscape.core.summary import mean_and_stderr
from landscape.core.variables import Coordinate, Variable, Variables, numbered

Ball: TypeAlias = Literal["adaptive", "l2", "keskar"]
# Radii whose rises a trained network's figure shows well; any are comparable within a ball alone.
RADII: dict[Ball, tuple[float, ...]] = {
    "adaptive": (0.005, 0.01, 0.02, 0.05),
    "l2": (0.01, 0.02, 0.05, 0.1),
    "keskar": (1e-4, 5e-4, 1e-3),
}
SMALLEST_SHARE = 1e-3  # of the way to where the gradient points, below which an ascent has ended
_WORDS: dict[Ball, str] = {
    "adaptive": "radius, in norms of a filter",
    "l2": "radius, L2",
    "keskar": "radius, of each weight",
}


@options.spec
class Spec:
    """Every number that changes the answer. `None`: `resolved` picks the default."""

    ball: Ball = option(
        "adaptive",
        "the steps compared: adaptive, an L2 ball in coordinates in which a step of 1 moves a "
        "filter by its own norm, so that rescalings that cancel change nothing; l2; or keskar, "
        "every weight w by at most radius * (|w| + 1)",
    )
    radii: tuple[float, ...] | None = option(
        None,
        f"radii of the ball (default: {', '.join(f'{b} {RADII[b]}' for b in get_args(Ball))})",
        above=0,
        most=1e30,
    )
    group: int | None = option(
        None,
        "m-sharpness: the worst step is sought for every M examples on their own (default: one for "
        "all examples)",
        "M",
        least=1,
    )
    ascent_steps: int = option(
        20, "gradient steps towards the worst loss, from each start", least=1, most=100_000
    )
    starts: int = option(
        2, "starts of the ascent: the weights themselves, then random steps", least=1, most=10_000
    )
    draws: int = option(
        10,
        "random directions on the ball's surface, each taken forwards and backwards",
        least=1,
        most=1_000_000,
    )
    seed: int = seed_option("of the random steps")

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {"weights": 1}

    def resolved(self, examples: int) -> Decided:
        """This spec with every default decided, for this many examples.

        Raises:
            ValueError: a radius twice, or larger groups than there are examples.
        """
        radii = self.radii or RADII[self.ball]
        if len(set(radii)) < len(radii):
            raise ValueError(f"--radii {' '.join(map(str, radii))}; expected each once.")
        group = self.group or examples
        if group > examples:
            raise ValueError(f"--group {group}; expected at most the {examples} examples.")
        return Decided(**vars(self) | {"radii": tuple(sorted(radii)), "group": group})


@options.spec
class Decided(Spec):
    """A spec with every default decided."""

    radii: tuple[float, ...]
    group: int


def sharpness(problem: Problem, spec: Spec) -> Plan:
    """How far the loss rises over a step from the weights, at worst and on average.

    With L the mean loss over a group of examples, w the weights and S the steps of a ball:

    - `ascent_rise`: L(w + step) - L(w) at the worst step that gradient ascent finds in S. Each
      ascent goes to the step of S along the gradient there, which on a quadratic without negative
      eigenvalues is the power method; where the loss does not rise it goes half the way. The
      maximum over S is at least this.
    - `sampled_rise`: the same at the worst of the random steps on the surface of S. What lies
      between it and `ascent_rise` only a gradient finds.
    - `average_rise`: its mean over random steps, each with its negative, so that the slope cancels.
      On a quadratic with d rows radius² trace(H) / 2d, in the coordinates of the ball.
    - `keskar`: 100 ascent_rise / (1 + L(w)), for the ball of that name alone.

    Random steps are uniform on the sphere, or on the corners of the box. They are the same at all
    radii, so that a curve over radii is one of scale alone.

    Args:
        problem: with its batch size decided.
        spec: see `Spec`.

    Returns:
        A plan with the dims `radius` and `group`; over the groups `_mean` and `_mean_stderr`,
        whose mean is the m-sharpness of Foret et al. With one group the latter is NaN, and
        `average_rise_stderr` is the error over random steps.

    Raises:
        ValueError: batch norm statistics recomputed at every point, whose gradient is not taken; a
            radius twice; groups larger than the number of examples; no gradient.

    Cost: at each radius at most (ascent_steps + 1) * starts gradients, and 2 * draws + 2 forward
    passes, of all examples; a few copies of the weights.
    Source: Keskar et al. 2017, arXiv:1609.04836, metric 2.1 (box, with the whole space as their A);
    Foret et al. 2021, arXiv:2010.01412 (l2, groups of m); Kwon et al. 2021, arXiv:2102.11600
    (adaptive, filter-wise); Andriushchenko et al. 2023, arXiv:2302.07011 (average case).
    """
    spec = spec.resolved(len(problem))
    if problem.batch_norm == "recompute":
        raise ValueError(
            "--batch-norm recompute: the gradient through recomputed statistics is not taken. "
            "Expected running."
        )
    groups = -(-len(problem) // spec.group)
    dims = ("radius", "group")
    variables: Variables = {
        "ascent_rise": Variable(dims, "largest rise found", "nat"),
        "sampled_rise": Variable(dims, "largest random rise", "nat"),
        "average_rise": Variable(dims, "mean random rise", "nat"),
        "average_rise_stderr": Variable(
            dims, "standard error over steps of the mean random rise", "nat"
        ),
    }
    if spec.ball == "keskar":
        variables["keskar"] = Variable(dims, "Keskar's sharpness", "%")
    over_groups = [name for name in variables if not name.endswith("_stderr")]
    for name in over_groups:
        each = variables[name]
        mean = Variable(("radius",), f"{each.label}, mean over groups", each.unit)
        error = Variable(("radius",), f"standard error over groups of the {each.label}", each.unit)
        variables |= {f"{name}_mean": mean, f"{name}_mean_stderr": error}
    coords = {
        "radius": Coordinate(list(spec.radii), _WORDS[spec.ball]),
        "group": numbered(groups, "group of examples"),
    }
    variables["loss"] = Variable(("group",), "loss at the weights themselves", "nat")

    def measure(cells: Sequence[Cell]) -> Values:
        (cell,) = cells
        first = cell["group"] * spec.group
        own = problem.take(slice(first, first + spec.group))
        return _measured(own, spec, spec.radii[cell["radius"]], cell["group"], groups)

    def finish(result: xr.Dataset) -> Values:
        found: Values = {}
        for name in over_groups:
            found[f"{name}_mean"], found[f"{name}_mean_stderr"] = mean_and_stderr(
                result[name].values
            )
        return found

    return Plan(
        probe="sharpness",
        spec=spec,
        provenance=problem.fingerprints() | {"files": {}},
        coords=coords,
        variables=variables,
        walk=dims,
        measure=measure,
        watch="ascent_rise",
        finish=finish,
        tell=_tell,
    )


def _tell(result: xr.Dataset) -> list[str]:
    """A line for each radius."""
    unit = result["loss"].attrs["units"]
    lines = []
    for radius in result["radius"].values:
        row = result.sel(radius=radius)
        rises = [float(row[f"{n}_mean"]) for n in ("ascent_rise", "sampled_rise", "average_rise")]
        worst, sampled, average = (f"{rise:.4g}" for rise in rises)
        line = f"radius {radius:g}: the loss rises by {worst} {unit} at the worst step found, "
        line += f"{sampled} at the worst random step, {average} on average"
        if "keskar" in result:
            line += f"; Keskar's sharpness {float(row['keskar_mean']):.4g} %"
        lines.append(line)
    return lines


def _measured(problem: Problem, spec: Decided, radius: float, group: int, groups: int) -> Values:
    """All variables of one cell."""
    space = Weights(problem)
    ball = _Ball(space.origin, spec.ball, radius)
    # The random steps of a group are the same at all radii.
    generator = torch.Generator().manual_seed(spec.seed * 2_147_483_647 + group)
    starts = [ball.random(generator) for _ in range(spec.starts - 1)]

    def loss(step: Tensors) -> float:
        return space.evaluate(directions.displaced(space.origin, [step], [1.0])).summary()["loss"]

    at_origin = loss({name: torch.zeros_like(v) for name, v in space.origin.items()})
    worst = _ascended(space, ball, starts, spec.ascent_steps)
    rises = []
    for _ in range(spec.draws):
        step = ball.random(generator)
        back = {name: -value for name, value in step.items()}
        rises.append([loss(step) - at_origin, loss(back) - at_origin])
    pairs = np.array(rises)
    mean, error = mean_and_stderr(pairs.mean(axis=1))
    losses = np.full(groups, np.nan)
    losses[group] = at_origin
    # NaN where the loss is: a diverged step is the worst there is, not one to pass over.
    values = {
        "ascent_rise": loss(worst) - at_origin,
        "sampled_rise": pairs.max(),
        "average_rise": mean,
        "average_rise_stderr": error,
    }
    if spec.ball == "keskar":
        values["keskar"] = 100 * values["ascent_rise"] / (1 + at_origin)
    return {name: np.array([value]) for name, value in values.items()} | {"loss": losses}


@dataclass(frozen=True, eq=False)
class _Ball:
    """The steps that are compared.

    Args:
        origin: the weights.
        kind: see `Spec.ball`.
        radius: of the ball.
    """

    origin: Tensors
    kind: Ball
    radius: float

    def _sizes(self) -> Tensors:
        """What a step of 1 is in each coordinate."""
        if self.kind == "adaptive":
            return directions.relative_scale(self.origin)
        if self.kind == "keskar":
            return {name: value.abs() + 1 for name, value in self.origin.items()}
        return {name: torch.ones_like(value) for name, value in self.origin.items()}

    def along(self, slope: Tensors) -> Tensors:
        """The step of the ball with the largest product with `slope`."""
        sizes = self._sizes()
        if self.kind == "keskar":
            return {name: self.radius * sizes[name] * slope[name].sign() for name in slope}
        return self.on_sphere({name: sizes[name] ** 2 * slope[name] for name in slope})

    def on_sphere(self, step: Tensors) -> Tensors:
        """The step scaled to the surface; of a box, the step itself, which convexity keeps in it.

        What has no size (a filter of norm 0) does not move.
        """
        if self.kind == "keskar":
            return step
        sizes = self._sizes()
        squares = [
            torch.where(sizes[n] > 0, step[n].double() / sizes[n].double(), 0.0).square().sum()
            for n in step
        ]
        norm = float(sum(squares)) ** 0.5
        if not norm:
            return step
        return {n: (value.double() * (self.radius / norm)).to(value) for n, value in step.items()}

    def random(self, generator: torch.Generator) -> Tensors:
        """A uniform step on the sphere, or a uniform corner of the box."""
        drawn = directions.gaussian(self.origin, generator)
        sizes = self._sizes()
        if self.kind == "keskar":
            return self.along(drawn)
        return self.on_sphere({name: sizes[name] * value for name, value in drawn.items()})


def _ascended(space: Weights, ball: _Ball, starts: Sequence[Tensors], steps: int) -> Tensors:
    """The worst step that ascents from the weights themselves and from `starts` find."""
    worst = {name: torch.zeros_like(value) for name, value in space.origin.items()}
    highest = -float("inf")
    for start in (worst, *starts):
        step, share = start, 1.0
        loss, slope = _loss_and_slope(space, step)
        for _ in range(steps):
            if not _moves(slope) or not np.isfinite(loss) or share < SMALLEST_SHARE:
                break
            goal = ball.along(slope)
            ahead = ball.on_sphere({n: v + share * (goal[n] - v) for n, v in step.items()})
            found, there = _loss_and_slope(space, ahead)
            if found <= loss:
                share /= 2
                continue
            step, loss, slope, share = ahead, found, there, min(1.0, 2 * share)
        if not loss <= highest:  # a loss that is NaN is the worst there is
            worst, highest = step, loss
        if np.isnan(loss):
            break
    return worst


def _moves(slope: Tensors) -> bool:
    return any(bool(value.count_nonzero()) for value in slope.values())


def _loss_and_slope(space: Weights, step: Tensors) -> tuple[float, Tensors]:
    """The mean loss at a step from the origin, and its gradient there."""
    problem = space.problem
    point = directions.displaced(space.origin, [step], [1.0])
    leaves = {name: value.requires_grad_() for name, value in point.items()}
    total, slope = 0.0, {name: torch.zeros_like(value) for name, value in point.items()}
    for part in space.parts():
        with space.exact():
            losses = problem.losses(space.outputs(leaves, part), problem.targets[part])
            mean = losses.sum() / len(problem)
            found = torch.autograd.grad(mean, list(leaves.values()), allow_unused=True)
        total += float(mean.detach())
        for name, each in zip(slope, found, strict=True):
            if each is not None:
                slope[name] += each
    return total, slope


PROBE = Probe("sharpness", Spec, sharpness)


if __name__ == "__main__":
    from landscape.core.cli import main

    raise SystemExit(main(PROBE))
