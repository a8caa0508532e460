"""One look for all figures: journal widths, 8 pt text, colours fit for colour-blind readers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.colors import Colormap
from matplotlib.font_manager import findfont, get_font

WIDTHS = {1: 3.35, 2: 6.9}  # inches: one and two columns of most journals (85 and 175 mm)
TALLEST = 9.0  # inches: a page of most journals, less a caption
COLOURS = "viridis"  # even steps of lightness: reads in grey print and by colour-blind readers
OVER = "#fff6b8"  # above the scale: lighter than its last colour
NOT_FINITE = "0.55"
NOT_MEASURED = "0.92"
TEXT_SIZE, NOTE_SIZE = 8.0, 7.0  # points
ONE_ERROR = "\N{PLUS-MINUS SIGN} 1 standard error"  # of a band, in legends
TWO_ERRORS = "\N{PLUS-MINUS SIGN} 2 standard errors"  # of bars

# Okabe and Ito's palette; the line style tells the lines apart once more, for grey print. Dots are
# left to what accompanies a network's line: chords, medians, rounding errors.
LINES: list[tuple[str, Any]] = [
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", (0, (8, 1.5))),
    ("#000000", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", (0, (2, 1))),
]
MARKS = "osDv^<P*"
_CYCLE = cycler(color=[c for c, _ in LINES], linestyle=[dash for _, dash in LINES])

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": TEXT_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.labelsize": TEXT_SIZE,
    "xtick.labelsize": NOTE_SIZE,
    "ytick.labelsize": NOTE_SIZE,
    "legend.fontsize": NOTE_SIZE,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "axes.linewidth": 0.6,
    "axes.prop_cycle": _CYCLE,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.1,
    "hatch.linewidth": 0.4,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # embedded TrueType: text stays text, as journals ask
}


def colours() -> Colormap:
    """The colours of values, with one of its own for what lies above the scale."""
    return mpl.colormaps[COLOURS].with_extremes(over=OVER)


def written(text: str) -> str:
    """`text` as matplotlib writes it letter by letter: no mathematics, and no missing letters.

    A letter that the font lacks stands as its number, so that two names stay two; a line in front
    would hide the name from a legend.
    """
    there = get_font(findfont(_SETTINGS["font.family"])).get_charmap()
    letters = [c if ord(c) in there else f"\\u{ord(c):04x}" for c in text]
    hidden = "\N{HAIR SPACE}" if text.startswith("_") else ""
    return hidden + "".join(letters).replace("$", r"\$")


def context() -> AbstractContextManager[None]:
    """The style, for as long as the `with` block lasts; nothing is set globally."""
    return mpl.rc_context(_SETTINGS)
