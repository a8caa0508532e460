"""Attention against importance: agreement beside its nulls, erasure curves, interventions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, Page, fit_height, legend, new_figure, title, wrapped

_PANEL = {1: 2, 2: 3}  # panels side by side
_HEIGHT = 0.9  # of a panel's width
# The attention itself in black, what stands in its place in colours.
_MARKS = {"own": "o", "permuted": "v", "other_image": "s", "class_mean": "D"}
_INTERVENTIONS = ("intervention_loss", "intervention_accuracy", "intervention_second_difference")


def agreement(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw the mean of a rank statistic at every site, of the attention and of its nulls.

    The mean over the examples with two standard errors, of the features after the gate, for the
    first measure of importance.

    Args:
        result: of `attention`, with its part `agreement`.
        ax: Axes without projection.
        variable: such as `kendall_tau`.
    """
    kind = str(result["importance_kind"].values[0])
    row = result.sel(side="after", importance_kind=kind)
    place = np.arange(result.sizes["site"])
    for at, which in enumerate(map(str, result["attention_kind"].values)):
        mean, error = (
            row[f"{variable}_{name}"].sel(attention_kind=which).values
            for name in ("mean", "mean_stderr")
        )
        ax.errorbar(
            place + (at - 1.5) * 0.12,
            mean,
            2 * np.nan_to_num(error),
            fmt=_MARKS[which],
            color="black" if which == "own" else f"C{at}",
            markersize=3,
            linewidth=0.8,
            label=which.replace("_", " "),
        )
    ax.axhline(0, color="0.7", linewidth=0.6, zorder=0)
    _sites(result, ax)
    ax.set_ylabel(f"{_short(variable)} with {kind.replace('_', ' ')}")


def taus(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw the histogram of a rank statistic over all examples and sites, own and permuted."""
    kind = str(result["importance_kind"].values[0])
    seen = result.isel(example=np.flatnonzero(result["measured"].values == 1))
    row = seen[variable].sel(side="after", importance_kind=kind)
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
        )
    ax.set(xlabel=_short(variable), ylabel="density over images and sites", xlim=(-1, 1))


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
            label=f"by {order}" if order != "random" else "at random",
        )
    ax.set(xlabel="fraction of units erased", ylabel="probability of the decision", ylim=(0, None))
    ax.set_xlim(0, 1)


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
        ax.set_yscale("log")
    else:
        mean, error = (result[f"{variable}_{name}"].values for name in ("mean", "mean_stderr"))
        ax.errorbar(place, mean, 2 * np.nan_to_num(error), fmt="o", color="0.2", markersize=3)
        ax.axhline(mean[0], color="0.7", linewidth=0.6, zorder=0)
    ax.set_xticks(place, [name.replace("_", " ") for name in names], rotation=60, ha="right")
    ax.set_xlim(-0.5, len(place) - 0.5)
    about = result[variable].attrs
    words = variable.removeprefix("intervention_").replace("_", " ")
    ax.set_ylabel(words if about["units"] == "1" else f"{words} ({about['units']})")


def panels(page: Page) -> Figure:
    """One panel a variable and way to draw it, one row of panels a result."""
    drawings = [(marks, variable) for variable in page.variables for marks in _ways(variable)]
    figure = new_figure(page.columns, gap=0.04)
    across = min(_PANEL[page.columns], len(drawings))
    rows = -(-len(drawings) // across)
    width = style.WIDTHS[page.columns] / across
    axes = []
    for number, (result, name) in enumerate(
        zip(page.shown, results.names(page.shown), strict=True)
    ):
        for at, (marks, variable) in enumerate(drawings):
            place = number * rows * across + at + 1
            ax = figure.add_subplot(len(page.shown) * rows, across, place)
            marks(result, ax, variable=variable)
            ax.set_xlabel(wrapped(ax.get_xlabel(), 0.8 * width))
            ax.set_ylabel(wrapped(ax.get_ylabel(), 0.7 * width * _HEIGHT))
            if at == 0:
                title(ax, name, "", 0.8 * width, lift=0)
            axes.append(ax)
    legend(figure, axes)
    fit_height(figure, axes, len(page.shown) * rows, _HEIGHT)
    return figure


def drawable(result: xr.Dataset, variable: str) -> bool:
    """Whether `variable` is a statistic of which there is a mean."""
    return f"{variable}_mean" in result


def _ways(variable: str) -> tuple[Callable[..., None], ...]:
    if variable in _INTERVENTIONS:
        return (by_intervention,)
    if variable in ("erased_probability",):
        return (erasure,)
    if variable in ("kendall_tau", "spearman"):
        return (agreement, taus)
    return (agreement,)


def _sites(result: xr.Dataset, ax: Axes) -> None:
    names = [str(name) for name in result["site"].values]
    short = [name.removesuffix(".attention").removesuffix(".merge") for name in names]
    ax.set_xticks(range(len(names)), short, rotation=60, ha="right")
    ax.set_xlim(-0.5, len(names) - 0.5)


def _short(variable: str) -> str:
    return {"kendall_tau": "Kendall's tau", "spearman": "Spearman's rho"}.get(
        variable, variable.replace("_", " ")
    )


KIND = Kind(
    agreement,
    probe="attention",
    dimensions=1,
    arrange=panels,
    variables=("kendall_tau", "erased_probability", *_INTERVENTIONS),
    also=drawable,
)
