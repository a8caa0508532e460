"""The path of training, in the plane that lies closest to it, over the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from checkpoints import options
from checkpoints.batch_norm import NORMS
from checkpoints.options import option
from checkpoints.problem import Problem, Tensors
from landscape.core import directions, ends
from landscape.core.plan import Cell, Plan, Probe, Values
from landscape.core.spaces import Weights
from landscape.core.variables import Coordinate, Floats, Variable, Variables

FOLDER = ".snapshots"  # after the name of a network: where its training put them
# Of the largest singular value, below which a second direction is rounding error.
FLAT = 1e-6


@options.spec
class Spec:
    """Every number that changes the answer. `None`: `resolved` picks the default."""

    snapshots: tuple[str, ...] = option(
        (),
        "networks along the path, in its order; those of one folder are one path (default: the "
        f"files in the folder CKPT{FOLDER} here, as checkpoints.train --snapshots writes them)",
        "FILE",
    )
    points: tuple[int, ...] = option(
        (21,), "points per axis, one number or one per axis", least=2, most=1_000_000
    )
    margin: float = option(
        0.2, "how far the plane reaches beyond the paths, as a share of their width", least=0
    )

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {"weights": 0}

    def __post_init__(self) -> None:
        if len(self.points) not in (1, 2):
            raise ValueError(
                f"--points {' '.join(map(str, self.points))}; expected one number, or one per axis."
            )


def trajectory(problem: Problem, spec: Spec) -> Plan:
    """The path of training in the plane through the trained network that lies closest to it.

    The plane is spanned by the two principal directions of the differences between the snapshots
    and the network: of all planes through the network the one with the least sum of squared
    distances to the snapshots. Li et al. project likewise. Parameters alone move; the loss in the
    plane has the batch-norm statistics of the network, or with `--batch-norm recompute` those of
    each point, and `snapshot_loss` those of each snapshot.

    Args:
        problem: with its batch size decided; its network is the origin.
        spec: see `Spec`.

    Returns:
        A plan with the dims (alpha, beta), in L2 distance: `loss`, `accuracy` and their `_stderr`.
        Along `snapshot`, `snapshot_loss`, and as coordinates `snapshot_alpha`, `snapshot_beta`, its
        `distance` from the plane, and the `path` it belongs to; along `component` the `share` of
        the squared distances from the network.

    Raises:
        ValueError: fewer than two snapshots that are not on one line with the network, or of
            another architecture.

    Cost: one forward pass of all examples a point and a snapshot; memory of all snapshots.
    Source: Li et al. 2018, arXiv:1712.09913, section 7. The singular values come from the Gram
    matrix of the differences, as many rows as snapshots, in float64.
    """
    space, whole = Weights(problem), Weights(problem, statistics=True)
    names = _files(problem, spec)
    loaded = [ends.network(whole, name) for name in names]
    plane = _plane(space.origin, [state for state, _, _ in loaded])
    counts = spec.points * (2 // len(spec.points))
    shown = [_steps(plane.at[:, k], counts[k], spec.margin) for k in (0, 1)]
    dims = ("alpha", "beta")
    variables: Variables = {
        "loss": Variable(dims, "loss", "nat"),
        "loss_stderr": Variable(dims, "standard error of the loss", "nat"),
        "snapshot_loss": Variable(("snapshot",), "loss of a snapshot", "nat"),
    }
    if problem.correct is not None:
        variables |= {
            "accuracy": Variable(dims, "accuracy"),
            "accuracy_stderr": Variable(dims, "standard error of accuracy"),
            "snapshot_accuracy": Variable(("snapshot",), "accuracy of a snapshot"),
        }
    of_snapshot = ("snapshot",)
    words = ("first", "second")
    coords = {
        dim: Coordinate(steps, f"{word} principal direction, {100 * share:.3g} %", "L2 distance")
        for dim, steps, word, share in zip(dims, shown, words, plane.shares, strict=True)
    } | {
        "snapshot": Coordinate(_labels(names), "snapshot"),
        "path": Coordinate([Path(name).parent.name for name in names], "path", dims=of_snapshot),
        "snapshot_alpha": Coordinate(plane.at[:, 0], "alpha", "L2 distance", of_snapshot),
        "snapshot_beta": Coordinate(plane.at[:, 1], "beta", "L2 distance", of_snapshot),
        "distance": Coordinate(
            plane.distances, "distance from the plane", "L2 distance", of_snapshot
        ),
        "component": Coordinate([0, 1], "principal direction"),
        "share": Coordinate(plane.shares, "share of the squared distance", dims=("component",)),
    }
    states = [state for state, _, _ in loaded]
    norms = any(isinstance(module, NORMS) for module in problem.model.modules())
    return Plan(
        probe="trajectory",
        spec=spec,
        provenance=problem.fingerprints()
        | {"files": {f"snapshot {i}": sha256 for i, (_, _, sha256) in enumerate(loaded)}},
        coords=coords,
        variables=variables,
        walk=dims,
        measure=partial(_measure, space, whole, plane, states, shown),
        watch="loss",
        tell=partial(_tell, running=norms and problem.batch_norm == "running"),
    )


def _files(problem: Problem, spec: Spec) -> list[str]:
    """The snapshots asked for, else those next to the checkpoint.

    Raises:
        ValueError: there are fewer than two.
    """
    found = list(spec.snapshots)
    if not found:
        path = Path(str(problem.provenance.get("source", {}).get("ckpt", "")))
        folder = path.with_name(f"{path.stem}{FOLDER}") if path.name else Path(FOLDER)
        found = sorted(str(file) for file in folder.glob("*.pt"))
        if len(found) < 2:
            raise ValueError(
                f"there are no snapshots in {folder}. Train with python -m checkpoints.train "
                "--snapshots 1, or pass two or more files as --snapshots."
            )
    if len(found) < 2:
        raise ValueError("--snapshots: found one; expected two or more.")
    return found


def _labels(names: Sequence[str]) -> list[str]:
    """The names of files without what they share, and numbers where they are not enough."""
    stems = [Path(name).stem for name in names]
    if len(set(stems)) == len(stems):
        return stems
    longer = [f"{Path(name).parent.name}/{stem}" for name, stem in zip(names, stems, strict=True)]
    if len(set(longer)) == len(longer):
        return longer
    return [f"{number} {stem}" for number, stem in enumerate(stems)]


@dataclass(frozen=True, eq=False)
class _Plane:
    """The plane through the origin closest to some points.

    Args:
        axes: two orthonormal directions, {name: tensor}.
        at: (snapshots, 2), where each snapshot is in the plane.
        distances: (snapshots,), from the plane.
        shares: (2,), of the sum of squared distances from the origin.
    """

    axes: Sequence[Tensors]
    at: Floats
    distances: Floats
    shares: Floats


def _plane(origin: Tensors, states: Sequence[Tensors]) -> _Plane:
    """The plane through the origin closest to `states`, from the Gram matrix of the differences."""
    apart = [directions.difference({n: s[n] for n in origin}, origin) for s in states]
    gram = torch.zeros(len(apart), len(apart), dtype=torch.float64)
    for name in origin:
        rows = torch.stack([each[name].flatten() for each in apart]).double()
        gram += (rows @ rows.T).cpu()
    squares, vectors = (t.flip(-1)[..., :2].numpy() for t in torch.linalg.eigh(gram))
    if not squares[1] > FLAT**2 * squares[0]:
        raise ValueError(
            "the snapshots lie on one line with the network, so that no plane is closest. Pass "
            "more of them as --snapshots."
        )
    lengths = np.sqrt(squares)
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), [0, 1]] < 0, -1, 1)
    at = vectors * lengths
    axes = []
    for k in (0, 1):
        weights = [float(w) for w in vectors[:, k] / lengths[k]]
        total = {name: torch.zeros_like(value) for name, value in origin.items()}
        axes.append(directions.displaced(total, apart, weights))
    diagonal = gram.diagonal().numpy()
    distances = np.sqrt(np.maximum(diagonal - (at**2).sum(axis=1), 0.0))
    return _Plane(axes, at, distances, squares / float(gram.trace()))


def _steps(at: Floats, count: int, margin: float) -> Floats:
    """Equally spaced over the snapshots and the network, and beyond them by the margin."""
    low, high = min(0.0, at.min()), max(0.0, at.max())
    beyond = margin * (high - low)
    return np.linspace(low - beyond, high + beyond, count)


def _measure(
    space: Weights,
    whole: Weights,
    plane: _Plane,
    states: Sequence[Tensors],
    steps: Sequence[Floats],
    cells: Sequence[Cell],
) -> Values:
    """The points of the grid, and the snapshots that fall to them in turn."""
    rows = []
    found: Values = {}
    for cell in cells:
        at = [float(s[i]) for s, i in zip(steps, cell.values(), strict=True)]
        rows.append(space.evaluate(directions.displaced(space.origin, plane.axes, at)).summary())
        across = len(steps[1])
        mine = range(cell["alpha"] * across + cell["beta"], len(states), len(steps[0]) * across)
        for which in mine:
            row = whole.evaluate(states[which]).summary()
            for name in ("loss", "accuracy"):
                if name in row:
                    values = found.setdefault(f"snapshot_{name}", np.full(len(states), np.nan))
                    values[which] = row[name]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} | found


def _tell(result: xr.Dataset, *, running: bool) -> list[str]:
    """How much of the path lies in the plane, and what the loss in the plane is of."""
    shares = result["share"].values
    far = result["distance"].values
    lines = [
        f"the plane has {shares.sum():.1%} of the squared distances of {len(far)} snapshots from "
        f"the network ({shares[0]:.1%} along the first direction); the farthest lies "
        f"{far.max():.3g} off it",
        f"loss of the first snapshot {float(result['snapshot_loss'][0]):.4g}, of the last "
        f"{float(result['snapshot_loss'][-1]):.4g}; lowest in the plane "
        f"{float(result['loss'].min()):.4g}",
    ]
    if running:
        lines.append(
            "everywhere in the plane batch norm has the statistics of the network itself; "
            "--batch-norm recompute gives each point its own"
        )
    return lines


PROBE = Probe("trajectory", Spec, trajectory)


if __name__ == "__main__":
    from landscape.core.cli import main

    raise SystemExit(main(PROBE))
