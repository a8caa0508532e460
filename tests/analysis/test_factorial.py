from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.stats import factorial
from analysis.stats.power import equivalence_power, power
from analysis.stats.student import t_equivalence, t_reach, t_test

FACTORS = ("E1", "E2", "E3", "E4")
NAMES = factorial.settings(FACTORS)
EFFECTS = factorial.effects(FACTORS)
PLANTED = {"E2": 0.03, "E3": 0.02, "E2:E3": -0.01, "E1:E2:E4": 0.004}
BITS = np.array([[int(digit) for digit in name] for name in NAMES])


def planted(studies: int, seeds: int, noise: float, effects: dict[str, float]) -> np.ndarray:
    """(studies, seeds, settings): half an effect on either side; a seed shifts all settings."""
    generator = np.random.default_rng(studies + seeds)
    signs = {
        name: np.prod([2 * BITS[:, FACTORS.index(f)] - 1 for f in name.split(":")], axis=0)
        for name in effects
    }
    truth = 0.88 + sum(size / 2 * signs[name] for name, size in effects.items())
    block = generator.normal(size=(studies, seeds, 1)) * 0.05
    return truth + block + noise * generator.normal(size=(studies, seeds, 16))


def test_the_settings_and_effects_of_a_factorial_are_orthogonal_and_complete():
    assert NAMES[0] == "0000" and NAMES[2] == "0010" and len(NAMES) == 16
    assert list(factorial.effects(("A", "B"))) == ["A", "B", "A:B"]
    assert factorial.effects(("A", "B"))["A:B"] == {"00": 0.5, "01": -0.5, "10": -0.5, "11": 0.5}
    weights = np.array([[row[name] for name in NAMES] for row in EFFECTS.values()])
    np.testing.assert_allclose(weights @ weights.T, np.eye(15) / 4)
    np.testing.assert_allclose(weights.sum(axis=1), 0)


def test_planted_effects_are_recovered_exactly_without_noise():
    (values,) = planted(1, 3, 0.0, PLANTED)
    for row in factorial.analysed(values, NAMES, EFFECTS):
        assert row.effect == pytest.approx(PLANTED.get(row.name, 0.0), abs=1e-12)
        np.testing.assert_allclose(row.seeds, row.effect, atol=1e-12)


def test_effects_agree_with_least_squares_and_with_analysis_of_variance():
    """A contrast's own error in the analysis of variance: its interaction with the blocks."""
    (values,) = planted(1, 6, 0.004, PLANTED)
    seeds = len(values)
    coded = {
        name: np.prod(
            [np.where(BITS[:, FACTORS.index(f)], 0.5, -0.5) * 2 for f in name.split(":")], axis=0
        )
        / 2
        for name in EFFECTS
    }
    block = np.repeat(np.eye(seeds), 16, axis=0)
    terms = np.tile(np.array(list(coded.values())).T, (seeds, 1))
    y = values.ravel()
    fitted = np.linalg.lstsq(np.hstack([block, terms]), y, rcond=None)[0][seeds:]

    def left(*columns):
        design = np.hstack(columns)
        return float(((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum())

    for at, row in enumerate(factorial.analysed(values, NAMES, EFFECTS)):
        assert row.effect == pytest.approx(fitted[at], abs=1e-12)
        own = terms[:, [at]]
        rest = np.delete(terms, at, axis=1)
        effect = left(block, rest) - left(block, terms)
        error = left(block, terms) - left(block, terms, block * own)
        f = effect / (error / (seeds - 1))
        assert row.p == pytest.approx(stats.f.sf(f, 1, seeds - 1), rel=1e-6)


def test_intervals_cover_planted_effects_and_a_null_keeps_its_level():
    """6,000 studies of five seeds, all effects at once: a standard error of 0.3 %."""
    values = planted(6000, 5, 0.004, PLANTED)
    rows = np.array([factorial.within_seeds(values, NAMES, w) for w in EFFECTS.values()])
    truth = np.array([PLANTED.get(name, 0.0) for name in EFFECTS])[:, None]
    covered = np.abs(rows.mean(axis=-1) - truth) <= t_reach(rows)
    assert np.all((covered.mean(axis=1) > 0.93) & (covered.mean(axis=1) < 0.97))
    null = truth[:, 0] == 0
    found = t_test(rows[null]) <= 0.05
    assert np.all(np.abs(found.mean(axis=1) - 0.05) < 0.01)
    together = np.abs(rows.mean(axis=-1) - truth) <= t_reach(rows, 1 - 0.05 / 15)
    assert 0.95 <= together.all(axis=0).mean() < 0.97  # Bonferroni's, which err on the wide side


def test_an_equivalence_at_the_margin_is_claimed_in_one_study_of_twenty():
    differences = 0.01 + 0.004 * np.random.default_rng(0).normal(size=(20_000, 5))
    assert (t_equivalence(differences, 0.01) <= 0.05).mean() == pytest.approx(0.05, abs=0.005)
    assert (t_equivalence(differences - 0.01, 0.01) <= 0.05).mean() > 0.8
    expected = stats.ttest_1samp(differences[0], 0.002).pvalue
    assert t_test(differences[0], 0.002) == pytest.approx(expected)


def test_contrasts_of_ones_own_have_margins_and_a_family():
    (values,) = planted(1, 5, 0.001, PLANTED)
    own = {
        "gain": {"0011": 1.0, "0000": -1.0},
        "more": {"0011": 1.0, "0000": -1.0, "1111": -1.0},
        "equal": {"1111": 1.0, "0111": -1.0},
    }
    own["more"]["0011"] += 1.0
    gain, more, equal = factorial.analysed(values, NAMES, own, margins={"equal": 0.02})
    at = dict(zip(NAMES, values.T, strict=True))
    np.testing.assert_allclose(gain.seeds, at["0011"] - at["0000"])
    np.testing.assert_allclose(more.seeds, 2 * at["0011"] - at["0000"] - at["1111"])
    assert gain.p <= gain.p_holm <= 3 * gain.p
    assert gain.low_all < gain.low < gain.effect < gain.high < gain.high_all
    assert equal.p_equivalence < 0.01 and np.isnan(gain.p_equivalence)
    with pytest.raises(ValueError, match="no setting '2222'"):
        factorial.analysed(values, NAMES, {"x": {"2222": 1.0}})


def test_a_missing_network_is_refused_or_its_seed_dropped():
    (values,) = planted(1, 4, 0.001, PLANTED)
    values[2, 5] = np.nan
    with pytest.raises(ValueError, match="setting '0101' of seed 2 is missing"):
        factorial.analysed(values, NAMES, EFFECTS)
    left, dropped = factorial.complete(values)
    assert dropped == (2,) and left.shape == (3, 16)
    assert len(factorial.analysed(left, NAMES, EFFECTS)[0].seeds) == 3
    with pytest.raises(ValueError, match=r"values are \(0, 16\)"):
        factorial.analysed(left[:0], NAMES, EFFECTS)


def test_one_seed_and_seeds_that_agree_exactly_tell_no_spread():
    assert np.isnan(t_test(np.array([0.1]))) and np.isnan(t_reach(np.array([0.1])))
    assert np.isnan(t_test(np.full(5, 0.1))) and t_reach(np.full(5, 0.1)) == pytest.approx(0)


def test_the_power_of_students_t_is_that_of_simulated_studies():
    differences = 0.01 + 0.008 * np.random.default_rng(1).normal(size=(20_000, 5))
    found = (t_test(differences) <= 0.05).mean()
    assert power(0.01, 0.008, 5, alpha=0.05, test="t") == pytest.approx(found, abs=0.015)
    assert power(0.01, 0.008, 5, alpha=0.05) == 0  # five pairs do not reach it by signs
    shown = (t_equivalence(differences - 0.01, 0.015) <= 0.05).mean()
    made = equivalence_power(0.0, 0.008, 5, margin=0.015, alpha=0.05, test="t")
    assert made == pytest.approx(shown, abs=0.08)  # by the normal distribution: approximate
