"""Pairs of samples, and the paths between them."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, pi

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checkpoints.problem import Tensors
from landscape.core.variables import Floats
from landscape.interpolate import path_statistics

KINDS = ("same_class", "cross_class", "random", "circle")


@dataclass(frozen=True)
class SamplePath:
    """One path.

    Args:
        kind: one of `KINDS`.
        samples: positions of the two or three examples that it connects.
        seed: of the permutations that shuffle the pixels of a `random` one.
    """

    kind: str
    samples: tuple[int, ...]
    seed: tuple[int, int]


def ends(path: SamplePath, inputs: Tensors) -> Tensors:
    """The samples that a path connects, {name: (2 or 3, ...)}, shuffled for a `random` one.

    A shuffled image keeps its pixels' values; the channels of a pixel stay together.
    """
    chosen = {name: value[list(path.samples)] for name, value in inputs.items()}
    if path.kind != "random":
        return chosen
    generator = np.random.default_rng(path.seed)
    return {name: _shuffled(value, generator) for name, value in chosen.items()}


def along(path: SamplePath, ends: Tensors, t: Floats) -> tuple[Tensors, float]:
    """The points of a path, and its length from t = 0 to 1.

    Each point is a linear combination of the samples, computed in float64 and rounded once; at
    t = 0 and t = 1 it is exactly a sample. Points on circles and beyond the ends may leave [0, 1].

    Args:
        path: of kind `circle` a circle through three samples, otherwise a straight line.
        ends: {name: (2 or 3, ...)}.
        t: (T,).

    Returns:
        {name: (T, ...)}, and an L2 distance over all inputs, in the unit of the inputs.
    """
    flat = {name: value.double().flatten(1) for name, value in ends.items()}
    squares = [
        float(sum((value[i] - value[j]).square().sum() for value in flat.values()))
        for i, j in ((0, 1), (0, 2), (1, 2))[: 3 if path.kind == "circle" else 1]
    ]
    if path.kind == "circle":
        coefficients, radius = path_statistics.circle((squares[0], squares[1], squares[2]), t)
        length = 2 * pi * radius
    else:
        coefficients, length = path_statistics.line(t), squares[0] ** 0.5
    points = {
        name: (torch.from_numpy(coefficients).to(value.device) @ value)
        .view(len(t), *ends[name].shape[1:])
        .to(ends[name].dtype)
        for name, value in flat.items()
    }
    return points, length


def draw(kind: str, labels: NDArray[np.int64], count: int, seed: int) -> list[tuple[int, ...]]:
    """`count` different pairs (for a circle, triples) of examples.

    The first is drawn uniformly from all examples, the second from those that form a pair of this
    kind with it; pairs that occurred before are drawn again. A larger `count` begins with the same
    pairs, and the pairs of a kind do not depend on which other kinds are drawn.

    Args:
        kind: one of `KINDS`: `same_class` and `cross_class` pairs; for `random` and `circle` any
            two or three examples.
        labels: (N,), the class of each example.
        count: number of pairs.
        seed: not negative.

    Returns:
        Positions in `labels`.

    Raises:
        ValueError: fewer pairs exist.
    """
    there = _available(kind, labels)
    if count > there:
        raise ValueError(
            f"--pairs {count} exceeds the {there} of kind {kind} among {len(labels)} examples that "
            "can be drawn. Ask for fewer, or for more --examples."
        )
    generator = np.random.default_rng([seed, KINDS.index(kind)])
    drawn: dict[frozenset[int], tuple[int, ...]] = {}
    while len(drawn) < count:
        first = int(generator.integers(len(labels)))
        suits = np.ones(len(labels), dtype=bool)
        if kind in ("same_class", "cross_class"):
            suits = (labels == labels[first]) == (kind == "same_class")
        suits[first] = False
        partners, wanted = np.flatnonzero(suits), 2 if kind == "circle" else 1
        if len(partners) >= wanted:
            others = generator.choice(partners, wanted, replace=False)
            members = (first, *map(int, others))
            drawn.setdefault(frozenset(members), members)
    return list(drawn.values())


def _available(kind: str, labels: NDArray[np.int64]) -> int:
    if kind == "circle":
        return comb(len(labels), 3)
    same = sum(comb(int(count), 2) for count in np.unique(labels, return_counts=True)[1])
    every = comb(len(labels), 2)
    return {"same_class": same, "cross_class": every - same}.get(kind, every)


def _shuffled(images: Tensor, generator: np.random.Generator) -> Tensor:
    first = 2 if images.ndim > 2 else 1  # after the channels, if any
    flat = images.flatten(first)
    orders = [torch.from_numpy(generator.permutation(flat.shape[-1])) for _ in flat]
    return torch.stack(
        [image[..., order.to(image.device)] for image, order in zip(flat, orders, strict=True)]
    ).view_as(images)
