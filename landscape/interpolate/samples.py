"""Paths between real samples: drawing, measuring and averaging them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import xarray as xr

from checkpoints.problem import Problem
from landscape.core.plan import Cell, Plan, Values
from landscape.core.spaces import Inputs
from landscape.core.variables import Coordinate, Coordinates, Floats, Variable, numbered
from landscape.interpolate import between, pairs
from landscape.interpolate.pairs import SamplePath
from landscape.interpolate.spec import BetweenSamples

STEPS = np.linspace(0, 1, 7)  # positions of the gallery's images on their path
GALLERY_VARIABLES = {
    "gallery_pair": Variable(("gallery",), "path between samples"),
    "image": Variable(("gallery", "gallery_t", "channel", "height", "width"), "pixel value"),
}


def plan(problem: Problem, t: Floats, spec: BetweenSamples) -> Plan:
    """A cell for every path between samples; see `landscape.interpolate.interpolate`."""
    if problem.correct is None or problem.targets.ndim != 1:
        raise ValueError(
            "paths between samples need a classification problem: one label per sample."
        )
    space = Inputs(problem)
    drawn = _drawn(space, spec)
    shown = _gallery(drawn, spec)
    return Plan(
        probe="interpolate",
        spec=spec,
        provenance=problem.fingerprints(),
        coords=_coords(space, spec, drawn, t, shown),
        variables=between.variables(with_jacobian=spec.jacobian)
        | (GALLERY_VARIABLES if shown else {}),
        walk=("pair",),
        measure=partial(_measure, space, drawn, shown, t, spec),
        watch="flips",
        finish=between.means,
        tell=_tell,
    )


def _drawn(space: Inputs, spec: BetweenSamples) -> list[SamplePath]:
    """All paths, kind by kind."""
    allowed = np.arange(len(space.problem))
    if spec.correct_only:
        hits = space.evaluate(space.origin).hits
        assert hits is not None  # ensured by interpolate()
        allowed = np.flatnonzero(hits)
    labels = space.problem.targets.cpu().numpy()[allowed]
    return [
        SamplePath(kind, tuple(map(int, allowed[list(samples)])), (spec.seed, number))
        for kind in spec.kinds()
        for number, samples in enumerate(pairs.draw(kind, labels, spec.pairs, spec.seed))
    ]


def _coords(
    space: Inputs,
    spec: BetweenSamples,
    drawn: Sequence[SamplePath],
    t: Floats,
    shown: Sequence[int],
) -> Coordinates:
    with torch.inference_mode():
        logits = space.outputs({name: value[:1] for name, value in space.origin.items()})
    count = 3 if spec.controls else 2
    names = space.problem.classes
    named = {"names": json.dumps(list(names))} if len(names) == logits.shape[1] else {}
    where = "position from the first sample (0) to the second (1), or around a circle"
    indices = np.full((len(drawn), count), -1)
    for row, path in zip(indices, drawn, strict=True):
        row[: len(path.samples)] = space.problem.indices[list(path.samples)]
    coords = {
        "pair": numbered(len(drawn), "path between samples"),
        "kind": Coordinate([path.kind for path in drawn], "kind of path", dims=("pair",)),
        "t": Coordinate(t, where),
        "class": Coordinate(np.arange(logits.shape[1]), "class", more=named),
        "path_sample": numbered(count, "which of a path's samples"),
        "path_kind": Coordinate(spec.kinds(), "kind of path"),
        "sample_index": Coordinate(
            indices, f"{space.problem.index_label}, of the sample", dims=("pair", "path_sample")
        ),
    }
    if shown:
        (images,) = space.origin.values()
        coords |= {
            "gallery": numbered(len(shown), "path in the gallery"),
            "gallery_t": Coordinate(STEPS, "position of an image on its path"),
        }
        for name, size in zip(("channel", "height", "width"), images.shape[1:], strict=True):
            coords[name] = numbered(size, name)
    return coords


def _gallery(drawn: Sequence[SamplePath], spec: BetweenSamples) -> list[int]:
    """The paths whose images are stored: between real samples, one of each kind in turn."""
    real = [i for i, path in enumerate(drawn) if path.kind in ("same_class", "cross_class")]
    order = sorted(real or range(len(drawn)), key=lambda index: drawn[index].seed[1])
    return order[: spec.gallery]


def _measure(
    space: Inputs,
    drawn: Sequence[SamplePath],
    shown: Sequence[int],
    t: Floats,
    spec: BetweenSamples,
    cells: Sequence[Cell],
) -> Values:
    numbers = [cell["pair"] for cell in cells]
    rows = [
        between.measure(
            space,
            drawn[number],
            t,
            ranks=3 if spec.controls else 2,
            with_jacobian=spec.jacobian,
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
    """The means of each kind; geometric means for statistics that span decades."""
    lines = []
    for kind in map(str, result["path_kind"].values):
        own = result.sel(path_kind=kind)
        summary = [
            f"{label} {float(own[name]):.3g}{_within(float(own[f'{name}_stderr']), ' ± {:.1g}')}"
            for name, label in (("flips_mean", "flips"), ("miss_rate_mean", "miss rate"))
        ]
        for name in ("tortuosity", "roughness", "path_jacobian_norm"):
            mean = f"log_{name}_mean"
            if mean in own and np.isfinite(own[mean]):  # undefined on circles, or divergent
                centre, error = float(np.exp(own[mean])), float(own[f"{mean}_stderr"])
                spread = _within(float(np.exp(error)), " ×/÷ {:.2f}")
                summary.append(f"{name.replace('_', ' ')} {centre:.3g}{spread}")
        there = result.isel(pair=np.flatnonzero(result["kind"] == kind))
        diverged = int((~np.isfinite(there["logits"].values)).any(axis=(1, 2)).sum())
        summary += [f"{diverged} with outputs that are not finite"] if diverged else []
        lines.append(f"{kind.replace('_', ' ')}, {there.sizes['pair']} paths: {', '.join(summary)}")
    return lines


def _within(error: float, form: str) -> str:
    """A standard error as text; empty for a single path, which has none."""
    return form.format(error) if np.isfinite(error) else ""
