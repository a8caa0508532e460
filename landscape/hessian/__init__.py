"""Curvature of the loss: top eigenpairs, spectral density, trace; in the weights or the inputs."""

from __future__ import annotations

from checkpoints.problem import Problem
from landscape.core.plan import Plan, Probe
from landscape.hessian import in_weights, per_example
from landscape.hessian.spec import Spec


def hessian(problem: Problem, spec: Spec) -> Plan:
    """Top eigenvalues, spectral density and trace of the Hessian of the loss.

    In the weights, of the mean loss over the examples. In the inputs, the top eigenvalues of each
    example's own Hessian, in nat / pixel range^2. Every product is exact, by automatic
    differentiation, and every example has the same weight, whatever the batches. Each eigenpair
    comes with its true residual, from a product with its vector; `converged` says whether that is
    within the tolerance.

    Args:
        problem: with its batch size decided.
        spec: see `Spec`.

    Returns:
        In the weights a plan with a cell for every part: `eigenvalue`, `residual`, `converged` over
        (end, rank), `products` over (end); `node` and `weight`, over (draw, step), of the spectral
        measure: the mean of f over the eigenvalues is about sum(weight * f(node)); `trace` and
        `frobenius_norm` with their standard errors. In the inputs a cell for every example:
        `eigenvalue`, `residual`, `converged` over (example, rank), the Gauss-Newton matrix's top
        eigenvalue `gauss_newton_eigenvalue`, `beyond_gauss_newton`, and `from_jacobian`, whether
        the eigenpair is that of the Gauss-Newton matrix, as in a piecewise linear network; see
        `hessian.per_example`.

    Raises:
        ValueError: options that contradict each other; more eigenpairs or steps than the matrix
            has rows.

    Cost: about 30 products for 5 eigenpairs, draws * steps for the density, and `trace_products`.
    A product costs 2 gradients of all examples if activations are kept, else 4.
    Source: see `hessian.lanczos`; Ghorbani et al. 2019, arXiv:1901.10159 (the density of networks).
    """
    if spec.space == "inputs":
        return per_example.plan(problem, spec)
    return in_weights.plan(problem, spec)


PROBE = Probe("hessian", Spec, hessian)
