"""ResNets that select between kernels of two sizes (Li et al. 2019, arXiv:1903.06586)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Unpack, cast

import torch
from torch import Tensor, nn

from checkpoints.declared import Count, enforced
from checkpoints.models import resnet
from checkpoints.models.family import Family
from checkpoints.models.gate import Applied, Gate
from checkpoints.models.resnet import Block, Options, ResNet, initialize

BRANCHES = 2


class Selection(Gate):
    """Every branch's channels times their softmax over the branches.

    The gate's units are the channels of all branches, those of the first branch first: unit m C + c
    is the share of branch m in channel c. The shares of a channel sum to 1, so the gate says which
    branch a channel is taken from, not which channel matters.

    Parameters: 3 C d + 2 d with two branches.

    Args:
        channels: C, of one branch.
        reduction: the hidden layer has d = C / reduction units, but at least `least`.
        least: see `reduction`.
        apply: see `Gate`. The shares of a channel sum to 1, so `add` adds only that 1.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        least: int = 32,
        *,
        apply: Applied = "multiply",
    ) -> None:
        super().__init__(BRANCHES * channels, apply)
        hidden = max(least, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.excite = nn.Linear(hidden, BRANCHES * channels, bias=False)

    def weights(self, features: Tensor) -> Tensor:
        """The gate of the branches' maps (N, 2 C, H, W): (N, 2 C), in (0, 1)."""
        pooled = per_branch(features).sum(dim=1).mean(dim=(2, 3))
        logits = self.excite(torch.relu(self.norm(self.squeeze(pooled))))
        return per_branch(logits).softmax(dim=1).flatten(1)


class SelectiveKernel(nn.Module):
    """A 3x3 convolution and one dilated to 5x5, each with batch norm and ReLU, and their mixture.

    Args:
        inputs: channels of the features.
        outputs: C, of the result.
        stride: of the convolutions.
        groups: of the convolutions.
        apply: of the selection, see `Selection`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        groups: int = 1,
        *,
        apply: Applied = "multiply",
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for dilation in range(1, BRANCHES + 1):
            conv = nn.Conv2d(
                inputs, outputs, 3, stride, dilation, dilation=dilation, groups=groups, bias=False
            )
            self.branches.append(nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU()))
        self.select = Selection(outputs, apply=apply)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride), not negative."""
        maps = self.select(torch.cat([branch(features) for branch in self.branches], dim=1))
        return per_branch(maps).sum(dim=1)


def per_branch(values: Tensor) -> Tensor:
    """(N, branches C, ...) to (N, branches, C, ...)."""
    return values.reshape(len(values), BRANCHES, -1, *values.shape[2:])


@enforced()
def sk_resnet(
    depth: int, *, groups: Count = 1, apply: Applied = "multiply", **options: Unpack[Options]
) -> nn.Module:
    """A ResNet that selects between kernels in the first convolution of every block.

    The unit stands instead of that convolution, its batch norm and its ReLU, so that another
    convolution follows, as in the paper's bottlenecks (which have one 3x3 convolution, and 32
    groups).

    Args:
        depth: see `ResNet`.
        groups: of the unit's convolutions. With 2 its two branches have as many weights as the one
            convolution that they replace.
        apply: of the selection, see `Selection`.
        options: of `ResNet`.

    Raises:
        ValueError: an option has a value that is not allowed.
    """
    network = ResNet(depth, **options)
    for block in network.modules():
        if isinstance(block, Block):
            conv = block.conv1
            if conv.in_channels % groups or conv.out_channels % groups:
                raise ValueError(
                    f"sk_resnet: groups={groups}; expected a divisor of {conv.in_channels} "
                    "channels, the width."
                )
            unit = SelectiveKernel(
                conv.in_channels, conv.out_channels, conv.stride[0], groups, apply=apply
            )
            initialize(unit)
            block.conv1 = unit  # type: ignore[assignment]
            block.bn1 = nn.Identity()  # type: ignore[assignment]
    return network


BUILDERS = resnet.variants("sk", cast(Callable[..., nn.Module], sk_resnet))


def candidates(keys: Iterable[str]) -> list[str]:
    """The names in `BUILDERS` with as many blocks as there are in a state dict's keys."""
    return resnet.candidates(keys, BUILDERS)


FAMILY = Family(BUILDERS, resnet.canonical_key, resnet.options_from, candidates)
