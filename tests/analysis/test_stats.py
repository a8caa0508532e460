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


def test_every_choice_is_counted_up_to_a_limit_and_drawn_beyond(monkeypatch):
    differences = np.array([1.0, 2, 3, 4, 5])
    monkeypatch.setattr("analysis.stats.sign_flip.EXACT", 5)
    assert float(sign_flip(differences)) == 2 / 32
    monkeypatch.setattr("analysis.stats.sign_flip.EXACT", 4)
    monkeypatch.setattr("analysis.stats.sign_flip.DRAWS", 3000)
    drawn = [float(sign_flip(differences, seed=seed)) for seed in (0, 1)]
    assert float(sign_flip(differences)) == drawn[0] != drawn[1]
    for p in drawn:  # a share of 1 / 16 of 3000 draws has a standard error of 0.0044
        assert (p * 3001) % 1 == pytest.approx(0, abs=1e-9)
        assert abs(p - 2 / 32) < 4 * 0.0044
    for moved in (differences - 2, differences - 4):  # either side's test is the one that counts
        both = [float(equivalence(moved, 2.0, seed=seed)) for seed in (0, 1)]
        assert float(equivalence(moved, 2.0)) == both[0] != both[1]
        alone = [sign_flip(moved + 2.0, "greater"), sign_flip(moved - 2.0, "less")]
        assert both[0] == max(map(float, alone))


def test_rows_of_differences_are_tested_each_on_its_own():
    rows = [
        [0.1, 0.2, -0.3, 0.4],  # with a tie through rounding
        [1e12, -3e12, 2e12, 5e12],  # whose rounding is larger than the row above
        [np.inf, -1.0, 2.0, 3.0],  # signed ranks
        [0.5, -3.0, 2.9, 0.7],  # where ranks would say something else
    ]
    together = sign_flip(np.array(rows))
    assert together.tolist() == [float(sign_flip(np.array(row))) for row in rows]
    assert together[2] == by_hand(np.array([4.0, -1, 2, 3]))
    assert together[3] == by_hand(np.array(rows[3])) != by_hand(np.array([1.0, -4, 3, 2]))


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


def test_permutation_counts_ties_at_any_scale():
    generator = np.random.default_rng(6)
    for _ in range(20):
        first, second = (generator.integers(0, 4, size=4).astype(float) for _ in range(2))
        exact = permutation(first, second)  # of whole numbers nothing is rounded
        for scale in (0.1, 0.1e-9, 0.1e9):
            assert permutation(first * scale, second * scale) == exact
    assert permutation(np.zeros(3), np.zeros(4)) == 1.0


def test_permutation_counts_every_division_up_to_a_limit_and_draws_beyond(monkeypatch):
    first, second = np.arange(4.0), np.arange(4.0) + 10
    monkeypatch.setattr("analysis.stats.permutation.EXACT", 70)  # 8 numbers, 4 of them
    assert permutation(first, second) == 2 / 70
    monkeypatch.setattr("analysis.stats.permutation.EXACT", 69)
    monkeypatch.setattr("analysis.stats.permutation.DRAWS", 2000)
    drawn = permutation(first, second)
    assert drawn == permutation(first, second, seed=0) != permutation(first, second, seed=1)
    # of 2000 draws 57 are expected to reach that far, with a standard deviation of 7.5
    reached = drawn * 2001 - 1
    assert reached == pytest.approx(round(reached), abs=1e-9)
    assert abs(reached - 2000 * 2 / 70) < 4 * 7.5
    far = permutation(np.arange(12.0), np.arange(12.0) + 1000)
    assert far == 1 / 2001  # the data are one of the divisions: p is never zero
    apart = divisions(np.concatenate([first, second]), 4)
    assert np.array_equal(apart, divisions(np.concatenate([first, second]), 4, seed=0))
    # the mean over divisions of a difference of means is zero
    assert abs(apart.mean()) < 4 * apart.std() / 2000**0.5


def test_unpaired_interval_of_three_numbers_is_finite_and_of_two_unknown():
    assert np.isnan(unpaired_interval(np.array([1.0]), np.array([2.0]))).all()
    first, second = np.array([1.0, 3.0]), np.array([5.0])
    low, high = unpaired_interval(first, second)
    # variance 2 of one degree of freedom, times 1/2 + 1
    reach = stats.t.ppf(0.975, 1) * 3**0.5
    assert (low, high) == pytest.approx((-3 - reach, -3 + reach))


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
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3, 0.0125])
def test_stated_power_is_the_simulated_one(pairs, alpha):
    generator = np.random.default_rng(11)
    for effect in (0.8, 1.2, 1.8):
        found = (sign_flip(generator.normal(effect, 1, (1500, pairs))) <= alpha).mean()
        # the simulation's own 4 standard errors are 0.05; Student's t is that close to the exact
        assert abs(found - power(effect, 1.0, pairs, alpha=alpha)) < 0.07


@pytest.mark.parametrize(("pairs", "alpha", "level"), [(8, 0.05, 6 / 128), (12, 0.0125, 25 / 2048)])
def test_stated_power_is_that_of_students_t_at_the_largest_level_attained(pairs, alpha, level):
    draws = np.random.default_rng(15).normal(0, 2, (20_000, pairs))
    over_samples = np.random.default_rng(16).normal(0, 1, 20_000)
    for floor in (0.0, 1.0):
        errors = draws.mean(axis=1) + floor * over_samples
        critical = stats.t.isf(level / 2, pairs - 1)
        stderr = draws.std(axis=1, ddof=1) / pairs**0.5
        for effect in (-1.6, 1.6):
            # The floor widens numerator and denominator alike, as the interval's variance does.
            widened = stderr * (1 + floor * pairs / 4) ** 0.5
            found = np.sign(effect) * (effect + errors) > critical * widened
            stated = float(power(effect, 2.0, pairs, alpha=alpha, floor=floor))
            assert within(found.mean(), stated, 20_000)


def test_a_difference_far_beyond_the_spread_is_found_where_any_can_be():
    assert power(50.0, 0.1, [5, 6, 8, 1000], alpha=0.05).tolist() == [0, 1, 1, 1]
    assert power(50.0, 0.1, [7, 8], alpha=0.0125).tolist() == [0, 1]


def test_power_of_the_fewest_pairs_is_that_of_equal_signs():
    # one choice of signs in 32 either way: normal differences of mean 1 are positive in 84 %
    stated = float(power(1.0, 1.0, 6, alpha=0.05))
    assert stated == pytest.approx(stats.norm.cdf(1) ** 6 + stats.norm.cdf(-1) ** 6)


def test_no_more_than_a_thousand_pairs_are_asked_for(monkeypatch):
    needed = pairs_needed(0.1, 1.0, margin=0.01, alpha=0.05)
    # the normal limit: (1.96 + 0.84)² / 0.1² = 785, and two for the estimated spread
    assert needed == pytest.approx(787, abs=3)
    assert pairs_needed(0.088, 1.0, margin=0.01, alpha=0.05) is None  # 1014
    assert pairs_needed(0.0895, 1.0, margin=0.01, alpha=0.05) == pytest.approx(982, abs=3)
    monkeypatch.setattr("analysis.stats.power.MOST", needed)
    assert pairs_needed(0.1, 1.0, margin=0.01, alpha=0.05) == needed
    monkeypatch.setattr("analysis.stats.power.MOST", needed - 1)
    assert pairs_needed(0.1, 1.0, margin=0.01, alpha=0.05) is None


def test_stated_power_of_the_equivalence_test_is_the_simulated_one():
    generator = np.random.default_rng(12)
    for spread in (0.05, 0.08):
        found = (equivalence(generator.normal(0, spread, (1500, 10)), 0.1) <= 0.0125).mean()
        told = equivalence_power(0, spread, 10, margin=0.1, alpha=0.0125)
        assert abs(found - told) < 0.1  # a normal approximation


@pytest.mark.parametrize("floor", [0.0, 0.0015])
def test_stated_power_of_the_equivalence_test_is_students_for_many_pairs(floor):
    pairs, alpha, margin = 100, 0.05, 0.15
    draws = np.random.default_rng(17).normal(0, 0.5, (10_000, pairs))
    errors = draws.mean(axis=1) + floor**0.5 * np.random.default_rng(18).normal(size=10_000)
    stderr = (draws.var(axis=1, ddof=1) / pairs * (1 + floor * pairs / 0.25)) ** 0.5
    reach = stats.t.isf(alpha, pairs - 1) * stderr
    for effect in (0.0, 0.04, -0.04):
        shown = (effect + errors + reach < margin) & (effect + errors - reach > -margin)
        stated = equivalence_power(effect, 0.5, pairs, margin=margin, alpha=alpha, floor=floor)
        # the simulation's own 4 standard errors, and 1 % for the normal approximation
        assert abs(shown.mean() - stated) < 4 * (0.25 / 10_000) ** 0.5 + 0.01
    assert equivalence_power(0.16, 0.5, pairs, margin=margin, alpha=alpha, floor=floor) < alpha


def test_equivalence_takes_as_many_pairs_as_equal_signs_do_one_sided():
    # 1 / 2**4 is more than 0.05; of effects without spread nothing else stands in the way
    nothing = equivalence_power(0.0, 1e-6, [4, 5, 2000], margin=0.1, alpha=0.05)
    assert nothing.tolist() == [0, 1, 1]
    # at 7 pairs one choice of signs is allowed, the level 1 / 128: Student's t with 6 degrees
    stated = float(equivalence_power(0.0, 0.1, 7, margin=0.3, alpha=0.0125))
    critical = stats.t.isf(1 / 128, 6)
    assert stated == pytest.approx(2 * stats.norm.cdf(3 * 7**0.5 - critical) - 1)


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


def test_the_interval_has_satterthwaites_degrees_of_freedom():
    arms = crossed(np.random.default_rng(19), 5, 4, 0.2, 0.3, 0.4, 0.1)
    for level in (0.95, 0.8):
        found = interval(arms, average_by="log_mean", compare_by="log_ratio", level=level)
        seeds, samples = found.variance
        assert seeds > 0 < samples
        degrees = (seeds + samples) ** 2 / (seeds**2 / 4 + samples**2 / 3)
        reach = stats.t.ppf((1 + level) / 2, degrees) * (seeds + samples) ** 0.5
        expected = (found.effect - reach, found.effect + reach)
        assert (found.low, found.high) == pytest.approx(expected)


def test_draws_of_samples_follow_their_seed_and_number_and_not_the_memory_at_hand(monkeypatch):
    arms = crossed(np.random.default_rng(20), 3, 10, 0.1, 0.1, 0.3, 0.3)

    def variance(**changes: Any) -> float:
        return interval(arms, average_by="mean", compare_by="difference", **changes).variance[1]

    usual = variance()
    assert usual == variance(seed=0, draws=1000, level=0.5)
    assert len({usual, variance(seed=1), variance(draws=999), variance(draws=1001)}) == 4
    monkeypatch.setattr("analysis.stats.bootstrap._AT_ONCE", 7 * 30)  # 1000 is no multiple of 7
    assert variance() == pytest.approx(usual, rel=1e-12)
    monkeypatch.setattr("analysis.stats.bootstrap._AT_ONCE", 1)
    assert variance() == pytest.approx(usual, rel=1e-12)


def test_a_single_pair_has_an_effect_and_no_interval_and_equal_pairs_one_of_no_width():
    alone = interval(
        [np.full((1, 3), 2.0), np.ones((1, 3))], average_by="mean", compare_by="difference"
    )
    assert alone.effect == 1 and alone.seeds.tolist() == [1]
    assert np.isnan([alone.low, alone.high, alone.variance[0]]).all()
    equal = interval(
        [np.full((4, 3), 2.0), np.ones((4, 3))], average_by="mean", compare_by="difference"
    )
    assert (equal.low, equal.effect, equal.high, equal.variance) == (1, 1, 1, (0, 0))


def test_an_average_that_other_samples_would_make_infinite_has_the_sign_tests_interval():
    treatment, baseline = np.tile([0.0, 0.0, 3.0], (7, 1)), np.ones((7, 3))
    treatment[:, 2] += np.arange(7)
    found = interval([treatment, baseline], average_by="mean", compare_by="log_ratio")
    assert (found.low, found.high) == pytest.approx((0, np.log(3)))
    assert found.effect == pytest.approx(np.log(treatment.mean(axis=1)).mean())
    assert np.isnan(found.variance).all()


def test_order_interval_keeps_its_level_and_knows_nothing_of_nan():
    for level in (0.5, 0.9, 0.99):
        for pairs in (8, 15, 30):
            low, high = order_interval(np.arange(float(pairs)), level)
            outside = stats.binom.cdf(low, pairs, 0.5)  # fewer than that lie below the median
            assert high == pairs - 1 - low
            assert 2 * outside <= 1 - level < 2 * stats.binom.cdf(low + 1, pairs, 0.5)
    assert np.isnan(order_interval(np.array([0.0, 1, 2, 3, 4, 5, np.nan]))).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 3, 4)])
def test_interval_refuses_what_is_no_table_of_pairs_and_samples(shape):
    with pytest.raises(ValueError, match="expected .pairs, samples."):
        interval([np.ones(shape), np.ones(shape)], average_by="mean", compare_by="difference")
