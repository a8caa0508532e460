from __future__ import annotations

import argparse
import ctypes.util
import dataclasses
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
import pytest
import torch

from checkpoints import device
from checkpoints.options import add_flags, as_flags, from_flags, key_value, option
from checkpoints.source import Source
from checkpoints.train.recipe import Recipe
from landscape.registry import PROBES


@dataclass(frozen=True)
class Spec:
    points: int = option(51, "points per axis")
    extent: float = option(1.0, "reaches 100% of the way")
    name: str = option("origin", "a name")
    file: Path = option(Path("a.h5"), "a path", metavar="FILE")
    chosen: Literal["one", "two"] = option("one", "of two")
    dimensions: Literal[1, 2] = option(2, "a line or a plane")
    flip: bool = option(True, "mirrored")
    quiet: bool = option(False, "say nothing")
    sizes: tuple[int, ...] = option((3, 4), "one or more")
    window: tuple[float, float] = option((0.0, 1.0), "from and to")
    none: tuple[float, ...] = option((), "none by default")
    maybe: int | None = option(None, "may be left out")
    maybe_older: Optional[float] = option(None, "likewise")  # noqa: UP045
    maybe_flag: bool | None = option(None, "likewise")
    maybe_choice: Literal["a", "b"] | None = option(None, "likewise")
    maybe_sizes: tuple[int, ...] | None = option(None, "likewise")
    two_words: int = option(0, "with a dash")
    either: float | Literal["fit"] = option(1.0, "a number or a word", "X|fit")
    table: Mapping[str, Any] = option(dict, "a key and a value", flag="--entry")
    pair: tuple[int, int] = option((1, 2), "two", "H W", group="another heading")
    words: tuple[str, ...] = option((), "texts")
    some: tuple[Literal["a", "b"], ...] = option((), "words")
    no_flag: int = field(default=7)


def parsed(*arguments: str) -> Spec:
    parser = argparse.ArgumentParser()
    add_flags(parser, Spec)
    parser.add_argument("--other", default=3)
    return from_flags(Spec, parser.parse_args(arguments))


def test_what_is_not_given_keeps_its_default() -> None:
    assert parsed() == Spec()
    assert parsed("--other", "4") == Spec()


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--points", "7"], "points", 7),
        (["--extent", "-2.5"], "extent", -2.5),
        (["--extent=-1e-3"], "extent", -1e-3),
        (["--name", "7"], "name", "7"),
        (["--file", "b/c.h5"], "file", Path("b/c.h5")),
        (["--chosen", "two"], "chosen", "two"),
        (["--dimensions", "1"], "dimensions", 1),
        (["--no-flip"], "flip", False),
        (["--quiet"], "quiet", True),
        (["--sizes", "1"], "sizes", (1,)),
        (["--sizes", "1", "2", "3"], "sizes", (1, 2, 3)),
        (["--window", "-1", "0.5"], "window", (-1.0, 0.5)),
        (["--none", "1", "2"], "none", (1.0, 2.0)),
        (["--maybe", "0"], "maybe", 0),
        (["--maybe-older", "0"], "maybe_older", 0.0),
        (["--no-maybe-flag"], "maybe_flag", False),
        (["--maybe-choice", "b"], "maybe_choice", "b"),
        (["--maybe-sizes", "5"], "maybe_sizes", (5,)),
        (["--two-words", "5"], "two_words", 5),
        (["--sizes", "1,2", "3"], "sizes", (1, 2, 3)),
        (["--none", "0.5,1e-3"], "none", (0.5, 1e-3)),
        (["--either", "fit"], "either", "fit"),
        (["--either", "2"], "either", 2.0),
        (["--entry", "a=1", "--entry", "b=x"], "table", {"a": 1, "b": "x"}),
        (["--pair", "3", "4"], "pair", (3, 4)),
        (["--words", "a,b", "c"], "words", ("a", "b", "c")),
        (["--some", "b,a"], "some", ("b", "a")),
    ],
)
def test_a_flag_has_its_field_s_type(arguments: list[str], name: str, value: object) -> None:
    found = getattr(parsed(*arguments), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--points", "1.5"],
        ["--extent", "wide"],
        ["--chosen", "three"],
        ["--dimensions", "3"],
        ["--sizes"],
        ["--sizes", "1", "x"],
        ["--window", "1"],
        ["--window", "1", "2", "3"],
        ["--maybe-choice", "c"],
        ["--sizes", "1,x"],
        ["--sizes", "1,,2"],
        ["--some", "a,c"],
        ["--either", "warm"],
        ["--entry", "a"],
        ["--pair", "3"],
        ["--no-flag", "3"],
    ],
)
def test_a_wrong_value_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsed(*arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err or arguments[0] == "--no-flag"


def test_help_tells_meaning_default_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    told = " ".join(capsys.readouterr().out.split())
    for line in (
        "--points N points per axis (default: 51)",
        "--extent X reaches 100% of the way (default: 1.0)",
        "--file FILE a path (default: a.h5)",
        "--chosen {one,two} of two (default: one)",
        "--dimensions {1,2} a line or a plane (default: 2)",
        "--flip, --no-flip mirrored (default: True)",
        "--sizes N [N ...] one or more (default: 3 4)",
        "--window X X from and to (default: 0.0 1.0)",
        "--none X [X ...] none by default --maybe N",
        "--two-words N with a dash (default: 0)",
    ):
        assert line in told
    assert "another heading: --pair H W two (default: 1 2)" in told
    assert "--entry NAME=VALUE a key and a value" in told
    assert "--either X|fit a number or a word (default: 1.0)" in told
    assert "None" not in told
    assert "SUPPRESS" not in told


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16", 16),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("None", None),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("product", "product"),
        ('"16"', "16"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_an_option_s_value_is_json_or_text(text: str, value: object) -> None:
    name, found = key_value(f"width={text}")
    assert (name, found) == ("width", value)
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["width", "=16", "", "two words=3", "1a=3"])
def test_an_option_needs_a_name_and_a_value(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not of the form name=value"):
        key_value(text)


@pytest.mark.parametrize(
    "values",
    [
        {"points": 7, "extent": -1e-3, "name": "a b", "flip": False, "quiet": True},
        {"sizes": (5, 6), "window": (-1.0, 0.5), "maybe": 0, "maybe_flag": False},
        {"either": "fit", "table": {"a": [1, 2], "b": "x", "c": None}, "pair": (3, 4)},
        {"maybe": None, "none": (), "table": {}},
    ],
)
def test_values_written_as_flags_are_read_back(values: dict[str, Any]) -> None:
    assert parsed(*as_flags(Spec, values)) == Spec(**values)


def test_memory_settings_may_be_made_twice() -> None:
    """In a process of its own, since they cannot be taken back."""
    code = "from checkpoints.device import keep_freed_memory as f; print(f(), f(), sum([1] * 9))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    first, second, total = done.stdout.split()
    assert first == second
    assert first in ("True", "False")
    assert total == "9"


@pytest.mark.parametrize("library", [None, "absent"])
def test_without_glibc_nothing_is_set(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: library)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert device.keep_freed_memory() is False


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"layers": "fc.*"}, ("layers", ("fc.*",))),
        ({"which": "largest"}, ("which", ("largest",))),
        ({"layers": ["a.*", "b"]}, ("layers", ("a.*", "b"))),
        ({"tol": 0.1}, ("tol", 0.1)),
        ({"top": np.int64(3)}, ("top", 3)),
        ({"save_directions": Path("d.h5")}, ("save_directions", "d.h5")),
        ({"multiple": np.bool_(True)}, ("multiple", True)),
        ({"which": np.array(["largest", "smallest"])}, ("which", ("largest", "smallest"))),
    ],
)
def test_python_callers_may_write_one_value_for_a_list_and_their_own_types(
    given: dict[str, Any], stored: tuple[str, Any]
) -> None:
    from landscape.hessian.spec import Spec

    value = getattr(Spec(**given), stored[0])
    assert value == stored[1]
    assert type(value) is type(stored[1])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"top": "five"}, "top five; expected a whole number, at least 1."),
        ({"top": True}, "top True; expected a whole number, at least 1."),
        ({"max_products": 2.5}, "max_products 2.5; expected a whole number, at least 1."),
        ({"space": "pixels"}, "space pixels; expected 'weights' or 'inputs'."),
        ({"multiple": 1}, "multiple 1; expected true or false."),
        ({"layers": 3}, "layers 3; expected a list of strings."),
        ({"layers": ("a", "")}, "layers a ''; expected a list of non-empty strings."),
        ({"save_directions": ""}, "save_directions ''; expected a non-empty string."),
        ({"tol": math.nan}, "tol nan; expected a finite number, above 0 and below 1."),
        (
            {"which": "largst"},
            "which largst; expected some of magnitude, largest, smallest, each once.",
        ),
        (
            {"parts": ("trace", "trace")},
            "parts trace trace; expected some of eigenpairs, density, trace, each once.",
        ),
        ({"parts": ()}, "parts (); expected some of eigenpairs, density, trace, each once."),
        (
            {"seed": 2**32},
            "seed 4294967296; expected a whole number, at least 0 and at most 4294967295.",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_name_of_the_argument(
    given: dict[str, Any], line: str
) -> None:
    from checkpoints.options import given_as_flags
    from landscape.hessian.spec import Spec

    with pytest.raises(ValueError) as told:
        Spec(**given)
    assert str(told.value) == line
    with pytest.raises(ValueError) as told, given_as_flags():
        Spec(**given)
    assert str(told.value) == "--" + line.replace("_", "-")


NUMBERS = [
    (spec, field.name)
    for spec in (*(probe.spec for probe in PROBES.values()), Source, Recipe)
    for field in dataclasses.fields(spec)
    if re.search(r"\b(int|float)\b", str(field.type)) and "help" in field.metadata
]


@pytest.mark.parametrize(("spec", "name"), NUMBERS, ids=lambda v: getattr(v, "__module__", v))
@pytest.mark.parametrize("value", [-1e18, math.nan, math.inf])
def test_no_number_of_any_option_may_be_absurd(spec: type, name: str, value: float) -> None:
    """Every number has a lower bound (but a mean), and none may be infinite."""
    if (spec, name, value) == (Source, "mean", -1e18):
        pytest.skip("a mean may be any finite number")
    (number,) = (field for field in dataclasses.fields(spec) if field.name == name)
    whole = "int" in str(number.type)
    given = int(value) if whole and math.isfinite(value) else value
    pair = "tuple[int, int]" in str(number.type)
    with pytest.raises(ValueError, match=rf"^{name} .*; expected .*(at least|above|finite|whole)"):
        spec(**{name: (given, given) if pair else given})


def test_a_source_takes_torch_s_own_names() -> None:
    source = Source(dtype=torch.float64, device=torch.device("cpu"))  # type: ignore[arg-type]
    assert (source.dtype, source.device) == ("float64", "cpu")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"size": 32}, "size 32; expected 2 whole numbers, at least 1."),
        ({"mean": (0.5, math.inf)}, "mean 0.5 inf; expected a list of finite numbers."),
        ({"std": 0}, "std 0; expected a list of numbers, above 0."),
        ({"temperature": -1}, "temperature -1; expected a number, above 0 or 'fit'."),
        ({"ckpt": None}, "ckpt None; expected a string."),
        ({"ckpt": ""}, "ckpt ''; expected a non-empty string."),
        ({"options": 3}, "options 3; expected a table."),
    ],
)
def test_a_source_says_what_it_expected(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError) as told:
        Source(**given)
    assert str(told.value) == line


def test_a_value_of_an_earlier_version_is_taken_by_its_name_now() -> None:
    spec = PROBES["hessian"].spec
    assert spec(scale="filter") == spec(scale="relative")
    parser = argparse.ArgumentParser()
    add_flags(parser, spec)
    given = from_flags(spec, parser.parse_args(["--scale", "filter"]))
    assert given == spec(scale="relative")
    assert as_flags(spec, {"scale": given.scale}) == ["--scale", "relative"]
    with pytest.raises(ValueError, match="scale filters; expected 'none' or 'relative'"):
        spec(scale="filters")
