"""A surface in three dimensions."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.ticker import FixedLocator, MaxNLocator
from mpl_toolkits.mplot3d.art3d import (  # type: ignore[import-untyped, unused-ignore]
    Poly3DCollection,
)

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, on_the_grid, panels, side_by_side
from analysis.figures.contour import gap_marks, network_label, networks
from analysis.figures.grid import Grid, limits
from analysis.figures.scale import Scale, shared_scale
from analysis.stats.arrays import Floats

_CORNER = 0.08  # of an axis, at its ends, without ticks
_LINE = 26  # characters of an axis label that fit along an edge


def surface3d(
    result: xr.Dataset, ax: Any, *, variable: str = "loss", scale: Scale | None = None
) -> ScalarMappable:
    """Draw one result as a surface over its plane, its origin marked.

    Every measured point is a corner of the surface: no point is left out, none is added. Where a
    value is not finite or was not measured the surface has a hole, and the floor below it is grey
    or hatched. On a logarithmic scale the height is log10 of the value. What lies above the scale
    is cut off at its top, in a colour of its own.

    Args:
        result: a surface, on a grid of any shape.
        ax: Axes with `projection="3d"`.
        variable: `loss` or `accuracy`.
        scale: heights and colours; by default those that suit this result alone.

    Returns:
        What a colour bar needs.

    Cost: one polygon a cell; a PDF of 100 x 100 cells takes about 0.3 MB.
    """
    scale = scale or shared_scale([result], variable)
    grid = Grid.of(result, variable)
    heights = np.zeros_like(grid.values)
    heights[grid.known] = scale.place(grid.values[grid.known])
    floor, top = scale.place(scale.levels[[0, -1]])
    xlim, ylim = limits(grid.x), limits(grid.y)
    ax.set(xlim=xlim, ylim=ylim, zlim=(floor, top))
    ax.computed_zorder = False  # floor, surface, marker: in this order, as the view is from above
    for outlines, look in gap_marks(grid):
        at_floor = np.pad(outlines, ((0, 0), (0, 0), (0, 1)), constant_values=floor)
        ax.add_collection3d(Poly3DCollection(at_floor, linewidth=0, zorder=1, **look))
    faces = grid.faces(heights)
    below = [np.column_stack([face[:, :2], np.minimum(face[:, 2], top)]) for face in faces]
    surface: ScalarMappable = Poly3DCollection(
        below, cmap=style.colours(), norm=scale.norm, edgecolor=(0, 0, 0, 0.35), lw=0.15, zorder=2
    )
    # A face that begins within the scale keeps its colours; one wholly above has that of `OVER`.
    heights_of = [face[:, 2] for face in faces]
    surface.set_array(
        [h.mean() if h.min() > top else np.minimum(h, top).mean() for h in heights_of]
    )
    ax.add_collection3d(surface)
    row, column = np.nonzero(grid.lone())
    ax.scatter(
        grid.x[column],
        grid.y[row],
        np.minimum(heights[row, column], top),
        c=heights[row, column],
        s=12,
        cmap=style.colours(),
        norm=scale.norm,
        depthshade=False,
        zorder=3,
    )
    for x, y in networks(result):
        here = grid.known & (grid.x == x) & (grid.y == y)[:, np.newaxis]
        if here.any():
            marker = {"ms": 7, "mfc": "white", "mec": "black", "mew": 0.6, "zorder": 4}
            ax.plot(
                [x], [y], np.minimum(heights[here], top), "*", label=network_label(result), **marker
            )
    across, up = result["measured"].dims
    ax.set(
        xlabel=textwrap.fill(results.grid_label(result, across), _LINE),
        ylabel=textwrap.fill(results.grid_label(result, up), _LINE),
    )
    ax.set_zticks(scale.ticks(6))
    ax.zaxis.set_major_formatter(scale.text)
    for axis, (low, high) in ((ax.xaxis, xlim), (ax.yaxis, ylim)):
        axis.set_major_locator(FixedLocator(ticks(low, high).tolist()))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_tick_params(pad=-3)
        axis.labelpad = 0
        axis.label.set_size(style.NOTE_SIZE)
    ax.set_box_aspect((4, 4, 3), zoom=1.0)
    ax.view_init(elev=30, azim=-60)
    return surface


def ticks(low: float, high: float) -> Floats:
    """Two to five round numbers within an axis, none at its ends, where axes meet."""
    margin = _CORNER * (high - low)
    for most in range(4, 12):
        locator = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])
        tried = np.asarray(locator.tick_values(low, high), dtype=float)
        found = tried[(tried > low + margin) & (tried < high - margin)]
        if len(found) > 1:
            break
    return found


KIND = Kind(
    surface3d,
    probe="surface",
    dimensions=2,
    arrange=panels,
    projection="3d",
    also=on_the_grid,
    divided=side_by_side,
)
