"""The plane closest to a path, against a dense singular value decomposition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import landscape
from checkpoints import loading
from checkpoints.train.__main__ import main as train
from landscape.core.cli import main
from landscape.registry import PROBES
from tests.oracles import LinearRegression, make_problem, walked


@pytest.mark.parametrize("seed", [0, 1])
def test_the_plane_is_that_of_a_dense_decomposition(seed: int) -> None:
    problem = make_problem(torch.device("cpu"))
    states = walked(problem, 5, seed)
    result = landscape.measure("trajectory", problem, snapshots=states, points=2)
    names = [name for name, _ in problem.model.named_parameters()]
    end = torch.cat([problem.model.state_dict()[n].flatten() for n in names])
    rows = torch.stack([torch.cat([s[n].flatten() for n in names]) for s in states]) - end
    left, lengths, right = np.linalg.svd(rows.numpy(), full_matrices=False)
    at = np.stack([result["snapshot_alpha"], result["snapshot_beta"]], axis=1)
    expected = left[:, :2] * lengths[:2]
    np.testing.assert_allclose(np.abs(at), np.abs(expected), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(result["share"], (lengths**2 / (lengths**2).sum())[:2], rtol=1e-10)
    rest = rows.numpy() - (rows.numpy() @ right[:2].T) @ right[:2]
    np.testing.assert_allclose(result["distance"], np.linalg.norm(rest, axis=1), rtol=1e-8)


def test_the_loss_in_the_plane_is_that_of_the_weights_there() -> None:
    """A quadratic in six weights, from states that span a plane: nothing lies off it."""
    regression = LinearRegression.random(ins=3, outs=2)
    generator = torch.Generator().manual_seed(1)
    spanning = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    weights = [(1.0, 0.0), (0.5, 0.3), (0.2, -0.4), (0.0, 0.0)]
    states = [{"weight": regression.weight + a * spanning[0] + b * spanning[1]} for a, b in weights]
    problem = regression.problem()
    result = landscape.measure("trajectory", problem, snapshots=states, points=(4, 3))
    assert result["distance"].values == pytest.approx(np.zeros(4), abs=1e-7)
    assert result["share"].values.sum() == pytest.approx(1)
    losses = [regression.losses(s["weight"], regression.inputs).mean().item() for s in states]
    np.testing.assert_allclose(result["snapshot_loss"], losses, rtol=1e-12)
    # A quadratic on the plane is known from its values: the grid and the snapshots must agree.
    grid = np.stack(np.meshgrid(result["alpha"], result["beta"], indexing="ij"), axis=-1)
    path = np.stack([result["snapshot_alpha"], result["snapshot_beta"]], axis=-1)

    def monomials(at: Any) -> Any:
        a, b = at[..., 0].ravel(), at[..., 1].ravel()
        return np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], axis=1)

    fitted, *_ = np.linalg.lstsq(monomials(grid), result["loss"].values.ravel(), rcond=None)
    np.testing.assert_allclose(monomials(path) @ fitted, losses, rtol=1e-9)
    low, high = result["alpha"].values[[0, -1]]
    reach = np.array([*path[:, 0], 0.0])
    assert (low, high) == pytest.approx(
        (reach.min() - 0.2 * np.ptp(reach), reach.max() + 0.2 * np.ptp(reach))
    )


def test_a_snapshot_has_its_own_statistics() -> None:
    problem = make_problem(torch.device("cpu"))
    states = walked(problem, 3)
    for state in states:
        state["bn1.running_mean"] = state["bn1.running_mean"] + 1
    result = landscape.measure("trajectory", problem, snapshots=states, points=2)
    network = make_problem(torch.device("cpu")).model
    network.load_state_dict(states[1])
    alone = landscape.measure("surface", replace(problem, model=network), points=1)
    assert result["snapshot_loss"][1].item() == pytest.approx(alone["loss"].item(), rel=1e-12)


def test_training_takes_snapshots_and_a_stopped_run_misses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez("d.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    command = ["--model", "resnet8", "--option", "width=2", "--data", "npz:d.npz", "--epochs", "3"]
    command += ["--batch", "10", "--validation", "10", "--snapshots", "2", "--precision", "float32"]
    assert train([*command, "--out", "net.pt"]) == 0
    folder = Path("net.snapshots")
    assert sorted(p.name for p in folder.iterdir()) == ["epoch0000.pt", "epoch0002.pt"]
    first = loading.load(folder / "epoch0002.pt")
    assert first.metrics["epoch"] == 2
    assert len(first.history) == 2
    net = loading.load(Path("net.pt"))
    assert any(not torch.equal(v, net.state_dict[n]) for n, v in first.state_dict.items())
    shown = ["--ckpt", "net.pt", "--data", "npz:d.npz", "--points", "2", "--no-figure"]
    assert main(PROBES["trajectory"], shown) == 0
    assert "of 2 snapshots" in capsys.readouterr().err
    assert train([*command, "--out", "other.pt", "--snapshots", "0"]) == 1
    assert "--snapshots 0; expected 1 or more epochs" in capsys.readouterr().err


def test_paths_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    problem = make_problem(torch.device("cpu"))
    files = []
    for folder in ("sgd", "adam"):
        (tmp_path / folder).mkdir()
        for number, state in enumerate(walked(problem, 2, seed=len(folder))):
            files.append(tmp_path / folder / f"{number}.pt")
            torch.save(state, files[-1])
    result = landscape.measure(
        "trajectory", problem, snapshots=[str(file) for file in files], points=2
    )
    assert list(result["path"].values) == ["sgd", "sgd", "adam", "adam"]
    assert list(result["snapshot"].values) == ["sgd/0", "sgd/1", "adam/0", "adam/1"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda states: states[:1], "found one; expected two or more"),
        (lambda states: [states[0], states[0]], "lie on one line with the network"),
        (lambda states: [{}, *states], "is only in|not in"),
    ],
)
def test_what_spans_no_plane_is_refused(change: Any, line: str) -> None:
    problem = make_problem(torch.device("cpu"))
    with pytest.raises(ValueError, match=line):
        landscape.measure("trajectory", problem, snapshots=change(walked(problem, 2)))


def test_without_snapshots_the_command_says_how_to_take_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(PROBES["trajectory"], ["--ckpt", "resnet8.pt", "--examples", "10"]) == 1
    said = capsys.readouterr().err
    assert "there are no snapshots in resnet8.snapshots. Train with" in said
