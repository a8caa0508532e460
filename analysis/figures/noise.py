"""Loss and accuracy under Gaussian noise of the inputs."""

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
from analysis.stats.density import mean_and_stderr

_WITHOUT = {"noise_loss": "loss", "noise_accuracy": "correct"}  # the same at the inputs themselves


def noise(
    result: xr.Dataset,
    ax: Axes,
    *,
    variable: str,
    scale: Scale,
    label: str | None = None,
    look: Look | None = None,
) -> None:
    """Draw the loss or accuracy under Gaussian noise over its standard deviation.

    Means over the examples, with a band of one standard error of that mean; see `profile` for
    what is not finite.

    Args:
        result: from `over_sigma`.
        ax: Axes; call again with other results to compare them.
        variable: `noise_loss` or `noise_accuracy`.
        scale: linear or logarithmic.
        label: for the legend.
        look: of the line; by default one that no line of `ax` has.
    """
    look = look or following(ax)
    line = profile(result, ax, variable=variable, scale=scale, label=label, look=look)
    line.set(**look.dots(linestyle=look.dash, markevery=None))  # few, and what was measured
    ax.margins(x=0.03)


def over_sigma(result: xr.Dataset) -> xr.Dataset:
    """Means over the measured examples along the standard deviation, 0 for the inputs themselves.

    Args:
        result: of `sensitivity`, with its part `noise`.

    Returns:
        A line as `profile` draws it.
    """
    seen = result.isel(example=np.flatnonzero(result["measured"].values == 1))
    sigmas = np.concatenate([[0.0], result["sigma"].values])
    line = xr.Dataset(
        {"measured": ("sigma", np.ones(len(sigmas), "u1"))},
        {"sigma": ("sigma", sigmas, result["sigma"].attrs)},
        # What is at 0 on this line, and what `profile` names it by.
        result.attrs | {"spec": json.dumps(results.spec(result) | {"space": "inputs"})},
    )
    for name, itself in _WITHOUT.items():
        if name not in result:
            continue
        noisy = seen[name].transpose("sigma", "example").values
        with np.errstate(invalid="ignore", over="ignore"):
            moments = [mean_and_stderr(row) for row in (seen[itself].values, *noisy)]
        for ending, values in zip(("", "_stderr"), np.transpose(moments), strict=True):
            line[name + ending] = ("sigma", values, result[name].attrs)
    line.encoding = dict(result.encoding)
    return line


def noises(page: Page) -> Figure:
    """All results in the same Axes, one Axes a variable."""
    return overlay(replace(page, shown=[over_sigma(result) for result in page.shown]))


KIND = Kind(
    noise,
    probe="sensitivity",
    dimensions=1,
    arrange=noises,
    needs=("noise_loss",),
    variables=("noise_loss", "noise_accuracy"),
)
