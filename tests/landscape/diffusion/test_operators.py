from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import iv
from torch import Tensor

from landscape.diffusion import dynamics, operators
from landscape.diffusion.manifolds import (
    DOUBLE,
    MANIFOLDS,
    Manifold,
    curve,
    pulled_back,
    sphere,
)
from landscape.diffusion.operators import generator, propagated, squared_distance


def at_infinity(manifold: Manifold, u: Tensor, epsilon: float, size: int) -> Tensor:
    keys, weights = manifold.quadrature(size)
    return generator(
        manifold.points(u),
        manifold.value(u),
        manifold.points(keys),
        manifold.value(keys),
        epsilon,
        log_weights=weights.log(),
    )


def angles(count: int) -> Tensor:
    return (torch.arange(count, dtype=DOUBLE) * (2 * math.pi / count))[:, None]


def error(manifold: Manifold, u: Tensor, epsilon: float, size: int, factor: float = 2) -> float:
    difference = at_infinity(manifold, u, epsilon, size) - manifold.limit(u, factor)
    return float(difference.abs().max())


def test_on_the_uniform_circle_attention_multiplies_a_mode_by_a_ratio_of_bessel_functions() -> None:
    circle, beta = curve(0.0), 7.0
    u, weights = circle.quadrature(200)
    x = circle.points(u)
    for mode in (1, 3):
        values = (mode * u).cos()
        new = propagated(x, x, values, 1 / beta, log_weights=weights.log())
        torch.testing.assert_close(new, values * float(iv(mode, beta) / iv(0, beta)))


@pytest.mark.second_derivative
@pytest.mark.parametrize(
    ("name", "size"), [("circle", 600), ("ellipse", 600), ("metric", 600), ("torus", 110)]
)
@pytest.mark.parametrize("kappa", [0.0, 1.3])
def test_the_bias_halves_with_epsilon(name: str, size: int, kappa: float) -> None:
    manifold = MANIFOLDS[name](kappa)
    u = manifold.draw(12, np.random.default_rng(3))
    coarse, fine = (error(manifold, u, epsilon, size) for epsilon in (0.01, 0.005))
    assert fine == pytest.approx(coarse / 2, rel=0.2)
    assert fine < 0.1 * float(manifold.limit(u).abs().max())


def test_on_the_sphere_it_meets_the_values_known() -> None:
    """p ~ exp(0.7 z), H = z: science of the toolkit, section 3.7."""
    ball = sphere(0.7)
    poles = torch.tensor([[0, 0, 1.0], [0, 0, -1.0]], dtype=DOUBLE)
    u = torch.cat([poles, ball.draw(40, np.random.default_rng(0))])
    found = [error(ball, u, 1 / beta, 60) for beta in (10, 20, 40, 80)]
    np.testing.assert_allclose(found, [0.153, 0.0777, 0.0391, 0.0196], rtol=5e-3)


def test_the_drift_counts_twice() -> None:
    circle, u = curve(0.7), angles(100)
    twice, once, never = (error(circle, u, 1 / 160, 600, factor) for factor in (2, 1, 0))
    assert twice < 0.015
    assert 0.6 < once < 0.7
    assert 1.2 < never < 1.4


def test_three_dimensions_too() -> None:
    ball = sphere(0.7, 3)
    u = ball.draw(3, np.random.default_rng(0))
    coarse, fine = (error(ball, u, epsilon, 24) for epsilon in (0.2, 0.1))
    assert fine == pytest.approx(coarse / 2, rel=0.2)


@pytest.mark.parametrize("name", list(MANIFOLDS))
def test_quadrature_and_draws_are_of_the_same_density(name: str) -> None:
    manifold = MANIFOLDS[name](0.9)
    keys, weights = manifold.quadrature(30)
    drawn = manifold.value(manifold.draw(20_000, np.random.default_rng(1)))
    mean = float((weights * manifold.value(keys)).sum())
    assert abs(float(drawn.mean()) - mean) < 5 * float(drawn.std()) / 20_000**0.5
    assert float(weights.sum()) == pytest.approx(1)


@pytest.mark.second_derivative
@pytest.mark.parametrize("name", list(MANIFOLDS))
def test_the_generators_are_those_of_the_metric_and_the_density(name: str) -> None:
    """Delta and drift by central differences in coordinates, but for spheres."""
    manifold = MANIFOLDS[name](0.8)
    if name.startswith("sphere"):
        pytest.skip("coordinates of a sphere are those in space; compared by attention itself")
    u, h = manifold.draw(5, np.random.default_rng(2)), 1e-4
    axes = torch.eye(u.shape[1], dtype=DOUBLE)

    def volume(u: Tensor) -> Tensor:
        return torch.stack(
            [(manifold.points(u + h * e) - manifold.points(u - h * e)) / (2 * h) for e in axes], 2
        )

    def flow(u: Tensor, axis: int, density: float) -> Tensor:
        """sqrt(g) p^density times a component of grad H; the metrics are diagonal."""
        metric = (volume(u) ** 2).sum(1)
        slope = (manifold.value(u + h * axes[axis]) - manifold.value(u - h * axes[axis])) / (2 * h)
        weight = metric.prod(1).sqrt() * (density * manifold.log_density(u)).exp()
        return weight * slope / metric[:, axis]

    for factor in (0.0, 2.0):
        scale = (volume(u) ** 2).sum(1).prod(1).sqrt() * (factor * manifold.log_density(u)).exp()
        divergence = sum(
            (flow(u + h * e, axis, factor) - flow(u - h * e, axis, factor)) / (2 * h)
            for axis, e in enumerate(axes)
        )
        expected = divergence / scale
        torch.testing.assert_close(manifold.limit(u, factor), expected, rtol=1e-4, atol=1e-4)


def test_edges_add_what_leading_order_says() -> None:
    arc, u = MANIFOLDS["arc"](0.0), torch.tensor([[0.03], [1.5]], dtype=DOUBLE)
    for epsilon in (0.01, 0.0025):
        found = at_infinity(arc, u, epsilon, 600) - arc.limit(u)
        edge, inside = (found - arc.at_edges(u, epsilon)).tolist()
        assert float(found[0]) > 8
        assert abs(edge) < 0.06 * float(found[0])
        assert abs(inside) < 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_diffusion_maps_keep_2_minus_2_alpha_of_the_drift(alpha: float) -> None:
    circle, u = curve(0.7), angles(30)
    keys, weights = circle.quadrature(500)
    x = circle.points(keys)

    def found(epsilon: float) -> float:
        log_weights = weights.log() - operators.normalised(x, epsilon, alpha, weights)
        value = generator(
            circle.points(u),
            circle.value(u),
            x,
            circle.value(keys),
            epsilon,
            log_weights=log_weights,
        )
        return float((value - circle.limit(u, 2 - 2 * alpha)).abs().max())

    assert found(0.005) == pytest.approx(found(0.01) / 2, rel=0.1)


@pytest.mark.second_derivative
def test_an_embedding_of_the_identity_is_the_distance_itself() -> None:
    plain, pulled, u = curve(0.7), pulled_back(0.7, lambda x: 2.0 * x), angles(9)
    torch.testing.assert_close(4 * pulled.limit(u), plain.limit(u))
    torch.testing.assert_close(pulled.points(u), 2 * plain.points(u))


def test_dot_products_on_the_sphere_are_distances() -> None:
    ball = sphere(0.0)
    x = ball.draw(50, np.random.default_rng(0))
    dot = propagated(x, x, x, 0.1, lambda a, b: -2 * a @ b.T)
    torch.testing.assert_close(dot, propagated(x, x, x, 0.1))


def test_blocks_masks_and_weights_agree_with_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    generator_ = torch.Generator().manual_seed(0)
    q, k = (torch.randn(n, 3, dtype=DOUBLE, generator=generator_) for n in (11, 11))
    v, w = torch.randn(11, 2, dtype=DOUBLE, generator=generator_), torch.rand(11, dtype=DOUBLE)
    kernel = w * (-((q[:, None] - k) ** 2).sum(-1) / 0.6).exp()
    kernel.fill_diagonal_(0)
    expected = kernel @ v / kernel.sum(1, keepdim=True)
    monkeypatch.setattr(operators, "BLOCK", 30)
    found = propagated(q, k, v, 0.3, log_weights=w.log(), mask=torch.arange(11))
    torch.testing.assert_close(found, expected)


def test_far_points_do_not_underflow() -> None:
    x = torch.tensor([[0.0], [100.0]], dtype=DOUBLE)
    keys = torch.tensor([[50.0], [51.0]], dtype=DOUBLE)
    new = propagated(x, keys, keys, 1e-3)
    assert new[:, 0].tolist() == [50.0, 51.0]


@pytest.mark.parametrize("kappa", [0.0, 0.7, 2.0])
def test_the_spectrum_is_that_of_the_limit(kappa: float) -> None:
    circle = curve(kappa)
    rates = [dynamics.Walk(circle, circle.quadrature(250), e).rates(6) for e in (0.02, 0.01)]
    expected = dynamics.limit_rates(kappa, 6)
    np.testing.assert_allclose(2 * rates[1] - rates[0], expected, atol=0.03)


def test_the_spectrum_of_the_uniform_circle_at_one_hundredth() -> None:
    circle = curve(0.0)
    rates = dynamics.Walk(circle, circle.quadrature(200), 0.01).rates(7)
    np.testing.assert_allclose(rates, [0, 1.003, 1.003, 3.980, 3.980, 8.843, 8.843], atol=6e-4)


def test_the_walk_stays_where_p_squared_is() -> None:
    circle = curve(0.7)
    errors = [
        dynamics.Walk(circle, circle.quadrature(200), epsilon).stationary_error()
        for epsilon in (0.04, 0.02)
    ]
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.05)
    assert errors[1] < 0.003


def test_attention_collapses_at_the_rate_of_the_spectral_gap() -> None:
    circle, epsilon = curve(0.7), 0.05
    walk = dynamics.Walk(circle, circle.quadrature(100), epsilon)
    spread = walk.collapse(200)
    rate = 2 / epsilon * (1 - (spread[199] / spread[198]))
    assert rate == pytest.approx(walk.rates(2)[1], rel=1e-3)
    assert rate == pytest.approx(dynamics.limit_rates(0.7, 2)[1], rel=0.05)


def test_a_query_key_score_diffuses_from_the_nearest_point_for_its_local_time() -> None:
    ball, draws = sphere(0.7), np.random.default_rng(4)
    noise = torch.as_tensor(draws.normal(size=(3, 3)))
    matrix, u = torch.eye(3, dtype=DOUBLE) + 0.3 * noise, ball.draw(15, draws)
    zeroth, first = [], []
    for beta in (40.0, 80.0):
        new, near, predicted = dynamics.query_key(ball, u, ball.quadrature(70), matrix, beta)
        zeroth.append(float((new - near).abs().max()))
        first.append(float((new - predicted).abs().max()))
    assert zeroth[1] == pytest.approx(zeroth[0] / 2, rel=0.1)
    assert first[1] == pytest.approx(first[0] / 4, rel=0.15)


def test_rates_of_spheres_are_known_with_their_multiplicities() -> None:
    assert dynamics.sphere_rates(1, 5).tolist() == [0, 1, 1, 4, 4]
    assert dynamics.sphere_rates(2, 9).tolist() == [0, 2, 2, 2, 6, 6, 6, 6, 6]
    assert dynamics.sphere_rates(3, 6).tolist() == [0, 3, 3, 3, 3, 8]


def test_distances_of_near_points_do_not_cancel() -> None:
    x = torch.full((1, 3), 1e4, dtype=DOUBLE)
    assert float(squared_distance(x, x + 1e-6)) == pytest.approx(3e-12, rel=1e-3)
