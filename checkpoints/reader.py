"""Read a checkpoint file's entries without running what it asks for."""

from __future__ import annotations

import io
import json
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import torch

FORMAT = "cnn-landscape checkpoint"
# What pickled tensors are made of; `torch.load` decides what runs, this only what a refusal lists.
TENSOR_GLOBALS = (
    "collections.OrderedDict", "__builtin__.set", "builtins.set", "_codecs.encode",
    "torch._utils._rebuild", "torch._tensor._rebuild", "torch.serialization._get_layout",
    "torch.nn.parameter.Parameter", "torch.Size", "torch.device",
)  # fmt: skip


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
            f"{path} is no checkpoint, or damaged ({reason(error).split('. ')[0]}). Expected a "
            "state dict that torch.save wrote, or safetensors under a name that ends so."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of tensors.")
    return content


def reason(error: Exception) -> str:
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
