"""Read a checkpoint file's entries without running what it asks for."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from checkpoints import foreign_files

FORMAT = "cnn-landscape checkpoint"
EXPECTED = "Expected a state dict that torch.save or safetensors wrote."
BLOCK = 2**24  # bytes that are read at a time
# What a file may take in memory: TIMES its size, since weights may be compressed or tied, and ROOM
# bytes. A few bytes can claim any size: a compressed member, or one number repeated by stride 0.
TIMES, ROOM = 10, 2**26


def read(path: Path) -> Mapping[str, Any]:
    """The entries of a pickled file, or of safetensors as `state_dict`. No code in it runs.

    What a file is follows from its content; its name serves to explain a refusal alone. The index
    of several files (`model.safetensors.index.json`) stands for their tensors.

    Raises:
        ValueError: one line: damaged, no dict, wants more than tensors, would take far more memory
            than the file has bytes, or a file of another kind.
    """
    try:
        return _sharded(path) if _is_index(path) else _entries(path)
    except (MemoryError, UnreadableError):
        raise
    except Exception as error:  # neither reader documents exception types for damaged files
        raise _refusal(path, error) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, and of those of its shards after it where it is an index."""
    try:
        shards = sorted(set(_places(path).values())) if _is_index(path) else []
    except ValueError:  # begins like an index, and is none
        shards = []
    digest = hashlib.sha256()
    for part in (path, *(path.parent / name for name in shards)):
        with part.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _entries(path: Path) -> Mapping[str, Any]:
    """The entries of one file."""
    if _is_safetensors(path):
        return _safetensors(path)
    _check_zip(path)
    with warnings.catch_warnings():  # on pickles that are refused below anyway
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, list | tuple) and any(isinstance(each, Mapping) for each in content):
        content = {str(number): each for number, each in enumerate(content)}
    if not isinstance(content, Mapping):
        found = type(content).__name__
        raise UnreadableError(f"{path} holds a {found}; expected a dict of tensors.")
    _check_room(path, _bytes_of(content))
    return content


def _refusal(path: Path, error: Exception) -> ValueError:
    if isinstance(error, PermissionError | FileNotFoundError):
        return ValueError(f"{path} cannot be read: {error.strerror}.")
    what = foreign_files.described(path)
    if what:
        return ValueError(f"{path} is {what}. {EXPECTED}")
    names = _unsafe_globals(path) or _first_global(path, error)
    wanted = listed(names, 50)
    if any(word in name for name in names for word in ("DTensor", "ShardedTensor", "fsdp")):
        return ValueError(
            f"{path} is sharded over processes (FSDP or DTensor). Expected a full state dict, as "
            "torch.distributed.checkpoint.state_dict.get_state_dict gives."
        )
    if wanted and _holds_module(path):
        return ValueError(
            f"{path} holds a whole pickled module ({wanted}), and loading one runs code. "
            "Save its state_dict() alone."
        )
    if wanted:
        return ValueError(
            f"{path} asks for more than tensors: {wanted}. It was not loaded, since such a "
            "file can run code. Save model.state_dict() alone."
        )
    return ValueError(
        f"{path} is not a checkpoint, or damaged, or a pickle that could run code "
        f"({reason(error).split('. ')[0][:60]}). {EXPECTED}"
    )


class UnreadableError(ValueError):
    """What is wrong, in one line that names the file."""


def _check_zip(path: Path) -> None:
    """Compare the CRC-32 of every member of a zip file, which torch does not."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        _check_room(path, sum(member.file_size for member in archive.infolist()))
        bad = archive.testzip()
    if bad is not None:
        raise UnreadableError(
            f"{path} is damaged: its part {one_line(bad, 40)} does not have its checksum. Expected "
            "the file as it was written; copy or download it again."
        )


def _bytes_of(content: Any) -> int:
    """What the dense tensors of a file's entries would take if each were copied."""
    if isinstance(content, Tensor):
        dense = content.layout == torch.strided and not (content.is_meta or content.is_nested)
        return content.numel() * content.element_size() if dense else 0
    if isinstance(content, Mapping):
        content = content.values()
    elif not isinstance(content, list | tuple):
        return 0
    return sum(map(_bytes_of, content))


def _check_room(path: Path, needed: int) -> None:
    size = path.stat().st_size
    if needed > TIMES * size + ROOM:
        raise UnreadableError(
            f"{path} has {size:.2g} bytes and would take {needed:.2g} in memory; expected at most "
            f"{TIMES} times as many. Save contiguous copies of its tensors, uncompressed."
        )


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: with a header's size, and its brace."""
    with path.open("rb") as file:
        first = file.read(9)
    size = path.stat().st_size
    return first[8:] == b"{" and 2 <= int.from_bytes(first[:8], "little") <= size - 8


def _safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    about = json.loads(metadata[FORMAT]) if FORMAT in metadata else {}
    if not isinstance(about, dict):
        raise UnreadableError(f"{path} is damaged: its description is a {type(about).__name__}.")
    return {**about, "state_dict": state}


def _is_index(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"{"


def _places(index: Path) -> dict[str, str]:
    """{tensor: file} of an index of shards."""
    places = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise UnreadableError(f"{index} is no index of shards: it has no weight_map of names.")
    return places


def _sharded(index: Path) -> dict[str, Any]:
    """The tensors of all files that an index names, which lie next to it, or are linked there."""
    places = _places(index)
    state: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            raise UnreadableError(
                f"{index} names {one_line(name, 60)}, which is not a file beside it. Expected all "
                "shards in the folder of their index."
            )
        entries = _entries(shard)
        own = entries.get("state_dict", entries)
        state |= {key: value for key, value in own.items() if places.get(key) == name}
    lacking = listed(sorted(set(places) - set(state)), 60)
    if lacking:
        raise UnreadableError(f"{index} names {lacking}, which its files do not hold.")
    return {"state_dict": {name: state[name] for name in places}}


def reason(error: Exception) -> str:
    """What an error says, in one line and without advice to load the file unsafely."""
    kind = type(error).__name__
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    if not text or "weights_only" in text:
        return kind
    first = one_line(text.splitlines()[0], 120).rstrip(".")
    return first if isinstance(error, ValueError) else f"{kind}: {first}"


def one_line(text: str, room: int | None = None) -> str:
    """`text` without line breaks and control characters, which names in a file may hold.

    Args:
        text: any.
        room: characters, beyond which it is cut.
    """
    line = "".join(c if c.isprintable() else " " for c in text[: room and room + 1])
    return line if room is None or len(line) <= room else line[: room - 1] + "…"


def listed(names: Iterable[str], room: int = 80, between: str = ", ") -> str:
    """As many of `names` as there is room for, at least one, and the number of the others."""
    lines = [one_line(name, room) for name in names]
    count = min(len(lines), 1)
    while count < len(lines) and len(between.join(lines[: count + 1])) <= room:
        count += 1
    more = [f"and {len(lines) - count} more"] if len(lines) > count else []
    return between.join([*lines[:count], *more])


def _unsafe_globals(path: Path) -> list[str]:
    """What a zip file of `torch.save` names beyond tensors; nothing for other files.

    Torch reads the names from the pickle's opcodes and runs nothing.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # another format, or damaged: the caller says so
        return []


def _first_global(path: Path, error: Exception) -> list[str]:
    """What a pickle of another format asks for first."""
    with path.open("rb") as file:
        pickled = file.read(1) == b"\x80"  # of text, any word may look like a name
    return re.findall(r"GLOBAL (\S+) was not an allowed", str(error)) if pickled else []


def _holds_module(path: Path) -> bool:
    """Whether a pickle names the attributes in which every `torch.nn.Module` keeps its parts."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                with archive.open(name) as file:
                    pickled = file.read(BLOCK)
        else:
            with path.open("rb") as file:
                pickled = file.read(BLOCK)
    except (OSError, StopIteration, zipfile.BadZipFile):
        return False
    return all(word in pickled for word in (b"_parameters", b"_buffers", b"_modules"))
