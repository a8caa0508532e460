"""Loss and accuracy along a line."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, has_stderr, overlay
from analysis.figures.contour import network_label, networks
from analysis.figures.looks import Look, following
from analysis.figures.scale import Scale, shared_scale

_QUANTILES = (0.1, 0.5, 0.9)
_MARGIN = 0.05  # of the height, below a scale that ends before the largest value


def profile(
    result: xr.Dataset,
    ax: Axes,
    *,
    variable: str = "loss",
    scale: Scale | None = None,
    label: str | None = None,
    look: Look | None = None,
) -> Line2D:
    """Draw one result as a line, a band of one standard error around it.

    The line joins neighbouring measured points; where a value is not finite or was not measured
    it is broken, and a cross at the upper edge marks each value that is not finite. Where the
    loss of each example was kept (input space), their median and the band from the 10th to the
    90th percentile are drawn too: the mean of a heavy tail may lie outside.

    Args:
        result: a surface of one dimension, or the line between two checkpoints.
        ax: Axes without projection; call again with other results to compare them.
        variable: `loss` or `accuracy`.
        scale: linear or logarithmic; by default what suits this result alone.
        label: for the legend; by default the result's name.
        look: of the line; by default one that no line of `ax` has. It may leave out the bands.

    Returns:
        The line.
    """
    scale = scale or shared_scale([result], variable)
    ordered = result.sortby(str(result["measured"].dims[0]))
    dim = str(ordered["measured"].dims[0])
    x = ordered[dim].values.astype(float)
    values = ordered[variable].values.astype(float)
    stderr = ordered[f"{variable}_stderr"].values.astype(float)
    measured = ordered["measured"].values == 1
    known = measured & np.isfinite(values)
    values = np.where(known, values, np.nan)
    padded = np.concatenate([[False], known, [False]])
    lone = known & ~padded[:-2] & ~padded[2:]
    look = look or following(ax)
    name = style.written(results.name(result)) if label is None else label
    (line,) = ax.plot(x, values, label=name, **look.line())
    colour = look.colour
    ax.plot(x[lone], values[lone], **look.dots())
    extent = ax.dataLim.frozen()
    if look.band:
        ax.fill_between(x, values - stderr, values + stderr, color=colour, alpha=0.3, lw=0)
        ax.fill_between([], [], color="0.6", lw=0, label=style.ONE_ERROR)
    if scale.log:  # a mean that one huge loss carries has an error bar down to almost zero
        ax.dataLim.set(extent)
    if look.band and f"example_{variable}" in ordered:
        _examples(ordered, ax, variable, colour)
    astray = x[measured & ~known]
    if astray.size:
        edge = np.full(astray.size, 0.97)
        ax.plot(
            astray,
            edge,
            "x",
            markersize=3,
            color=colour,
            linestyle="",
            clip_on=False,
            transform=ax.get_xaxis_transform(),
        )
        ax.plot([], [], "x", markersize=3, color="0.4", linestyle="", label="not finite")
    for place, _ in networks(result):
        if x.min() <= place <= x.max():
            ax.axvline(place, c="0.7", ls="-", lw=0.6, zorder=0, label=network_label(result))
    ax.margins(x=0)
    ax.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
    ax.set(
        xlabel=results.grid_label(result, dim),
        ylabel=scale.label(results.axis_label(result[variable])),
        yscale="log" if scale.log else "linear",
    )
    if scale.over:  # matplotlib's own margin would be a share of what lies above
        low, high = scale.place(scale.levels[[0, -1]])
        bottom = low - _MARGIN * (high - low)
        ax.set_ylim(10**bottom if scale.log else bottom, scale.levels[-1])
    return line


def _examples(result: xr.Dataset, ax: Axes, variable: str, colour: str) -> None:
    """Band and median of the examples; order statistics, so infinite losses keep their place."""
    dim = str(result["measured"].dims[0])
    examples = result[f"example_{variable}"].transpose(dim, "example").values.astype(float)
    low, middle, high = np.quantile(examples, _QUANTILES, axis=1, method="inverted_cdf")
    x = result[dim].values.astype(float)
    ax.fill_between(x, low, high, color=colour, alpha=0.1, lw=0)
    ax.plot(x, np.stack([low, high], axis=1), color=colour, linestyle="-", linewidth=0.3)
    ax.plot(x, middle, color=colour, linestyle=":", linewidth=0.9)
    ax.plot([], [], color="0.4", linestyle=":", linewidth=0.9, label="median of examples")
    ax.fill_between([], [], fc="0.92", ec="0.4", lw=0.3, label="10\N{EN DASH}90 % of examples")


KIND = Kind(
    profile,
    probe="surface",
    dimensions=1,
    arrange=overlay,
    variables=("loss", "accuracy"),
    also=has_stderr,
)
