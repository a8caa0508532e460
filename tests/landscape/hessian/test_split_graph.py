"""A function that is linear in its last argument, cut into what is kept and what is left to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.hessian.split_graph import split

X = torch.linspace(0.5, 2.0, 12, dtype=torch.float64).reshape(3, 4)
V = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(3, 4)


class Ran(TorchDispatchMode):
    """Counts the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def ran(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, v: Tensor) -> Counter[str]:
    """What the linear part of a function runs; its result is checked at other values."""
    cut = split(function, [x], v)
    kept, other = cut.prepare(x + 1), 2 * v
    with Ran() as seen:
        found = cut.linear(kept, other)
    expected = function(x + 1, other)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    return seen.names


def test_what_does_not_depend_on_the_vector_is_not_computed_again() -> None:
    assert ran(lambda x, v: x.exp().sin() * v, X, V) == {"mul": 1}


def test_a_product_and_its_addition_become_one_operation() -> None:
    assert ran(lambda x, v: v.sin() * x + v, X, V) == {"sin": 1, "addcmul": 1}
    assert ran(lambda x, v: v + v.sin() * x, X, V) == {"sin": 1, "addcmul": 1}


def test_a_product_that_is_used_twice_stays() -> None:
    def twice(x: Tensor, v: Tensor) -> Tensor:
        product = x * v
        return (product + v) @ product.T

    assert "addcmul" not in ran(twice, X, V)


def test_additions_of_zero_and_copies_vanish() -> None:
    assert ran(lambda x, v: (torch.zeros_like(v) + v) * x, X, V) == {"mul": 1}
    assert ran(lambda x, v: v.to(v.dtype, copy=True) * x, X, V) == {"mul": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda x, v: torch.add(v, x * v, alpha=3),
        lambda x, v: v + x.float() * v.float(),
        lambda x, v: v + (x * v)[:1],
        lambda x, v: v[0] + x * v,
        lambda x, v: v + 2 * v * x,
        lambda x, v: torch.zeros_like(v) + v[0] * x[0],
        lambda x, v: torch.zeros_like(v) + v.float() * x.float(),
        lambda x, v: torch.zeros_like(v)[:, :1] + (v * x)[:, :1],
        lambda x, v: v.T.contiguous() + x.T * v.T,
        lambda x, v: v.to(torch.float32) * x,
        lambda x, v: v + x * v.sum(),
    ],
)
def test_forms_that_nearly_match_keep_their_results(
    function: Callable[[Tensor, Tensor], Tensor],
) -> None:
    assert ran(function, X, V)


def test_the_memory_is_known_before_it_is_taken_and_what_is_shared_counts_once() -> None:
    def function(x: Tensor, v: Tensor) -> Tensor:
        bent = x.exp()
        return bent * v + (bent.T @ (bent * v)).sum() + x * v + bent[:1] * v

    cut = split(function, [X], V)
    storages = [value.untyped_storage() for value in cut.prepare(X)]
    taken = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert X.untyped_storage().data_ptr() in taken, "the argument itself is kept, and not counted"
    assert cut.bytes == sum(taken.values()) - X.nbytes == X.nbytes
