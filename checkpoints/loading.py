"""Load checkpoints, our own and foreign ones, and find the architecture that fits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor, nn

from checkpoints.fitting import (
    AmbiguousError,
    State,
    by_load_hooks,
    fitted,
    reading,
    spelled_by,
)
from checkpoints.network_file import (
    DIGEST,
    SCHEMA_VERSION,
    Checkpoint,
    complete_options,
    declared_options,
    digest,
    find,
)
from checkpoints.options import checked
from checkpoints.reader import FORMAT, listed, one_line, read, sha256
from checkpoints.registry import FAMILIES, MODELS
from checkpoints.state_dict import (
    COUNTER,
    chosen,
    differences,
    renamed,
    tensors_of,
    told_of,
    unwrapped,
)
from checkpoints.values import check_values, explain_misfit


def load(
    name: str | Path,
    *,
    weights: str | None = None,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    data: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """Read one of our checkpoints, or a state dict saved by other code. No code in it runs.

    A foreign file, pickled or safetensors, is a state dict or contains one among other entries
    (`state_dict`, `model`, `net` …). Keys may have a prefix such as `module.` or `_orig_mod.`.

    Args:
        name: a path, or the name of a file that ships.
        weights: the entry, or the prefix of the names, to take, of a foreign file that holds
            several state dicts.
        model: the architecture; needed for a foreign file unless exactly one of `MODELS` fits, and
            for one of ours that names code outside this package: no file decides what code runs.
        options: keyword arguments for the builder, beyond those that the file or the shapes tell.
        mean: overrides the file's, one value per channel.
        std: overrides the file's, one value per channel.
        data: overrides the file's data set.
        say: called with one line about what was inferred.

    Raises:
        ValueError: one line: there is no such file, or it is damaged, contains more than tensors,
            or does not fit.
    """
    path = find(name)
    content = read(path)
    options = dict(options or {})
    if content.get("format") == FORMAT:
        if weights is not None:
            raise ValueError(
                f"--weights {one_line(weights, 40)}: {path} is of this toolkit, and holds one "
                "network. Leave --weights out."
            )
        checkpoint = _with_architecture(_own(content, path), path, model, options, say)
    else:
        checkpoint = _foreign(content, path, weights, model, options, say)
    check_values(checkpoint.state_dict, path)
    given: dict[str, Any] = {"mean": mean, "std": std, "data": data}
    return replace(
        checkpoint, file=path.name, sha256=sha256(path), **{k: v for k, v in given.items() if v}
    )


def recorded(path: Path) -> Checkpoint:
    """One of our own files as it was saved, without asking whether its network can be built.

    Raises:
        ValueError: it is damaged, or not one of ours.
    """
    content = read(path)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of this toolkit.")
    return _own(content, path)


def load_end(
    name: str | Path,
    origin: Mapping[str, Tensor],
    known: Mapping[str, Any],
    tensors: Collection[str] | None = None,
    *,
    weights: str | None = None,
    network: nn.Module | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Tensor]:
    """The tensors of a second network, under the names that `origin` uses.

    Args:
        name: a path, or the name of a file that ships.
        origin: {name: tensor}, of the first network, those that are wanted.
        known: what is known of the first network: `model`, `options`, and `mean` and `std`.
        tensors: the names of all its parameters and buffers; a file that has others is refused.
        weights: the entry to take, where the file has it; see `load`.
        network: the first network, whose load hooks read names of earlier versions.
        say: called with one line where the file holds other weights of the network.

    Raises:
        ValueError: there is no such file, or it is damaged or of another architecture.
    """
    path = find(name)
    content = read(path)
    if content.get("format") == FORMAT:
        own = _own(content, path)
        described: dict[str, Any] = {
            "model": own.model,
            "options": own.options,
            "mean": list(own.mean),
            "std": list(own.std),
        }
        for what, value in described.items():
            first = known.get(what, value)
            if what == "options":
                value, first = (_options(own.model, each) for each in (value, first))
            if value != first:
                raise ValueError(
                    f"{path} has {what} {one_line(str(value), 60)}, the first checkpoint "
                    f"{one_line(str(first), 60)}; expected the same. "
                    "Both ends of a line need one architecture and normalisation."
                )
        best = dict(own.state_dict)
        if weights is not None:
            say(f"{path.name} holds one network: --weights {one_line(weights, 40)} is not for it.")
    else:
        best = _end_in(content, path, origin, tensors, weights, network, say)
    return end_of(best, str(path), origin, tensors)


def end_of(
    best: Mapping[str, Tensor],
    path: str,
    origin: Mapping[str, Tensor],
    tensors: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a second network that `origin` names, if it is of the same architecture.

    Args:
        best: {name: tensor}, under the first network's names.
        path: what they are from, for messages.
        origin: see `load_end`.
        tensors: see `load_end`.

    Raises:
        ValueError: it is of another architecture, or its values are no real numbers.
    """
    misfits = differences(origin, {key: value for key, value in best.items() if key in origin})
    if misfits:
        raise ValueError(
            f"{path}: the first checkpoint's network {told_of(misfits)} Both need "
            "the same architecture."
        )
    beyond = _beyond(best, tensors)
    if beyond:
        raise ValueError(
            f"{path} has {listed(beyond, 60)}, which the first checkpoint's network lacks. "
            "A line needs two networks of one architecture."
        )
    check_values(best, path)
    return {key: best[key] for key in origin}


def _beyond(state: Mapping[str, Tensor], tensors: Collection[str] | None) -> list[str]:
    """The names that a network with these `tensors` lacks, but for batch counters."""
    return [k for k in state if tensors is not None and k not in tensors and COUNTER not in k]


def _foreign(
    content: Mapping[str, Any],
    path: Path,
    weights: str | None,
    model: str | None,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> Checkpoint:
    """The network in a file of other code."""

    def fit(part: State, say: Callable[[str], None]) -> Checkpoint | None:
        try:
            return fitted(part, path, model, options, say)
        except AmbiguousError:
            raise
        except ValueError:  # said below, if nothing else of the file fits
            return None

    state: Mapping[str, Any] = content
    try:
        state, made = chosen(content, path, weights, fit, say)
        return made or fitted(dict(state), path, model, options, say)
    except ValueError:
        explain_misfit(state, path)
        raise


def _end_in(
    content: Mapping[str, Any],
    path: Path,
    origin: Mapping[str, Tensor],
    tensors: Collection[str] | None,
    weights: str | None,
    network: nn.Module | None,
    say: Callable[[str], None],
) -> State:
    """A foreign file's tensors under the names of `origin`, or as close to it as they come."""

    def named(part: State) -> State:
        spellings = [part, *(spelled_by(family, part) for family in FAMILIES)]
        spellings = [renamed(origin, spelling) for spelling in spellings]
        return min(spellings, key=lambda state: len(set(origin) - set(state)))

    def whole(part: State) -> State | None:
        state = named(part)
        known = {key: value for key, value in state.items() if key in origin}
        return None if differences(origin, known) or _beyond(state, tensors) else state

    def fit(part: State, say: Callable[[str], None]) -> State | None:
        read = reading(part, whole, path, say)
        if read or network is None:
            return read
        return by_load_hooks(copy.deepcopy(network), unwrapped(part))

    try:
        state, found = chosen(content, path, weights, fit, say)
    except AmbiguousError:
        raise
    except ValueError:
        if weights is None:
            raise
        state, found = chosen(content, path, None, fit, say)
        say(f"{path.name} has no {one_line(weights, 40)}, which --weights asks for.")
    return found or named(unwrapped(state)[-1])


def _options(model: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """`complete_options` of a registered model; a file's own code is not run to complete others."""
    return complete_options(model, options) if model in MODELS else options


def _own(content: Mapping[str, Any], path: Path) -> Checkpoint:
    version = content.get("schema_version")
    if not isinstance(version, int) or version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {one_line(str(version))[:20]}; this version reads "
            f"{SCHEMA_VERSION}. Update cnn-landscape."
        )
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} is damaged: it holds no state dict.")
    plain = {key: value for key, value in content.items() if key != "state_dict"}
    if DIGEST in plain and not _is_whole(plain, state):
        raise ValueError(
            f"{path} is damaged: its content does not have its checksum. Copy or download it again."
        )
    hints = {n: h for n, h in get_type_hints(Checkpoint).items() if n != "state_dict"}
    known = {key: value for key, value in plain.items() if key in hints and value != ""}
    try:
        values = checked(known, "description", hints, required=("model", "mean", "std"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {one_line(str(error))[:120]}") from error
    return Checkpoint(tensors_of(state), **values)


def _is_whole(plain: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    try:
        return bool(digest(plain, state) == plain[DIGEST])
    except (AttributeError, TypeError, ValueError, RuntimeError):  # no tensors, or no plain values
        return False


def _with_architecture(
    own: Checkpoint,
    path: Path,
    model: str | None,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> Checkpoint:
    """One of our checkpoints, with the architecture and options that the caller passed, if any."""
    if model is None and own.model not in MODELS and ":" in own.model:
        raise ValueError(
            f"{path} names the model {one_line(own.model, 40)}, which is code outside this "
            "package. A file never decides what code runs: pass it as --model if you trust it."
        )
    if model in (None, own.model) or {model, own.model}.isdisjoint(MODELS):
        name = model or own.model
        given = declared_options(name, options)
        if given:
            was, now = (
                complete_options(name, each) for each in (own.options, {**own.options, **given})
            )
            for option in given:
                if was.get(option) != now[option]:
                    shown = one_line(was.get(option, "nothing"), 40)
                    say(
                        f"{path.name} records {option}={shown}; measured with "
                        f"{option}={one_line(now[option], 40)}, as asked."
                    )
        return replace(own, model=name, options={**own.options, **given})
    other = fitted(dict(own.state_dict), path, model, options, say)
    return replace(own, model=other.model, options=other.options, state_dict=other.state_dict)
