"""Options as dataclasses, checked and converted in one place.

The same option is a flag on a command line, a key in a TOML file, and an argument in Python.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import numbers
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, dataclass_transform

D = TypeVar("D")
T = TypeVar("T")
P = ParamSpec("P")

LARGEST_SEED = 2**32 - 1
_WITHIN: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}

# Whether error messages name options as flags (`--top`) or as arguments (`top`).
_flags: ContextVar[bool] = ContextVar("flags", default=False)


def option(
    default: Any,
    help: str,
    metavar: str = "",
    *,
    flag: str = "",
    group: str = "",
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    earlier: Mapping[str, str] = types.MappingProxyType({}),
) -> Any:
    """A dataclass field that is a flag on the command line.

    Args:
        default: the field's default; a class is taken as the default factory.
        help: one line for `--help`.
        metavar: placeholder for the value in `--help`.
        flag: the flag, if it is not the field's name with dashes.
        group: the heading in `--help` under which it is listed.
        least: the smallest number allowed, of a list in each of its items.
        above: allowed are numbers above this.
        most: the largest number allowed.
        below: allowed are numbers below this.
        earlier: {name of a value in an earlier version: its name now}; still taken.
    """
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    metadata = {
        "help": help,
        "metavar": metavar,
        "flag": flag,
        "group": group,
        "bounds": {words: bound for words, bound in bounds.items() if bound is not None},
        "earlier": earlier,
    }
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def seed_option(help: str) -> Any:
    """The field of a seed: the same range wherever there is one."""
    return option(0, help, least=0, most=LARGEST_SEED)


@dataclass_transform(frozen_default=True, field_specifiers=(option, dataclasses.field))
def spec(cls: type[D]) -> type[D]:
    """Make `cls` a frozen dataclass of options that converts its arguments.

    Where the annotation asks for it, a single value becomes a tuple, an integer a float, and a path
    a string. Numbers must be finite and within their option's bounds. Then the class's own
    `__post_init__` checks what concerns several options.

    Raises:
        ValueError: on instantiation, for a value of another type or out of bounds; one line with
            the option's name.
    """
    own = cls.__dict__.get("__post_init__")

    @in_callers_words
    def convert(self: Any) -> None:
        annotations = typing.get_type_hints(type(self))
        for field in fields(self):
            value, annotation = _today(getattr(self, field.name), field), annotations[field.name]
            bounds = field.metadata.get("bounds", {})
            found = [each for each in converted(value, annotation) if _within(each, bounds)]
            if not found:
                expected = _expected(value, annotation, bounds)
                name = _flag(field) if _flags.get() else field.name
                raise ValueError(f"{name} {_shown(value)}; expected {expected}.")
            object.__setattr__(self, field.name, found[0])
        if own is not None:
            own(self)

    cls.__post_init__ = convert  # type: ignore[attr-defined]
    return dataclass(frozen=True)(cls)


@contextmanager
def given_as_flags() -> Iterator[None]:
    """A context in which error messages name options as flags."""
    token = _flags.set(True)
    try:
        yield
    finally:
        _flags.reset(token)


def in_callers_words(function: Callable[P, T]) -> Callable[P, T]:
    """Make errors of `function` name options as its caller wrote them: `--top`, or `top`."""

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
    """An error message with flags (`--top-k`) rewritten as arguments or keys (`top_k`)."""
    return re.sub(
        r"(?<![\w-])--(?:no-)?([a-z][a-z-]*[a-z])", lambda m: m[1].replace("-", "_"), message
    )


def add_flags(
    parser: argparse._ActionsContainer, dataclass: type, defaults: Mapping[str, Any] | None = None
) -> None:
    """Add one flag to `parser` for every field of `dataclass` that has a help text.

    Args:
        parser: or a group of one.
        dataclass: see `spec`.
        defaults: {field: what the command takes without its flag}, for the help, where that is not
            the field's own default.
    """
    annotations = typing.get_type_hints(dataclass)
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for field in _options_of(dataclass):
        heading = field.metadata["group"]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        groups[heading].add_argument(
            _flag(field),
            dest=field.name,
            default=argparse.SUPPRESS,
            **_argument(
                annotations[field.name],
                (defaults or {}).get(field.name, field.default),
                field.metadata,
            ),
        )


def from_flags(dataclass: type[D], namespace: argparse.Namespace) -> D:
    """Build `dataclass` from the flags that were passed; other fields keep their defaults."""
    annotations = typing.get_type_hints(dataclass)
    given = {}
    for field in _options_of(dataclass):
        if hasattr(namespace, field.name):
            value = getattr(namespace, field.name)
            if _is_table(annotations[field.name]):
                value = dict(value)
            elif isinstance(value, list):
                value = tuple(value)
            given[field.name] = value
    return dataclass(**given)


def as_flags(dataclass: type, values: Mapping[str, Any]) -> list[str]:
    """The command-line arguments that `from_flags` turns into these values.

    Args:
        dataclass: the dataclass with these fields.
        values: {name: value}; None and an empty tuple omit the flag.
    """
    words: list[str] = []
    known = {field.name: field for field in _options_of(dataclass)}
    for name, value in values.items():
        flag = _flag(known[name])
        if isinstance(value, bool):
            words += [flag if value else flag.replace("--", "--no-", 1)]
        elif isinstance(value, Mapping):
            for key, each in value.items():
                words += [flag, f"{key}={json.dumps(each)}"]
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)] if value else []
        elif value is not None:
            words += [flag, str(value)]
    return words


def _options_of(dataclass: type) -> list[dataclasses.Field[Any]]:
    return [field for field in fields(dataclass) if "help" in field.metadata]


def _flag(field: dataclasses.Field[Any]) -> str:
    return field.metadata.get("flag") or "--" + field.name.replace("_", "-")


def _is_table(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def key_value(text: str) -> tuple[str, Any]:
    """Parse `width=16` as ("width", 16). A value is JSON, or Python's True, False or None.

    Any other value stays a string.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, {"True": True, "False": False, "None": None}.get(value, value)


def _today(value: Any, field: dataclasses.Field[Any]) -> Any:
    """A value that had another name in an earlier version, by its name now."""
    earlier = field.metadata.get("earlier", {})
    return earlier.get(value, value) if isinstance(value, str) else value


def _argument(annotation: Any, default: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
    text = metadata["help"]
    if all(default is not none for none in (None, False, (), "", dataclasses.MISSING)):
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{text} (default: {shown})"
    text = text.replace("%", "%%")
    kinds = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        if len(kinds) > 1:
            parse = partial(_one_of, tuple(kinds))
            return {"type": parse, "metavar": metadata["metavar"] or "VALUE", "help": text}
        annotation = kinds[0]
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if _is_table(annotation):
        metavar = metadata["metavar"] or "NAME=VALUE"
        return {"action": "append", "type": key_value, "metavar": metavar, "help": text}
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        earlier = metadata.get("earlier", {})
        word = partial(_word, earlier) if earlier else type(choices[0])
        return {"choices": choices, "type": word, "help": text}
    if typing.get_origin(annotation) is tuple:
        kind, *others = typing.get_args(annotation)
        metavar = _metavar(kind, metadata)
        if others == [...]:
            return {
                "nargs": "+",
                "type": partial(_separated, kind),
                "action": _Commas,
                "metavar": metavar,
                "help": text,
            }
        metavars = tuple(metavar.split()) if " " in metavar else metavar
        return {"nargs": 1 + len(others), "type": kind, "metavar": metavars, "help": text}
    return {"type": annotation, "metavar": _metavar(annotation, metadata), "help": text}


def _word(earlier: Mapping[str, str], text: str) -> str:
    return earlier.get(text, text)


def _one_of(kinds: tuple[Any, ...], text: str) -> Any:
    """Parse `text` as a word of a `Literal` among `kinds`, or else as the first kind that fits."""
    for kind in kinds:
        if text in typing.get_args(kind):
            return text
    for kind in kinds:
        if typing.get_origin(kind) is not Literal:
            with suppress(ValueError):
                return kind(text)
    expected = " or ".join(described(kind) for kind in kinds)
    raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")


def _separated(kind: Any, text: str) -> list[Any]:
    """Parse `0.485,0.456,0.406` or `trace,density`, or a single value."""
    parts = text.split(",")
    words = typing.get_args(kind)
    try:
        if words and not set(parts) <= set(words):
            raise ValueError(text)
        return parts if words else [kind(part) for part in parts]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not {described(kind)}, nor a comma-separated list"
        ) from None


class _Commas(argparse.Action):
    """Joins lists separated by commas, spaces, or both."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [value for row in values for value in row])


def _metavar(kind: Any, metadata: Mapping[str, Any]) -> str:
    return metadata["metavar"] or {int: "N", float: "X"}.get(kind, "TEXT")


def built(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a table with its fields; see `checked`."""
    members = fields(kind)  # type: ignore[arg-type]
    required = [
        member.name
        for member in members
        if member.default is dataclasses.MISSING and member.default_factory is dataclasses.MISSING
    ]
    values = checked(table, where, typing.get_type_hints(kind), required=required)
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"[{where}] {error}") from error


def checked(
    table: Mapping[str, Any], where: str, hints: Mapping[str, Any], required: Any = ()
) -> dict[str, Any]:
    """The values of a table, each converted to the type of its annotation.

    Where the annotation asks for it, a list becomes a tuple, an integer a float, and a single value
    a tuple.

    Args:
        table: a table as read from TOML.
        where: the table's name, for error messages.
        hints: {key: annotation} of all allowed keys.
        required: keys that must be present.

    Raises:
        ValueError: a key is unknown or missing, or a value has another type.
    """
    unknown = [key for key in table if key not in hints]
    if unknown:
        raise ValueError(f"[{where}] has no key {unknown[0]!r}. Known: {', '.join(hints)}.")
    missing = [key for key in required if key not in table]
    if missing:
        raise ValueError(
            f"[{where}] {missing[0]} is missing; expected {described(hints[missing[0]])}."
        )
    values = {}
    for key, value in table.items():
        found = list(converted(value, hints[key]))
        if not found:
            expected = _expected(value, hints[key], {})
            raise ValueError(f"[{where}] {key} = {value!r}; expected {expected}.")
        values[key] = found[0]
    return values


def converted(value: Any, annotation: Any) -> Iterator[Any]:
    """Yield `value` converted to the annotation; nothing if it does not fit.

    `Annotated[int, ("at least", 1)]` has bounds, see `option`.
    """
    value = _plain(value)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = dict(arguments[1:])
        yield from (each for each in converted(value, arguments[0]) if _within(each, bounds))
    elif origin in (typing.Union, types.UnionType):
        for each in arguments:
            yield from converted(value, each)
    elif origin is Literal:
        yield from (each for each in arguments if each == value and type(each) is type(value))
    elif origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        kinds = [arguments[0]] * len(items) if arguments[-1] is ... else list(arguments)
        if len(kinds) == len(items):
            rows = [list(converted(v, kind)) for v, kind in zip(items, kinds, strict=True)]
            if all(rows) and (not _is_choice(annotation) or 0 < len(set(items)) == len(items)):
                yield tuple(row[0] for row in rows)
    elif origin is list:
        if isinstance(value, list) and all(list(converted(v, arguments[0])) for v in value):
            yield value
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, dict) and all(
            list(converted(v, arguments[1])) for v in value.values()
        ):
            yield value
    elif annotation is Any:
        yield value
    elif annotation is Path and isinstance(value, str | os.PathLike) and os.fspath(value):
        yield Path(value)
    elif annotation is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        yield float(value)
    elif annotation is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        yield int(value)
    elif annotation is str and isinstance(value, str | os.PathLike) and os.fspath(value):
        yield os.fspath(value)
    elif annotation in (bool, types.NoneType) and type(value) is annotation:
        yield value


def _plain(value: Any) -> Any:
    """Scalars and arrays of numpy, and torch's devices and dtypes, as Python's own types."""
    kind = type(value)
    if kind.__module__ == "torch" and kind.__name__ in ("device", "dtype"):
        return str(value).removeprefix("torch.")
    if kind.__module__ == "numpy" and kind.__name__ in ("ndarray", "bool", "bool_"):
        return value.tolist()
    return value


def _is_choice(annotation: Any) -> bool:
    """Whether a list holds some of a few words, which are then listed once each."""
    arguments = typing.get_args(annotation)
    return typing.get_origin(arguments[0]) is Literal and arguments[-1] is ...


def _within(value: Any, bounds: Mapping[str, float]) -> bool:
    """Whether a number, or every number of a list, is finite and within the bounds."""
    if isinstance(value, tuple):
        return all(_within(each, bounds) for each in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return math.isfinite(value) and all(_WITHIN[w](value, bound) for w, bound in bounds.items())


def _shown(value: Any) -> str:
    """A value as it would be written on the command line."""
    if isinstance(value, tuple | list) and value:
        return " ".join(map(_shown, value))
    return value if isinstance(value, str) and value else repr(value)


def _expected(value: Any, annotation: Any, bounds: Mapping[str, float]) -> str:
    """What was expected in place of `value`, in words."""
    words = described(annotation, bounds)
    items = value if isinstance(value, tuple | list) else [value]
    if "" in items:
        words = re.sub("(a |of )string", r"\1non-empty string", words)
    if any(isinstance(item, float) and not math.isfinite(item) for item in items):
        words = re.sub("(a |of )number", r"\1finite number", words)
    return words


def described(annotation: Any, bounds: Mapping[str, float] = types.MappingProxyType({})) -> str:
    """What an annotation and bounds allow, in words."""
    limits = " and ".join(f"{words} {bound:.15g}" for words, bound in bounds.items())
    limits = f", {limits}" if limits else ""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return described(arguments[0], dict(arguments[1:]))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(described(e, bounds) for e in arguments if e is not types.NoneType)
    if origin is Literal:
        return (
            ", ".join(map(repr, arguments[:-1]))
            + " or " * (len(arguments) > 1)
            + repr(arguments[-1])
        )
    if origin is tuple and arguments[-1] is not ...:
        return f"{len(arguments)} {_PLURALS[arguments[0]]}{limits}"
    if origin in (tuple, list) and _is_choice(annotation):
        return f"some of {', '.join(typing.get_args(arguments[0]))}, each once"
    if origin in (tuple, list):
        return f"a list of {_PLURALS.get(arguments[0], 'tables')}{limits}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a table"
    words = {int: f"a whole number{limits}", float: f"a number{limits}", bool: "true or false"}
    return words.get(annotation, "a string")


_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "strings"}
