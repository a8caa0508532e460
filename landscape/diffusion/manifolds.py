"""Manifolds with a density, and what attention converges to on them, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import roots_jacobi
from torch import Tensor

DOUBLE = torch.float64
TURN = 2 * math.pi

Function: TypeAlias = Callable[[Tensor], Tensor]  # of coordinates (N, k)
Edge: TypeAlias = tuple[Tensor, Tensor]
Rule: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Manifold:
    """A manifold, a density p on it, and a smooth function H.

    Positions are intrinsic coordinates u, (N, k) float64. With the kernel
    exp(-|x - y|^2 / (2 epsilon)) and N to infinity (2 / epsilon) (S H - H) tends to `limit`, away
    from edges.

    Args:
        dimension: d.
        points: coordinates in space, (N, D).
        uniform: (count, generator) to draws from a base measure that is easy to draw from.
        log_ratio: log of p with respect to the base measure, (N,), up to a constant; at most 0.
        grid: (size) to a quadrature rule of the base measure: coordinates and weights.
        value: H, (N,).
        laplacian: Delta H, (N,).
        drift: <grad log p, grad H>, (N,); the limit contains it twice.
        log_density: log p with respect to length, area or volume, (N,), up to a constant.
        edges: distance to every edge, and the derivative of H along its inward normal.

    Source: Ruan and Zhang 2024, arXiv:2412.18288, theorem 3; Coifman and Lafon 2006.
    """

    dimension: int
    points: Function
    uniform: Callable[[int, np.random.Generator], NDArray[Any]]
    log_ratio: Function
    grid: Callable[[int], Rule]
    value: Function
    laplacian: Function
    drift: Function
    log_density: Function
    edges: Callable[[Tensor], Sequence[Edge]] = lambda u: ()

    def draw(self, count: int, generator: np.random.Generator) -> Tensor:
        """Independent draws from p, (count, k): by rejection, so exact."""
        kept: list[Tensor] = []
        lacking = count
        while lacking > 0:
            tried = torch.as_tensor(self.uniform(2 * lacking + 16, generator), dtype=DOUBLE)
            level = torch.as_tensor(generator.random(len(tried)), dtype=DOUBLE).log()
            kept.append(tried[level < self.log_ratio(tried)])
            lacking -= len(kept[-1])
        return torch.cat(kept)[:count]

    def quadrature(self, size: int) -> Rule:
        """Coordinates and weights of p, which sum to 1: N = infinity."""
        u, weights = self.grid(size)
        weights = weights * self.log_ratio(u).exp()
        return u, weights / weights.sum()

    def limit(self, u: Tensor, factor: float = 2.0) -> Tensor:
        """Delta H + factor <grad log p, grad H>; 2 is the theorem's, others are controls."""
        return self.laplacian(u) + factor * self.drift(u)

    def at_edges(self, u: Tensor, epsilon: float) -> Tensor:
        """What edges add to (2 / epsilon) (S H - H), (N,), to leading order in epsilon.

        Beyond an edge at distance delta there are no keys, which shifts the kernel's mean by
        sqrt(epsilon) phi(z) / Phi(z), z = delta / sqrt(epsilon): of order epsilon^(-1/2) in all.
        """
        total = torch.zeros(len(u), dtype=DOUBLE)
        for distance, slope in self.edges(u):
            z = distance / math.sqrt(epsilon)
            ratio = (-(z**2) / 2 - torch.special.log_ndtr(z)).exp() / math.sqrt(TURN)
            total += 2 / math.sqrt(epsilon) * ratio * slope
        return total


def curve(
    kappa: float,
    minor: float = 1.0,
    turn: float = TURN,
) -> Manifold:
    """An ellipse with angle t, or half of it: H = sin t + 0.3 cos 2t.

    The density of arc length is proportional to exp(kappa cos t).

    Args:
        kappa: concentration.
        minor: the half axis along y; that along x is 1.
        turn: 2 pi, or less for an arc from t = 0, which has two edges. Half a circle is one of the
            two moons without its noise.
    """
    closed = turn == TURN

    def speed(t: Tensor) -> Tensor:
        return (t.sin() ** 2 + minor**2 * t.cos() ** 2).sqrt()

    def slope(t: Tensor) -> Tensor:
        return t.cos() - 0.6 * (2 * t).sin()

    def log_ratio(u: Tensor) -> Tensor:
        t = u[:, 0]
        return kappa * (t.cos() - 1) + (speed(t) / max(1.0, minor)).log()

    def laplacian(u: Tensor) -> Tensor:
        t = u[:, 0]
        s = speed(t)
        speeding = (1 - minor**2) * t.sin() * t.cos() / s
        return (-t.sin() - 1.2 * (2 * t).cos()) / s**2 - speeding * slope(t) / s**3

    def grid(size: int) -> Rule:
        if not closed:
            return _legendre(size, 0.0, turn)
        return torch.arange(size, dtype=DOUBLE)[:, None] * (TURN / size), _ones(size)

    def edges(u: Tensor) -> list[Edge]:
        t = u[:, 0]
        return [] if closed else [(t, slope(t)), (turn - t, -slope(t))]

    return Manifold(
        dimension=1,
        points=lambda u: torch.cat([u.cos(), minor * u.sin()], dim=1),
        uniform=lambda count, generator: generator.uniform(0, turn, (count, 1)),
        log_ratio=log_ratio,
        grid=grid,
        value=lambda u: u[:, 0].sin() + 0.3 * (2 * u[:, 0]).cos(),
        laplacian=laplacian,
        drift=lambda u: -kappa * u[:, 0].sin() * slope(u[:, 0]) / speed(u[:, 0]) ** 2,
        log_density=lambda u: kappa * (u[:, 0].cos() - 1),
        edges=edges,
    )


def sphere(kappa: float, dimension: int = 2) -> Manifold:
    """The unit sphere S^n: H = z, p proportional to exp(kappa z), z the last coordinate.

    The limit is -n z + 2 kappa (1 - z^2). Coordinates are those in space.
    """

    def uniform(count: int, generator: np.random.Generator) -> NDArray[Any]:
        normal: NDArray[Any] = generator.normal(size=(count, dimension + 1))
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        return normal

    def grid(size: int) -> Rule:
        """Equal steps in one angle, Gauss-Jacobi in the cosine of the others."""
        angle = torch.arange(2 * size, dtype=DOUBLE) * (math.pi / size)
        u, weights = torch.stack([angle.cos(), angle.sin()], dim=1), _ones(2 * size)
        for n in range(2, dimension + 1):  # the measure of z on S^n is (1 - z^2)^(n/2 - 1) dz
            z, along = map(torch.as_tensor, roots_jacobi(size, n / 2 - 1, n / 2 - 1))
            rim = (1 - z**2).sqrt()[:, None, None] * u
            u = torch.cat([rim, z[:, None, None].expand(-1, len(u), 1)], dim=2).flatten(0, 1)
            weights = torch.outer(along, weights).flatten()
        return u, weights

    return Manifold(
        dimension=dimension,
        points=lambda u: u,
        uniform=uniform,
        log_ratio=lambda u: kappa * (u[:, -1] - 1),
        grid=grid,
        value=lambda u: u[:, -1],
        laplacian=lambda u: -dimension * u[:, -1],
        drift=lambda u: kappa * (1 - u[:, -1] ** 2),
        log_density=lambda u: kappa * (u[:, -1] - 1),
    )


def torus(kappa: float) -> Manifold:
    """The flat torus, two unit circles with angles t and s: H = sin t cos s + 0.3 cos 2t.

    p is proportional to exp(kappa (cos t + cos s / 2)).
    """

    def grid(size: int) -> Rule:
        t = torch.arange(size, dtype=DOUBLE) * (TURN / size)
        return torch.cartesian_prod(t, t), _ones(size**2)

    def log_density(u: Tensor) -> Tensor:
        return kappa * (u[:, 0].cos() - 1 + (u[:, 1].cos() - 1) / 2)

    def drift(u: Tensor) -> Tensor:
        t, s = u.unbind(1)
        along_t = t.cos() * s.cos() - 0.6 * (2 * t).sin()
        along_s = -t.sin() * s.sin()
        return -kappa * (t.sin() * along_t + s.sin() * along_s / 2)

    return Manifold(
        dimension=2,
        points=lambda u: torch.cat([u.cos(), u.sin()], dim=1),
        uniform=lambda count, generator: generator.uniform(0, TURN, (count, 2)),
        log_ratio=log_density,
        grid=grid,
        value=lambda u: u[:, 0].sin() * u[:, 1].cos() + 0.3 * (2 * u[:, 0]).cos(),
        laplacian=lambda u: -2 * u[:, 0].sin() * u[:, 1].cos() - 1.2 * (2 * u[:, 0]).cos(),
        drift=drift,
        log_density=log_density,
    )


def swiss_roll(kappa: float) -> Manifold:
    """The roll (theta cos theta, theta sin theta, v) / 5: H = sin theta + cos(pi v / 3) / 2.

    theta from 3 pi / 2 to 9 pi / 2 and v / 5 from 0 to 3, uniform in both as in scikit-learn, so
    that the density of area is proportional to (1 + theta^2)^(-1/2) whatever kappa. Four edges.
    """
    scale, width, ends = 5.0, 3.0, (1.5 * math.pi, 4.5 * math.pi)
    k = math.pi / width

    def length(theta: Tensor) -> Tensor:
        """Arc length from 0."""
        return (theta * (1 + theta**2).sqrt() + theta.asinh()) / (2 * scale)

    def laplacian(u: Tensor) -> Tensor:
        theta, v = u.unbind(1)
        squared = 1 + theta**2
        along = -theta.sin() / squared - theta * theta.cos() / squared**2
        return along * scale**2 - k**2 * (k * v).cos() / 2

    def edges(u: Tensor) -> list[Edge]:
        theta, v = u.unbind(1)
        along = theta.cos() / (1 + theta**2).sqrt() * scale
        across = -k * (k * v).sin() / 2
        first, last = (length(torch.tensor(end, dtype=DOUBLE)) for end in ends)
        at = length(theta)
        return [(at - first, along), (last - at, -along), (v, across), (width - v, -across)]

    def grid(size: int) -> Rule:
        (theta, along), (v, across) = _legendre(3 * size, *ends), _legendre(size, 0.0, width)
        return torch.cartesian_prod(theta[:, 0], v[:, 0]), torch.outer(along, across).flatten()

    def points(u: Tensor) -> Tensor:
        theta, v = u.unbind(1)
        return torch.stack([theta * theta.cos() / scale, theta * theta.sin() / scale, v], dim=1)

    return Manifold(
        dimension=2,
        points=points,
        uniform=lambda count, generator: generator.uniform(
            (ends[0], 0.0), (ends[1], width), (count, 2)
        ),
        log_ratio=lambda u: torch.zeros(len(u), dtype=DOUBLE),
        grid=grid,
        value=lambda u: u[:, 0].sin() + (k * u[:, 1]).cos() / 2,
        laplacian=laplacian,
        drift=lambda u: -u[:, 0] * u[:, 0].cos() * scale**2 / (1 + u[:, 0] ** 2) ** 2,
        log_density=lambda u: -0.5 * (1 + u[:, 0] ** 2).log(),
        edges=edges,
    )


def _ones(size: int) -> Tensor:
    return torch.ones(size, dtype=DOUBLE)


def _legendre(size: int, start: float, end: float) -> Rule:
    nodes, weights = np.polynomial.legendre.leggauss(size)
    half = (end - start) / 2
    return torch.as_tensor(start + half * (nodes + 1))[:, None], torch.as_tensor(weights * half)


def pulled_back(kappa: float, embedding: Function) -> Manifold:
    """The unit circle in the metric of an embedding, as metric-attention sees it.

    Attention with the score |phi(x) - phi(y)|^2 converges to the drift-diffusion of the metric that
    phi pulls back: (1/s) d/dt ((1/s) dH/dt) + (2 / s^2) d/dt log(p / s) dH/dt, where s = |d phi /
    dt| and p, proportional to exp(kappa cos t), is the density of the angle t.

    Args:
        kappa: concentration.
        embedding: phi, (N, 2) to (N, D), one to one on the circle; differentiable twice.
    """
    plain = curve(kappa)

    def points(u: Tensor) -> Tensor:
        with torch.no_grad():
            return embedding(plain.points(u))

    def along(function: Function, t: Tensor) -> Tensor:
        """The slope of each row of `function` in its own t."""
        t = t if t.requires_grad else t.detach().requires_grad_()
        with torch.enable_grad():
            columns = function(t).reshape(len(t), -1).sum(dim=0)
            slopes = [torch.autograd.grad(c, t, create_graph=True)[0] for c in columns]
        return torch.stack(slopes, dim=1)

    def log_speed(t: Tensor) -> Tensor:
        velocity = along(lambda t: embedding(plain.points(t[:, None])), t)
        return (velocity**2).sum(dim=1).log() / 2

    def slopes(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dH/dt, s^2 and d log s / dt."""
        t = u[:, 0]
        slope = along(lambda t: plain.value(t[:, None]), t)[:, 0]
        log_slope = along(log_speed, t)[:, 0]
        return slope.detach(), (2 * log_speed(t)).exp().detach(), log_slope.detach()

    def laplacian(u: Tensor) -> Tensor:
        slope, squared, log_slope = slopes(u)
        return (plain.laplacian(u) - log_slope * slope) / squared

    def drift(u: Tensor) -> Tensor:
        slope, squared, log_slope = slopes(u)
        return (-kappa * u[:, 0].sin() - log_slope) * slope / squared

    return replace(
        plain,
        points=points,
        laplacian=laplacian,
        drift=drift,
        log_density=lambda u: kappa * (u[:, 0].cos() - 1) - log_speed(u[:, 0]).detach(),
    )


def metric(kappa: float) -> Manifold:
    """The circle as metric-attention with fixed weights sees it: phi(x) = x + B tanh(A x + b)."""
    draws = np.random.default_rng(0)
    a, b, c = (torch.as_tensor(draws.normal(size=s), dtype=DOUBLE) for s in ((6, 2), (6,), (2, 6)))
    return pulled_back(kappa, lambda x: x + 0.2 * (x @ a.T + b).tanh() @ c.T)


MANIFOLDS: dict[str, Callable[[float], Manifold]] = {
    "circle": curve,
    "sphere": sphere,
    "sphere3": lambda kappa: sphere(kappa, 3),
    "torus": torus,
    "ellipse": lambda kappa: curve(kappa, 0.6),
    "arc": lambda kappa: curve(kappa, turn=math.pi),
    "swiss-roll": swiss_roll,
    "metric": metric,
}
