"""Labelled images, or sequences: the type to which every data set is converted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from checkpoints.losses import IGNORED

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, or sequences, of one split. The arrays must not be modified.

    Args:
        pixels: (N, C, H, W) uint8; 255 is 1.0 in the unit of all input distances. Of sequences
            (N, symbols, rows, T), one-hot.
        labels: (N,) int64, indices into `classes`. Of sequences (N, T), a symbol for each position,
            or `IGNORED` where there is none.
        classes: the class names, in label order; the symbols of sequences.
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
        count, *_, length = self.pixels.shape
        shape, each = ((count, length), "position") if self.sequences else ((count,), "image")
        if self.labels.shape != shape or self.labels.dtype != np.int64:
            raise ValueError(
                f"{where}: labels are {self.labels.dtype} of shape {self.labels.shape}; "
                f"expected int64 of shape {shape}, one per {each}."
            )
        if self.indices.shape != self.labels.shape[:1]:
            raise ValueError(
                f"{where}: there are {len(self.indices)} indices; expected {len(self.pixels)}, one "
                "per image."
            )
        if not len(self.labels):
            raise ValueError(f"{where}: there are no images.")
        known = self.labels[self.labels != IGNORED] if self.sequences else self.labels
        if not known.size or known.min() < 0 or known.max() >= len(self.classes):
            raise ValueError(
                f"{where}: labels run from {self.labels.min()} to {self.labels.max()}; "
                f"expected 0 to {len(self.classes) - 1}, for {len(self.classes)} classes."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sequences(self) -> bool:
        """Whether an example is a sequence, with a label for each of its positions."""
        return self.labels.ndim == 2

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
    Within a class the order is kept, and that of sequences, which have no class, altogether.

    Args:
        labels: (N,) class indices, or (N, T) of sequences.

    Returns:
        (N,) positions in `labels`.
    """
    if labels.ndim > 1:
        return np.arange(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.lexsort((labels, turn)).astype(np.int64)
