"""A few paths between samples with their images, and what the network takes them for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, Page, fit_height, legend, names, new_figure
from analysis.figures.looks import Look, following, looks

_CURVES = 2  # height of the probabilities, in heights of a strip of images
_GAP = 0.06  # between images, of their width


def picture(pixels: NDArray[np.float64], ax: Axes, **where: Any) -> None:
    """Draw an image in grey or colour, 0 black and 1 white; what lies outside as its nearest.

    Args:
        pixels: (height, width, channels); of other than three channels the mean is drawn.
        ax: Axes without projection.
        where: `extent` and `aspect`, as `Axes.imshow` takes them.
    """
    shown = np.clip(pixels, 0, 1)
    ax.imshow(
        shown if shown.shape[2] == 3 else shown.mean(axis=2),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        **where,
    )


def images(result: xr.Dataset, ax: Axes, *, draw: int) -> None:
    """Lay the images of one path side by side, each above its place on the path; see `picture`.

    Args:
        result: of `landscape.interpolate`, with a gallery.
        ax: Axes of the same limits as those of `probabilities`.
        draw: which path of the gallery.
    """
    steps = result["gallery_t"].values
    half = _spacing(result) * (1 - _GAP) / 2
    axes = ("gallery_t", "height", "width", "channel")
    pictures = result["image"].isel(gallery=draw).transpose(*axes)
    for step, pixels in zip(steps, pictures.values, strict=True):
        picture(pixels, ax, extent=(step - half, step + half, 0, 1), aspect="auto")
    ax.set_xlim(*_limits(result))
    ax.set_axis_off()


def probabilities(
    result: xr.Dataset, ax: Axes, *, draw: int, look: Look | None = None, label: str = ""
) -> None:
    """Draw the probabilities of both samples' classes, and the largest of all others.

    Args:
        result: of `landscape.interpolate`, with a gallery.
        ax: Axes; call again with other results to compare them.
        draw: which path of the gallery.
        look: of this result; by default one that no line of `ax` has.
        label: for the legend.
    """
    one = result.isel(pair=int(result["gallery_pair"].values[draw]))
    ends = one["label"].values[:2].astype(int)
    curves = one["probability"].transpose("t", "path_sample").values
    look = look or following(ax)
    ax.plot(one["t"], curves[:, 0], label=label, **look.line(linestyle="-"))
    if ends[0] != ends[1]:
        ax.plot(one["t"], curves[:, 1], **look.line(linestyle="--"))
    others = np.delete(_softmax(one["logits"].transpose("t", "class").values), ends, axis=1)
    if others.shape[1]:
        ax.plot(one["t"], others.max(axis=1), **look.line(linestyle=":"))
    ax.set(xlim=_limits(result), ylim=(-0.05, 1.05), yticks=(0, 1), xticks=(0, 0.5, 1))


def gallery(page: Page) -> Figure:
    """Path below path: its images, and under them the probabilities of every result.

    In two columns, two paths stand side by side.
    """
    shown, columns = page.shown, page.columns
    first, *others = shown
    for other in others:
        if not _same_images(first, other):
            files = results.source(first), results.source(other)
            raise ValueError(
                f"{files[0]} and {files[1]} show different images. Measure both with the same "
                "examples and --seed, without --correct-only."
            )
    paths = page.own(_paths(page))
    if not paths:
        raise ValueError(f"{results.source(first)}: none of the gallery's paths is measured yet.")
    figure = new_figure(columns, gap=0.01)
    across = min(columns, len(paths))
    down = -(-len(paths) // across)
    grid = figure.add_gridspec(2 * down, across, height_ratios=[1, _CURVES] * down)
    labels, drawn_as = names(shown), looks(shown, dashes=False)
    numbered = [f"class {number}" for number in range(first.sizes["class"])]
    classes = json.loads(first["class"].attrs.get("names", json.dumps(numbered)))
    axes: list[Axes] = []
    for at, draw in enumerate(paths):
        row, column = divmod(at, across)
        strip, curves = (figure.add_subplot(grid[2 * row + part, column]) for part in (0, 1))
        axes += [strip, curves]
        images(first, strip, draw=draw)
        for result, label, look in zip(shown, labels, drawn_as, strict=True):
            probabilities(result, curves, draw=draw, look=look, label=label)
        lowest = at + across >= len(paths)
        curves.tick_params(labelbottom=lowest, labelleft=column == 0)
        curves.set_ylabel("probability" if column == 0 else "")
        curves.set_xlabel("position on the path" if lowest else "")
        begin, end = first["label"].values[int(first["gallery_pair"].values[draw]), :2].astype(int)
        strip.set_title(style.written(f"{classes[begin]} to {classes[end]}"), pad=2)
    for line, label in (
        ("-", "first sample's class"),
        ("--", "second sample's class"),
        (":", "any other class"),
    ):
        axes[-1].plot([], [], color="0.4", linestyle=line, label=label)
    legend(figure, axes[1::2], labels)
    shape = first.sizes["height"] / first.sizes["width"]
    slots = 1 + 1 / _spacing(first)
    fit_height(figure, axes, (1 + _CURVES) * down, (1 - _GAP) * shape / slots)
    return figure


def _paths(page: Page) -> list[int]:
    """The paths of the gallery that all results have measured."""
    return [
        draw
        for draw in range(page.shown[0].sizes["gallery"])
        if all(np.isfinite(result["gallery_pair"].values[draw]) for result in page.shown)
    ]


def _spacing(result: xr.Dataset) -> float:
    steps = result["gallery_t"].values
    return float(np.diff(steps).min()) if len(steps) > 1 else 1.0


def _limits(result: xr.Dataset) -> tuple[float, float]:
    steps, half = result["gallery_t"].values, _spacing(result) / 2
    return float(steps.min()) - half, float(steps.max()) + half


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _same_images(first: xr.Dataset, other: xr.Dataset) -> bool:
    if first["image"].shape != other["image"].shape:
        return False
    one, two = first["image"].values, other["image"].values
    return bool((np.isnan(one) | np.isnan(two) | (one == two)).all())


KIND = Kind(
    probabilities,
    probe="interpolate",
    dimensions=1,
    arrange=gallery,
    needs=("image",),
    variables=("probability",),
    divided=lambda page: (len(_paths(page)), page.columns),
)
