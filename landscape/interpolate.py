"""What a network does between real samples, or the loss between two networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr

from checkpoints.options import option
from checkpoints.problem import Problem
from landscape.core import barrier, between, pairs, paths
from landscape.core.pairs import KINDS, Path
from landscape.core.paths import Floats
from landscape.core.plan import Cell, Plan, Probe, Values
from landscape.core.spaces import Inputs

PAIRS, GALLERY = 64, 4
MOST_BEYOND = 100  # of the way itself, on either side
STEPS = np.linspace(0, 1, 7)  # where on its path the gallery has images
GALLERY_VARIABLES = {
    "gallery_pair": (("draw",), {"long_name": "path between samples", "units": "1"}),
    "image": (
        ("draw", "step", "channel", "height", "width"),
        {"long_name": "pixel value", "units": "1"},
    ),
}


@dataclass(frozen=True)
class Spec:
    """Every number that changes an interpolation. What is None is decided by `resolved`."""

    to: str | None = option(
        None, "a second checkpoint: the line between the two networks' weights", "FILE"
    )
    statistics: tuple[str, ...] | None = option(
        None,
        "with --to, batch norm's statistics on the way: kept (the first network's), interpolated, "
        "recomputed, or several of these (default: interpolated, and with --batch-norm recompute "
        "recomputed as well)",
        "NAME",
    )
    points: int = option(33, "points from one end to the other, both included")
    beyond: float = option(0.0, "go on beyond both ends by this fraction of the way")
    pairs: int | None = option(None, f"paths of each kind (default: {PAIRS})")
    same_class: bool | None = option(
        None, "lines between two samples of one class (default: measured)"
    )
    cross_class: bool | None = option(
        None, "lines between samples of different classes (default: measured)"
    )
    controls: bool | None = option(
        None,
        "lines between images with their pixels shuffled, and circles through three samples "
        "(default: measured)",
    )
    correct_only: bool | None = option(
        None, "draw only from samples that the network classifies correctly (default: from all)"
    )
    jacobian: bool | None = option(
        None, "the Jacobian at every point, most of the cost (default: measured)"
    )
    gallery: int | None = option(
        None, f"store the images of this many paths (default: {GALLERY} where inputs are images)"
    )
    seed: int = option(0, "of the pairs, and of the shuffling")

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {"inputs": int(bool(self.jacobian))} if self.to is None else {"weights": 0}

    def resolved(self, problem: Problem) -> Spec:
        """This spec with every default decided.

        Raises:
            ValueError: options that contradict each other, or a grid that is none.
        """
        if self.points < 3:
            raise ValueError(f"--points {self.points}; needed: at least 3, both ends among them.")
        if not 0 <= self.beyond <= MOST_BEYOND:
            raise ValueError(f"--beyond {self.beyond}; needed: 0 to {MOST_BEYOND}.")
        if self.to == "":
            raise ValueError("--to is empty; needed: a checkpoint file.")
        if self.to is not None:
            return self._between_networks(problem)
        if self.statistics:
            raise ValueError("--statistics is for a line between two networks; pass --to as well.")
        images = [value for value in problem.inputs.values() if value.ndim == 4]
        drawable = len(problem.inputs) == len(images) == 1
        if self.gallery and not drawable:
            raise ValueError(f"--gallery {self.gallery} needs one batch of images (N, C, H, W).")
        chosen = replace(
            self,
            pairs=PAIRS if self.pairs is None else self.pairs,
            correct_only=bool(self.correct_only),
            gallery=GALLERY * drawable if self.gallery is None else self.gallery,
            same_class=self.same_class is not False,
            cross_class=self.cross_class is not False,
            controls=self.controls is not False,
            jacobian=self.jacobian is not False,
        )
        if min(chosen.pairs or 0, 1) < 1 or (chosen.gallery or 0) < 0 or self.seed < 0:
            raise ValueError(
                f"--pairs {chosen.pairs} --gallery {chosen.gallery} --seed {self.seed}; needed: at "
                "least 1 pair, the others not negative."
            )
        if not chosen.kinds():
            raise ValueError("no kind of path is left. Leave out one of the --no- options.")
        return chosen

    def _between_networks(self, problem: Problem) -> Spec:
        between = ("pairs", "same_class", "cross_class", "controls", "correct_only", "jacobian")
        for name in (*between, "gallery"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} is for paths between samples; --to is a line "
                    "between networks. Pass one of them."
                )
        usual = ("interpolated", *(["recomputed"] if problem.calibration else []))
        return replace(self, statistics=barrier.checked(self.statistics or usual, problem))

    def kinds(self) -> list[str]:
        """The kinds of path that are measured, in the order of `pairs.KINDS`."""
        wanted = (self.same_class, self.cross_class, self.controls, self.controls)
        return [kind for kind, wants in zip(KINDS, wanted, strict=True) if wants]


def interpolate(problem: Problem, spec: Spec) -> Plan:
    """Outputs between real samples in pixel space, or the loss between two networks.

    Kinds of path: `same_class`, `cross_class`; as controls `random`, a line between two images
    whose pixels have been shuffled, each by a permutation of its own, and `circle`, through three
    samples. A shuffled image has no class: the network's own decision for it stands in its place.

    What is measured of each path is in `landscape.core.between.measure`. All pairs are drawn before
    anything is measured, so that neither order nor interruption changes them.

    Args:
        problem: with its batch size decided.
        spec: see `Spec`.

    Returns:
        Between samples a plan with cells (pair): outputs (pair, t), statistics (pair), and by kind
        (part) their means over pairs, `_stderr` as of independent pairs. Between networks, see
        `landscape.core.barrier.plan`.

    Raises:
        ValueError: options that contradict each other; more pairs than there are; no labels; a
            second network of another architecture.

    Cost: a path takes one forward pass of its points, and with the Jacobian another and a
        backward pass a class.
    Source: Novak et al. 2018, arXiv:1802.08760 (Jacobian, transitions, circles); Zhang et al.
        2018, arXiv:1710.09412 (misses).
    """
    spec = spec.resolved(problem)
    t = paths.grid(spec.points, spec.beyond)
    if spec.to is not None:
        return barrier.plan(problem, spec.to, spec.statistics or (), t, spec)
    if problem.correct is None:
        raise ValueError("paths between samples need a classification problem; this has no labels.")
    space = Inputs(problem)
    drawn = _drawn(space, spec)
    shown = _gallery(drawn, spec)
    return Plan(
        probe="interpolate",
        spec=spec,
        provenance=problem.fingerprints(),
        coords=_coords(space, spec, drawn, t, shown),
        variables=between.variables(with_jacobian=bool(spec.jacobian))
        | (GALLERY_VARIABLES if shown else {}),
        walk=("pair",),
        measure=partial(_measure, space, drawn, shown, t, spec),
        watch="flips",
        finish=between.means,
        tell=_tell,
    )


def _drawn(space: Inputs, spec: Spec) -> list[Path]:
    """Every path, kind after kind."""
    allowed = np.arange(len(space.problem))
    if spec.correct_only:
        hits = space.evaluate(space.origin).hits
        assert hits is not None  # interpolate() has seen to it
        allowed = np.flatnonzero(hits)
    labels = space.problem.targets.cpu().numpy()[allowed]
    assert spec.pairs is not None  # resolved() has decided it
    return [
        Path(kind, tuple(map(int, allowed[list(samples)])), (spec.seed, number))
        for kind in spec.kinds()
        for number, samples in enumerate(pairs.draw(kind, labels, spec.pairs, spec.seed))
    ]


def _coords(
    space: Inputs, spec: Spec, drawn: Sequence[Path], t: Floats, shown: Sequence[int]
) -> dict[str, Any]:
    with torch.inference_mode():
        logits = space.outputs({name: value[:1] for name, value in space.origin.items()})
    coords: dict[str, tuple[Any, str]] = {
        "pair": (np.arange(len(drawn)), "path between samples"),
        "t": (t, "position from the first sample (0) to the second (1), or around a circle"),
        "class": (np.arange(logits.shape[1]), "class"),
        "rank": (np.arange(3 if spec.controls else 2), "which of a path's samples"),
        "part": (np.array([KINDS.index(kind) for kind in spec.kinds()]), "kind of path"),
    }
    if shown:
        (images,) = space.origin.values()
        coords |= {
            "draw": (np.arange(len(shown)), "path in the gallery"),
            "step": (STEPS, "position of an image on its path"),
        }
        for name, size in zip(("channel", "height", "width"), images.shape[1:], strict=True):
            coords[name] = (np.arange(size), name)
    told = {n: (v, between.described(n, label, "1")) for n, (v, label) in coords.items()}
    if len(space.problem.classes) == logits.shape[1]:
        told["class"][1]["names"] = json.dumps(list(space.problem.classes))
    return told


def _gallery(drawn: Sequence[Path], spec: Spec) -> list[int]:
    """The paths whose images are stored: between real samples, one of each kind in turn."""
    real = [i for i, path in enumerate(drawn) if path.kind in ("same_class", "cross_class")]
    order = sorted(real or range(len(drawn)), key=lambda index: drawn[index].seed[1])
    return order[: spec.gallery]


def _measure(
    space: Inputs,
    drawn: Sequence[Path],
    shown: Sequence[int],
    t: Floats,
    spec: Spec,
    cells: Sequence[Cell],
) -> Values:
    numbers = [cell["pair"] for cell in cells]
    rows = [
        between.measure(
            space,
            drawn[number],
            t,
            ranks=3 if spec.controls else 2,
            with_jacobian=bool(spec.jacobian),
        )
        for number in numbers
    ]
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    for draw, number in enumerate(shown):
        if number in numbers:
            ends = pairs.ends(drawn[number], space.origin)
            (points,) = pairs.along(drawn[number], ends, STEPS)[0].values()
            values.setdefault("gallery_pair", np.full(len(shown), np.nan))[draw] = number
            blank = np.full((len(shown), *points.shape), np.nan)
            values.setdefault("image", blank)[draw] = points.double().cpu().numpy()
    return values


def _tell(result: xr.Dataset) -> list[str]:
    """For each kind its means; of what spreads over decades the geometric means."""
    lines = []
    for part, index in enumerate(result["part"].values):
        own = result.isel(part=part)
        told = [
            f"{label} {float(own[name]):.3g}{_within(float(own[f'{name}_stderr']), ' ± {:.1g}')}"
            for name, label in (("flips_mean", "flips"), ("miss_rate_mean", "miss rate"))
        ]
        for name in ("tortuosity", "roughness", "path_jacobian_norm"):
            mean = f"log_{name}_mean"
            if mean in own and np.isfinite(own[mean]):  # it means nothing on circles, or diverges
                centre, error = float(np.exp(own[mean])), float(own[f"{mean}_stderr"])
                spread = _within(float(np.exp(error)), " ×/÷ {:.2f}")
                told.append(f"{name.replace('_', ' ')} {centre:.3g}{spread}")
        there = result.isel(pair=np.flatnonzero(result["kind"] == index))
        diverged = int((~np.isfinite(there["logits"].values)).any(axis=(1, 2)).sum())
        told += [f"{diverged} with outputs that are not finite"] if diverged else []
        kind = KINDS[int(index)].replace("_", " ")
        lines.append(f"{kind}, {there.sizes['pair']} paths: {', '.join(told)}")
    return lines


def _within(error: float, form: str) -> str:
    """An error in words; nothing where one path alone has none."""
    return form.format(error) if np.isfinite(error) else ""


PROBE = Probe("interpolate", Spec, interpolate)


if __name__ == "__main__":
    from landscape.core.cli import main

    raise SystemExit(main(PROBE))
