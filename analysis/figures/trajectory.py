"""The path of training over the loss, in the plane closest to it."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.patheffects import Normal, Stroke

from analysis.figures import style
from analysis.figures.arrange import Kind, on_the_grid, panels, side_by_side
from analysis.figures.contour import contour, number
from analysis.figures.scale import Scale


def trajectory(
    result: xr.Dataset, ax: Axes, *, variable: str = "loss", scale: Scale | None = None
) -> ScalarMappable:
    """Draw the loss as filled contours, and over it each path from its first snapshot to its last.

    A snapshot stands where it projects to; the loss there is that in the plane, not its own.

    Args:
        result: of `trajectory`.
        ax: Axes without projection.
        variable: `loss` or `accuracy`.
        scale: levels and colours; by default those that suit this result alone.

    Returns:
        What a colour bar needs.

    Raises:
        ValueError: more paths than can be told apart.
    """
    drawn = contour(result, ax, variable=variable, scale=scale)
    paths = list(dict.fromkeys(map(str, result["path"].values)))
    if len(paths) > len(style.MARKS):
        raise ValueError(
            f"{len(paths)} paths would look alike in one figure: it can tell {len(style.MARKS)} "
            "apart. Draw fewer."
        )
    for mark, path in zip(style.MARKS, paths, strict=False):
        own = result.isel(snapshot=result["path"].values == path)
        ax.plot(
            own["snapshot_alpha"].values,
            own["snapshot_beta"].values,
            color="white",
            linewidth=0.9,
            marker=mark,
            markersize=3,
            markeredgecolor="black",
            markeredgewidth=0.5,
            path_effects=[Stroke(linewidth=1.7, foreground="black"), Normal()],
            label=style.written(path) if len(paths) > 1 else "snapshots of the training",
        )
    return drawn


KIND = Kind(
    trajectory,
    probe="trajectory",
    dimensions=2,
    arrange=panels,
    also=on_the_grid,
    divided=side_by_side,
    finish=number,
)
