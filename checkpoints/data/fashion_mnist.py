"""Fashion-MNIST: 60,000 + 10,000 grey-scale images of clothes, 28 x 28 pixels, 10 classes."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from checkpoints.data import archive
from checkpoints.data.images import Images, Split

ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Digests of the unpacked content, so that they hold for any compression. The authors publish MD5
# digests of their gzip files; these are of what those files unpack to.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def load(split: Split, root: Path | None = None) -> Images:
    """One split of Fashion-MNIST, in the order of its files.

    The four files may be packed (`.gz`) or plain. They are looked for in `root`, in
    LANDSCAPE_DATA, in the folder of Debian's package `dataset-fashion-mnist` and in the cache,
    else downloaded (30 MB). Every file is verified on every load, because the older MNIST has files
    of the same names.

    Args:
        split: `train` (60,000 images) or `test` (10,000).
        root: the folder of `--data-root`.

    Returns:
        Pixels (N, 1, 28, 28).

    Raises:
        ValueError: a file is absent and cannot be downloaded, is damaged, or belongs to another
            data set.

    Cost: about a second and 150 MB for `train`.
    Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747; MIT licence.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    pixels = _array(f"{prefix}-images-idx3-ubyte", root)
    labels = _array(f"{prefix}-labels-idx1-ubyte", root)
    return Images(pixels[:, None], labels.astype(np.int64), CLASSES, "fashion-mnist", split)


def parse_idx(content: bytes, axes: int) -> NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes.

    Args:
        content: the unpacked file: magic number, one big-endian size per axis, the bytes.
        axes: the number of axes that the array must have.

    Raises:
        ValueError: the magic number differs, or the length does not match the sizes.
    """
    start = 4 + 4 * axes
    magic = bytes([0, 0, 8, axes])
    if content[:4] != magic or len(content) < start:
        raise ValueError(
            f"it starts with {content[:4].hex() or 'nothing'} and has {len(content)} bytes; "
            f"expected {magic.hex()}, the magic number of an idx file of bytes with {axes} axes"
        )
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"it holds {len(content) - start} values; expected {math.prod(shape)}, "
            f"for the shape {shape} that it states"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


def _array(name: str, root: Path | None) -> NDArray[np.uint8]:
    file = archive.obtain(
        "fashion-mnist",
        (f"{name}.gz", name),
        download=f"{ADDRESS}{name}.gz",
        check=lambda file: _verified(file, name),
        root=root,
        packaged=(DEBIAN,),
        remedy="Run `apt-get install dataset-fashion-mnist`, or put",
    )
    try:
        return _verified(file, name)
    except ValueError as error:
        raise ValueError(
            f"{file} is not Fashion-MNIST's {name}: {error}. Move it away, or pass another "
            "--data-root."
        ) from error


def _verified(file: Path, name: str) -> NDArray[np.uint8]:
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"it cannot be unpacked ({error})") from error
    array = parse_idx(content, axes=3 if "images" in name else 1)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise ValueError(f"the SHA-256 of its content is {digest}; expected {SHA256[name]}")
    return array
