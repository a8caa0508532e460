"""Squeeze-and-excitation channel attention (Hu et al. 2018, arXiv:1709.01507)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from checkpoints.models.gate import Applied, Gate, squeezed


class SqueezeExcitation(Gate):
    """x * sigmoid(W2 relu(W1 mean(x))), with the mean over the positions of each channel.

    Parameters: 2 C squeezed, which is 2 C² / reduction from C = 4 reduction on.

    Args:
        channels: C.
        reduction: C is squeezed to C / reduction channels, but at least 4.
        apply: see `Gate`.
    """

    def __init__(self, channels: int, reduction: int = 16, *, apply: Applied = "multiply") -> None:
        super().__init__(channels, apply)
        hidden = squeezed(channels, reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.excite = nn.Linear(hidden, channels, bias=False)

    def weights(self, features: Tensor) -> Tensor:
        """The gate, (N, C), in (0, 1)."""
        pooled = features.mean(dim=(2, 3))
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))
