"""Words of a command line as the types that a model's builder declares."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoints.checkpoint import complete_options
from checkpoints.declared import as_declared
from checkpoints.options import key_value


def builder(
    flag: bool, kind: str = "no", mode="no", plain=False, size=1, none=None, **others: Any
) -> None: ...


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("flag=no", False),
        ("flag=On", True),
        ("flag=0", False),
        ("flag=1", True),
        ("kind=no", "no"),
        ("kind=12", "12"),
        ("mode=no", "no"),
        ("plain=off", False),
        ("size=no", False),
        ("size=2.5", 2.5),
        ("none=no", False),
        ("none=red", "red"),
        ("others=FALSE", False),
        ("others=yes", True),
        ("others=1", 1),
    ],
)
def test_a_word_means_what_its_option_is(text: str, value: Any) -> None:
    found = as_declared("net", builder, dict([key_value(text)]))
    assert list(found.values()) == [value]
    assert type(next(iter(found.values()))) is type(value)


@pytest.mark.parametrize("text", ["flag=nope", "flag=2", "flag=None", "plain=nope"])
def test_a_word_that_is_none_of_the_type_is_refused(text: str) -> None:
    name, _, word = text.partition("=")
    with pytest.raises(ValueError, match=f"net: {name}={word}; expected true or false."):
        as_declared("net", builder, dict([key_value(text)]))


def test_options_are_complete_with_defaults_and_tell_types_apart() -> None:
    plain = complete_options("resnet8", {})
    assert plain["width"] == "16"
    assert complete_options("resnet8", {"width": 16.0, "merge": "add"}) == plain
    with pytest.raises(ValueError, match="resnet8 has no option more"):
        complete_options("resnet8", {"more": 1})
