"""Two unpaired groups: an exact test of their means, and the interval of the difference."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from scipy import stats

from analysis.stats.arrays import Floats

EXACT = 200_000  # ways to divide up to which each is counted
DRAWS = 100_000  # random divisions beyond
_ROUNDING = 1e-12


def divisions(values: Floats, size: int, *, seed: int = 0) -> Floats:
    """The difference of means, first minus second, for every division into `size` and the rest.

    Args:
        values: (n,).
        size: of the first group, above 0 and below n.
        seed: of random divisions, where there are more than `EXACT`.

    Returns:
        (divisions,): C(n, size), or `DRAWS` random ones.

    Cost: n numbers a division.
    """
    count = len(values)
    if comb(count, size) <= EXACT:
        sums = values[np.array(list(combinations(range(count), size)))].sum(axis=1)
    else:
        generator = np.random.default_rng(seed)
        sums = np.array([generator.permutation(values)[:size].sum() for _ in range(DRAWS)])
    return np.asarray(sums / size - (values.sum() - sums) / (count - size))


def permutation(first: Floats, second: Floats, *, seed: int = 0) -> float:
    """The share of divisions into two such groups whose means differ at least as much. Two-sided.

    Exact where the groups come from one distribution; with random divisions the data count as one
    more. Ties count as at least as much.

    Args:
        first: (n,), finite.
        second: (m,), finite.
        seed: see `divisions`.

    Cost: see `divisions`.
    Source: Pitman 1937, Suppl. J. R. Stat. Soc. 4, 119-130.
    """
    values = np.concatenate([first, second])
    apart = np.abs(divisions(values, len(first), seed=seed))
    observed = abs(first.mean() - second.mean())
    tolerance = _ROUNDING * np.abs(values).sum()
    reached = int((apart >= observed - tolerance).sum())
    drawn = comb(len(values), len(first)) > EXACT
    return (reached + drawn) / (len(apart) + drawn)


def unpaired_interval(first: Floats, second: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Student's interval for the difference of two means, first minus second, of equal spread.

    Args:
        first: (n,), finite.
        second: (m,), finite; n + m at least 3, fewer give NaN.
        level: of the interval.
    """
    degrees = len(first) + len(second) - 2
    if degrees < 1:
        return float("nan"), float("nan")
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in (first, second))
    stderr = (squares / degrees * (1 / len(first) + 1 / len(second))) ** 0.5
    centre = float(first.mean() - second.mean())
    reach = float(stats.t.ppf(0.5 + level / 2, degrees)) * stderr
    return centre - reach, centre + reach
