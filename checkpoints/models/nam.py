"""Normalisation-based attention (Liu et al. 2021, arXiv:2111.12419)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from checkpoints.models.gate import Applied, Gate


class NormalizationAttention(Gate):
    """x * sigmoid(w BN(x)), w = |gamma| / sum |gamma| with the batch norm's weights gamma.

    The gate has a value per channel and position. This is the paper's channel attention, which is
    all that its code applies; there the weights w take part in no gradient, while here
    the derivatives are those of the formula. The paper's penalty on |gamma| belongs to training
    and is not applied.

    Parameters: 2 C.

    Args:
        channels: C.
        apply: see `Gate`.
    """

    def __init__(self, channels: int, *, apply: Applied = "multiply") -> None:
        super().__init__(channels, apply)
        self.norm = nn.BatchNorm2d(channels)

    def weights(self, features: Tensor) -> Tensor:
        """The gate, (N, C, H, W), in (0, 1); NaN if all gamma are 0."""
        sizes = self.norm.weight.abs()
        return torch.sigmoid((sizes / sizes.sum())[:, None, None] * self.norm(features))
