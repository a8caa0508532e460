"""The hyperparameters of a training, and its learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from checkpoints.options import option


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters: with model, data and seed they determine the trained network."""

    epochs: int = option(15, "passes over the training examples")
    batch: int = option(128, "examples per step")
    rate: float = option(0.1, "highest learning rate, reached after the warm-up")
    warmup: float = option(1.0, "epochs of linear warm-up; then the rate follows a cosine to zero")
    momentum: float = option(0.9, "Nesterov momentum of SGD")
    decay: float = option(5e-4, "weight decay of tensors with two or more axes")
    smoothing: float = option(0.0, "label smoothing")
    shift: int = option(2, "random crops are shifted by up to this many pixels")
    flip: bool = option(True, "mirror half of the images")
    validation: int = option(5000, "training images held out, the same ones for every seed")
    examples: int = option(0, "train on the first N images in class-interleaved order; 0 for all")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "of the training's convolutions; auto: bfloat16 if the hardware supports it"
    )

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("rate", 0 <= self.rate < math.inf, "0 or more"),
            ("warmup", 0 <= self.warmup < math.inf, "0 or more"),
            ("momentum", 0 <= self.momentum < 1, "0 or more, below 1"),
            ("decay", 0 <= self.decay < math.inf, "0 or more"),
            ("smoothing", 0 <= self.smoothing < 1, "0 or more, below 1"),
            ("shift", self.shift >= 0, "0 or more"),
            ("validation", self.validation >= 1, "at least 1, to select an epoch by"),
            ("examples", self.examples >= 0, "1 or more, or 0 for all"),
        ):
            if not fits:
                raise ValueError(f"--{name} {getattr(self, name)}; expected {expected}.")

    def resolved(self, device: torch.device) -> Recipe:
        """This recipe with `precision` chosen for `device` if it is `auto`."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bfloat16" if _has_bfloat16(device) else "float32")


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
