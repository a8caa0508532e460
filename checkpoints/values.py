"""Whether tensors can be the weights of a network, and what a state dict that fits none is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.reader import one_line

# Names that tools leave in a state dict which is not that of the plain network.
QUANTISED = "was quantised. Expected the float network's state dict"
MARKS = {
    r"_packed_params|\.zero_point$|fake_quant|activation_post_process": QUANTISED,
    r"\.(qweight|qzeros|SCB|absmax|quant_map|quant_state\..*)$": QUANTISED,
    r"(weight|bias)_mask$": "was pruned. Call torch.nn.utils.prune.remove before saving",
    r"flat_param": "was flattened by FSDP. Save a full state dict (StateDictType.FULL_STATE_DICT)",
    r"\.lora_[AB]\.": "holds LoRA adapters alone or beside the network. Merge them before saving",
}
USUAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHARD = r"-\d+-of-\d+\."  # in the name of one of several files


def check_values(state: Mapping[str, Tensor], path: Path | str) -> None:
    """Refuse weights that are no real numbers.

    Raises:
        ValueError: one line that names the first tensor with NaN, infinity or complex numbers.
    """
    for name, value in state.items():
        shown = one_line(name, 60)
        _check_kind(name, value, path)
        if value.is_floating_point() and not bool(value.isfinite().all()):
            count = int((~value.isfinite()).sum())
            raise ValueError(
                f"{path}: {shown} has {count} NaN or infinite values of {value.numel()}. "
                "The training has diverged, or the file is damaged."
            )
        if name.endswith("running_var") and bool((value < 0).any()):
            raise ValueError(f"{path}: {shown} has negative variances: the file is damaged.")


def explain_misfit(state: Mapping[str, Any], path: Path) -> None:
    """Say why a state dict fits no network, where its names or the kinds of its tensors show it.

    Raises:
        ValueError: they do.
    """
    state = {name: value for name, value in state.items() if isinstance(name, str)}
    for pattern, what in MARKS.items():
        first = next((name for name in state if re.search(pattern, name)), "")
        if first:
            raise ValueError(f"{path}: {one_line(first, 60)} says that the network {what}.")
    if re.search(SHARD, path.name):
        raise ValueError(f"{path} is one of several files. Pass their index, *.index.json.")
    for name, value in state.items():
        if isinstance(value, Tensor):
            _check_kind(name, value, path)


def _check_kind(name: str, value: Tensor, path: Path | str) -> None:
    what = _unusual(name, value)
    if what:
        shown = one_line(name, 60)
        raise ValueError(f"{path}: {shown} is {what}; expected a dense tensor of real numbers.")


def _unusual(name: str, value: Tensor) -> str:
    """What keeps a tensor from being weights, in words; empty for dense real numbers."""
    if value.is_quantized:
        return f"quantised ({value.dtype})"
    if value.is_nested:
        return "a nested tensor"
    if value.layout != torch.strided:
        return f"sparse ({value.layout})".replace("torch.", "")
    if value.is_meta:
        return "without values (on the meta device)"
    if value.is_complex():
        return "complex"
    if value.is_floating_point() and value.dtype not in USUAL:
        return f"{value.dtype}, which cannot be converted to float32".replace("torch.", "")
    real = name.rpartition(".")[2] in ("weight", "bias", "running_mean", "running_var")
    if real and not value.is_floating_point():
        return f"{value.dtype}, rounded to whole numbers".replace("torch.", "")
    return ""
