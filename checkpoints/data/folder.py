"""`folder:DIR`: image files, one folder per class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.images import Images, Split

NOTES = (".txt", ".md", ".json")  # files that are ignored next to the images
GREY = ("1", "L")
COLOUR = ("P", "PA", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")


def load(split: Split, folder: Path, size: tuple[int, int] | int | None = None) -> Images:
    """The image files of one split, sorted by class and then by file name.

    `folder` contains `train/`, `test/` or both, each with one folder per class. A folder that
    contains the classes directly serves as `test` only, so that no image is used for both training
    and testing. Classes are sorted by name, over both splits. Hidden files and .txt, .md and .json
    files are ignored. Images are grey-scale if all files of the split are, else RGB. Transparency
    is dropped, a camera's EXIF rotation is not applied, and of an animation only the first frame
    is read.

    Args:
        split: `train` or `test`.
        folder: the folder, with images in any format that Pillow reads at 8 bits per channel.
        size: (height, width) in pixels, or one number for both. Images are resized to it
            bilinearly with antialiasing, without keeping their proportions. None: all images must
            have the same size.

    Returns:
        Pixels (N, 1 or 3, H, W).

    Raises:
        ValueError: there is no such folder or split, a file is damaged or not an image, has more
            than 8 bits per channel, or sizes differ and `size` is None.

    Cost: each file is opened twice, first for its size; memory for the result and one more image.
    """
    name = f"folder:{folder}"
    if isinstance(size, int):
        size = (size, size)
    if size is not None and min(size) < 1:
        raise ValueError(f"{name}: size is {size}; expected a height and a width of at least 1.")
    classes, files, labels = _listed(split, folder, name)
    shape, mode = _common_form(files, size, name)
    pixels = np.stack([_pixels(file, shape, mode, name) for file in files])
    return Images(pixels, np.array(labels, dtype=np.int64), classes, name, split)


def _listed(split: Split, folder: Path, name: str) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """The classes, and the image files of the split with their labels."""
    if not folder.is_dir():
        raise ValueError(f"{name}: there is no such folder.")
    splits = [folder / part for part in get_args(Split) if (folder / part).is_dir()]
    chosen = folder / split if splits else folder
    if not splits and split == "train":
        raise ValueError(
            f"{name}: there is no train folder, and without train and test the images serve as "
            "test only. Move the class folders to train on into a folder named train."
        )
    if splits and chosen not in splits:
        raise ValueError(f"{name}: there is {splits[0].name}, but no folder named {split}.")
    names = {f.name for part in splits or [folder] for f in _visible(part, name, folders=True)}
    classes = tuple(sorted(names))
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        if (chosen / class_name).is_dir():
            members = _visible(chosen / class_name, name, folders=False)
            files += members
            labels += [label] * len(members)
    if not files:
        raise ValueError(
            f"{name}: {chosen} contains no images; expected one folder per class with images in it."
        )
    return classes, files, labels


def _visible(folder: Path, name: str, *, folders: bool) -> list[Path]:
    """The entries of a folder that are not ignored, sorted; all must be folders, or all files."""
    found = sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and (entry.is_dir() or entry.suffix.lower() not in NOTES)
    )
    for entry in found:
        if entry.is_dir() != folders:
            expected = "folders, one per class" if folders else "image files"
            raise ValueError(
                f"{name}: {entry} is out of place; {folder} may contain only {expected}."
            )
        if not folders and not entry.is_file():  # a FIFO would be waited for
            raise ValueError(f"{name}: {entry} is not a regular file. Remove it.")
    return found


def _common_form(
    files: list[Path], size: tuple[int, int] | None, name: str
) -> tuple[tuple[int, int], str]:
    """The (height, width) and the mode, `L` or `RGB`, in which all files are read."""
    forms = [_header(file, name) for file in files]
    for file, (mode, shape) in zip(files, forms, strict=True):
        if mode not in GREY + COLOUR:
            raise ValueError(
                f"{name}: {file} has pixels of mode {mode}; expected 8-bit grey or RGB. Convert "
                "it first, with a scaling of your choice."
            )
        first = forms[0][1]
        if size is None and shape != first:
            raise ValueError(
                f"{name}: {files[0]} is {first[0]} x {first[1]} pixels (height x width), {file} "
                f"is {shape[0]} x {shape[1]}. Resize them all with --size {first[0]} {first[1]}."
            )
    return size or forms[0][1], "L" if all(mode in GREY for mode, _ in forms) else "RGB"


def _header(file: Path, name: str) -> tuple[str, tuple[int, int]]:
    from PIL import Image

    with _one_line(file, name), Image.open(file) as image:
        return image.mode, (image.height, image.width)


def _pixels(file: Path, shape: tuple[int, int], mode: str, name: str) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = shape
    with _one_line(file, name), Image.open(file) as opened:
        # The transparency of a palette converts without a warning to RGBA only.
        flat = opened.convert("RGBA") if opened.mode in ("P", "PA") else opened
        image = flat.convert(mode)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        array = np.asarray(image, dtype=np.uint8)
    return array.reshape(height, width, -1).transpose(2, 0, 1)


@contextmanager
def _one_line(file: Path, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow's decoders raise various types for damaged files
        raise ValueError(
            f"{name}: {file} is not an image that Pillow can read "
            f"({' '.join(str(error).split())}). Repair or remove it."
        ) from error
