"""Curvature of the loss in the inputs: the top eigenvalue of every example's own Hessian."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import Kind, Page, fit_height, legend, names, new_figure, title
from analysis.figures.distribution import steps
from analysis.figures.looks import Look, following, looks
from analysis.stats.arrays import Floats

_HEIGHT = {1: 0.6, 2: 0.85}  # of a panel's width, for one panel and two
_NAMES = {
    "magnitude": "|top eigenvalue|",
    "largest": "top eigenvalue",
    "smallest": "\N{MINUS SIGN}smallest eigenvalue",
}


def curvature(
    result: xr.Dataset, ax: Axes, *, label: str | None = None, look: Look | None = None
) -> None:
    """Draw the distribution of the top eigenvalue over the examples; see `distribution.steps`.

    Where a network is not piecewise linear, the same for its Gauss-Newton matrix is dotted next to
    it, in its colour.

    Args:
        result: of `hessian` in the inputs.
        ax: Axes without projection; call again with other results to compare them.
        label: for the legend; by default the result's name.
        look: of the line; by default one that no line of `ax` has.
    """
    look = look or following(ax)
    name = style.written(results.name(result)) if label is None else label
    steps(ax, _sizes(result), label=name, **look.line())
    if _which(result) != "smallest" and _differs(result):
        first = _measured(result, "gauss_newton_eigenvalue")
        steps(ax, first, **look.line(linestyle=":", linewidth=0.8))
        ax.plot([], [], color="0.4", linestyle=":", linewidth=0.8, label="Gauss-Newton")
    ax.set_xlabel(f"{_NAMES[_which(result)]} ({results.units(result['eigenvalue'])})")


def beyond(
    result: xr.Dataset, ax: Axes, *, label: str | None = None, look: Look | None = None
) -> None:
    """Draw the distribution of the share of each Hessian that Gauss-Newton does not have.

    It is |(H - G) v| / |H v| for one random v an example; rounding alone where the network is
    piecewise linear.

    Args:
        result: of `hessian` in the inputs.
        ax: Axes without projection; call again with other results to compare them.
        label: for the legend; by default the result's name.
        look: of the line; by default one that no line of `ax` has.
    """
    name = style.written(results.name(result)) if label is None else label
    look = look or following(ax)
    steps(ax, _measured(result, "beyond_gauss_newton"), label=name, **look.line())
    ax.set_xlabel(results.axis_label(result["beyond_gauss_newton"]))


def curvatures(page: Page) -> Figure:
    """All results in the same Axes; a second panel where a network is not piecewise linear."""
    shown, columns = page.shown, page.columns
    marks = [curvature, beyond] if any(_differs(result) for result in shown) else [curvature]
    figure = new_figure(columns, gap=0.02)
    axes = [figure.add_subplot(1, len(marks), at + 1) for at in range(len(marks))]
    labels = names(shown)
    counts = [note(result) for result in shown]
    if len(shown) == 1:
        title(axes[0], labels[0], counts[0], 0.8 * style.WIDTHS[columns] / len(marks), lift=0)
        labels = [""] if len(marks) == 1 else labels
    else:
        labels = [f"{a} ({b})" if b else a for a, b in zip(labels, counts, strict=True)]
    for draw, ax in zip(marks, axes, strict=True):
        for result, label, look in zip(shown, labels, looks(shown), strict=True):
            draw(result, ax, label=label, look=look)
        ax.tick_params(labelleft=ax is axes[0])
    axes[0].set_ylabel("fraction of examples")
    legend(figure, axes, labels)
    fit_height(figure, axes, 1, _HEIGHT[len(marks)])
    return figure


def note(result: xr.Dataset) -> str:
    """How many examples were not measured, have not converged, or are on the other side of zero."""
    count, measured = result["measured"].size, int(result["measured"].sum())
    converged = int((_measured(result, "converged") == 1).sum())
    negative = int((_measured(result, "eigenvalue") < 0).sum())
    parts = [f"{measured} of {count} examples measured"] if measured < count else []
    parts += [f"{measured - converged} of {measured} not converged"] if converged < measured else []
    if _which(result) == "smallest":
        other, said = measured - negative, "not negative"
    else:
        other, said = negative, "negative"
    return ", ".join([*parts, *([f"{other} of {measured} {said}"] if other else [])])


def _measured(result: xr.Dataset, variable: str) -> Floats:
    """The values of the measured examples; of the top rank where there are several."""
    values = result[variable]
    if "rank" in values.dims:
        values = values.isel(rank=0)
    return np.asarray(values.values[result["measured"].values == 1], dtype=float)


def _sizes(result: xr.Dataset) -> Floats:
    """The top eigenvalues so that those asked for are positive."""
    values = _measured(result, "eigenvalue")
    return {"magnitude": np.abs(values), "largest": values, "smallest": -values}[_which(result)]


def _which(result: xr.Dataset) -> str:
    return str(results.spec(result)["which"][0])


def _differs(result: xr.Dataset) -> bool:
    """Whether some eigenpair is not that of the Gauss-Newton matrix."""
    return bool((_measured(result, "from_jacobian") != 1).any())


KIND = Kind(
    curvature,
    probe="hessian",
    dimensions=1,
    arrange=curvatures,
    needs=("from_jacobian",),
    variables=("eigenvalue",),
    settings=("matrix", "which"),
)
