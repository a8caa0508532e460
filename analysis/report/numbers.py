"""Numbers as a reader wants them."""

from __future__ import annotations

import math
from typing import Protocol

MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"
_SMALLEST_P = 1e-4


class Effect(Protocol):
    """What has an effect and its interval."""

    @property
    def effect(self) -> float:
        """The effect."""

    @property
    def low(self) -> float:
        """Lower end of its interval."""

    @property
    def high(self) -> float:
        """Upper end."""


def number(value: float, digits: int = 3) -> str:
    """A value to `digits` significant digits; a dash where there is none."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else f"{MINUS}\N{INFINITY}"
    return f"{value:.{digits}g}".replace("-", MINUS)


def p_value(value: float) -> str:
    """A probability to two significant digits."""
    if math.isnan(value):
        return NONE
    return f"{value:.2g}" if value >= _SMALLEST_P else f"< {_SMALLEST_P:.4f}"


def interval(of: Effect, compare: str) -> str:
    """An effect and its interval; of a log ratio, in a second line the ratio itself."""
    ends = [of.effect, of.low, of.high]
    form = "{}, no interval" if math.isnan(of.low) else "{} [{}, {}]"
    text = form.format(*map(number, ends))
    if compare != "log_ratio" or not math.isfinite(of.effect):
        return text
    ratios = [number(_exp(end), 2) for end in ends]
    return f"{text}\n\N{MULTIPLICATION SIGN}" + form.removesuffix(", no interval").format(*ratios)


def times(margin: float, compare: str) -> str:
    """A smallest effect that matters, of a log ratio also as a ratio."""
    if compare != "log_ratio":
        return number(margin)
    return f"{number(margin)} (\N{MULTIPLICATION SIGN}{number(math.exp(margin))})"


def many(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
