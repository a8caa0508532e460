"""Models and data sets by name: one line per model family, one per data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

from torch import nn

from checkpoints.data import folder, function, npz
from checkpoints.data.images import Images, Split
from checkpoints.models.family import Family

FAMILY_PLACES = [
    "checkpoints.models.resnet:FAMILY",
    "checkpoints.models.wide_resnet:FAMILY",
    "checkpoints.models.spatial:FAMILY",
    "checkpoints.models.sk:FAMILY",
    "checkpoints.models.seq2seq:FAMILY",
    "checkpoints.models.vit:FAMILY",
]
DATASET_PLACES = {
    "fashion-mnist-sample": "checkpoints.data.sample:load",
    "fashion-mnist": "checkpoints.data.fashion_mnist:load",
    "cifar10": "checkpoints.data.cifar:load10",
    "cifar100": "checkpoints.data.cifar:load100",
    "copy": "checkpoints.data.sequences:load_copy",
    "reverse": "checkpoints.data.sequences:load_reverse",
    "sort": "checkpoints.data.sequences:load_sort",
    "translate": "checkpoints.data.sequences:load_translate",
    "copy-long": "checkpoints.data.sequences:load_longer_copy",
    "reverse-long": "checkpoints.data.sequences:load_longer_reverse",
    "sort-long": "checkpoints.data.sequences:load_longer_sort",
    "translate-long": "checkpoints.data.sequences:load_longer_translate",
}

# {data set of sequences: test sequences of the same task that are longer}
LONGER = {name: f"{name}-long" for name in DATASET_PLACES if f"{name}-long" in DATASET_PLACES}

FAMILIES: list[Family] = [resolve_name(place) for place in FAMILY_PLACES]
MODELS: dict[str, Callable[..., nn.Module]] = {
    name: builder for family in FAMILIES for name, builder in family.builders.items()
}
DATASETS: dict[str, Callable[[Split, Path | None], Images]] = {
    name: resolve_name(place) for name, place in DATASET_PLACES.items()
}


def register(family: Family) -> None:
    """Register your own model family, for this process.

    Raises:
        ValueError: a model name is already registered.
    """
    taken = sorted(set(family.builders) & set(MODELS))
    if taken:
        raise ValueError(
            f"{', '.join(taken)}: a model of that name is already registered. Choose another name."
        )
    FAMILIES.append(family)
    MODELS.update(family.builders)


def check_data_name(name: str) -> None:
    """Check that `name` is of a form that `load_images` takes; nothing is opened.

    Raises:
        ValueError: it is not.
    """
    form, _, rest = name.partition(":")
    if name not in DATASETS and not (form and rest):
        raise ValueError(
            f"{name!r} is not a known data set. Known: {', '.join(DATASETS)}; or pass npz:FILE, "
            "folder:DIR, package.module:function or path/to/file.py:function."
        )


def load_images(
    name: str, split: Split, root: Path | None = None, size: tuple[int, int] | None = None
) -> Images:
    """The images of one split of the data set that `--data` names.

    Args:
        name: a key of `DATASETS`, or `npz:FILE`, `folder:DIR`, `package.module:function`,
            `path/to/file.py:function`.
        split: `train` or `test`.
        root: the folder of `--data-root`, which is searched first for a data set of `DATASETS`, and
            to which it is downloaded. The other forms name their own files.
        size: (height, width) in pixels. Only `folder:` resizes; other data must have this size.

    Raises:
        ValueError: the name or split is unknown, the data are absent or damaged, or they have
            another size.
    """
    if split not in get_args(Split):
        raise ValueError(f"{name}: there is no split {split!r}; expected train or test.")
    check_data_name(name)
    form, _, rest = name.partition(":")
    if name in DATASETS:
        images = DATASETS[name](split, root)
    elif form == "npz":
        images = npz.load(split, Path(rest))
    elif form == "folder":
        images = folder.load(split, Path(rest), size=size)
    else:
        images = function.load(split, name)
    found = images.pixels.shape[2:]
    if size is not None and found != size:
        raise ValueError(
            f"{name}: the images are {found[0]} x {found[1]} pixels; expected "
            f"{size[0]} x {size[1]}. Only folder:DIR can be resized; leave --size out."
        )
    return images
