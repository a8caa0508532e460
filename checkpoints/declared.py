"""Options of a model, as the types that its builder declares."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from checkpoints.options import converted, described
from checkpoints.reader import one_line

WORDS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
PLAIN = (bool, int, float, str, types.NoneType)


def as_declared(
    model: str, builder: Callable[..., Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Options converted to what the builder's annotations say; others are passed on as they are.

    Args:
        model: its name, for messages.
        builder: of the network. Without annotation, a default of True or False declares a bool. Of
            an option whose type is not declared, such as one in `**kwargs`, yes, no, on and off are
            True and False: as texts they would all be true.
        options: as given: words of a command line, or values of a file. For a bool these are
            yes, true, on, 1 and no, false, off, 0.

    Raises:
        ValueError: one line: a value is not of the declared type.
    """
    declared, defaults = _declared(builder), _defaults(builder)
    found = {}
    for name, value in options.items():
        default = defaults.get(name)
        if name not in declared and isinstance(value, str) and not isinstance(default, bool | str):
            value = WORDS.get(value.lower(), value)
        word = bool if isinstance(default, bool) and isinstance(value, str) else Any
        annotation = declared.get(name, word)
        fitting = _readings(value, annotation) if _known(annotation) else [value]
        if not fitting:
            shown, expected = one_line(str(value), 40), described(annotation)
            raise ValueError(f"{one_line(model, 40)}: {name}={shown}; expected {expected}.")
        found[name] = fitting[0]
    return found


def _declared(builder: Callable[..., Any]) -> dict[str, Any]:
    """{option: annotation}, also of those that `**options: Unpack[...]` stands for."""
    while isinstance(builder, partial):
        builder = builder.func
    try:
        owner = builder.__init__ if isinstance(builder, type) else builder  # type: ignore[misc]
        hints = typing.get_type_hints(owner)
    except (NameError, TypeError, AttributeError):  # names that a type checker alone knows
        return {}
    declared: dict[str, Any] = {}
    for name, hint in hints.items():
        if typing.get_origin(hint) is typing.Unpack:
            declared |= typing.get_type_hints(typing.get_args(hint)[0])
        elif hint is not Any:
            declared[name] = hint
    return declared


def with_defaults(builder: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those that are not given, so that omitted and explicit defaults are equal."""
    return _defaults(builder) | dict(options)


def _defaults(builder: Callable[..., Any]) -> dict[str, Any]:
    """{option: its value unless passed}, of those that the builder names."""
    try:
        parameters = inspect.signature(builder).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return {}
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _known(annotation: Any) -> bool:
    """Whether values of an annotation can be told from words: numbers, texts and lists of them."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return True
    if origin in (typing.Union, types.UnionType):
        return all(map(_known, arguments))
    if origin in (tuple, list):
        return set(arguments) <= {int, float, str, ...}
    return annotation in PLAIN


def _readings(value: Any, annotation: Any) -> list[Any]:
    """What a value may stand for, as it is before other readings of it."""
    if found := list(converted(value, annotation)):
        return found
    kinds = _kinds(annotation)
    word = value.lower() if isinstance(value, str) else value
    if bool in kinds and isinstance(word, str) and word in WORDS:
        return [WORDS[word]]
    if bool in kinds and isinstance(word, int) and word in (0, 1):
        return [bool(word)]
    if int in kinds and isinstance(word, float) and word.is_integer():
        return [int(word)]
    texts = [str(value), json.dumps(value)] if isinstance(value, bool | int | float) else []
    return [found for text in texts for found in converted(text, annotation)]


def _kinds(annotation: Any) -> set[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set(typing.get_args(annotation))
    return {annotation}
