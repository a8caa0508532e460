"""State dicts of other code: find one in a file, strip wrapper prefixes, compare with a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from checkpoints.reader import listed, one_line

T = TypeVar("T")

# Prefixes of wrapped keys: DataParallel, torch.compile, and the usual Lightning attributes.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
# Entries under which training checkpoints store the network's state dict.
ENTRIES = ("state_dict", "model", "net", "model_state_dict")
LEVELS = 6  # of entries within entries that are looked through
# Of weight and spectral normalisation: how `torch.nn.utils` ends a parameter's name, and what
# `torch.nn.utils.parametrizations` calls the same.
GENERATIONS = (
    ("_g", "original0"),
    ("_v", "original1"),
    ("_orig", "original"),
    ("_u", "0._u"),
    ("_v", "0._v"),
)
OPTIMIZER = "param_groups"  # an entry of every optimizer's state
COUNTER = "num_batches_tracked"
TRIED = 40  # kinds of state dicts in one file that are tried, if the usual one does not fit
DEPTH = 3  # components of a prefix that is taken off


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors in `state`, floating-point ones as float32: float16 is for storage only."""
    return {
        name: _single(value) if value.is_floating_point() else value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _single(value: Tensor) -> Tensor:
    """A tensor as float32, or as it is where torch cannot convert it."""
    try:
        return value.float()
    except (NotImplementedError, RuntimeError):  # such as of four bits
        return value


def chosen(
    content: Mapping[str, Any],
    path: Path,
    weights: str | None,
    fit: Callable[[dict[str, Tensor], Callable[[str], None]], T | None],
    say: Callable[[str], None],
) -> tuple[dict[str, Tensor], T | None]:
    """The state dict that is taken of a file's entries, and what fits of it.

    That is the one called `weights`; else the first of `ENTRIES` that is there, or the file itself
    if it holds tensors; else, or where that does not fit, the one that alone fits.

    Args:
        content: of the file.
        path: its name, for messages.
        weights: the entry to take, with dots between entries within entries, or the prefix of the
            names to take.
        fit: what it makes of tensors that fit, None of others; it is handed `say`.
        say: is handed a line where another was taken than a usual name says, or another holds
            weights of the same network.

    Raises:
        ValueError: there is no state dict, or there are several and not exactly one fits.
    """
    levels = list(_states_in(content))
    found = {name: state for level in levels for name, state in level.items()}
    lines: list[str] = []  # of `fit`, which are said if it fits, after what was taken

    def taken(state: dict[str, Tensor], fitting: T, *line: str) -> tuple[dict[str, Tensor], T]:
        for each in (*line, *lines):
            say(each)
        return state, fitting

    if weights is not None:
        state = _named(weights, found, path)
        fitting = fit(state, lines.append)
        return (state, None) if fitting is None else taken(state, fitting)
    usual = _usual(levels, found)
    if usual is not None:
        state = found[usual]
        if (fitting := fit(state, lines.append)) is not None:
            others = [name for name in found if name != usual and _alike(found[name], state)]
            beside = (
                f"{path.name}: took {one_line(usual, 40)}; there is also {listed(others, 40)} "
                f"(--weights {one_line(others[0], 40)} takes it)."
                if usual and others
                else ""
            )
            return taken(state, fitting, *filter(None, [beside]))
    kinds: dict[Any, list[str]] = {}  # names and shapes alone decide what fits: tried once for all
    for name, state in found.items():
        kinds.setdefault(_kind(state), []).append(name)
    if usual is not None:
        del kinds[_kind(found[usual])]
    fits: dict[str, tuple[T, list[str]]] = {}
    for alike in list(kinds.values())[:TRIED]:
        lines = []
        if (fitting := fit(found[alike[0]], lines.append)) is not None:
            fits |= dict.fromkeys(alike, (fitting, lines))
    if len(fits) == 1:
        ((name, (fitting, lines)),) = fits.items()
        shown = one_line(name, 40) or "its own tensors"
        return taken(found[name], fitting, f"{path.name}: took {shown}, which alone fits.")
    if usual is not None and not fits:
        return found[usual], None
    if names := list(fits) or [name for name in found if name]:
        raise ValueError(
            f"{path} holds several state dicts, {listed(names, 60)}. "
            f"Say which: --weights {one_line(names[0], 40)}."
        )
    entries = listed(map(str, content), 60) or "none"
    raise ValueError(f"{path} contains no state dict; its entries: {entries}.")


def _kind(state: Mapping[str, Tensor]) -> frozenset[Any]:
    return frozenset((name, shape_of(value), value.dtype) for name, value in state.items())


def _usual(
    levels: Sequence[dict[str, dict[str, Tensor]]], found: Mapping[str, dict[str, Tensor]]
) -> str | None:
    """The name of the state dict that a reader would take: "" for the file itself."""
    top = found.get("", {})
    nearest = next(filter(None, levels[1:2] if top else levels[1:]), {})
    for key in ENTRIES:
        for name in nearest:
            if name.rpartition(".")[2] == key:
                return name
    real = any(value.ndim and value.is_floating_point() for value in top.values())
    if top and (real or not nearest):  # not the state of a random generator alone
        return ""
    return next(iter(nearest)) if len(nearest) == 1 else None


def _named(weights: str, found: Mapping[str, dict[str, Tensor]], path: Path) -> dict[str, Tensor]:
    """The entry called `weights`, or what has that prefix in the first entry where there is one."""
    prefix = weights + "."
    parts = (
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for state in found.values()
    )
    within = [name for name in found if name.startswith(prefix)]
    state = found.get(weights) or next(filter(None, parts), None)
    if state is None and len(within) == 1:
        state = found[within[0]]
    if state is None:
        there = listed(name for name in found if name) or "none"
        raise ValueError(f"--weights {weights}: {path} has no such state dict (it has {there}).")
    return state


def _states_in(content: Mapping[str, Any]) -> Iterator[dict[str, dict[str, Tensor]]]:
    """{entry: its tensors}, one level of entries within entries after another.

    An entry is no state dict if it holds numbers alone, such as a loss.
    """
    level: dict[str, Any] = {"": content}
    for _ in range(LEVELS):
        states = {name: tensors_of(entry) for name, entry in level.items()}
        yield {name: s for name, s in states.items() if any(v.ndim for v in s.values())}
        level = {
            f"{name}.{key}".lstrip("."): dict(enumerate(value)) if _is_list(value) else value
            for name, entry in level.items()
            for key, value in entry.items()
            if (isinstance(value, Mapping) or _is_list(value)) and OPTIMIZER not in value
        }


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _alike(other: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Whether a state dict, or a part of it, is of the network of another: most names are there."""
    known = set(unwrapped(state)[-1])
    bare = unwrapped(other)[-1]
    return any(2 * len(known & set(part)) > len(known) for part in (bare, *below(bare).values()))


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
    """`state` with the names that torch gives to normalised weights in the expected generation."""
    wanted = {other: key for key in expected for other in _other_generation(key)}
    return {key if key in expected else wanted.get(key, key): v for key, v in state.items()}


def _other_generation(key: str) -> Iterator[str]:
    """What `torch.nn.utils` calls a tensor of `parametrizations`, and the other way round."""
    head, dot, name = key.rpartition(".")
    newer = re.fullmatch(r"(.*\.)?parametrizations\.(\w+)\.(.+)", key)
    for older, tail in GENERATIONS:
        if newer and newer[3] == tail:
            yield f"{newer[1] or ''}{newer[2]}{older}"
        elif name.endswith(older):
            yield f"{head}{dot}parametrizations.{name.removesuffix(older)}.{tail}"


def differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """One phrase per name or shape in which a file's `state` differs from a model's `expected`."""
    phrases = [
        f"{key} is {shape_of(state[key])} in the file and {shape_of(value)} in the model"
        for key, value in expected.items()
        if key in state and shape_of(state[key]) != shape_of(value)
    ]
    phrases += [
        f"{key} is {state[key].dtype} in the file and {value.dtype} in the model"
        for key, value in expected.items()
        if key in state and value.is_floating_point() and not state[key].is_floating_point()
    ]
    phrases += [
        f"{key} is not in the file"
        for key in expected
        if key not in state and not key.endswith(COUNTER)
    ]
    return phrases + [f"{key} is not in the model" for key in state if key not in expected]


def shape_of(value: Tensor) -> tuple[int, ...]:
    """A tensor's shape; that of a nested tensor, which has none, is -1 along each axis."""
    return (-1,) * value.dim() if value.is_nested else tuple(value.shape)


def told_of(misfits: list[str]) -> str:
    """The first `differences` and their number, for an error message."""
    return f"does not fit the file: {listed(misfits, 75, '; ')} ({len(misfits)} in all)."


def with_counters(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """`state` plus what a file need not hold: batch counters, and entries that are no tensors.

    Files written before torch 0.4.1 lack the counters.
    """
    own = network.state_dict().items()
    optional = {k: v for k, v in own if not isinstance(v, Tensor) or k.endswith(COUNTER)}
    return optional | dict(state)
