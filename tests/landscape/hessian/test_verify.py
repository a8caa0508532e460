"""hessian-eigenthings' answers next to this package's, stored as they come."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import hessian_eigenthings
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import landscape
from checkpoints.problem import Problem
from landscape.core import store
from landscape.core.plan import run
from landscape.core.spaces import Weights
from landscape.hessian import PROBE, verify
from landscape.hessian.operator import Curvature

pytestmark = pytest.mark.second_derivative
SMALL: dict[str, Any] = {
    "parts": ("eigenpairs", "trace"),
    "top": 2,
    "which": ("magnitude", "smallest"),
    "trace_products": 30,
    "tol": 1e-6,
    "activations": "recompute",
}


@pytest.fixture
def problem() -> Problem:
    """A small network of smooth units, whose Hessian has eigenvalues of both signs."""
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (11,), generator=generator)
    return Problem.of(network, [(inputs, targets)], batch_size=4)


@pytest.fixture
def dense(problem: Problem) -> np.ndarray[Any, np.dtype[np.float64]]:
    operator = Curvature(Weights(problem))
    rows = [operator.matvec(unit) for unit in torch.eye(operator.size, dtype=torch.float64)]
    return torch.stack(rows).numpy()


def test_both_answers_are_those_of_the_dense_matrix(problem: Problem, dense: Any) -> None:
    result = landscape.measure("hessian", problem, verify=True, **SMALL)
    exact = np.linalg.eigvalsh(dense)
    magnitude = exact[np.argsort(-np.abs(exact))][:2]
    for name in ("eigenvalue", "verified_eigenvalue"):
        np.testing.assert_allclose(result[name].sel(end="magnitude"), magnitude, rtol=1e-6)
        np.testing.assert_allclose(result[name].sel(end="smallest"), exact[:2], rtol=1e-4)
    assert float(np.abs(result["eigenvalue_difference"]).max()) < 1e-4
    for name in ("trace", "verified_trace"):
        error = abs(float(result[name]) - np.trace(dense))
        assert error < 5 * float(result[f"{name}_stderr"]) + 1e-9


def test_what_is_stored_is_the_library_s_own_answer(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(operator: Any, *, k: int, **_: Any) -> Any:
        return hessian_eigenthings.EigenResult(
            torch.full((k,), 7.0), torch.zeros(k, 1), torch.zeros(k), 1, torch.ones(k)
        )

    monkeypatch.setattr(hessian_eigenthings, "lanczos", other)
    monkeypatch.setattr(
        hessian_eigenthings,
        "hutch_plus_plus",
        lambda operator, **_: hessian_eigenthings.TraceResult(-3.0, 0.5, torch.zeros(1)),
    )
    result = landscape.measure("hessian", problem, verify=True, **SMALL)
    assert (result["verified_eigenvalue"] == 7).all()
    ours = result["eigenvalue"].values
    np.testing.assert_allclose(result["eigenvalue_difference"], (7 - ours) / np.abs(ours))
    assert float(result["verified_trace"]) == -3
    errors = np.hypot(float(result["trace_stderr"]), 0.5)
    expected = (-3 - float(result["trace"])) / errors
    assert float(result["trace_difference"]) == pytest.approx(expected)
    assert PROBE.plan is not None
    lines = verify.tell(result)
    assert lines[0].startswith(
        "verified, magnitude: hessian-eigenthings gives 7, 7; they differ by"
    )
    assert lines[-1].startswith("verified, trace: hessian-eigenthings gives -3 ± 0.5, ")


def test_an_exact_trace_is_not_compared_in_standard_errors(problem: Problem) -> None:
    """Both sketches have full rank: what is left is rounding error, over rounding error."""
    for whole, rtol in ((problem, 1e-12), (problem.to(problem.device, torch.float32), 1e-5)):
        options = SMALL | {"parts": ("trace",), "trace_products": 400}
        result = landscape.measure("hessian", whole, verify=True, **options)
        assert float(result["trace_stderr"]) == 0
        assert np.isnan(float(result["trace_difference"]))
        assert 0 < float(result["verified_trace_resolution"]) < rtol * float(result["trace"]) * 100
        assert abs(float(result["trace_relative_difference"])) < rtol
        (line,) = verify.tell(result)
        assert "± rounding error, " in line
        assert line.endswith("of the trace away")


def test_pairs_that_cannot_be_compared_are_named(problem: Problem) -> None:
    """A Gauss-Newton matrix of 53 rows and rank 22, of whose zeros one start vector finds one."""
    options = SMALL | {"parts": ("eigenpairs",), "matrix": "gauss_newton"}
    result = landscape.measure("hessian", problem, verify=True, **options)
    assert abs(float(result["eigenvalue"].sel(end="smallest", rank=0))) < 1e-14
    assert 1e-14 < float(result["verified_resolution"].sel(end="smallest")) < 1e-11
    largest, smallest = verify.tell(result)
    assert "they differ by at most" in largest
    assert "rank" not in largest
    assert re.search(
        "they differ by at most .*e-1. of the eigenvalue; rank 0: below the resolution of", smallest
    )

    result = landscape.measure("hessian", problem, verify=True, **SMALL | {"max_products": 2})
    for line in verify.tell(result)[:2]:
        assert "rank 0, 1: not converged, at most" in line
        assert "they differ" not in line
    result = landscape.measure("hessian", problem, verify=True, **SMALL)
    result["verified_converged"].values[0, 1] = 0
    line = verify.tell(result)[0]
    assert "they differ by at most" in line
    assert "rank 1: not converged in hessian-eigenthings, at most" in line


def test_without_it_nothing_else_is_stored_and_the_numbers_are_the_same(problem: Problem) -> None:
    plain = landscape.measure("hessian", problem, **SMALL)
    both = landscape.measure("hessian", problem, verify=True, **SMALL)
    assert not [name for name in plain.data_vars if "verif" in str(name) or "differ" in str(name)]
    for name in set(plain.data_vars) - {"measured"}:
        np.testing.assert_array_equal(plain[name], both[name], err_msg=str(name))


def test_a_killed_run_ends_with_the_file_of_a_straight_one(
    problem: Problem, tmp_path: Path
) -> None:
    straight, halted = tmp_path / "a.h5", tmp_path / "b.h5"
    landscape.measure("hessian", problem, verify=True, out=straight, **SMALL)
    plan = PROBE.plan(problem, PROBE.spec(verify=True, **SMALL))
    seen: list[Any] = []

    def stopping(cells: Any) -> Any:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(cells)
        return plan.measure(cells)

    with pytest.raises(KeyboardInterrupt):
        run(replace(plan, measure=stopping), halted)
    landscape.measure("hessian", problem, verify=True, out=halted, **SMALL)
    found, expected = store.load(halted), store.load(straight)
    for name in expected.data_vars:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=str(name))


def test_a_file_of_a_version_without_it_is_continued(problem: Problem, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    result = landscape.measure("hessian", problem, out=path, **SMALL)
    spec = result.attrs["spec"].replace(', "verify": false', "")
    assert spec != result.attrs["spec"]
    store.save(result.assign_attrs(spec=spec), path)
    xr.testing.assert_equal(landscape.measure("hessian", problem, out=path, **SMALL), result)
    with pytest.raises(ValueError, match="verify=None, this run asks for verify=True"):
        landscape.measure("hessian", problem, out=path, verify=True, **SMALL)


def test_a_matrix_of_few_rows_is_verified_too(problem: Problem) -> None:
    options = {"parts": ("eigenpairs", "trace"), "layers": "2.bias"}
    result = landscape.measure("hessian", problem, verify=True, **options)
    assert result.sizes["rank"] == 3
    found, expected = result["verified_eigenvalue"].values, result["eigenvalue"].values
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"space": "inputs"}, "verify is for space weights"),
        ({"parts": ("density",)}, "verify needs parts eigenpairs or trace"),
    ],
)
def test_there_must_be_something_to_verify(
    problem: Problem, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        landscape.measure("hessian", problem, verify=True, **options)
