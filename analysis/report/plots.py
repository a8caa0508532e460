"""Figures and interactive surfaces as a web page holds them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from analysis import results
from analysis.figures import FIGURES, draw, fitting, style
from analysis.figures.grid import Grid
from analysis.figures.scale import finite, shared_scale
from analysis.report import words

_LARGEST_SVG = 600_000  # bytes; with more marks a PNG is smaller and draws sooner
# At an axis that turns a letter can be read; its label in words stands above the surfaces.
_SYMBOLS = {"alpha": "\N{GREEK SMALL LETTER ALPHA}", "beta": "\N{GREEK SMALL LETTER BETA}"}
_ROOM = 0.04  # of its height, above its top
_DIGITS = 5  # of a height: finer than a screen


@dataclass(frozen=True)
class Drawing:
    """One figure with what is said of it.

    Args:
        name: of its file, such as `near.radii`.
        caption: below it.
        alt: the same for those who cannot see it, with its numbers.
        figure: one column of a journal wide, so that its text can be read on a phone too.
    """

    name: str
    caption: str
    alt: str
    figure: Figure

    @cached_property
    def uri(self) -> str:
        """The figure itself as a `data:` address, SVG or PNG. The same figure, the same bytes."""
        with style.context(), mpl.rc_context({"svg.hashsalt": self.name}):
            vector = io.BytesIO()
            self.figure.savefig(vector, format="svg", metadata={"Date": None})
            if len(vector.getvalue()) <= _LARGEST_SVG:
                return _uri("image/svg+xml", vector.getvalue())
            pixels = io.BytesIO()
            self.figure.savefig(pixels, format="png")
        return _uri("image/png", pixels.getvalue())


@dataclass(frozen=True)
class Surfaces:
    """Surfaces that turn together by mouse, finger or button.

    Args:
        name: of the group, unique on the page.
        axes: what its axes are, in a line.
        alts: of each surface, a text for those who cannot see it.
        content: what `surfaces.js` draws.
    """

    name: str
    axes: str
    alts: Sequence[str]
    content: dict[str, Any]


def drawings(shown: Sequence[xr.Dataset], name: str, what: str) -> tuple[list[Drawing], list[str]]:
    """Every kind of figure that fits these results, all of them in each.

    Args:
        shown: results of one probe with the same settings.
        name: head of the figures' names.
        what: which measurement this is, for the caption.

    Returns:
        The figures, and a line for each that cannot be drawn, or not of all results.
    """
    made, complaints = [], []
    try:
        kinds = fitting(shown)
    except ValueError as error:
        return [], [str(error)]
    for kind in kinds:
        figure, drawn, complaint = _drawn(shown, kind)
        complaints += [complaint] if complaint else []
        if figure is None:
            continue
        text = f"{what}. {words.drawn(kind)}. One network of each arm."
        if len(drawn) < len(shown):
            text += f" Only {', '.join(results.names(drawn))} can be drawn."
        alt = f"{text} {_ranges(drawn, FIGURES[kind].variables)}".strip()
        made.append(Drawing(f"{name}.{kind}", text, alt, figure))
    return made, complaints


def _drawn(
    shown: Sequence[xr.Dataset], kind: str
) -> tuple[Figure | None, Sequence[xr.Dataset], str]:
    """The figure of all results, else of those that can be drawn, and what was left out."""
    try:
        return draw(shown, kind=kind), shown, ""
    except ValueError as error:
        complaint = str(error)
    alone = []
    for result in shown:
        try:
            draw(result, kind=kind)
        except ValueError:
            continue
        alone.append(result)
    if not alone or len(alone) == len(shown):
        return None, [], complaint
    return draw(alone, kind=kind), alone, complaint


def turning(shown: Sequence[xr.Dataset], labels: Sequence[str], name: str) -> Surfaces:
    """Surfaces on one scale, that of the figures.

    What lies above the scale is drawn at its top; the label under the pointer has the true value.

    Args:
        shown: surfaces on planes, of any grids.
        labels: name of each.
        name: of the group, unique on the page.

    Raises:
        ValueError: no finite value.
    """
    scale = shared_scale(shown, "loss")
    floor, top = (float(x) for x in scale.place(scale.levels[[0, -1]]))
    panels = []
    for result, label in zip(shown, labels, strict=True):
        grid = Grid.of(result, "loss")
        heights = np.full(grid.values.shape, np.nan)
        heights[grid.known] = np.minimum(scale.place(grid.values[grid.known]), top)
        above = int((finite(result, "loss") > scale.levels[-1]).sum())
        astray = int(grid.diverged.sum())
        panels.append(
            {
                "label": label,
                "x": grid.x.tolist(),
                "y": grid.y.tolist(),
                "z": [[_finite(value) for value in row] for row in heights],
                "text": [[f"{value:.4g}" for value in row] for row in grid.values],
                "note": "; ".join(
                    [f"{above} of {grid.values.size} points above the scale"] * bool(above)
                    + [f"{astray} not finite: holes"] * bool(astray)
                ),
            }
        )
    across, up = shown[0]["measured"].dims
    ticks = scale.ticks(5)
    content = {
        "panels": panels,
        "range": [floor, top],
        "room": _ROOM * (top - floor),
        "ticks": ticks.tolist(),
        "ticktext": [_tick(scale.text(float(tick))) for tick in ticks],
        "x": _SYMBOLS.get(str(across), str(across)),
        "y": _SYMBOLS.get(str(up), str(up)),
    }
    axes = (
        f"Height: {scale.label(results.axis_label(shown[0]['loss']))}. "
        f"{content['x']}: {results.grid_label(shown[0], across)}. "
        f"{content['y']}: {results.grid_label(shown[0], up)}."
    )
    alts = [
        f"Interactive surface of {label}. {_ranges([result], ['loss'])}"
        for result, label in zip(shown, labels, strict=True)
    ]
    return Surfaces(name, axes, alts, content)


def _ranges(shown: Sequence[xr.Dataset], variables: Sequence[str]) -> str:
    """Smallest, median and largest finite value of each variable of each result."""
    parts = []
    for variable in variables:
        for result, name in zip(shown, results.names(shown), strict=True):
            if variable not in result:
                continue
            values = result[variable].values.astype(float)
            values = values[np.isfinite(values)]
            if values.size:
                low, middle, high = np.quantile(values, (0, 0.5, 1), method="inverted_cdf")
                about = str(result[variable].attrs.get("long_name", variable))
                parts.append(f"{name}, {about}: {low:.3g} to {high:.3g}, median {middle:.3g}.")
    return " ".join(parts)


def _tick(text: str) -> str:
    """A tick label of matplotlib's mathematics in Plotly's: `$10^{3}$` becomes 10<sup>3</sup>."""
    return text.replace("$", "").replace("^{", "<sup>").replace("}", "</sup>")


def _finite(value: float) -> float | None:
    return round(float(value), _DIGITS) if np.isfinite(value) else None


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
