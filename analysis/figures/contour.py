"""Filled contours of a surface."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, on_the_grid, panels
from analysis.figures.grid import Grid
from analysis.figures.scale import Scale, shared_scale
from analysis.stats.arrays import Floats

_LABELLED, _TICKS = 2.2, 2.2  # contours with a number on them and ticks, an inch of panel
_LONGEST = 4.0  # sides of a panel drawn to scale: more than this would be a thin strip


def contour(
    result: xr.Dataset, ax: Axes, *, variable: str = "loss", scale: Scale | None = None
) -> ScalarMappable:
    """Draw one result as filled contours, its origin marked.

    Between the measured points, contours are interpolated linearly (on a logarithmic scale, in
    the logarithm). Nothing is smoothed: values above the scale have a colour of their own, cells
    that touch a value that is not finite, or a point not measured, stay grey or hatched, and the
    note above the panel counts them.
    Both axes have the same scale where they have the same unit.

    Args:
        result: a surface, on a grid of any shape.
        ax: Axes without projection.
        variable: `loss` or `accuracy`.
        scale: levels and colours; by default those that suit this result alone.

    Returns:
        What a colour bar needs.
    """
    scale = scale or shared_scale([result], variable)
    grid = Grid.of(result, variable)
    _gaps(ax, grid)
    drawn = _contours(ax, grid, scale)
    lone = grid.lone()
    if lone.any():
        row, column = np.nonzero(lone)
        colours = scale.place(grid.values[lone])
        x, y = grid.x[column], grid.y[row]
        ax.scatter(x, y, 12, colours, cmap=style.colours(), norm=scale.norm)
    xlim, ylim = limits(grid.x), limits(grid.y)
    for at in networks(result):
        if xlim[0] <= at[0] <= xlim[1] and ylim[0] <= at[1] <= ylim[1]:
            ax.plot(*at, "*", ms=7, mfc="white", mec="black", mew=0.6, label=network_label(result))
    across, up = result["measured"].dims
    ax.set(
        xlim=xlim,
        ylim=ylim,
        xlabel=results.grid_label(result, across),
        ylabel=results.grid_label(result, up),
    )
    ax.locator_params(nbins=max(2, int(_TICKS * _inches(ax))), steps=[1, 2, 5, 10])
    ratio = np.ptp(ylim) / np.ptp(xlim)
    if result[across].attrs.get("units") == result[up].attrs.get("units") and (
        1 / _LONGEST <= ratio <= _LONGEST
    ):
        ax.set_aspect("equal")
    return drawn


def limits(positions: Floats) -> tuple[float, float]:
    """From the first to the last position; around a single position, one unit."""
    low, high = float(positions.min()), float(positions.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def networks(result: xr.Dataset) -> list[tuple[int, int]]:
    """Where in the grid a network stands: the origin, and the second checkpoint if there is one."""
    return [(0, 0), (1, 0)] if results.spec(result).get("to") else [(0, 0)]


def network_label(result: xr.Dataset) -> str:
    """What stands at these places."""
    if results.spec(result).get("to"):
        return "the two networks"
    return "original inputs" if results.spec(result).get("space") == "inputs" else "trained network"


def gap_marks(grid: Grid) -> list[tuple[Floats, dict[str, Any]]]:
    """Outlines, and look, of the cells whose values are not known."""
    marks = [
        (
            grid.gaps(~grid.measured),
            {
                "facecolor": style.NOT_MEASURED,
                "edgecolor": "0.6",
                "hatch": "////",
                "label": "not measured",
            },
        ),
        (
            grid.gaps(grid.diverged),
            {
                "facecolor": style.NOT_FINITE,
                "edgecolor": style.NOT_FINITE,
                "label": "not finite",
            },
        ),
    ]
    return [(outlines, look) for outlines, look in marks if len(outlines)]


def _gaps(ax: Axes, grid: Grid) -> None:
    for outlines, look in gap_marks(grid):
        ax.add_collection(PolyCollection(list(outlines), linewidth=0, **look))


def _contours(ax: Axes, grid: Grid, scale: Scale) -> ScalarMappable:
    if min(grid.values.shape) < 2 or not grid.known.any():
        return ScalarMappable(scale.norm, style.colours())
    heights = np.ma.array(np.zeros_like(grid.values), mask=~grid.known)
    heights[grid.known] = scale.place(grid.values[grid.known])
    levels = scale.place(scale.levels)
    filled = ax.contourf(
        grid.x,
        grid.y,
        heights,
        levels=levels,
        cmap=style.colours(),
        norm=scale.norm,
        extend="max" if scale.over else "neither",
    )
    filled.set_edgecolor("face")  # no white seams between the levels in a PDF
    inner = levels[1:] if scale.over else levels[1:-1]
    inner = inner[(inner > heights.min()) & (inner < heights.max())]
    if inner.size:
        inks = [_ink(level, scale) for level in inner]
        lines = ax.contour(
            grid.x, grid.y, heights, inner, colors=inks, linewidths=0.4, linestyles="solid"
        )
        stride = int(np.ceil(len(inner) / max(2.0, _LABELLED * _inches(ax))))
        ax.clabel(lines, inner[::stride].tolist(), fontsize=6, fmt=scale.text, inline_spacing=2)
    return filled


def _inches(ax: Axes) -> float:
    return ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted()).width


def _ink(level: float, scale: Scale) -> str:
    """Black or white, whichever shows on the colour of `level`."""
    red, green, blue, _ = style.colours()(float(scale.norm(level)))
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"


KIND = Kind(
    contour,
    probe="surface",
    dimensions=2,
    arrange=panels,
    also=on_the_grid,
)
