"""How values become heights and colours: one linear or logarithmic scale for all panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from analysis.stats.arrays import Floats

Choice = Literal["auto", "linear", "log"]

CEILING_RATIO = 1e3  # of a logarithmic scale: values further above the smallest lie above it
LOG_RATIO = 30.0  # largest / smallest finite value above which "auto" draws a logarithmic scale
_STEPS = [1, 2, 2.5, 5, 10]
_CONSTANT = 1e-5  # a smaller relative range is drawn as one value, which tick labels can write
_DECADES = 4  # a scale over more decades writes them as powers
_DECADE_RANGE = (-307, 308)  # powers of ten that a float64 can hold
_PER_DECADE = ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
_LEVELS = 12  # about as many contours as stay apart in a panel of one column


@dataclass(frozen=True, eq=False)
class Scale:
    """Where values are drawn. The values themselves are never changed.

    Args:
        log: whether log10 of a value is drawn instead of the value.
        levels: (L,) ascending, in the unit of the variable; no finite value lies below.
        norm: colours of drawn values (`place` of a value), shared by every panel.
        over: whether finite values lie above the last level; they are drawn as such.
    """

    log: bool
    levels: Floats
    norm: Normalize
    over: bool = False

    def place(self, values: Floats) -> Floats:
        """Drawn height of each value: the value itself, or its log10."""
        return np.asarray(np.log10(values) if self.log else values)

    def text(self, place: float, position: object = None) -> str:
        """The value drawn at height `place`, as a tick or contour label writes it."""
        del position  # matplotlib hands it to every tick formatter
        low, high = self.place(self.levels[[0, -1]])
        if self.log and high - low > _DECADES and abs(place - round(place)) < 1e-9:
            return f"$10^{{{place:.0f}}}$"
        return _number(10.0**place if self.log else place)

    def ticks(self, most: int) -> Floats:
        """Drawn heights of about `most` round values within the scale."""
        low, high = self.levels[[0, -1]]
        ticks = _log_levels(low, high, most) if self.log else _linear_levels(low, high, most)
        return self.place(ticks[(ticks >= low) & (ticks <= high)])

    def note(self, values: Floats) -> str:
        """How many of `values` lie above the scale; empty where none does."""
        above = int((values > self.levels[-1]).sum())
        ceiling = float(self.place(self.levels[-1:])[0])
        return f"{above} above {self.text(ceiling)}" if above else ""

    def label(self, text: str) -> str:
        """`text`, with a word on the scale where it is logarithmic."""
        return f"{text}, log scale" if self.log else text


def finite(result: xr.Dataset, variable: str) -> Floats:
    """The finite measured values of `variable`, as one flat array."""
    measured = result["measured"]
    values = result[variable].transpose(*measured.dims).values[measured.values == 1]
    return np.asarray(values[np.isfinite(values)], dtype=float)


def shared_scale(
    results: Sequence[xr.Dataset],
    variable: str,
    choice: Choice = "auto",
    ceiling: float | None = None,
) -> Scale:
    """One scale for the finite values of `variable` in all `results`.

    Args:
        results: at least one.
        variable: such as `loss`.
        choice: "auto" is logarithmic where all values are positive and the largest is more than
            `LOG_RATIO` times the smallest.
        ceiling: about where the scale ends, for losses that explode; inf for the largest value.
            By default a logarithmic scale ends `CEILING_RATIO` above the smallest value, if any
            value lies further up.

    Raises:
        ValueError: no finite value at all, or a logarithmic scale asked for zero or less.
    """
    values = np.concatenate([finite(result, variable) for result in results])
    if not values.size:
        points = sum(int(result["measured"].sum()) for result in results)
        raise ValueError(
            f"{variable}: no finite value among {points} measured points, so there is nothing "
            "to draw. Measure more points, or a smaller extent."
        )
    low, high = float(values.min()), float(values.max())
    if choice == "log" and low <= 0:
        raise ValueError(
            f"{variable}: the smallest value is {low:g}, a logarithmic scale needs values above 0. "
            "Draw it on a linear scale."
        )
    log = choice == "log" or (choice == "auto" and low > 0 and high / low > LOG_RATIO)
    if ceiling is None:
        ceiling = CEILING_RATIO * low if log else np.inf
    if ceiling <= low:
        raise ValueError(
            f"{variable}: the smallest value is {low:g}, above the ceiling {ceiling:g}. "
            "Choose a higher one."
        )
    levels = (_log_levels if log else _linear_levels)(low, min(high, ceiling), _LEVELS)
    first, last = np.log10(levels[[0, -1]]) if log else levels[[0, -1]]
    return Scale(log, levels, Normalize(float(first), float(last)), bool(high > levels[-1]))


def _linear_levels(low: float, high: float, most: int) -> Floats:
    if high - low <= _CONSTANT * max(abs(low), abs(high)):
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    ticks = MaxNLocator(most, steps=_STEPS).tick_values(low, high)
    return _around(np.asarray(ticks, dtype=float), low, high)


def _log_levels(low: float, high: float, most: int) -> Floats:
    first = max(int(np.floor(np.log10(low))), _DECADE_RANGE[0])
    last = min(max(int(np.ceil(np.log10(high))), first + 1), _DECADE_RANGE[1])
    for steps in _PER_DECADE:
        levels = [step * 10.0**decade for decade in range(first, last) for step in steps]
        kept = _around(np.array([*levels, 10.0**last]), low, high)
        if len(kept) <= most + 1:
            return kept
    stride = -(-(last - first) // most)
    decades = np.minimum(np.arange(first, last + stride, stride), _DECADE_RANGE[1])
    return _around(np.power(10.0, np.unique(decades)), low, high)


def _around(levels: Floats, low: float, high: float) -> Floats:
    """The levels from the last one below `low` to the first one above `high`."""
    start = max(int(np.searchsorted(levels, low, side="right")) - 1, 0)
    stop = int(np.searchsorted(levels, high, side="left")) + 1
    kept = levels[start : max(stop, start + 2)].copy()
    kept[0], kept[-1] = min(kept[0], low), max(kept[-1], high)  # a rounding error is no clipping
    return kept


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{round(value, 12):.6g}".replace("-", "\N{MINUS SIGN}")
    mantissa, exponent = f"{value:.2e}".split("e")
    power = rf"10^{{{int(exponent)}}}"
    short = f"{float(mantissa):g}"
    return f"${power}$" if short == "1" else rf"${short}\times{power}$"
