"""Averages within a seed, comparisons of two arms, and the interval over seeds and samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.stats.arrays import Floats

Compare = Literal["log_ratio", "difference"]

DRAWS = 1000  # of samples; the standard error over samples is then known to about 2 %
_AT_ONCE = 2**21  # values, to bound memory


@dataclass(frozen=True)
class Average:
    """One number for many samples: `after(centre(before(values)))`.

    Args:
        words: as a sentence names it.
        centre: from (..., samples) to (...).
        before: of each value, once.
        after: of the centre.
        defined: which finite values it is defined for; None takes all, infinity and NaN as well.
    """

    words: str
    centre: Callable[[Floats], Floats]
    before: Callable[[Floats], Floats] = np.asarray
    after: Callable[[Floats], Floats] = np.asarray
    defined: Callable[[Floats], NDArray[np.bool_]] | None = np.isfinite


def _mean(values: Floats) -> Floats:
    return np.asarray(values.mean(axis=-1))


def _median(values: Floats) -> Floats:
    """NaN counts as the largest, like infinity."""
    return np.asarray(np.median(np.where(np.isnan(values), np.inf, values), axis=-1))


# The only list of them: study files, verdicts and messages go by it.
AVERAGES = {
    "mean": Average("mean", _mean),
    "log_mean": Average("mean of logarithms", _mean, np.log, np.exp, lambda values: values > 0),
    "median": Average("median", _median, defined=None),
}


@dataclass(frozen=True)
class Interval:
    """An effect with its confidence interval.

    Args:
        effect: mean over pairs; their median where one is infinite.
        low, high: of the interval; NaN for a single pair.
        seeds: (pairs,), the effect in each.
        variance: of the estimate: that over seeds and that over samples.
    """

    effect: float
    low: float
    high: float
    seeds: Floats
    variance: tuple[float, float]


def average(values: Floats, how: str) -> Floats:
    """One number for the last axis.

    Args:
        values: (..., samples), for which the average is defined.
        how: a name in `AVERAGES`; `log_mean` is the geometric mean.
    """
    chosen = AVERAGES[how]
    return chosen.after(chosen.centre(chosen.before(values)))


def compare(treatment: Floats, baseline: Floats, how: Compare) -> Floats:
    """The effect of each pair: log(treatment / baseline), or treatment - baseline.

    A ratio with zero is infinite. What cannot be known is NaN: the ratio of two zeros, that of a
    negative number, and the effect where both are infinite alike.

    Args:
        treatment: of any shape.
        baseline: of the same.
        how: which.
    """
    return combined([treatment, baseline], (1.0, -1.0), how)


def combined(arms: Sequence[Floats], weights: Sequence[float], how: Compare) -> Floats:
    """The weighted sum over arms of what each pair has, or of its logarithm; see `compare`.

    Args:
        arms: (arms, ...).
        weights: (arms,), none of them 0.
        how: `log_ratio` or `difference`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        values = [np.asarray(arm, dtype=float) for arm in arms]
        parts = [np.log(value) for value in values] if how == "log_ratio" else values
        total = weights[0] * parts[0]
        for weight, part in zip(weights[1:], parts[1:], strict=True):
            total = total + weight * part
        return np.asarray(total)


def interval(
    arms: Sequence[Floats],
    weights: Sequence[float] = (1.0, -1.0),
    *,
    average_by: str,
    compare_by: Compare,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The effect and a hierarchical bootstrap interval: seeds, and samples within them.

    Samples are averaged within each seed first, arms compared pair by pair, effects averaged over
    pairs (with more than two arms a pair is a network of each). All networks see the same images,
    so seeds and samples are crossed, and each level is resampled on its own: pairs of seeds as
    pairs, which for a mean over pairs needs no drawing (the variance is s²/n, with n - 1 in s²);
    samples in common, the same draw in all arms and
    all seeds. Resampling samples separately in each seed would count an image that is odd in every
    network as so many independent ones, and the interval would be too narrow. The two variances
    add; what is peculiar to a seed and a sample together is counted in both, which errs on the
    wide side. The interval is Student's with Satterthwaite's degrees of freedom: a percentile
    interval of 8 pairs is about a fifth too short.

    Where an effect is infinite, the interval runs from one order statistic of the pairs to
    another, that of the sign test, and holds for their median; below 6 pairs it is unbounded.

    Args:
        arms: (pairs, samples) each, the same samples everywhere; one sample where there is but one
            number a network, and then the interval is that over seeds.
        weights: of the arms in the effect: treatment and baseline, if nothing is said.
        average_by: within a seed.
        compare_by: arm with arm.
        level: of the interval.
        draws: of samples.
        seed: of the draws.

    Raises:
        ValueError: shapes differ, or no pairs.

    Cost: arms * draws * pairs * samples values gathered.
    Source: Owen 2007, arXiv:0712.1111 (crossed levels are resampled each on its own); Satterthwaite
        1946, Biometrics Bulletin 2, 110-114.
    """
    shapes = [arm.shape for arm in arms]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2 or not arms[0].size:
        raise ValueError(
            f"arms are {', '.join(map(str, shapes))}; expected (pairs, samples), the same samples "
            "in all."
        )
    pairs, samples = shapes[0]
    effects = combined([average(arm, average_by) for arm in arms], weights, compare_by)
    unknown = (float("nan"), float("nan"))
    if not np.isfinite(effects).all():
        low, high = order_interval(effects, level)
        return Interval(float(np.median(effects)), low, high, effects, unknown)
    effect = float(effects.mean())
    over_seeds = float(effects.var(ddof=1)) / pairs if pairs > 1 else float("nan")
    over_samples = 0.0
    if samples > 1:
        drawn = _resampled(arms, weights, average_by, compare_by, draws, seed)
        if not np.isfinite(drawn).all():
            return Interval(effect, *order_interval(effects, level), effects, unknown)
        over_samples = float(drawn.var(ddof=1)) * samples / (samples - 1)
    variance = over_seeds + over_samples
    if pairs == 1 or variance == 0:
        reach = variance  # NaN or nothing
    else:
        parts = over_seeds**2 / (pairs - 1) + over_samples**2 / max(samples - 1, 1)
        from scipy import stats  # late: a second, and measuring a study needs the names alone

        reach = float(stats.t.ppf(0.5 + level / 2, variance**2 / parts)) * variance**0.5
    return Interval(effect, effect - reach, effect + reach, effects, (over_seeds, over_samples))


def order_interval(effects: Floats, level: float = 0.95) -> tuple[float, float]:
    """The sign test's interval for the median: at least `level`, whatever the distribution.

    Args:
        effects: (pairs,), infinite ones among them; NaN makes it NaN.
        level: of the interval. With fewer than 6 pairs 0.95 cannot be had: it is unbounded.
    """
    if np.isnan(effects).any():
        return float("nan"), float("nan")
    from scipy import stats

    ranked, pairs = np.sort(effects), len(effects)
    outside = int(stats.binom.ppf((1 - level) / 2, pairs, 0.5))
    if outside == 0:
        return -np.inf, np.inf
    return float(ranked[outside - 1]), float(ranked[pairs - outside])


def _resampled(
    arms: Sequence[Floats],
    weights: Sequence[float],
    average_by: str,
    compare_by: Compare,
    draws: int,
    seed: int,
) -> Floats:
    """(draws,) mean effects, each of other samples."""
    pairs, samples = arms[0].shape
    chosen = AVERAGES[average_by]
    arms = [chosen.before(arm) for arm in arms]  # once, not for every draw
    generator = np.random.default_rng(seed)
    drawn = []
    block = max(1, _AT_ONCE // (pairs * samples))
    for start in range(0, draws, block):
        picks = generator.integers(samples, size=(min(block, draws - start), samples))
        seedwise = [chosen.after(chosen.centre(arm[:, picks])) for arm in arms]
        drawn.append(combined(seedwise, weights, compare_by).mean(axis=0))
    return np.concatenate(drawn)
