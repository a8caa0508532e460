"""`python -m landscape` and `python -m analysis` list what there is."""

from __future__ import annotations

import importlib.util
import re

import pytest

from analysis import __main__ as of_analysis
from landscape import __main__ as of_landscape
from landscape.registry import PROBES


@pytest.mark.parametrize("module", [of_landscape, of_analysis])
def test_the_commands_are_listed_and_are_there(module, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main([]) == 0
    listed = re.findall(r"^  python -m (\S+)", capsys.readouterr().out, re.M)
    assert listed
    for name in listed:
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        if spec.submodule_search_locations:
            assert importlib.util.find_spec(f"{name}.__main__") is not None, name
    if module is of_landscape:
        assert {f"landscape.{name}" for name in PROBES} < set(listed)
