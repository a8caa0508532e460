"""Command-line flags from a dataclass: one flag a field, its help from the field's metadata."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

D = TypeVar("D")


def option(default: Any, help: str, metavar: str = "") -> Any:
    """A dataclass field that becomes the flag `--its-name`, explained by `help`."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


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
