"""A second opinion on the curvature in the weights: hessian-eigenthings, on the same products.

Its Lanczos method and its Hutch++ share no code with this package's. They are given this package's
matrix-vector product, so they check the algorithms, not the product; the tests compare that with
dense Hessians.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape.core.plan import Values
from landscape.core.variables import Floats, Variable, Variables
from landscape.hessian.lanczos import EXHAUSTED, Which

WHICH = {"magnitude": "LM", "largest": "LA", "smallest": "SA"}


def steps(count: int, rows: int) -> int:
    """Lanczos steps for `count` eigenpairs: the library neither restarts nor checks residuals.

    On trained ResNets 1, 5 and 10 eigenpairs reach a residual of 1e-3 after 6, 20 and 31 steps
    (`benchmarks/hessian.py`); this is about twice as many, or more.
    """
    return min(rows, 20 + 4 * count)


def variables(dims: tuple[str, ...], unit: str, *, eigenvalues: bool, trace: bool) -> Variables:
    """What is stored of it: its answers, and their differences from this package's.

    Args:
        dims: of the eigenvalues: the end of the spectrum and the rank.
        unit: of the matrix.
        eigenvalues: whether there are any.
        trace: whether there is one.
    """
    found: Variables = {}
    if eigenvalues:
        found |= {
            "verified_eigenvalue": Variable(dims, "eigenvalue by hessian-eigenthings", unit),
            "verified_converged": Variable(dims, "1 where hessian-eigenthings' has converged"),
            "verified_resolution": Variable(dims[:1], "rounding error of an eigenvalue", unit),
            "eigenvalue_difference": Variable(
                dims, "difference of hessian-eigenthings' eigenvalue, relative to the eigenvalue"
            ),
        }
    if trace:
        label = "trace by hessian-eigenthings"
        found |= {
            "verified_trace": Variable((), label, unit),
            "verified_trace_stderr": Variable((), f"standard error of the {label}", unit),
            "verified_trace_resolution": Variable((), "rounding error of the trace", unit),
            "trace_difference": Variable(
                (), "difference of hessian-eigenthings' trace in standard errors of both"
            ),
            "trace_relative_difference": Variable(
                (), "difference of hessian-eigenthings' trace, relative to the trace"
            ),
        }
    return found


def eigenvalues(
    matvec: Callable[[Tensor], Tensor], like: Tensor, count: int, *, which: Which, seed: int
) -> dict[str, Floats]:
    """The most wanted eigenvalues, by its Lanczos method.

    Args:
        matvec: of a vector (rows,).
        like: (rows,), of the dtype and on the device of the products.
        count: of eigenvalues.
        which: see `lanczos.eigenpairs`.
        seed: of the start vector.

    Returns:
        `verified_eigenvalue` (count,); `verified_converged` (count,), by its own criterion, a
        residual of 1e-4 of the eigenvalue; `verified_resolution` (), below which an eigenvalue is
        rounding error (rule 4 of `lanczos.eigenpairs`).

    Cost: `steps(count, rows)` products.
    """
    operator = _Operator(matvec, like)
    found = _library().lanczos(
        operator.handed_over(),
        k=count,
        max_iter=steps(count, len(like)),
        which=WHICH[which],
        reorthogonalize=True,
        seed=seed,
    )
    return {
        "verified_eigenvalue": found.eigenvalues.double().cpu().numpy(),
        "verified_converged": found.converged.double().cpu().numpy(),
        "verified_resolution": np.array(10 * operator.rounding),
    }


def trace(
    matvec: Callable[[Tensor], Tensor], like: Tensor, products: int, seed: int
) -> dict[str, Floats]:
    """The trace, by its Hutch++ with at most so many products.

    Returns:
        `verified_trace`, `verified_trace_stderr`, and `verified_trace_resolution`, the rounding
        error of a sum of so many products; all ().
    """
    operator = _Operator(matvec, like)
    found = _library().hutch_plus_plus(
        operator.handed_over(), num_matvecs=min(products, 3 * len(like)), seed=seed
    )
    return {
        "verified_trace": np.array(float(found.estimate)),
        "verified_trace_stderr": np.array(float(found.stderr)),
        "verified_trace_resolution": np.array(operator.rounding * products**0.5),
    }


def differences(result: xr.Dataset) -> Values:
    """The differences, once both answers are there.

    Where the standard errors are below rounding error, as of a matrix whose rank the products
    exhaust, the difference in standard errors is NaN: one rounding error would divide another.
    """
    found: Values = {}
    if "verified_eigenvalue" in result:
        ours, theirs = (result[n].values for n in ("eigenvalue", "verified_eigenvalue"))
        with np.errstate(invalid="ignore", divide="ignore"):
            found["eigenvalue_difference"] = (theirs - ours) / np.abs(ours)
    if "verified_trace" in result:
        ours, theirs = (result[n].values for n in ("trace", "verified_trace"))
        first, second = (result[f"{n}_stderr"].values for n in ("trace", "verified_trace"))
        stderr = np.hypot(first, second)
        with np.errstate(invalid="ignore", divide="ignore"):
            found["trace_relative_difference"] = (theirs - ours) / np.abs(ours)
            is_estimate = stderr > result["verified_trace_resolution"].values
            found["trace_difference"] = np.where(is_estimate, (theirs - ours) / stderr, np.nan)
    return found


def tell(result: xr.Dataset) -> list[str]:
    """A line for each end of the spectrum and for the trace."""
    lines = []
    if "verified_eigenvalue" in result:
        lines += [_eigenvalue_line(result.sel(end=end), end) for end in result["end"].values]
    if "verified_trace" in result:
        lines.append(_trace_line(result))
    return lines


def _eigenvalue_line(rows: xr.Dataset, end: str) -> str:
    """The largest relative difference of the pairs that can be compared, and why others cannot."""
    ours, theirs = rows["eigenvalue"].values, rows["verified_eigenvalue"].values
    resolution = float(rows["verified_resolution"])
    is_rounding = np.maximum(np.abs(ours), np.abs(theirs)) <= resolution
    is_unsure = ~is_rounding & (rows["converged"].values != 1)
    is_unsure_there = ~is_rounding & ~is_unsure & (rows["verified_converged"].values != 1)
    doubts = {
        f"below the resolution of {resolution:.1e}": is_rounding,
        "not converged": is_unsure,
        "not converged in hessian-eigenthings": is_unsure_there,
    }
    parts = [f"hessian-eigenthings gives {', '.join(f'{value:.5g}' for value in theirs)}"]
    compared = ~np.logical_or.reduce(list(doubts.values()))
    if compared.any():
        worst = np.abs(rows["eigenvalue_difference"].values[compared]).max()
        parts.append(f"they differ by at most {worst:.1e} of the eigenvalue")
    for doubt, ranks in doubts.items():
        if ranks.any():
            listed = ", ".join(map(str, np.flatnonzero(ranks)))
            apart = np.abs(theirs - ours)[ranks].max()
            parts.append(f"rank {listed}: {doubt}, at most {apart:.1e} apart")
    return f"verified, {end}: {'; '.join(parts)}"


def _trace_line(result: xr.Dataset) -> str:
    answer = f"hessian-eigenthings gives {float(result['verified_trace']):.5g}"
    apart = f"{abs(float(result['trace_relative_difference'])):.1e} of the trace away"
    in_stderr = abs(float(result["trace_difference"]))
    if np.isnan(in_stderr):
        return f"verified, trace: {answer} ± rounding error, {apart}"
    stderr = float(result["verified_trace_stderr"])
    return (
        f"verified, trace: {answer} ± {stderr:.2g}, {in_stderr:.1f} standard errors away, {apart}"
    )


def _library() -> Any:
    import hessian_eigenthings  # imported here, as that takes a second

    return hessian_eigenthings


class _Operator:
    """The matrix as the library takes it, and how large its products were."""

    def __init__(self, matvec: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self._matvec, self._like = matvec, like
        self._norm = 0.0  # the largest |A v| / |v|, near the spectral norm after some Lanczos steps

    @property
    def rounding(self) -> float:
        """The rounding error of a product with a vector of length 1."""
        return EXHAUSTED.get(self._like.dtype, 1e-6) * self._norm

    def product(self, vector: Tensor) -> Tensor:
        """The matrix times a vector."""
        with torch.no_grad():
            image = self._matvec(vector).detach()
        length = float(vector.double().norm())
        if length:
            self._norm = max(self._norm, float(image.double().norm()) / length)
        return image

    def handed_over(self) -> Any:
        """The operator of the library."""
        like = self._like
        return _library().LambdaOperator(self.product, len(like), like.device, like.dtype)
