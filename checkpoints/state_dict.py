"""State dicts of other code: find one in a file, strip wrapper prefixes, compare with a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from checkpoints.reader import one_line

# Prefixes of wrapped keys: DataParallel, torch.compile, and the usual Lightning attributes.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
# Entries under which training checkpoints store the network's state dict.
ENTRIES = ("state_dict", "model", "net", "model_state_dict")
DEPTH = 3  # components of a prefix that is taken off


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors in `state`, floating-point ones as float32: float16 is for storage only."""
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def state_dict_in(
    content: Mapping[str, Any],
    path: Path,
    weights: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Tensor]:
    """The network's tensors among a file's entries: the file itself, or one of its entries.

    Args:
        content: of the file.
        path: its name, for messages.
        weights: the entry to take; by default the first of `ENTRIES` that is there.
        say: is handed a line where another entry holds weights of the same network.

    Raises:
        ValueError: there is no state dict, or there are several and none has a usual name.
    """
    found = {
        str(key): tensors
        for key, value in content.items()
        if isinstance(value, Mapping) and (tensors := tensors_of(value))
    }
    if weights is not None:
        if weights not in found:
            there = one_line(", ".join(found)) or "none"
            raise ValueError(
                f"--weights {weights}: {path} has no such state dict (it has {there})."
            )
        return found[weights]
    for key in ENTRIES:
        if key in found:
            others = [name for name in found if name != key and _alike(found[name], found[key])]
            if others:
                say(
                    f"{path.name}: took {key}; there is also {one_line(', '.join(others))} "
                    f"(--weights {one_line(others[0])} takes it)."
                )
            return found[key]
    tensors = tensors_of(content)
    if any(value.ndim for value in tensors.values()):  # not only a loss or an accuracy
        return tensors
    if len(found) == 1:
        return next(iter(found.values()))
    names = one_line(", ".join(found or map(str, content)))
    first = next(iter(found), "")
    if found:
        raise ValueError(
            f"{path} holds several state dicts, {names}. Say which: --weights {one_line(first)}."
        )
    raise ValueError(f"{path} contains no state dict; its entries: {names or 'none'}.")


def _alike(other: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Whether two state dicts are of one network: they share most of their names."""
    names, known = (set(unwrapped(each)[-1]) for each in (other, state))
    return 2 * len(names & known) > len(known)


def below(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The entries under each prefix, without it: parts of what a training's module holds.

    Returns:
        {prefix: tensors}, such as those under `model.` beside the tensors of a metric, or all of
        them under `backbone.`; prefixes of up to `DEPTH` components.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        components = key.split(".")
        for depth in range(1, min(DEPTH, len(components) - 1) + 1):
            prefix = ".".join(components[:depth]) + "."
            parts.setdefault(prefix, {})[key.removeprefix(prefix)] = value
    return parts


def unwrapped(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """`state` itself, then with one wrapper prefix after another stripped from all its keys."""
    spellings = [{key.replace("._orig_mod.", "."): value for key, value in state.items()}]
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in spellings[-1])), ""):
        spellings.append({key.removeprefix(prefix): v for key, v in spellings[-1].items()})
    return spellings


def renamed(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the older names of weight normalisation where those are expected."""
    newer = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    found = {}
    for key, value in state.items():
        older = next((key.replace(n, o) for n, o in newer.items() if key.endswith(n)), key)
        found[older if older in expected else key] = value
    return found


def differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """One phrase per name or shape in which a file's `state` differs from a model's `expected`."""
    phrases = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(value.shape)} in the model"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    phrases += [
        f"{key} is {state[key].dtype} in the file and {value.dtype} in the model"
        for key, value in expected.items()
        if key in state and value.is_floating_point() and not state[key].is_floating_point()
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
