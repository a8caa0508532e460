"""Exact tests on paired differences: by how many choices of their signs are they outdone?"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import stats

from analysis.stats.arrays import Floats

Alternative = Literal["two-sided", "greater", "less"]

EXACT = 20  # pairs up to which every choice of signs is counted
DRAWS = 100_000  # random choices beyond
_ROUNDING = 1e-12  # of the sum of absolute values: sums that differ by less are equal


def sign_flip(
    differences: Floats, alternative: Alternative = "two-sided", *, seed: int = 0
) -> Floats:
    """The probability of a sum at least as far out, were the sign of every difference a coin's.

    Where the two arms are interchangeable within each pair, this holds its level exactly, whatever
    the distribution. Ties count as at least as far out. With n pairs p is at least 2 / 2**n, one
    sided 1 / 2**n. Where a difference is infinite, signed ranks take the place of all differences
    of that set (Wilcoxon's test, as exact): an infinite one is the largest.

    Args:
        differences: (..., pairs); each row is a set of its own.
        alternative: "greater" tests for a positive centre, "less" for a negative one.
        seed: of the random signs, beyond `EXACT` pairs.

    Returns:
        (...), p. No pairs give 1.

    Raises:
        ValueError: a difference is NaN.

    Cost: 2**pairs sums a row up to `EXACT` pairs, `DRAWS` beyond, where the data count as one more
        draw, so that p is never 0.
    Source: Fisher 1935, The Design of Experiments, section 21; Phipson and Smyth 2010,
        arXiv:1603.05766 (random draws).
    """
    values = np.asarray(differences, dtype=float)
    if np.isnan(values).any():
        raise ValueError(
            f"{int(np.isnan(values).sum())} of {values.size} differences are NaN; a sign-flip test "
            "needs numbers. Compare by a statistic that every pair has, such as the median."
        )
    values = _ranked_where_infinite(-values if alternative == "less" else values)
    pairs = values.shape[-1]
    if pairs <= EXACT:
        sums = np.zeros((*values.shape[:-1], 1))
        for pair in range(pairs):
            column = values[..., pair, None]
            sums = np.concatenate([sums + column, sums - column], axis=-1)
    else:
        sums = values @ np.random.default_rng(seed).choice([-1.0, 1.0], (pairs, DRAWS))
    observed = values.sum(axis=-1, keepdims=True)
    if alternative == "two-sided":
        sums, observed = np.abs(sums), np.abs(observed)
    tolerance = _ROUNDING * np.abs(values).sum(axis=-1, keepdims=True)
    reached = (sums >= observed - tolerance).sum(axis=-1)
    if pairs <= EXACT:
        return np.asarray(reached / 2**pairs)
    return np.asarray((1 + reached) / (1 + DRAWS))


def equivalence(differences: Floats, margin: float, *, seed: int = 0) -> Floats:
    """The p of "the centre lies at -margin or below, or at +margin or above".

    Two one-sided sign-flip tests, of the differences moved by the margin either way; p is the
    larger. Exact where the differences lie symmetrically around their centre, as those of two arms
    do whose values spread alike. A small p says that no difference as large as the margin is left.

    Args:
        differences: (..., pairs).
        margin: positive; the smallest difference that matters.
        seed: see `sign_flip`.

    Returns:
        (...), p: at least 1 / 2**pairs.

    Raises:
        ValueError: a difference is NaN.

    Source: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657-680.
    """
    values = np.asarray(differences, dtype=float)
    above = sign_flip(values + margin, "greater", seed=seed)
    below = sign_flip(values - margin, "less", seed=seed)
    return np.asarray(np.maximum(above, below))


def _ranked_where_infinite(values: Floats) -> Floats:
    infinite = np.isinf(values).any(axis=-1, keepdims=True)
    if not infinite.any():
        return values
    ranks = np.sign(values) * stats.rankdata(np.abs(values), axis=-1)
    return np.asarray(np.where(infinite, ranks, values))
