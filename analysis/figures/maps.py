"""Images with what spatial attention weighs in them, site by site."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, Page, fit_height, new_figure, wrapped
from analysis.figures.gallery import picture

_SHARE = 0.75  # of the colour, over the image


def image(result: xr.Dataset, ax: Axes, *, draw: int) -> None:
    """Draw an image of the gallery; see `picture`.

    Args:
        result: of `landscape.attention`, with a gallery.
        ax: Axes without projection.
        draw: which image of the gallery.
    """
    axes = ("height", "width", "channel")
    picture(result["image"].isel(gallery=draw).transpose(*axes).values, ax)
    ax.set(xticks=[], yticks=[])


def weights(result: xr.Dataset, ax: Axes, *, draw: int, site: str) -> None:
    """Lay the gate of a site over an image, patch by patch, each from its least to its largest.

    Args:
        result: of `landscape.attention`, with a gallery.
        ax: Axes without projection.
        draw: which image of the gallery.
        site: a site with a spatial gate.
    """
    image(result, ax, draw=draw)
    own = result["attention"].isel(example=draw).values[result["unit_site"].values == site]
    side = int(result["patches"].sel(site=site))
    height, width = result.sizes["height"], result.sizes["width"]
    ax.imshow(
        own.reshape(side, side),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
        alpha=_SHARE,
    )
    ax.set_title(f"{own.min():.2f} to {own.max():.2f}", fontsize=style.NOTE_SIZE, pad=2)


def maps(page: Page) -> Figure:
    """A row an image of a result: the image, and the gate of every spatial site over it."""
    names = dict(zip(map(id, page.shown), results.names(page.shown), strict=True))
    rows = page.own(_rows(page))
    figure = new_figure(page.columns, gap=0.01)
    across = 1 + max(len(_spatial(result)) for result in page.shown)
    width = 0.9 * style.WIDTHS[page.columns] / across
    axes = []
    for number, (result, draw) in enumerate(rows):
        last = number + 1 == len(rows) or rows[number + 1][0] is not result
        for at, site in enumerate(["", *_spatial(result)]):
            ax = figure.add_subplot(len(rows), across, number * across + at + 1)
            if site:
                weights(result, ax, draw=draw, site=site)
            else:
                image(result, ax, draw=draw)
            if last:
                short = site.replace(".attention", "").removesuffix(".spatial")
                ax.set_xlabel(wrapped(short or names[id(result)], width))
            axes.append(ax)
    side = max(int(result["patches"].max()) for result in page.shown)
    note = (
        f"Means of the gate over {side} × {side} patches, coloured from the least in the image, "
        "violet, to the largest, yellow."
    )
    figure.supxlabel(wrapped(note, 0.9 * style.WIDTHS[page.columns]), size=style.NOTE_SIZE)
    shape = page.shown[0].sizes
    fit_height(figure, axes, len(rows), shape["height"] / shape["width"])
    return figure


def _spatial(result: xr.Dataset) -> list[str]:
    """The sites whose gate has a value per position."""
    patches = zip(result["site"].values, result["patches"].values, strict=True)
    return [str(site) for site, side in patches if side]


def _rows(page: Page) -> list[tuple[xr.Dataset, int]]:
    """The images of the galleries whose attention is measured."""
    found = [
        (result, draw)
        for result in page.shown
        for draw in range(result.sizes["gallery"])
        if result["measured"].values[draw] == 1
    ]
    if not found:
        raise ValueError(
            f"{results.source(page.shown[0])}: no image of the gallery is measured yet. Run the "
            "command again to continue it."
        )
    return found


KIND = Kind(
    weights,
    probe="attention",
    dimensions=1,
    arrange=maps,
    needs=("image",),
    variables=("attention",),
    divided=lambda page: (len(_rows(page)), 1),
)
