"""Figures and interactive surfaces as a web page holds them."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from analysis import results
from analysis.figures import FIGURES, draw, fitting, style
from analysis.figures.grid import Grid
from analysis.figures.scale import finite, shared_scale

_LARGEST_SVG = 600_000  # bytes; with more marks a PNG is smaller and draws sooner
# Beside an axis that turns a letter is read; its label in words stands above.
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

    def html(self, kind: str = "") -> str:
        """The figure with its caption, for a class of the style sheet."""
        alt, caption = html.escape(self.alt, quote=True), html.escape(self.caption)
        return (
            f'<figure{f" class={kind!r}" if kind else ""}>\n<img src="{self.uri}" alt="{alt}">\n'
            f"<figcaption>{caption}</figcaption>\n</figure>\n"
        )


def drawings(shown: Sequence[xr.Dataset], name: str, what: str) -> tuple[list[Drawing], list[str]]:
    """Every kind of figure that fits these results, all of them in each.

    Args:
        shown: results of one probe with the same settings.
        name: head of the figures' names.
        what: which networks these are, for the caption.

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
        text = f"{described(kind)} {what}"
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


def described(kind: str) -> str:
    """What a kind of figure draws, from its own documentation."""
    first = (FIGURES[kind].marks.__doc__ or kind).splitlines()[0].removeprefix("Draw ")
    return first[0].upper() + first[1:]


def turning(shown: Sequence[xr.Dataset], labels: Sequence[str], name: str) -> str:
    """Surfaces that turn together by mouse, finger or button.

    They have one scale, that of the figures: what lies above it is drawn at its top, and the
    label under the pointer tells the true value.

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
    axes = f"Height: {html.escape(scale.label(results.axis_label(shown[0]['loss'])))}. " + "".join(
        f"{content[key]}: {html.escape(label)}. "
        for key, label in (
            ("x", results.grid_label(shown[0], across)),
            ("y", results.grid_label(shown[0], up)),
        )
    )
    data = json.dumps(content, separators=(",", ":")).replace("</", "<\\/")
    boxes = "".join(
        f'<div class="panel"><h4>{html.escape(str(panel["label"]))}</h4>'
        f'<div class="plot" id="{name}-{at}" role="img" aria-label="'
        f"{html.escape(_surface_alt(result, str(panel['label'])), quote=True)}"
        f'"></div><p class="note">{html.escape(str(panel["note"]))}</p></div>\n'
        for at, (panel, result) in enumerate(zip(panels, shown, strict=True))
    )
    turns = (("left", "\N{LEFTWARDS ARROW}"), ("right", "\N{RIGHTWARDS ARROW}"),
             ("up", "\N{UPWARDS ARROW}"), ("down", "\N{DOWNWARDS ARROW}"))  # fmt: skip
    buttons = "".join(
        f'<button type="button" data-turn="{way}" aria-label="turn {way}">{arrow}</button>'
        for way, arrow in turns
    )
    return (
        f'<div class="surfaces" id="{name}">\n'
        "<p>Turn either by mouse or finger: the other turns with it. By keyboard: "
        f'<span class="buttons">{buttons}'
        '<button type="button" data-turn="reset">reset</button></span></p>\n'
        f'<p class="note">{axes}</p>\n<div class="pair">\n{boxes}</div>\n'
        f'<script type="application/json">{data}</script>\n</div>\n'
    )


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


def _surface_alt(result: xr.Dataset, label: str) -> str:
    return f"Interactive surface of {label}. {_ranges([result], ['loss'])}"


def _tick(text: str) -> str:
    """A tick label of matplotlib's mathematics as HTML: `$10^{3}$` becomes 10<sup>3</sup>."""
    return text.replace("$", "").replace("^{", "<sup>").replace("}", "</sup>")


def _finite(value: float) -> float | None:
    return round(float(value), _DIGITS) if np.isfinite(value) else None


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
