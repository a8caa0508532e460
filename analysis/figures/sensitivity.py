"""Sensitivities of examples: distributions of norms, and curves over the radius."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import (
    Kind,
    Page,
    common,
    fit_height,
    legend,
    names,
    new_figure,
    title,
)
from analysis.figures.distribution import few_ticks, steps, tick_text
from analysis.figures.looks import Look, following, looks
from analysis.figures.scale import CEILING_RATIO
from analysis.stats.arrays import Floats

KINDS = ("random", "gradient", "adversarial", "tangent")
_PANEL = {1: 2, 2: 4}  # panels side by side
_HEIGHT = 0.85  # of a panel's width
_ABOVE = 1e100  # where a quantile is drawn that is not finite
_MARGIN = 1.5
_NEAR = 0.1  # of the band: a smaller rounding error is not drawn
_LINEAR = 100  # a typical value over the size up to which an axis of both signs is linear
_ACCURACY, _SIGNED = "moved_accuracy", "curvature"  # variables that are no sizes


def distribution(
    result: xr.Dataset,
    ax: Axes,
    *,
    variable: str,
    label: str | None = None,
    look: Look | None = None,
) -> None:
    """Draw the empirical distribution function of one value per example, and its median.

    A line that carries marks has none for its median.
    See `analysis.figures.distribution.steps` for what has no place on the log axis.

    Args:
        result: of `sensitivity`.
        ax: Axes without projection; call again with other results to compare them.
        variable: such as `gradient_l2`, not negative.
        label: for the legend; by default the result's name.
        look: of the line; by default one that no line of `ax` has.
    """
    values = result[variable].values[result["measured"].values == 1].astype(float)
    look = look or following(ax)
    steps(
        ax,
        values,
        label=style.written(results.name(result)) if label is None else label,
        **look.line(),
    )
    if not look.marked and (np.isfinite(values) & (values > 0)).any():
        middle = np.sort(values)[(len(values) + 1) // 2 - 1]  # NaN last
        ax.plot(middle, 0.5, **look.dots(markersize=3))
    ax.set_xlabel(results.axis_label(result[variable]))


def not_negative(result: xr.Dataset, variable: str) -> bool:
    """Whether `variable` has one value per example, none of them negative, and is no yes or no."""
    values = result[variable]
    counts = variable in ("measured", "correct")
    return values.dims == ("example",) and not counts and not bool((values < 0).any())


def over_radii(result: xr.Dataset, variable: str) -> bool:
    """Whether `variable` was summed up over the examples at every radius."""
    return f"{variable}_median" in result and "radius" in result[variable].dims


def radius_curve(
    result: xr.Dataset,
    ax: Axes,
    *,
    variable: str,
    kind: str,
    label: str | None = None,
    look: Look | None = None,
    among: Sequence[xr.Dataset] = (),
    ceiling: float | None = None,
) -> None:
    """Draw the median over radius of one kind of direction, and a band around it.

    The band holds the middle 80 % of all examples and directions of the kind. A quantile that is
    not finite leaves through the top, and a cross there marks a median that is not. The rounding
    error is drawn as a dotted line where it comes within a factor of ten of the band. An accuracy
    is 0 or 1 for each example and direction, so its mean is drawn, with one standard error.

    Args:
        result: of `sensitivity`, with its part `radii`.
        ax: Axes without projection; call again with other results to compare them.
        variable: such as `second_difference`.
        kind: of direction, such as `random`.
        label: for the legend; by default the result's name.
        look: of the line; by default one that no line of `ax` has. It may leave out the band.
        among: results whose heights it shares; by default this one alone.
        ceiling: where the heights end at most; by default where `CEILING_RATIO` has it.
    """
    ordered = result.sortby("radius").sel(direction_kind=kind)
    x = ordered["radius"].values
    low, middle, high = _band(ordered, variable)
    look = look or following(ax)
    name = style.written(results.name(result)) if label is None else label
    ax.plot(x, middle, label=name, **look.line())
    colour = look.colour
    if look.band:
        ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        ax.plot(x, np.stack([low, high], axis=1), color=colour, linestyle="-", linewidth=0.3)
        middle_80 = "10\N{EN DASH}90 % of examples and directions"
        note = style.ONE_ERROR if variable == _ACCURACY else middle_80
        ax.fill_between([], [], fc="0.88", ec="0.4", lw=0.3, label=note)
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
        xlabel="radius (neighbour distances)",
        ylabel=results.axis_label(result[variable]),
    )
    few_ticks(ax.xaxis, *ax.get_xlim())
    _set_heights(ax, among or [result], variable, ceiling)


def _band(result: xr.Dataset, variable: str) -> list[Floats]:
    """Lower edge, curve and upper edge; what is not finite lies above everything."""
    if variable == _ACCURACY:
        mean, error = (result[f"{variable}_{name}"].values for name in ("mean", "mean_stderr"))
        error = np.nan_to_num(error)  # a single example has none
        values = [mean - error, mean, mean + error]
    else:
        values = [result[f"{variable}_{name}"].values for name in ("q10", "median", "q90")]
    return [np.nan_to_num(v, nan=_ABOVE, posinf=_ABOVE, neginf=-_ABOVE) for v in values]


def _set_heights(
    ax: Axes, shown: Sequence[xr.Dataset], variable: str, ceiling: float | None
) -> None:
    """One scale that holds the bands of `variable` in all results, of every kind of direction.

    Logarithmic, as a rule. The curvature of the loss has both signs: linear around zero, so far as
    the label says, and logarithmic beyond. An accuracy is linear.
    """
    bands = zip(*(_band(result, variable) for result in shown), strict=True)
    low, middle, high = (np.concatenate([v.ravel() for v in values]) for values in bands)
    known = np.abs(high) < _ABOVE
    if variable == _ACCURACY:
        ax.set_ylim(low[known].min(initial=1) - 0.02, high[known].max(initial=0) + 0.02)
    elif variable == _SIGNED:
        sizes = np.maximum(np.abs(low), np.abs(high))[known & (np.abs(low) < _ABOVE)]
        typical = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 1.0
        linear = 10.0 ** np.floor(np.log10(typical / _LINEAR))
        top = CEILING_RATIO * typical if ceiling is None else ceiling
        top = max(min(sizes.max(initial=0), top), linear) * _MARGIN
        powers = linear * 10.0 ** np.arange(np.floor(np.log10(top / linear)), -1, -1)
        powers = powers[:: -(-len(powers) // 2)]
        ax.set_yscale("symlog", linthresh=linear)
        ax.set_ylim(-top, top)
        ax.yaxis.set_major_locator(FixedLocator([*-powers, 0, *powers]))
        ax.yaxis.set_major_formatter(FuncFormatter(tick_text))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.axhline(0, color="0.7", linestyle="-", linewidth=0.6, zorder=0)
        ax.set_ylabel(f"{ax.get_ylabel()}, linear below {tick_text(linear)}")
    else:
        low, middle, high = (v[(v > 0) & (v < _ABOVE)] for v in (low, middle, high))
        least = middle.min(initial=np.inf)
        bottom = max(low.min(initial=least), least / CEILING_RATIO)
        top = min(high.max(initial=least), CEILING_RATIO * least if ceiling is None else ceiling)
        ax.set_yscale("log")
        ax.set_ylim((bottom / _MARGIN, top * _MARGIN) if middle.size else (0.1, 10.0))
        few_ticks(ax.yaxis, *ax.get_ylim())


def distributions(page: Page) -> Figure:
    """One panel a variable, one line a result."""
    shown, variables, columns = page.shown, page.variables, page.columns
    figure = new_figure(columns, gap=0.04)
    down = -(-len(variables) // _PANEL[columns])
    across = -(-len(variables) // down)
    axes = [figure.add_subplot(down, across, at + 1) for at in range(len(variables))]
    labels = names(shown)
    for at, (variable, ax) in enumerate(zip(variables, axes, strict=True)):
        for result, label, look in zip(shown, labels, looks(shown), strict=True):
            distribution(result, ax, variable=variable, label=label, look=look)
        ax.set_ylabel("fraction of examples" if at % across == 0 else "")
        ax.tick_params(labelleft=at % across == 0)
    legend(figure, axes, labels)
    fit_height(figure, axes, down, _HEIGHT)
    return figure


def radius_curves(page: Page) -> Figure:
    """One panel a variable and kind of direction, one line a result; a row shares its heights."""
    shown, variables, columns, ceiling = page.shown, page.variables, page.columns, page.ceiling
    there = common(shown, "direction_kind")
    kinds = [name for name in KINDS if name in there] + [n for n in there if n not in KINDS]
    figure = new_figure(columns, gap=0.02)
    across = min(len(kinds), _PANEL[columns])
    width = style.WIDTHS[columns] / across
    rows = [
        (variable, kinds[start : start + across])
        for variable in variables
        for start in range(0, len(kinds), across)
    ]
    labels = names(shown)
    axes: list[Axes] = []
    for row, (variable, named) in enumerate(rows):
        for column, name in enumerate(named):
            place = row * across + column + 1
            ax = figure.add_subplot(len(rows), across, place)
            axes.append(ax)
            for result, label, look in zip(shown, labels, looks(shown), strict=True):
                radius_curve(
                    result,
                    ax,
                    variable=variable,
                    kind=name,
                    label=label,
                    look=look,
                    among=shown,
                    ceiling=ceiling,
                )
            if columns == 1 or row == 0:
                title(ax, name, "", 0.8 * width, lift=0)
            ax.set_xlabel(ax.get_xlabel() if row + 1 == len(rows) else "")
            ax.set_ylabel(ax.get_ylabel() if column == 0 else "")
            ax.tick_params(labelleft=column == 0, labelbottom=row + 1 == len(rows))
    figure.align_ylabels()
    legend(figure, axes, labels)
    fit_height(figure, axes, len(rows), _HEIGHT)
    return figure


NORMS = Kind(
    distribution,
    probe="sensitivity",
    dimensions=1,
    arrange=distributions,
    variables=(
        "gradient_l2",
        "margin_gradient_l2",
        "jacobian_frobenius",
        "jacobian_spectral",
        "softmax_jacobian_frobenius",
        "gauss_newton_eigenvalue",
    ),
    also=not_negative,
)
RADII = Kind(
    radius_curve,
    probe="sensitivity",
    dimensions=1,
    arrange=radius_curves,
    variables=("second_difference", "gradient_change"),
    needs=("second_difference",),
    compared=("direction_kind",),
    also=over_radii,
)
