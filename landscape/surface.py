"""The loss on a line or a plane through a trained network, or through real samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from checkpoints import options
from checkpoints.options import option, seed_option
from checkpoints.problem import Problem, Tensors
from landscape.core import direction_files, directions, ends, store
from landscape.core.plan import Cell, Plan, Probe, Values
from landscape.core.spaces import Inputs, Space, Weights
from landscape.core.variables import Coordinate, Variable, of_examples

POINTS = {1: 51, 2: 21}
# In the input space, about the distance from a real sample to its nearest neighbour.
EXTENT = {"weights": 1.0, "inputs": 4.0}
NORMALIZE: dict[str, directions.Normalization] = {"weights": "filter", "inputs": "unit"}


@options.spec
class Spec:
    """Every number that changes a surface. `None`: `resolved` picks the default."""

    space: Literal["weights", "inputs"] = option(
        "weights", "what moves: the network's weights, or each example on its own"
    )
    dimensions: Literal[1, 2] = option(2, "a line or a plane")
    points: tuple[int, ...] | None = option(
        None,
        "points per axis, one number or one per axis (default: 51 on a line, 21 in a plane)",
        least=1,
        most=1_000_000,
    )
    extent: tuple[float, ...] | None = option(
        None,
        "half the width of each axis: it runs from -X to X, and with --to from 0.5-X to 0.5+X "
        "(default: 1 in the weights, 4 in the inputs, 0.5 with --to)",
        least=0,
        most=1e30,
    )
    normalize: Literal["filter", "layer", "unit", "none"] | None = option(
        None,
        "scale of random directions: that of the origin's filters or layers, norm 1 per slice, or "
        "as drawn (default: filter in the weights; in the inputs unit, so that a step is an L2 "
        "distance in units of the [0, 1] pixel range)",
    )
    layers: tuple[str, ...] = option(
        (),
        "only the parameters whose names match one of these patterns move along random directions, "
        "such as 'layer3.*' (default: all, those frozen in training too)",
        "PATTERN",
    )
    orthogonal: bool = option(False, "make the second direction orthogonal to the first")
    to: str | None = option(None, "a second checkpoint: the first axis is the line to it", "FILE")
    directions: str | None = option(
        None, "a result file whose first directions are taken as they are", "FILE"
    )
    save_directions: str | None = option(None, "write the directions to this HDF5 file", "FILE")
    example_losses: bool | None = option(
        None, "store every example's loss as well (default: in the inputs only)"
    )
    seed: int = seed_option("of the random directions")

    def __post_init__(self) -> None:
        for name in ("points", "extent"):
            given = getattr(self, name)
            if given is not None and len(given) not in (1, self.dimensions):
                raise ValueError(
                    f"--{name} {' '.join(map(str, given))}; expected one number, or "
                    f"{self.dimensions}, one per axis (--dimensions {self.dimensions})."
                )
        if self.space == "inputs" and (self.to or self.directions):
            raise ValueError("--to and --directions are for --space weights.")
        if self.layers and (self.space == "inputs" or self.to or self.directions):
            raise ValueError("--layers is for random directions in --space weights.")
        if self.to and self.directions:
            raise ValueError("--to and --directions both give the first axis; pass one of them.")
        if self.orthogonal and self.dimensions == 1:
            raise ValueError("--orthogonal is for a plane; a line has no second direction.")

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {self.space: 0}

    def resolved(self) -> Decided:
        """This spec with every default decided."""
        points = self.points or (POINTS[self.dimensions],)
        extent = self.extent or (EXTENT[self.space],)
        if self.to and not self.extent:
            extent = (0.5, EXTENT[self.space])[: self.dimensions]
        in_inputs = self.space == "inputs"
        decided = {
            "points": points * (self.dimensions // len(points)),
            "extent": extent * (self.dimensions // len(extent)),
            "normalize": self.normalize or NORMALIZE[self.space],
            "example_losses": in_inputs if self.example_losses is None else self.example_losses,
        }
        return Decided(**vars(self) | decided)


@options.spec
class Decided(Spec):
    """A spec with every default decided."""

    points: tuple[int, ...]
    extent: tuple[float, ...]
    normalize: directions.Normalization
    example_losses: bool


def surface(problem: Problem, spec: Spec) -> Plan:
    """Loss and accuracy over the examples, at every point of a grid through the origin.

    Every point is computed from the origin, as origin + alpha * first + beta * second. In the
    weight space the loss is the mean over examples at those weights. In the input space every
    example moves along its own direction, by the same step.

    Args:
        problem: with its batch size decided.
        spec: see `Spec`.

    Returns:
        A plan with dims (alpha) or (alpha, beta): `loss` in nat and `accuracy` as a fraction,
        means over examples; `_stderr` the standard errors of these means over the examples, for
        directions held fixed; `example_loss` on request. A loss that diverges is stored as inf or
        NaN.

    Raises:
        ValueError: options that contradict each other; a second checkpoint or stored directions
            of another architecture.

    Cost: one forward pass of all examples per point.
    Source: Goodfellow et al. 2015, arXiv:1412.6544 (lines); Li et al. 2018, arXiv:1712.09913.
    """
    spec = spec.resolved()
    space: Space
    if spec.space == "weights":
        space = Weights(problem, statistics=spec.to is not None)
    else:
        space = Inputs(problem)
    axes, files = _directions(space, spec)
    dims = ("alpha", "beta")[: spec.dimensions]
    variables = {
        "loss": Variable(dims, "loss", "nat"),
        "loss_stderr": Variable(dims, "standard error of the loss", "nat"),
    }
    if problem.correct is not None:
        variables |= {
            "accuracy": Variable(dims, "accuracy"),
            "accuracy_stderr": Variable(dims, "standard error of accuracy"),
        }
    coords = {dim: Coordinate(_steps(spec, i), *_label(spec, i)) for i, dim in enumerate(dims)}
    if spec.example_losses:
        variables["example_loss"] = Variable((*dims, "example"), "loss of one example", "nat")
        coords |= of_examples(problem)
    provenance = problem.fingerprints() | {"files": files}
    return Plan(
        probe="surface",
        spec=replace(spec, save_directions=None),
        provenance=provenance,
        coords=coords,
        variables=variables,
        walk=dims,
        measure=partial(_measure, space, axes, [coords[dim].values for dim in dims], spec),
        watch="loss",
        tell=_tell,
        extra_files=(Path(spec.save_directions),) if spec.save_directions else (),
        begin=partial(_save, axes, spec, provenance),
    )


def _tell(result: xr.Dataset) -> list[str]:
    """Loss and accuracy: nearest to the origin, lowest, highest, and how much is not finite."""
    dims = result["measured"].dims
    at_origin = {dim: int(np.abs(result[dim].values).argmin()) for dim in dims}
    lines = []
    for name in ("loss", "accuracy"):
        if name not in result:
            continue
        values = result[name].values
        finite = np.isfinite(values)
        unit = result[name].attrs["units"].replace("1", "")
        line = f"{name} at the origin {float(result[name][at_origin]):.4g} {unit}".rstrip()
        if any(result[dim].values[at_origin[dim]] for dim in dims):
            line = line.replace("at the origin", "at the point nearest to the origin")
        if finite.any():
            lowest = np.unravel_index(np.nanargmin(np.where(finite, values, np.nan)), values.shape)
            place = ", ".join(
                f"{dim} {float(result[dim][i]):.3g}" for dim, i in zip(dims, lowest, strict=True)
            )
            line += f"; lowest {values[lowest]:.4g} at {place}; highest {values[finite].max():.4g}"
        if not finite.all():
            line += f"; {int((~finite).sum())} of {finite.size} points not finite"
        lines.append(line)
    return lines


def _save(axes: Sequence[Tensors], spec: Decided, provenance: dict[str, Any]) -> None:
    """Write the directions, if requested."""
    if spec.save_directions:
        path = Path(spec.save_directions)
        run = store.identity("surface", asdict(replace(spec, save_directions=None)), provenance)
        direction_files.check_place(path, run)
        direction_files.save(axes, path, run=run)


def _measure(
    space: Space,
    axes: Sequence[Tensors],
    steps: Sequence[NDArray[np.float64]],
    spec: Decided,
    cells: Sequence[Cell],
) -> Values:
    rows: list[dict[str, Any]] = []
    for cell in cells:
        at = [float(s[i]) for s, i in zip(steps, cell.values(), strict=True)]
        evaluation = space.evaluate(directions.displaced(space.origin, axes, at))
        row: dict[str, Any] = dict(evaluation.summary())
        if spec.example_losses:
            row["example_loss"] = evaluation.losses
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _directions(space: Space, spec: Decided) -> tuple[list[Tensors], dict[str, str]]:
    """The direction of each axis, and the SHA-256 of the files that they came from."""
    axes: list[Tensors] = []
    files: dict[str, str] = {}
    if spec.to:
        end, _, files["to"] = ends.network(space, spec.to)
        axes.append(directions.difference(end, space.origin))
    if spec.directions:
        stored, files["directions"] = ends.stored(space, spec.directions)
        axes += stored[: spec.dimensions]
    generator = torch.Generator().manual_seed(spec.seed)
    while len(axes) < spec.dimensions:
        drawn = directions.gaussian(space.origin, generator)
        if isinstance(space, Weights):
            moving = directions.matching(sorted(space.parameters), spec.layers)
            drawn = {n: v if n in moving else torch.zeros_like(v) for n, v in drawn.items()}
        if axes and spec.orthogonal:
            drawn = directions.orthogonalize(drawn, axes[0], spec.normalize)
        axes.append(directions.normalize(drawn, space.origin, spec.normalize))
    return axes, files


def _steps(spec: Decided, axis: int) -> NDArray[np.float64]:
    """Equally spaced, exact at the middle and at the ends; one point is the middle."""
    count, extent = spec.points[axis], spec.extent[axis]
    middle = 0.5 if spec.to and axis == 0 else 0.0
    spread = np.arange(count) * 2 - (count - 1)
    return middle + extent * (spread / max(count - 1, 1))


def _label(spec: Decided, axis: int) -> tuple[str, str]:
    """The label of an axis, and its unit."""
    if spec.to and axis == 0:
        return f"from this network (0) to {Path(spec.to).name} (1)", "1"
    which = ("first", "second")[axis]
    if spec.directions:
        return f"step along the {which} direction", "its length"
    units = {
        "filter": {"weights": "filter norms", "inputs": "norms of the example"},
        "layer": {"weights": "layer norms", "inputs": "norms of all examples"},
        "unit": {"weights": "L2 distance per filter", "inputs": "L2 distance, pixel range 1"},
        "none": {"weights": "L2 norms of the draw", "inputs": "noise s.d., pixel range 1"},
    }
    return f"step along the {which} direction", units[spec.normalize][spec.space]


PROBE = Probe("surface", Spec, surface)


if __name__ == "__main__":
    from landscape.core.cli import main

    raise SystemExit(main(PROBE))
