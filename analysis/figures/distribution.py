"""Empirical distributions on a logarithmic axis, and its ticks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

_FEW_DECADES = 30  # largest over smallest value of an axis that has ticks at 2 and 5 as well


def steps(ax: Axes, values: NDArray[np.float64], **look: Any) -> Line2D:
    """Draw an empirical distribution function on a log axis: every value is a step of the line.

    Nothing is smoothed, and the tail shows as it is. Values that are not positive, infinite or NaN
    have no place on the axis; they count all the same, so that the line begins above 0 or ends
    below 1 where there are any.
    """
    ordered = np.sort(values)
    share = np.arange(1, ordered.size + 1) / max(ordered.size, 1)
    shown = np.isfinite(ordered) & (ordered > 0)
    (line,) = ax.step(ordered[shown], share[shown], where="post", **look)
    ax.set(xscale="log", ylim=(0, 1))
    few_ticks(ax.xaxis, *ax.get_xlim())
    return line


def few_ticks(axis: Axis, low: float, high: float) -> None:
    """Decades, or 1, 2 and 5 of each where there are few; written out where that is short."""
    narrow = high < _FEW_DECADES * low
    if high < 3 * low:  # no two of 1, 2 and 5 may lie between
        axis.set_major_locator(MaxNLocator(3))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=4))
    axis.set_major_formatter(FuncFormatter(tick_text))
    axis.set_minor_formatter(NullFormatter())
    if not narrow:
        axis.set_minor_locator(NullLocator())


def tick_text(value: float, position: object = None) -> str:
    """A number of either sign to three digits, with a power of ten where it is long."""
    del position  # matplotlib hands it to every tick formatter
    size = abs(value)
    if size == 0 or 0.01 <= size < 1000 or not np.isfinite(size):
        text = f"{size:g}"
    else:
        digits, exponent = f"{size:.2e}".split("e")
        power = rf"10^{{{int(exponent)}}}"
        short = f"{float(digits):g}"
        text = f"${power}$" if short == "1" else rf"${short}\times{power}$"
    return f"\N{MINUS SIGN}{text}" if value < 0 else text
