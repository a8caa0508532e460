"""How a block merges its residual branch R and its shortcut S: by addition, or by a product.

Every variant is a module called as `merge(residual, shortcut)`. The tensors that it multiplies or
adds are inner values (`checkpoints.hooks`): `merge.factors.residual`, `merge.factors.shortcut`.
Names and formulas follow Ye et al. 2021 (arXiv:2106.15067) and its first author's public code and
table of variants. R is the end of the branch: the output of its last batch norm in a `ResNet`, of
its last convolution in a `WideResNet`, as in that code; BN is a batch norm of the merge's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from checkpoints.hooks import Exposed


class Merge(nn.Module):
    """Base class of all variants.

    Args:
        names: names of the two tensors that it multiplies or adds: `residual`, `shortcut`, `gate`.

    Attributes:
        reads_hidden: whether it is called with a third argument, the branch's hidden (N, C, H, W)
            before the last ReLU.
    """

    reads_hidden: ClassVar[bool] = False

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.factors = nn.ModuleDict(
            {name: Exposed() for name in names or ("residual", "shortcut")}
        )

    def exposed(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The factors, (N, C, H, W) each, unchanged, as inner values."""
        return tuple(f(value) for f, value in zip(self.factors.values(), values, strict=True))


class Add(Merge):
    """R + S: the residual network of He et al. 2016."""

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.exposed(residual, shortcut)
        return first + second


class Product(Merge):
    """R * S, without norms or other changes to the factors."""

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.exposed(residual, shortcut)
        return first * second


def batch_norm(
    channels: int, *, bias: float = 0.0, weight: float = 1.0, clamped: bool = False
) -> nn.BatchNorm2d:
    """A batch norm of chosen initial parameters.

    Args:
        channels: C.
        bias: initial bias.
        weight: initial weight.
        clamped: keep the bias as it is: a buffer of the same name, which files contain, and which
            neither training nor a probe that moves the weights changes.
    """
    norm = nn.BatchNorm2d(channels)
    nn.init.constant_(norm.weight, weight)
    nn.init.constant_(norm.bias, bias)
    if clamped:
        value = norm.bias.detach().clone()
        del norm.bias
        norm.register_buffer("bias", value)
    return norm


class NormalizedAdd(Merge):
    """BN(R) + S."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_residual = batch_norm(channels)

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.exposed(self.norm_residual(residual), shortcut)
        return first + second


class NormalizedProduct(Merge):
    """BN(R) * BN(S).

    Args:
        channels: C.
        mean: initial value of both batch-norm biases. With 1 each factor has mean 1, the neutral
            element of the product.
        residual_scale: initial batch-norm weight of R; below 1, R starts near `mean`.
        clamped: keep the biases at `mean` instead of training them.
    """

    def __init__(
        self, channels: int, *, mean: float, residual_scale: float = 1.0, clamped: bool = False
    ) -> None:
        super().__init__()
        self.norm_residual = batch_norm(channels, bias=mean, weight=residual_scale, clamped=clamped)
        self.norm_shortcut = batch_norm(channels, bias=mean, clamped=clamped)

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.exposed(self.norm_residual(residual), self.norm_shortcut(shortcut))
        return first * second


class MaskedProduct(Merge):
    """A product of which one factor is a mask, a bounded function of the branch or the shortcut.

    The mask and what it multiplies are the inner values `gate` and `before` too, so that
    `landscape.attention` knows which is which.

    Args:
        of: which of the two becomes the mask, function(·) + offset.
        offset: with which the mask has a mean of about 1.
        function: smooth and bounded.
        norm_residual: a batch norm of R before anything else; None for none.
        norm_shortcut: likewise of S.
    """

    def __init__(
        self,
        of: Literal["residual", "shortcut"],
        offset: float,
        function: Callable[[Tensor], Tensor] = torch.sigmoid,
        norm_residual: nn.Module | None = None,
        norm_shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.of, self.offset, self.function = of, offset, function
        self.norm_residual = norm_residual or nn.Identity()
        self.norm_shortcut = norm_shortcut or nn.Identity()
        self.before, self.gate = Exposed(), Exposed()

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.norm_residual(residual), self.norm_shortcut(shortcut)
        if self.of == "residual":
            mask, features = self.exposed(self.function(first) + self.offset, second)
        else:
            features, mask = self.exposed(first, self.function(second) + self.offset)
        gate, before = self.gate(mask), self.before(features)
        return cast(Tensor, gate * before)


class SigmoidBoth(Merge):
    """sigmoid(BN(R)) * sigmoid(BN(S)). Without the norms it does not train well."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_residual = batch_norm(channels)
        self.norm_shortcut = batch_norm(channels)

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.exposed(
            torch.sigmoid(self.norm_residual(residual)), torch.sigmoid(self.norm_shortcut(shortcut))
        )
        return first * second


class Masked(nn.Module):
    """A mask times features; the two are the inner values `gate` and `before`."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.gate = Exposed(), Exposed()

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Multiply two (N, C, H, W)."""
        return cast(Tensor, self.before(features) * self.gate(mask))


class GatedAdd(Merge):
    """R * sigmoid(G h) + S: a product inside the branch, followed by addition.

    `h` is the branch's hidden feature map before its ReLU, and G a 1x1 convolution, so the branch
    attends to itself. The block passes `h` as a third argument.
    """

    reads_hidden = True

    def __init__(self, channels: int) -> None:
        super().__init__("residual", "gate")
        self.gate = nn.Conv2d(channels, channels, 1)
        self.product = Masked()

    def forward(self, residual: Tensor, shortcut: Tensor, hidden: Tensor) -> Tensor:
        """Merge two (N, C, H, W), given the branch's hidden (N, C, H, W)."""
        first, gate = self.exposed(residual, torch.sigmoid(self.gate(hidden)))
        return cast(Tensor, self.product(first, gate) + shortcut)


MERGES: dict[str, Callable[[int], Merge]] = {
    "add": lambda channels: Add(),
    "product": lambda channels: Product(),
    "bn_add": NormalizedAdd,
    "bn_product": lambda channels: NormalizedProduct(channels, mean=0),
    "bn_product_mean1": lambda channels: NormalizedProduct(channels, mean=1, residual_scale=0.2),
    "bn_product_mean1_unit": lambda channels: NormalizedProduct(channels, mean=1),
    "bn_product_clamped": lambda channels: NormalizedProduct(
        channels, mean=1, residual_scale=0.2, clamped=True
    ),
    "bn_product_clamped_unit": lambda channels: NormalizedProduct(channels, mean=1, clamped=True),
    "sigmoid_shortcut": lambda channels: MaskedProduct("shortcut", 0.5),
    "bn_sigmoid_shortcut": lambda channels: MaskedProduct(
        "shortcut",
        0.5,
        norm_residual=batch_norm(channels, bias=1, clamped=True),
        norm_shortcut=batch_norm(channels),
    ),
    "sigmoid_residual": lambda channels: MaskedProduct("residual", 0.5),
    "bn_sigmoid_residual": lambda channels: MaskedProduct(
        "residual", 1, norm_shortcut=batch_norm(channels)
    ),
    "sigmoid_both": SigmoidBoth,
    "tanh_residual": lambda channels: MaskedProduct("residual", 1, torch.tanh),
    "inner_gate": GatedAdd,
}
