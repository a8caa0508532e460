"""Spatial aggregation: y_q = sum_m W_m [sum_k A_m(q, k) W'_m x_k], over heads m and keys k.

Attention and regular, deformable and dynamic convolution differ in the weights A, and in what the
two projections are (Zhu et al. 2019, arXiv:1904.05873, section 3). Images and sequences are taken
alike: features are (N, C, *sizes) with one or two axes of positions, and inside (N, positions, C).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Aggregation(nn.Module, ABC):
    """Weights for every pair of query and key, a projection before the sum, and one after it.

    Subclasses whose weights are sparse override `forward` by something cheaper with the same
    result.
    """

    @abstractmethod
    def weights_of(self, queries: Tensor, keys: Tensor) -> Tensor:
        """A, (N, M, Q, K), of features; an axis along which A does not vary may have size 1."""

    @abstractmethod
    def values_of(self, keys: Tensor) -> Tensor:
        """W'_m x_k, (N, M, K, D), of features; the axis of heads may have size 1."""

    @abstractmethod
    def combined(self, heads: Tensor) -> Tensor:
        """The sum of W_m over heads (N, M, Q, D), as (N, Q, C)."""

    def sizes(self, queries: Tensor) -> Sequence[int]:
        """The axes of positions of the result."""
        return queries.shape[2:]

    def forward(self, queries: Tensor, keys: Tensor | None = None) -> Tensor:
        """The formula as it stands.

        Args:
            queries: (N, C, *sizes).
            keys: features of another set; by default the queries themselves.

        Returns:
            (N, C', *sizes of the result).

        Cost: at most N M Q K (D + 1) multiplications; if A is the same for all queries, its axis
        of queries has size 1, and the cost is N M K (D + 1).
        """
        keys = queries if keys is None else keys
        return self.aggregated(self.weights_of(queries, keys), keys, self.sizes(queries))

    def aggregated(self, weights: Tensor, keys: Tensor, sizes: Sequence[int]) -> Tensor:
        """Features (N, C', *sizes) of given weights."""
        result = self.combined(weights @ self.values_of(keys)).mT
        result = result.expand(-1, -1, math.prod(sizes))
        return result.reshape(*result.shape[:2], *sizes)


class ScaledResidual(nn.Module):
    """x + scale * branch(x), with a trained scale that begins at 0: at first, the identity."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """The same shape as `features`."""
        result: Tensor = features + self.scale * self.branch(features)
        return result


def tokens(features: Tensor) -> Tensor:
    """(N, C, *sizes) to (N, positions, C), the last axis of positions fastest."""
    return features.flatten(2).mT


def grid(sizes: Sequence[int], like: Tensor, stride: int = 1) -> Tensor:
    """The coordinates of all positions, (positions, axes), in the order of `tokens`."""
    axes = [torch.arange(size, dtype=like.dtype, device=like.device) * stride for size in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
