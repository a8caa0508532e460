"""Squeeze-and-excitation channel attention (Hu et al. 2018, arXiv:1709.01507)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from checkpoints.hooks import Exposed


class SqueezeExcitation(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x))), with the mean over the positions of each channel.

    Args:
        channels: C.
        reduction: C is squeezed to C / reduction channels, but at least 4.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(4, channels // reduction)
        self.squeeze = nn.Linear(channels, squeezed, bias=False)
        self.excite = nn.Linear(squeezed, channels, bias=False)
        self.before, self.gate = Exposed(), Exposed()

    def forward(self, features: Tensor) -> Tensor:
        """Scale the channels of (N, C, H, W) by the gate, (N, C), in (0, 1)."""
        features = self.before(features)
        pooled = features.mean(dim=(2, 3))
        gate: Tensor = self.gate(torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled)))))
        return features * gate[:, :, None, None]
