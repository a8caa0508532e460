"""The temperature at which a network's confidence fits its accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RANGE = (1e-3, 1e3)


def fit(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature T that minimises the mean cross-entropy of logits / T.

    T changes no prediction, only the confidence. The loss is convex in 1 / T, so the root of its
    derivative, mean(sum_c p_c z_c - z_label), is the only minimum.

    Args:
        logits: (N, classes).
        labels: (N,).

    Raises:
        ValueError: there is no minimum between T = 0.001 and 1,000: all examples are classified
            correctly, so the loss keeps falling as T goes to 0, or the network does worse than
            chance.

    Source: Guo et al. 2017, section 4.2, arXiv:1706.04599.
    """
    from scipy.optimize import brentq  # late: a second, and few commands fit a temperature
    from scipy.special import softmax

    true = logits[np.arange(len(labels)), labels]
    # Subtracting a constant per row changes nothing; the mean keeps the products small.
    logits, true = logits - logits.mean(axis=1, keepdims=True), true - logits.mean(axis=1)

    def slope(inverse: float) -> float:
        return float(((softmax(inverse * logits, axis=1) * logits).sum(axis=1) - true).mean())

    low, high = 1 / RANGE[1], 1 / RANGE[0]
    if not slope(low) < 0 < slope(high):
        raise ValueError(
            f"no temperature between {RANGE[0]} and {RANGE[1]} fits these {len(labels)} held-out "
            "examples; expected some classified correctly, and some not. Hold out more of them "
            "(a smaller --examples), or pass a number."
        )
    return 1 / float(brentq(slope, low, high, xtol=1e-12, rtol=1e-12))
