"""Statistics recorded during training: each block's factors, activations and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from checkpoints import hooks
from checkpoints.models.merge import Merge


@contextmanager
def watched(network: nn.Module) -> Iterator[dict[str, dict[str, float]]]:
    """Record statistics of every block's merge while the context is open.

    A product whose factors drift from mean 1 vanishes or explodes over depth.

    Yields:
        {block: {residual_mean, residual_var, shortcut_mean, shortcut_var, activation_max}},
        filled by the next forward pass, over all examples, channels and positions. The factors are
        taken as they are multiplied, after their norms and sigmoids; `gate_` replaces `shortcut_`
        if the branch is multiplied by a gate. `activation_max` is the largest absolute value of
        the merged features.
    """
    seen: dict[str, dict[str, float]] = {}

    def on_factor(block: str, name: str, factor: Tensor) -> None:
        variance, mean = torch.var_mean(factor.detach().float())
        which = name.rpartition(".")[2]
        seen.setdefault(block, {}).update(
            {f"{which}_mean": mean.item(), f"{which}_var": variance.item()}
        )

    def on_merged(block: str, _: str, merged: Tensor) -> None:
        seen.setdefault(block, {})["activation_max"] = merged.detach().abs().max().item()

    functions: dict[str, Callable[[str, Tensor], None]] = {}
    for name, module in network.named_modules():
        if isinstance(module, Merge):
            block = name.removesuffix(".merge")
            functions[f"{name}.factors.*"] = partial(on_factor, block)
            functions[name] = partial(on_merged, block)
    with hooks.watching(network, functions):
        yield seen


def gradient_norms(network: nn.Module, blocks: Iterator[str]) -> dict[str, float]:
    """The L2 norm of the gradient over the parameters of each block."""
    norms = {}
    for block in blocks:
        gradients = [
            p.grad for p in network.get_submodule(block).parameters() if p.grad is not None
        ]
        norms[block] = math.hypot(*(g.norm().item() for g in gradients))
    return norms
