"""Convert image arrays as commonly stored to `Images`, or reject them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from checkpoints.data.images import Images, Split

ROUNDING = 1e-6  # of float pixels, in units of the [0, 1] pixel range
MOST_CLASSES = 65_536


def to_images(
    x: ArrayLike, y: ArrayLike, *, classes: tuple[str, ...] | None, name: str, split: Split
) -> Images:
    """Check arrays of pixels and labels, and convert them to `Images`.

    Nothing is scaled, cropped or guessed. Float pixels must be multiples of 1/255 to within 1e-6,
    so that they are exactly the pixels of 8-bit images.

    Args:
        x: (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; uint8, or floats in [0, 1].
        y: (N,) or (N, 1), any integer type.
        classes: names in label order; None for `class 0`, `class 1`, ...
        name: the data set as the command line names it.
        split: `train` or `test`.

    Raises:
        ValueError: another shape or type, an ambiguous order of axes, floats that are not 8-bit
            pixels, or labels that do not fit the images.
    """
    where = f"{name} ({split})"
    pixels = _channels_first(_bytes(np.asarray(x), where), where)
    labels = check_labels(np.asarray(y), where)
    if classes is None:
        classes = number_classes(int(labels.max()) + 1 if len(labels) else 0, where)
    return Images(np.ascontiguousarray(pixels), labels, classes, name, split)


def check_labels(y: NDArray[np.generic], where: str) -> NDArray[np.int64]:
    """Convert labels (N,) or (N, 1) of any integer type to (N,) int64, or raise ValueError."""
    if y.dtype.kind not in "iu" or not (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)):
        raise ValueError(
            f"{where}: the labels are {y.dtype} of shape {y.shape}; expected integers of shape "
            "(N,) or (N, 1), one class index for each image."
        )
    return y.reshape(-1).astype(np.int64)


def number_classes(count: int, where: str) -> tuple[str, ...]:
    """`class 0`, `class 1`, ... for classes without names; ValueError if there are too many."""
    if count > MOST_CLASSES:
        raise ValueError(
            f"{where}: the largest label is {count - 1}; expected at most {MOST_CLASSES} classes, "
            "since they have no names. Number the classes from 0."
        )
    return tuple(f"class {label}" for label in range(count))


def _bytes(x: NDArray[np.generic], where: str) -> NDArray[np.uint8]:
    if x.size == 0:
        raise ValueError(f"{where}: the pixels have the shape {x.shape}: there are no images.")
    if x.dtype == np.uint8:
        return x.astype(np.uint8, copy=False)
    if x.dtype.kind != "f":
        raise ValueError(
            f"{where}: the pixels are {x.dtype}; expected uint8 from 0 to 255, or floats from 0 to "
            "1. Convert them first, with .astype(np.uint8) where they are 0 to 255 already."
        )
    floats = x.astype(np.promote_types(x.dtype, np.float32), copy=False)
    low, high = float(floats.min()), float(floats.max())
    if not (low >= 0 and high <= 1):  # NaN fails this too
        raise ValueError(
            f"{where}: the float pixels run from {low:.6g} to {high:.6g}; expected 0 to 1. Pass "
            "the original pixels, before any normalisation."
        )
    levels = np.rint(floats * 255)
    error = float(np.abs(floats - levels / 255).max())
    if error > ROUNDING:
        raise ValueError(
            f"{where}: the float pixels are up to {error:.2g} away from a multiple of 1/255, so "
            "they are not 8-bit images. Pass the original uint8 pixels."
        )
    pixels: NDArray[np.uint8] = levels.astype(np.uint8)
    return pixels


def _channels_first(x: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    if x.ndim == 3:
        return x[:, None]
    first, last = (x.ndim == 4 and x.shape[axis] in (1, 3) for axis in (1, 3))
    if first and last:
        raise ValueError(
            f"{where}: pixels of shape {x.shape} may be (N, C, H, W) or (N, H, W, C). Pass images "
            "whose height and width are neither 1 nor 3."
        )
    if not (first or last):
        raise ValueError(
            f"{where}: the pixels have the shape {x.shape}; expected (N, H, W), (N, H, W, C) or "
            "(N, C, H, W), where C is 1 (grey) or 3 (RGB)."
        )
    return x if first else np.moveaxis(x, 3, 1)
