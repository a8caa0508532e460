"""The terms of spatial attention: what each contributes by layer, and what is lost without."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, blocks, errors, name_places, summed_up

_HEIGHT = {1: 0.42, 2: 0.42}  # of a panel's width
_PANEL = {1: 1, 2: 2}  # panels side by side
_MARKERS = ("o", "s", "^", "D")
_SPREAD = 0.12  # of the distance between two layers, between two terms


def by_layer(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw a number of each term over the layers: mean over examples, with two standard errors.

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
            2 * error.sel(chosen).values,
            fmt=marker,
            markersize=3,
            color=f"C{number}",
            linewidth=0.8,
            clip_on=False,  # zero is common
            label=None if term is None else str(term).replace("_", " × "),
        )
    ax.set(xlabel="layer", ylabel=results.axis_label(result[variable]))
    name_places(ax, _short([style.written(str(name)) for name in result["layer"].values]))
    if np.isfinite(mean.values).any():
        ax.set_ylim(0, 1.08 * ax.dataLim.ymax)
        errors(ax)
    else:  # the setting 0000
        ax.text(0.5, 0.5, "no term", ha="center", transform=ax.transAxes)


def by_setting(result: xr.Dataset, ax: Axes, *, variable: str) -> None:
    """Draw loss or accuracy with the terms of each setting: mean, with two standard errors.

    Args:
        result: of `terms`.
        ax: Axes without projection.
        variable: `setting_loss` or `setting_accuracy`.
    """
    mean, error = (result[f"{variable}_{name}"].values for name in ("mean", "mean_stderr"))
    place = np.arange(len(mean))
    ax.errorbar(place, mean, 2 * error, fmt="o", markersize=3, color="0.2", linewidth=0.8)
    errors(ax)
    ax.axhline(mean[0], color="0.7", linewidth=0.6, zorder=0)
    ax.set_xticks(place, [str(s) for s in result["setting"].values], rotation=90)
    ax.set_xlim(-0.5, len(place) - 0.5)
    label = "terms left: query × key, query × position, key, position"
    ax.set(xlabel=label, ylabel=results.axis_label(result[variable]))


def _ways(result: xr.Dataset, variable: str) -> list[Callable[..., None]]:
    return [by_setting if "setting" in result[variable].dims else by_layer]


def _short(layers: list[str]) -> list[str]:
    """Names without the ending that all of them have: `layer3.0` of `layer3.0.attention.branch`."""
    ending = os.path.commonprefix([name[::-1] for name in layers])[::-1]
    ending = ending[ending.find(".") :] if len(layers) > 1 and "." in ending else ""
    return [name.removesuffix(ending) for name in layers]


KIND = Kind(
    by_layer,
    probe="terms",
    dimensions=1,
    arrange=partial(blocks, ways=_ways, across=_PANEL, ratio=_HEIGHT),
    variables=("variance_share", "removal_divergence", "setting_loss", "setting_accuracy"),
    also=summed_up,
)
