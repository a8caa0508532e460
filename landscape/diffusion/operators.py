"""Attention as an averaging operator S over points with a density, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]  # (Q, D), (K, D) to f, (Q, K): small where similar

BLOCK = 2**24  # entries of a block of the kernel, 128 MiB of float64


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2, (Q, K), without cancellation for near points."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()


def propagated(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    epsilon: float,
    score: Score = squared_distance,
    log_weights: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """S V: means of the values with weights proportional to w exp(-f / (2 epsilon)).

    Args:
        queries: (Q, D).
        keys: (K, D).
        values: (K, V).
        epsilon: the bandwidth; attention as transformers have it is epsilon = 1/2.
        score: f of the paper.
        log_weights: (K,) log of each key's own weight, such as of a quadrature rule.
        mask: (Q,) the index of a key that the query does not see, itself; -1 for none.

    Returns:
        (Q, V).

    Cost: Q K exponentials, in blocks of at most `BLOCK` entries.
    """
    rows = max(1, BLOCK // max(1, len(keys)))
    parts = []
    for start in range(0, len(queries), rows):
        some = slice(start, start + rows)
        logits = score(queries[some], keys).mul_(-1 / (2 * epsilon))
        if log_weights is not None:
            logits += log_weights
        if mask is not None:
            hidden = mask[some]
            which = torch.nonzero(hidden >= 0)[:, 0]
            logits[which, hidden[which]] = -torch.inf
        parts.append(torch.softmax(logits, dim=1) @ values)
    return torch.cat(parts)


def generator(
    queries: Tensor, at_queries: Tensor, keys: Tensor, values: Tensor, epsilon: float, **how: object
) -> Tensor:
    """(2 / epsilon) (S H - H), (Q,), which converges to Delta H + 2 <grad log p, grad H>.

    Args:
        queries: (Q, D).
        at_queries: (Q,) H there.
        keys: (K, D).
        values: (K,) H there.
        epsilon: the bandwidth.
        how: further arguments of `propagated`.
    """
    mean = propagated(queries, keys, values[:, None], epsilon, **how)[:, 0]  # type: ignore[arg-type]
    return 2 / epsilon * (mean - at_queries)


def normalised(keys: Tensor, epsilon: float, alpha: float, weights: Tensor) -> Tensor:
    """Logarithm of what each key's weight is divided by in diffusion maps: alpha log q.

    q is the kernel's density estimate at the keys. alpha = 0 leaves attention; 1/2 gives the
    Fokker-Planck operator; 1 removes the density: the limit is Delta H + 2 (1 - alpha) <grad log p,
    grad H>.

    Args:
        keys: (K, D).
        epsilon: the bandwidth.
        alpha: the power.
        weights: (K,) of the keys, which sum to 1.

    Returns:
        (K,), to be subtracted from `log_weights`.

    Source: Coifman and Lafon 2006, Appl. Comput. Harmon. Anal. 21, 5-30.
    """
    if not alpha:
        return torch.zeros(len(keys), dtype=keys.dtype)
    rows = max(1, BLOCK // len(keys))
    parts = []
    for start in range(0, len(keys), rows):
        logits = squared_distance(keys[start : start + rows], keys).mul_(-1 / (2 * epsilon))
        parts.append(torch.logsumexp(logits + weights.log(), dim=1))
    return alpha * torch.cat(parts)
