"""Read a checkpoint file's entries without running what it asks for."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

from checkpoints import foreign_files

FORMAT = "cnn-landscape checkpoint"
EXPECTED = "Expected a state dict that torch.save or safetensors wrote."
MOST_NAMES = 5  # of the classes that a refusal lists


def read(path: Path) -> Mapping[str, Any]:
    """The entries of a pickled file, or of safetensors as `state_dict`. No code in it runs.

    Safetensors are recognised by their content, and so is the index of several such files
    (`model.safetensors.index.json`), whose tensors are read together.

    Raises:
        ValueError: one line: damaged, no dict, wants more than tensors, or a file of another kind.
    """
    what = foreign_files.described(path)
    if what:
        raise ValueError(f"{path} is {what}. {EXPECTED}")
    try:
        if _is_safetensors(path):
            return _safetensors(path)
        if _is_index(path):
            return _sharded(path)
        _check_sums(path)
        with warnings.catch_warnings():  # on pickles that are refused below anyway
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # neither reader documents exception types for damaged files
        raise _refusal(path, error) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of tensors.")
    return content


def _refusal(path: Path, error: Exception) -> ValueError:
    if isinstance(error, _DamagedError):
        return ValueError(str(error))
    wanted = _unsafe_globals(path)
    if any(word in wanted for word in ("DTensor", "ShardedTensor", "fsdp")):
        return ValueError(
            f"{path} is sharded over processes (FSDP or DTensor). Expected a full state dict, as "
            "torch.distributed.checkpoint.state_dict.get_state_dict gives."
        )
    if wanted:
        return ValueError(
            f"{path} asks for more than tensors: {wanted}. It was not loaded, since such a "
            "file can run code. Save model.state_dict() alone, or as safetensors."
        )
    return ValueError(
        f"{path} is not a checkpoint, or damaged, or a pickle that could run code "
        f"({reason(error).split('. ')[0][:80]}). {EXPECTED}"
    )


class _DamagedError(ValueError):
    """What is wrong, in one line that names the file."""


def _check_sums(path: Path) -> None:
    """Compare the CRC-32 of every member of a zip file, which torch does not."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise _DamagedError(
            f"{path} is damaged: its part {one_line(bad)} does not have its checksum. Expected the "
            "file as it was written; copy or download it again."
        )


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: with a header's size, and its brace."""
    with path.open("rb") as file:
        first = file.read(9)
    size = path.stat().st_size
    inside = len(first) == 9 and 2 <= int.from_bytes(first[:8], "little") <= size - 8
    return (inside and first[8:] == b"{") or path.suffix == ".safetensors"


def _safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    about = json.loads(metadata[FORMAT]) if FORMAT in metadata else {}
    if not isinstance(about, dict):
        raise _DamagedError(f"{path} is damaged: its description is a {type(about).__name__}.")
    return {**about, "state_dict": state}


def _is_index(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".json" and file.read(1) == b"{"


def _sharded(path: Path) -> dict[str, Any]:
    """The tensors of all files that an index names, which lie beside it."""
    index = json.loads(path.read_text(encoding="utf-8"))
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise _DamagedError(f"{path} is no index of safetensors: it has no weight_map of names.")
    state: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        shard = path.parent / name
        if Path(name).name != name or not shard.is_file():
            raise _DamagedError(
                f"{path} names {one_line(name)}, which is not a file beside it. Expected all "
                "shards in the folder of their index."
            )
        own = _safetensors(shard)["state_dict"]
        state |= {key: value for key, value in own.items() if places.get(key) == name}
    lacking = sorted(set(places) - set(state))
    if lacking:
        raise _DamagedError(f"{path} names {one_line(lacking[0])}, which its files do not hold.")
    return {"state_dict": {name: state[name] for name in places}}


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


def _unsafe_globals(path: Path) -> str:
    """What a zip file of `torch.save` names beyond tensors, in words; empty for other files.

    Torch reads the names from the pickle's opcodes and runs nothing.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # another format, or damaged: the caller says so
        return ""
    first = [one_line(name) for name in sorted(names)[:MOST_NAMES]]
    more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return ", ".join([*first, *more])
