from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from analysis.stats.bootstrap import average, compare, interval, order_interval
from analysis.stats.multiplicity import holm
from analysis.stats.permutation import divisions, permutation, unpaired_interval
from analysis.stats.power import equivalence_power, fewest_pairs, pairs_needed, power
from analysis.stats.sign_flip import equivalence, sign_flip


def within(share: float, expected: float, draws: int) -> bool:
    """Whether a simulated share is within 4 of its own standard errors of what is expected."""
    return abs(share - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5


def by_hand(differences: np.ndarray) -> float:
    """Every choice of signs written out, whole numbers, so that ties are exact."""
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(total >= abs(sum(differences)) for total in sums) / len(sums)


@pytest.mark.parametrize(
    "differences", [[1, 2, 3], [3, -1, 1, 1], [0, 0, 5], [1, 1, -1, -1], [7, 2, -3, 4, 4, 1], []]
)
def test_sign_flip_counts_every_choice_of_signs(differences):
    assert float(sign_flip(np.array(differences, float))) == by_hand(np.array(differences))


def test_sign_flip_sees_ties_through_rounding():
    # 0.1 + 0.2 - 0.3 is 5.6e-17 in floating point: every sum is at least as far out as 0
    assert float(sign_flip(np.array([0.1, 0.2, -0.3]))) == 1.0
    assert float(sign_flip(np.array([1, 2, 3, 4, 5]) * 0.1)) == 2 / 32


def test_one_sided_sign_flips_look_one_way_and_need_half_the_choices():
    up = np.array([1.0, 2, 3, 4])
    assert float(sign_flip(up, "greater")) == 1 / 16
    assert float(sign_flip(up, "less")) == 1.0
    assert float(sign_flip(-up, "less")) == 1 / 16


def test_smallest_p_of_eight_pairs_passes_holm_over_four_claims_and_of_seven_does_not():
    eight, seven = (float(sign_flip(np.arange(1.0, n + 1))) for n in (8, 7))
    assert eight == 2 / 256
    assert holm(np.array([eight] * 4))[0] <= 0.05 < holm(np.array([seven] * 4))[0]
    assert fewest_pairs(0.05 / 4) == 8
    assert fewest_pairs(0.05) == 6
    assert fewest_pairs(1 / 64) == 7  # 2 / 2**7, met exactly


def test_sign_flip_holds_its_level_exactly_over_all_flips_of_any_data():
    """Given the sizes of the differences, chance is in their signs: all 2**8 are enumerated."""
    sizes = np.random.default_rng(0).standard_t(2, 8)
    p = sign_flip(np.array(list(product((1, -1), repeat=8))) * sizes)
    for alpha in np.linspace(0.004, 1, 200):
        assert (p <= alpha).mean() <= alpha
    # sizes without ties attain every multiple of 2 / 256
    assert np.unique(p).tolist() == [k / 128 for k in range(1, 129)]


def test_sign_flip_has_five_percent_false_positives_on_heavy_tails():
    draws = np.random.default_rng(1).standard_t(1.5, (5000, 8))
    assert within((sign_flip(draws) <= 0.05).mean(), 6 / 128, 5000)  # the largest level below 0.05


def test_random_flips_beyond_twenty_pairs_agree_with_the_normal_limit_and_never_give_zero():
    generator = np.random.default_rng(2)
    differences = generator.normal(0.3, 1, 60)
    p = float(sign_flip(differences))
    limit = 2 * stats.norm.sf(abs(differences.sum()) / np.sqrt((differences**2).sum()))
    # 100,000 draws have a standard error of sqrt(p / 1e5); the limit itself is good to a tenth
    assert abs(p - limit) < 4 * (limit / 1e5) ** 0.5 + 0.1 * limit
    assert p == float(sign_flip(differences))
    assert float(sign_flip(np.ones(40))) == 1 / 100_001


def test_infinite_differences_are_tested_by_signed_ranks():
    finite = np.array([0.3, -0.1, 0.7, 0.2, 0.5, 0.9, 1.1, 5.0])
    expected = stats.wilcoxon(finite, method="exact").pvalue
    p = sign_flip(np.where(finite == 5.0, np.inf, finite))
    assert float(p) == expected
    assert float(sign_flip(np.full(8, -np.inf))) == 2 / 256


def test_sign_flip_refuses_nan():
    with pytest.raises(ValueError, match="1 of 3 differences are NaN"):
        sign_flip(np.array([1, np.nan, 2]))


def test_equivalence_is_rarely_claimed_where_the_difference_is_the_margin():
    generator = np.random.default_rng(3)
    at_margin = generator.normal(0.1, 0.1, (4000, 8))
    # one-sided, the other side being far away: the largest level below 0.05 is 12 / 256
    assert within((equivalence(at_margin, 0.1) <= 0.05).mean(), 12 / 256, 4000)
    assert (equivalence(generator.normal(0, 0.03, (500, 8)), 0.1) <= 0.05).mean() > 0.99
    assert (equivalence(generator.normal(0, 1.0, (500, 8)), 0.1) <= 0.05).mean() < 0.05


def test_holm_agrees_with_a_hand_calculation():
    # sorted 0.005 0.01 0.03 0.04 times 4 3 2 1: 0.02 0.03 0.06 0.04; never below the one before
    np.testing.assert_allclose(
        holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02], rtol=1e-12
    )
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]


def test_holm_counts_a_test_that_could_not_be_made():
    adjusted = holm(np.array([0.01, np.nan]))
    assert adjusted[0] == 0.02
    assert np.isnan(adjusted[1])


def test_holm_keeps_the_probability_of_any_false_claim_on_four_correlated_endpoints():
    generator = np.random.default_rng(4)
    shared = generator.normal(size=(3000, 1, 9))
    p = sign_flip(0.7 * shared + generator.normal(size=(3000, 4, 9)))
    family = np.array([holm(row).min() for row in p])
    assert (family <= 0.05).mean() < 0.05


def test_permutation_counts_every_division():
    # of the 6 divisions of 1 2 3 4, two have means that differ by 2
    assert permutation(np.array([1.0, 2]), np.array([3.0, 4])) == 2 / 6
    assert permutation(np.array([0.1, 0.2]), np.array([0.3, 0.0])) == 1.0
    assert len(divisions(np.arange(8.0), 4)) == 70


def test_permutation_of_halves_has_five_percent_false_positives():
    draws = np.random.default_rng(5).standard_t(2, (1500, 8))
    p = np.array([permutation(row[:4], row[4:]) for row in draws])
    assert within((p <= 0.05).mean(), 2 / 70, 1500)  # only the two extreme divisions are below 0.05


def test_unpaired_interval_is_students():
    first, second = np.array([1.0, 2.5, 3.1]), np.array([0.4, 0.9, 1.0, 2.2])
    low, high = stats.ttest_ind(first, second).confidence_interval(0.95)
    np.testing.assert_allclose(unpaired_interval(first, second), (low, high), rtol=1e-9)


def test_averages_are_what_they_say_and_the_median_ranks_what_is_not_finite():
    assert float(average(np.array([1.0, 100.0]), "log_mean")) == pytest.approx(10, rel=1e-12)
    assert float(average(np.array([1.0, 3.0]), "mean")) == 2
    assert float(average(np.array([np.nan, 0, 2, np.inf, 1]), "median")) == 2
    assert float(average(np.array([np.nan, np.inf, 1]), "median")) == np.inf


def test_two_zeros_have_no_ratio_and_two_infinities_no_difference():
    treatment, baseline = np.array([0, np.inf, 2, 0, np.inf]), np.array([0, np.inf, 1, 1, 1])
    expected = [np.nan, np.nan, np.log(2), -np.inf, np.inf]
    np.testing.assert_array_equal(compare(treatment, baseline, "log_ratio"), expected)
    differences = compare(np.array([3.0, np.inf, 0]), np.array([1, np.inf, 0]), "difference")
    np.testing.assert_array_equal(differences, [2, np.nan, 0])
    assert np.isnan(compare(np.array([-1.0]), np.array([-1.0]), "log_ratio")).all()


def crossed(generator, pairs, samples, effect, seed_sd, sample_sd, rest_sd):
    """Log values of two arms: the difference varies by seed, by sample, and by both."""
    baseline = generator.normal(size=(pairs, samples)) + generator.normal(size=samples)
    difference = (
        effect
        + seed_sd * generator.normal(size=(pairs, 1))
        + sample_sd * generator.normal(size=(1, samples))
        + rest_sd * generator.normal(size=(pairs, samples))
    )
    return np.exp(baseline + difference), np.exp(baseline)


def test_interval_of_one_number_a_seed_is_students_paired_interval():
    generator = np.random.default_rng(6)
    treatment, baseline = np.exp(generator.normal(size=(2, 8, 1)))
    told = interval([treatment, baseline], average_by="mean", compare_by="log_ratio")
    expected = stats.ttest_1samp(np.log(treatment / baseline)[:, 0], 0).confidence_interval(0.95)
    np.testing.assert_allclose((told.low, told.high), expected, rtol=1e-9)


def test_interval_is_the_same_for_the_same_data():
    arms = crossed(np.random.default_rng(7), 4, 30, 0.1, 0.1, 0.3, 0.3)
    a, b = (interval(arms, average_by="median", compare_by="log_ratio") for _ in range(2))
    assert (a.effect, a.low, a.high) == (b.effect, b.low, b.high)


@pytest.mark.parametrize(
    ("seed_sd", "sample_sd", "rest_sd", "low", "high"),
    [
        # Four standard errors of a share of 0.95 in 600 studies are 0.036.
        (0.2, 0.3, 0.5, 0.93, 0.985),  # as measured: seeds and images both count
        (0.3, 0.0, 0.0, 0.914, 0.986),  # nothing but seeds: Student's, exact
        (0.02, 1.0, 0.3, 0.914, 0.986),  # nothing but images
        (0.0, 0.0, 1.0, 0.97, 1.0),  # all noise: counted twice, so on the wide side
    ],
)
def test_interval_covers_the_effect_in_95_percent_of_studies(
    seed_sd, sample_sd, rest_sd, low, high
):
    generator, covered, studies = np.random.default_rng(8), 0, 600
    for _ in range(studies):
        arms = crossed(generator, 8, 40, 0.3, seed_sd, sample_sd, rest_sd)
        told = interval(arms, average_by="log_mean", compare_by="log_ratio", draws=150)
        covered += told.low <= 0.3 <= told.high
    assert low < covered / studies <= high


def test_resampling_samples_anew_in_each_seed_would_cover_too_rarely():
    """Why samples are drawn in common: the images are the same in all seeds."""
    generator, covered = np.random.default_rng(9), np.zeros(2)
    for _ in range(300):
        arms = np.log(crossed(generator, 8, 40, 0.3, 0.02, 1.0, 0.3))
        effects = arms[0] - arms[1]
        picks = generator.integers(40, size=(100, 8, 40))
        nested = np.take_along_axis(effects[None], picks, axis=2).mean(axis=2)
        seeds = generator.integers(8, size=(100, 8))
        spread = np.take_along_axis(nested, seeds, axis=1).mean(axis=1).std()
        told = interval(np.exp(arms), average_by="log_mean", compare_by="log_ratio", draws=100)
        reach = stats.t.ppf(0.975, 7) * spread * (8 / 7) ** 0.5
        covered += [abs(effects.mean() - 0.3) < reach, told.low <= 0.3 <= told.high]
    assert covered[0] / 300 < 0.75
    assert covered[1] / 300 > 0.9


def test_percentile_interval_of_eight_pairs_would_be_too_short():
    """Why the interval is Student's."""
    generator = np.random.default_rng(10)
    data = generator.normal(size=(1000, 8))
    means = data[:, generator.integers(8, size=(400, 8))].mean(axis=2)
    low, high = np.percentile(means, [2.5, 97.5], axis=1)
    assert ((low <= 0) & (high >= 0)).mean() < 0.92


def test_interval_with_an_infinite_pair_holds_for_the_median():
    treatment = np.array([1, 2, 3, 4, 5, 6, 7, np.inf])[:, None]
    told = interval([treatment, np.ones((8, 1))], average_by="median", compare_by="difference")
    assert (told.effect, told.low, told.high) == (3.5, 0, np.inf)


def test_order_interval_covers_by_the_binomial_distribution():
    assert order_interval(np.arange(5.0)) == (-np.inf, np.inf)
    assert order_interval(np.arange(6.0)) == (0, 5)
    # the second of 9 leaves out 2 * (1 + 9) / 512 = 0.039; the third would leave out 0.18
    assert order_interval(np.arange(9.0)) == (1, 7)


def test_interval_refuses_arms_of_different_samples():
    with pytest.raises(ValueError, match=r"arms are \(2, 3\), \(2, 4\)"):
        interval([np.ones((2, 3)), np.ones((2, 4))], average_by="mean", compare_by="difference")


@pytest.mark.parametrize("pairs", [8, 10, 12])
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_stated_power_is_the_simulated_one(pairs, alpha):
    generator = np.random.default_rng(11)
    for effect in (0.8, 1.2, 1.8):
        found = (sign_flip(generator.normal(effect, 1, (1500, pairs))) <= alpha).mean()
        # the simulation's own 4 standard errors are 0.05; Student's t is that close to the exact
        assert abs(found - power(effect, 1.0, pairs, alpha=alpha)) < 0.07


def test_stated_power_of_the_equivalence_test_is_the_simulated_one():
    generator = np.random.default_rng(12)
    for spread in (0.05, 0.08):
        found = (equivalence(generator.normal(0, spread, (1500, 10)), 0.1) <= 0.0125).mean()
        told = equivalence_power(0, spread, 10, margin=0.1, alpha=0.0125)
        assert abs(found - told) < 0.1  # a normal approximation


def test_pairs_needed_decide_with_the_wanted_probability():
    generator = np.random.default_rng(13)
    needed = pairs_needed(0.2, 0.17, margin=0.05, alpha=0.0125)
    assert needed is not None
    found = (sign_flip(generator.normal(0.2, 0.17, (1000, needed))) <= 0.0125).mean()
    assert 0.73 < found < 0.95  # 0.8 but for the steps of whole pairs and the test's own levels


def test_pairs_needed_show_that_there_is_nothing_where_there_is_nothing():
    needed = pairs_needed(0.0, 0.1, margin=0.1, alpha=0.0125)
    assert needed is not None
    draws = np.random.default_rng(14).normal(0, 0.1, (300, needed))
    assert (equivalence(draws, 0.1) <= 0.0125).mean() > 0.7


def test_no_number_of_seeds_makes_up_for_too_few_samples():
    assert pairs_needed(0.1, 0.1, margin=0.05, alpha=0.0125, floor=0.2) is None
    assert pairs_needed(0.0, 0.0, margin=0.05, alpha=0.0125) == 8


def test_equivalence_holds_its_level_for_symmetric_differences_and_not_for_skewed_ones():
    generator, margin = np.random.default_rng(0), 0.1
    shape = (4000, 8)
    skewed = 0.05 * (generator.lognormal(0, 1.5, shape) - np.exp(1.125))
    rare = np.where(generator.random(shape) < 0.05, 1.0, 0) - 0.05
    wrong = [
        float((equivalence(margin + differences, margin) <= 0.05).mean())
        for differences in (0.05 * generator.normal(size=shape), skewed, rare)
    ]
    assert wrong[0] <= 0.05
    assert wrong[1] == pytest.approx(1 / 3, abs=0.05)  # as docs/statistics.md warns
    assert wrong[2] == pytest.approx(2 / 3, abs=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_scipy_finds_the_same_probabilities(seed: int) -> None:
    """SciPy's own permutation test, on draws with and without ties."""
    random = np.random.default_rng(seed)
    first, second = random.normal(size=3 + seed % 4), random.normal(size=4) + 0.5
    if seed % 2:
        first, second = np.round(first * 2) / 20, np.round(second * 2) / 20

    def apart(a: NDArray[Any], b: NDArray[Any], axis: int) -> NDArray[Any]:
        return np.asarray(np.abs(a.mean(axis=axis) - b.mean(axis=axis)))

    groups = stats.permutation_test((first, second), apart, alternative="greater", vectorized=True)
    assert permutation(first, second) == pytest.approx(groups.pvalue, abs=1e-12)
    for alternative in ("two-sided", "greater", "less"):
        signs = stats.permutation_test(
            (second,), np.mean, permutation_type="samples", alternative=alternative
        )
        assert float(sign_flip(second, alternative)) == pytest.approx(signs.pvalue, abs=1e-12)


@pytest.mark.parametrize("samples", [2, 4, 7])
def test_the_variance_over_samples_is_the_unbiased_one(samples):
    """Of a mean of n samples s²/n, with n - 1 in s²; resampling alone gives (n - 1)/n of that."""
    values = np.random.default_rng(samples).normal(size=(1, samples))
    baseline = np.zeros((1, samples))
    found = interval([values, baseline], average_by="mean", compare_by="difference", draws=20_000)
    expected = values.var(ddof=1) / samples
    # The relative standard error of a variance over 20,000 draws is about 1 %.
    assert found.variance[1] == pytest.approx(expected, rel=0.06)


def test_the_variance_over_seeds_is_that_of_a_mean_of_pairs():
    values = np.array([[1.0], [2.0], [4.0], [9.0]])
    found = interval([values, np.zeros((4, 1))], average_by="mean", compare_by="difference")
    assert found.variance[0] == pytest.approx(np.var([1, 2, 4, 9], ddof=1) / 4)
    half = stats.t.ppf(0.975, 3) * found.variance[0] ** 0.5
    assert (found.low, found.high) == pytest.approx((4 - half, 4 + half))
