from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from landscape.core.summary import mean_and_stderr
from landscape.interpolate import pairs, path_statistics

LABELS = np.arange(40) % 4


def smooth(steps: int) -> NDArray[np.float64]:
    t = np.linspace(0, 1, steps + 1)
    return np.stack([np.sin(3 * t), t**2], axis=1)


def half_circle(steps: int) -> NDArray[np.float64]:
    angle = np.pi * np.linspace(0, 1, steps + 1)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.mark.parametrize("points", [3, 5, 33, 50])
@pytest.mark.parametrize("beyond", [0.0, 0.1, 1.0, 1.3])
def test_a_grid_holds_both_ends_exactly_and_goes_on_equally_spaced(
    points: int, beyond: float
) -> None:
    t = path_statistics.grid(points, beyond)
    assert ((t >= 0) & (t <= 1)).sum() == points
    assert 0.0 in t
    assert 1.0 in t
    assert t[0] <= -beyond
    assert t[0] > -beyond - 1 / (points - 1)  # no more points than are needed
    np.testing.assert_allclose(np.diff(t), 1 / (points - 1), rtol=1e-12)
    np.testing.assert_allclose(t, 1 - t[::-1], atol=1e-15)


def test_a_circle_passes_its_three_points_in_turn_and_closes() -> None:
    points = np.random.default_rng(0).normal(size=(3, 7))
    squares = [((points[i] - points[j]) ** 2).sum() for i, j in ((0, 1), (0, 2), (1, 2))]
    t = np.linspace(0, 1, 20001)
    coefficients, radius = path_statistics.circle((squares[0], squares[1], squares[2]), t)
    np.testing.assert_array_equal(coefficients[[0, -1]], [[1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(coefficients.sum(axis=1), 1, rtol=1e-12)
    round_trip = coefficients @ points
    centre = round_trip[:-1].mean(axis=0)
    # Float64 through a triangle that is not thin.
    np.testing.assert_allclose(np.linalg.norm(round_trip - centre, axis=1), radius, rtol=1e-9)
    distance = np.linalg.norm(round_trip[:, None] - points, axis=2)
    nearest = distance[1:-1].argmin(axis=0)
    step = 2 * np.pi * radius / 20000
    assert (distance[1:-1].min(axis=0) <= step).all()  # no further than one step of the grid
    assert nearest[1] < nearest[2]


def test_points_on_one_line_have_no_circle() -> None:
    coefficients, _ = path_statistics.circle((1.0, 4.0, 1.0), np.linspace(0, 1, 5))
    assert not np.isfinite(coefficients[1:-1]).any()


def test_a_straight_path_has_tortuosity_one_and_neither_roughness_nor_deviation() -> None:
    values = np.linspace(0, 1, 33)[:, None] * np.array([3.0, -1.0, 2.0]) + 5
    assert path_statistics.tortuosity(values) == pytest.approx(1, rel=1e-14)
    assert path_statistics.chord_deviation(values) == pytest.approx(0, abs=1e-15)
    # Rounding of 1e-16 a difference, squared, times 32^3.
    assert path_statistics.roughness(values) == pytest.approx(0, abs=1e-24)


def test_roughness_converges_to_the_integral_of_the_squared_second_derivative() -> None:
    # int (9 sin 3t)^2 + 2^2 dt
    exact = 81 * (0.5 - np.sin(6) / 12) + 4
    errors = [abs(path_statistics.roughness(smooth(steps)) - exact) for steps in (512, 1024)]
    assert errors[1] < 2e-3 * exact
    # Of first order: the two ends have no second difference.
    np.testing.assert_allclose(errors[1] / errors[0], 0.5, atol=0.01)


def test_roughness_of_a_kink_grows_with_the_number_of_steps() -> None:
    for steps in (32, 64):
        t = np.linspace(0, 1, steps + 1)
        at_a_point = np.abs(t - 0.5)[:, None]
        between = np.abs(t - 0.5 - 0.5 / steps)[:, None]
        # A slope that jumps by 2; rounding only.
        assert path_statistics.roughness(at_a_point) == pytest.approx(4 * steps, rel=1e-10)
        assert path_statistics.roughness(between) == pytest.approx(4 * steps / 2, rel=1e-10)


def test_tortuosity_converges_to_the_ratio_of_arc_and_chord() -> None:
    errors = [np.pi / 2 - path_statistics.tortuosity(half_circle(steps)) for steps in (32, 64)]
    assert 0 < errors[0] < 1e-3
    np.testing.assert_allclose(errors[1] / errors[0], 1 / 4, rtol=1e-3)  # of second order


def test_chord_deviation_is_that_of_the_farthest_point() -> None:
    assert path_statistics.chord_deviation(half_circle(32)) == pytest.approx(0.5, rel=1e-12)
    t = np.linspace(0, 1, 33)[:, None]
    # t^2 - t is -1/4 in the middle, over a distance of 1.
    assert path_statistics.chord_deviation(t**2) == pytest.approx(0.25, rel=1e-12)


def test_where_the_ends_agree_a_ratio_is_infinite_or_undefined() -> None:
    there_and_back = np.array([[0.0], [1.0], [0.0]])
    assert path_statistics.tortuosity(there_and_back) == np.inf
    assert path_statistics.chord_deviation(there_and_back) == np.inf
    assert np.isnan(path_statistics.tortuosity(np.zeros((3, 2))))


def test_scaling_and_shifting_the_outputs_leaves_what_is_a_ratio() -> None:
    values = np.random.default_rng(1).normal(size=(9, 4))
    moved = 3 * values + np.array([1.0, -2, 0, 5])
    for statistic in (path_statistics.tortuosity, path_statistics.chord_deviation):
        assert statistic(moved) == pytest.approx(statistic(values), rel=1e-12)
    assert path_statistics.roughness(moved) == pytest.approx(
        9 * path_statistics.roughness(values), rel=1e-12
    )


def test_flips_and_misses_are_counted() -> None:
    decisions = np.array([0, 0, 2, 2, 0, 1, 1, 1])
    values = np.eye(3)[decisions]
    assert path_statistics.flips(values) == 3
    assert path_statistics.miss_rate(values, [0, 1]) == 2 / 8
    assert path_statistics.miss_rate(values, [0, 1, 2]) == 0
    values[3, 1] = np.nan
    assert np.isnan(path_statistics.flips(values))
    assert np.isnan(path_statistics.miss_rate(values, [0, 1]))


def test_monotonicity_violation_adds_the_rises() -> None:
    assert path_statistics.monotonicity_violation(np.array([1.0, 0.5, 0.25, 0.0])) == 0
    assert path_statistics.monotonicity_violation(np.array([1.0, 0.5, 0.75, 0.0, 0.5])) == 0.75


def test_average_is_exact_for_a_straight_line() -> None:
    assert path_statistics.average(np.linspace(1, 3, 6)) == pytest.approx(2, rel=1e-15)
    assert path_statistics.average(np.array([0.0, 1.0, 0.0])) == 0.5


def test_margin_is_the_distance_to_the_best_other() -> None:
    assert path_statistics.margin(np.array([1.0, 4.0, 3.0]), 1) == 1
    assert path_statistics.margin(np.array([1.0, 4.0, 3.0]), 0) == -3


def test_entropy_of_a_certain_and_of_an_undecided_network() -> None:
    with np.errstate(divide="ignore"):
        certain = np.log(np.array([1.0, 0.0, 0.0]))
    assert path_statistics.entropy(certain) == 0
    assert path_statistics.entropy(np.log(np.full(5, 0.2))) == pytest.approx(np.log(5), rel=1e-14)


def test_excess_of_a_parabola_is_its_distance_from_the_chord() -> None:
    t = path_statistics.grid(9, 0.5)
    curvature = np.array([1.0, -2.0])
    losses = 3 + 5 * t[:, None] + curvature * t[:, None] ** 2
    wanted = curvature * (t * (t - 1))[:, None]
    np.testing.assert_allclose(
        path_statistics.excess(losses, t), wanted, atol=1e-14
    )  # rounding of 10
    assert (path_statistics.excess(losses, t)[(t == 0) | (t == 1)] == 0).all()


def test_mean_and_standard_error_are_those_of_the_last_axis() -> None:
    values = np.array([[1.0, 2.0, 6.0], [1.0, 1.0, np.inf]])
    mean, stderr = mean_and_stderr(values)
    np.testing.assert_allclose(mean, [3, np.inf])
    np.testing.assert_allclose(stderr[0], np.sqrt(7 / 3), rtol=1e-14)
    assert np.isnan(mean_and_stderr(values[:, :1])[1]).all()


@pytest.mark.parametrize("kind", pairs.KINDS)
def test_pairs_are_of_their_kind_different_and_begin_alike(kind: str) -> None:
    drawn = pairs.draw(kind, LABELS, 50, seed=3)
    assert pairs.draw(kind, LABELS, 20, seed=3) == drawn[:20]
    assert pairs.draw(kind, LABELS, 20, seed=4) != drawn[:20]
    assert len({frozenset(samples) for samples in drawn}) == 50
    for samples in drawn:
        assert len(set(samples)) == (3 if kind == "circle" else 2)
        if kind in ("same_class", "cross_class"):
            same = LABELS[samples[0]] == LABELS[samples[1]]
            assert same == (kind == "same_class")


def test_each_kind_of_path_has_a_random_stream_of_its_own() -> None:
    firsts = np.array(
        [[pairs.draw(kind, LABELS, 1, seed)[0][0] for kind in pairs.KINDS] for seed in range(200)]
    )
    for one in range(4):
        for other in range(one):
            # By chance one in 40 agrees, 5 of 200; that three times that do has odds of 1e-4.
            assert (firsts[:, one] == firsts[:, other]).sum() < 15


@pytest.mark.parametrize("kind", pairs.KINDS)
def test_the_first_of_a_pair_is_any_example_and_the_second_any_that_suits(kind: str) -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    drawn = np.array([pairs.draw(kind, labels, 1, seed)[0] for seed in range(2000)])
    frequency = np.bincount(drawn[:, 0], minlength=10) / 2000
    # A share of 0.1 in 2000 draws has the standard deviation 0.0067: four of these.
    np.testing.assert_allclose(frequency, 0.1, atol=0.027)
    others = {"same_class": {1, 2, 3}, "cross_class": set(range(4, 10))}
    assert set(drawn[drawn[:, 0] == 0, 1]) == others.get(kind, set(range(1, 10)))


def test_all_pairs_are_found_where_all_are_asked_for() -> None:
    labels = np.array([0, 0, 0, 1, 2])
    assert {frozenset(p) for p in pairs.draw("same_class", labels, 3, seed=0)} == {
        frozenset(p) for p in ((0, 1), (0, 2), (1, 2))
    }
    assert len(pairs.draw("cross_class", labels, 7, seed=0)) == 7
    assert len(pairs.draw("random", labels, 10, seed=0)) == 10
    assert len(pairs.draw("circle", labels, 10, seed=0)) == 10
    with pytest.raises(ValueError, match="--pairs 4 exceeds the 3 of kind same_class among 5"):
        pairs.draw("same_class", labels, 4, seed=0)
