"""Load checkpoints, our own and foreign ones, and find the architecture that fits."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from checkpoints.models.family import Family
from checkpoints.network_file import (
    DIGEST,
    SCHEMA_VERSION,
    Checkpoint,
    build,
    digest,
    find,
    outline,
    spelled,
)
from checkpoints.options import checked
from checkpoints.reader import FORMAT, one_line, read
from checkpoints.registry import FAMILIES, MODELS
from checkpoints.state_dict import (
    below,
    differences,
    renamed,
    state_dict_in,
    tensors_of,
    told_of,
    unwrapped,
)

# Names that torch's own tools leave in a state dict which is not that of the plain network.
ENDINGS = {
    "_packed_params": "was quantised. Expected the float network's state dict.",
    "weight_mask": "was pruned. Call torch.nn.utils.prune.remove before saving.",
    "_flat_param": "was flattened by FSDP. Save a full state dict (StateDictType.FULL_STATE_DICT).",
}


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
        weights: the entry to take, of a foreign file that holds several state dicts.
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
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    options = dict(options or {})
    if content.get("format") == FORMAT:
        checkpoint = _with_architecture(_own(content, path), path, model, options, say)
    else:
        state = state_dict_in(content, path, weights, say)
        check_values(state, path)
        checkpoint = _foreign(state, path, model, options, say)
    check_values(checkpoint.state_dict, path)
    given: dict[str, Any] = {"mean": mean, "std": std, "data": data}
    return replace(
        checkpoint, file=path.name, sha256=sha256, **{k: v for k, v in given.items() if v}
    )


def load_end(
    name: str | Path,
    origin: Mapping[str, Tensor],
    known: Mapping[str, Any],
    tensors: Collection[str] | None = None,
    *,
    weights: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Tensor]:
    """The tensors of a second network, under the names that `origin` uses.

    Args:
        name: a path, or the name of a file that ships.
        origin: {name: tensor}, of the first network, those that are wanted.
        known: what is known of the first network: `model`, `options`, and `mean` and `std`.
        tensors: the names of all its parameters and buffers; a file that has others is refused.
        weights: the entry to take, where the file has it; see `load`.
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
            "options": _with_defaults(own.model, own.options),
            "mean": list(own.mean),
            "std": list(own.std),
        }
        for what, value in described.items():
            first = known.get(what, value)
            first = _with_defaults(own.model, first) if what == "options" else first
            if value != first:
                raise ValueError(
                    f"{path} has {what} {value}, the first checkpoint {first}; expected the same. "
                    "Both ends of a line need one architecture and normalisation."
                )
        best = dict(own.state_dict)
    else:
        chosen = weights if isinstance(content.get(weights or ""), Mapping) else None
        spellings = unwrapped(state_dict_in(content, path, chosen, say))
        spellings += [_spelled_by(family, spellings[-1]) for family in FAMILIES]
        best = min(spellings, key=lambda state: len(set(origin) - set(state)))
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
            f"{path}: the first checkpoint's network {told_of(misfits)} A direction fits only the "
            "architecture that it was made for."
        )
    known_names = best if tensors is None else tensors
    beyond = [k for k in best if k not in known_names and not k.endswith("num_batches_tracked")]
    if beyond:
        more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        raise ValueError(
            f"{path} has {one_line(', '.join(beyond[:3]))}{more}, which the first checkpoint's "
            "network lacks. A line needs two networks of one architecture."
        )
    check_values(best, path)
    return {key: best[key] for key in origin}


def check_values(state: Mapping[str, Tensor], path: Path | str) -> None:
    """Refuse weights that are no real numbers.

    Raises:
        ValueError: one line that names the first tensor with NaN, infinity or complex numbers.
    """
    for name, value in state.items():
        shown = one_line(name)[:60]
        what = _unusual(name, value)
        if what:
            raise ValueError(f"{path}: {shown} is {what}; expected a dense tensor of real numbers.")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            count = int((~value.isfinite()).sum())
            raise ValueError(
                f"{path}: {shown} has {count} NaN or infinite values of {value.numel()}. "
                "The training has diverged, or the file is damaged."
            )
        if name.endswith("running_var") and bool((value < 0).any()):
            raise ValueError(f"{path}: {shown} has negative variances: the file is damaged.")
    for ending, what in ENDINGS.items():
        first = next((name for name in state if name.endswith(ending)), "")
        if first:
            raise ValueError(f"{path}: {one_line(first)[:60]} says that the network {what}")


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
    real = name.rpartition(".")[2] in ("weight", "bias", "running_mean", "running_var")
    if real and not value.is_floating_point():
        return f"{value.dtype}, rounded to whole numbers".replace("torch.", "")
    return ""


def _with_defaults(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with defaults filled in, so that omitted and explicit defaults are equal."""
    try:
        bound = inspect.signature(MODELS[model]).bind(**options)
    except (KeyError, TypeError):
        return dict(options)
    bound.apply_defaults()
    return dict(bound.arguments)


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
            f"{path} names the model {one_line(own.model)}, which is code outside this package. "
            "A file never decides what code runs: pass it as --model if you trust it."
        )
    if model in (None, own.model) or {model, own.model}.isdisjoint(MODELS):
        return replace(own, model=model or own.model, options={**own.options, **options})
    other = _foreign(dict(own.state_dict), path, model, options, say)
    return replace(own, model=other.model, options=other.options, state_dict=other.state_dict)


def _foreign(
    state: dict[str, Tensor],
    path: Path,
    model: str | None,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> Checkpoint:
    if model is not None and model not in MODELS:
        network = build(model, options)
        return _fitted(network, unwrapped(state), path, model, options, say)
    spellings = unwrapped(state)
    if model is not None:
        family = next(f for f in _families() if model in f.builders)
        named = [_spelled_by(family, spelling) for spelling in spellings]
        if not _fits(model, _options_of(family, named[-1]) | options, named[-1]):
            spelled_parts = {
                prefix: _spelled_by(family, part) for prefix, part in below(state).items()
            }
            fitting = [
                prefix
                for prefix, part in spelled_parts.items()
                if _fits(model, _options_of(family, part) | options, part)
            ]
            if len(fitting) == 1:
                named = [spelled_parts[fitting[0]]]
                say(_taken(path, fitting[0], state, named[0]))
        options = _options_of(family, named[-1]) | options
        return _fitted(build(model, options), named, path, model, options, say)
    fits = _fitting(spellings[-1], options)
    if not fits:
        for prefix, part in below(state).items():
            found = _fitting(part, options)
            fits += found
            if found:
                say(_taken(path, prefix, state, part))
    if len(fits) != 1:
        what = (
            f"{len(fits)} registered models fit ({', '.join(name for name, _, _ in fits)})"
            if fits
            else "no registered model fits"
        )
        raise ValueError(
            f"{path}: {what}. Pass --model NAME, --model path/to/file.py:function or "
            "--model package.module:function."
        )
    name, options, bare = fits[0]
    say(f"{path.name}: loaded as {name} with {spelled(options)}, the only model that fits.")
    return _fitted(build(name, options), [bare], path, name, options, say)


def _fitting(
    state: dict[str, Tensor], options: dict[str, Any]
) -> list[tuple[str, dict[str, Any], dict[str, Tensor]]]:
    """(model, its options, state dict in its names) of all registered models that it fits."""
    fits = []
    for family in _families():
        bare = _spelled_by(family, state)
        asked = _options_of(family, bare) | options
        plausible = family.candidates(bare) if family.candidates else family.builders
        fits += [(name, asked, bare) for name in plausible if _fits(name, asked, bare)]
    return fits


def _taken(path: Path, prefix: str, state: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> str:
    left = len(state) - len(part)
    others = f"; {left} other entries were left out" if left else ""
    return f"{path.name}: took the entries under {one_line(prefix)}, which alone fit{others}."


def _families() -> list[Family]:
    """All families, and one more for models that were registered without a family."""
    known = {name for family in FAMILIES for name in family.builders}
    others = {name: builder for name, builder in MODELS.items() if name not in known}
    return [*FAMILIES, *([Family(others)] if others else [])]


def _spelled_by(family: Family, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with its keys renamed to the names that the family uses."""
    return {family.canonical_key(key): value for key, value in state.items()}


def _options_of(family: Family, state: Mapping[str, Tensor]) -> dict[str, Any]:
    return family.options_from({key: tuple(value.shape) for key, value in state.items()}) or {}


def _fits(name: str, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    try:
        return not differences(outline(name, options), state)
    except ValueError:  # a builder that does not take these options
        return False


def _fitted(
    network: nn.Module,
    spellings: list[dict[str, Tensor]],
    path: Path,
    model: str,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> Checkpoint:
    needed = network.state_dict()
    misfits = [differences(needed, spelling) for spelling in spellings]
    best = min(range(len(spellings)), key=lambda i: len(misfits[i]))
    state = spellings[best]
    if misfits[best] and (translated := _by_load_hooks(network, spellings)):
        return Checkpoint(translated, model, options, classes=_classes(network))
    if misfits[best]:
        parts = {
            prefix: part
            for prefix, part in below(spellings[0]).items()
            if not differences(needed, part)
        }
        if len(parts) != 1:
            names = one_line(", ".join(list(state)[:3]))
            raise ValueError(
                f"{path}: {model} {told_of(misfits[best])} The file's own names begin with {names}."
            )
        ((prefix, state),) = parts.items()
        say(_taken(path, prefix, spellings[0], state))
    return Checkpoint(state, model, options, classes=_classes(network))


def _classes(network: nn.Module) -> int:
    outputs = [m for m in network.modules() if isinstance(m, nn.Linear)]
    return outputs[-1].out_features if outputs else 0


def _by_load_hooks(
    network: nn.Module, spellings: list[dict[str, Tensor]]
) -> dict[str, Tensor] | None:
    """The state dict that the network's own load hooks make of a file's, if they take it whole.

    Torch's weight normalisation reads the names of its predecessor so, and a module may read those
    of its earlier versions.
    """
    for spelling in spellings:
        try:
            network.load_state_dict(renamed(network.state_dict(), spelling))
        except Exception:  # hooks are the user's own and may raise anything
            continue
        return {name: value.detach() for name, value in network.state_dict().items()}
    return None
