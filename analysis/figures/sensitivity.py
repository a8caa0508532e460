"""Sensitivities of examples: distributions of norms, and curves over the radius."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Page, fit_height, legend, new_figure, title, wrapped
from analysis.figures.distribution import few_ticks, steps
from analysis.figures.scale import CEILING_RATIO

KINDS = ("random", "gradient", "adversarial", "tangent")
_PANEL = {1: 2, 2: 4}  # panels side by side
_HEIGHT = 0.85  # of a panel's width
_ABOVE = 1e100  # where a quantile is drawn that is not finite
_MARGIN = 1.5
_NEAR = 0.1  # of the band: a smaller rounding error is not drawn


def distribution(result: xr.Dataset, ax: Axes, *, variable: str, label: str | None = None) -> None:
    """Draw the empirical distribution function of one value an example, and its median.

    See `analysis.figures.distribution.steps` for what has no place on the log axis.

    Args:
        result: of `sensitivity`.
        ax: Axes without projection; call again with other results to compare them.
        variable: such as `gradient_l2`, not negative.
        label: for the legend; by default the result's name.
    """
    values = result[variable].values[result["measured"].values == 1].astype(float)
    line = steps(ax, values, label=results.name(result) if label is None else label)
    if (np.isfinite(values) & (values > 0)).any():
        middle = np.sort(values)[(len(values) + 1) // 2 - 1]  # NaN last
        ax.plot(middle, 0.5, "o", markersize=3, color=line.get_color())
    ax.set_xlabel(results.axis_label(result[variable]))


def radius_curve(
    result: xr.Dataset,
    ax: Axes,
    *,
    variable: str,
    kind: str,
    label: str | None = None,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw the median over radius of one kind of direction, and a band around it.

    The band holds the middle 80 % of all examples and directions of the kind. A quantile that is
    not finite leaves through the top, and a cross there marks a median that is not. The rounding
    error is drawn as a dotted line where it comes within a factor of ten of the band.

    Args:
        result: of `sensitivity`, with its part `radii`.
        ax: Axes without projection; call again with other results to compare them.
        variable: such as `second_difference`.
        kind: of direction, such as `random`.
        label: for the legend; by default the result's name.
        limits: of the heights; by default `heights` of this result alone.
    """
    ordered = result.sortby("radius").sel(part=kind)
    x = ordered["radius"].values
    low, middle, high = (
        np.where(np.isfinite(values), values, _ABOVE)
        for values in (ordered[f"{variable}_{q}"].values for q in ("q10", "median", "q90"))
    )
    (line,) = ax.plot(x, middle, label=results.name(result) if label is None else label)
    colour = to_hex(line.get_color())
    ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    ax.plot(x, np.stack([low, high], axis=1), color=colour, linestyle="-", linewidth=0.3)
    ax.fill_between(
        [], [], fc="0.88", ec="0.4", lw=0.3, label="10\N{EN DASH}90 % of examples and directions"
    )
    astray = x[middle == _ABOVE]
    if astray.size:
        cross: dict[str, Any] = {"marker": "x", "markersize": 3, "linestyle": ""}
        edge = np.full(astray.size, 0.97)
        ax.plot(astray, edge, color=colour, transform=ax.get_xaxis_transform(), **cross)
        ax.plot([], [], color="0.4", label="median not finite", **cross)
    if f"{variable}_floor" in result:
        floor = ordered[f"{variable}_floor"].median("example", skipna=False)
        if (floor > _NEAR * low).any():
            ax.plot(x, floor, color=colour, linestyle=":", linewidth=0.7)
            ax.plot([], [], color="0.4", linestyle=":", linewidth=0.7, label="rounding error")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="radius / neighbour distance",
        ylabel=results.axis_label(result[variable]),
        ylim=limits or heights([result], variable),
    )
    for axis, ends in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        few_ticks(axis, *ends)


def heights(
    shown: Sequence[xr.Dataset], variable: str, ceiling: float | None = None
) -> tuple[float, float]:
    """The limits of a logarithmic axis that holds the bands of `variable`, of every kind.

    Args:
        shown: results with the part `radii`.
        variable: such as `second_difference`.
        ceiling: where it ends at most; by default at `CEILING_RATIO` times the smallest median.
    """
    low, middle, high = (
        np.concatenate([result[f"{variable}_{q}"].values.ravel() for result in shown])
        for q in ("q10", "median", "q90")
    )
    low, middle, high = (v[np.isfinite(v) & (v > 0)] for v in (low, middle, high))
    if not middle.size:
        return 0.1, 10.0
    top = CEILING_RATIO * middle.min() if ceiling is None else ceiling
    return float(low.min() / _MARGIN), float(min(high.max(initial=0) or top, top) * _MARGIN)


def distributions(page: Page) -> Figure:
    """One panel a variable, one line a result."""
    shown, variables, columns = page.shown, page.variables, page.columns
    variables = variables or ["loss"]  # all that there is without the parts that hold norms
    figure = new_figure(columns, gap=0.04)
    across = min(len(variables), _PANEL[columns])
    down = -(-len(variables) // across)
    width = style.WIDTHS[columns] / across
    axes = [figure.add_subplot(down, across, at + 1) for at in range(len(variables))]
    labels = results.names(shown)
    for at, (variable, ax) in enumerate(zip(variables, axes, strict=True)):
        for result, label in zip(shown, labels, strict=True):
            distribution(result, ax, variable=variable, label=label)
        ax.set_xlabel(wrapped(ax.get_xlabel(), 0.7 * width))
        ax.set_ylabel("fraction of examples" if at % across == 0 else "")
        ax.tick_params(labelleft=at % across == 0)
    legend(figure, axes, labels)
    fit_height(figure, axes, down, _HEIGHT)
    return figure


def radius_curves(page: Page) -> Figure:
    """One panel a variable and kind of direction, one line a result; a row shares its heights."""
    shown, variables, columns, ceiling = page.shown, page.variables, page.columns, page.ceiling
    kinds = [name for name in KINDS if all(name in result["part"].values for result in shown)]
    figure = new_figure(columns, gap=0.02)
    across = min(len(kinds), _PANEL[columns])
    width = style.WIDTHS[columns] / across
    rows = [
        (variable, kinds[start : start + across])
        for variable in variables
        for start in range(0, len(kinds), across)
    ]
    labels = results.names(shown)
    axes: list[Axes] = []
    for row, (variable, named) in enumerate(rows):
        limits = heights(shown, variable, ceiling)
        for column, name in enumerate(named):
            place = row * across + column + 1
            ax = figure.add_subplot(len(rows), across, place)
            axes.append(ax)
            for result, label in zip(shown, labels, strict=True):
                radius_curve(result, ax, variable=variable, kind=name, label=label, limits=limits)
            if columns == 1 or row == 0:
                title(ax, name, "", 0.8 * width, lift=0)
            ax.set_xlabel(wrapped(ax.get_xlabel(), 0.7 * width) if row + 1 == len(rows) else "")
            ax.set_ylabel(wrapped(ax.get_ylabel(), 0.6 * width) if column == 0 else "")
            ax.tick_params(labelleft=column == 0, labelbottom=row + 1 == len(rows))
    figure.align_ylabels()
    legend(figure, axes, labels)
    fit_height(figure, axes, len(rows), _HEIGHT)
    return figure
