"""How many pairs of seeds would decide."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.stats.arrays import Floats

Test = Literal["sign_flip", "t"]

MOST = 1000  # pairs beyond which nobody would go


def fewest_pairs(alpha: float) -> int:
    """The smallest number of pairs whose smallest two-sided sign-flip p, 2 / 2**n, reaches `alpha`.

    Fewer cannot show a difference, however large.
    """
    return int(np.ceil(1 - np.log2(alpha) - 1e-9))


def power(
    effect: float,
    spread: float,
    pairs: ArrayLike,
    *,
    alpha: float,
    floor: float = 0.0,
    test: Test = "sign_flip",
) -> Floats:
    """The probability that a two-sided test at `alpha` finds an effect.

    For normal differences. Where nothing but equal signs of all pairs can reach alpha in a
    sign-flip test, it is the probability of that; elsewhere that of Student's t at the largest
    level that the test attains, which it follows to a few hundredths (the tests simulate it).

    Args:
        effect: mean difference.
        spread: standard deviation of the differences over pairs, above 0.
        pairs: (...), how many.
        alpha: level, after correction for several tests.
        floor: variance of the estimate that no number of pairs removes, that over samples.
        test: `sign_flip`, or Student's `t`.

    Source: noncentral t; Lehmann and Romano 2005, Testing Statistical Hypotheses, section 5.3.
    """
    n = np.asarray(pairs, dtype=float)
    choices = 2.0 ** np.minimum(n - 1, 1000)
    attained = _attained(alpha, choices, test)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = abs(effect) / np.sqrt(spread**2 / n + floor)
        critical = stats.t.isf(attained / 2, n - 1)
        # The noncentral t's own series fails far out, where every effect is found.
        near = stats.nct.sf(critical, n - 1, np.minimum(distance, 30))
        smooth = np.where(distance < 30, near, 1.0)
        same = stats.norm.cdf(effect / spread) ** n + stats.norm.cdf(-effect / spread) ** n
    few = (attained * choices < 1.5) & (test == "sign_flip")
    found = np.where(few, np.minimum(same, smooth), smooth)
    return np.asarray(np.where(attained > 0, found, 0.0))


def equivalence_power(
    effect: float,
    spread: float,
    pairs: ArrayLike,
    *,
    margin: float,
    alpha: float,
    floor: float = 0,
    test: Test = "sign_flip",
) -> Floats:
    """The probability that `equivalence` within ±`margin` is shown at `alpha`, approximately.

    Args:
        effect: see `power`.
        spread: likewise.
        pairs: likewise.
        margin: positive.
        alpha: level of each of the two one-sided tests.
        floor: see `power`.
        test: likewise.
    """
    n = np.asarray(pairs, dtype=float)
    attained = _attained(alpha, 2.0 ** np.minimum(n, 1000), test)
    stderr = np.sqrt(spread**2 / n + floor)
    with np.errstate(invalid="ignore"):
        critical = stats.t.isf(attained, n - 1)
        above = stats.norm.cdf((margin - effect) / stderr - critical)
        below = stats.norm.cdf((margin + effect) / stderr - critical)
    return np.asarray(np.where(attained > 0, np.maximum(above + below - 1, 0.0), 0.0))


def _attained(alpha: float, choices: Floats, test: Test) -> Floats:
    """The largest level below `alpha` that a test of so many choices of signs can have."""
    if test == "t":
        return np.full(choices.shape, alpha)
    return np.asarray(np.floor(alpha * choices + 1e-9) / choices)


def pairs_needed(
    effect: float,
    spread: float,
    *,
    margin: float,
    alpha: float,
    apart: float | None = None,
    wanted: float = 0.8,
    floor: float = 0.0,
    test: Test = "sign_flip",
) -> int | None:
    """The fewest pairs that decide with probability `wanted`, were effect and spread the true ones.

    Decide: find the difference, or show that it is smaller than the margin, whichever takes fewer.
    The effect is the observed one, itself uncertain where this is asked: an order of magnitude.

    Args:
        effect: mean difference over pairs.
        spread: their standard deviation.
        margin: the smallest difference that matters; 0 where only the difference decides.
        alpha: level after correction for several tests, of either decision.
        apart: how far the effect is from the one that the test for a difference is about; None:
            from 0. If it is 0, only equivalence decides.
        wanted: probability.
        floor: see `power`.
        test: likewise.

    Returns:
        A number of pairs, or None where not even `MOST` would do; where `floor` is large, more
        samples would.
    """
    pairs = np.arange(2, MOST + 1)
    if spread == 0 and floor == 0:
        return fewest_pairs(alpha)
    either = np.maximum(
        power(
            effect if apart is None else apart,
            max(spread, 1e-300),
            pairs,
            alpha=alpha,
            floor=floor,
            test=test,
        ),
        equivalence_power(
            effect, spread, pairs, margin=margin, alpha=alpha, floor=floor, test=test
        ),
    )
    enough = np.flatnonzero(either >= wanted)
    return int(pairs[enough[0]]) if enough.size else None
