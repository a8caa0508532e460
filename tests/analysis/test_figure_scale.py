from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.figures.scale import LOG_RATIO, shared_scale

losses = st.floats(min_value=0, max_value=1e300, allow_nan=False, allow_subnormal=False)


@given(st.lists(losses, min_size=1, max_size=5))
def test_levels_ascend_and_hold_every_value(surface, values):
    scale = shared_scale([surface(values, alpha=range(len(values)))], "loss", ceiling=np.inf)
    assert np.all(np.diff(scale.place(scale.levels)) > 0)
    assert scale.levels[0] <= min(values)
    assert max(values) <= scale.levels[-1]
    assert len(scale.levels) <= 15


def test_scale_is_logarithmic_only_above_the_stated_ratio(surface):
    below = surface([1.0, 0.99 * LOG_RATIO], alpha=[0, 1])
    above = surface([1.0, 1.01 * LOG_RATIO], alpha=[0, 1])
    zero = surface([0.0, 100.0], alpha=[0, 1])
    assert not shared_scale([below], "loss").log
    assert shared_scale([above], "loss").log
    assert not shared_scale([zero], "loss").log
    assert shared_scale([below], "loss", "log").log
    assert not shared_scale([above], "loss", "linear").log


def test_scale_of_several_results_spans_all_of_them(surface):
    scale = shared_scale([surface([v], alpha=[0]) for v in (0.5, 2.0, 4.9)], "loss")
    assert (scale.norm.vmin, scale.norm.vmax) == (0.5, 5.0)


def test_one_value_has_a_range_around_it(surface):
    scale = shared_scale([surface([0.3, 0.3], alpha=[0, 1])], "loss")
    assert scale.levels[0] < 0.2 < 0.4 < scale.levels[-1]


def test_points_not_measured_are_no_part_of_the_scale(surface):
    result = surface([1.0, 2.0, 900.0], alpha=[0, 1, 2])
    result["measured"].values[2] = 0
    assert shared_scale([result], "loss").levels[-1] == 2.0


def test_scale_without_a_finite_value_or_of_a_log_of_zero_is_refused(surface):
    with pytest.raises(ValueError, match="no finite value among 2 measured points"):
        shared_scale([surface([np.inf, np.nan], alpha=[0, 1])], "loss")
    with pytest.raises(ValueError, match="smallest value is 0"):
        shared_scale([surface([0.0, 1.0], alpha=[0, 1])], "loss", "log")


def test_ticks_are_written_as_values_not_as_logarithms(surface):
    decades = shared_scale([surface([1e-2, 1e6], alpha=[0, 1])], "loss", ceiling=np.inf)
    assert decades.text(3.0) == "$10^{3}$"
    two = shared_scale([surface([0.2, 20.0], alpha=[0, 1])], "loss")
    assert [two.text(place) for place in two.ticks(6)] == ["0.2", "0.5", "1", "2", "5", "10", "20"]
    linear = shared_scale([surface([-20.0, 2e5], alpha=[0, 1])], "loss", "linear")
    assert linear.text(150_000.0) == r"$1.5\times10^{5}$"
    assert linear.text(-20.0) == "\N{MINUS SIGN}20"


def test_a_logarithmic_scale_ends_at_its_ceiling_and_counts_what_lies_above(surface):
    values = [0.1, 1.0, 50.0, 1e6, 1e34]
    result = surface(values, alpha=range(5))
    scale = shared_scale([result], "loss")
    assert scale.over
    assert scale.levels[-1] == 100.0
    assert scale.note(np.array(values)) == "2 above 100"
    whole = shared_scale([result], "loss", ceiling=np.inf)
    assert not whole.over
    assert whole.levels[-1] >= 1e34
    assert whole.note(np.array(values)) == ""
    assert shared_scale([result], "loss", ceiling=5.0).note(np.array(values)) == "3 above 5"
    linear = shared_scale([result], "loss", "linear", ceiling=60.0)
    assert linear.over
    with pytest.raises(ValueError, match="above the ceiling 0.05"):
        shared_scale([result], "loss", ceiling=0.05)
