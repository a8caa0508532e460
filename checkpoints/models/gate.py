"""A gate: weights computed from a feature map, which multiply it or are applied otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from checkpoints.hooks import Exposed

# How a gate g acts on features x: g x; x + g; a 1x1 convolution of [x; g]; E[g] x.
Applied = Literal["multiply", "add", "concat", "mean"]


class Gate(nn.Module, ABC):
    """Features times their weights, or what a study puts in the place of that product.

    The map and the weights are the inner values `before` and `gate`; the result has the name of the
    module itself (`checkpoints.hooks`).

    Of the controls, `add` and `concat` keep that the weights depend on the image, and take the
    product away. `mean` keeps the product, and takes the dependence away: what multiplies, and is
    handed out as `gate`, is the mean of the weights over the examples (and over the positions, if
    they differ there), of the batch in training and the running mean in evaluation. So in
    evaluation a network is a function of one example, and does not depend on the parameters from
    which the weights are computed: derivatives in them are zero.

    Parameters: with `concat` C (C + W) more, C those of the features and W of the gate; else none.

    Args:
        channels: C.
        apply: how the weights act on the features, one of `Applied`.
        weighing: channels of the weights, C or 1.

    Raises:
        ValueError: `apply` has another value.
    """

    def __init__(self, channels: int, apply: Applied, weighing: int | None = None) -> None:
        super().__init__()
        if apply not in get_args(Applied):
            known = ", ".join(get_args(Applied))
            raise ValueError(f"apply={apply!r}; expected one of {known}.")
        self.applied = apply
        self.before, self.gate = Exposed(), Exposed()
        weighing = weighing or channels
        if apply == "concat":
            self.joined = nn.Conv2d(channels + weighing, channels, 1, bias=False)
        elif apply == "mean":
            # A batch norm keeps the running mean, so that whatever moves or recomputes the
            # statistics of a network treats this one too.
            self.statistics = nn.BatchNorm2d(weighing, affine=False)

    @abstractmethod
    def weights(self, features: Tensor) -> Tensor:
        """The gate of features (N, C, H, W): (N, C), or a map (N, C or 1, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        """The same shape as `features`, (N, C, H, W)."""
        features = self.before(features)
        weights = self.weights(features)
        gate = self.gate(self._mean(weights) if self.applied == "mean" else weights)
        wide = gate if gate.ndim == 4 else gate[:, :, None, None]
        if self.applied == "add":
            result: Tensor = features + wide
        elif self.applied == "concat":
            size = (-1, -1, *features.shape[2:])
            result = self.joined(torch.cat([features, wide.expand(size)], dim=1))
        else:
            result = features * wide
        return result

    def _mean(self, weights: Tensor) -> Tensor:
        """The mean weights, in the shape of the weights."""
        wide = weights if weights.ndim == 4 else weights[:, :, None, None]
        if self.statistics.training:
            self.statistics(wide.detach())
            mean = wide.mean(dim=(0, 2, 3))
        else:
            mean = cast(Tensor, self.statistics.running_mean)
        return mean[:, None, None].expand_as(wide).reshape(weights.shape)


def squeezed(channels: int, reduction: int) -> int:
    """Width of the hidden layer of a gate: C / reduction, but at least 4."""
    return max(4, channels // reduction)
