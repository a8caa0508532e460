"""A network with attention, and the same written out by hand, step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from checkpoints.hooks import Exposed


class Attention(nn.Module):
    """One head over the tokens of an example, with its two inner steps exposed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.logits, self.weights = Exposed(), Exposed()

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.logits(self.query(tokens) @ self.key(tokens).mT / tokens.shape[-1] ** 0.5)
        weights = self.weights(logits.softmax(dim=-1))
        return weights @ self.value(tokens), {"weights": weights}


class Transformer(nn.Module):
    """A layer called twice, an activation in place, and a module that returns several tensors."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.norm = nn.LayerNorm(width)
        self.act = nn.GELU()
        self.clip = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, 4)
        self.unused = nn.Linear(1, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed, _ = self.attention(self.act(tokens))
        normed = self.norm(tokens + mixed)
        return self.head(self.act(self.clip(normed)).mean(dim=1))


Change = Callable[[Tensor], Tensor]


def by_hand(
    network: Transformer,
    tokens: Tensor,
    logits: Change | None = None,
    weights: Change | None = None,
) -> dict[str, Tensor]:
    """All inner values, with two of them changed."""
    attention, act = network.attention, nn.functional.gelu
    x = act(tokens)
    found = {"act": x}
    for name in ("query", "key"):
        found[f"attention.{name}"] = getattr(attention, name)(x)
    scores = found["attention.query"] @ found["attention.key"].mT / 3**0.5
    found["attention.logits"] = logits(scores) if logits else scores
    mixing = found["attention.logits"].softmax(dim=-1)
    found["attention.weights"] = weights(mixing) if weights else mixing
    found["attention.value"] = attention.value(x)
    found["attention[0]"] = found["attention.weights"] @ found["attention.value"]
    found["attention[1][weights]"] = found["attention.weights"]
    found["norm"] = network.norm(tokens + found["attention[0]"])
    found["clip"] = found["norm"].relu()
    found["act#2"] = act(found["clip"])
    found["head"] = network.head(found["act#2"].mean(dim=1))
    return found


def made() -> Transformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Transformer().double().eval()


def tokens(count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 6, 3, generator=generator, dtype=torch.float64)


def uniform(weights: Tensor) -> Tensor:
    return torch.full_like(weights, 1 / weights.shape[-1])


def sharper(logits: Tensor) -> Tensor:
    """A function with a second derivative."""
    return logits + 0.3 * logits**2
