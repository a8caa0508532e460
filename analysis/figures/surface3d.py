"""A surface in three dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import (  # type: ignore[import-untyped, unused-ignore]
    Poly3DCollection,
)

from analysis import results
from analysis.figures import style
from analysis.figures.contour import gap_marks, limits, origin_label
from analysis.figures.grid import Grid
from analysis.figures.scale import Scale, shared_scale


def surface3d(
    result: xr.Dataset, ax: Any, *, variable: str = "loss", scale: Scale | None = None
) -> ScalarMappable:
    """Draw one result as a surface over its plane, its origin marked.

    Every measured point is a corner of the surface: no point is left out, none is added. Where a
    value is not finite or was not measured the surface has a hole, and the floor below it is grey
    or hatched. On a logarithmic scale the height is log10 of the value.

    Args:
        result: a surface, on a grid of any shape.
        ax: Axes with `projection="3d"`.
        variable: `loss` or `accuracy`.
        scale: heights and colours; by default those that suit this result alone.

    Returns:
        What a colour bar needs.

    Cost: one polygon a cell; a PDF of 100 x 100 cells takes about 2 MB.
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
    surface: ScalarMappable = Poly3DCollection(
        faces, cmap=style.COLOURS, norm=scale.norm, edgecolor=(0, 0, 0, 0.35), lw=0.15, zorder=2
    )
    surface.set_array([face[:, 2].mean() for face in faces])
    ax.add_collection3d(surface)
    row, column = np.nonzero(grid.lone())
    ax.scatter(
        grid.x[column],
        grid.y[row],
        heights[row, column],
        c=heights[row, column],
        s=12,
        cmap=style.COLOURS,
        norm=scale.norm,
        depthshade=False,
        zorder=3,
    )
    here = grid.known & (grid.x == 0) & (grid.y == 0)[:, np.newaxis]
    if here.any():
        ax.plot(
            [0],
            [0],
            heights[here],
            "*",
            ms=7,
            mfc="white",
            mec="black",
            mew=0.6,
            zorder=4,
            label=origin_label(result),
        )
    across, up = result["measured"].dims
    ax.set(
        xlabel=results.axis_label(result[across]).replace(" (", "\n("),
        ylabel=results.axis_label(result[up]).replace(" (", "\n("),
    )
    ax.set_zticks(scale.ticks(6))
    ax.zaxis.set_major_formatter(scale.text)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], prune="both"))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_tick_params(pad=-3)
        axis.labelpad = 0
    ax.set_box_aspect((4, 4, 3), zoom=1.0)
    ax.view_init(elev=30, azim=-60)
    return surface
