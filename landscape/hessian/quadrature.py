"""Stochastic Lanczos quadrature: the spectral density of a symmetric matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.hessian.lanczos import Basis, Multiply


def quadrature(
    multiply: Multiply, start: Tensor, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gauss quadrature of the spectral measure of `start`, by Lanczos.

    sum(weights * f(nodes)) is v^T f(A) v for the unit vector v along `start`, exactly so for
    polynomials of degree below 2 steps. Its mean over random v is trace(f(A)) / size.

    Args:
        multiply: from (blocks, size) to the matrix times these vectors, block by block.
        start: (blocks, size).
        steps: nodes; at most `size`.
        generator: of the random vectors drawn when a Krylov space is exhausted; their nodes have
            weight 0.

    Returns:
        Nodes and weights, (blocks, steps) float64; nodes ascend, weights sum to 1.

    Raises:
        ValueError: more steps than rows.

    Cost: `steps` products, and as many vectors in memory.
    Source: Golub & Meurant 1994; Ubaru et al. 2017, doi 10.1137/16M1104974.
    """
    if not 1 <= steps <= start.shape[1]:
        raise ValueError(f"lanczos: steps={steps}; expected 1 to {start.shape[1]}, the rows.")
    basis = Basis(start, steps, generator)
    while basis.filled < steps:
        basis.extend(multiply)
    nodes, coefficients = basis.ritz()
    return nodes, coefficients[:, 0].square()
