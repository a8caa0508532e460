"""The commands, run as a user runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from analysis.figures.__main__ import main as figures
from analysis.report.__main__ import main as report
from checkpoints import checkpoint, whole_file
from checkpoints.checkpoint import Checkpoint
from checkpoints.models.resnet import ResNet
from checkpoints.source import Source, load_problem
from landscape.core import cli, store
from landscape.core.cli import default_name, main
from landscape.registry import PROBES


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained network that says it was trained on Fashion-MNIST."""
    path = tmp_path_factory.mktemp("ckpt") / "tiny.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = ResNet(8, width=4, channels=1).state_dict()
    options = {"width": 4, "channels": 1, "classes": 10}
    checkpoint.save(
        Checkpoint(state, "resnet8", options, 10, (1, 28, 28), (0.286,), (0.353,), "fashion-mnist"),
        path,
    )
    return path


def command(*arguments: str | Path, ranks: int = 1) -> list[str]:
    python = [sys.executable, "-m"]
    if ranks > 1:
        python += ["torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone", "-m"]
    return [*python, "landscape.surface", *map(str, arguments)]


def environment() -> dict[str, str]:
    # One thread everywhere: torchrun sets it for its ranks, and the bytes are compared.
    return os.environ | {"OMP_NUM_THREADS": "1"}


GRID = ("--points", "4", "5", "--examples", "60", "--batch-size", "30", "--no-figure")


@pytest.fixture(scope="module")
def straight(network: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    out = tmp_path_factory.mktemp("straight") / "r.h5"
    done = subprocess.run(
        command("--ckpt", network, "--out", out, *GRID),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout == f"{out}\n"
    assert "resnet8 on 60 examples of fashion-mnist-sample (test)" in done.stderr
    assert "Warning" not in done.stderr
    return store.load(out)


def test_two_ranks_of_torchrun_end_with_the_file_of_one_process(
    network: Path, straight: xr.Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "r.h5"
    subprocess.run(
        command("--ckpt", network, "--out", out, *GRID, ranks=2),
        env=environment(),
        check=True,
        capture_output=True,
        timeout=300,
    )
    xr.testing.assert_identical(store.load(out), straight)


def test_a_run_killed_at_any_moment_continues_to_the_values_of_a_straight_one(
    network: Path, straight: xr.Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "r.h5"
    arguments = command("--ckpt", network, "--out", out, *GRID, "--save-seconds", "0")
    with subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL) as running:
        while running.poll() is None and not out.is_file():
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
    assert 0 < int(store.load(out)["measured"].sum()) <= 20
    subprocess.run(arguments, env=environment(), check=True, capture_output=True, timeout=300)
    xr.testing.assert_identical(store.load(out), straight)


def test_an_interrupted_run_saves_and_says_how_to_continue(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.h5"
    slow = ("--points", "60", "--examples", "200", "--no-figure", "--batch-size", "50")
    arguments = command("--ckpt", network, "--out", out, *slow, "--save-seconds", "0.2")
    with subprocess.Popen(
        arguments, env=environment(), stderr=subprocess.PIPE, text=True
    ) as running:
        while running.poll() is None and not out.is_file():
            time.sleep(0.01)
        for _ in range(5):  # the further ones must not interrupt the save
            running.send_signal(signal.SIGTERM)
        _, found = running.communicate()
    assert running.returncode == 143
    assert "the same command continues" in found
    assert "Traceback" not in found
    assert 0 < int(store.load(out)["measured"].sum()) < 3600


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--ckpt", "missing.pt"], "missing.pt: no such file"),
        (["--ckpt", "NETWORK", "--data", "mnist"], "'mnist' is not a known data set"),
        (["--ckpt", "NETWORK", "--data", "npz:none.npz"], "none.npz"),
        (["--ckpt", "NETWORK", "--examples", "99999"], "exceeds the 2000"),
        (["--ckpt", "NETWORK", "--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (
            ["--ckpt", "NETWORK", "--points", "0"],
            "--points 0; expected a list of whole numbers",
        ),
        (["--ckpt", "NETWORK", "--model", "resnet20"], "does not fit"),
        (["--ckpt", "NETWORK", "--batch-norm", "recompute", "--calibration", "1"], "calibration"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(network) if a == "NETWORK" else a for a in arguments]
    assert main(PROBES["surface"], arguments) == 1
    printed = capsys.readouterr()
    assert line in printed.err.splitlines()[-1]
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert list(tmp_path.glob("*.h5")) == []


@pytest.mark.second_derivative
@pytest.mark.parametrize("probe", [name for name in PROBES if name != "trajectory"])
def test_without_a_checkpoint_a_network_that_ships_is_measured(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {
        "surface": ["--points", "2"],
        "hessian": ["--parts", "eigenpairs", "--top", "1"],
        "sensitivity": ["--parts", "norms"],
        "interpolate": ["--pairs", "1", "--points", "3"],
        "attention": ["--parts", "interventions", "--directions", "1"],
    }
    arguments = [*small.get(probe, []), "--examples", "20", "--batch-size", "20", "--no-figure"]
    assert main(PROBES[probe], arguments) == 0
    printed = capsys.readouterr()
    network = PROBES[probe].ckpt or "resnet8.pt"
    assert printed.err.startswith(f"--ckpt was not given: {network}, a network that ships.")
    stem = network.removesuffix(".pt")
    assert printed.out.startswith(f"{stem}.") and printed.out.endswith(f".{probe}.h5\n")


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--points", "many"], ["--space", "loss"], ["--temperature", "warm"]):
        with pytest.raises(SystemExit) as stopped:
            main(PROBES["surface"], arguments)
        assert stopped.value.code == 2
    capsys.readouterr()


def test_help_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(PROBES["surface"], ["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for flag in ("--points", "--extent", "--normalize", "--to", "--directions", "--seed", "--ckpt"):
        assert flag in printed


@pytest.mark.parametrize("probe", PROBES)
def test_help_names_the_network_that_is_measured_without_a_name(
    probe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(PROBES[probe], ["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"such as resnet18.pt (default: {PROBES[probe].ckpt or 'resnet8.pt'})" in printed


def test_the_batch_size_of_a_file_is_kept_when_it_is_continued(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.h5"
    small = ["--ckpt", str(network), "--out", str(out), "--points", "1", "--examples", "40"]
    assert main(PROBES["surface"], [*small, "--no-figure", "--batch-size", "7"]) == 0
    assert main(PROBES["surface"], [*small, "--no-figure"]) == 0
    assert "batches of 7" in capsys.readouterr().err
    assert store.recorded(out, "batch_size") == 7


def test_the_examples_are_balanced_whatever_their_order_in_the_data(
    network: Path, tmp_path: Path
) -> None:
    labels = np.sort(np.arange(100) % 10)
    pixels = np.arange(100, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    np.savez(tmp_path / "sorted.npz", x_test=pixels, y_test=labels)
    problem = load_problem(network, data=f"npz:{tmp_path / 'sorted.npz'}", examples=20)
    assert sorted(problem.targets.tolist()) == sorted([*range(10)] * 2)
    brightness = (problem.inputs["input"][:, 0, 0, 0] * 255).round().long()
    assert torch.equal(torch.from_numpy(labels)[brightness], problem.targets)


def test_the_command_keeps_freed_memory(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append("kept"))
    out = str(tmp_path / "r.h5")
    small = ["--points", "1", "--examples", "20", "--no-figure", "--batch-size", "20"]
    assert main(PROBES["surface"], ["--ckpt", str(network), "--out", out, *small]) == 0
    assert calls == ["kept"]


def test_a_result_that_cannot_be_written_is_refused_before_it_is_measured(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("taken")
    start = ["--ckpt", str(network), "--points", "1", "--examples", "20", "--no-figure"]
    for arguments, line in (
        (["--out", str(tmp_path)], "is a folder; expected a file"),
        (["--out", str(tmp_path / "file" / "r.h5")], "cannot be written"),
        (["--save-directions", str(tmp_path / "file" / "d.h5")], "cannot be written"),
    ):
        assert main(PROBES["surface"], [*start, "--out", str(tmp_path / "r.h5"), *arguments]) == 1
        assert line in capsys.readouterr().err.splitlines()[-1]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
    out = tmp_path / "new folder" / "with spaces.h5"
    assert main(PROBES["surface"], [*start, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"


@pytest.mark.parametrize(
    ("probe", "spec", "name"),
    [
        ("surface", {}, "net.surface.h5"),
        ("surface", {"space": "inputs"}, "net.inputs.surface.h5"),
        ("surface", {"to": "a/other.pt", "dimensions": 1}, "net.to-other.line.surface.h5"),
        ("surface", {"directions": "d.h5"}, "net.along-d.surface.h5"),
        ("hessian", {"parts": ("eigenpairs",)}, "net.eigenpairs.hessian.h5"),
        ("hessian", {"space": "inputs"}, "net.inputs.hessian.h5"),
        ("interpolate", {"to": "other.pt"}, "net.to-other.interpolate.h5"),
        ("sensitivity", {"parts": ("norms", "bands")}, "net.norms-bands.sensitivity.h5"),
        ("sensitivity", {"draws": 3}, "net.sensitivity.h5"),
    ],
)
def test_the_default_name_carries_what_distinguishes_a_run(
    probe: str, spec: dict[str, Any], name: str
) -> None:
    entry = PROBES[probe]
    assert default_name(entry, Source("files/net.pt"), entry.spec(**spec)) == Path(name)


def test_a_name_that_is_too_long_is_shortened_or_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = PROBES["interpolate"]
    names = {
        str(default_name(entry, Source(f"{'ö' * 120}{end}.pt"), entry.spec(to="other.pt")))
        for end in "ab"
    }
    assert len(names) == 2
    assert all(len(os.fsencode(name)) <= whole_file.LONGEST for name in names)
    assert all(name.endswith(".interpolate.h5") for name in names)
    for name in ("ö" * 111, "x" * 221, "x" * 400):
        assert main(PROBES["surface"], ["--ckpt", "absent.pt", "--out", name]) == 1
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert "bytes; expected at most 220" in line
    assert main(PROBES["surface"], ["--ckpt", "x" * 400]) == 1
    assert "File name too long" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_control_character_of_a_path_or_a_message_reaches_the_terminal(
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "a\x1b[31m\nb\u202e.h5"
    start = ["--ckpt", str(network), "--points", "2", "--dimensions", "1", "--examples", "20"]
    start += ["--no-figure", "--out", odd]
    assert main(PROBES["surface"], start) == 0
    assert main(PROBES["surface"], [*start, "--points", "3"]) == 1
    assert figures([odd, "--format", "png"]) == 0
    assert report([f"{odd}/none"]) == 1
    printed = capsys.readouterr()
    for line in (*printed.out.splitlines(), *printed.err.splitlines()):
        assert line.isprintable()
    assert "a [31m b .h5" in printed.out


@pytest.mark.parametrize("probe", ["surface", "sharpness"])
def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"surface": ["--points", "3"], "sharpness": ["--radii", "0.1", "0.2", "--draws", "1"]}
    shown = ["--ckpt", "resnet8.pt", "--examples", "10", *small[probe], "--dry-run"]
    assert main(PROBES[probe], shown) == 0
    printed = capsys.readouterr()
    points = {"surface": "9 points", "sharpness": "2 points"}[probe]
    assert f"{points}, " in printed.err and "nothing was written" in printed.err
    assert re.search(r"about [\d.]+ (s|min), from \d of \d that took", printed.err)
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []
