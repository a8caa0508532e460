"""Read a checkpoint file's entries without running what it asks for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

FORMAT = "cnn-landscape checkpoint"
MOST_NAMES = 5  # of the classes that a refusal lists


def read(path: Path) -> Mapping[str, Any]:
    """The entries of a pickled file, or of safetensors as `state_dict`. No code in it runs.

    Raises:
        ValueError: one line: damaged, no dict, or wants more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            about = json.loads(metadata[FORMAT]) if FORMAT in metadata else {}
            return {**about, "state_dict": state}
        with warnings.catch_warnings():  # on pickles that are refused below anyway
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # neither reader documents exception types for damaged files
        wanted = _unsafe_globals(path)
        if wanted:
            raise ValueError(
                f"{path} asks for more than tensors: {wanted}. It was not loaded, since such a "
                "file can run code. Save model.state_dict() alone, or as safetensors."
            ) from error
        code = "" if path.suffix == ".safetensors" else ", or a pickle that could run code"
        raise ValueError(
            f"{path} is not a checkpoint, or damaged{code} "
            f"({reason(error).split('. ')[0][:80]}). Expected a state dict that torch.save wrote, "
            "or safetensors under a name that ends so."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of tensors.")
    return content


def reason(error: Exception) -> str:
    """What an error says, in one line and without advice to load the file unsafely."""
    kind = type(error).__name__
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    if not text or "weights_only" in text:
        return kind
    first = one_line(text.splitlines()[0]).rstrip(".")
    return first if isinstance(error, ValueError) else f"{kind}: {first}"


def one_line(text: str) -> str:
    """`text` without line breaks and control characters, which names in a file may hold."""
    return "".join(c if c.isprintable() else " " for c in text)


def _unsafe_globals(path: Path) -> str:
    """What a zip file of `torch.save` names beyond tensors, in words; empty for other files.

    Torch reads the names from the pickle's opcodes and runs nothing.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # another format, or damaged: the caller says so
        return ""
    first = [one_line(name) for name in sorted(names)[:MOST_NAMES]]
    more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return ", ".join([*first, *more])
