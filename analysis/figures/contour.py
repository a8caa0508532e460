"""Filled contours of a surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.contour import ContourSet
from matplotlib.path import Path
from matplotlib.text import Text

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, on_the_grid, panels, side_by_side
from analysis.figures.grid import Grid, limits
from analysis.figures.scale import Scale, shared_scale
from analysis.stats.arrays import Floats

_LABELLED, _TICKS = 2.2, 2.2  # contours with a number on them and ticks, an inch of panel
_NUMBER = 6.0  # points: size of the numbers on contours
_CLEAR, _STAR = 4.0, 6.0  # pixels around a number, and around a network
_LONGEST = 4.0  # sides of a panel drawn to scale: more than this would be a thin strip


def contour(
    result: xr.Dataset, ax: Axes, *, variable: str = "loss", scale: Scale | None = None
) -> ScalarMappable:
    """Draw one result as filled contours, its origin marked.

    Between the measured points, contours are interpolated linearly (on a logarithmic scale, in
    the logarithm). Nothing is smoothed: values above the scale have a colour of their own, cells
    that touch a value that is not finite, or a point not measured, stay grey or hatched, and the
    note above the panel counts them.
    Both axes have the same scale where they have the same unit. `number` writes values on the
    contours, once the Axes have their size.

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


def number(ax: Axes, scale: Scale) -> None:
    """Write values on contours, where they lie whole inside the Axes and clear of all else.

    A contour without such a place has no number: one that is cut would read as another.

    Args:
        ax: of `contour`, of the size that it will have.
        scale: that it was drawn with.
    """
    drawn = [
        lines for lines in ax.collections if isinstance(lines, ContourSet) and not lines.filled
    ]
    for lines in drawn:
        levels = np.asarray(lines.levels, dtype=float)
        stride = int(np.ceil(len(levels) / max(2.0, _LABELLED * _inches(ax))))
        stars = [np.asarray(star.get_xydata()) for star in ax.lines]
        taken = [(ax.transData.transform(star)[0], _STAR) for star in stars]
        for level, path in list(zip(levels, lines.get_paths(), strict=True))[::stride]:
            extent = Text(
                text=scale.text(level), size=_NUMBER, figure=ax.figure
            ).get_window_extent()
            place = _clear_place(ax, path, extent.width, extent.height, taken)
            if place is not None:
                taken.append((place, extent.width / 2))
                lines.clabel(
                    [level],
                    fontsize=_NUMBER,
                    fmt=scale.text,
                    inline_spacing=2,
                    manual=[tuple(ax.transData.inverted().transform(place))],
                )


def _clear_place(
    ax: Axes, path: Path, width: float, height: float, taken: Sequence[tuple[Floats, float]]
) -> Floats | None:
    """Where a contour is straightest, of the places with room for a number; (2,), in pixels.

    Whatever way the number is turned there, it stays within a circle around the place.
    """
    reach = float(np.hypot(width, height)) / 2 + _CLEAR
    frame, best, bend = ax.get_window_extent(), None, np.inf
    for piece in path.to_polygons(closed_only=False):
        points = ax.transData.transform(piece)
        along = np.concatenate([[0.0], np.hypot(*np.diff(points, axis=0).T).cumsum()])
        for at in np.arange(width, along[-1] - width, width / 3):
            here, before, after = (
                np.array([np.interp(s, along, points[:, axis]) for axis in (0, 1)])
                for s in (at, at - width / 2, at + width / 2)
            )
            bent = float(np.hypot(*(here - (before + after) / 2)))
            inside = min(*(here - frame.min), *(frame.max - here)) > reach
            if (
                bent < bend
                and inside
                and all(np.hypot(*(here - other)) > reach + radius for other, radius in taken)
            ):
                best, bend = here, bent
    return best


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
        ax.contour(grid.x, grid.y, heights, inner, colors=inks, linewidths=0.4, linestyles="solid")
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
    divided=side_by_side,
    finish=number,
)
