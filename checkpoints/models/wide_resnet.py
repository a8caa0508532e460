"""Pre-activation wide ResNets, whose blocks end in a merge: the networks of the author's code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from checkpoints.declared import Count, enforced
from checkpoints.models.family import Family
from checkpoints.models.merge import MERGES

# The product with the best accuracy in the author's table (and not by much, nor above addition).
DEFAULT_PRODUCT = "bn_sigmoid_shortcut"


class PreactivationBlock(nn.Module):
    """Batch norm, ReLU and convolution, twice, merged with the block's input; nothing after it."""

    def __init__(self, inputs: int, outputs: int, stride: int, merge: str, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Conv2d(inputs, outputs, 1, stride)
        self.merge = MERGES[merge](outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        hidden = self.bn2(self.dropout(self.conv1(torch.relu(self.bn1(features)))))
        factors: tuple[Tensor, ...] = (self.conv2(torch.relu(hidden)), self.downsample(features))
        if self.merge.reads_hidden:
            step = self.conv2.stride[0]
            factors += (hidden[:, :, ::step, ::step],)
        return cast(Tensor, self.merge(*factors))


class WideResNet(nn.Module):
    """A pre-activation ResNet of three stages, `width` times as wide as the usual 16, 32, 64.

    As in the code of Ye et al.'s first author: convolutions have a bias, projections no batch
    norm, and the last batch norm's running statistics forget with a momentum of 0.9.

    Args:
        depth: 6n+4: 10, 16, 22, 28, 40 …
        width: the widening factor.
        classes: number of classes.
        channels: number of image channels.
        merge: how branch and shortcut are merged, one of `merge.MERGES`. `bn_add` is the author's
            control; `add` that of Zagoruyko and Komodakis.
        dropout: the probability of dropping an output of a block's first convolution while
            training; 0.3 in the author's recipe.

    Raises:
        ValueError: an option has a value that is not allowed.

    Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146; Ye et al. 2021, arXiv:2106.15067.
    """

    @enforced()
    def __init__(
        self,
        depth: int = 16,
        *,
        width: Count = 2,
        classes: Count = 10,
        channels: Count = 3,
        merge: str = "bn_add",
        dropout: Annotated[float, ("at least", 0), ("below", 1)] = 0.0,
    ) -> None:
        super().__init__()
        merges = f"add, bn_add, {DEFAULT_PRODUCT}"
        allowed = {
            "depth": (depth, "6n+4 such as 10, 16, 22, 28, 40", depth >= 10 and depth % 6 == 4),
            "merge": (merge, f"{merges} or another of docs/models.md", merge in MERGES),
        }
        for option, (value, expected, fits) in allowed.items():
            if not fits:
                raise ValueError(f"WideResNet: {option}={value!r}; expected {expected}.")
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        planes = 16
        for stage in (1, 2, 3):
            layer = nn.Sequential()
            outputs = 16 * width * 2 ** (stage - 1)
            for index in range((depth - 4) // 6):
                stride = 2 if stage > 1 and index == 0 else 1
                layer.append(PreactivationBlock(planes, outputs, stride, merge, dropout))
                planes = outputs
            self.add_module(f"layer{stage}", layer)
        self.bn1 = nn.BatchNorm2d(planes, momentum=0.9)
        self.fc = nn.Linear(planes, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, gain=2**0.5)
                nn.init.zeros_(cast(Tensor, module.bias))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, channels, H, W)."""
        features = self.conv1(images)
        for stage in (1, 2, 3):
            features = self.get_submodule(f"layer{stage}")(features)
        features = torch.relu(self.bn1(features))
        return cast(Tensor, self.fc(features.mean(dim=(2, 3))))


def canonical_key(key: str) -> str:
    """Map a parameter's name in the author's code, and in what it builds on, to its name here."""
    if key.startswith("linear."):
        key = "fc." + key.removeprefix("linear.")
    for theirs, ours in (
        (".shortcut.0.", ".downsample."),
        (".bn.", ".merge.norm_residual."),
        (".bn_s.", ".merge.norm_shortcut."),
    ):
        key = key.replace(theirs, ours)
    return key


def _norms(keys: Iterable[str]) -> tuple[bool, bool]:
    """Whether the merges have a batch norm of R, and one of S."""
    names = list(keys)
    first, second = (
        any(f".merge.norm_{factor}." in name for name in names)
        for factor in ("residual", "shortcut")
    )
    return first, second


def options_from(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Classes, channels and merge from a state dict's shapes; None if it is no such network.

    The width is in the names. With two norms the merge remains unknown: several products have them.
    """
    stem, head = shapes.get("conv1.weight"), shapes.get("fc.weight")
    if stem is None or head is None or len(stem) != 4 or len(head) != 2:
        return None
    merges = {(False, False): "add", (True, False): "bn_add", (False, True): "bn_sigmoid_residual"}
    merge = merges.get(_norms(shapes))
    return {"channels": stem[1], "classes": head[0]} | ({"merge": merge} if merge else {})


def candidates(keys: Iterable[str]) -> list[str]:
    """The names with as many blocks as a state dict has, of its kind of merge; see `options_from`.

    None where there are two norms: which product it is does not follow from the parameters.
    """
    names = list(keys)
    blocks = {tuple(key.split(".")[:2]) for key in names if key.startswith("layer")}
    of_residual, of_shortcut = _norms(names)
    if of_residual and of_shortcut:
        return []
    start = f"{'fmm_' if of_shortcut else ''}wrn{2 * len(blocks) + 4}_"
    return [name for name in ARCHITECTURES if name.startswith(start)]


# (depth, width), the smallest first.
SIZES: list[tuple[int, int]] = [(10, 1), (10, 2), (16, 1), (16, 2), (16, 4), (16, 8), (16, 10)]
SIZES += [(22, 2), (28, 2), (28, 10), (40, 1), (40, 2), (40, 4)]


def _named(prefix: str, **options: Any) -> dict[str, Callable[..., nn.Module]]:
    return {
        f"{prefix}wrn{depth}_{width}": partial(WideResNet, depth=depth, width=width, **options)
        for depth, width in SIZES
    }


ARCHITECTURES = _named("") | _named("fmm_", merge=DEFAULT_PRODUCT)

FAMILY = Family(ARCHITECTURES, canonical_key, options_from, candidates)
