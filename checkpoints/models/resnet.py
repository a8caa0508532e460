"""The ResNet family for small images, which merges branch and shortcut by a sum or a product."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any, Literal, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints.declared import Count, enforced
from checkpoints.models.family import Family
from checkpoints.models.gate import Applied
from checkpoints.models.merge import MERGES

# The product that trains best and most stably here; docs/models.md has the measurements.
DEFAULT_PRODUCT = "bn_product_mean1"

ATTENTION_PLACES = {
    "none": "torch.nn:Identity",
    "se": "checkpoints.models.se:SqueezeExcitation",
    "eca": "checkpoints.models.eca:EfficientChannelAttention",
    "cbam": "checkpoints.models.cbam:CBAM",
    "nam": "checkpoints.models.nam:NormalizationAttention",
}
ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    name: resolve_name(place) for name, place in ATTENTION_PLACES.items()
}
GATES = [name for name in ATTENTIONS if name != "none"]

# Blocks per stage of the four-stage networks; all other depths are 6n+2, in three stages.
FOUR_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class Options(TypedDict, total=False):
    """The options of a ResNet that those built of it pass on; see `ResNet`."""

    width: Count
    classes: Count
    channels: Count
    shortcut: Literal["A", "B"]
    merge: str


class PaddingShortcut(nn.Module):
    """Shortcut option A: take every second pixel and pad with zero channels. No parameters.

    Half of the new channels come before and half after the old ones, as in published networks with
    option A.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        thinned = features[:, :, :: self.stride, :: self.stride]
        return functional.pad(thinned, (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, merged, then a ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        shortcut: str,
        merge: str,
        attention: str,
        apply: Applied = "multiply",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.attention = ATTENTIONS[attention](outputs, apply=apply)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            if shortcut == "A":
                self.downsample = PaddingShortcut(inputs, outputs, stride)
            else:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )
        self.merge = MERGES[merge](outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        hidden = self.bn1(self.conv1(features))
        residual = self.attention(self.bn2(self.conv2(torch.relu(hidden))))
        factors: tuple[Tensor, ...] = (residual, self.downsample(features))
        if self.merge.reads_hidden:
            factors += (hidden,)
        return torch.relu(self.merge(*factors))


class ResNet(nn.Module):
    """A residual network of basic blocks with a 3x3 stem, for images of about 28 to 64 pixels.

    Args:
        depth: 6n+2 (8, 14, 20, 32, 44, 56, 110 …) for the three-stage networks of He et al. 2016,
            section 4.2; 18 or 34 for the four-stage ones, without their 7x7 stem and pooling.
        width: channels of the first stage; each further stage doubles them.
        classes: number of classes.
        channels: number of image channels.
        shortcut: if the shape changes, A pads with zeros, B is a 1x1 convolution with BN.
        merge: how branch and shortcut are merged, one of `merge.MERGES`.
        attention: attention of the branch before the merge, one of `ATTENTIONS`.
        apply: how a gate acts on the features, see `Gate`.

    Raises:
        ValueError: an option has a value that is not allowed.
    """

    @enforced({"apply": ("attention", GATES)})
    def __init__(
        self,
        depth: int = 20,
        *,
        width: Count = 16,
        classes: Count = 10,
        channels: Count = 3,
        shortcut: Literal["A", "B"] = "B",
        merge: str = "add",
        attention: str = "none",
        apply: Applied = "multiply",
    ) -> None:
        super().__init__()
        if depth not in FOUR_STAGES and (depth < 8 or (depth - 2) % 6):
            raise ValueError(
                f"ResNet: depth={depth}; expected 18, 34, or 6n+2 such as 8, 14, 20, 32, 44, 56."
            )
        known: dict[str, tuple[str, Iterable[str]]] = {
            "merge": (merge, MERGES),
            "attention": (attention, ATTENTIONS),
        }
        for option, (value, names) in known.items():
            if value not in names:
                raise ValueError(f"ResNet: {option}={value!r}; expected one of {', '.join(names)}.")
        blocks = FOUR_STAGES.get(depth) or ((depth - 2) // 6,) * 3
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        planes = width
        for stage, count in enumerate(blocks):
            stride = 1 if stage == 0 else 2
            outputs = width * 2**stage
            layer = nn.Sequential()
            for index in range(count):
                step = 1 if index else stride
                layer.append(Block(planes, outputs, step, shortcut, merge, attention, apply))
                planes = outputs
            self.add_module(f"layer{stage + 1}", layer)
        self.stages = len(blocks)
        self.fc = nn.Linear(planes, classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, channels, H, W)."""
        features = torch.relu(self.bn1(self.conv1(images)))
        for stage in range(self.stages):
            features = self.get_submodule(f"layer{stage + 1}")(features)
        return cast(Tensor, self.fc(features.mean(dim=(2, 3))))


def initialize(network: nn.Module) -> None:
    """Draw the weights of all 2-D convolutions, scaled by their outputs (He et al. 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def canonical_key(key: str) -> str:
    """Map a parameter's name in other ResNet code to its name here.

    Others call the last layer `linear` instead of `fc`, and the projection `shortcut` instead of
    `downsample`.
    """
    if key.startswith("linear."):
        key = "fc." + key.removeprefix("linear.")
    return key.replace(".shortcut.", ".downsample.")


def options_from(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Width, classes, channels and shortcut from a state dict's shapes; None if not a ResNet."""
    stem, head = shapes.get("conv1.weight"), shapes.get("fc.weight")
    if stem is None or head is None or len(stem) != 4 or len(head) != 2:
        return None
    projected = any(".downsample." in key for key in shapes)
    return {
        "width": stem[0],
        "channels": stem[1],
        "classes": head[0],
        "shortcut": "B" if projected else "A",
    }


def candidates(keys: Iterable[str], names: Iterable[str] | None = None) -> list[str]:
    """The names (by default in `ARCHITECTURES`) with as many blocks as a state dict's keys."""
    blocks = {tuple(key.split(".")[:2]) for key in keys if key.startswith("layer")}
    names = ARCHITECTURES if names is None else names
    return [name for name in names if name.endswith(f"net{2 * len(blocks) + 2}")]


def _named(prefix: str, **options: Any) -> dict[str, Callable[..., nn.Module]]:
    three: dict[str, Callable[..., nn.Module]] = {
        f"{prefix}{depth}": partial(ResNet, depth, **options)
        for depth in (8, 14, 20, 26, 32, 44, 56, 110)
    }
    four: dict[str, Callable[..., nn.Module]] = {
        f"{prefix}{depth}": partial(ResNet, depth, **({"width": 64} | options))
        for depth in FOUR_STAGES
    }
    return three | four


def variants(
    prefix: str, builder: Callable[..., nn.Module], **options: Any
) -> dict[str, Callable[..., nn.Module]]:
    """A builder called as the plain ResNets' is: one for each depth, of the same width.

    Args:
        prefix: of the names, before `_resnet20`.
        builder: takes the depth, and the options of `ResNet`.
        options: further ones of the builder.
    """
    plain = cast("dict[str, partial[nn.Module]]", _named("resnet"))
    return {
        f"{prefix}_{name}": partial(builder, *each.args, **each.keywords, **options)
        for name, each in plain.items()
    }


ARCHITECTURES = _named("resnet") | _named("fmmnet", merge=DEFAULT_PRODUCT)
for _gate in GATES:
    ARCHITECTURES |= variants(_gate, ResNet, attention=_gate)

FAMILY = Family(ARCHITECTURES, canonical_key, options_from, candidates)
