"""Squeeze-and-excitation channel attention (Hu et al. 2018, arXiv:1709.01507)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x))), with the mean over the positions of each channel.

    Args:
        channels: C.
        reduction: C is squeezed to C / reduction, but to no fewer than 4.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(4, channels // reduction)
        self.squeeze = nn.Linear(channels, squeezed, bias=False)
        self.excite = nn.Linear(squeezed, channels, bias=False)

    def gate(self, features: Tensor) -> Tensor:
        """The attention of each channel, in (0, 1): (N, C) from (N, C, H, W)."""
        pooled = features.mean(dim=(2, 3))
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))

    def forward(self, features: Tensor) -> Tensor:
        """Scale the channels of (N, C, H, W)."""
        return features * self.gate(features)[:, :, None, None]
