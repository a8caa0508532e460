"""A small Vision Transformer whose attention takes any of the scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from checkpoints.declared import Count, enforced
from checkpoints.models.aggregation import tokens
from checkpoints.models.family import Family
from checkpoints.models.scores import Attention
from checkpoints.models.spatial_attention import sine_encoding

Positions = Literal["sine", "learned", "none"]
SIDE = 32  # patches along each axis that learned positions are there for
WAVE_LENGTH = 1000.0


class Layer(nn.Module):
    """Attention and two linear layers, each on a residual connection behind a layer norm."""

    def __init__(self, width: int, heads: int, score: str, epsilon: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, score, epsilon)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, C) to the same."""
        features = features + self.attention(self.attention_norm(features))
        result: Tensor = features + self.linear(self.norm(features))
        return result


class ViT(nn.Module):
    """A Vision Transformer: patches, layers of attention, and the mean over patches.

    Args:
        width: channels of every token; a multiple of 4, and of `heads`.
        depth: number of layers.
        heads: of each attention.
        patch: pixels along the side of a patch; images are a whole number of patches.
        score: of the attention, a name in `checkpoints.models.scores.SCORES`.
        epsilon: bandwidth of the attention; by default sqrt(width / heads) / 2, which divides the
            energies of `query_key` by the root of a head's channels, as is usual.
        positions: sines of both axes, a learned vector for each row and column, or none.
        classes: number of classes.
        channels: of the images.

    Raises:
        ValueError: an option has a value that is not allowed.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; scores of Ruan & Zhang 2024,
    arXiv:2412.18288.
    """

    @enforced()
    def __init__(
        self,
        *,
        width: Count = 64,
        depth: Count = 4,
        heads: Count = 4,
        patch: Count = 4,
        score: str = "query_key",
        epsilon: float | None = None,
        positions: Positions = "sine",
        classes: Count = 10,
        channels: Count = 3,
    ) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"width={width}; expected a multiple of 4, for sines of two axes.")
        bandwidth = (width / heads) ** 0.5 / 2 if epsilon is None else epsilon
        self.positions = positions
        self.embed = nn.Conv2d(channels, width, patch, patch)
        if positions == "learned":
            self.rows, self.columns = (
                nn.Parameter(nn.init.normal_(torch.empty(SIDE, width), std=0.02)) for _ in range(2)
            )
        self.layers = nn.ModuleList(Layer(width, heads, score, bandwidth) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, channels, H, W)."""
        patch = self.embed.kernel_size[0]
        if images.ndim != 4 or any(side % patch for side in images.shape[2:]):
            raise ValueError(f"it takes images whose sides are multiples of {patch}, the patch")
        embedded = self.embed(images)
        features = tokens(embedded) + self._places(*embedded.shape[2:])
        for layer in self.layers:
            features = layer(features)
        logits: Tensor = self.fc(self.norm(features).mean(dim=1))
        return logits

    def _places(self, height: int, width: int) -> Tensor:
        """What tells the patches apart, (patches, C), or a zero."""
        like = self.embed.weight
        if self.positions == "none":
            return like.new_zeros(())
        if self.positions == "learned":
            if max(height, width) > SIDE:
                raise ValueError(f"it has learned positions for {SIDE} x {SIDE} patches at most")
            return (self.rows[:height, None] + self.columns[:width]).flatten(0, 1)
        half = like.shape[0] // 2
        of_rows, of_columns = (
            sine_encoding(torch.arange(n, dtype=like.dtype, device=like.device), half, WAVE_LENGTH)
            for n in (height, width)
        )
        of_rows = of_rows[:, None].expand(height, width, half)
        return torch.cat([of_rows, of_columns.expand(height, width, half)], dim=-1).flatten(0, 1)


def candidates(keys: Iterable[str]) -> list[str]:
    """None: how many heads there are does not follow from the parameters."""
    return []


FAMILY = Family({"vit": ViT}, candidates=candidates)
