"""The terms of spatial attention: what each contributes by layer, and what is lost without."""

from __future__ import annotations

import os

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, Page, fit_height, legend, new_figure, title, wrapped

_HEIGHT = 0.5  # of a panel's width
_PANEL = {1: 1, 2: 2}  # panels side by side
_MARKERS = ("o", "s", "^", "D")
_SPREAD = 0.12  # of the distance between two layers, between two terms


def by_layer(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw a number of each term over the layers: mean over examples, with one standard error.

    Args:
        result: of `terms`.
        ax: Axes without projection.
        variable: with the dims `layer` and `term`, such as `variance_share`, or `layer` alone.
    """
    mean, error = (result[f"{variable}_{name}"] for name in ("mean", "mean_stderr"))
    place = np.arange(result.sizes["layer"])
    terms = result["term"].values if "term" in mean.dims else [None]
    for number, (term, marker) in enumerate(zip(terms, _MARKERS, strict=False)):
        chosen = {} if term is None else {"term": term}
        values = mean.sel(chosen).values
        if np.isnan(values).all():
            continue  # a term that this network does not have
        shift = _SPREAD * (number - (len(terms) - 1) / 2)
        ax.errorbar(
            place + shift,
            values,
            error.sel(chosen).values,
            fmt=marker,
            markersize=3,
            color=f"C{number}",
            linewidth=0.8,
            clip_on=False,  # zero is common
            label=None if term is None else str(term).replace("_", " and "),
        )
    ax.set_xticks(place, _short([str(name) for name in result["layer"].values]))
    ax.set_xlim(-0.5, len(place) - 0.5)
    ax.set_ylim(bottom=0)
    ax.set(xlabel="layer", ylabel=results.axis_label(result[variable]))


def by_setting(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw loss or accuracy with the terms of each setting: mean, with one standard error.

    Args:
        result: of `terms`.
        ax: Axes without projection.
        variable: `setting_loss` or `setting_accuracy`.
    """
    mean, error = (result[f"{variable}_{name}"].values for name in ("mean", "mean_stderr"))
    place = np.arange(len(mean))
    ax.errorbar(place, mean, error, fmt="o", markersize=3, color="0.2", linewidth=0.8)
    ax.axhline(mean[0], color="0.7", linewidth=0.6, zorder=0)
    ax.set_xticks(place, [str(s) for s in result["setting"].values], rotation=90)
    ax.set_xlim(-0.5, len(place) - 0.5)
    label = "terms left: query and key, query and position, key, position"
    ax.set(xlabel=label, ylabel=results.axis_label(result[variable]))


def drawable(result: xr.Dataset, variable: str) -> bool:
    """Whether `variable` was summed up for every layer or setting."""
    return f"{variable}_mean" in result


def panels(page: Page) -> Figure:
    """One panel a variable, one row of panels a result."""
    shown, variables, columns = page.shown, page.variables, page.columns
    figure = new_figure(columns, gap=0.04)
    across = min(_PANEL[columns], len(variables))
    rows = -(-len(variables) // across)
    width = style.WIDTHS[columns] / across
    axes = []
    for number, (result, name) in enumerate(zip(shown, results.names(shown), strict=True)):
        for at, variable in enumerate(variables):
            ax = figure.add_subplot(len(shown) * rows, across, number * rows * across + at + 1)
            marks = by_setting if "setting" in result[variable].dims else by_layer
            marks(result, ax, variable=variable)
            ax.set_xlabel(wrapped(ax.get_xlabel(), 0.8 * width))
            ax.set_ylabel(wrapped(ax.get_ylabel(), 0.7 * width * _HEIGHT))
            if at == 0:
                title(ax, name, "", 0.8 * width, lift=0)
            axes.append(ax)
    legend(figure, axes)
    fit_height(figure, axes, len(shown) * rows, _HEIGHT)
    return figure


def _short(layers: list[str]) -> list[str]:
    """Names without the ending that all of them have: `layer3.0` of `layer3.0.attention.branch`."""
    ending = os.path.commonprefix([name[::-1] for name in layers])[::-1]
    ending = ending[ending.find(".") :] if len(layers) > 1 and "." in ending else ""
    return [name.removesuffix(ending) for name in layers]


KIND = Kind(
    by_layer,
    probe="terms",
    dimensions=1,
    arrange=panels,
    variables=("variance_share", "removal_divergence", "setting_loss", "setting_accuracy"),
    also=drawable,
)
