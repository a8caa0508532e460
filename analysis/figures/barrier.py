"""Loss and accuracy on the line between two networks, and the barrier between them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from analysis import results
from analysis.figures.arrange import Kind, Page, has_stderr, overlay
from analysis.figures.looks import Look
from analysis.figures.profile import profile
from analysis.figures.scale import Scale

_BESIDE = 5.0  # points between arrows at the same place


def barrier(
    result: xr.Dataset,
    ax: Axes,
    *,
    variable: str,
    scale: Scale,
    label: str | None = None,
    look: Look | None = None,
) -> None:
    """Draw one line between two networks, with one treatment of batch norm's statistics.

    The loss has its chord, dotted, from one end to the other, and where it is highest above it an
    arrow between the two: the barrier, a little to the right of those that are already there.

    Args:
        result: one of `treatments`.
        ax: Axes; call again with other results to compare them.
        variable: `loss` or `accuracy`.
        scale: linear or logarithmic.
        label: for the legend.
        look: of the line; by default one that no line of `ax` has.
    """
    line = profile(result, ax, variable=variable, scale=scale, label=label, look=look)
    size, at = float(result["barrier"]), float(result["barrier_at"])
    if variable != "loss" or not size > 0:
        return
    colour = line.get_color()
    inside = result["t"].values[(result["t"].values >= 0) & (result["t"].values <= 1)]
    first, last = result["loss"].sel(t=[0.0, 1.0]).values
    base = (1 - at) * first + at * last
    chord = (1 - inside) * first + inside * last  # no straight line on a logarithmic scale
    ax.plot(inside, chord, color=colour, linestyle=":", linewidth=0.7)
    ax.plot([], [], color="0.4", linestyle=":", linewidth=0.7, label="straight between the ends")
    arrow = {"arrowstyle": "<->", "color": colour, "lw": 0.7, "shrinkA": 0, "shrinkB": 0}
    here = sum(bool(np.isclose(at, text.xy[0])) for text in ax.texts if hasattr(text, "xy"))
    shifted = ax.transData + ScaledTranslation(_BESIDE * here / 72, 0, ax.figure.dpi_scale_trans)
    ax.annotate(
        "", (at, base), (at, base + size), xycoords=shifted, textcoords=shifted, arrowprops=arrow
    )


def height(result: xr.Dataset) -> str:
    """The barrier of one of `treatments`, and its standard error, in words; empty without one."""
    value, stderr = float(result["barrier"]), float(result["barrier_stderr"])
    unit = results.units(result["barrier"]).replace("1", "")
    if not value > 0:
        return ""
    return f"barrier {value:.3g} \N{PLUS-MINUS SIGN} {stderr:.2g} {unit}".rstrip()


def treatments(result: xr.Dataset) -> list[xr.Dataset]:
    """One result for each treatment of batch norm's statistics, named in its spec."""
    parts = []
    for treatment in map(str, result["batch_norm_statistics"].values):
        one = result.sel(batch_norm_statistics=treatment).drop_vars("example_loss")
        named = results.spec(result) | {"statistics": treatment}
        one.attrs = {**result.attrs, "spec": json.dumps(named)}
        one.encoding = dict(result.encoding)
        parts.append(one)
    return parts


def on_the_line(page: Page) -> Figure:
    """All lines, and all treatments of batch norm's statistics, in the same Axes."""
    parts = [part for result in page.shown for part in treatments(result)]
    return overlay(replace(page, shown=parts), remark=height)


KIND = Kind(
    barrier,
    probe="interpolate",
    dimensions=1,
    arrange=on_the_line,
    needs=("barrier",),
    variables=("loss", "accuracy"),
    also=has_stderr,
)
