"""How a block merges its residual branch R and its shortcut S: by addition, or by a product.

Every variant is a module called as `merge(residual, shortcut)`. The tensors that it multiplies or
adds are inner values (`checkpoints.hooks`): `merge.factors.residual`, `merge.factors.shortcut`.
Names and formulas follow Ye et al. 2021 (arXiv:2106.15067) and its first author's public table of
variants; in all of them R is the output of the branch's last batch norm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from checkpoints.hooks import Exposed


class Merge(nn.Module):
    """Base class of all variants.

    Args:
        names: names of the two tensors that it multiplies or adds: `residual`, `shortcut`, `gate`.
    """

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
        self.norm_residual = nn.BatchNorm2d(channels)
        self.norm_shortcut = nn.BatchNorm2d(channels)
        nn.init.constant_(self.norm_residual.weight, residual_scale)
        for norm in (self.norm_residual, self.norm_shortcut):
            nn.init.constant_(norm.bias, mean)
            norm.bias.requires_grad_(not clamped)

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.exposed(self.norm_residual(residual), self.norm_shortcut(shortcut))
        return first * second


class SigmoidShortcut(Merge):
    """(sigmoid(S) + 1/2) * R: the shortcut is a parameter-free mask of the branch."""

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.exposed(residual, torch.sigmoid(shortcut) + 0.5)
        return first * second


class SigmoidResidual(Merge):
    """(sigmoid(R) + 1/2) * S: the branch is a mask of the shortcut."""

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.exposed(torch.sigmoid(residual) + 0.5, shortcut)
        return first * second


class SigmoidBoth(Merge):
    """sigmoid(BN(R)) * sigmoid(BN(S)). Without the norms it does not train well."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_residual = nn.BatchNorm2d(channels)
        self.norm_shortcut = nn.BatchNorm2d(channels)

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.exposed(
            torch.sigmoid(self.norm_residual(residual)), torch.sigmoid(self.norm_shortcut(shortcut))
        )
        return first * second


class TanhResidual(Merge):
    """(1 + tanh(R)) * S."""

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        """Merge two (N, C, H, W)."""
        first, second = self.exposed(1 + torch.tanh(residual), shortcut)
        return first * second


class GatedAdd(Merge):
    """R * sigmoid(G h) + S: a product inside the branch, followed by addition.

    `h` is the branch's hidden feature map before its ReLU, and G a 1x1 convolution, so the branch
    attends to itself. The block passes `h` as a third argument.
    """

    def __init__(self, channels: int) -> None:
        super().__init__("residual", "gate")
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, residual: Tensor, shortcut: Tensor, hidden: Tensor) -> Tensor:
        """Merge two (N, C, H, W), given the branch's hidden (N, C, H, W)."""
        first, gate = self.exposed(residual, torch.sigmoid(self.gate(hidden)))
        return first * gate + shortcut


MERGES: dict[str, Callable[[int], nn.Module]] = {
    "add": lambda channels: Add(),
    "product": lambda channels: Product(),
    "bn_product": lambda channels: NormalizedProduct(channels, mean=0),
    "bn_product_mean1": lambda channels: NormalizedProduct(channels, mean=1, residual_scale=0.2),
    "bn_product_mean1_unit": lambda channels: NormalizedProduct(channels, mean=1),
    "bn_product_clamped": lambda channels: NormalizedProduct(
        channels, mean=1, residual_scale=0.2, clamped=True
    ),
    "sigmoid_shortcut": lambda channels: SigmoidShortcut(),
    "sigmoid_residual": lambda channels: SigmoidResidual(),
    "sigmoid_both": SigmoidBoth,
    "tanh_residual": lambda channels: TanhResidual(),
    "inner_gate": GatedAdd,
}
