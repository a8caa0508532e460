"""Several tests at once: p values that hold for all of them together."""

from __future__ import annotations

import numpy as np

from analysis.stats.arrays import Floats


def holm(p: Floats) -> Floats:
    """Holm's step-down adjusted p values.

    Rejecting where the adjusted p is at most alpha keeps the probability of any false rejection
    at alpha or below, however the tests depend on each other. A test that could not be made (NaN)
    counts as one of the family with p = 1, so that missing data make nobody's p smaller.

    Args:
        p: (tests,).

    Returns:
        (tests,), in the order given; NaN stays NaN.

    Source: Holm 1979, Scand. J. Stat. 6, 65-70.
    """
    order = np.argsort(p)  # NaN comes last, where it is one more test for all others
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
