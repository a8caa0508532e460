"""What networks do on the way between two samples: medians over many paths, kind by kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    wrapped,
)
from analysis.figures.looks import Look, following, looks
from analysis.figures.scale import LOG_RATIO, Choice

QUANTILES = (0.25, 0.5, 0.75)
UNITS = {"jacobian_norm": " (logits per distance)"}
LABELS = {"probability": "probability", "jacobian_norm": "Jacobian norm"}
TITLES = {"random": "shuffled"}
_SAMPLES = (("-", "first sample's class"), ("--", "second sample's class"))
_HEIGHTS = {1: 0.35, 2: 0.6, 3: 0.75, 4: 0.75}  # of a panel's width, by panels side by side


def kinds(result: xr.Dataset) -> list[str]:
    """The kinds of path in a result."""
    return [str(kind) for kind in result["path_kind"].values]


def on_paths(result: xr.Dataset, variable: str) -> bool:
    """Whether `variable` has a value at every point of every path, or one for each of its ends."""
    return result[variable].dims in (("pair", "t"), ("pair", "t", "path_sample"))


def along(
    result: xr.Dataset,
    ax: Axes,
    *,
    kind: str,
    variable: str,
    look: Look | None = None,
    label: str = "",
) -> None:
    """Draw the median over the paths of one kind, and a band of the middle half of them.

    Of `probability` the curves of the first sample's class, solid, and, where the other end may
    have another class, of the second's, dashed. Order statistics: a value that is inf keeps its
    place. A path with a NaN has no order among the others: it is left out, and counted.

    Args:
        result: of `landscape.interpolate` between samples.
        ax: Axes; call again with other results to compare them.
        kind: one of `kinds(result)`.
        variable: with dims (pair, t), or `probability`.
        look: of this result, its band included; by default one that no line of `ax` has.
        label: for the legend.
    """
    chosen = (result["kind"].values == kind) & (result["measured"].values == 1)
    if not chosen.any():
        return
    look = look or following(ax)
    values = result[variable].isel(pair=np.flatnonzero(chosen)).transpose("pair", "t", ...).values
    ends = _SAMPLES[: 2 if kind in ("cross_class", "random") else 1]
    values = values[..., : len(ends)] if values.ndim == 3 else values[..., None]
    known = ~np.isnan(values).any(axis=(1, 2))
    lost = int((~known).sum())
    for rank, (line, _) in enumerate(ends[: values.shape[2]] if known.any() else ()):
        curve = values[known, :, rank]
        low, middle, high = np.quantile(curve, QUANTILES, axis=0, method="inverted_cdf")
        if look.band:
            ax.fill_between(result["t"], low, high, color=look.colour, alpha=0.2, lw=0)
        ax.plot(result["t"], middle, label=label, **look.line(linestyle=line))
        label = "_"  # one entry a result
    if lost:
        ax.annotate(
            f"{lost} of {len(known)} not finite",
            (0.97, 0.97),
            (0, -style.NOTE_SIZE * 1.2 * len(ax.texts)),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="top",
            color=look.colour,
            size=style.NOTE_SIZE,
        )


def by_kind(page: Page) -> Figure:
    """A panel for each kind of path and each variable; all results in the same Axes."""
    shown, variables, columns = page.shown, page.variables, page.columns
    named = common(shown, "path_kind")
    upright = columns == 1
    down, across = (len(named), len(variables)) if upright else (len(variables), len(named))
    figure = new_figure(columns, gap=0.03)
    grid = figure.subplots(down, across, squeeze=False, sharex=True)
    labels, drawn_as = names(shown), looks(shown, dashes=False)
    panel = 0.9 * style.WIDTHS[columns] / across
    for variable, panels in zip(variables, grid.T if upright else grid, strict=True):
        for name, ax in zip(named, panels, strict=True):
            for result, label, look in zip(shown, labels, drawn_as, strict=True):
                along(result, ax, kind=name, variable=variable, look=look, label=label)
            ax.margins(x=0)
            ax.locator_params(nbins=4, steps=[1, 2, 5, 10])
        label = LABELS.get(variable) or results.axis_label(shown[0][variable])
        # A probability is one of two: small ones are no news.
        unless = "linear" if variable == "probability" and page.choice == "auto" else page.choice
        label += _share_scale(panels, unless, page.ceiling) + UNITS.get(variable, "")
        if upright:
            panels[0].set_title(wrapped(label, panel))
        else:
            panels[0].set_ylabel(label)
            for ax in panels[1:]:
                ax.tick_params(labelleft=False)
    for name, row in zip(named, grid if upright else grid.T, strict=True):
        title = wrapped(TITLES.get(name, name.replace("_", " ")), 0.6 * panel)
        row[0].set_ylabel(title) if upright else row[0].set_title(title)
    for ax in grid[-1]:
        ax.set_xlabel("position on the path")
    axes = list(grid.flat)
    ends = any("path_sample" in shown[0][variable].dims for variable in variables)
    _explain(axes[0], named if ends else [], bands=drawn_as[0].band)
    legend(figure, axes, labels)
    figure.align_ylabels()
    fit_height(figure, axes, down, _HEIGHTS[across])
    return figure


def _share_scale(panels: Sequence[Axes], choice: Choice, ceiling: float | None) -> str:
    """One range for the panels of a variable; what to add to its label where it is logarithmic.

    It ends at twice the largest median: bands of paths that explode are cut, not the other curves
    flattened.
    """
    medians = np.concatenate([[np.nan], *(line.get_ydata() for ax in panels for line in ax.lines)])
    finite = medians[np.isfinite(medians)]
    if not finite.size:
        return ""
    ranges = np.array([ax.dataLim.intervaly for ax in panels])  # (inf, -inf) where nothing is
    low = float(ranges[:, 0].min())
    high = min(float(ranges[:, 1].max()), 2 * float(finite.max()) if ceiling is None else ceiling)
    log = choice == "log" or (choice == "auto" and low > 0 and high > LOG_RATIO * low)
    margin = 0.05 * (high - low)
    for ax in panels:
        if log:
            ax.set_yscale("log")
            ax.set_ylim(0.8 * low, 1.25 * high)
        else:
            ax.set_ylim(low - margin, high + margin)
    return ", log scale" if log else ""


def _explain(ax: Axes, common: Sequence[str], *, bands: bool) -> None:
    """Legend entries, in grey, of what is drawn alike for every result."""
    if {"cross_class", "random"} & set(common):
        for line, label in _SAMPLES:
            ax.plot([], [], color="0.4", linestyle=line, label=label)
    if bands:
        ax.fill_between([], [], color="0.4", alpha=0.3, lw=0, label="middle half")


KIND = Kind(
    along,
    probe="interpolate",
    dimensions=1,
    arrange=by_kind,
    needs=("probability",),
    compared=("path_kind",),
    variables=("probability", "jacobian_norm"),
    also=on_paths,
)
