"""The convolutional block attention module (Woo et al. 2018, arXiv:1807.06521)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from checkpoints.models.gate import Applied, Gate, squeezed


class ChannelGate(Gate):
    """x * sigmoid(MLP(mean(x)) + MLP(max(x))), both over the positions of each channel.

    MLP(v) = W2 relu(W1 v + b1) + b2, the same for both. The biases are those of the authors' code,
    and of their parameter counts; the paper's formula has none.

    Parameters: (2 C + 1) squeezed + C.

    Args:
        channels: C.
        reduction: the hidden layer has C / reduction units, but at least 4.
        apply: see `Gate`.
    """

    def __init__(self, channels: int, reduction: int = 16, *, apply: Applied = "multiply") -> None:
        super().__init__(channels, apply)
        hidden = squeezed(channels, reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def weights(self, features: Tensor) -> Tensor:
        """The gate, (N, C), in (0, 1)."""
        pooled = torch.stack([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))).sum(dim=1))


class SpatialGate(Gate):
    """x * sigmoid(BN(conv([mean(x); max(x)]))), both over the channels of each position.

    The batch norm is that of the authors' code; the paper's formula has none.

    Parameters: 2 kernel² + 2.

    Args:
        channels: C.
        kernel: side of the convolution.
        apply: see `Gate`.
    """

    def __init__(self, channels: int, kernel: int = 7, *, apply: Applied = "multiply") -> None:
        super().__init__(channels, apply, weighing=1)
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def weights(self, features: Tensor) -> Tensor:
        """The gate, (N, 1, H, W), in (0, 1)."""
        pooled = torch.stack([features.mean(dim=1), features.amax(dim=1)], dim=1)
        return torch.sigmoid(self.norm(self.conv(pooled)))


class CBAM(nn.Module):
    """The channel gate, then the spatial gate of what it returns.

    Args:
        channels: C.
        apply: of both gates, see `Gate`.
    """

    def __init__(self, channels: int, *, apply: Applied = "multiply") -> None:
        super().__init__()
        self.channel = ChannelGate(channels, apply=apply)
        self.spatial = SpatialGate(channels, apply=apply)

    def forward(self, features: Tensor) -> Tensor:
        """The same shape as `features`, (N, C, H, W)."""
        result: Tensor = self.spatial(self.channel(features))
        return result
