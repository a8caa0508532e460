from __future__ import annotations

import numpy as np
import pytest

from landscape.core.partners import partners


@pytest.mark.parametrize("count", [2, 3, 50])
def test_partners_are_one_circle_that_the_seed_draws(count: int) -> None:
    found = partners(count, (0, 1))
    at, seen = 0, []
    for _ in range(count):
        at = int(found[at])
        seen.append(at)
    assert sorted(seen) == list(range(count)), "one circle of all"
    assert seen[-1] == 0
    np.testing.assert_array_equal(found, partners(count, (0, 1)))
    assert count < 4 or (found != partners(count, (0, 2))).any()


def test_a_single_example_is_alone() -> None:
    assert partners(1, 0).tolist() == [0]
