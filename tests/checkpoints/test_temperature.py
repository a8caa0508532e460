"""The temperature that a network's confidence asks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import logsumexp

import landscape
from checkpoints import temperature
from checkpoints.source import load_problem
from landscape.core.cli import main
from landscape.core.spaces import Weights
from landscape.registry import PROBES
from tests.oracles import make_problem


def calibrated(
    count: int = 4000, classes: int = 5, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits, and labels drawn from their softmax."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, classes))
    noisy = logits + generator.gumbel(size=logits.shape)
    return logits, noisy.argmax(axis=1)


def loss(logits: NDArray[np.float64], labels: NDArray[np.int64], at: float) -> float:
    scaled = logits / at
    return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_labels_drawn_from_the_softmax_ask_for_the_factor_that_was_planted(factor: float) -> None:
    logits, labels = calibrated()
    # 4,000 labels settle 1/T to about 3 %; 4 of that
    assert temperature.fit(factor * logits, labels) == pytest.approx(factor, rel=0.12)


def test_no_other_temperature_has_a_smaller_loss() -> None:
    logits, labels = calibrated()
    best = temperature.fit(logits, labels)
    for other in best * np.array([0.5, 0.9, 0.99, 1.01, 1.1, 2]):
        assert loss(logits, labels, other) > loss(logits, labels, best)


def test_a_constant_added_to_a_row_of_logits_changes_nothing() -> None:
    logits, labels = calibrated(300)
    shifted = logits + np.arange(300)[:, None]
    assert temperature.fit(shifted, labels) == pytest.approx(temperature.fit(logits, labels))


def test_examples_that_are_all_right_or_worse_than_chance_have_none() -> None:
    logits, _ = calibrated(50)
    for labels in (logits.argmax(axis=1), logits.argmin(axis=1)):
        with pytest.raises(ValueError, match="no temperature between") as caught:
            temperature.fit(logits, labels)
        assert "\n" not in str(caught.value)


def test_a_problem_divides_its_logits_and_decides_as_before() -> None:
    plain = make_problem(torch.device("cpu"))
    warm = replace(plain, temperature=2.0)
    logits = plain.outputs(plain.model.eval(), plain.inputs)
    torch.testing.assert_close(warm.outputs(warm.model, warm.inputs), logits / 2)
    before, after = (landscape.measure("surface", p, points=1, dimensions=1) for p in (plain, warm))
    assert float(before["accuracy"][0]) == float(after["accuracy"][0])
    assert float(before["loss"][0]) != float(after["loss"][0])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number, or fit"):
        replace(make_problem(torch.device("cpu")), temperature=value)


def test_a_fit_looks_at_held_out_images_only_and_is_recorded() -> None:
    problem = load_problem("resnet8.pt", examples=1800, batch_size=100, temperature="fit")
    plain = load_problem("resnet8.pt", examples=0, batch_size=100)
    network = plain.model.eval()
    with torch.inference_mode():
        logits = plain.outputs(network, {n: v[1800:] for n, v in plain.inputs.items()})
    expected = temperature.fit(logits.double().numpy(), plain.targets[1800:].numpy())
    # one forward pass in batches of 100, the other of 200: float32 rounding
    assert problem.temperature == pytest.approx(expected, rel=1e-5)
    told = problem.fingerprints()["temperature"]
    assert told["examples"] == 200
    assert told["value"] == problem.temperature
    assert len(told["sha256"]) == 64


def test_a_fit_looks_at_the_network_that_is_measured_statistics_recomputed() -> None:
    options = {"examples": 1200, "batch_size": 100, "batch_norm": "recompute", "calibration": 200}
    problem = load_problem("resnet8.pt", temperature="fit", **options)
    plain = load_problem("resnet8.pt", **options)
    rest = load_problem("resnet8.pt", examples=0, batch_size=100)
    held_out = replace(
        plain,
        inputs={n: v[1200:] for n, v in rest.inputs.items()},
        targets=rest.targets[1200:],
        indices=rest.indices[1200:],
    )
    losses = []
    for factor in (0.97, 1.0, 1.03):
        space = Weights(replace(held_out, temperature=factor * problem.temperature))
        losses.append(space.evaluate(space.origin).losses.mean())
    assert losses[1] < min(losses[0], losses[2])


def test_there_must_be_images_to_fit_on() -> None:
    with pytest.raises(ValueError, match="needs images that are not measured"):
        load_problem("resnet8.pt", examples=2000, temperature="fit")


def test_the_command_line_takes_it_and_refuses_to_continue_at_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = "--ckpt resnet8.pt --examples 20 --points 1 --dimensions 1 --no-figure --out a.h5"
    assert main(PROBES["surface"], [*options.split(), "--temperature", "1.5"]) == 0
    assert main(PROBES["surface"], [*options.split(), "--temperature", "2"]) == 1
    assert (
        "temperature.value=1.5, this run asks for temperature.value=2.0" in capsys.readouterr().err
    )
    with xr.open_dataset("a.h5", engine="h5netcdf") as result:
        assert json.loads(result.attrs["provenance"])["temperature"]["value"] == 1.5
    with pytest.raises(SystemExit):
        main(PROBES["surface"], [*options.split(), "--temperature", "warm"])
    assert "'warm' is not a number or 'fit'" in capsys.readouterr().err
