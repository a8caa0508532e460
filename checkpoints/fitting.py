"""Find the network that a foreign state dict is of, and its tensors under that network's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints.models.family import Family
from checkpoints.network_file import (
    Checkpoint,
    build,
    declared_options,
    outline,
    spelled,
    tensors,
)
from checkpoints.reader import listed, one_line
from checkpoints.registry import FAMILIES, MODELS
from checkpoints.state_dict import below, differences, renamed, shape_of, told_of, unwrapped

T = TypeVar("T")
State = dict[str, Tensor]


class AmbiguousError(ValueError):
    """Several networks fit, or several parts of a state dict."""


def fitted(
    state: State,
    path: Path,
    model: str | None,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> Checkpoint:
    """The network that a state dict is of.

    Args:
        state: of other code.
        path: where it is from, for messages.
        model: the architecture; None for the one registered architecture that fits.
        options: of its builder, beyond those that the shapes tell.
        say: is handed a line about what was inferred.

    Raises:
        ValueError: it fits none, or several (`AmbiguousError`); the options are not the builder's.
    """
    if model is not None and model not in MODELS:
        return _of_other_code(state, path, model, options, say)
    found = reading(state, partial(_registered, model, options), path, say) or []
    if len(found) == 1:
        if model is None:
            name, known = found[0].model, spelled(found[0].options)
            say(f"{path.name}: loaded as {name} with {known}, the only model that fits.")
        return found[0]
    if model is not None:
        family = next(family for family in _families() if model in family.builders)
        spellings = [spelled_by(family, spelling) for spelling in unwrapped(state)]
        network = outline(model, _options_of(family, spellings[-1]) | options)
        raise ValueError(_misfit(tensors(network), spellings, path, model))
    if options and not found:
        plain = reading(state, partial(_registered, None, {}), path, lambda line: None) or []
        for fit in plain:  # what the options are refused for
            fitted(state, path, fit.model, options, say)
    names = listed((fit.model for fit in found), 60)
    what = f"{len(found)} registered models fit ({names})" if found else "no registered model fits"
    raise (AmbiguousError if found else ValueError)(
        f"{path}: {what}. Pass --model NAME, --model path/to/file.py:function or "
        "--model package.module:function."
    )


def reading(
    state: State,
    fit: Callable[[State], T | None],
    path: Path,
    say: Callable[[str], None],
) -> T | None:
    """What `fit` makes of a state dict, of it without its wrappers' prefixes, or of one part of it.

    Args:
        state: of other code.
        fit: what it makes of tensors that fit; something false of others.
        path: where it is from, for messages.
        say: is handed a line if a part is taken.

    Raises:
        AmbiguousError: the parts under several prefixes fit.
    """
    spellings = unwrapped(state)
    for spelling in spellings:
        if found := fit(spelling):
            return found
    parts = below(spellings[0])
    fits = {prefix: found for prefix, part in parts.items() if (found := fit(part))}
    if len(fits) > 1:
        raise AmbiguousError(
            f"{path}: the entries under {listed(fits, 60)} fit alike. "
            f"Say which: --weights {one_line(next(iter(fits)).rstrip('.'), 40)}."
        )
    for prefix, found in fits.items():
        left = len(state) - len(parts[prefix])
        others = f"; {left} other entries were left out" if left else ""
        under = one_line(prefix, 60)
        say(f"{path.name}: took the entries under {under}, which alone fit{others}.")
        return found
    return None


def _of_other_code(
    state: State,
    path: Path,
    model: str,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> Checkpoint:
    """The network that the caller's own builder makes, with the tensors of a state dict."""
    options = declared_options(model, options)
    network = build(model, options)
    expected = tensors(network)

    def exact(part: State) -> State | None:
        named = renamed(expected, part)
        return None if differences(expected, named) else named

    found = reading(state, exact, path, say) or by_load_hooks(network, unwrapped(state))
    if not found:
        raise ValueError(_misfit(expected, unwrapped(state), path, model))
    return Checkpoint(found, model, options, classes=_classes(network))


def spelled_by(family: Family, state: Mapping[str, Tensor]) -> State:
    """A state dict with its keys renamed to the names that the family uses."""
    return {family.canonical_key(key): value for key, value in state.items()}


def _registered(model: str | None, options: dict[str, Any], state: State) -> list[Checkpoint]:
    """All registered networks that a state dict fits whole, or `model` alone."""
    fits = []
    for family in _families():
        named = spelled_by(family, state)
        from_shapes = _options_of(family, named)
        plausible = family.candidates(named) if family.candidates else family.builders
        for name in plausible if model is None else {model} & set(family.builders):
            try:
                asked = from_shapes | declared_options(name, options)
                network = outline(name, asked)
            except ValueError:  # a builder that does not take these options
                continue
            exact = renamed(tensors(network), named)
            if not differences(tensors(network), exact):
                fits.append(Checkpoint(exact, name, asked, classes=_classes(network)))
    return fits


def _families() -> list[Family]:
    """All families, and one more for models that were registered without a family."""
    known = {name for family in FAMILIES for name in family.builders}
    others = {name: builder for name, builder in MODELS.items() if name not in known}
    return [*FAMILIES, *([Family(others)] if others else [])]


def _options_of(family: Family, state: Mapping[str, Tensor]) -> dict[str, Any]:
    return family.options_from({key: shape_of(value) for key, value in state.items()}) or {}


def _classes(network: nn.Module) -> int:
    outputs = [m for m in network.modules() if isinstance(m, nn.Linear)]
    return outputs[-1].out_features if outputs else 0


def _misfit(expected: State, spellings: list[State], path: Path, model: str) -> str:
    """How a state dict differs from the network that it was said to be of, in one line."""
    least = min((differences(expected, renamed(expected, s)) for s in spellings), key=len)
    names = listed(spellings[-1], 40)
    return f"{path}: {one_line(model, 40)} {told_of(least)} It has {names}."


def by_load_hooks(network: nn.Module, spellings: list[State]) -> State | None:
    """The state dict that the network's own load hooks make of a file's, if they take it whole.

    A module may read the names of its earlier versions so. The network is changed.
    """
    for spelling in spellings:
        try:
            with _SameKind():  # type: ignore[no-untyped-call]
                network.load_state_dict(renamed(tensors(network), spelling))
        except Exception:  # hooks are the user's own and may raise anything
            continue
        return {name: value.detach() for name, value in tensors(network).items()}
    return None


class _SameKind(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses to copy whole or complex numbers into real ones, or the other way round."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            into, value = args[:2]
            if into.is_floating_point() != value.is_floating_point():
                raise TypeError(f"{value.dtype} copied into {into.dtype}")
        return func(*args, **(kwargs or {}))
