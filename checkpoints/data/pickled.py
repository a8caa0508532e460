"""Read a pickle of byte arrays, lists and strings without running what it asks for."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read(content: bytes, where: str) -> dict[str, object]:
    """The dictionary in a pickle; its numpy arrays must be of unsigned bytes.

    A pickle is a program that may import and call anything. Here an import yields only one of
    the four stand-ins below, which are what the pickle of an array needs and do nothing but hold
    values; numpy's own constructors, which trust the pickle about memory, are not reached either.

    Args:
        content: the pickle, of Python 2 or 3.
        where: the file, for error messages.

    Returns:
        The entries; keys that were byte strings are decoded.

    Raises:
        ValueError: the pickle imports anything else, is damaged, or is no dictionary.
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
            f"{where} asks for the Python object {error}, which no array needs, so it was not "
            "read: it may be an attack. Get the file from its authors again."
        ) from error
    except Exception as error:  # a damaged pickle may raise anything, as Python's manual warns
        raise ValueError(
            f"{where} is no pickle of a dictionary of byte arrays ({type(error).__name__}: "
            f"{' '.join(str(error).split())}). Get the file again."
        ) from error


class _RefusedError(Exception):
    """An import that is not allowed."""


class _Array:
    """Stands in for `numpy.ndarray`."""

    array: NDArray[np.uint8]

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, object, bytes]) -> None:
        _, shape, dtype, by_columns, content = state
        if not isinstance(dtype, _Byte):
            raise TypeError("the array is not of bytes")
        flat = np.frombuffer(content, dtype=np.uint8)
        self.array = flat.reshape(shape, order="F" if by_columns else "C")


class _Byte:
    """Stands in for `numpy.dtype`: unsigned bytes or nothing."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise TypeError(f"an array is of type {code!r}; expected u1")

    def __setstate__(self, state: object) -> None:
        pass


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str | bytes) -> bytes:
    """How Python 3 writes bytes in a Python 2 pickle."""
    if encoding not in ("latin1", b"latin1"):
        raise TypeError(f"bytes are encoded as {encoding!r}; expected latin1")
    return text.encode("latin1")


class _Unpickler(pickle._Unpickler):  # in Python: the one in C takes any memory it is told to
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
