"""Spectrum of the curvature in the weights: its density, and its top eigenvalues by rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from analysis import results
from analysis.figures import style
from analysis.figures.arrange import (
    Kind,
    Page,
    fit_height,
    legend,
    names,
    new_figure,
    title,
)
from analysis.figures.distribution import tick_text
from analysis.figures.looks import Look, following, looks
from analysis.stats.arrays import Floats
from analysis.stats.density import (
    WIDTH,
    density,
    mean_and_stderr,
    negative_square,
    place,
    values_at,
)

MATRICES = {
    "hessian": "Hessian",
    "gauss_newton": "Gauss-Newton matrix",
    "difference": "Hessian less Gauss-Newton",
}
_HEIGHT = {1: 0.62, 2: 0.4}  # of the width
_POINTS = 1500  # of a curve
_FLOOR = 0.03  # of the height of a single eigenvalue: where the axis of a density begins
_ROW, _ROWS = 0.06, 5  # of the height: a row of marks; more rows than so many stand closer
_MARGIN = 4 * WIDTH  # decades beyond the outermost eigenvalue
_TICK = 0.25  # inches a tick of the axis of eigenvalues takes
_DOT = 3.0  # points


def spectrum(
    result: xr.Dataset,
    ax: Axes,
    *,
    linear: float | None = None,
    row: float = 0,
    label: str | None = None,
    look: Look | None = None,
) -> None:
    """Draw the spectral density of one result, and its top eigenvalues.

    The curve is the mean over the random vectors, the band around it runs from the smallest to the
    largest of them. Each node of the quadrature is a Gaussian along the axis as it is drawn, so
    that the area under a piece of the curve is the number of eigenvalues there. The eigenvalues
    that were computed one by one are marked below; one that has not converged is hollow.

    Args:
        result: of `hessian` in the weights, with its part `density`.
        ax: Axes without projection; call again with other results to compare them.
        linear: half the width of the part of the axis around zero that is about linear; by default
            what this result resolves there.
        row: of the marks, from 1, the lowest, where there are several results; 0 for one alone.
        label: for the legend; by default the result's name.
        look: of the line; by default one that no line of `ax` has. It may leave out the band.

    Raises:
        ValueError: no random vector has been measured.
    """
    linear = linear or resolution([result])
    nodes, weights = _draws(result)
    known = np.concatenate([nodes.ravel(), _eigenvalues(result)[0]])
    ends = place(np.array([known.min(), known.max()]), linear) + [-_MARGIN, _MARGIN]
    at = np.linspace(ends[0], ends[1], _POINTS)
    count = _parameters(result)
    curves = count * density(nodes, weights, at, linear=linear)
    x = values_at(at, linear)
    look = look or following(ax)
    ax.plot(x, curves.mean(axis=0), **look.line())
    colour = look.colour
    if len(curves) > 1 and look.band:
        ax.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.25, lw=0)
        ax.fill_between([], [], color="0.75", lw=0, label="range over the random vectors")
    values, converged = _eigenvalues(result)
    heights = np.full(values.size, _ROW * (row or 1))
    for dots in _dots(ax, values, heights, converged, look):
        dots.set_transform(ax.get_xaxis_transform())
    name = style.written(results.name(result)) if label is None else label
    ax.plot([], [], label=name, **look.line(**look.dots(linestyle=look.dash) if row else {}))
    if values.size:
        ax.plot([], [], "o", color="0.4", linestyle="", markersize=_DOT, label="top eigenvalues")
    single = 1 / (WIDTH * np.sqrt(2 * np.pi))
    ax.set_xscale("asinh", linear_width=linear)
    ax.set_yscale("log")
    top = max(ax.get_ylim()[1], 2 * curves.max())
    ax.set(
        ylim=(_FLOOR * single, top),
        xlabel=_axis_label(result, "node"),
        ylabel=f"eigenvalues per decade (kernel: {WIDTH} decades)",
    )
    _ticks(ax, linear)


def spectra(page: Page) -> Figure:
    """All densities in the same Axes, what else is known of each network in small type above."""
    shown, columns = page.shown, page.columns
    figure = new_figure(columns, gap=0.02)
    ax = figure.add_subplot()
    width = style.WIDTHS[columns]
    linear, labels = resolution(shown), names(shown)
    notes = [note(result) for result in shown]
    if len(shown) == 1:
        title(ax, labels[0], notes[0], 0.8 * width, lift=0)
        labels = ["mean over the random vectors"]
    else:
        labels = [f"{label}: {text}" for label, text in zip(labels, notes, strict=True)]
    rows = min(1.0, _ROWS / len(shown)) * np.arange(1, len(shown) + 1)
    for row, result, label, look in zip(
        rows if len(shown) > 1 else [0], shown, labels, looks(shown, hollow=False), strict=True
    ):
        spectrum(result, ax, linear=linear, row=row, label=label, look=look)
    legend(figure, [ax], labels)
    fit_height(figure, [ax], 1, _HEIGHT[columns])
    return figure


def note(result: xr.Dataset) -> str:
    """Trace, Frobenius norm, that of the negative part, and what has not been measured."""
    sizes = [
        f"{label} {_estimate(float(result[name]), float(result[f'{name}_stderr']))}"
        for name, label in (("trace", "trace"), ("frobenius_norm", "Frobenius norm"))
        if name in result and np.isfinite(result[name])
    ]
    nodes, weights = _draws(result)
    square, stderr = mean_and_stderr(_parameters(result) * negative_square(nodes, weights))
    norm = square**0.5
    error = stderr / (2 * norm) if norm else 0.0  # to first order
    lines = [", ".join(sizes)] if sizes else []
    lines.append(f"norm of the negative part {_estimate(norm, error)}")
    if len(nodes) < result.sizes["draw"]:
        lines.append(f"{len(nodes)} of {result.sizes['draw']} random vectors measured")
    return ",\n".join(lines)


def resolution(shown: Sequence[xr.Dataset]) -> float:
    """Half the width of the part of the axis around zero that is about linear, for all results.

    It is how far the node nearest zero, which stands for most eigenvalues of a network, is from
    the farther of its neighbours: closer to zero the quadrature tells no eigenvalues apart. The
    median over the random vectors, of the coarsest of the results, rounded to one figure.
    """
    coarsest = 0.0
    for result in shown:
        gaps = []
        for nodes in _draws(result)[0]:
            middle = int(np.abs(nodes).argmin())
            around = np.diff(nodes[max(middle - 1, 0) : middle + 2])
            gaps.append(float(around.max()) if around.size else 0.0)
        coarsest = max(coarsest, float(np.median(gaps)))
    return float(f"{coarsest:.0e}") or 1.0


def ranked(
    result: xr.Dataset, ax: Axes, *, label: str | None = None, look: Look | None = None
) -> None:
    """Draw the size of the top eigenvalues by rank, from every end that was asked for.

    Negative ones have a dashed line of their own. A value that has not converged is hollow, and
    its residual a bar around it.

    Args:
        result: of `hessian` in the weights, with its part `eigenpairs`.
        ax: Axes without projection; call again with other results to compare them.
        label: for the legend; by default the result's name.
        look: of lines and marks; by default one that no line of `ax` has.
    """
    name = style.written(results.name(result)) if label is None else label
    look = look or following(ax)
    colour = look.colour
    for end in result["end"].values:
        rows = result.sel(end=end)
        values, converged = rows["eigenvalue"].values, rows["converged"].values == 1
        rank = np.arange(1, values.size + 1)
        for sign, style_of in ((1, "-"), (-1, "--")):
            shown = np.isfinite(values) & (np.sign(values) == sign)
            if not shown.any():
                continue
            x, y = rank[shown], np.abs(values[shown])
            ax.plot(x, y, linestyle=style_of, color=colour, linewidth=0.8)
            errors = y * rows["residual"].values[shown]
            ax.vlines(x, y - errors, y + errors, color=colour, linewidth=0.7)
            _dots(ax, x, y, converged[shown], look)
            said = "positive" if sign > 0 else "negative"
            ax.plot([], [], color="0.4", linestyle=style_of, linewidth=0.8, label=said)
    if name:
        ax.plot([], [], label=name, **look.dots(markersize=_DOT))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(
        yscale="log",
        xlabel="rank from its end of the spectrum",
        ylabel=f"|{_axis_label(result, 'eigenvalue')}".replace(" (", "| (", 1),
    )


def ranks(page: Page) -> Figure:
    """The eigenvalues of all results in the same Axes."""
    shown, columns = page.shown, page.columns
    figure = new_figure(columns, gap=0.02)
    ax = figure.add_subplot()
    width, labels = style.WIDTHS[columns], names(shown)
    for result, label, look in zip(
        shown, labels, looks(shown, dashes=False, hollow=False), strict=True
    ):
        ranked(result, ax, label=label if len(shown) > 1 else "", look=look)
    if len(shown) == 1:
        title(ax, labels[0], "", 0.8 * width, lift=0)
    legend(figure, [ax], labels)
    fit_height(figure, [ax], 1, _HEIGHT[columns])
    return figure


def _dots(ax: Axes, x: Floats, y: Floats, converged: NDArray[np.bool_], look: Look) -> list[Line2D]:
    """Filled marks, hollow where not converged."""
    drawn = []
    for which, face in ((converged, look.colour), (~converged, "white")):
        drawn += ax.plot(
            x[which], y[which], zorder=3, **look.dots(markersize=_DOT, markerfacecolor=face)
        )
    if not converged.all():
        ax.plot(
            [],
            [],
            "o",
            linestyle="",
            color="0.4",
            markerfacecolor="white",
            markersize=_DOT,
            markeredgewidth=0.6,
            label="not converged",
        )
    return drawn


def _draws(result: xr.Dataset) -> tuple[Floats, Floats]:
    """Nodes and weights, (draws, steps), of the random vectors that have been measured."""
    nodes, weights = (
        result[n].transpose("draw", "lanczos_step").values for n in ("node", "weight")
    )
    known = np.isfinite(nodes).all(axis=1)
    if not known.any():
        raise ValueError(
            f"{results.source(result)}: no random vector of the density has been measured. "
            "Measure more."
        )
    return nodes[known], weights[known]


def _eigenvalues(result: xr.Dataset) -> tuple[Floats, NDArray[np.bool_]]:
    """The finite eigenvalues from all ends, and whether each has converged; none without them."""
    if "eigenvalue" not in result:
        return np.array([]), np.array([], dtype=bool)
    values = result["eigenvalue"].values.ravel()
    known = np.isfinite(values)
    return values[known], result["converged"].values.ravel()[known] == 1


def _parameters(result: xr.Dataset) -> int:
    return int(results.provenance(result)["parameters"])


def _axis_label(result: xr.Dataset, variable: str) -> str:
    spec = results.spec(result)
    units = results.units(result[variable])
    scaled = ", relative to the weights" if spec.get("scale") == "relative" else ""
    return f"eigenvalue of the {MATRICES[spec.get('matrix', 'hessian')]}{scaled} ({units})"


def _ticks(ax: Axes, linear: float) -> None:
    """Zero and powers of ten on both sides, as many as have room."""
    low, high = place(np.array(ax.get_xlim()), linear)
    inches = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted()).width
    room = _TICK * (high - low) / inches  # decades
    powers = np.power(10.0, np.arange(-300, 300))
    powers = powers[(place(powers, linear) > room) & (place(powers, linear) < max(high, -low))]
    powers = powers[:: max(1, int(np.ceil(room)))]
    ax.xaxis.set_major_locator(FixedLocator([*-powers[::-1], 0, *powers]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(tick_text))


def _estimate(value: float, stderr: float) -> str:
    """A value and its standard error, to two figures of the error."""
    if not stderr > 0 or not np.isfinite(stderr):
        return f"{value:.4g}"
    decimals = max(0, 1 - int(np.floor(np.log10(stderr))))
    return f"{value:,.{decimals}f} \N{PLUS-MINUS SIGN} {stderr:,.{decimals}f}"


SPECTRUM = Kind(
    spectrum,
    probe="hessian",
    dimensions=1,
    arrange=spectra,
    needs=("node",),
    variables=("node",),
    settings=("matrix", "scale"),
)
EIGENVALUES = Kind(
    ranked,
    probe="hessian",
    dimensions=1,
    arrange=ranks,
    needs=("eigenvalue", "end"),
    variables=("eigenvalue",),
    settings=("matrix", "scale"),
)
