"""How far the loss rises within a radius of the weights."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import results
from analysis.figures.arrange import Kind, Page, overlay
from analysis.figures.looks import Look, following
from analysis.figures.profile import profile
from analysis.figures.scale import Scale

_RISES = ("ascent_rise", "sampled_rise", "average_rise")


def rises(
    result: xr.Dataset,
    ax: Axes,
    *,
    variable: str,
    scale: Scale,
    label: str | None = None,
    look: Look | None = None,
) -> None:
    """Draw a rise of the loss over the radius, a dot for each radius that was measured.

    Means over the groups of examples, with a band of one standard error of that mean; of the mean
    rise for a single group, over random steps. See `profile` for what is not finite.

    Args:
        result: from `over_radius`.
        ax: Axes; call again with other results to compare them.
        variable: such as `ascent_rise`.
        scale: linear or logarithmic.
        label: for the legend.
        look: of the line; by default one that no line of `ax` has.
    """
    look = look or following(ax)
    line = profile(result, ax, variable=variable, scale=scale, label=label, look=look)
    line.set(**look.dots(linestyle=look.dash, markevery=None))
    ax.margins(x=0.03)


def over_radius(result: xr.Dataset) -> xr.Dataset:
    """Means over the groups along the radius.

    Args:
        result: of `sharpness`.

    Returns:
        A line as `profile` draws it; a radius at which a group is missing is not measured.
    """
    whole = (result["measured"].transpose("radius", "group").values == 1).all(axis=1)
    line = xr.Dataset(
        {"measured": ("radius", whole.astype("u1"))},
        {"radius": ("radius", result["radius"].values, result["radius"].attrs)},
        result.attrs | {"spec": json.dumps(results.spec(result) | {"space": "weights"})},
    )
    for name in _RISES:
        if name not in result:
            continue
        line[name] = ("radius", result[f"{name}_mean"].values, result[name].attrs)
        error = result[f"{name}_mean_stderr"].values
        if result.sizes["group"] == 1 and f"{name}_stderr" in result:
            error = result[f"{name}_stderr"].transpose("radius", "group").values[:, 0]
        line[f"{name}_stderr"] = ("radius", np.asarray(error), result[name].attrs)
    line.encoding = dict(result.encoding)
    return line


def over_radii(page: Page) -> Figure:
    """All results in the same Axes, one Axes a variable."""
    return overlay(replace(page, shown=[over_radius(result) for result in page.shown]))


KIND = Kind(
    rises,
    probe="sharpness",
    dimensions=2,
    arrange=over_radii,
    variables=_RISES,
    settings=("ball", "group"),
)
