from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from analysis import claims
from analysis.claims import evaluate
from analysis.contrasts import Design, resolved, words
from analysis.figures import style
from analysis.report.factorial import envelope
from analysis.report.sections import report
from analysis.stats import factorial
from analysis.study import read
from tests.analysis.many_arms import FLOPS, MEANS, endpoint, planted

GAIN = {"11": 1.0, "none": -1.0}


def verdict(folder, **more):
    (found,) = evaluate(planted(folder, [endpoint("one", **more)])).verdicts
    return found


@pytest.mark.parametrize(
    ("contrast", "predicts", "margin", "word"),
    [
        (GAIN, "above", 0.05, "supported"),  # 0.06
        (GAIN, "above", 0.07, "contradicted"),
        (GAIN, "below", 0.07, "supported"),
        (GAIN, "below", 0.05, "contradicted"),
        (GAIN, "within", 0.07, "supported"),
        (GAIN, "within", 0.05, "contradicted"),
        ({"none": 1.0, "11": -1.0}, "within", 0.05, "contradicted"),
        ({"11": 1.0, "01": -1.0}, "within", 0.02, "supported"),  # 0.01
        (GAIN, "above", 0.06, "undecided"),
        ({"none": 1.0, "11": -1.0}, "above", -0.07, "supported"),
        (GAIN, "higher", 0.005, "supported"),
        (GAIN, "lower", 0.005, "contradicted"),
        # (01 - 00) - 2 (11 - 01): 0.04 - 0.02
        ({"01": 3.0, "00": -1.0, "11": -2.0}, "above", 0.01, "supported"),
        ({"B": 1.0}, "above", 0.03, "supported"),  # the main effect, 0.04
        ({"A:B": 1.0}, "within", 0.005, "supported"),
    ],
)
def test_planted_contrasts_have_their_verdicts(tmp_path, contrast, predicts, margin, word):
    found = verdict(tmp_path, contrast=contrast, predicts=predicts, margin=margin)
    assert found.verdict == word
    assert found.row == "contrast" and found.seeds == 5
    assert (found.seeds_needed is None) == (word != "undecided")


def test_an_effect_is_the_weighted_sum_within_seeds_and_its_interval_students(tmp_path):
    found = verdict(tmp_path, contrast={"01": 3.0, "00": -1.0, "11": -2.0})
    metrics = read(tmp_path).metrics
    at = {
        arm: np.array([metrics[arm, seed]["test_accuracy_last"] for seed in range(5)])
        for arm in MEANS
    }
    expected = 3 * at["01"] - at["00"] - 2 * at["11"]
    np.testing.assert_allclose(found.effects, expected)
    again = factorial.analysed(expected[:, None], ["x"], {"x": {"x": 1.0}})[0]
    assert (found.low, found.high) == pytest.approx((again.low, again.high))


def test_named_contrasts_are_those_of_their_arms(tmp_path):
    named = {"gain": {"11": 1, "none": -1}, "twice": {"gain": 2}}
    ends = [endpoint("a", {"twice": 1.0, "gain": -1.0}), endpoint("b", GAIN)]
    one, two = evaluate(planted(tmp_path, ends, tables={"contrasts": named})).verdicts
    assert one.effects == pytest.approx(two.effects)
    assert one.arm == "twice \N{MINUS SIGN} gain"
    assert words({"a": -1.0, "b": 2.0}) == "\N{MINUS SIGN}a + 2 \N{MULTIPLICATION SIGN} b"


@pytest.mark.parametrize(
    ("seconds", "word"),
    [
        ((0.05, 0.01), "supported"),
        ((0.07, 0.01), "contradicted"),
        ((0.06, 0.01), "undecided"),
    ],
)
def test_of_a_claim_with_several_primary_endpoints_all_must_hold(tmp_path, seconds, word):
    margin, other = seconds
    ends = [endpoint("a", GAIN, margin=margin), endpoint("b", GAIN, margin=other)]
    made = evaluate(planted(tmp_path, ends))
    assert made.words() == {"first": word}
    a, b = made.primary()
    assert b.verdict == "supported"
    assert a.verdict == word


def test_holm_corrects_over_claims_and_not_over_their_conditions(tmp_path):
    ends = [endpoint(name, GAIN, margin=m) for name, m in (("a", 0.05), ("b", 0.04), ("c", 0.055))]
    ends.append(endpoint("d", GAIN, margin=0.058, claim="second"))
    made = {v.endpoint: v for v in evaluate(planted(tmp_path, ends)).verdicts}
    first = max(made[name].p for name in "abc")
    assert first < made["d"].p
    assert max(made[name].p_holm for name in "abc") == pytest.approx(2 * first)
    assert made["d"].p_holm == pytest.approx(made["d"].p)


def test_claims_without_effect_are_seldom_supported(tmp_path, monkeypatch):
    """Two claims of two conditions, all at their margins: at most one study in twenty errs."""
    generator = np.random.default_rng(0)
    folder = planted(
        tmp_path,
        [
            endpoint("a", {"11": 1, "00": -1}, margin=0.0),
            endpoint("b", {"10": 1, "01": -1}, margin=0.0, claim="second"),
        ],
    )
    monkeypatch.setattr(claims, "pairs_needed", lambda *_, **__: None)  # which takes the time
    study, wrong = read(folder), 0
    for _ in range(200):
        drawn = {key: {"test_accuracy_last": generator.normal()} for key in study.metrics}
        said = evaluate(replace(study, metrics=drawn, design=None)).words()
        wrong += bool({"supported", "contradicted"} & set(said.values()))
    assert wrong <= 19  # of 10 expected: three standard errors


def test_costs_that_are_counts_are_compared_without_a_test(tmp_path):
    ends = [
        endpoint(
            "less",
            {"01": 1, "11": -1},
            probe="cost",
            variable="flops",
            predicts="below",
            margin=0.0,
        ),
        endpoint(
            "half",
            {"01": 1, "11": -0.5, "none": -0.5},
            probe="cost",
            variable="flops",
            predicts="below",
            margin=0.0,
            claim="second",
        ),
        endpoint("time", {"01": 1, "11": -1}, probe="cost", variable="seconds", primary=False),
    ]
    less, half, time = evaluate(planted(tmp_path, ends)).verdicts
    assert (less.effect, less.p, less.verdict) == (-2e6, 0.0, "supported")
    assert (half.effect, half.p, half.verdict) == (-2.5e5, 0.0, "supported")
    assert 0 < time.p <= 1 and np.ptp(time.effects) > 0 and time.verdict != "supported"


def test_a_missing_network_leaves_its_contrasts_undecided_and_its_seed_out_of_the_effects(tmp_path):
    ends = [
        endpoint("a", GAIN, margin=0.05),
        endpoint("b", {"01": 1, "00": -1}, margin=0.01, claim="second"),
    ]
    folder = planted(tmp_path, ends)
    content = json.loads((folder / "study.json").read_text())
    (row,) = [r for r in content["checkpoints"] if (r["arm"], r["seed"]) == ("11", 3)]
    content["checkpoints"].remove(row)
    (folder / "study.json").write_text(json.dumps(content))
    made = evaluate(folder)
    assert made.words() == {"first": "undecided", "second": "supported"}
    assert "1 of 5 pairs of seeds are missing" in made.verdicts[0].notes[-1]
    (whole,) = made.factorials
    assert whole.whole == (0, 1, 2, 4)
    assert "seed 3" in whole.notes[0]
    assert {(gap.arm, gap.seed) for gap in made.missing} == {("11", 3)}


def test_main_effects_of_a_study_are_those_planted(tmp_path):
    (made,) = evaluate(planted(tmp_path, [endpoint("a", GAIN)], noise=1e-9)).factorials
    assert {e.name: round(e.effect, 6) for e in made.effects} == {"A": 0.01, "B": 0.04, "A:B": 0.0}
    assert set(made.arms) == set(MEANS)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"contrast": {"12": 1, "none": -1}}, "'12' is no arm and no contrast"),
        ({"contrast": {"11": 0}}, "expected ones that sum to 0"),
        ({"contrast": {"11": 1, "none": -0.5}}, "expected ones that sum to 0"),
        ({"contrast": {"gain": 1}}, "'gain' leads back to itself"),
        ({"predicts": "within", "margin": 0.0}, "margin = 0.0; expected above 0"),
        ({"contrast": {}}, "predicts = 'above' needs a contrast"),
    ],
)
def test_a_contrast_that_is_none_is_refused_in_a_line(tmp_path, tables, said):
    folder = planted(
        tmp_path,
        [endpoint("a", GAIN) | tables],
        tables={"contrasts": {"gain": {"again": 1}, "again": {"gain": 1}}},
    )
    with pytest.raises(ValueError, match=said) as refused:
        evaluate(folder)
    assert "\n" not in str(refused.value)


def test_contrasts_of_a_contrast_that_cancel_leave_no_arm():
    found = resolved({"g": 1, "11": -1, "00": 1}, {"g": {"11": 1, "10": -1}}, ["00", "10", "11"])
    assert found == {"10": -1.0, "00": 1.0}


def test_a_design_has_an_arm_for_every_setting():
    design = Design(("A", "B"), "n-{setting}-{seed}.pt", (0, 1))
    assert [table["name"] for table in design.arms()] == ["00", "01", "10", "11"]
    assert design.arms()[2]["checkpoints"] == "n-10-{seed}.pt"
    assert design.base == "00"
    for wrong in ((), ("A", "A"), ("1",), ("A:B",), tuple("ABCDEFGHI")):
        with pytest.raises(ValueError, match="factors = "):
            Design(wrong, "{setting}", (0,))
    with pytest.raises(ValueError, match=r"expected \{setting\} in it"):
        Design(("A",), "n.pt", (0,))


def test_the_envelope_is_what_nothing_cheaper_beats():
    costs, values = [1, 2, 2, 3, 4], [0.5, 0.7, 0.8, 0.8, 0.9]
    assert envelope(costs, values, higher=True) == [0, 2, 4]
    assert envelope(costs, values, higher=False) == [0]


def test_the_report_shows_effects_trade_off_and_what_decides(tmp_path):
    ends = [
        endpoint("gain", GAIN, margin=0.05),
        endpoint(
            "cheaper",
            {"01": 1, "11": -1},
            probe="cost",
            variable="flops",
            predicts="below",
            margin=0.0,
        ),
    ]
    made = report(planted(tmp_path / "study", ends))
    assert [s.name for s in made.sections][:3] == ["verdicts", "factors", "overhead"]
    page = made.html()
    assert "1 claim: 1 supported." in page
    assert "The first claim" in page and "above 0.005" not in page and "above 0.05" in page
    tables = {
        table.name: list(csv.DictReader(table.csv().splitlines()))
        for section in made.sections
        for table in section.tables
    }
    assert [row["verdict_of_claim"] for row in tables["verdicts"]] == ["supported"] * 2
    costs = {row["arm"]: float(row["overhead_mflop"]) for row in tables["overhead.costs"]}
    assert costs["11"] == (FLOPS["11"] - FLOPS["none"]) / 1e6
    assert [row["name"] for row in tables["factors.1"]] == ["A", "B", "A:B"]
    drawings = [drawing for section in made.sections for drawing in section.drawings]
    assert {"factors.1.effects", "overhead"} <= {drawing.name for drawing in drawings}
    assert {drawing.figure.get_figwidth() for drawing in drawings} == {style.WIDTHS[1]}
    assert "\N{MINUS SIGN}2,000,000, corrected p" in page  # a count has no interval
    assert "none, 00, other" in page.replace("\n", " ")  # the envelope
