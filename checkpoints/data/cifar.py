"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour photographs, 32 x 32 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from checkpoints.data import archive, pickled
from checkpoints.data.images import Images, Split

ADDRESS = "https://www.cs.toronto.edu/~kriz/"
MD5 = {
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
}
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    """One of the formats in which the authors publish a data set."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    label_bytes: int = 0  # before the pixels of a binary row; the label is the last of them
    label_key: str = ""  # in a pickled batch
    name_key: str = ""  # in the pickled meta file


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_BINARY_10 = _Version(
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    train=tuple(f"{batch}.bin" for batch in _BATCHES),
    test=("test_batch.bin",),
    meta="batches.meta.txt",
    label_bytes=1,
)
_PYTHON_10 = _Version(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    train=_BATCHES,
    test=("test_batch",),
    meta="batches.meta",
    label_key="labels",
    name_key="label_names",
)
_BINARY_100 = _Version(
    folder="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
    train=("train.bin",),
    test=("test.bin",),
    meta="fine_label_names.txt",
    label_bytes=2,
)
_PYTHON_100 = _Version(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    train=("train",),
    test=("test",),
    meta="meta",
    label_key="fine_labels",
    name_key="fine_label_names",
)
_CLASSES_10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def load10(split: Split, root: Path | None = None) -> Images:
    """One split of CIFAR-10, in the order of its files.

    Reads the binary or the Python version, as a folder or as the packed archive. It is looked for
    in `root`, in LANDSCAPE_DATA and in the cache; else the binary archive is downloaded (170 MB)
    and verified. For files that you provide, only the format is checked, so a smaller subset in
    the same format works too. The pickles of the Python version run no code.

    Args:
        split: `train` (50,000 images) or `test` (10,000).
        root: the folder of `--data-root`.

    Returns:
        Pixels (N, 3, 32, 32).

    Raises:
        ValueError: the files are absent and cannot be downloaded, or have another format.

    Cost: two seconds from the archive; twice the pixels in memory, 300 MB for `train`.
    Source: Krizhevsky 2009, Learning multiple layers of features from tiny images. Its authors
    state no licence; the images come from the web.
    """
    return _load("cifar10", _CLASSES_10, (_BINARY_10, _PYTHON_10), split, root)


def load100(split: Split, root: Path | None = None) -> Images:
    """One split of CIFAR-100 with its 100 fine labels; otherwise like `load10`.

    Args:
        split: `train` (50,000 images) or `test` (10,000).
        root: the folder of `--data-root`.

    Returns:
        Pixels (N, 3, 32, 32).

    Raises:
        ValueError: the files are absent and cannot be downloaded, or have another format.
    """
    classes = tuple(f"class {label}" for label in range(100))
    return _load("cifar100", classes, (_BINARY_100, _PYTHON_100), split, root)


def _load(
    name: str,
    classes: tuple[str, ...],
    versions: tuple[_Version, _Version],
    split: Split,
    root: Path | None,
) -> Images:
    binary = versions[0]
    source = archive.obtain(
        name,
        tuple(form for version in versions for form in (version.folder, version.archive)),
        download=ADDRESS + binary.archive,
        check=partial(archive.check_md5, expected=MD5[binary.archive]),
        root=root,
    )
    version = next(v for v in versions if source.name in (v.folder, v.archive))
    files = {"train": version.train, "test": version.test}[split]
    contents = archive.read_members(source, version.folder, (*files, version.meta))
    missing = [file for file in files if file not in contents]
    if missing:
        raise ValueError(
            f"{source} has no {', '.join(missing)}; expected all files of {name} ({split}). Unpack "
            f"{version.archive} there completely."
        )
    read = _read_batch if version.label_key else _read_rows
    batches = [read(contents[file], version, len(classes), f"{source} ({file})") for file in files]
    if version.meta in contents:
        classes = _class_names(
            contents[version.meta], version, len(classes), f"{source} ({version.meta})"
        )
    pixels = np.concatenate([batch[0] for batch in batches]).reshape(-1, 3, 32, 32)
    return Images(pixels, np.concatenate([batch[1] for batch in batches]), classes, name, split)


def _read_rows(
    content: bytes, version: _Version, classes: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    row = version.label_bytes + PIXELS
    if not content or len(content) % row:
        raise ValueError(
            f"{where} has {len(content)} bytes; expected rows of {row}, for the label and "
            f"{PIXELS} pixel values. Get the file again."
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, row)
    labels = rows[:, version.label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise ValueError(
            f"{where} has the label {labels.max()}; expected 0 to {classes - 1}. It may be the "
            "other CIFAR, or damaged. Get it again."
        )
    return rows[:, version.label_bytes :], labels


def _read_batch(
    content: bytes, version: _Version, classes: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = pickled.read(content, where)
    pixels, labels = batch.get("data"), batch.get(version.label_key)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        found = pixels.shape if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"{where}: `data` is {found}; expected an array of shape (N, {PIXELS}).")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(isinstance(label, int) and 0 <= label < classes for label in labels)
    ):
        raise ValueError(
            f"{where}: `{version.label_key}` must be a list of {len(pixels)} integers from 0 to "
            f"{classes - 1}, one per image. Get the file again."
        )
    return pixels, np.array(labels, dtype=np.int64)


def _class_names(content: bytes, version: _Version, classes: int, where: str) -> tuple[str, ...]:
    found: object = content.split()
    if version.name_key:
        found = pickled.read(content, where).get(version.name_key)
    names = found if isinstance(found, list) else []
    if len(names) != classes:
        raise ValueError(
            f"{where} names {len(names)} classes; expected {classes}. Get it again, or delete it."
        )
    return tuple(n.decode("latin1") if isinstance(n, bytes) else str(n) for n in names)
