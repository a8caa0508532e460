"""Options of a model, as the types and ranges that its builder declares."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from typing import Annotated, Any, Literal, ParamSpec, TypeAlias, TypeVar

from checkpoints.options import converted, described
from checkpoints.reader import one_line

P = ParamSpec("P")
T = TypeVar("T")

Count: TypeAlias = Annotated[int, ("at least", 1)]

FLAG = object()  # instead of an annotation: True or False by default
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
        ValueError: one line: the builder has no such option, or a value is not of the declared
            type or range.
    """
    (declared, others), defaults = options_of(builder), _defaults(builder)
    shown = one_line(model, 40)
    found = {}
    for name, value in options.items():
        if name not in declared and not others:
            known = ", ".join(declared) or "none"
            raise ValueError(f"{shown} has no option {one_line(name, 40)}. It has: {known}.")
        annotation = declared.get(name, Any)
        if annotation is FLAG:
            annotation = bool if isinstance(value, str) else Any
        elif (
            annotation is Any and isinstance(value, str) and not isinstance(defaults.get(name), str)
        ):
            value = WORDS.get(value.lower(), value)
        fitting = _readings(value, annotation) if _known(annotation) else [value]
        if not fitting:
            given, expected = one_line(str(value), 40), described(annotation)
            expected += " or none" if types.NoneType in _kinds(annotation) else ""
            raise ValueError(f"{shown}: {name}={given}; expected {expected}.")
        found[name] = fitting[0]
    return found


def enforced(
    needs: Mapping[str, tuple[str, Iterable[Any]]] = types.MappingProxyType({}),
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a builder convert its arguments to what it declares, and refuse those it has no use for.

    Args:
        needs: {option: (another, values)}: the option has an effect only where the other has one of
            these values, so it may not be passed elsewhere, not even as its default.

    Returns:
        A decorator, of a function or of a class's `__init__`. Calls raise `ValueError`, see
        `as_declared`.
    """

    def decorated(builder: Callable[P, T]) -> Callable[P, T]:
        model, signature = (
            builder.__qualname__.removesuffix(".__init__"),
            inspect.signature(builder),
        )

        @wraps(builder)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            given: dict[str, Any] = {}
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                others = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
                given |= value if others else {name: value}
            itself = [given.pop("self")] if "self" in given else []
            options = as_declared(model, builder, given)
            for name in needs.keys() & options.keys():
                other, values = needs[name]
                found = options.get(other, signature.parameters[other].default)
                if found not in values:
                    raise ValueError(
                        f"{name}={options[name]} has no effect with {other}={found}; it needs "
                        f"{other}={', '.join(map(str, values))}."
                    )
            return builder(*itself, **options)

        return call

    return decorated


def options_of(builder: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """{option: annotation}, and whether the builder takes others, or does not say what it takes."""
    try:
        parameters = inspect.signature(builder).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return {}, True
    hints, others = _hints(builder), False
    declared: dict[str, Any] = {}
    for each in parameters:
        hint = hints.get(each.name, FLAG if isinstance(each.default, bool) else Any)
        if typing.get_origin(hint) is typing.Unpack:
            declared |= typing.get_type_hints(typing.get_args(hint)[0], include_extras=True)
        elif each.kind is each.VAR_KEYWORD:
            others = True
        elif each.kind is not each.VAR_POSITIONAL:
            declared[each.name] = hint
    return declared, others


def _hints(builder: Callable[..., Any]) -> dict[str, Any]:
    while isinstance(builder, partial):
        builder = builder.func
    try:
        owner = builder.__init__ if isinstance(builder, type) else builder  # type: ignore[misc]
        return typing.get_type_hints(owner, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that a type checker alone knows
        return {}


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
    if origin is Annotated:
        return _known(arguments[0])
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
    if types.NoneType in kinds and word == "none":
        return [None]
    if bool in kinds and isinstance(word, str) and word in WORDS:
        return [WORDS[word]]
    if bool in kinds and isinstance(word, int) and word in (0, 1):
        return [bool(word)]
    if int in kinds and isinstance(word, float) and word.is_integer():
        return list(converted(int(word), annotation))
    texts = [str(value), json.dumps(value)] if isinstance(value, bool | int | float) else []
    return [found for text in texts for found in converted(text, annotation)]


def _kinds(annotation: Any) -> set[Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return {kind for each in arguments for kind in _kinds(each)}
    return {arguments[0] if origin is Annotated else annotation}
