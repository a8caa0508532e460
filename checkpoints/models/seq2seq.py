"""An encoder and a decoder for short sequences, all of whose attention is generalised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from checkpoints.declared import Count, enforced
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
        self,
        width: int,
        heads: int,
        self_terms: str | int,
        cross_terms: str | int | None,
        *,
        scaled: bool,
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
    """A Transformer for sequences, with generalised spatial attention on their one axis.

    Without absolute positions: attention sees relative ones, in terms E2 and E4. The attention to
    the source counts both sequences from their start, so that k - q is 0 where both are in step.
    Layers stand behind a layer norm, not before it. No query attends to what lies behind the end
    of the source, none in the decoder to later positions.

    Args:
        width: channels of every layer, divisible by 2 and by `heads`.
        layers: of the encoder, and of the decoder.
        heads: of each attention.
        self_terms: terms of self-attention in encoder and decoder, see `SpatialAttention`.
        cross_terms: terms of the attention to the source.
        scaled: divide the energies by sqrt(d), as Vaswani et al. do, and Zhu et al. do not.
        classes: number of symbols that are predicted.
        channels: number of symbols that are read.

    Raises:
        ValueError: an option has a value that is not allowed.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3, with the attention of Zhu et al. 2019,
    arXiv:1904.05873, and norms as in Xiong et al. 2020, arXiv:2002.04745.
    """

    @enforced()
    def __init__(
        self,
        *,
        width: Count = 32,
        layers: Count = 1,
        heads: Count = 4,
        self_terms: str | int = "1111",
        cross_terms: str | int = "1111",
        scaled: bool = False,
        classes: Count = 12,
        channels: Count = 12,
    ) -> None:
        super().__init__()
        self.read, self.written = (nn.Linear(channels, width, bias=False) for _ in range(2))
        for embedding in (self.read, self.written):
            nn.init.normal_(embedding.weight)
        encoder, decoder = (
            nn.ModuleList(
                Layer(width, heads, self_terms, terms, scaled=scaled) for _ in range(layers)
            )
            for terms in (None, cross_terms)
        )
        self.encoder, self.encoder_norm = encoder, nn.LayerNorm(width)
        self.decoder, self.decoder_norm = decoder, nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits (N, classes, T) of the symbol that follows each one of the target.

        Args:
            symbols: (N, channels, 2, T), one-hot: the source, and the target as written so far, see
                `checkpoints.data.sequences`. A position of the source whose symbols sum to less
                than a half is none, save the first. This is constant near a real example, and the
                outputs are differentiable there.
        """
        if symbols.shape[2] != 2:
            raise ValueError("it reads sequences, such as those of --data copy")
        source, target = symbols.unbind(2)
        steps = torch.arange(target.shape[-1], device=target.device)
        there = ((source.sum(dim=1) >= 0.5) | (steps == 0))[:, None, None]
        features = self.read(tokens(source)).mT
        for layer in self.encoder:
            features = layer(features, there)
        encoded = _normed(self.encoder_norm, features)
        features = self.written(tokens(target)).mT
        for layer in self.decoder:
            features = layer(features, steps[:, None] >= steps, encoded, there)
        return cast(Tensor, self.fc(tokens(_normed(self.decoder_norm, features)))).mT


def _normed(norm: nn.Module, features: Tensor) -> Tensor:
    """A layer norm over the channels of (N, C, T)."""
    return cast(Tensor, norm(features.mT)).mT


def candidates(keys: Iterable[str]) -> list[str]:
    """None: how many heads there are does not follow from the parameters."""
    return []


FAMILY = Family({"seq2seq": Seq2Seq}, candidates=candidates)
