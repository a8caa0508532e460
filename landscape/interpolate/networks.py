"""The line between two networks, and the barrier on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from checkpoints.problem import BatchNorm, Problem, Tensors
from landscape.core import directions, ends
from landscape.core.plan import Cell, Plan, Values
from landscape.core.spaces import Weights
from landscape.core.summary import mean_and_stderr
from landscape.core.variables import Coordinate, Variable, Variables, of_examples
from landscape.interpolate import path_statistics

Statistics: TypeAlias = Literal["kept", "interpolated", "recomputed"]
STATISTICS: tuple[Statistics, ...] = get_args(Statistics)
TREATMENT = "batch_norm_statistics"  # the dim


def checked(statistics: Sequence[str], problem: Problem) -> tuple[str, ...]:
    """The requested treatments of batch norm's statistics, in the order of `STATISTICS`.

    Raises:
        ValueError: an unknown treatment, or `recomputed` without images to recompute from.
    """
    unknown = sorted(set(statistics) - set(STATISTICS))
    if unknown:
        raise ValueError(f"--statistics {unknown[0]}; expected some of {' '.join(STATISTICS)}.")
    if "recomputed" in statistics and not problem.calibration:
        raise ValueError(
            "--statistics recomputed needs images to recompute from, and there are none. Pass "
            "--batch-norm recompute."
        )
    return tuple(name for name in STATISTICS if name in statistics)


def plan(
    problem: Problem, to: str, statistics: Sequence[str], t: NDArray[np.float64], spec: Any
) -> Plan:
    """Loss and accuracy over the examples on the line between two networks' weights.

    Batch norm's running statistics along the line: `kept`, those of the first network, so the other
    end is not one of the trained networks; `interpolated` like the weights, so the ends are the two
    networks; `recomputed` at every point from the problem's calibration set. The point at t is
    computed from the nearer end, so both ends are exact.

    The excess is the loss above the straight line between the losses at the ends, and the barrier
    the largest excess for t from 0 to 1: never negative. Its standard error is that of the mean of
    the examples' excesses at that point, as if the point had been chosen in advance; it was
    selected as the highest, which biases the barrier upwards if several points come close.

    Args:
        problem: with its batch size decided.
        to: the second checkpoint.
        statistics: from `checked`.
        t: (T,), with 0 and 1.
        spec: the probe's, for the record.

    Returns:
        A plan with cells (t), and by treatment (`batch_norm_statistics`): `loss` in nat,
        `accuracy` as a fraction, `excess_loss`, each with `_stderr`; `barrier` in nat,
        `barrier_at`; `example_loss`.

    Raises:
        ValueError: a second network of another architecture or normalisation.

    Cost: one forward pass of all examples per point and treatment; `recomputed` adds one of the
        calibration set.
    Source: Frankle et al. 2020, arXiv:1912.05671; Entezari et al. 2022, arXiv:2110.06296 (the
        straight line between unequal ends); Jordan et al. 2023, arXiv:2211.08403 (recomputing).
    """
    lines = []
    for treatment in statistics:
        how: BatchNorm = "recompute" if treatment == "recomputed" else "running"
        space = Weights(replace(problem, batch_norm=how), statistics=treatment == "interpolated")
        end, name, sha256 = ends.network(space, to)
        lines.append((space, end))
    where = f"from this network (0) to {name} (1)"
    files = {"to": sha256}
    return Plan(
        probe="interpolate",
        spec=spec,
        provenance=problem.fingerprints() | {"files": files},
        coords={
            "t": Coordinate(t, where),
            TREATMENT: Coordinate(list(statistics), "batch norm's statistics"),
            **of_examples(problem),
        },
        variables=_variables(with_accuracy=problem.correct is not None),
        walk=("t",),
        measure=partial(_measure, lines, t),
        watch="loss",
        finish=_finish,
        tell=_tell,
    )


def _variables(*, with_accuracy: bool) -> Variables:
    curves = {"loss": "nat", "excess_loss": "nat"} | ({"accuracy": "1"} if with_accuracy else {})
    names = {"excess_loss": "loss above the straight line between the ends"}
    declared = {}
    for name, units in curves.items():
        for suffix, before in (("", ""), ("_stderr", "standard error of the ")):
            label = before + names.get(name, name)
            declared[name + suffix] = Variable(("t", TREATMENT), label, units)
    dims = (TREATMENT,)
    return declared | {
        "barrier": Variable(dims, "barrier", "nat"),
        "barrier_stderr": Variable(dims, "standard error of the barrier", "nat"),
        "barrier_at": Variable(dims, "where the barrier is highest"),
        "example_loss": Variable(("t", TREATMENT, "example"), "loss of one example", "nat"),
    }


def _point(origin: Tensors, end: Tensors, t: float) -> Tensors:
    along = directions.difference(end, origin)
    if t < 0.5:
        return directions.displaced(origin, [along], [t])
    return directions.displaced(end, [along], [t - 1])


def _measure(
    lines: Sequence[tuple[Weights, Tensors]], t: NDArray[np.float64], cells: Sequence[Cell]
) -> Values:
    rows: list[dict[str, Any]] = []
    for cell in cells:
        found = [
            space.evaluate(_point(space.origin, end, float(t[cell["t"]]))) for space, end in lines
        ]
        summaries = [evaluation.summary() for evaluation in found]
        row: dict[str, Any] = {name: [s[name] for s in summaries] for name in summaries[0]}
        rows.append(row | {"example_loss": [evaluation.losses for evaluation in found]})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _finish(result: xr.Dataset) -> Values:
    t = result["t"].values
    inside = (t >= 0) & (t <= 1)
    losses = result["example_loss"].transpose(TREATMENT, "t", "example").values
    excess, stderr = mean_and_stderr(np.stack([path_statistics.excess(each, t) for each in losses]))
    within = np.flatnonzero(inside)
    top = within[excess[:, inside].argmax(axis=1)]
    each = np.arange(len(losses))
    return {
        "excess_loss": excess.T,
        "excess_loss_stderr": stderr.T,
        "barrier": excess[each, top],
        "barrier_stderr": stderr[each, top],
        "barrier_at": t[top],
    }


def _tell(result: xr.Dataset) -> list[str]:
    return [
        f"statistics {one[TREATMENT].item()}: barrier {float(one['barrier']):.4g} ± "
        f"{float(one['barrier_stderr']):.2g} nat at t = {float(one['barrier_at']):.3g}"
        for one in (result.isel({TREATMENT: at}) for at in range(result.sizes[TREATMENT]))
    ]
