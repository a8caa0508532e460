"""ResNets with spatial attention, deformable or dynamic convolution in their last two stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Unpack, cast

from torch import nn

from checkpoints.declared import Count, enforced
from checkpoints.models import resnet
from checkpoints.models.aggregation import ScaledResidual
from checkpoints.models.family import Family
from checkpoints.models.resnet import Block, Options, ResNet
from checkpoints.models.spatial_attention import Encoding, SpatialAttention
from checkpoints.models.spatial_convolution import DeformableConvolution, DynamicConvolution

Attention = Literal["spatial", "dynamic", "none"]
_OF_SPATIAL = ("terms", "heads", "key_stride", "reach", "scaled", "encoding")


@enforced(
    dict.fromkeys(_OF_SPATIAL, ("attention", ("spatial",)))
    | dict.fromkeys(("groups", "kernel"), ("attention", ("dynamic",)))
    | {"offset_kernel": ("deformable", (True,))}
)
def spatial_resnet(
    depth: int,
    *,
    attention: Attention = "spatial",
    deformable: bool = False,
    terms: str | int = "1111",
    heads: Count = 8,
    key_stride: Count = 2,
    reach: int | None = None,
    scaled: bool = False,
    encoding: Encoding = "concatenated",
    groups: Count = 16,
    kernel: Count = 3,
    offset_kernel: Count = 1,
    **options: Unpack[Options],
) -> nn.Module:
    """A ResNet whose last two stages attend, or sample, where the content says.

    Attention and dynamic convolution stand behind the second 3x3 convolution of a block and its
    batch norm, on a residual connection whose scale begins at 0; a deformable convolution stands
    instead of that convolution, with offsets that begin at 0. So before training, and with the same
    seed, the network is the ResNet without them, exactly. (The paper's bottlenecks have one 3x3
    convolution; of a basic block's two this is the one where squeeze-and-excitation stands too.)

    Args:
        depth: see `ResNet`.
        attention: `spatial`, `dynamic` or `none`.
        deformable: whether the convolution before it is deformable.
        terms: of spatial attention, see `SpatialAttention`, as for the following five.
        heads: number of heads.
        key_stride: keys are every so many positions along each axis; 2 as in the paper's code.
        reach: how far along each axis a query sees; None: everywhere.
        scaled: divide the energies by sqrt(d).
        encoding: of positions.
        groups: of dynamic convolution, see `DynamicConvolution`.
        kernel: taps of dynamic convolution along each axis.
        offset_kernel: see `DeformableConvolution`.
        options: of `ResNet`, other than its `attention`.

    Raises:
        ValueError: an option has a value that is not allowed, or no effect on this network.

    Source: Zhu et al. 2019, arXiv:1904.05873, section 4.1.
    """
    network = ResNet(depth, **options)
    for stage in (network.stages - 1, network.stages):
        for block in network.get_submodule(f"layer{stage}").children():
            block = cast(Block, block)
            channels = block.conv2.out_channels
            if deformable:
                sampling = DeformableConvolution(channels, channels, offset_kernel=offset_kernel)
                sampling.weight = cast(nn.Parameter, block.conv2.weight)
                block.conv2 = sampling  # type: ignore[assignment]
            if attention == "spatial":
                block.attention = ScaledResidual(
                    SpatialAttention(
                        channels,
                        terms=terms,
                        heads=heads,
                        key_stride=key_stride,
                        reach=reach,
                        scaled=scaled,
                        encoding=encoding,
                    )
                )
            elif attention == "dynamic":
                block.attention = ScaledResidual(
                    DynamicConvolution(channels, groups=groups, kernel=kernel)
                )
    return network


def candidates(keys: Iterable[str]) -> list[str]:
    """None: which terms and how many heads there are does not follow from the parameters."""
    return []


_BUILDER = cast(Callable[..., nn.Module], spatial_resnet)

FAMILY = Family(
    resnet.variants("spatial", _BUILDER)
    | resnet.variants("deformable", _BUILDER, attention="none", deformable=True)
    | resnet.variants("dynamic", _BUILDER, attention="dynamic"),
    resnet.canonical_key,
    resnet.options_from,
    candidates,
)
