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
    differentiation, weighted by examples whatever the batches; each eigenpair comes with the
    residual that the product itself gives, and `converged` says whether it is what was asked for.

    Args:
        problem: with its batch size decided.
        spec: see `Spec`.

    Returns:
        In the weights a plan with a cell for every part: `eigenvalue`, `residual`, `converged` over
        (end, rank), `products` over (end); `node` and `weight`, over (draw, step), of the spectral
        measure: a function of the eigenvalues, averaged over them, is about sum(weight * f(node));
        `trace` and `frobenius_norm` with their standard errors. In the inputs a cell for every
        example: `eigenvalue`, `residual`, `converged` over (example, rank), the top eigenvalue
        `gauss_newton_eigenvalue`, `beyond_gauss_newton`, and whether the eigenpair is
        `from_jacobian`, which it is where the network is piecewise linear; see
        `hessian.per_example`.

    Raises:
        ValueError: options that contradict each other; more than the matrix has rows.

    Cost: about 30 products for 5 eigenpairs, draws * steps and `trace_products` more; a product is
    2 gradients of all examples with kept activations, else 4.
    Source: see `hessian.lanczos`; Ghorbani et al. 2019, arXiv:1901.10159 (the density of networks).
    """
    if spec.space == "inputs":
        return per_example.plan(problem, spec)
    return in_weights.plan(problem, spec)


PROBE = Probe("hessian", Spec, hessian)
