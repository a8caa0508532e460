"""Attention scores: f(x, y), small where y matters to x; attention is softmax(-f / (2 epsilon)).

Plug-ins of one interface, after the table of Ruan & Zhang 2024 (arXiv:2412.18288). Each takes
queries and keys (N, tokens, C) and gives f, (N, heads, Q, K); the channels are shared out to heads.
Attention as transformers have it is `query_key` with epsilon = 1/2, or sqrt(d) / 2 where the
energies are divided by sqrt(d).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints.hooks import Exposed


class Score(nn.Module, ABC):
    """A score of tokens.

    Args:
        width: C.
        heads: they divide the width.

    Raises:
        ValueError: they do not.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads}; expected a divisor of {width}, the width.")
        self.width, self.heads = width, heads

    @abstractmethod
    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """F of (N, Q, C) and (N, K, C), as (N, heads, Q, K)."""

    def split(self, tokens: Tensor) -> Tensor:
        """(N, T, C) to (N, heads, T, C / heads)."""
        examples, count, _ = tokens.shape
        return tokens.reshape(examples, count, self.heads, -1).transpose(1, 2)

    def _projection(self) -> nn.Linear:
        return nn.Linear(self.width, self.width, bias=False)


class Dot(Score):
    """-x·y, without parameters."""

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See `Score.forward`."""
        return -self.split(queries) @ self.split(keys).mT


class QueryKey(Score):
    """-(W_q x)·(W_k y): not symmetric, and so no distance."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.query, self.key = self._projection(), self._projection()

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See `Score.forward`."""
        return -self.split(self.query(queries)) @ self.split(self.key(keys)).mT


class L2(Score):
    """|W x - W y|^2, or |W_q x - W_k y|^2 where the two are not tied (Kim et al. 2021)."""

    def __init__(self, width: int, heads: int, *, tied: bool = True) -> None:
        super().__init__(width, heads)
        self.query = self._projection()
        self.key = self.query if tied else self._projection()

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See `Score.forward`."""
        return squared_distance(self.split(self.query(queries)), self.split(self.key(keys)))


class Metric(Score):
    """|g(x) - g(y)|^2 with g(x) = x + V tanh(U x + b): metric-attention, Algorithm 1.

    One map for queries and keys, on all channels; its output is shared out to heads.

    Args:
        width: C.
        heads: of the score.
        hidden: rows of U; by default as many as channels.
    """

    def __init__(self, width: int, heads: int, hidden: int | None = None) -> None:
        super().__init__(width, heads)
        self.inner = nn.Linear(width, hidden or width)
        self.outer = nn.Linear(hidden or width, width, bias=False)

    def embedded(self, tokens: Tensor) -> Tensor:
        """G of tokens (N, T, C)."""
        result: Tensor = tokens + self.outer(self.inner(tokens).tanh())
        return result

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See `Score.forward`."""
        return squared_distance(self.split(self.embedded(queries)), self.split(self.embedded(keys)))


class Gat(Score):
    """-leaky_relu(a·P x + b·P y), of graph attention networks (Velickovic et al. 2018)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.projection = self._projection()
        limit = (width // heads) ** -0.5
        self.of_query, self.of_key = (
            nn.Parameter(torch.empty(heads, 1, width // heads).uniform_(-limit, limit))
            for _ in range(2)
        )

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See `Score.forward`."""
        x, y = self.split(self.projection(queries)), self.split(self.projection(keys))
        of_x, of_y = (x * self.of_query).sum(dim=-1), (y * self.of_key).sum(dim=-1)
        return -functional.leaky_relu(of_x[..., :, None] + of_y[..., None, :], 0.2)


class L2Untied(L2):
    """`L2` with a projection each for queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, tied=False)


SCORES: dict[str, type[Score]] = {
    "query_key": QueryKey,
    "dot": Dot,
    "l2": L2,
    "l2_untied": L2Untied,
    "metric": Metric,
    "gat": Gat,
}


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 over the last axis, (..., Q, K); by products, which any derivative exists of.

    Rounding leaves a few units in the last place of |x|^2 + |y|^2.
    """
    squares = x.square().sum(dim=-1)[..., :, None] + y.square().sum(dim=-1)[..., None, :]
    return squares - 2 * x @ y.mT


class Attention(nn.Module):
    """Means of values with weights softmax(-f / (2 epsilon)) over the keys.

    Args:
        width: C.
        heads: of score and values.
        score: a name in `SCORES`.
        epsilon: the bandwidth, above 0.

    Raises:
        ValueError: no such score, heads that do not divide the width, an epsilon of 0 or less.

    Cost: of N examples of T tokens N T^2 C multiplications twice, and the memory of N heads T^2
    weights.
    """

    def __init__(self, width: int, heads: int, score: str, epsilon: float) -> None:
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score={score}; expected one of {', '.join(SCORES)}.")
        if not epsilon > 0:
            raise ValueError(f"epsilon={epsilon}; expected a number above 0.")
        self.score, self.epsilon = SCORES[score](width, heads), epsilon
        self.value, self.combine = nn.Linear(width, width), nn.Linear(width, width)
        self.weights = Exposed()

    def forward(self, tokens: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(N, T, C) to the same.

        Args:
            tokens: (N, T, C).
            allowed: bool, to broadcast to (N, heads, T, T): which keys a query sees, at least one.
        """
        logits = -self.score(tokens, tokens) / (2 * self.epsilon)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        weights = self.weights(logits.softmax(dim=-1))
        mixed = weights @ self.score.split(self.value(tokens))
        result: Tensor = self.combine(mixed.transpose(1, 2).flatten(2))
        return result
