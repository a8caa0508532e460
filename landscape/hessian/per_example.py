"""The top eigenpairs of each example's Hessian in its own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checkpoints.losses import cross_entropy
from checkpoints.problem import Problem
from landscape.core.jacobian import gauss_newton_top, jacobian, softmax_jacobian
from landscape.core.plan import Cell, Plan, Values
from landscape.core.spaces import Inputs
from landscape.core.variables import Variable, numbered, of_examples
from landscape.hessian import lanczos
from landscape.hessian.operator import Curvature, Matrix
from landscape.hessian.spec import Spec
from landscape.hessian.variables import eigenpair_variables, stream_seed, tell

# The Hessian counts as the Gauss-Newton matrix if their products with a random vector differ by
# less, relative to the Hessian's.
SAME = {torch.float32: 1e-3, torch.float64: 1e-9}


@dataclass(frozen=True, eq=False)
class SampleCurvature:
    """Eigenpairs of the input Hessians of n examples, and their Gauss-Newton matrices.

    Attributes:
        pairs: of the Hessians; one block per example. `products` are those of Lanczos, if it ran.
        gauss_newton: (n,) the largest eigenvalue of G = J^T (diag p - p p^T) J.
        beyond: (n,) |(H - G) v| / |H v| for a random v: the share of the network's own curvature;
            only rounding for a piecewise linear network.
        from_jacobian: (n,) bool, whether the eigenpair is that of G, as H equals G up to rounding.
    """

    pairs: lanczos.Eigenpairs
    gauss_newton: Tensor
    beyond: Tensor
    from_jacobian: Tensor


def sample_curvature(
    space: Inputs,
    part: slice,
    count: int,
    *,
    which: lanczos.Which,
    tol: float,
    max_products: int,
    start: Tensor,
    generator: torch.Generator,
) -> SampleCurvature:
    """The most wanted eigenpairs of the input Hessian of each example in `part`.

    Where a network is piecewise linear, the Hessian of the cross-entropy is its Gauss-Newton
    matrix, whose top eigenpair follows from the Jacobian without iteration. A product with a random
    vector decides, example by example, whether the two matrices agree. For the other examples, for
    more than one eigenpair, and for the most negative one, Lanczos runs on all of them at once,
    until the last has converged. Residuals are those of the true Hessian either way.

    Args:
        space: of the examples; its problem's loss is the cross-entropy.
        part: which examples.
        count: eigenpairs per example.
        which: see `lanczos.eigenpairs`.
        tol: of the residuals.
        max_products: see `lanczos.eigenpairs`.
        start: (n, size), random.
        generator: of the random vectors that Lanczos draws.

    Raises:
        ValueError: the loss is not the cross-entropy; more eigenpairs than there are pixels.

    Cost: one forward pass, one backward pass per class, and two products; with Lanczos about 15
    products more. For sequences, Lanczos on both matrices.
    """
    if space.problem.loss is not cross_entropy:
        raise ValueError(
            "--space inputs: the loss is not the cross-entropy, whose Gauss-Newton matrix is known."
        )

    def product_of(part: slice | Tensor, matrix: Matrix = "hessian") -> lanczos.Multiply:
        operator = Curvature(space, matrix, part=part)
        return lambda vectors: operator.matvec(vectors.flatten()).view(operator.blocks, -1)

    multiply = product_of(part)
    unit = start / start.norm(dim=1, keepdim=True)
    targets = space.problem.targets
    if targets.ndim > 1 and not targets.is_floating_point():
        # Too many logits for their Jacobian, and no network for sequences is piecewise linear.
        limits: dict[str, Any] = {"tol": tol, "max_products": max_products, "generator": generator}
        products = product_of(part, "gauss_newton")
        linear, true = products(unit).double(), multiply(unit).double()
        return SampleCurvature(
            lanczos.eigenpairs(multiply, start, count, which=which, **limits),
            lanczos.eigenpairs(products, start, 1, which="largest", **limits).values[:, 0],
            lanczos.relative((true - linear).norm(dim=1), true.norm(dim=1)),
            torch.zeros(len(start), dtype=torch.bool, device=start.device),
        )
    inputs = {name: value[part] for name, value in space.origin.items()}
    logits, rows = jacobian(space, inputs)
    probabilities = logits.softmax(dim=1)
    gauss_newton, top = gauss_newton_top(rows, probabilities)

    forward = rows.double() @ unit.double()[:, :, None]
    linear = (rows.double().mT @ (softmax_jacobian(probabilities) @ forward))[:, :, 0]
    true = multiply(unit).double()
    beyond = lanczos.relative((true - linear).norm(dim=1), true.norm(dim=1))
    same = (beyond <= SAME.get(start.dtype, 1e-3)) & top.isfinite().all(dim=1)
    if count > 1 or which == "smallest":
        same = torch.zeros_like(same)
    if same.any():
        image = multiply(top.nan_to_num())[:, None]
        exact = lanczos.with_residuals(top[:, None], image, gauss_newton[:, None], 1, tol, 2)
        same &= exact.converged[:, 0]
    if same.all():
        return SampleCurvature(exact, gauss_newton, beyond, same)
    left = torch.arange(part.start, part.start + len(same), device=same.device)[~same]
    found = lanczos.eigenpairs(
        product_of(left),
        start[~same],
        count,
        which=which,
        tol=tol,
        max_products=max_products,
        generator=generator,
    )
    if not same.any():
        return SampleCurvature(found, gauss_newton, beyond, same)
    for mine, others in (
        (exact.values, found.values),
        (exact.vectors, found.vectors),
        (exact.residuals, found.residuals),
        (exact.converged, found.converged),
    ):
        mine[~same] = others
    pairs = replace(exact, products=found.products)
    return SampleCurvature(pairs, gauss_newton, beyond, same)


def plan(problem: Problem, spec: Spec) -> Plan:
    """A cell for every example; see `landscape.hessian.hessian`."""
    space = Inputs(problem)
    size = sum(value[0].numel() for value in space.origin.values())
    spec = spec.resolved(size)
    top = spec.top

    @cache
    def check() -> float:
        seed = stream_seed(spec.seed, "symmetry")
        operator = Curvature(space, "hessian", part=slice(0, 1))
        return operator.check_symmetry(torch.Generator().manual_seed(seed))

    def measure(cells: Sequence[Cell]) -> Values:
        check()  # refused before anything is measured
        part = slice(cells[0]["example"], cells[-1]["example"] + 1)
        # An example's start vector depends on the example alone, not on the rest of its batch.
        streams = [
            torch.Generator().manual_seed(stream_seed(spec.seed, "example", str(cell["example"])))
            for cell in cells
        ]
        like = torch.empty(size)
        start = torch.stack([lanczos.gaussian(like, stream) for stream in streams])
        found = sample_curvature(
            space,
            part,
            top,
            which=spec.which[0],
            tol=spec.tol,
            max_products=spec.max_products,
            start=start.to(problem.device, problem.dtype),
            generator=streams[0],
        )
        pairs = found.pairs
        values = {
            "eigenvalue": pairs.values,
            "residual": pairs.residuals,
            "converged": pairs.converged.double(),
            "gauss_newton_eigenvalue": found.gauss_newton,
            "beyond_gauss_newton": found.beyond,
        }
        return {name: value.cpu().numpy() for name, value in values.items()} | {
            "from_jacobian": found.from_jacobian.double().cpu().numpy(),
            "products": np.where(found.from_jacobian.cpu().numpy(), 2.0, pairs.products),
        }

    unit = "nat / pixel range^2"
    dims = ("example",)
    variables = eigenpair_variables("example", unit) | {
        "gauss_newton_eigenvalue": Variable(
            dims, "top eigenvalue of the Gauss-Newton matrix", unit
        ),
        "beyond_gauss_newton": Variable(
            dims, "share of the Hessian beyond the Gauss-Newton matrix"
        ),
        "from_jacobian": Variable(dims, "1 where the eigenpair is that of the Gauss-Newton matrix"),
    }
    return Plan(
        probe="hessian",
        spec=spec,
        provenance=problem.fingerprints() | {"files": {}},
        coords={**of_examples(problem), "rank": numbered(top, "rank")},
        variables=variables,
        walk=("example",),
        measure=measure,
        block=problem.batch_size,
        tell=tell,
    )
