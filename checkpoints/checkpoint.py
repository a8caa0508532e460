"""Checkpoint files: one self-describing format of our own, and the files that others saved."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from checkpoints.models.resnet import canonical_key, options_from
from checkpoints.registry import MODELS

FORMAT = "cnn-landscape checkpoint"
SCHEMA_VERSION = 1
# What wraps a state dict's keys: DataParallel, torch.compile, and the usual Lightning attributes.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


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
        misfits = _misfits(network, self.state_dict)
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
    known = ", ".join(sorted(p.name for p in shipped.glob("*.pt")))
    raise ValueError(f"{name}: no such file, and no checkpoint that ships has that name ({known}).")


def build(model: str, options: Mapping[str, Any]) -> nn.Module:
    """A new network: `model` is a registered name, `file.py:function` or `package.module:function`.

    Raises:
        ValueError: there is no such builder, it refuses the options, or it returns no module.
    """
    builder = MODELS.get(model) or imported(model, "model", known=MODELS)
    try:
        network = builder(**options)
    except TypeError as error:
        raise ValueError(f"{model} does not take the options {dict(options)}: {error}.") from error
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
        if source.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            if spec is None or spec.loader is None:
                raise ImportError(f"no such file: {source}")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
        found = getattr(module, function)
    except (ImportError, OSError, AttributeError, SyntaxError, RuntimeError) as error:
        raise ValueError(f"{what} {name}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"{what} {name} is a {type(found).__name__}; needed: a function.")
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
    """
    state = {
        name: tensor.detach().to("cpu", torch.float16 if half and tensor.ndim > 1 else tensor.dtype)
        for name, tensor in checkpoint.state_dict.items()
    }
    described = asdict(replace(checkpoint, state_dict={}, file="", sha256=""))
    about = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        **{k: v for k, v in described.items() if k not in ("state_dict", "file", "sha256")},
    }
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
        safetensors.torch.save_file(contiguous, partial, {FORMAT: json.dumps(about)})
    else:
        torch.save(about | {"state_dict": {k: v.contiguous() for k, v in state.items()}}, partial)
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
        model: the architecture; needed for a foreign file unless exactly one of `MODELS` fits.
        options: keyword arguments for the builder, beyond those that the shapes tell.
        mean: overrides the file's, one value a channel.
        std: overrides the file's, one value a channel.
        data: overrides the file's data set.
        say: is handed one line for what was inferred.

    Raises:
        ValueError: one line: no such file, damaged, wants more than tensors, does not fit.
    """
    path = find(name)
    content = _read(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if content.get("format") == FORMAT:
        checkpoint = _own(content, path)
        if model is not None:
            checkpoint = replace(checkpoint, model=model, options=dict(options or {}))
        elif options:
            checkpoint = replace(checkpoint, options={**checkpoint.options, **options})
    else:
        checkpoint = _foreign(_state_dict(content, path), path, model, dict(options or {}), say)
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
    content = _read(path)
    if content.get("format") == FORMAT:
        own = _own(content, path)
        for what in ("model", "options", "mean", "std"):
            own_value = getattr(own, what)
            own_value = list(own_value) if isinstance(own_value, tuple) else own_value
            if what in known and own_value != known[what]:
                raise ValueError(
                    f"{path} has {what} {own_value}, the first checkpoint {known[what]}. "
                    "A line needs two networks of one architecture and normalisation."
                )
        return {key: own.state_dict[key] for key in origin if key in own.state_dict}
    spellings = _spellings(_state_dict(content, path))
    spellings.append({canonical_key(key): value for key, value in spellings[-1].items()})
    best = min(spellings, key=lambda state: len(set(origin) - set(state)))
    return {key: best[key] for key in origin if key in best}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            about = json.loads(metadata[FORMAT]) if FORMAT in metadata else {}
            return {**about, "state_dict": state}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _globals_wanted(path)
        if wanted:
            raise ValueError(
                f"{path} asks for more than tensors: {', '.join(wanted)}. It was not loaded, since "
                "such a file can run code. Save model.state_dict() alone, or as safetensors."
            ) from error
        raise ValueError(f"{path} is no checkpoint, or damaged: {_first_line(error)}") from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        OSError,
        safetensors.SafetensorError,
    ) as e:
        raise ValueError(f"{path} is no checkpoint, or damaged: {_first_line(e)}") from e
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; needed: a dict of tensors.")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _globals_wanted(path: Path) -> list[str]:
    """The globals beyond tensors that a pickle names, read from its opcodes without running it."""
    if zipfile.is_zipfile(path):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    import pickletools

    wanted: set[str] = set()
    with path.open("rb") as file:
        try:
            # The old format is a row of pickles: magic number, version, system, content, keys.
            for _ in range(5):
                strings: list[str] = []
                for opcode, argument, _position in pickletools.genops(file):
                    if opcode.name == "GLOBAL":
                        wanted.add(str(argument).replace(" ", "."))
                    elif opcode.name == "STACK_GLOBAL":
                        wanted.add(".".join(strings[-2:]))
                    elif isinstance(argument, str):
                        strings.append(argument)
        except ValueError:  # What follows the pickles is raw storage.
            pass
    plain = ("collections.OrderedDict", "torch._utils._rebuild", "torch.Size", "torch.device")
    return sorted(
        name for name in wanted if not (name.startswith(plain) or name.endswith("Storage"))
    )


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
    return Checkpoint(**{**values, "state_dict": _tensors(values["state_dict"])})


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of `state` in float32; float16 is a way to store, not to compute."""
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    if tensors := _tensors(content):
        return tensors
    found = {
        key: tensors
        for key, value in content.items()
        if isinstance(value, Mapping) and (tensors := _tensors(value))
    }
    for key in ("state_dict", "model", "net", "model_state_dict"):
        if key in found:
            return found[key]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ValueError(f"{path} holds several state dicts, {', '.join(found)}; save one alone.")
    raise ValueError(
        f"{path} holds no state dict; it has {', '.join(map(str, content)) or 'nothing'}."
    )


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
    fits = [
        name
        for name in (MODELS if told is not None else ())
        if not _misfits(_on_meta(name, options), bare)
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


def _on_meta(name: str, options: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return build(name, options)


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
    misfits = [_misfits(network, spelling) for spelling in spellings]
    best = min(range(len(spellings)), key=lambda i: len(misfits[i]))
    if misfits[best]:
        raise ValueError(f"{path}: {model} {_told(misfits[best])}")
    outputs = [m for m in network.modules() if isinstance(m, nn.Linear)]
    classes = outputs[-1].out_features if outputs else 0
    return Checkpoint(spellings[best], model, options, classes=classes)


def _misfits(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """One phrase for each name or shape in which `state` and `network` differ."""
    needed = network.state_dict()
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
    return f"does not fit the file: {'; '.join(misfits[:3])}{more} ({len(misfits)} in all)."


def _with_counters(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the batch counters that files from before torch 0.4.1 lack."""
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    return counters | dict(state)
