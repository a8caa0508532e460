"""Efficient channel attention (Wang et al. 2020, arXiv:1910.03151)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from checkpoints.models.gate import Applied, Gate


class EfficientChannelAttention(Gate):
    """x * sigmoid(conv1d(mean(x))): each channel's weight depends on its neighbours' means alone.

    The convolution runs over the channels, which have zeros beyond their ends.

    Parameters: `kernel_size(C)`.

    Args:
        channels: C.
        apply: see `Gate`.
    """

    def __init__(self, channels: int, *, apply: Applied = "multiply") -> None:
        super().__init__(channels, apply)
        kernel = kernel_size(channels)
        self.mix = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def weights(self, features: Tensor) -> Tensor:
        """The gate, (N, C), in (0, 1)."""
        pooled = features.mean(dim=(2, 3))
        return torch.sigmoid(self.mix(pooled[:, None])[:, 0])


def kernel_size(channels: int) -> int:
    """How many neighbouring channels are seen: the odd number next to (log2 C + 1) / 2.

    Below, if the integer part is odd, else above. Of 4 to 7 channels it is 1: a channel's weight
    depends on its own mean.

    Source: equation 12 with gamma = 2 and b = 1, and for "next to" the authors' code.
    """
    size = int((math.log2(channels) + 1) / 2)
    return size if size % 2 else size + 1
