"""An encoder and a decoder for short sequences, all of whose attention is generalised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from checkpoints.models.aggregation import tokens
from checkpoints.models.family import Family
from checkpoints.models.spatial_attention import SpatialAttention


class Layer(nn.Module):
    """Self-attention, in a decoder also attention to the source, and two linear layers.

    Each stands on a residual connection, behind a layer norm (Xiong et al. 2020, figure 1b).

    Args:
        width: C, the channels.
        heads: of each attention.
        self_terms: of the self-attention, see `SpatialAttention`.
        cross_terms: of the attention to the source; None for an encoder, which has none.
        scaled: see `SpatialAttention`.
    """

    def __init__(
        self, width: int, heads: int, self_terms: str | int, cross_terms: str | int | None, *, scaled: bool
    ) -> None:
        super().__init__()

        def attention(terms: str | int) -> SpatialAttention:
            return SpatialAttention(width, terms=terms, heads=heads, axes=1, scaled=scaled)

        self.self_norm, self.self_attention = nn.LayerNorm(width), attention(self_terms)
        if cross_terms is not None:
            self.cross_norm, self.cross_attention = nn.LayerNorm(width), attention(cross_terms)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        features: Tensor,
        allowed: Tensor,
        source: Tensor | None = None,
        there: Tensor | None = None,
    ) -> Tensor:
        """(N, C, T) to the same.

        Args:
            features: (N, C, T).
            allowed: which positions each position may attend to, see `SpatialAttention`.
            source: (N, C, S), what the encoder made of the source, for a decoder.
            there: likewise for the source.
        """
        normed = _normed(self.self_norm, features)
        features = features + self.self_attention(normed, allowed=allowed)
        if source is not None:
            normed = _normed(self.cross_norm, features)
            features = features + self.cross_attention(normed, source, there)
        result: Tensor = features + self.linear(tokens(_normed(self.norm, features))).mT
        return result


class Seq2Seq(nn.Module):
    def __init__(
        self,
        *,
        width: int = 32,
        layers: int = 1,
        heads: int = 4,
        self_terms: str | int = "1111",
        cross_terms: str | int = "1111",
        scaled: bool = False,
        classes: int = 12,
        channels: int = 12,
    ) -> None:
        super().__init__()
        self.source_embedding = nn.Linear(channels, width, bias=False)
        self.target_embedding = nn.Linear(channels, width, bias=False)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight)
        self.encoder = nn.ModuleList(Layer(width, heads, self_terms, None, scaled=scaled) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            Layer(width, heads, self_terms, cross_terms, scaled=scaled) for _ in range(layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, symbols: Tensor) -> Tensor:
        source, target = symbols.unbind(2)
        there = (source.sum(dim=1) > 0.5)[:, None, None]
        there = there | (torch.arange(there.shape[-1], device=there.device) == 0)
        encoded = self.source_embedding(tokens(source)).mT
        for layer in self.encoder:
            encoded = layer(encoded, there)
        encoded = _normed(self.encoder_norm, encoded)
        steps = torch.arange(target.shape[-1], device=target.device)
        before = steps[:, None] >= steps
        decoded = self.target_embedding(tokens(target)).mT
        for layer in self.decoder:
            decoded = layer(decoded, before, encoded, there)
        return cast(Tensor, self.fc(tokens(_normed(self.decoder_norm, decoded)))).mT


def _normed(norm: nn.Module, features: Tensor) -> Tensor:
    """A layer norm over the channels of (N, C, T)."""
    return cast(Tensor, norm(features.mT)).mT
