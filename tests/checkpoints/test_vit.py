"""Attention scores: what they are equal to, and their limits; the Vision Transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from checkpoints import network_file
from checkpoints.losses import cross_entropy
from checkpoints.models.scores import SCORES, Attention, Metric, Score
from checkpoints.network_file import build
from checkpoints.problem import Problem
from landscape.core.spaces import Weights
from landscape.diffusion.operators import propagated
from landscape.hessian.operator import Curvature

WIDE = torch.float64
WIDTH, HEADS = 6, 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def made(name: str) -> Score:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SCORES[name](WIDTH, HEADS).to(WIDE)


def attention(score: str, epsilon: float) -> Attention:
    """With values as they are, so that the result is S H."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        built = Attention(WIDTH, HEADS, score, epsilon).to(WIDE)
    for linear in (built.value, built.combine):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return built


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_that_of_its_formula_pair_by_pair(name: str) -> None:
    score, x, y = made(name), drawn(2, 3, WIDTH), drawn(2, 4, WIDTH, seed=1)
    found = score(x, y)
    assert found.shape == (2, HEADS, 3, 4)
    p = dict(score.named_parameters())
    size = WIDTH // HEADS

    def of_pair(a: Tensor, b: Tensor, head: int) -> Tensor:
        own = slice(head * size, (head + 1) * size)
        if name == "dot":
            return -(a[own] @ b[own])
        if name == "query_key":
            return -((p["query.weight"] @ a)[own] @ (p["key.weight"] @ b)[own])
        if name in ("l2", "l2_untied"):
            key = p.get("key.weight", p["query.weight"])
            return ((p["query.weight"] @ a)[own] - (key @ b)[own]).square().sum()
        if name == "metric":
            ga, gb = (
                v + p["outer.weight"] @ torch.tanh(p["inner.weight"] @ v + p["inner.bias"])
                for v in (a, b)
            )
            return (ga[own] - gb[own]).square().sum()
        pa, pb = p["projection.weight"] @ a, p["projection.weight"] @ b
        energy = p["of_query"][head, 0] @ pa[own] + p["of_key"][head, 0] @ pb[own]
        return -torch.where(energy > 0, energy, 0.2 * energy)

    for n, h, i, j in ((0, 0, 0, 0), (1, 1, 2, 3), (1, 0, 1, 2)):
        torch.testing.assert_close(found[n, h, i, j], of_pair(x[n, i], y[n, j], h))


@pytest.mark.parametrize("name", SCORES)
def test_tied_distances_are_symmetric_and_not_negative_and_the_others_are_not(name: str) -> None:
    score, x = made(name), drawn(1, 5, WIDTH)
    found = score(x, x)
    symmetric = name in ("dot", "l2", "metric")
    assert torch.allclose(found, found.mT) == symmetric
    if name in ("l2", "metric"):
        assert found.min() > -1e-12
        assert found.diagonal(dim1=-2, dim2=-1).abs().max() < 1e-12


def test_metric_attention_without_its_inner_layer_is_a_distance_of_the_tokens() -> None:
    score, x = made("metric"), drawn(2, 4, WIDTH)
    assert isinstance(score, Metric)
    torch.nn.init.zeros_(score.outer.weight)
    tied = made("l2")
    torch.nn.init.eye_(tied.query.weight)  # type: ignore[union-attr]
    torch.testing.assert_close(score(x, x), tied(x, x))


def test_on_the_sphere_distance_is_dot_product_at_twice_the_bandwidth() -> None:
    """|x - y|^2 = 2 - 2 x·y there, and constants cancel in the softmax."""
    x = torch.nn.functional.normalize(drawn(2, 5, HEADS, WIDTH // HEADS), dim=-1).flatten(2)
    distance, product = attention("l2", 0.4), attention("dot", 0.2)
    torch.nn.init.eye_(distance.score.query.weight)  # type: ignore[union-attr]
    torch.testing.assert_close(distance(x), product(x))


@pytest.mark.parametrize("name", ["dot", "l2", "metric", "query_key", "gat"])
def test_its_limits_are_the_mean_and_the_nearest(name: str) -> None:
    x = drawn(1, 5, WIDTH)
    torch.testing.assert_close(
        attention(name, 1e9)(x), x.mean(dim=1, keepdim=True).expand_as(x), rtol=1e-6, atol=1e-8
    )
    sharp = attention(name, 1e-6)
    nearest = sharp.score(x, x).argmin(dim=-1)[0]
    parts = x[0].view(5, HEADS, -1)
    expected = torch.cat([parts[nearest[h], h] for h in range(HEADS)], dim=-1)
    torch.testing.assert_close(sharp(x)[0], expected)


def test_one_head_is_the_averaging_operator_of_the_diffusion() -> None:
    x, epsilon = drawn(1, 7, WIDTH), 0.3
    one = Attention(WIDTH, 1, "dot", epsilon).to(WIDE)
    for linear in (one.value, one.combine):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    wanted = propagated(x[0], x[0], x[0], epsilon, score=lambda a, b: -a @ b.mT)
    torch.testing.assert_close(one(x)[0], wanted)


@pytest.mark.parametrize("name", SCORES)
def test_weights_sum_to_one_and_hidden_keys_have_none(name: str) -> None:
    built, x = attention(name, 0.5), drawn(2, 4, WIDTH)
    before = torch.ones(4, 4, dtype=torch.bool).tril()
    seen: list[Tensor] = []
    built.weights.register_forward_hook(lambda module, inputs, output: seen.append(output))
    built(x, before)
    torch.testing.assert_close(seen[0].sum(dim=-1), torch.ones(2, HEADS, 4, dtype=WIDE))
    assert (seen[0].masked_select(~before) == 0).all()
    narrow = attention(name, 0.5).float()
    torch.testing.assert_close(narrow(x.float()), built(x).float(), rtol=1e-4, atol=1e-5)


def small(**options: Any) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return build("vit", {"width": 4, "depth": 1, "heads": 2, "channels": 1, **options})


@pytest.mark.parametrize("positions", ["sine", "learned"])
def test_positions_tell_patches_apart_and_without_them_their_order_is_nothing(
    positions: str,
) -> None:
    images = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    moved = torch.cat([images[..., 4:], images[..., :4]], dim=-1)  # whole patches
    without = small(positions="none")
    torch.testing.assert_close(without(moved), without(images))
    told = small(positions=positions)
    assert not torch.allclose(told(moved), told(images), atol=1e-6)


@pytest.mark.second_derivative
@pytest.mark.parametrize("score", ["query_key", "metric", "gat"])
def test_its_hessian_is_the_dense_one(score: str) -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = small(score=score, classes=3)
    problem = Problem.of(network, [(images, torch.arange(3))], batch_size=2)
    problem = problem.to("cpu", WIDE)
    space = Weights(problem)
    names = [n for n in space.origin if "attention" in n or n.startswith("norm")]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([space.origin[n].numel() for n in names])
        point = {n: part.view_as(space.origin[n]) for n, part in zip(names, parts, strict=True)}
        outputs = functional_call(problem.model, point, (problem.inputs["input"],))
        return cross_entropy(outputs, problem.targets).mean()

    at = torch.cat([space.origin[n].flatten() for n in names])
    dense = torch.autograd.functional.hessian(loss, at)
    operator = Curvature(space, names=names)
    vectors = torch.eye(len(at), dtype=WIDE)[:: max(1, len(at) // 12)]
    for v in vectors:
        torch.testing.assert_close(operator.matvec(v), dense @ v, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"width": 6}, "width=6; expected a multiple of 4"),
        ({"heads": 3}, "heads=3; expected a divisor of 4"),
        ({"score": "cosine"}, "score=cosine; expected one of query_key, dot"),
        ({"epsilon": 0.0}, "epsilon=0.0; expected a number above 0"),
        ({"patch": 0}, "patch=0"),
        ({"positions": "absolute"}, "positions"),
    ],
)
def test_an_option_that_is_not_allowed_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        network_file.outline("vit", {"width": 4, "channels": 1, **options})


@pytest.mark.parametrize("size", [(9, 8), (8, 6)])
def test_images_that_are_no_whole_number_of_patches_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        small()(torch.rand(1, 1, *size))
