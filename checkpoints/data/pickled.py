"""Read a pickle of byte arrays, lists and strings without running code from it."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read(content: bytes, where: str) -> dict[str, object]:
    """The dictionary in a pickle; its NumPy arrays must have dtype uint8.

    A pickle is a program that may import and call anything. Here imports resolve only to the
    stand-ins below, which suffice to unpickle an array and only store values. NumPy's own
    constructors, which trust the sizes in a pickle, are never called.

    Args:
        content: the pickle, of Python 2 or 3.
        where: the file, for error messages.

    Returns:
        The entries, with byte-string keys decoded.

    Raises:
        ValueError: the pickle imports anything else, is damaged, or is not a dictionary.
    """
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return {
            key.decode("latin1") if isinstance(key, bytes) else str(key): value.array
            if isinstance(value, _Array)
            else value
            for key, value in loaded.items()
        }
    except _RefusedError as error:
        raise ValueError(
            f"{where} asks for the Python object {error}, which an array does not need. It was not "
            "read, since it may be an attack. Get the file from its authors again."
        ) from error
    except Exception as error:  # a damaged pickle may raise anything, see Python's manual
        raise ValueError(
            f"{where} is not a pickle of a dictionary of byte arrays ({type(error).__name__}: "
            f"{' '.join(str(error).split())}). Get the file again."
        ) from error


class _RefusedError(Exception):
    """A forbidden import."""


class _Array:
    """Replaces `numpy.ndarray`."""

    array: NDArray[np.uint8]

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, object, bytes]) -> None:
        _, shape, dtype, by_columns, content = state
        if not isinstance(dtype, _Byte):
            raise TypeError("the array is not of bytes")
        flat = np.frombuffer(content, dtype=np.uint8)
        self.array = flat.reshape(shape, order="F" if by_columns else "C")


class _Byte:
    """Replaces `numpy.dtype`; accepts only unsigned bytes."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise TypeError(f"an array is of type {code!r}; expected u1")

    def __setstate__(self, state: object) -> None:
        pass


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str | bytes) -> bytes:
    """Replaces `_codecs.encode`, by which Python 3 writes bytes into a protocol 2 pickle."""
    if encoding not in ("latin1", b"latin1"):
        raise TypeError(f"bytes are encoded as {encoding!r}; expected latin1")
    return text.encode("latin1")


class _Unpickler(pickle._Unpickler):  # in Python: the C version allocates any size in the file
    allowed: dict[tuple[str, str], object] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Byte,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in self.allowed:
            raise _RefusedError(f"{module_name}.{global_name}")
        return self.allowed[module_name, global_name]
