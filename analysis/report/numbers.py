"""Numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"
NO_BREAK = "\N{NO-BREAK SPACE}"
_SMALLEST_P = 1e-4
_WORDS = (
    *("no", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)


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
    text = form.format(*alike(ends, null=0.0))
    if compare != "log_ratio" or not math.isfinite(of.effect):
        return text
    ratios = alike([_exp(end) for end in ends], null=1.0)
    return f"{text}\n\N{MULTIPLICATION SIGN}" + form.removesuffix(", no interval").format(*ratios)


def alike(ends: Sequence[float], *, null: float) -> list[str]:
    """An effect and the ends of its interval with the same decimals.

    As many as give the interval's width two significant digits, and more where an end would round
    onto the null, which it is not. Where the ends are not finite or orders of magnitude apart,
    each to three significant digits.

    Args:
        ends: effect, low, high.
        null: the value of no effect.
    """
    effect, low, high = ends
    width = high - low
    size = max(map(abs, ends))
    if not (math.isfinite(width) and math.isfinite(effect) and width > 0) or size > 1e4 * width:
        return [number(end) for end in ends]
    if size >= 1e4:
        return [number(end) for end in ends]
    decimals = max(0, 1 - math.floor(math.log10(width)))
    while decimals < 12 and any(round(x, decimals) == null != x for x in (low, high)):
        decimals += 1
    return [f"{end:.{decimals}f}".replace("-", MINUS) for end in ends]


def times(margin: float, compare: str) -> str:
    """A smallest effect that matters, of a log ratio also as a ratio."""
    if compare != "log_ratio":
        return number(margin)
    return f"{number(margin)} (\N{MULTIPLICATION SIGN}{number(math.exp(margin))})"


def many(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def spelled(count: int) -> str:
    """A count as a word, up to twelve."""
    return _WORDS[count] if count < len(_WORDS) else f"{count:,}"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
