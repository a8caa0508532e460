"""Attention against importance: agreement beside its nulls, erasure curves, interventions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, blocks, errors, name_places, summed_up
from analysis.figures.scale import LOG_RATIO

_PANEL = {1: 1, 2: 3}  # panels side by side
_HEIGHT = {1: 0.3, 2: 0.8}  # of a panel's width
SIDE = "before"  # the features whose importance is drawn: those that the gate weighs
_MARKS = ("o", "v", "s", "D")  # the first, the attention itself, in black
_ORDERS = {
    "attention": "by attention",
    "importance": "by importance",
    "random": "at random",
}
_RANKS = {
    "kendall_tau": "Kendall's \N{GREEK SMALL LETTER TAU}",
    "spearman": "Spearman's \N{GREEK SMALL LETTER RHO}",
}
_INTERVENTIONS = (
    "intervention_loss_rise",  # of each example, so that its bars are those of the difference
    "intervention_accuracy",
    "intervention_second_difference",
)
_NAMES = _RANKS | {"intervention_loss_rise": "rise of the loss"}


def agreement(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw the mean of a statistic at every site, of the attention and of its nulls.

    The mean over the examples with two standard errors; of the features before the gate, and for
    the first measure of importance, where there are several. What depends on the order in which
    units are erased is drawn for each order instead.

    Args:
        result: of `attention`, with its part `agreement` or `erasure`.
        ax: Axes without projection.
        variable: such as `kendall_tau` or `flip_fraction`.
    """
    mean, error = (result[f"{variable}_{name}"] for name in ("mean", "mean_stderr"))
    by = "order" if "order" in mean.dims else "attention_kind"
    kind = str(result["importance_kind"].values[0])
    chosen = {"side": SIDE, "importance_kind": kind} if by == "attention_kind" else {}
    place = np.arange(result.sizes["site"])
    names = [str(name) for name in result[by].values]
    for at, (which, mark) in enumerate(zip(names, _MARKS, strict=False)):
        ax.errorbar(
            place + (at - (len(names) - 1) / 2) * 0.12,
            mean.sel(chosen | {by: which}).values,
            2 * np.nan_to_num(error.sel(chosen | {by: which}).values),
            fmt=mark,
            color="black" if at == 0 else f"C{at}",
            markersize=3,
            linewidth=0.8,
            label=_ORDERS.get(which, _spaced(which)),
        )
    ax.axhline(0, color="0.7", linewidth=0.6, zorder=0)
    _sites(result, ax)
    errors(ax)
    of = f" with {_spaced(kind)} {SIDE} the gate" if chosen else ""
    ax.set_ylabel(_label(result, variable, of))


def taus(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw the histogram of a rank statistic over all examples and sites, own and permuted."""
    kind = str(result["importance_kind"].values[0])
    seen = result.isel(example=np.flatnonzero(result["measured"].values == 1))
    row = seen[variable].sel(side=SIDE, importance_kind=kind)
    bins = np.linspace(-1, 1, 41)
    for which, colour in (("permuted", "C1"), ("own", "0.2")):
        values = row.sel(attention_kind=which).values.ravel()
        ax.hist(
            values[np.isfinite(values)],
            list(bins),
            density=True,
            histtype="stepfilled" if which == "permuted" else "step",
            alpha=0.4 if which == "permuted" else 1,
            color=colour,
            linestyle="-",
            label=which,
        )
    ax.set(
        xlabel=_label(result, variable, f" {SIDE} the gate"),
        ylabel="density over images and sites",
        xlim=(-1, 1),
        xticks=(-1, -0.5, 0, 0.5, 1),
    )


def erasure(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw what remains of the decision's probability as units are erased, mean over the sites."""
    for at, order in enumerate(map(str, result["order"].values)):
        row = result.sel(order=order)
        mean = row[f"{variable}_mean"].mean("site")
        ax.plot(
            result["fraction"].values,
            mean,
            marker=("o", "^", "x")[at],
            markersize=3,
            color=("black", "C0", "0.6")[at],
            label=_ORDERS.get(order, f"by {order}"),
        )
    ax.set(
        xlabel="fraction of units erased",
        ylabel="probability of the decision",
        xlim=(0, 1),
        ylim=(0, 1.08 * ax.dataLim.ymax),
    )


def by_intervention(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw a variable under every intervention: the mean with two standard errors, or medians."""
    names = [str(name) for name in result["intervention"].values]
    place = np.arange(len(names))
    if variable == "intervention_second_difference":  # heavy tails
        low, middle, high = (
            result[f"{variable}_{name}"].values for name in ("q10", "median", "q90")
        )
        ax.errorbar(
            place, middle, [middle - low, high - middle], fmt="o", color="0.2", markersize=3
        )
        if low.min() > 0 and high.max() > LOG_RATIO * low.min():
            ax.set_yscale("log")
        ax.errorbar([], [], [], color="0.2", label="median, 10\N{EN DASH}90 % of examples")
    else:
        mean, error = (result[f"{variable}_{name}"].values for name in ("mean", "mean_stderr"))
        ax.errorbar(place, mean, 2 * np.nan_to_num(error), fmt="o", color="0.2", markersize=3)
        ax.axhline(mean[0], color="0.7", linewidth=0.6, zorder=0)
        errors(ax)
    name_places(ax, [_spaced(name) for name in names])
    ax.set_ylabel(_label(result, variable))


def _ways(result: xr.Dataset, variable: str) -> list[Callable[..., None]]:
    if "intervention" in result[variable].dims:
        return [by_intervention]
    if "fraction" in result[variable].dims:
        return [erasure]
    return [agreement, taus] if variable in _RANKS else [agreement]


def _sites(result: xr.Dataset, ax: Axes) -> None:
    names = [str(name) for name in result["site"].values]
    short = [name.replace(".attention", "").removesuffix(".merge") for name in names]
    name_places(ax, [style.written(name) for name in short])


def _label(result: xr.Dataset, variable: str, of: str = "") -> str:
    """A short name of `variable`, and its unit."""
    short = _NAMES.get(variable) or _spaced(variable.removeprefix("intervention_"))
    unit = results.units(result[variable])
    return f"{short}{of}" if unit == "1" else f"{short}{of} ({unit})"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


KIND = Kind(
    agreement,
    probe="attention",
    dimensions=1,
    arrange=partial(blocks, ways=_ways, across=_PANEL, ratio=_HEIGHT),
    variables=("kendall_tau", "erased_probability", *_INTERVENTIONS),
    also=summed_up,
)
