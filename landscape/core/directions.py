"""Directions: drawing, scaling, orthogonalising and checking them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from checkpoints.problem import Tensors

Normalization = Literal["filter", "layer", "unit", "none"]


def gaussian(origin: Tensors, generator: torch.Generator) -> Tensors:
    """Independent standard normal entries.

    They are drawn in float64 on the CPU in the order of the names, so that one seed gives the
    same direction, up to rounding, on every device and in every precision.

    Args:
        origin: {name: tensor}; gives names, shapes, dtypes and devices.
        generator: on the CPU; its state advances.
    """
    return {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        for name, value in origin.items()
    }


def difference(end: Tensors, origin: Tensors) -> Tensors:
    """The direction from `origin` to `end`: a step of 1 arrives there.

    Raises:
        ValueError: names or shapes differ.
    """
    check(end, origin)
    return {name: end[name].to(value) - value for name, value in origin.items()}


def displaced(origin: Tensors, directions: Sequence[Tensors], steps: Sequence[float]) -> Tensors:
    """The point origin + sum of step * direction, computed from the origin.

    Args:
        origin: {name: tensor}.
        directions: each with the names and shapes of `origin`.
        steps: one per direction.

    Returns:
        A new point; with steps of 0 exactly `origin`'s values.
    """
    point = [value.clone(memory_format=torch.preserve_format) for value in origin.values()]
    for direction, step in zip(directions, steps, strict=True):
        if step:
            torch._foreach_add_(point, [direction[name] for name in origin], alpha=step)
    return dict(zip(origin, point, strict=True))


def normalize(direction: Tensors, origin: Tensors, how: Normalization) -> Tensors:
    """Scale `direction`, slice by slice or tensor by tensor.

    A filter is one slice w[i] along the first axis; in the input space it is an example. Tensors
    with fewer than two axes (biases, norm scales) have no filters. With `filter` a step of 1 moves
    each filter by its own norm, so that two networks that differ only by a rescaling of filters
    have the same surface.

    Args:
        direction: {name: tensor}, any scale. Zeros stay zero.
        origin: {name: tensor}, the same names and shapes.
        how: `filter`: every filter gets the norm of `origin`'s, tensors of one axis become zero;
            `layer`: every tensor of two axes or more gets the norm of `origin`'s, the others become
            zero; `unit`: every filter gets norm 1, and tensors of one axis become zero; `none`: no
            change, so biases and norm scales move as well.

    Returns:
        {name: tensor}; the inputs are not modified.

    Raises:
        ValueError: names or shapes differ.

    Cost: one pass over the parameters; no model evaluation.
    Source: Li et al. 2018, section 4, arXiv:1712.09913.
    """
    check(direction, origin)
    if how == "none":
        return dict(direction)
    scaled = {}
    for name, value in direction.items():
        if value.ndim < 2:
            scaled[name] = torch.zeros_like(value)
            continue
        target = torch.ones(()) if how == "unit" else _norms(origin[name], how)
        norms = _norms(value, how)
        factor = torch.where(norms > 0, target.to(norms) / norms, 0.0)
        scaled[name] = (value.double() * factor).to(value)
    return scaled


def relative_scale(origin: Tensors) -> Tensors:
    """For every tensor the norms of its slices along the first axis, shaped to broadcast.

    In coordinates scaled by these a step of 1 moves each filter by its own norm, and each bias and
    norm scale by its own size. Networks that differ only by rescalings of filters without effect
    (before a batch norm, or a factor moved between the two sides of a product) then have the same
    spectrum and sharpness. A slice of norm 0 does not move.

    Source: Li et al. 2018, section 4, arXiv:1712.09913, for the directions; here for a matrix.
    """
    return {
        name: value.double().flatten(1).norm(dim=1).view(-1, *(1,) * (value.ndim - 1)).to(value)
        if value.ndim > 1
        else value.abs()
        for name, value in origin.items()
    }


def orthogonalize(direction: Tensors, first: Tensors, how: Normalization) -> Tensors:
    """Remove from `direction` its component along `first`, within each scaled part.

    Slice by slice for `filter` and `unit`, tensor by tensor for `layer`, over all entries for
    `none`, so that scaling the parts afterwards keeps the two directions orthogonal. A slice of a
    single entry has no orthogonal direction and becomes zero.

    Args:
        direction: {name: tensor}.
        first: the same names and shapes.
        how: the normalisation applied afterwards.

    Raises:
        ValueError: names or shapes differ.
    """
    check(direction, first)
    if how == "none":
        product = sum(float((direction[n].double() * first[n].double()).sum()) for n in first)
        length = sum(float((first[n].double() ** 2).sum()) for n in first)
        part = product / length if length else 0.0
        return {name: value - part * first[name] for name, value in direction.items()}
    result = {}
    for name, value in direction.items():
        a, b = value.double(), first[name].double()
        axes = tuple(range(0 if how == "layer" else 1, a.ndim)) if a.ndim else ()
        square = (b * b).sum(dim=axes, keepdim=True)
        share = torch.where(square > 0, (a * b).sum(dim=axes, keepdim=True) / square, 0.0)
        rest = a - share * b
        # What remains of a single entry is rounding error, not to be scaled to a full slice.
        size = (a * a).sum(dim=axes, keepdim=True)
        left = (rest * rest).sum(dim=axes, keepdim=True)
        result[name] = torch.where(left > 1e-12 * size, rest, 0.0).to(value)
    return result


def check(direction: Tensors, origin: Tensors) -> None:
    """Raise unless `direction` has the names and shapes of `origin`.

    Raises:
        ValueError: naming the first that differs.
    """
    for name in [*origin, *direction]:
        if name not in direction or name not in origin:
            where = "direction" if name in direction else "origin"
            raise ValueError(
                f"{name} is only in the {where}. A direction fits only the architecture it was "
                "made for."
            )
        if direction[name].shape != origin[name].shape:
            raise ValueError(
                f"{name}: direction is {tuple(direction[name].shape)}, origin is "
                f"{tuple(origin[name].shape)}. A direction fits only the architecture it was "
                "made for."
            )


def _norms(value: Tensor, how: Normalization) -> Tensor:
    """The norm of each slice along the first axis, or of the whole tensor; shaped to divide by."""
    axes = tuple(range(0 if how == "layer" else 1, value.ndim))
    return value.double().pow(2).sum(dim=axes, keepdim=True).sqrt()


def matching(
    names: Sequence[str], patterns: Sequence[str], flag: str = "--layers", what: str = "parameter"
) -> list[str]:
    """The names that match one of the shell patterns, in their order; all if there are no patterns.

    Args:
        names: to choose from.
        patterns: such as `layer3.*`.
        flag: by which they were passed, for the error message.
        what: has these names, likewise.

    Raises:
        ValueError: a pattern that matches no name.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            few = ", ".join(names[:6]) + (", \N{HORIZONTAL ELLIPSIS}" if len(names) > 6 else "")
            raise ValueError(f"{flag} {pattern}: no {what} matches. There are {len(names)}: {few}.")
    if not patterns:
        return list(names)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
