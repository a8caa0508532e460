"""The hyperparameters of a training, and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from checkpoints import options
from checkpoints.options import option


@options.spec
class Recipe:
    """The hyperparameters: with model, data and seed they determine the trained network."""

    epochs: int = option(15, "passes over the training examples", least=1)
    batch: int = option(128, "examples per step", least=1)
    rate: float = option(0.1, "highest learning rate, reached after the warm-up", least=0)
    warmup: float = option(
        1.0, "epochs of linear warm-up; then the rate follows a cosine to zero", least=0
    )
    optimizer: Literal["sgd", "adam"] = option(
        "sgd", "SGD with Nesterov momentum, or Adam with weight decay apart from it (AdamW)"
    )
    momentum: float = option(
        0.9, "Nesterov momentum of SGD; Adam's of the gradient (beta 1)", least=0, below=1
    )
    decay: float = option(5e-4, "weight decay of tensors with two or more axes", least=0)
    smoothing: float = option(0.0, "label smoothing", least=0, below=1)
    shift: int = option(2, "random crops are shifted by up to this many pixels", least=0)
    flip: bool = option(True, "mirror half of the images")
    validation: int = option(
        5000, "training images held out, the same ones for every seed", least=1
    )
    examples: int = option(
        0, "train on the first N images in class-interleaved order; 0 for all", least=0
    )
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "of the training's convolutions; auto: bfloat16 if the hardware supports it"
    )

    def stepping(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer of these groups of parameters, each with its own weight decay.

        Adam's average of squares, beta 2, is 0.98 as in Vaswani et al. 2017, section 5.3.
        """
        if self.optimizer == "adam":
            return torch.optim.AdamW(groups, lr=self.rate, betas=(self.momentum, 0.98))
        return torch.optim.SGD(
            groups, lr=self.rate, momentum=self.momentum, nesterov=self.momentum > 0
        )

    def resolved(self, device: torch.device) -> Recipe:
        """This recipe with `precision` chosen for `device` if it is `auto`."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bfloat16" if _has_bfloat16(device) else "float32")


def completed(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe from a file, with the defaults of options that are younger than it."""
    return {field.name: field.default for field in fields(Recipe)} | dict(recorded)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpuinfo = Path("/proc/cpuinfo")
    flags_line = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "amx_bf16" in flags_line or "avx512_bf16" in flags_line


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = recipe.warmup * steps_per_epoch
    total = recipe.epochs * steps_per_epoch
    if step < warm:
        return recipe.rate * (step + 1) / (warm + 1)
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))
