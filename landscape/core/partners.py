"""Another example for each example, to compare it with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def partners(count: int, seed: int | Sequence[int]) -> NDArray[np.int64]:
    """Each example's successor in a random circle of all: each is one partner, none its own.

    Args:
        count: number of examples; a single one is alone in its circle.
        seed: of the circle.

    Returns:
        (count,) numbers of examples.
    """
    order = np.random.default_rng(seed).permutation(count)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, -1)
    return partner
