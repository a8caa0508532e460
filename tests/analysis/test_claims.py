from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analysis import claims
from analysis.claims import Evaluation, Verdict, evaluate
from landscape.core import store

KINDS = "same_class cross_class random circle"
NEAR = {
    "claim": "near",
    "name": "second difference",
    "probe": "near",
    "variable": "second_difference",
    "select": {"direction": "random", "radius": 0.1},
    "average": "log_mean",
    "compare": "log_ratio",
    "predicts": "lower",
    "margin": 0.05,
    "primary": True,
}
BETWEEN = {
    "claim": "between",
    "name": "roughness",
    "probe": "between",
    "variable": "roughness",
    "select": {"kind": "cross_class"},
    "average": "log_mean",
    "compare": "log_ratio",
    "predicts": "lower",
    "margin": 0.05,
    "primary": True,
}
VOLUME = {
    "claim": "weights",
    "name": "volume below 1 nat",
    "probe": "plane",
    "variable": "loss",
    "average": "fraction_below",
    "level": 1.0,
    "compare": "log_ratio",
    "predicts": "higher",
    "margin": 0.05,
    "primary": True,
}
EIGENVALUE = {
    "claim": "weights",
    "name": "top eigenvalue",
    "probe": "weights",
    "variable": "eigenvalue",
    "select": {"end": "largest", "rank": 0},
    "compare": "log_ratio",
    "predicts": "lower",
    "margin": 0.05,
}
ACCURACY = {
    "claim": "generalises",
    "name": "accuracy",
    "probe": "checkpoint",
    "variable": "test_accuracy_validation_selected",
    "compare": "difference",
    "predicts": "higher",
    "margin": 0.002,
    "primary": True,
}
IMAGES, DIRECTIONS = 20, ["random_0", "random_1", "gradient"]


def attributes(probe: str) -> dict[str, Any]:
    data = {"name": "fashion-mnist", "split": "test", "examples": IMAGES, "sha256": "0" * 64}
    return store.described(probe, {"seed": 0}, {"checkpoint": {"file": "net.pt"}, "data": data})


def near(effect: float, generator: np.random.Generator) -> xr.Dataset:
    """Random directions hold exp(effect + noise), the gradient and other radii something else."""
    shared = np.random.default_rng(0).normal(size=(IMAGES, 1, 1))  # of the images, in all networks
    noise = shared + 0.3 * generator.normal(size=(IMAGES, 3, 2))
    values = np.exp(np.where(np.array(DIRECTIONS)[:, None] == "gradient", 5.0, effect + noise))
    values[:, :, 0] *= 7
    correct = np.ones(IMAGES)
    return xr.Dataset(
        {
            "second_difference": (("example", "direction", "radius"), values),
            "correct": (("example",), correct),
            "loss": (("example",), np.ones(IMAGES)),
            "measured": (("example",), np.ones(IMAGES, "u1")),
        },
        {
            "example": np.arange(IMAGES),
            "direction": np.array(DIRECTIONS, dtype=object),
            "radius": [0.01, 0.1],
        },
        attributes("sensitivity"),
    )


def between(effect: float, generator: np.random.Generator) -> xr.Dataset:
    kind = np.repeat(np.array(["same_class", "cross_class"], dtype=object), IMAGES // 2)
    values = np.where(kind == "cross_class", effect, 3.0) + 0.2 * generator.normal(size=IMAGES)
    return xr.Dataset(
        {
            "roughness": (("pair",), np.exp(values)),
            "sample": (("pair", "path_sample"), np.tile([1.0, 2, np.nan], (IMAGES, 1))),
            "label": (("pair", "path_sample"), np.tile([0.0, 1, np.nan], (IMAGES, 1))),
            "margin": (("pair", "path_sample"), np.tile([0.5, 2, np.nan], (IMAGES, 1))),
            "loss": (("pair",), np.ones(IMAGES)),
            "measured": (("pair",), np.ones(IMAGES, "u1")),
        },
        {
            "pair": np.arange(IMAGES),
            "kind": ("pair", kind),
            "path_sample": np.arange(3),
            "path_kind": np.array(["same_class", "cross_class"], dtype=object),
        },
        attributes("interpolate"),
    )


def plane(effect: float, generator: np.random.Generator) -> xr.Dataset:
    axis = np.linspace(-1, 1, 41)
    radius = 0.5 * np.exp(effect / 2 + 0.02 * generator.normal())  # the area grows by exp(effect)
    loss = (axis[:, None] ** 2 + axis[None, :] ** 2) / radius**2
    loss[0, 0] = np.inf
    grid = (("alpha", "beta"), loss)
    return xr.Dataset(
        {"loss": grid, "loss_stderr": grid, "measured": (grid[0], np.ones(loss.shape, "u1"))},
        {"alpha": axis, "beta": axis},
        attributes("surface"),
    )


def weights(effect: float, generator: np.random.Generator) -> xr.Dataset:
    top = np.exp(effect + 0.1 * generator.normal())
    return xr.Dataset(
        {
            "eigenvalue": (("end", "rank"), [[-9.0, -8.0], [top, 1e-3]]),
            "measured": (("measurement",), np.ones(2, "u1")),
        },
        {
            "measurement": np.array(["eigenpairs smallest", "eigenpairs largest"], dtype=object),
            "end": np.array(["smallest", "largest"], dtype=object),
            "rank": [0, 1],
        },
        attributes("hessian"),
    )


PROBES = {
    "near": "sensitivity",
    "between": "interpolate",
    "plane": "surface",
    "weights": "hessian",
}
MAKERS = {"near": near, "between": between, "plane": plane, "weights": weights}


def planted(
    folder: Path,
    *tables: dict[str, Any],
    effect: float = 0.0,
    spread: float = 0.1,
    seeds: int = 8,
    controls: int = 0,
    untrained: int = 0,
    key: int = 0,
) -> Path:
    """A folder of results in which the treatment's values are exp(`effect`) times the baseline's.

    `spread` is the standard deviation over seeds in each arm; accuracies differ by effect / 100.
    """
    arms = [("vanilla", "baseline", seeds), ("multiplicative", "treatment", seeds)]
    arms += [("squeeze excite", "control", controls)] * bool(controls)
    arms += [
        (f"untrained {n}", "negative", untrained) for n in ("vanilla", "multiplicative")
    ] * bool(untrained)
    study = {
        "title": "planted",
        "arms": [{"name": n, "role": r, "seeds": list(range(c))} for n, r, c in arms],
        "probes": {label: {"probe": probe} for label, probe in PROBES.items()},
        "endpoints": list(tables),
    }
    rows, checkpoints = [], []
    labels = {table["probe"] for table in tables} - {"checkpoint"}
    for number, (name, role, count) in enumerate(arms):
        for seed in range(count):
            generator = np.random.default_rng([key, number, seed])
            own = effect * (role == "treatment") + spread * generator.normal()
            metrics = {"test_accuracy_validation_selected": 0.9 + own / 100}
            checkpoints.append(
                {"arm": name, "seed": seed, "metrics": metrics if role != "negative" else {}}
            )
            for label in sorted(labels):
                file = f"{name.replace(' ', '-')}-seed{seed}.{label}.h5"
                store.save(MAKERS[label](own, generator), folder / file)
                command = f"python -m landscape.{label} --out {file}"
                rows.append(
                    {"arm": name, "seed": seed, "probe": label, "file": file, "command": command}
                )
    manifest = {
        "schema_version": 2,
        "title": "planted",
        "study": study,
        "study_sha256": "0" * 64,
        "checkpoints": checkpoints,
        "results": rows,
        "missing": [],
    }
    (folder / "study.json").write_text(json.dumps(manifest))
    return folder


def told(evaluation: Evaluation, name: str, row: str = "treatment") -> Verdict:
    (verdict,) = [v for v in evaluation.verdicts if v.endpoint == name and v.row == row]
    return verdict


def change(path: Path, how: Any) -> None:
    store.save(how(store.load(path)), path)


def metric(name: str, **changes: Any) -> dict[str, Any]:
    """An endpoint from the checkpoint files, so that a study needs no result files."""
    return ACCURACY | {"name": name, "claim": name} | changes


def with_endpoints(folder: Path, *tables: dict[str, Any]) -> Path:
    manifest = json.loads((folder / "study.json").read_text())
    manifest["study"]["endpoints"] = tables
    (folder / "study.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def six_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only `near` is primary: six pairs can decide one claim."""
    tables = [table | {"primary": table is NEAR} for table in (NEAR, BETWEEN, EIGENVALUE)]
    return planted(tmp_path_factory.mktemp("six"), *tables, effect=-1.0, seeds=6)


@pytest.fixture(scope="module")
def two_pairs_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    return planted(folder, NEAR, BETWEEN, effect=-1.0, seeds=2, controls=1)


@pytest.fixture
def two_pairs(two_pairs_once: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(two_pairs_once, tmp_path / "two")


@pytest.mark.parametrize(
    ("effect", "spread", "word"),
    [
        (1.0, 0.05, "supported"),
        (-1.0, 0.05, "contradicted"),
        (0.0, 0.05, "no relevant difference"),
        (0.1, 0.001, "no relevant difference"),  # surely there, and surely smaller than matters
        (0.2, 0.2, "undecided"),
    ],
)
def test_planted_effect_has_the_verdict_that_it_should(tmp_path, effect, spread, word):
    """The margin is 0.2 in these units."""
    verdict = told(evaluate(planted(tmp_path, ACCURACY, effect=effect, spread=spread)), "accuracy")
    assert verdict.verdict == word
    assert verdict.low <= effect / 100 <= verdict.high
    assert verdict.seeds == 8
    assert (verdict.seeds_needed is None) == (word != "undecided")


def test_smoothness_planted_in_result_files_is_found(six_pairs):
    evaluation = evaluate(six_pairs)
    for name in ("second difference", "roughness", "top eigenvalue"):
        verdict = told(evaluation, name)
        assert verdict.verdict == ("supported" if verdict.primary else "lower")
        assert verdict.low <= -1 <= verdict.high
        assert verdict.p == 2 / 64


def test_effect_is_the_mean_log_ratio_of_the_selected_values_of_each_seed(six_pairs):
    evaluation = evaluate(six_pairs)

    def by_hand(label: str, pick: Any) -> float:
        logs = {
            arm: [
                np.log(pick(store.load(six_pairs / f"{arm}-seed{s}.{label}.h5"))).mean()
                for s in range(6)
            ]
            for arm in ("vanilla", "multiplicative")
        }
        return float(np.mean(logs["multiplicative"]) - np.mean(logs["vanilla"]))

    # means of the same numbers in another order: rounding
    assert told(evaluation, "second difference").effect == pytest.approx(
        by_hand("near", lambda r: r["second_difference"].values[:, :2, 1]), abs=1e-12
    )
    assert told(evaluation, "roughness").effect == pytest.approx(
        by_hand("between", lambda r: r["roughness"].values[r["kind"].values == "cross_class"]),
        abs=1e-12,
    )
    assert told(evaluation, "top eigenvalue").effect == pytest.approx(
        by_hand("weights", lambda r: r["eigenvalue"].values[1, 0]), abs=1e-12
    )


def test_volume_counts_the_grid_points_below_the_level_and_says_what_is_not_finite(tmp_path):
    folder = planted(tmp_path, VOLUME, effect=0.4, spread=0.02, seeds=2)
    evaluation = evaluate(folder)
    loss = store.load(folder / "vanilla-seed0.plane.h5")["loss"].values
    (own,) = [s for s in evaluation.seedwise if s.arm == "vanilla"]
    assert own.values[0] == (loss < 1).sum() / 1681
    verdict = told(evaluation, "volume below 1 nat")
    assert verdict.effect == pytest.approx(0.4, abs=0.1)  # a grid of 41 x 41
    assert "4 values are NaN or infinite, and count as not below the level." in verdict.notes


def test_accuracy_comes_from_the_checkpoints_and_its_interval_is_over_seeds(tmp_path):
    evaluation = evaluate(planted(tmp_path, ACCURACY, effect=1.0, spread=0.05))
    verdict = told(evaluation, "accuracy")
    assert verdict.verdict == "supported"
    assert verdict.effect == pytest.approx(0.01, abs=0.001)  # spread 0.05 / 100, 8 seeds
    assert verdict.p == verdict.p_holm == 2 / 256


def test_holm_runs_over_the_primary_endpoints_alone(tmp_path):
    primary = [metric(name) for name in ("one", "two", "three", "four")]
    evaluation = evaluate(planted(tmp_path, *primary, metric("beside", primary=False), effect=1.0))
    assert len(evaluation.primary()) == 4
    assert told(evaluation, "one").p_holm == 4 * 2 / 256
    beside = told(evaluation, "beside")
    assert not beside.primary
    assert beside.p == 2 / 256
    assert np.isnan(beside.p_holm)


def test_one_pair_of_seeds_decides_nothing_and_says_how_many_would(tmp_path):
    evaluation = evaluate(planted(tmp_path, NEAR, BETWEEN, effect=-2.0, seeds=1))
    verdict = told(evaluation, "second difference")
    assert (verdict.verdict, verdict.seeds, verdict.seeds_needed) == ("undecided", 1, 7)
    assert verdict.effect == pytest.approx(-2, abs=0.6)
    assert np.isnan(verdict.low)
    assert verdict.p == 1
    assert any(
        "With 1 pair of seeds no difference, however large, can be shown after Holm's" in note
        for note in verdict.notes
    )


def test_seven_pairs_cannot_decide_four_claims_however_large_the_effect(tmp_path):
    tables = [metric(name) for name in ("one", "two", "three", "four")]
    verdict = told(evaluate(planted(tmp_path, *tables, effect=9.0, seeds=7)), "one")
    assert (verdict.verdict, verdict.seeds_needed) == ("undecided", 8)
    assert any("it takes 8." in note for note in verdict.notes)


def test_large_spread_is_undecided_and_asks_for_more_seeds_than_there_are(tmp_path):
    verdict = told(evaluate(planted(tmp_path, ACCURACY, effect=0.3, spread=0.6)), "accuracy")
    assert verdict.verdict == "undecided"
    assert verdict.seeds_needed is not None
    assert verdict.seeds_needed > 8


def test_equal_arms_are_told_apart_in_at_most_five_percent_of_studies(tmp_path):
    false = 0
    for key in range(150):
        evaluation = evaluate(planted(tmp_path, ACCURACY, effect=0, spread=0.5, key=key))
        false += evaluation.primary()[0].verdict in ("supported", "contradicted")
    assert 1 <= false <= 17  # the level is 6 / 128, 7 of 150; 4 standard errors are 10


@pytest.mark.parametrize(
    "damage", ["deleted", "truncated", "foreign", "interrupted", "no variable"]
)
def test_study_with_a_damaged_result_is_evaluated_and_tells_the_command(two_pairs, damage):
    path = two_pairs / "vanilla-seed1.near.h5"
    if damage == "deleted":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-700])
    elif damage == "foreign":
        change(path, lambda r: r.assign_attrs(schema_version=99))
    elif damage == "interrupted":
        change(path, lambda r: r.assign(measured=("example", np.arange(IMAGES) > 3)))
    else:
        change(path, lambda r: r.drop_vars("second_difference"))
    evaluation = evaluate(two_pairs)
    verdict = told(evaluation, "second difference")
    assert verdict.seeds == 1
    (lost,) = verdict.missing
    assert (lost.arm, lost.seed, lost.file) == ("vanilla", 1, "vanilla-seed1.near.h5")
    assert lost.command == "python -m landscape.near --out vanilla-seed1.near.h5"
    assert "vanilla seed 1 is missing" in str(lost)
    assert lost.command in str(lost)
    assert evaluation.missing == (lost,)
    assert told(evaluation, "roughness").seeds == 2
    assert told(evaluation, "roughness").missing == ()


def test_seeds_are_compared_with_their_own_partners(two_pairs):
    whole = told(evaluate(two_pairs), "second difference")
    (two_pairs / "multiplicative-seed0.near.h5").unlink()
    left = told(evaluate(two_pairs), "second difference")
    assert left.effects == whole.effects[1:]
    assert whole.effect == np.mean(whole.effects)


def test_result_that_the_runner_refused_is_missing_for_its_reason(two_pairs):
    manifest = json.loads((two_pairs / "study.json").read_text())
    manifest["missing"] = [manifest["results"].pop(0) | {"reason": "its process was killed"}]
    (two_pairs / "study.json").write_text(json.dumps(manifest))
    (lost,) = evaluate(two_pairs).missing
    assert lost.why == "vanilla-seed0.between.h5: its process was killed."


def test_result_of_another_checkpoint_does_not_count(two_pairs):
    manifest = json.loads((two_pairs / "study.json").read_text())
    for row in manifest["checkpoints"]:
        if (row["arm"], row["seed"]) == ("vanilla", 1):
            row["sha256"] = "f" * 64
    (two_pairs / "study.json").write_text(json.dumps(manifest))
    evaluation = evaluate(two_pairs)
    assert told(evaluation, "second difference").seeds == 1
    assert all("the study names ffffffffffff" in lost.why for lost in evaluation.missing)


def test_study_without_any_result_is_undecided(two_pairs):
    for path in two_pairs.glob("*.h5"):
        path.unlink()
    verdict = told(evaluate(two_pairs), "second difference")
    assert (verdict.verdict, verdict.seeds, len(verdict.missing)) == ("undecided", 0, 4)
    assert np.isnan(verdict.p)


def test_missing_claim_still_counts_in_the_correction(tmp_path):
    tables = [metric("here"), metric("lost", variable="no_such_metric")]
    evaluation = evaluate(planted(tmp_path, *tables, effect=1.0))
    assert told(evaluation, "here").p_holm == 2 * 2 / 256
    assert told(evaluation, "lost").missing[0].why == "its checkpoint tells no no_such_metric."


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "1 zero or negative"), (np.inf, "1 NaN or inf"), (np.nan, "1 NaN")]
)
def test_value_without_a_logarithm_turns_both_arms_to_the_median_and_is_told(
    two_pairs, value, said
):

    def spoil(result: xr.Dataset) -> xr.Dataset:
        result["second_difference"][5, 0, 1] = value
        return result

    change(two_pairs / "multiplicative-seed1.near.h5", spoil)
    evaluation = evaluate(two_pairs)
    verdict = told(evaluation, "second difference")
    assert any(said in note and "median stands" in note for note in verdict.notes)
    assert {s.average for s in evaluation.seedwise if s.endpoint == "second difference"} == {
        "median"
    }
    medians = {
        arm: [
            np.log(
                np.median(
                    np.median(
                        np.nan_to_num(
                            store.load(two_pairs / f"{arm}-seed{s}.near.h5")[
                                "second_difference"
                            ].values[:, :2, 1],
                            nan=np.inf,
                        ),
                        axis=1,
                    )
                )
            )
            for s in range(2)
        ]
        for arm in ("vanilla", "multiplicative")
    }
    expected = np.mean(medians["multiplicative"]) - np.mean(medians["vanilla"])
    assert verdict.effect == pytest.approx(expected, abs=1e-12)  # rounding


def test_network_that_is_infinite_on_most_samples_counts_as_infinitely_worse(six_pairs, tmp_path):
    folder = shutil.copytree(six_pairs, tmp_path / "copy")
    with_endpoints(folder, NEAR | {"predicts": "higher"})
    change(
        folder / "vanilla-seed2.near.h5",
        lambda r: r.assign(second_difference=r["second_difference"] * np.inf),
    )
    verdict = told(evaluate(folder), "second difference")
    assert verdict.verdict == "contradicted"
    assert np.isfinite(verdict.effect)
    assert verdict.low == -np.inf
    assert any("1 of 6 pairs differ infinitely" in note for note in verdict.notes)


def test_accuracy_matched_row_uses_what_every_network_classifies_correctly(two_pairs):

    def wrong(*numbers: int) -> Any:
        def mistake(result: xr.Dataset) -> xr.Dataset:
            result["correct"][list(numbers)] = 0
            result["second_difference"][list(numbers)] = 1e6
            return result

        return mistake

    change(two_pairs / "multiplicative-seed1.near.h5", wrong(0, 4))
    change(two_pairs / "squeeze-excite-seed0.near.h5", wrong(4, 7))

    def lost(result: xr.Dataset) -> xr.Dataset:
        result["margin"][IMAGES // 2, 1] = -0.1
        return result

    change(two_pairs / "vanilla-seed0.between.h5", lost)
    evaluation = evaluate(two_pairs)
    matched = told(evaluation, "second difference", "accuracy-matched")
    assert matched.samples == IMAGES - 3
    assert "17 of 20 samples are classified correctly by all 5 networks." in matched.notes
    assert matched.effect == pytest.approx(-1, abs=0.3)  # spread 0.1 a seed; 1e6 would show
    assert told(evaluation, "second difference").effect > matched.effect + 0.1
    assert told(evaluation, "roughness", "accuracy-matched").samples == IMAGES // 2 - 1


def test_control_untrained_and_halves_stand_beside_and_decide_nothing(tmp_path):
    folder = planted(tmp_path, NEAR, ACCURACY, effect=-1.0, seeds=4, controls=2, untrained=1)
    evaluation = evaluate(folder)
    rows = [v.row for v in evaluation.verdicts if v.endpoint == "second difference"]
    assert rows == ["treatment", "accuracy-matched", "control", "untrained", "halves"]
    control = told(evaluation, "second difference", "control")
    assert (control.arm, control.against, control.seeds) == ("squeeze excite", "vanilla", 2)
    untrained = told(evaluation, "second difference", "untrained")
    assert (untrained.arm, untrained.against) == ("untrained multiplicative", "untrained vanilla")
    halves = told(evaluation, "second difference", "halves")
    assert halves.verdict == "unclear"
    assert halves.p >= 2 / 6
    assert any("6 ways to halve" in note for note in halves.notes)
    assert [v.row for v in evaluation.verdicts if v.endpoint == "accuracy"] == [
        "treatment",
        "control",
        "halves",
    ]
    assert evaluation.missing == ()


def test_networks_that_saw_other_images_are_compared_over_seeds_alone(two_pairs):
    change(two_pairs / "vanilla-seed0.near.h5", lambda r: r.isel(example=slice(1, None)))
    verdict = told(evaluate(two_pairs), "second difference")
    assert verdict.effect == pytest.approx(-1, abs=0.4)  # spread 0.1, two seeds
    assert any("saw different samples" in note for note in verdict.notes)


def test_coordinate_that_is_not_there_takes_the_nearest_and_says_so(two_pairs):
    with_endpoints(two_pairs, NEAR | {"select": {"direction": "random", "radius": 0.08}})
    assert "radius 0.1 stands for 0.08" in told(evaluate(two_pairs), "second difference").notes


def test_same_folder_gives_the_same_evaluation(two_pairs):
    assert repr(evaluate(two_pairs)) == repr(evaluate(two_pairs))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (NEAR | {"predicts": "smoother"}, "predicts = 'smoother'; expected lower, higher"),
        (NEAR | {"margin": 0}, "margin = 0; expected above 0"),
        (NEAR | {"colour": 1}, "has no key 'colour'"),
        (NEAR | {"average": "fraction_below"}, "level goes with"),
        ({k: v for k, v in NEAR.items() if k != "margin"}, "needs the key 'margin'"),
    ],
)
def test_endpoint_that_is_none_is_refused_in_one_line(two_pairs, table, said):
    with pytest.raises(ValueError, match=said) as raised:
        evaluate(with_endpoints(two_pairs, table))
    assert "\n" not in str(raised.value)


def test_folder_that_is_no_study_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        evaluate(tmp_path)
    for text, said in (
        ("{", "damaged"),
        ("[]", "schema version is None"),
        ('{"schema_version": 2}', "damaged"),
    ):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            evaluate(tmp_path)


@pytest.mark.parametrize(
    ("select", "said"),
    [({"direction": "tangent"}, "no direction 'tangent'"), ({"kind": "x"}, "cannot be selected")],
)
def test_selection_that_fits_nothing_is_told_as_missing(two_pairs, select, said):
    evaluation = evaluate(with_endpoints(two_pairs, NEAR | {"select": select}))
    assert len(evaluation.missing) == 5
    assert said in evaluation.missing[0].why


def with_metrics(folder: Path, arm: str, values: list[float]) -> Path:
    manifest = json.loads((folder / "study.json").read_text())
    for row in manifest["checkpoints"]:
        if row["arm"] == arm:
            row["metrics"] = {"test_accuracy_validation_selected": values[row["seed"]]}
    (folder / "study.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("predicts", "word"), [("higher", "contradicted"), ("lower", "contradicted")]
)
def test_what_is_not_a_number_counts_against_the_claim(tmp_path, predicts, word):
    folder = planted(tmp_path, metric("generalises", predicts=predicts))
    with_metrics(folder, "multiplicative", [np.nan] * 8)
    verdict = told(evaluate(folder), "generalises")
    assert verdict.verdict == word
    assert np.isinf(verdict.effect)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_neither_arm_knows_is_undecided(tmp_path, value):
    folder = planted(tmp_path, metric("generalises"))
    for arm in ("vanilla", "multiplicative"):
        with_metrics(folder, arm, [value] * 8)
    verdict = told(evaluate(folder), "generalises")
    assert verdict.verdict == "undecided"
    assert any("8 of 8 pairs cannot be compared" in note for note in verdict.notes)


def test_two_zeros_are_no_ratio_and_so_undecided(tmp_path):
    folder = planted(tmp_path, metric("generalises", compare="log_ratio"))
    for arm in ("vanilla", "multiplicative"):
        with_metrics(folder, arm, [0.0] * 8)
    assert told(evaluate(folder), "generalises").verdict == "undecided"


def test_seeds_that_are_lost_cannot_decide(tmp_path):
    folder = planted(tmp_path, NEAR, effect=-1.0, seeds=8)
    assert told(evaluate(folder), NEAR["name"]).verdict == "supported"
    (folder / "multiplicative-seed3.near.h5").unlink()
    verdict = told(evaluate(folder), NEAR["name"])
    assert verdict.verdict == "undecided"
    assert verdict.p <= 0.05
    assert any(
        "1 of 8 pairs of seeds are missing. The others alone would say 'supported'" in note
        for note in verdict.notes
    )


def test_a_copy_of_a_checkpoint_is_no_seed(tmp_path):
    folder = planted(tmp_path, NEAR, ACCURACY, effect=-1.0, seeds=3)
    manifest = json.loads((folder / "study.json").read_text())
    for number, row in enumerate(manifest["checkpoints"]):
        copied = row["arm"] == "vanilla" and row["seed"] == 2
        row["sha256"] = "a" * 64 if copied or number == 0 else f"{number:064x}"
    (folder / "study.json").write_text(json.dumps(manifest))
    for row in manifest["results"]:
        sha256 = next(
            c["sha256"]
            for c in manifest["checkpoints"]
            if (c["arm"], c["seed"]) == (row["arm"], row["seed"])
        )
        about = {"file": "net.pt", "sha256": sha256}
        change(folder / row["file"], lambda r, about=about: provenance(r, checkpoint=about))
    evaluation = evaluate(folder)
    assert {told(evaluation, name).seeds for name in (NEAR["name"], ACCURACY["name"])} == {2}
    whys = [gap.why for gap in evaluation.missing]
    assert whys == ["its checkpoint is that of seed 0: a copy."] * 2


def provenance(result: xr.Dataset, **changes: Any) -> xr.Dataset:
    table = json.loads(result.attrs["provenance"]) | changes
    return result.assign_attrs(provenance=json.dumps(table))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda r: provenance(r, temperature={"value": 50.0}), "temperature = 50.0, the study"),
        (lambda r: provenance(r, dtype="float64"), "dtype = float64, the study asks for float32"),
        (lambda r: r.assign_attrs(probe="zzz"), "probe = zzz, the study asks for sensitivity"),
        (lambda r: r.assign_attrs(spec='{"seed": 1}'), "seed = 1, the study asks for 0"),
        (lambda r: r.assign_attrs(spec="{not json"), "its `spec` is damaged"),
        (lambda r: r.assign_attrs(schema_version="x"), "schema version is x"),
    ],
)
def test_result_that_was_measured_otherwise_is_missing(two_pairs, how, said):
    manifest = json.loads((two_pairs / "study.json").read_text())
    manifest["study"]["problem"] = {"temperature": "fit", "dtype": "float32"}
    manifest["study"]["probes"]["near"] |= {"seed": 0}
    (two_pairs / "study.json").write_text(json.dumps(manifest))
    assert not evaluate(two_pairs).missing
    change(two_pairs / "vanilla-seed0.near.h5", how)
    (gap,) = evaluate(two_pairs).missing
    assert gap.file == "vanilla-seed0.near.h5"
    assert said in gap.why


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("amendments", ["x"]),
        ("checkpoints", [{"arm": "a", "seed": 0, "metrics": {"m": "high"}}]),
        ("checkpoints", 3),
        ("results", [1]),
        ("study", {"arms": 3}),
        ("study", []),
    ],
)
def test_study_that_is_damaged_is_refused_in_one_line(two_pairs, key, value):
    manifest = json.loads((two_pairs / "study.json").read_text()) | {key: value}
    (two_pairs / "study.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"study.json: damaged .*--amend: it keeps the results"):
        evaluate(two_pairs)


def test_untrained_networks_are_found_by_their_whole_name(tmp_path):
    folder = planted(tmp_path, NEAR, effect=-1.0, seeds=2, untrained=2)
    text = (folder / "study.json").read_text().replace("untrained vanilla", "untrained my vanilla")
    (folder / "study.json").write_text(text)
    assert not [v for v in evaluate(folder).verdicts if v.row == "untrained"]


@pytest.mark.parametrize(
    ("low", "high", "p_equivalence", "p", "word"),
    [
        (-0.05, 0.05, 0.01, 0.5, "no relevant difference"),
        (-0.05, 0.15, 0.01, 0.5, "undecided"),  # the interval reaches beyond the margin
        (-0.15, 0.05, 0.01, 0.5, "undecided"),
        (-0.05, 0.1, 0.01, 0.5, "undecided"),  # onto it is not within it
        (-0.05, 0.05, 0.06, 0.5, "undecided"),
        (0.02, 0.15, 0.01, 0.01, "supported"),
        (-0.15, -0.02, 0.5, 0.01, "contradicted"),
        (-0.02, 0.15, 0.5, 0.01, "undecided"),
        (0.02, 0.15, 0.5, 0.06, "undecided"),
        (-0.05, 0.05, 0.05, 0.5, "no relevant difference"),  # at its level, that is
        (0.02, 0.15, 0.5, 0.05, "supported"),
        (0.0, 0.15, 0.5, 0.01, "undecided"),  # onto zero is not beyond it
        (-0.15, 0.0, 0.5, 0.01, "undecided"),
        (-0.1, 0.05, 0.01, 0.5, "undecided"),
        (0.02, 0.05, 0.01, 0.01, "no relevant difference"),  # found, and too small to matter
    ],
)
def test_a_verdict_needs_its_test_and_its_interval(low, high, p_equivalence, p, word):
    endpoint = SimpleNamespace(margin=0.1, predicts="higher")
    row = SimpleNamespace(
        low=low, high=high, effect=(low + high) / 2, primary=True, p_equivalence=p_equivalence
    )
    assert claims._word(endpoint, row, p) == word
