"""What a trace depends on, as a key: two networks of one architecture have the same."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.problem import digest

_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, enum.Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    *(type, types.BuiltinFunctionType),
)


def fingerprint(value: Any, arguments: Collection[Tensor]) -> Hashable | None:
    """A key that is the same only for values from which the same graph is traced.

    It holds the classes and attributes of all modules, their hooks, and which of them are one and
    the same, but none of the numbers in `arguments`.

    Args:
        value: modules, functions, tensors, numbers, texts, dataclasses, and containers of them.
        arguments: tensors that a traced graph takes as its inputs: of these the form counts, of all
            others the numbers too.

    Returns:
        The key; None where `value` holds what cannot be compared, such as a function that
        remembers something.

    Cost: milliseconds for a ResNet-18.
    """
    try:
        return _Described({id(tensor) for tensor in arguments}).of(value)
    except TypeError:
        return None


class _Described:
    """One walk through a value."""

    def __init__(self, arguments: set[int]) -> None:
        self._arguments = arguments
        self._met: dict[int, int] = {}  # place of a module or tensor in the walk
        self._alive: list[Any] = []  # so that no two have the same id

    def of(self, value: Any) -> Hashable:
        """The key of a value.

        Raises:
            TypeError: it cannot be compared.
        """
        if isinstance(value, _PLAIN):
            return type(value), repr(value) if isinstance(value, float | complex) else value
        if id(value) in self._met:
            return "met", self._met[id(value)]
        if isinstance(value, Tensor | nn.Module):
            self._met[id(value)] = len(self._met)
        self._alive.append(value)
        return type(value), self._content(value)

    def _content(self, value: Any) -> Hashable:
        if isinstance(value, Tensor):
            form = (tuple(value.shape), value.stride(), value.dtype, value.device)
            numbers = "" if id(value) in self._arguments else digest({"": value})
            return form, value.requires_grad, numbers
        if isinstance(value, types.FunctionType) and value.__closure__ is None:
            return value
        if isinstance(value, types.MethodType):
            return self.of((value.__func__, value.__self__))
        if isinstance(value, functools.partial):
            return self.of((value.func, value.args, value.keywords))
        if isinstance(value, Mapping):
            return tuple((self.of(key), self.of(one)) for key, one in value.items())
        if isinstance(value, tuple | list):
            return tuple(map(self.of, value))
        if isinstance(value, set | frozenset):
            return frozenset(map(self.of, value))
        if isinstance(value, nn.Module) or dataclasses.is_dataclass(value):
            return self.of(vars(value))
        raise TypeError(f"a {type(value).__name__} cannot be compared")
