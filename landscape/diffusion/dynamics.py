"""What repeated attention does: spectrum, stationary density, collapse; and scores with a pull."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from landscape.core.variables import Floats
from landscape.diffusion.manifolds import Manifold, Rule
from landscape.diffusion.operators import propagated, squared_distance

LARGEST = 4000  # quadrature nodes of a dense operator


class Walk:
    """The random walk with transition matrix S on the nodes of a quadrature rule.

    With node weights w and the kernel's density estimate q, S is self-adjoint in the inner product
    with weights w q: they are its stationary distribution, and its eigenvalues are real.

    Args:
        manifold: with its density.
        rule: coordinates and weights of p; see `Manifold.quadrature`.
        epsilon: the bandwidth.

    Cost: one eigendecomposition of the nodes' matrix, at most `LARGEST`^2.
    """

    def __init__(self, manifold: Manifold, rule: Rule, epsilon: float) -> None:
        self.u, self.weights = rule
        self.manifold, self.epsilon = manifold, epsilon
        x = manifold.points(self.u)
        kernel = squared_distance(x, x).mul_(-1 / (2 * epsilon)).exp_()
        density = kernel @ self.weights
        self.stationary = self.weights * density / (self.weights @ density)
        self.transition = kernel * self.weights / density[:, None]
        scale = (self.weights / density).sqrt()
        self.eigenvalues = torch.linalg.eigvalsh(scale[:, None] * kernel * scale).flip(0)

    def rates(self, count: int) -> Floats:
        """(2 / epsilon) (1 - lambda_k), which tend to the eigenvalues of the limit, (count,)."""
        return np.asarray(2 / self.epsilon * (1 - self.eigenvalues[:count].numpy()))

    def stationary_error(self) -> float:
        """Total variation between the stationary density and the limit's, p^2 over its integral."""
        expected = self.weights * self.manifold.log_density(self.u).exp()
        return float((self.stationary - expected / expected.sum()).abs().sum() / 2)

    def collapse(self, steps: int) -> Floats:
        """Standard deviation of S^t H in the stationary distribution, over that of H, (steps,).

        Its logarithm falls by (epsilon / 2) lambda_1 per step in the end, lambda_1 the spectral gap
        of the limit: attention alone makes all tokens the same.
        """
        values = self.manifold.value(self.u)
        spreads = []
        for _ in range(steps):
            mean = self.stationary @ values
            spreads.append(float((self.stationary @ (values - mean) ** 2).sqrt()))
            values = self.transition @ values
        return np.array(spreads) / spreads[0]


def query_key(
    manifold: Manifold, queries: Tensor, rule: Rule, matrix: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention with the score beta x^T A y on a sphere, and what theorem 5 says of it.

    A query attends to y* = A^T x / |A^T x|, not to itself, and diffuses for the local time
    1 / (2 beta |A^T x|): H_new = H(y*) + At H(y*) / (2 beta |A^T x|) + O(1 / beta^2).

    Args:
        manifold: a sphere.
        queries: (Q, n + 1) on it.
        rule: quadrature of p.
        matrix: A, invertible.
        beta: sharpness; epsilon is its inverse.

    Returns:
        (Q,) each: H_new, H(y*), and the first-order prediction.

    Source: Ruan and Zhang 2024, theorem 5.
    """
    u, weights = rule
    keys, values = manifold.points(u), manifold.value(u)

    def score(x: Tensor, y: Tensor) -> Tensor:
        return -2 * (x @ matrix) @ y.T

    new = propagated(queries, keys, values[:, None], 1 / beta, score, weights.log())[:, 0]
    pulled = queries @ matrix
    length = pulled.norm(dim=1, keepdim=True)
    nearest = pulled / length
    zeroth = manifold.value(nearest)
    return new, zeroth, zeroth + manifold.limit(nearest) / (2 * beta * length[:, 0])


def limit_rates(kappa: float, count: int, modes: int = 64) -> Floats:
    """The first eigenvalues of -(H'' + 2 (log p)' H') on the circle, p ~ exp(kappa cos t).

    By Galerkin's method in Fourier modes, independent of any kernel: exact to rounding.

    Args:
        kappa: concentration.
        count: how many.
        modes: highest frequency.
    """
    k = np.arange(-modes, modes + 1)
    matrix = np.diag(k.astype(float) ** 2).astype(complex)
    # 2 (log p)' H' = -2 kappa sin t H'; sin t maps e^{ikt} to (e^{i(k+1)t} - e^{i(k-1)t}) / 2i.
    for column, frequency in enumerate(k):
        for shift, sign in ((1, 1), (-1, -1)):
            if 0 <= column + shift < len(k):
                matrix[column + shift, column] += 2 * kappa * sign / 2j * 1j * frequency
    return np.sort(np.linalg.eigvals(matrix).real)[:count]


def sphere_rates(dimension: int, count: int) -> Floats:
    """The first eigenvalues l (l + n - 1) of -Delta on S^n, with their multiplicities, (count,)."""
    rates: list[int] = []
    n, degree = dimension, 0
    while len(rates) < count:
        below = math.comb(degree + n - 2, n) if degree > 1 else 0
        rates += [degree * (degree + n - 1)] * (math.comb(degree + n, n) - below)
        degree += 1
    return np.array(rates[:count], dtype=np.float64)
