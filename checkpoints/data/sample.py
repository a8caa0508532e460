"""`fashion-mnist-sample`: 2,000 test images of Fashion-MNIST that ship with the package."""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path

import numpy as np

from checkpoints.data import fashion_mnist
from checkpoints.data.images import Images, Split, interleave

FILE = "fashion-mnist-sample.npz"
PER_CLASS = 200
PROVENANCE = (
    "Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf, 2017, arXiv:1708.07747), Copyright (c) 2017 "
    "Zalando SE, MIT licence. The first 200 images of each class in the test set, unchanged, "
    "the classes in turn; `index` holds their positions in the test set."
)


def load(split: Split, root: Path | None = None) -> Images:
    """The sample, in an order in which the classes alternate: x[:10 * k] is balanced.

    All images are from the test set, so a network trained on the training set has seen none of
    them.

    Args:
        split: `test`; there is no other.
        root: ignored, since the sample is part of the package.

    Returns:
        Pixels (2000, 1, 28, 28).

    Raises:
        ValueError: the split is `train`.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747; MIT licence.
    """
    if split != "test":
        raise ValueError(
            "fashion-mnist-sample has test images only. For training pass --data fashion-mnist, "
            "the full set."
        )
    resource = importlib.resources.files("checkpoints.files").joinpath(FILE)
    with resource.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        return Images(
            stored["x_test"],
            stored["y_test"],
            tuple(map(str, stored["class_names"])),
            "fashion-mnist-sample",
            "test",
            stored["index"],
            source="fashion-mnist",
        )


def make(file: Path, root: Path | None = None) -> None:
    """Write the sample, drawn from the full set that `fashion_mnist.load` finds in `root`."""
    full = fashion_mnist.load("test", root)
    order = interleave(full.labels)[: PER_CLASS * len(full.classes)]
    chosen = full.take(order)
    np.savez_compressed(
        file,
        x_test=chosen.pixels,
        y_test=chosen.labels,
        index=order,
        class_names=np.array(chosen.classes),
        provenance=np.array(PROVENANCE),
    )


if __name__ == "__main__":
    target = Path(__file__).parents[1] / "files" / FILE
    make(target)
    sys.stdout.write(f"{target}\n")
