"""Student's t on paired differences, for pairs too few for an exact test to reach its level."""

from __future__ import annotations

import numpy as np

from analysis.stats.arrays import Floats


def t_test(differences: Floats, null: float = 0.0) -> Floats:
    """The two-sided p of "the mean is `null`", for differences that are normal over pairs.

    Args:
        differences: (..., pairs), finite; each row is a set of its own.
        null: the mean that is tested.

    Returns:
        (...), p. One pair, or several that do not differ at all, tell no spread and so give NaN.

    Source: Student 1908, Biometrika 6, 1-25.
    """
    return np.asarray(2 * np.minimum(*_tails(differences, null)))


def t_equivalence(differences: Floats, margin: float) -> Floats:
    """The p of "the mean lies at -margin or below, or at +margin or above".

    Two one-sided tests; p is the larger. A small p says that no mean as large as the margin is
    left.

    Args:
        differences: see `t_test`.
        margin: positive; the smallest mean that matters.

    Source: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657-680.
    """
    above, below = _tails(differences, -margin)[0], _tails(differences, margin)[1]
    return np.asarray(np.maximum(above, below))


def t_reach(differences: Floats, level: float = 0.95) -> Floats:
    """Half the width of the interval for the mean, (...); NaN for a single pair.

    Args:
        differences: see `t_test`.
        level: of the interval.
    """
    from scipy import stats  # late: a second, and measuring a study needs the names alone

    pairs = differences.shape[-1]
    if pairs < 2:
        return np.full(differences.shape[:-1], np.nan)
    quantile = stats.t.ppf(0.5 + level / 2, pairs - 1)
    return np.asarray(quantile * differences.std(axis=-1, ddof=1) / pairs**0.5)


def _tails(differences: Floats, null: float) -> tuple[Floats, Floats]:
    """The probabilities of a mean at least as high, and at least as low, were it `null`."""
    from scipy import stats

    pairs = differences.shape[-1]
    if pairs < 2:
        unknown = np.full(differences.shape[:-1], np.nan)
        return unknown, unknown
    spread = differences.std(axis=-1, ddof=1)
    # Equal differences have a spread of a few rounding errors, or of none.
    known = spread > 1e-12 * np.abs(differences).max(axis=-1)
    distance = (differences.mean(axis=-1) - null) * pairs**0.5 / np.where(known, spread, np.nan)
    return stats.t.sf(distance, pairs - 1), stats.t.cdf(distance, pairs - 1)
