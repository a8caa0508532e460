"""Options as dataclasses: checked and converted in one place, whoever gives them.

On a command line they are flags, in a TOML file keys, in Python arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, dataclass_transform

D = TypeVar("D")
T = TypeVar("T")
P = ParamSpec("P")

# Whether options were given as flags; else errors name them as arguments.
_flags: ContextVar[bool] = ContextVar("flags", default=False)


def option(default: Any, help: str, metavar: str = "") -> Any:
    """A dataclass field that becomes the flag `--its-name`, explained by `help`."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass_transform(frozen_default=True, field_specifiers=(option, dataclasses.field))
def spec(cls: type[D]) -> type[D]:
    """A frozen dataclass of options that converts what it is given.

    A single value becomes a tuple of one where a tuple is asked for, a whole number a float, a path
    a text. Then the class's own `__post_init__` checks the values.

    Raises:
        ValueError: by the class, one line: a value of another type, with the option's name.
    """
    own = cls.__dict__.get("__post_init__")

    @in_callers_words
    def convert(self: Any) -> None:
        for name, annotation in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            found = list(_converted(value, annotation))
            if not found:
                shown = " ".join(map(str, value)) if isinstance(value, tuple | list) else value
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} {shown!s}; expected {_described(annotation)}.")
            object.__setattr__(self, name, found[0])
        if own is not None:
            own(self)

    cls.__post_init__ = convert  # type: ignore[attr-defined]
    return dataclass(frozen=True)(cls)


@contextmanager
def given_as_flags() -> Iterator[None]:
    """Stand in it where options come from a command line."""
    token = _flags.set(True)
    try:
        yield
    finally:
        _flags.reset(token)


def in_callers_words(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, whose errors name options as its caller knows them: `--top`, or `top`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            if _flags.get():
                raise
            raise ValueError(as_arguments(str(error))) from error

    return call


def as_arguments(message: str) -> str:
    """A message that speaks of flags, as one that speaks of arguments or keys."""
    return re.sub(
        r"(?<![\w-])--(?:no-)?([a-z][a-z-]*[a-z])", lambda m: m[1].replace("-", "_"), message
    )


def add_flags(parser: argparse._ActionsContainer, dataclass: type) -> None:
    """Add one flag to `parser` for every field of `dataclass` that has a help text."""
    annotations = typing.get_type_hints(dataclass)
    for field in dataclasses.fields(dataclass):
        if "help" in field.metadata:
            parser.add_argument(
                "--" + field.name.replace("_", "-"),
                dest=field.name,
                default=argparse.SUPPRESS,
                **_argument(annotations[field.name], field.default, field.metadata),
            )


def from_flags(dataclass: type[D], namespace: argparse.Namespace) -> D:
    """Build `dataclass` from the flags that were given; the others keep their defaults."""
    names = {field.name for field in dataclasses.fields(dataclass)}  # type: ignore[arg-type]
    given = vars(namespace).items()
    return dataclass(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in given if name in names}
    )


def key_value(text: str) -> tuple[str, Any]:
    """`width=16` as ("width", 16): a number, list, text in JSON, or Python's True, False, None.

    What is none of these stays a string.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, {"True": True, "False": False, "None": None}.get(value, value)


def _argument(annotation: Any, default: Any, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata["help"]
    if default is not None and default is not False and default != ():
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{text} (default: {shown})"
    text = text.replace("%", "%%")
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        return {"choices": choices, "type": type(choices[0]), "help": text}
    if typing.get_origin(annotation) is tuple:
        kind, *others = typing.get_args(annotation)
        count = "+" if others == [...] else 1 + len(others)
        return {"nargs": count, "type": kind, "metavar": _metavar(kind, metadata), "help": text}
    return {"type": annotation, "metavar": _metavar(annotation, metadata), "help": text}


def _metavar(kind: type, metadata: Mapping[str, str]) -> str:
    return metadata.get("metavar") or {int: "N", float: "X"}.get(kind, "TEXT")


def built(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table that holds its fields; see `checked`."""
    members = fields(kind)  # type: ignore[arg-type]
    required = [
        member.name
        for member in members
        if member.default is dataclasses.MISSING and member.default_factory is dataclasses.MISSING
    ]
    return kind(**checked(table, where, typing.get_type_hints(kind), required=required))


def checked(
    table: Mapping[str, Any], where: str, hints: Mapping[str, Any], required: Any = ()
) -> dict[str, Any]:
    """The values of a table, each of the type that its annotation asks for.

    A list becomes a tuple, a whole number a float where one is needed, and a single value a tuple
    of one.

    Args:
        table: as TOML gives it.
        where: its name, for the error.
        hints: {key: annotation} of all keys that there may be.
        required: keys that must be there.

    Raises:
        ValueError: a key that is unknown or missing, or a value of another type.
    """
    unknown = [key for key in table if key not in hints]
    if unknown:
        raise ValueError(f"[{where}] has no key {unknown[0]!r}. Known: {', '.join(hints)}.")
    missing = [key for key in required if key not in table]
    if missing:
        raise ValueError(
            f"[{where}] {missing[0]} is missing; needed: {_described(hints[missing[0]])}."
        )
    values = {}
    for key, value in table.items():
        found = list(_converted(value, hints[key]))
        if not found:
            raise ValueError(f"[{where}] {key} = {value!r}; needed: {_described(hints[key])}.")
        values[key] = found[0]
    return values


def _converted(value: Any, annotation: Any) -> Iterator[Any]:
    """`value` as the annotation asks for it; nothing where it does not fit."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for each in arguments:
            yield from _converted(value, each)
    elif origin is Literal:
        yield from (each for each in arguments if each == value and type(each) is type(value))
    elif origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        kinds = [arguments[0]] * len(items) if arguments[-1] is ... else list(arguments)
        if len(kinds) == len(items):
            rows = [list(_converted(v, kind)) for v, kind in zip(items, kinds, strict=True)]
            if all(rows):
                yield tuple(row[0] for row in rows)
    elif origin is list:
        if isinstance(value, list) and all(list(_converted(v, arguments[0])) for v in value):
            yield value
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, dict) and all(
            list(_converted(v, arguments[1])) for v in value.values()
        ):
            yield value
    elif annotation is Any:
        yield value
    elif annotation is Path and type(value) is str:
        yield Path(value)
    elif annotation is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        yield float(value)
    elif annotation is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        yield int(value)
    elif annotation is str and isinstance(value, str | os.PathLike):
        yield os.fspath(value)
    elif annotation in (bool, types.NoneType) and type(value) is annotation:
        yield value


def _described(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(each) for each in arguments if each is not types.NoneType)
    if origin is Literal:
        return (
            ", ".join(map(repr, arguments[:-1]))
            + " or " * (len(arguments) > 1)
            + repr(arguments[-1])
        )
    if origin in (tuple, list):
        return f"a list, each of it {_described(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a table"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return words.get(annotation, "a text")
