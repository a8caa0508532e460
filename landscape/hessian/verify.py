"""A second opinion on the curvature in the weights: hessian-eigenthings, on the same products.

Its Lanczos method and its Hutch++ share no code with this package's. They are handed this package's
matrix-vector product, so that they check the algorithms and not the product, which the tests hold
to dense Hessians.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape.core.plan import Values
from landscape.core.variables import Floats, Variable, Variables
from landscape.hessian.lanczos import Which

WHICH = {"magnitude": "LM", "largest": "LA", "smallest": "SA"}


def steps(count: int, rows: int) -> int:
    """Lanczos steps for `count` eigenpairs; it does not restart, and stops at no residual.

    On trained ResNets 6, 20 and 31 steps give 1, 5 and 10 eigenpairs a residual of 1e-3
    (`benchmarks/hessian.py`); this is twice as many, or more.
    """
    return min(rows, 20 + 4 * count)


def variables(dims: tuple[str, ...], unit: str, *, eigenvalues: bool, trace: bool) -> Variables:
    """What is stored of it: its answers, and their differences from this package's."""
    found: Variables = {}
    if eigenvalues:
        found |= {
            "verified_eigenvalue": Variable(dims, "eigenvalue by hessian-eigenthings", unit),
            "eigenvalue_difference": Variable(
                dims, "difference of hessian-eigenthings' eigenvalue, relative to the eigenvalue"
            ),
        }
    if trace:
        label = "trace by hessian-eigenthings"
        found |= {
            "verified_trace": Variable((), label, unit),
            "verified_trace_stderr": Variable((), f"standard error of the {label}", unit),
            "trace_difference": Variable(
                (), "difference of hessian-eigenthings' trace in standard errors of both"
            ),
        }
    return found


def eigenvalues(
    matvec: Callable[[Tensor], Tensor], like: Tensor, count: int, *, which: Which, seed: int
) -> Floats:
    """(count,) the most wanted eigenvalues, by its Lanczos method.

    Args:
        matvec: of a vector (rows,).
        like: (rows,), of the dtype and on the device of the products.
        count: of eigenvalues.
        which: see `lanczos.eigenpairs`.
        seed: of its start vector.

    Cost: `steps(count, rows)` products.
    """
    library = _library()
    found = library.lanczos(
        _operator(matvec, like),
        k=count,
        max_iter=steps(count, len(like)),
        which=WHICH[which],
        reorthogonalize=True,
        seed=seed,
    )
    return cast(Floats, found.eigenvalues.double().cpu().numpy())


def trace(
    matvec: Callable[[Tensor], Tensor], like: Tensor, products: int, seed: int
) -> tuple[float, float]:
    """The trace and its standard error, by its Hutch++ with at most so many products."""
    found = _library().hutch_plus_plus(
        _operator(matvec, like), num_matvecs=min(products, 3 * len(like)), seed=seed
    )
    return float(found.estimate), float(found.stderr)


def differences(result: xr.Dataset) -> Values:
    """The differences, once both answers are there."""
    found: Values = {}
    if "verified_eigenvalue" in result:
        ours, theirs = (result[n].values for n in ("eigenvalue", "verified_eigenvalue"))
        with np.errstate(invalid="ignore", divide="ignore"):
            found["eigenvalue_difference"] = (theirs - ours) / np.abs(ours)
    if "verified_trace" in result:
        ours, theirs = (result[n].values for n in ("trace", "verified_trace"))
        first, second = (result[f"{n}_stderr"].values for n in ("trace", "verified_trace"))
        with np.errstate(invalid="ignore", divide="ignore"):
            found["trace_difference"] = (theirs - ours) / np.hypot(first, second)
    return found


def tell(result: xr.Dataset) -> list[str]:
    """A line for each end of the spectrum and for the trace."""
    lines = []
    for end in result["end"].values if "verified_eigenvalue" in result else ():
        rows = result.sel(end=end)
        values = ", ".join(f"{value:.5g}" for value in rows["verified_eigenvalue"].values)
        worst = float(np.abs(rows["eigenvalue_difference"].values).max())
        lines.append(
            f"verified, {end}: hessian-eigenthings gives {values}; they differ by at most "
            f"{worst:.1e} of the eigenvalue"
        )
    if "verified_trace" in result:
        lines.append(
            f"verified, trace: hessian-eigenthings gives {float(result['verified_trace']):.5g} ± "
            f"{float(result['verified_trace_stderr']):.2g}, "
            f"{abs(float(result['trace_difference'])):.1f} standard errors away"
        )
    return lines


def _library() -> Any:
    import hessian_eigenthings  # late: it takes a second

    return hessian_eigenthings


def _operator(matvec: Callable[[Tensor], Tensor], like: Tensor) -> Any:
    def product(vector: Tensor) -> Tensor:
        with torch.no_grad():
            return matvec(vector).detach()

    return _library().LambdaOperator(product, len(like), like.device, like.dtype)
