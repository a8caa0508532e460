"""`npz:FILE`: images in a NumPy archive."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from checkpoints.data import arrays
from checkpoints.data.images import Images, Split


def load(split: Split, file: Path) -> Images:
    """One split of an npz file with the keys x_train, y_train, x_test, y_test.

    Only the keys of the requested split are required. Class names come from the optional key
    `class_names`; without it classes are numbered up to the largest label of both splits. Pickled
    content is never loaded, so a file cannot run code.

    Args:
        split: `train` or `test`.
        file: x as (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3, uint8 or floats that are
            multiples of 1/255; y as (N,) or (N, 1) integers; class_names as strings.

    Raises:
        ValueError: there is no such file, it is damaged or not an npz file, keys are missing, or
            `arrays.to_images` rejects the arrays.

    Cost: memory for the arrays of the split.
    """
    name = f"npz:{file}"
    x, y = f"x_{split}", f"y_{split}"
    found = _read(file, required=(x, y), optional=("y_train", "y_test", "class_names"))
    if "class_names" in found:
        names = found["class_names"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise ValueError(
                f"{name}: class_names is {names.dtype} of shape {names.shape}; expected a list of "
                "strings, one per class."
            )
        classes = tuple(map(str, names))
    else:
        labels = [arrays.check_labels(found[k], name) for k in ("y_train", "y_test") if k in found]
        classes = arrays.number_classes(max(int(y.max(initial=-1)) + 1 for y in labels), name)
    return arrays.to_images(found[x], found[y], classes=classes, name=name, split=split)


def _read(
    file: Path, required: Collection[str], optional: Collection[str]
) -> dict[str, NDArray[np.generic]]:
    if not file.is_file():
        raise ValueError(f"npz:{file}: there is no such file.")
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"npz:{file} is not an npz file, or is truncated. Write it with numpy.savez."
        )
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            keys = archive.files
            found = {k: np.asarray(archive[k]) for k in {*required, *optional} if k in keys}
    except Exception as error:  # zipfile and NumPy raise various types for damaged files
        raise ValueError(
            f"npz:{file} cannot be read ({' '.join(str(error).split())}). Write it again with "
            "numpy.savez, from arrays of numbers and strings, not of Python objects."
        ) from error
    missing = [key for key in required if key not in found]
    if missing:
        raise ValueError(
            f"npz:{file} has no {' and no '.join(missing)}; its keys are "
            f"{', '.join(keys) or 'none'}. Store the arrays under these names."
        )
    return found
