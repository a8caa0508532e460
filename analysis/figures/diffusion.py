"""How attention approaches drift-diffusion: bias, error, spectrum and collapse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, blocks

_PANEL = {1: 1, 2: 2}  # panels side by side
_HEIGHT = {1: 0.55, 2: 0.55}  # of a panel's width
_LIMITS = {
    "bias": "drift twice: the theorem's",
    "bias_drift_once": "drift once",
    "bias_no_drift": "no drift",
}
_BANDWIDTHS = 3  # curves of the collapse
_COLLAPSED = 1e-3  # of the spread at the start, below which a curve is not drawn


def bias(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw the largest bias at N = infinity over the bandwidth, from three limits."""
    for at, (name, label) in enumerate(_LIMITS.items()):
        ax.plot(result["epsilon"], result[name], **_curve(at, color="black"), label=label)
    _bandwidths(result, ax)
    ax.set(yscale="log", ylabel=results.axis_label(result[variable]))


def error(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw bias and deviation together over the bandwidth, a curve a number of points."""
    rows = result[variable].sel(self_token="masked")
    for at, count in enumerate(result["count"].values):
        ax.plot(result["epsilon"], rows.sel(count=count), **_curve(at), label=f"N = {count}")
    _bandwidths(result, ax)
    ax.set(yscale="log", ylabel=results.axis_label(result[variable]))


def spectrum(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw the first eigenvalues of attention's generator over the bandwidth, and their limits."""
    for mode in range(result.sizes["mode"]):
        row = result[variable].isel(mode=mode)
        ax.plot(result["epsilon"], row, "o-", markersize=2, color="0.3", linewidth=0.6)
    for limit in result["rate_limit"].values:
        ax.axhline(limit, color="C1", linewidth=0.8, linestyle="--", zorder=0)
    ax.plot([], [], "--", color="C1", label="eigenvalues of the limit")
    _bandwidths(result, ax)
    ax.set_ylabel(results.axis_label(result[variable]))


def collapse(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw how far apart tokens are after repeated attention, over the time (epsilon / 2) steps."""
    known = np.flatnonzero(np.isfinite(result[variable].values).all(axis=1))
    places = np.linspace(0, len(known) - 1, min(_BANDWIDTHS, len(known))).astype(int)
    chosen = known[places]
    longest = 0.0
    for at, number in enumerate(chosen):
        epsilon = float(result["epsilon"].values[number])
        time = epsilon / 2 * result["step"].values
        row = result[variable].values[number]
        longest = max(longest, time[row > _COLLAPSED].max())
        ax.plot(time, row, **_curve(at, marker=""), label=f"ε = {epsilon:g}")
    ax.set(
        yscale="log",
        xlabel="time: repetitions of attention × ε/2",
        ylabel=results.axis_label(result[variable]),
        xlim=(0, longest),
        ylim=(_COLLAPSED, 1.2),
    )
    gap = float(result["rate_limit"].values[1])
    if np.isfinite(gap):
        time = np.linspace(0, longest, 2)
        ax.plot(time, np.exp(-gap * time), color="0.6", linewidth=0.8, label="rate of the limit")


def _curve(at: int, **other: Any) -> dict[str, Any]:
    """Keywords of the curve number `at` of a panel; `other` ones take precedence."""
    colour, dash = style.LINES[at % len(style.LINES)]
    mark = style.MARKS[at % len(style.MARKS)]
    return {"color": colour, "linestyle": dash, "marker": mark, "markersize": 3} | other


def _bandwidths(result: xr.Dataset, ax: Axes) -> None:
    ax.set(xscale="log", xlabel=results.axis_label(result["epsilon"]))


_DRAWN: dict[str, Callable[..., None]] = {
    "bias": bias,
    "error": error,
    "rate": spectrum,
    "collapse": collapse,
}


def _ways(result: xr.Dataset, variable: str) -> Sequence[Callable[..., None]]:
    known = np.isfinite(result[variable].values).any()
    return [_DRAWN[variable]] if known else []


KIND = Kind(
    bias,
    probe="diffusion",
    dimensions=2,
    arrange=partial(blocks, ways=_ways, across=_PANEL, ratio=_HEIGHT),
    variables=tuple(_DRAWN),
)
