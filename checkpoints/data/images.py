"""Labelled images: the type to which every data set is converted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images of one split. The arrays must not be modified.

    Args:
        pixels: (N, C, H, W) uint8; 255 is 1.0 in the unit of all input distances.
        labels: (N,) int64, indices into `classes`.
        classes: the class names, in label order.
        name: the data set as the command line names it, such as `fashion-mnist`.
        split: `train` or `test`.
        indices: (N,) position of each image in the split; by default 0 to N - 1.
        source: the data set in whose split `indices` are positions; by default `name`.

    Raises:
        ValueError: wrong shape or dtype, no images, different numbers of images and labels, or a
            label without a class.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    name: str
    split: str
    indices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    source: str = ""

    def __post_init__(self) -> None:
        if not len(self.indices):
            object.__setattr__(self, "indices", np.arange(len(self.pixels)))
        where = f"{self.name} ({self.split})"
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8:
            raise ValueError(
                f"{where}: pixels are {self.pixels.dtype} of shape {self.pixels.shape}; "
                "expected uint8 of shape (N, channels, height, width)."
            )
        if self.labels.shape != (len(self.pixels),) or self.labels.dtype != np.int64:
            raise ValueError(
                f"{where}: labels are {self.labels.dtype} of shape {self.labels.shape}; "
                f"expected int64 of shape ({len(self.pixels)},), one per image."
            )
        if self.indices.shape != self.labels.shape:
            raise ValueError(
                f"{where}: there are {len(self.indices)} indices; expected {len(self.pixels)}, one "
                "per image."
            )
        if not len(self.labels):
            raise ValueError(f"{where}: there are no images.")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(
                f"{where}: labels run from {self.labels.min()} to {self.labels.max()}; "
                f"expected 0 to {len(self.classes) - 1}, for {len(self.classes)} classes."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64] | slice) -> Images:
        """The images at `index`, in that order."""
        return replace(
            self,
            pixels=self.pixels[index],
            labels=self.labels[index],
            indices=self.indices[index],
            source=self.source or self.name,
        )

    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels and labels; it depends on the order of the images."""
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).tobytes())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()


def interleave(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order of the examples in which the classes alternate.

    For every N the first N examples are balanced over the classes, as far as the counts allow.
    Within a class the order is kept.

    Args:
        labels: (N,) class indices.

    Returns:
        (N,) positions in `labels`.
    """
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.lexsort((labels, turn)).astype(np.int64)
