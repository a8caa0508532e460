"""Paths between real samples: drawn, walked, summed up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr

from checkpoints.problem import Problem
from landscape.core.plan import Cell, Plan, Values
from landscape.core.spaces import Inputs
from landscape.interpolate import between, pairs
from landscape.interpolate.pairs import KINDS, SamplePath
from landscape.interpolate.path_statistics import Floats
from landscape.interpolate.spec import Spec

STEPS = np.linspace(0, 1, 7)  # where on its path the gallery has images
GALLERY_VARIABLES = {
    "gallery_pair": (("draw",), {"long_name": "path between samples", "units": "1"}),
    "image": (
        ("draw", "step", "channel", "height", "width"),
        {"long_name": "pixel value", "units": "1"},
    ),
}


def plan(problem: Problem, t: Floats, spec: Spec) -> Plan:
    """A cell for every path between samples; see `landscape.interpolate.interpolate`."""
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


def _drawn(space: Inputs, spec: Spec) -> list[SamplePath]:
    """Every path, kind after kind."""
    allowed = np.arange(len(space.problem))
    if spec.correct_only:
        hits = space.evaluate(space.origin).hits
        assert hits is not None  # interpolate() has seen to it
        allowed = np.flatnonzero(hits)
    labels = space.problem.targets.cpu().numpy()[allowed]
    assert spec.pairs is not None  # resolved() has decided it
    return [
        SamplePath(kind, tuple(map(int, allowed[list(samples)])), (spec.seed, number))
        for kind in spec.kinds()
        for number, samples in enumerate(pairs.draw(kind, labels, spec.pairs, spec.seed))
    ]


def _coords(
    space: Inputs, spec: Spec, drawn: Sequence[SamplePath], t: Floats, shown: Sequence[int]
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


def _gallery(drawn: Sequence[SamplePath], spec: Spec) -> list[int]:
    """The paths whose images are stored: between real samples, one of each kind in turn."""
    real = [i for i, path in enumerate(drawn) if path.kind in ("same_class", "cross_class")]
    order = sorted(real or range(len(drawn)), key=lambda index: drawn[index].seed[1])
    return order[: spec.gallery]


def _measure(
    space: Inputs,
    drawn: Sequence[SamplePath],
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
