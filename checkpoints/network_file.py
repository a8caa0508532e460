"""A checkpoint: one self-describing file with a trained network."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from checkpoints.declared import as_declared, with_defaults
from checkpoints.imported import imported
from checkpoints.problem import add_tensor
from checkpoints.reader import FORMAT, one_line, reason
from checkpoints.registry import MODELS
from checkpoints.state_dict import differences, told_of, with_counters
from checkpoints.whole_file import whole

SCHEMA_VERSION = 1
DIGEST = "digest"  # the entry with the checksum of all others


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network, and everything needed to use it and to repeat its training.

    Args:
        state_dict: {name: tensor}, the network's parameters and buffers.
        model: a name in `MODELS`, or `file.py:function`, or `package.module:function`.
        options: keyword arguments of that model's builder.
        classes: number of classes.
        input_shape: (C, H, W); empty where it is not known.
        mean: one value per channel, subtracted from images in [0, 1].
        std: one value per channel, by which they are then divided.
        data: the data set's name, as `--data` takes it; empty where it is not known.
        recipe: the training's options.
        seed: the training's seed; None if unknown.
        metrics: accuracies (fractions) and losses (nat).
        history: one dict per epoch.
        file: where it was read from.
        sha256: of that file's bytes.
    """

    state_dict: Mapping[str, Tensor] = field(repr=False)
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
    history: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    file: str = ""
    sha256: str = ""

    def network(self) -> nn.Module:
        """A new network of this architecture with these weights, in eval mode, in float32.

        Raises:
            ValueError: names or shapes do not fit; the message lists the first of them.
        """
        # Its shapes first: the options of a file do not decide how much memory is taken.
        misfits = differences(tensors(outline(self.model, self.options)), self.state_dict)
        if misfits:
            model = one_line(self.model, 60)
            raise ValueError(f"{self.file or 'checkpoint'}: {model} {told_of(misfits)}")
        network = build(self.model, self.options)
        network.load_state_dict(with_counters(network, self.state_dict))
        return network.eval()


def find(name: str | Path) -> Path:
    """The checkpoint called `name`.

    Args:
        name: a path; else a file that ships in `checkpoints/files/`, with or without `.pt`; else
            `STUDY/FILE`, a network of a study in `results/STUDY/networks/` of a checkout.

    Raises:
        ValueError: none of these is there.
    """
    try:
        return _found(Path(name))
    except OSError as error:  # such as a name that no file can have
        shown = one_line(str(name), 80)
        raise ValueError(f"{shown}: {error.strerror}. Pass the path of a checkpoint.") from error


def _found(path: Path) -> Path:
    name = str(path)
    if path.is_file():
        return path
    package = Path(str(resources.files("checkpoints")))
    shipped = package / "files"
    of_study = package.parent / "results" / path.parent / "networks" / path.name
    for candidate in (shipped / name, shipped / f"{name}.pt", of_study):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise ValueError(f"{name} is a folder; expected a checkpoint file, such as {name}/FILE.pt.")
    known = ", ".join(sorted(p.name for p in shipped.glob("*.pt"))) or "none"
    where = "; the networks of studies are in the repository" if path.parent.name else ""
    raise ValueError(
        f"{name}: no such file, and none of that name ships (available: {known}{where})."
    )


def build(model: str, options: Mapping[str, Any]) -> nn.Module:
    """A new network: `model` is a registered name, `file.py:function` or `package.module:function`.

    Raises:
        ValueError: there is no such builder, or it rejects the options or does not return a module.
    """
    builder = _builder(model)
    options = as_declared(model, builder, options)
    try:
        network = builder(**options)
    except Exception as error:  # the builder may be the user's own and raise anything
        shown = one_line(spelled(options), 50) or "no options"
        raise ValueError(
            f"{one_line(model, 40)} cannot be built with {shown}: {one_line(reason(error), 90)}"
        ) from error
    if not isinstance(network, nn.Module):
        found = type(network).__name__
        raise ValueError(f"{model} returned a {found}; expected a torch.nn.Module.")
    return network


def declared_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the types that the model's builder declares; see `as_declared`.

    Raises:
        ValueError: there is no such builder, or an option is of another type.
    """
    return as_declared(model, _builder(model), options) if options else {}


def complete_options(model: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Options as `declared_options`, with the builder's defaults, each as JSON.

    Two networks of one model are built alike where these are equal; as JSON 1, true and "1" differ.

    Raises:
        ValueError: see `declared_options`.
    """
    builder = _builder(model)
    found = with_defaults(builder, as_declared(model, builder, options))
    return {name: json.dumps(value, default=repr) for name, value in found.items()}


def _builder(model: str) -> Callable[..., Any]:
    return MODELS.get(model) or imported(model, "model", known=MODELS)


def outline(model: str, options: Mapping[str, Any]) -> nn.Module:
    """A network without the memory of its values, on the meta device.

    Code outside this package, which may not be made for that, is built as it is.

    Raises:
        ValueError: see `build`.
    """
    if model not in MODELS:
        return build(model, options)
    with torch.device("meta"), _Undrawn():
        return build(model, options)


class _Undrawn(TorchFunctionMode):
    """Draws no initial values, which the meta device takes most of the time for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """A network's parameters and buffers by name, without what else its state dict may hold."""
    state = network.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def save(checkpoint: Checkpoint, path: Path, *, half: bool = False) -> None:
    """Write one self-describing file, whole or not at all.

    A name ending in `.safetensors` selects that format, with the same description as metadata;
    any other file can be read with `torch.load(path, weights_only=True)`.

    Args:
        checkpoint: what to save; its `file` and `sha256` are not written.
        path: the file to write.
        half: store convolution and linear weights as float16. Batch-norm statistics stay float32,
            because their range may exceed that of float16.

    Raises:
        ValueError: options, recipe, metrics or history contain values other than numbers, strings,
            lists and dicts.
    """
    state = {}
    for name, tensor in checkpoint.state_dict.items():
        narrow = half and tensor.ndim > 1 and tensor.is_floating_point()
        value = tensor.detach().to("cpu", torch.float16 if narrow else tensor.dtype)
        # Cloned, because saving a view would store its whole underlying storage.
        state[name] = value.clone(memory_format=torch.contiguous_format)
    unwritten = ("state_dict", "file", "sha256")
    entries = {
        f.name: getattr(checkpoint, f.name) for f in fields(checkpoint) if f.name not in unwritten
    }
    try:
        # The same plain entries in both formats, so that any reader of either can load them.
        description = json.dumps({"format": FORMAT, "schema_version": SCHEMA_VERSION, **entries})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be written: {error}. Expected numbers, strings, lists and dicts."
        ) from error
    about = json.loads(description)
    about[DIGEST] = digest(about, state)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        content = safetensors.torch.save(state, {FORMAT: json.dumps(about)})
    else:
        image = io.BytesIO()  # into a file, torch would write the file's name as well
        torch.save(about | {"state_dict": state}, image)
        content = image.getvalue()
    with whole(path) as file:
        file.write_bytes(content)


def digest(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a file of ours says and holds, apart from the digest itself.

    Args:
        about: its plain entries.
        state: {name: tensor}, as stored.
    """
    plain = {key: value for key, value in about.items() if key not in (DIGEST, "state_dict")}
    found = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(state):
        add_tensor(found, name, state[name])
    return found.hexdigest()


def spelled(options: Mapping[str, Any]) -> str:
    """Options as text: `width=16, shortcut=A`."""
    return ", ".join(f"{k}={v}" for k, v in options.items())
