"""Means and quantiles over the examples that have a value."""

from __future__ import annotations

import numpy as np
import pytest

from landscape.core.summary import summarized, summarized_where_defined


def test_with_a_value_for_every_example_it_is_the_plain_summary() -> None:
    values = np.random.default_rng(0).normal(size=(11, 3))
    plain, found = summarized("x", values[:, None]), summarized_where_defined("x", values)
    np.testing.assert_array_equal(found.pop("x_defined"), [11, 11, 11])
    assert set(found) == set(plain)
    for name, expected in plain.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-14, err_msg=name)


@pytest.mark.filterwarnings("error")
def test_examples_without_a_value_are_left_out_column_by_column() -> None:
    values = np.random.default_rng(1).normal(size=(9, 3))
    values[[0, 4, 7], 0] = np.nan
    values[1:, 1] = np.nan
    values[:, 2] = np.nan
    found = summarized_where_defined("x", values)
    np.testing.assert_array_equal(found["x_defined"], [6, 1, 0])
    alone = summarized("x", values[~np.isnan(values[:, 0]), :1][:, None])
    for name, expected in alone.items():
        assert found[name][0] == pytest.approx(expected.item(), rel=1e-14), name
    assert found["x_mean"][1] == values[0, 1] == found["x_median"][1]
    assert np.isnan(found["x_mean_stderr"][1])
    assert np.isnan(found["x_mean"][2]) and np.isnan(found["x_q90"][2])
