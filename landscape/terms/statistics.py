"""Numbers of attention maps and of the terms of their logits; one value per example.

Maps are (N, M, Q, K) float64: examples, heads, queries (1 where a map is the same for all) and
keys. A key that a query may not attend to has the log-weight -inf.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNDERFLOW = 80.0  # in a softmax of float32, exp(-80) times the largest weight is not yet 0


def log_weights(logits: Tensor, weights: Tensor) -> Tensor:
    """The log of attention weights, also of those that are too small for their own precision.

    Args:
        logits: (N, M, Q, K), before the softmax, in any precision.
        weights: after it. A weight of 0 that the logits do not explain is a masked key.
    """
    logits = logits.double()
    below = logits.amax(dim=-1, keepdim=True) - logits
    masked = (weights == 0) & (below < UNDERFLOW)
    return logits.masked_fill(masked, -torch.inf).log_softmax(dim=-1)


def variance(energy: Tensor, log_map: Tensor) -> Tensor:
    """The variance over the keys that a query may attend to, (N, M, Q)."""
    seen = log_map > -torch.inf
    count = seen.sum(dim=-1)
    values = energy.double().expand_as(log_map).masked_fill(~seen, 0.0)
    mean = values.sum(dim=-1) / count
    squares = (values - mean[..., None]).masked_fill(~seen, 0.0).square()
    return squares.sum(dim=-1) / count


def entropy(log_map: Tensor) -> Tensor:
    """The entropy of each map in nat, mean over heads and queries, (N,)."""
    terms = log_map.exp() * log_map.masked_fill(log_map == -torch.inf, 0.0)
    return -terms.sum(dim=-1).mean(dim=(1, 2))


def removal(log_map: Tensor, energy: Tensor) -> Tensor:
    """KL(A || A without a term) in nat, mean over heads and queries, (N,).

    Without it, A is proportional to A exp(-E), so no logits are needed.
    """
    energy = energy.double().expand_as(log_map)
    return divergence(log_map, (log_map - energy).log_softmax(dim=-1)).mean(dim=(1, 2))


def divergence(log_first: Tensor, log_second: Tensor) -> Tensor:
    """KL(first || second) over the last axis in nat."""
    first = log_first.exp()
    ratio = (log_first - log_second).masked_fill(first == 0, 0.0)
    return (first * ratio).sum(dim=-1)


def jensen_shannon(log_first: Tensor, log_second: Tensor) -> Tensor:
    """The Jensen-Shannon divergence over the last axis in nat, at most log 2."""
    middle = torch.logaddexp(log_first, log_second) - math.log(2)
    return (divergence(log_first, middle) + divergence(log_second, middle)) / 2


def query_dependence(log_map: Tensor) -> Tensor:
    """Mean over queries of the divergence of a map from the mean map, (N,); 0 for a single one."""
    mean = log_map.exp().mean(dim=2, keepdim=True).log()
    return jensen_shannon(log_map, mean).mean(dim=(1, 2))


def mean_distance(log_map: Tensor, distances: Tensor) -> Tensor:
    """The distance from a query to what it attends to, mean over heads and queries, (N,).

    Args:
        log_map: (N, M, Q or 1, K).
        distances: (Q, K).
    """
    return (log_map.exp() * distances).sum(dim=-1).mean(dim=(1, 2))
