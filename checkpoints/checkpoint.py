"""Checkpoint files: one self-describing format of our own, and the files that others saved."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from checkpoints.imported import module_at
from checkpoints.models.resnet import ARCHITECTURES, candidates, canonical_key, options_from
from checkpoints.reader import FORMAT, one_line, read, reason
from checkpoints.registry import MODELS
from checkpoints.state_dict import (
    differences,
    state_dict_in,
    tensors_of,
    told_of,
    unwrapped,
    with_counters,
)

SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network and everything needed to use it and to repeat its training.

    Args:
        state_dict: {name: tensor}, the network's parameters and buffers.
        model: a name in `MODELS`, or `file.py:function`, or `package.module:function`.
        options: keyword arguments of that model's builder.
        classes: number of classes.
        input_shape: (C, H, W); empty where it is not known.
        mean: one value a channel, subtracted from images in [0, 1].
        std: one value a channel, by which they are then divided.
        data: the data set's name, as `--data` takes it; empty where it is not known.
        recipe: the training's options.
        seed: the training's seed; None where it is not known.
        metrics: accuracies (fractions) and losses (nat).
        history: one dict an epoch.
        file: where it was read from.
        sha256: of that file's bytes.
    """

    state_dict: Mapping[str, Tensor]
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 0
    input_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    data: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    file: str = ""
    sha256: str = ""

    def network(self) -> nn.Module:
        """A new network of this architecture with these weights, in eval mode, in float32.

        Raises:
            ValueError: names or shapes do not fit; the line names the first offenders.
        """
        network = build(self.model, self.options)
        misfits = differences(network.state_dict(), self.state_dict)
        if misfits:
            raise ValueError(f"{self.file or 'checkpoint'}: {self.model} {told_of(misfits)}")
        network.load_state_dict(with_counters(network, self.state_dict))
        return network.eval()


def find(name: str | Path) -> Path:
    """The checkpoint called `name`: a path, else a file that ships in `checkpoints/files/`.

    Raises:
        ValueError: neither is there.
    """
    if (path := Path(name)).is_file():
        return path
    shipped = Path(str(resources.files("checkpoints"))) / "files"
    for candidate in (shipped / name, shipped / f"{name}.pt"):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise ValueError(f"{name} is a folder; needed: a checkpoint file, such as {name}/FILE.pt.")
    known = ", ".join(sorted(p.name for p in shipped.glob("*.pt"))) or "none"
    raise ValueError(f"{name}: no such file, nor does it name one that ships (there are: {known}).")


def build(model: str, options: Mapping[str, Any]) -> nn.Module:
    """A new network: `model` is a registered name, `file.py:function` or `package.module:function`.

    Raises:
        ValueError: there is no such builder, it refuses the options, or it returns no module.
    """
    builder = MODELS.get(model) or imported(model, "model", known=MODELS)
    try:
        network = builder(**options)
    except Exception as error:  # the builder may be the user's own and raise anything
        raise ValueError(
            f"{model} cannot be built with {_pairs(options) or 'no options'}: {reason(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{model} returned a {type(network).__name__}; needed: a torch.nn.Module.")
    return network


def imported(name: str, what: str, known: Mapping[str, Any]) -> Callable[..., Any]:
    """The function called `path/to/file.py:function` or `package.module:function`.

    Raises:
        ValueError: `name` has not that form, or there is no such function.
    """
    source, colon, function = name.rpartition(":")
    if not colon:
        raise ValueError(
            f"{what} {name!r} is not known. Known: {', '.join(known)}; "
            "or give path/to/file.py:function or package.module:function."
        )
    try:
        module = module_at(source)
    except Exception as error:  # the module is the user's own and may raise anything
        raise ValueError(f"{what} {name} cannot be imported: {reason(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"{what} {name}: {source} has no function {function!r}.")
    return found  # type: ignore[no-any-return]


def save(checkpoint: Checkpoint, path: Path, *, half: bool = False) -> None:
    """Write one self-describing file, whole or not at all.

    A name that ends in `.safetensors` gets that format, with the same description as metadata;
    any other is read back by `torch.load(path, weights_only=True)`.

    Args:
        checkpoint: what to save; its `file` and `sha256` are not written.
        path: where to.
        half: store convolution and linear weights as float16. Batch-norm statistics stay
            float32, since their range does not fit.

    Raises:
        ValueError: options, recipe, metrics or history hold what is no number, text or list.
    """
    state = {}
    for name, tensor in checkpoint.state_dict.items():
        narrow = half and tensor.ndim > 1 and tensor.is_floating_point()
        value = tensor.detach().to("cpu", torch.float16 if narrow else tensor.dtype)
        # A copy of its own: a view would bring all that it is a view of into the file.
        state[name] = value.clone(memory_format=torch.contiguous_format)
    unwritten = ("state_dict", "file", "sha256")
    entries = {
        f.name: getattr(checkpoint, f.name) for f in fields(checkpoint) if f.name not in unwritten
    }
    try:
        # The same plain entries in both formats, which any reader of either can load.
        description = json.dumps({"format": FORMAT, "schema_version": SCHEMA_VERSION, **entries})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be written: {error}. Needed: plain values.") from error
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, partial, {FORMAT: description})
    else:
        torch.save(json.loads(description) | {"state_dict": state}, partial)
    partial.replace(path)


def load(
    name: str | Path,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    data: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """Read a checkpoint of ours, or a state dict that others saved. No code in it runs.

    Foreign files may be a bare state dict, or hold one as an entry (`state_dict`, `model`, `net` …)
    beside others, with keys behind `module.` or `_orig_mod.`; pickled or as safetensors.

    Args:
        name: a path, or the name of a file that ships.
        model: the architecture; needed for a foreign file unless exactly one of `MODELS` fits, and
            for one of ours that names code outside this package: no file decides what code runs.
        options: keyword arguments for the builder, beyond those that the file or the shapes tell.
        mean: overrides the file's, one value a channel.
        std: overrides the file's, one value a channel.
        data: overrides the file's data set.
        say: is handed one line for what was inferred.

    Raises:
        ValueError: one line: no such file, damaged, wants more than tensors, does not fit.
    """
    path = find(name)
    content = read(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    options = dict(options or {})
    if content.get("format") == FORMAT:
        checkpoint = _as_told(_own(content, path), path, model, options, say)
    else:
        checkpoint = _foreign(state_dict_in(content, path), path, model, options, say)
    given: dict[str, Any] = {"mean": mean, "std": std, "data": data}
    return replace(
        checkpoint, file=path.name, sha256=digest, **{k: v for k, v in given.items() if v}
    )


def load_end(
    name: str | Path, origin: Mapping[str, Tensor], known: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tensors of a second network, named as `origin` names them.

    Args:
        name: a path, or the name of a file that ships.
        origin: {name: tensor}, of the first network.
        known: what is known of the first network: `model`, `options`, and `mean` and `std`.

    Raises:
        ValueError: no such file, damaged, or a network of another architecture.
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
                    f"{path} has {what} {value}, the first checkpoint {first}. "
                    "A line needs two networks of one architecture and normalisation."
                )
        best = dict(own.state_dict)
    else:
        spellings = unwrapped(state_dict_in(content, path))
        spellings.append({canonical_key(key): value for key, value in spellings[-1].items()})
        best = min(spellings, key=lambda state: len(set(origin) - set(state)))
    misfits = differences(origin, {key: value for key, value in best.items() if key in origin})
    if misfits:
        raise ValueError(
            f"{path}: the first checkpoint's network {told_of(misfits)} A direction fits only the "
            "architecture it was made for."
        )
    return {key: best[key] for key in origin}


def _with_defaults(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` and the defaults beside them, so that what is left out equals what is spelled."""
    try:
        bound = inspect.signature(MODELS[model]).bind(**options)
    except (KeyError, TypeError):
        return dict(options)
    bound.apply_defaults()
    return dict(bound.arguments)


def _own(content: Mapping[str, Any], path: Path) -> Checkpoint:
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}; this version reads {SCHEMA_VERSION}. "
            "Update cnn-landscape."
        )
    known = {f.name for f in fields(Checkpoint)}
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k in known
    }
    missing = {"state_dict", "model", "mean", "std"} - set(values)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: it is damaged.")
    for name, kind in (("state_dict", Mapping), ("options", Mapping), ("model", str)):
        if name in values and not isinstance(values[name], kind):
            found = type(values[name]).__name__
            raise ValueError(f"{path} has a {found} as {name}: it is damaged.")
    return Checkpoint(**{**values, "state_dict": tensors_of(values["state_dict"])})


def _as_told(
    own: Checkpoint,
    path: Path,
    model: str | None,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> Checkpoint:
    """A file of ours with the architecture that the caller asks for, if any."""
    if model is None and own.model not in MODELS and ":" in own.model:
        raise ValueError(
            f"{path} names the model {one_line(own.model)}, which is code outside this package. "
            "A file does not decide what code runs: pass it as --model if you trust it."
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
        return _fitted(network, unwrapped(state), path, model, options)
    spellings = [{canonical_key(k): v for k, v in s.items()} for s in unwrapped(state)]
    bare = spellings[-1]
    told = options_from({key: tuple(value.shape) for key, value in bare.items()})
    if told is not None:
        options = told | options
    if model is not None:
        return _fitted(build(model, options), spellings, path, model, options)
    plausible = candidates(bare)
    fits = [
        name
        for name in MODELS
        if (name in plausible or name not in ARCHITECTURES) and _fits(name, options, bare)
    ]
    if len(fits) != 1:
        what = (
            f"{len(fits)} registered models fit ({', '.join(fits)})"
            if fits
            else "no registered model fits"
        )
        raise ValueError(
            f"{path}: {what}. Say which it is: --model NAME, --model path/to/file.py:function or "
            "--model package.module:function."
        )
    say(f"{path.name}: taken for {fits[0]} with {_pairs(options)}, the only one that fits.")
    return _fitted(build(fits[0], options), [bare], path, fits[0], options)


def _pairs(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items())


def _fits(name: str, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    try:
        return not differences(build(name, options).state_dict(), state)
    except ValueError:  # a builder of another family, which does not take these options
        return False


def _fitted(
    network: nn.Module,
    spellings: list[dict[str, Tensor]],
    path: Path,
    model: str,
    options: dict[str, Any],
) -> Checkpoint:
    misfits = [differences(network.state_dict(), spelling) for spelling in spellings]
    best = min(range(len(spellings)), key=lambda i: len(misfits[i]))
    if misfits[best]:
        raise ValueError(f"{path}: {model} {told_of(misfits[best])}")
    outputs = [m for m in network.modules() if isinstance(m, nn.Linear)]
    classes = outputs[-1].out_features if outputs else 0
    return Checkpoint(spellings[best], model, options, classes=classes)
