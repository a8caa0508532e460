"""The studies that ship: their numbers again from their files, by other code where it decides."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest

from analysis.claims import Evaluation, evaluate
from analysis.results import load

pytestmark = pytest.mark.timeout(240)

RESULTS = Path(__file__).parents[2] / "results"
SEEDS = range(8)


@pytest.fixture(scope="module", params=["fashion-mnist", "cifar10-12k"])
def folder(request: pytest.FixtureRequest) -> Path:
    return RESULTS / request.param


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    return evaluate(folder)


def test_nothing_is_missing_and_endpoints_were_not_changed(folder, evaluation):
    content = json.loads((folder / "study.json").read_text())
    assert not content["missing"]
    assert not content["amendments"]
    assert not evaluation.missing


def test_every_trained_network_ships(folder):
    rows = json.loads((folder / "study.json").read_text())["checkpoints"]
    trained = [row for row in rows if row["metrics"]]
    assert len(trained) == len(rows) - 4  # what is initialised, the study makes again
    for row in trained:
        name = Path(row["file"]).name
        found = [file for file in (folder / name, folder / "networks" / name) if file.is_file()]
        content = found[0].read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]


def test_tables_that_ship_are_those_of_the_results(folder, evaluation):
    rows = list(csv.DictReader((folder / "paper" / "verdicts.csv").read_text().splitlines()))
    for row, verdict in zip(rows, evaluation.primary(), strict=True):
        assert (row["endpoint"], row["verdict"]) == (verdict.endpoint, verdict.verdict)
        for name in ("effect", "low", "high", "p", "p_holm", "p_equivalence"):
            # Another processor's exponential may round otherwise.
            assert float(row[name]) == pytest.approx(getattr(verdict, name), rel=1e-9, abs=1e-12)


def value(file: h5py.File, name: str, **at: object) -> np.ndarray:
    """A variable by plain h5py, selected along its first matching dims."""
    array = file[name][...]
    dims = [scale[0].name.strip("/") for scale in file[name].dims]
    for dim, wanted in at.items():
        entries = file[dim][...]
        if isinstance(wanted, str):
            keep = np.array([str(entry, "utf-8").startswith(wanted) for entry in entries])
        else:
            keep = np.isclose(entries, wanted)
        array = np.compress(keep, array, axis=dims.index(dim))
    return array


def second_difference(file: h5py.File) -> float:
    chosen = value(file, "second_difference", direction="random", radius=0.1)
    return float(np.log(chosen).mean())


def miss_rate(file: h5py.File) -> float:
    (cross,) = np.flatnonzero(
        np.array(file["kind"].attrs["flag_meanings"].split()) == "cross_class"
    )
    return float(file["miss_rate"][...][file["kind"][...] == cross].mean())


def top_eigenvalue(file: h5py.File) -> float:
    return float(np.log(value(file, "eigenvalue", end="magnitude", rank=0)).item())


PRIMARY: dict[str, tuple[str, Callable[[h5py.File], float]]] = {
    "near": ("near", second_difference),
    "between": ("between", miss_rate),
    "weights": ("scaled-curvature", top_eigenvalue),
}


@pytest.mark.parametrize("claim", PRIMARY)
def test_primary_effects_and_their_p_can_be_recomputed_with_h5py_alone(folder, evaluation, claim):
    label, measure = PRIMARY[claim]
    scores = {}
    for arm, seed in product(("vanilla", "multiplicative"), SEEDS):
        with h5py.File(folder / f"{arm}-seed{seed}.{label}.h5") as file:
            scores[arm, seed] = measure(file)
    apart = np.array([scores["multiplicative", s] - scores["vanilla", s] for s in SEEDS])
    (verdict,) = [v for v in evaluation.primary() if v.claim == claim]
    np.testing.assert_allclose(verdict.effects, apart, rtol=1e-9)
    assert verdict.effect == pytest.approx(apart.mean(), rel=1e-9)
    signs = np.array(list(product([-1, 1], repeat=len(SEEDS))))
    reached = np.abs(signs @ apart) >= np.abs(apart.sum()) - 1e-12
    assert verdict.p == pytest.approx(reached.mean())


def test_what_the_readme_says_of_adversarial_directions_is_in_the_files():
    text = (RESULTS / "README.md").read_text()
    tops, over = {}, {}
    for arm in ("multiplicative", "vanilla"):
        losses = []
        for seed in SEEDS:
            result = load(RESULTS / "fashion-mnist" / f"{arm}-seed{seed}.near.h5")
            chosen = result["moved_loss"].sel(direction="adversarial")
            losses.append(chosen.sel(radius=0.1, method="nearest").values)
        tops[arm] = [float(values.max()) for values in losses]
        over[arm] = int((np.concatenate(losses) > 1000).sum())
    assert over == {"multiplicative": 9, "vanilla": 0}
    assert "nine of their 1,600 samples exceed 1,000 nat, none of the sums'" in text
    said = [98, 1e12, 28, 37, 4900, 320, 27, 31]
    assert "are 98, 10¹², 28, 37, 4,900, 320, 27 and 31" in text
    np.testing.assert_allclose(tops["multiplicative"], said, rtol=0.05)
    assert max(tops["vanilla"]) < 29
    assert "where the sums reach 29 at most" in text
