"""`landscape` lists and runs every command; `python -m analysis` lists its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import landscape
from analysis import __main__ as of_analysis
from landscape.__main__ import COMMANDS, main
from landscape.registry import PROBES


def is_there(module: str) -> bool:
    """Whether `python -m module` runs something."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        return False
    package = bool(spec.submodule_search_locations)
    return not package or importlib.util.find_spec(f"{module}.__main__") is not None


def test_every_command_is_there_and_every_probe_is_one() -> None:
    assert all(is_there(module) for module, *_ in COMMANDS.values())
    for name, probe in PROBES.items():
        assert COMMANDS[name][0] == f"landscape.{name}"
        assert COMMANDS[name][1] == (probe.plan.__doc__ or "").splitlines()[0]


def test_the_commands_of_the_analysis_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert of_analysis.main([]) == 0
    listed = re.findall(r"^  python -m (\S+)", capsys.readouterr().out, re.M)
    assert listed and all(map(is_there, listed))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_list_is_one_screen(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110 and len(lines) < 40
    for name in COMMANDS:
        assert any(line.split()[:2] == ["landscape", name] for line in lines), name


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # of other tests
def test_a_command_takes_its_own_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["landscape", "figures"])
    with pytest.raises(SystemExit) as ended:
        main(["figures", "--help"])
    assert ended.value.code == 0
    assert "python -m analysis.figures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("surfaec", "no command 'surfaec'; did you mean surface?"),
        ("xyzzy", "no command 'xyzzy'; there are: surface, hessian"),
        ("\x1b[31m", r"no command '\x1b[31m'; there are"),
    ],
)
def test_another_name_is_refused(given: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([given]) == 2
    assert line in capsys.readouterr().err


def test_the_list_and_the_version_import_neither_torch_nor_numpy() -> None:
    program = (
        "import sys\nfrom landscape.__main__ import main\nmain(['--version'])\nmain([])\n"
        "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    root = Path(landscape.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cnn-landscape {landscape.__version__}\n")


def test_a_probe_runs_under_its_short_name(tmp_path: Path) -> None:
    few = ["--ckpt", "resnet8.pt", "--examples", "10", "--points", "1", "--no-figure"]
    out = tmp_path / "out.h5"
    root = Path(landscape.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "landscape", "surface", *few, "--out", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
