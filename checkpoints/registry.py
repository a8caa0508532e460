"""What can be studied, by name: one line per model family, one per data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from torch import nn

from checkpoints.data import cifar, fashion_mnist, folder, function, npz, sample
from checkpoints.data.images import Images, Split
from checkpoints.models import resnet
from checkpoints.models.family import Family

FAMILIES: list[Family] = [
    resnet.FAMILY,
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    name: builder for family in FAMILIES for name, builder in family.builders.items()
}

DATASETS: dict[str, Callable[[Split, Path | None], Images]] = {
    "fashion-mnist-sample": sample.load,
    "fashion-mnist": fashion_mnist.load,
    "cifar10": cifar.load10,
    "cifar100": cifar.load100,
}


def register(family: Family) -> None:
    """Add a family of your own, for this process.

    Raises:
        ValueError: a name is taken.
    """
    taken = sorted(set(family.builders) & set(MODELS))
    if taken:
        raise ValueError(f"{', '.join(taken)}: a model of that name is registered already.")
    FAMILIES.append(family)
    MODELS.update(family.builders)


def load_images(
    name: str, split: Split, root: Path | None = None, size: tuple[int, int] | None = None
) -> Images:
    """The images of one split of the data set that `--data` names.

    Args:
        name: a key of `DATASETS`, or `npz:FILE`, `folder:DIR`, `package.module:function`,
            `path/to/file.py:function`.
        split: `train` or `test`.
        root: the folder of `--data-root`, where a data set of `DATASETS` is looked for first and
            downloaded to. The other forms name their own files.
        size: (height, width) in pixels. Only `folder:` resizes to it; other data must have it.

    Raises:
        ValueError: an unknown name or split, data that are absent or damaged, another size.
    """
    if split not in get_args(Split):
        raise ValueError(f"{name}: there is no split {split!r}. Ask for train or test.")
    form, _, rest = name.partition(":")
    if name in DATASETS:
        images = DATASETS[name](split, root)
    elif form == "npz" and rest:
        images = npz.load(split, Path(rest))
    elif form == "folder" and rest:
        images = folder.load(split, Path(rest), size=size)
    elif form not in ("npz", "folder") and form and rest:
        images = function.load(split, name)
    else:
        raise ValueError(
            f"{name!r} is no known data set. Known: {', '.join(DATASETS)}; or give npz:FILE, "
            "folder:DIR, package.module:function or path/to/file.py:function."
        )
    found = images.pixels.shape[2:]
    if size is not None and found != size:
        raise ValueError(
            f"{name}: the images are {found[0]} x {found[1]} pixels, asked for "
            f"{size[0]} x {size[1]}. Only folder:DIR is resized; leave --size out."
        )
    return images
