"""What is watched during training: each block's factors, activations and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from checkpoints.models.merge import Factors, Merge


@contextmanager
def watched(network: nn.Module) -> Iterator[dict[str, dict[str, float]]]:
    """Record what every block's merge combines, while the context is open.

    Yields:
        {block: {residual_mean, residual_var, shortcut_mean, shortcut_var, activation_max}},
        filled by the next forward pass, over all examples, channels and positions: of the two
        factors as they are multiplied, after their norms and sigmoids (`gate_` instead of
        `shortcut_` where the branch meets a gate), and the maximum of the merged features' size.
        Why: a product whose factors drift from mean 1 vanishes or explodes over depth.
    """
    seen: dict[str, dict[str, float]] = {}

    def on_factors(block: str) -> Callable[[nn.Module, Any, tuple[Tensor, Tensor]], None]:
        def hook(module: nn.Module, _: Any, factors: tuple[Tensor, Tensor]) -> None:
            row = seen.setdefault(block, {})
            for name, factor in zip(cast(Factors, module).names, factors, strict=True):
                variance, mean = torch.var_mean(factor.detach().float())
                row |= {f"{name}_mean": mean.item(), f"{name}_var": variance.item()}

        return hook

    def on_merged(block: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, merged: Tensor) -> None:
            seen.setdefault(block, {})["activation_max"] = merged.detach().abs().max().item()

        return hook

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, Factors):
            block = name.removesuffix(".factors").removesuffix(".merge")
            hooks.append(module.register_forward_hook(on_factors(block)))
        elif isinstance(module, Merge):
            hooks.append(module.register_forward_hook(on_merged(name.removesuffix(".merge"))))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def gradient_norms(network: nn.Module, blocks: Iterator[str]) -> dict[str, float]:
    """The L2 norm of the gradient over the parameters of each block."""
    norms = {}
    for block in blocks:
        gradients = [
            p.grad for p in network.get_submodule(block).parameters() if p.grad is not None
        ]
        norms[block] = math.hypot(*(g.norm().item() for g in gradients))
    return norms
