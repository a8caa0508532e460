"""State dicts of other code: find one in a file, strip wrapper prefixes, compare with a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from checkpoints.reader import one_line

# Prefixes of wrapped keys: DataParallel, torch.compile, and the usual Lightning attributes.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
# Entries under which training checkpoints store the network's state dict.
ENTRIES = ("state_dict", "model", "net", "model_state_dict")


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors in `state`, floating-point ones as float32: float16 is for storage only."""
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def state_dict_in(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The network's tensors in a file: the file's own entries, or one entry that is a state dict.

    Raises:
        ValueError: there is no state dict, or there are several and none has a usual name.
    """
    found = {
        str(key): tensors
        for key, value in content.items()
        if isinstance(value, Mapping) and (tensors := tensors_of(value))
    }
    for key in ENTRIES:
        if key in found:
            return found[key]
    tensors = tensors_of(content)
    if any(value.ndim for value in tensors.values()):  # not only a loss or an accuracy
        return tensors
    if len(found) == 1:
        return next(iter(found.values()))
    names = one_line(", ".join(found or map(str, content)))
    if found:
        raise ValueError(
            f"{path} contains several state dicts: {names}; expected one. Save it alone."
        )
    raise ValueError(f"{path} contains no state dict; its entries: {names or 'none'}.")


def unwrapped(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """`state` itself, then with one wrapper prefix after another stripped from all its keys."""
    spellings = [{key.replace("._orig_mod.", "."): value for key, value in state.items()}]
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in spellings[-1])), ""):
        spellings.append({key.removeprefix(prefix): v for key, v in spellings[-1].items()})
    return spellings


def differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """One phrase per name or shape in which a file's `state` differs from a model's `expected`."""
    phrases = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(value.shape)} in the model"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    phrases += [
        f"{key} is not in the file"
        for key in expected
        if key not in state and not key.endswith("num_batches_tracked")
    ]
    return phrases + [f"{key} is not in the model" for key in state if key not in expected]


def told_of(misfits: list[str]) -> str:
    """The first three `differences` and their number, for an error message."""
    more = f"; and {len(misfits) - 3} more" if len(misfits) > 3 else ""
    first = one_line("; ".join(misfits[:3]))
    return f"does not fit the file: {first}{more} ({len(misfits)} in all)."


def with_counters(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` plus the batch counters that files written before torch 0.4.1 lack."""
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    return counters | dict(state)
