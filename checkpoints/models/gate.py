"""A gate: weights that are computed from a feature map, and multiply it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from checkpoints.hooks import Exposed


class Gate(nn.Module, ABC):
    """Features times their weights.

    The map before the product and the weights are the inner values `before` and `gate`; the product
    has the name of the module itself (`checkpoints.hooks`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.before, self.gate = Exposed(), Exposed()

    @abstractmethod
    def weights(self, features: Tensor) -> Tensor:
        """The gate of features (N, C, H, W): (N, C), or a map (N, C or 1, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        """The same shape as `features`, (N, C, H, W)."""
        features = self.before(features)
        gate = self.gate(self.weights(features))
        result: Tensor = features * (gate if gate.ndim == 4 else gate[:, :, None, None])
        return result


def squeezed(channels: int, reduction: int) -> int:
    """Width of the hidden layer of a gate: C / reduction, but at least 4."""
    return max(4, channels // reduction)
