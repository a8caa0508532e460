"""Checkpoint files: one self-describing format of our own, and the files that others saved."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import pickletools
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from checkpoints.models.resnet import ARCHITECTURES, candidates, canonical_key, options_from
from checkpoints.registry import MODELS

FORMAT = "cnn-landscape checkpoint"
SCHEMA_VERSION = 1
# What wraps a state dict's keys: DataParallel, torch.compile, and the usual Lightning attributes.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
# Where a training's checkpoint keeps the network's state dict, beside the optimizer's and others.
ENTRIES = ("state_dict", "model", "net", "model_state_dict")
# What pickled tensors are made of; `torch.load` decides what runs, this only what a refusal lists.
TENSOR_GLOBALS = (
    "collections.OrderedDict", "__builtin__.set", "builtins.set", "_codecs.encode",
    "torch._utils._rebuild", "torch._tensor._rebuild", "torch.serialization._get_layout",
    "torch.nn.parameter.Parameter", "torch.Size", "torch.device",
)  # fmt: skip


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
        misfits = _misfits(network.state_dict(), self.state_dict)
        if misfits:
            raise ValueError(f"{self.file or 'checkpoint'}: {self.model} {_told(misfits)}")
        network.load_state_dict(_with_counters(network, self.state_dict))
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
            f"{model} cannot be built with {_pairs(options) or 'no options'}: {_reason(error)}"
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
        module = _module(source)
    except Exception as error:  # the module is the user's own and may raise anything
        raise ValueError(f"{what} {name} cannot be imported: {_reason(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"{what} {name}: {source} has no function {function!r}.")
    return found  # type: ignore[no-any-return]


def _module(source: str) -> ModuleType:
    if not source.endswith(".py"):
        return importlib.import_module(source)
    name = f"model {Path(source).resolve()}"  # no importable name, so that it hides no other module
    spec = importlib.util.spec_from_file_location(name, source)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


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
        checkpoint = _foreign(_state_dict(content, path), path, model, options, say)
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
        spellings = _spellings(_state_dict(content, path))
        spellings.append({canonical_key(key): value for key, value in spellings[-1].items()})
        best = min(spellings, key=lambda state: len(set(origin) - set(state)))
    misfits = _misfits(origin, {key: value for key, value in best.items() if key in origin})
    if misfits:
        raise ValueError(
            f"{path}: the first checkpoint's network {_told(misfits)} A direction fits only the "
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
    except Exception as error:  # both readers raise of every kind for a damaged file
        wanted = _globals_wanted(path)
        if wanted:
            raise ValueError(
                f"{path} asks for more than tensors: {', '.join(wanted)}. It was not loaded, since "
                "such a file can run code. Save model.state_dict() alone, or as safetensors."
            ) from error
        raise ValueError(
            f"{path} is no checkpoint, or damaged ({_reason(error).split('. ')[0]}). Needed: a "
            "state dict that torch.save wrote, or safetensors under a name that ends so."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; needed: a dict of tensors.")
    return content


def _reason(error: Exception) -> str:
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


def _globals_wanted(path: Path) -> list[str]:
    """The globals beyond tensors that a pickle names, read from its opcodes without running it."""
    wanted: set[str] = set()
    with path.open("rb") as file:
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    inner = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
                    wanted |= _globals_in_pickle(io.BytesIO(archive.read(inner)))
            else:
                file.seek(0)
                # A row of pickles: magic number, version, system, content, keys; then raw storage.
                for _ in range(5):
                    wanted |= _globals_in_pickle(file)
        except Exception:  # a file that is damaged is reported as that, by the caller
            pass
    return sorted(one_line(name) for name in wanted if not _part_of_tensors(name))


def _part_of_tensors(name: str) -> bool:
    """Whether pickled tensors need this global; only for what a refusal lists."""
    in_torch = name.removeprefix("torch.") if name.startswith("torch.") else ""
    return (
        name.startswith(TENSOR_GLOBALS)
        or in_torch.endswith("Storage")
        or isinstance(getattr(torch, in_torch, None), torch.dtype)
    )


def _globals_in_pickle(stream: IO[bytes]) -> set[str]:
    """`module.name` of every global in one whole pickle; ValueError where it is none."""
    found: set[str] = set()
    strings: list[str] = []
    memo: dict[Any, str] = {}
    last = ""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            found.add(str(argument).replace(" ", ".", 1))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(strings[-2:]))
        elif "PUT" in opcode.name:
            memo[argument] = last
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = last
        elif "GET" in opcode.name:
            argument = memo.get(argument)
        last = argument if isinstance(argument, str) else ""
        strings += [last] if last else []
    return found


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
    return Checkpoint(**{**values, "state_dict": _tensors(values["state_dict"])})


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


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of `state` in float32; float16 is a way to store, not to compute."""
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    found = {
        str(key): tensors
        for key, value in content.items()
        if isinstance(value, Mapping) and (tensors := _tensors(value))
    }
    for key in ENTRIES:
        if key in found:
            return found[key]
    tensors = _tensors(content)
    if any(value.ndim for value in tensors.values()):  # not only a loss or an accuracy
        return tensors
    if len(found) == 1:
        return next(iter(found.values()))
    names = one_line(", ".join(found or map(str, content)))
    if found:
        raise ValueError(f"{path} holds several state dicts, {names}; save one alone.")
    raise ValueError(f"{path} holds no state dict; it has {names or 'nothing'}.")


def _foreign(
    state: dict[str, Tensor],
    path: Path,
    model: str | None,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> Checkpoint:
    if model is not None and model not in MODELS:
        network = build(model, options)
        return _fitted(network, _spellings(state), path, model, options)
    spellings = [{canonical_key(k): v for k, v in s.items()} for s in _spellings(state)]
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
        return not _misfits(build(name, options).state_dict(), state)
    except ValueError:  # a builder of another family, which does not take these options
        return False


def _spellings(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """`state` as it is, then with one wrapper after the other taken off all its keys."""
    spellings = [{key.replace("._orig_mod.", "."): value for key, value in state.items()}]
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in spellings[-1])), ""):
        spellings.append({key.removeprefix(prefix): v for key, v in spellings[-1].items()})
    return spellings


def _fitted(
    network: nn.Module,
    spellings: list[dict[str, Tensor]],
    path: Path,
    model: str,
    options: dict[str, Any],
) -> Checkpoint:
    misfits = [_misfits(network.state_dict(), spelling) for spelling in spellings]
    best = min(range(len(spellings)), key=lambda i: len(misfits[i]))
    if misfits[best]:
        raise ValueError(f"{path}: {model} {_told(misfits[best])}")
    outputs = [m for m in network.modules() if isinstance(m, nn.Linear)]
    classes = outputs[-1].out_features if outputs else 0
    return Checkpoint(spellings[best], model, options, classes=classes)


def _misfits(needed: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """One phrase for each name or shape in which a file's `state` and a model's differ."""
    phrases = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(value.shape)} in the model"
        for key, value in needed.items()
        if key in state and state[key].shape != value.shape
    ]
    phrases += [
        f"{key} is not in the file"
        for key in needed
        if key not in state and not key.endswith("num_batches_tracked")
    ]
    return phrases + [f"{key} is not in the model" for key in state if key not in needed]


def _told(misfits: list[str]) -> str:
    more = f"; and {len(misfits) - 3} more" if len(misfits) > 3 else ""
    first = one_line("; ".join(misfits[:3]))
    return f"does not fit the file: {first}{more} ({len(misfits)} in all)."


def _with_counters(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the batch counters that files from before torch 0.4.1 lack."""
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    return counters | dict(state)
