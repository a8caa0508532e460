from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from checkpoints.problem import Normalization, Problem
from landscape.core import jacobian as jacobians
from landscape.core.spaces import Inputs
from landscape.sensitivity.examples import Examples
from landscape.sensitivity.gradients import (
    estimated_jacobian_norms,
    gradient_norms,
    jacobian_norms,
    margin,
)
from tests.oracles import make_problem

# Sums of at most a thousand float64 terms of order one, taken in another order.
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def softmax_regression(count: int = 7, ins: int = 5, classes: int = 4) -> tuple[Problem, Tensor]:
    """Logits W x in float64, and W."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, ins, generator=generator, dtype=torch.float64)
    model = nn.Linear(ins, classes, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weight)
    inputs = torch.randn(count, ins, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Problem.of(model, [(inputs, labels)], batch_size=3), weight


def all_of(problem: Problem) -> Examples:
    return Examples.of(Inputs(problem), problem.inputs, problem.targets)


def dense_jacobian(problem: Problem) -> Tensor:
    """One example after the other, through torch's own reference: (N, classes, d)."""
    network = problem.model.eval()
    inputs = problem.inputs["input"]
    rows = []
    for x in inputs:
        whole = torch.autograd.functional.jacobian(
            lambda v: problem.outputs(network, {"input": v[None]})[0], x
        )
        rows.append(whole.flatten(1))
    return torch.stack(rows)


def test_gradients_of_softmax_regression_are_known() -> None:
    problem, weight = softmax_regression()
    x, y = problem.inputs["input"], problem.targets
    expected = ((x @ weight.T).softmax(dim=1) - nn.functional.one_hot(y, 4)) @ weight
    logits, rows = jacobians.gradient(
        Inputs(problem), problem.inputs, lambda outputs: problem.losses(outputs, y)
    )
    torch.testing.assert_close(rows, expected, **EXACT)
    torch.testing.assert_close(logits, x @ weight.T, **EXACT)
    assert not logits.requires_grad and not rows.requires_grad


def test_margin_is_the_true_logit_minus_the_best_other() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert margin(logits, torch.tensor([1, 2])).tolist() == [2.0, -2.0]


def gaps(problem: Problem, weight: Tensor) -> tuple[Tensor, Tensor]:
    """|margin| of softmax regression, and which other class is the best."""
    logits, y = problem.inputs["input"] @ weight.T, problem.targets
    others = logits.clone()
    others[torch.arange(len(y)), y] = -torch.inf
    margins = logits[torch.arange(len(y)), y] - others.amax(dim=1)
    assert margins.min() < 0 < margins.max()
    return margins.abs(), others.argmax(dim=1)


def test_gradient_norms_of_softmax_regression_are_known() -> None:
    problem, weight = softmax_regression()
    x, y = problem.inputs["input"], problem.targets
    values = gradient_norms(all_of(problem))
    gap, best = gaps(problem, weight)
    slopes = weight[y] - weight[best]
    uphill = ((x @ weight.T).softmax(dim=1) - nn.functional.one_hot(y, 4)) @ weight
    for norm, order in {"l2": 2, "l1": 1, "linf": torch.inf}.items():
        size = torch.linalg.vector_norm(slopes, order, dim=1)
        torch.testing.assert_close(values[f"margin_gradient_{norm}"], size, **EXACT)
        torch.testing.assert_close(values[f"relative_margin_gradient_{norm}"], size / gap, **EXACT)
        size = torch.linalg.vector_norm(uphill, order, dim=1)
        torch.testing.assert_close(values[f"gradient_{norm}"], size, **EXACT)
        torch.testing.assert_close(values[f"relative_gradient_{norm}"], size / gap, **EXACT)


def test_relative_jacobian_norms_are_those_over_the_size_of_the_margin() -> None:
    problem, weight = softmax_regression()
    gap, _ = gaps(problem, weight)
    values = jacobian_norms(all_of(problem))
    for name, size in {
        "jacobian_frobenius": weight.norm(),
        "jacobian_spectral": torch.linalg.matrix_norm(weight, 2),
    }.items():
        torch.testing.assert_close(values[f"relative_{name}"], size / gap, **EXACT)


@pytest.mark.parametrize("merge", ["add", "sigmoid_both"])
def test_jacobian_is_that_of_autograd_example_by_example(merge: str) -> None:
    problem = make_problem(torch.device("cpu"), merge=merge, count=5)
    expected = dense_jacobian(problem)
    logits, rows = jacobians.jacobian(Inputs(problem), problem.inputs)
    assert logits.dtype == torch.float64
    # A ResNet adds a few thousand float64 products in each entry.
    torch.testing.assert_close(rows, expected, rtol=1e-8, atol=1e-9)
    values = jacobian_norms(all_of(problem))
    # The root of the top eigenvalue of a Gram matrix: condition squared, 1e-8 is ample.
    torch.testing.assert_close(
        values["jacobian_frobenius"], expected.flatten(1).norm(dim=1), rtol=1e-8, atol=0
    )
    torch.testing.assert_close(
        values["jacobian_spectral"], torch.linalg.matrix_norm(expected, 2), rtol=1e-8, atol=0
    )
    p = logits.softmax(dim=1)
    inner = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) @ expected
    torch.testing.assert_close(
        values["softmax_jacobian_frobenius"], inner.flatten(1).norm(dim=1), rtol=1e-8, atol=0
    )
    torch.testing.assert_close(
        values["softmax_jacobian_spectral"], torch.linalg.matrix_norm(inner, 2), rtol=1e-8, atol=0
    )


def test_inputs_of_several_names_are_concatenated() -> None:
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return torch.stack([left.sum(dim=(1, 2)), 2 * right.sum(dim=1)], dim=1)

    inputs = {"left": torch.rand(3, 2, 2).double(), "right": torch.rand(3, 5).double()}
    problem = Problem.of(Two(), [(inputs, torch.tensor([0, 1, 0]))], batch_size=3)
    _, rows = jacobians.jacobian(Inputs(problem), problem.inputs)
    expected = torch.tensor([[1.0] * 4 + [0.0] * 5, [0.0] * 4 + [2.0] * 5]).double()
    torch.testing.assert_close(rows, expected.expand(3, 2, 9), rtol=0, atol=0)
    back = jacobians.shaped(jacobians.flattened(inputs.values()), inputs)
    assert all(torch.equal(back[name], value) for name, value in inputs.items())


def test_softmax_jacobian_is_accurate_for_a_confident_example() -> None:
    rest = torch.tensor([1e-14, 3e-15, 2e-16], dtype=torch.float64)
    p = torch.cat([1 - rest.sum()[None], rest])[None]
    matrix = jacobians.softmax_jacobian(p)[0]
    # 1 - p[0] itself keeps no more than one digit; the sum of the others keeps them all.
    torch.testing.assert_close(matrix[0, 0], rest.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        matrix.sum(dim=1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-26
    )


@pytest.mark.second_derivative
def test_gauss_newton_of_softmax_regression_is_its_input_hessian() -> None:
    problem, weight = softmax_regression()
    for number in range(len(problem)):
        x, y = problem.inputs["input"][number], problem.targets[number]
        hessian = torch.autograd.functional.hessian(
            lambda v, y=y: nn.functional.cross_entropy(v @ weight.T, y), x
        )
        values, vectors = torch.linalg.eigh(hessian)
        p = (x @ weight.T).softmax(dim=0)[None]
        top, vector = jacobians.gauss_newton_top(weight[None], p)
        torch.testing.assert_close(top[0], values[-1], **EXACT)
        # Up to its sign; the gap of these spectra is of order one.
        torch.testing.assert_close((vector[0] @ vectors[:, -1]).abs(), torch.tensor(1.0).double())


@pytest.mark.second_derivative
def test_gauss_newton_of_a_relu_network_is_its_input_hessian() -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 5)).double()
    inputs = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    problem = Problem.of(model, [(inputs, labels)], batch_size=4)
    logits, rows = jacobians.jacobian(Inputs(problem), problem.inputs)
    top, vectors = jacobians.gauss_newton_top(rows, logits.softmax(dim=1))
    for x, y, value, vector in zip(inputs, labels, top, vectors, strict=True):
        hessian = torch.autograd.functional.hessian(
            lambda v, y=y: nn.functional.cross_entropy(model(v), y), x
        )
        torch.testing.assert_close(value, torch.linalg.eigvalsh(hessian)[-1], **EXACT)
        torch.testing.assert_close(hessian @ vector, value * vector, rtol=1e-8, atol=1e-12)


def test_another_loss_may_give_its_own_curvature() -> None:
    _, weight = softmax_regression()
    rows, p = weight[None], torch.full((1, 4), 0.25, dtype=torch.float64)
    identity = torch.eye(4, dtype=torch.float64)[None]
    top, vector = jacobians.gauss_newton_top(rows, p, identity)
    u, s, v = torch.linalg.svd(weight)
    torch.testing.assert_close(top[0], s[0] ** 2, **EXACT)
    torch.testing.assert_close((vector[0] @ v[0]).abs(), torch.tensor(1.0).double())
    given = jacobians.gauss_newton_top(rows, p, jacobians.softmax_jacobian(p))[0]
    torch.testing.assert_close(given, jacobians.gauss_newton_top(rows, p)[0], **EXACT)


def test_a_network_that_overflows_gives_nan_for_its_examples_alone() -> None:
    rows = torch.ones(2, 3, 4, dtype=torch.float64)
    rows[0, 0, 0] = torch.inf
    p = torch.tensor([0.2, 0.3, 0.5]).double().expand(2, 3)
    frobenius, spectral = jacobians.norms(jacobians.gram(rows))
    assert frobenius[0].isinf() and spectral[0].isnan()
    # All entries are 1: both norms are the root of their number.
    torch.testing.assert_close(spectral[1], torch.tensor(12.0).double().sqrt())
    values, vectors = jacobians.gauss_newton_top(rows, p)
    assert values[0].isnan() and vectors[0].isnan().all() and values[1].isfinite()


def test_hutchinson_is_right_within_its_own_standard_error() -> None:
    problem = make_problem(torch.device("cpu"), count=6)
    exact = jacobian_norms(all_of(problem))
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(60, 6, 10, generator=generator, dtype=torch.float64).sign()
    estimate = estimated_jacobian_norms(all_of(problem), signs)
    for name in ("jacobian_frobenius", "softmax_jacobian_frobenius"):
        error = (estimate[name] - exact[name]).abs() / estimate[f"{name}_stderr"]
        assert (error < 4).all(), error
        assert (estimate[f"{name}_stderr"] < 0.2 * exact[name]).all()


def test_one_draw_has_no_standard_error() -> None:
    problem, _ = softmax_regression()
    signs = torch.ones(1, len(problem), 4, dtype=torch.float64)
    estimate = estimated_jacobian_norms(all_of(problem), signs)
    assert estimate["jacobian_frobenius_stderr"].isnan().all()


def test_all_signs_together_give_the_frobenius_norm_itself() -> None:
    problem, weight = softmax_regression(classes=3)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).double()
    each = signs[:, None].expand(8, len(problem), 3)
    estimate = estimated_jacobian_norms(all_of(problem), each)
    norm = estimate["jacobian_frobenius"]
    # The mean of v v^T over all signs is the identity, so nothing is left of chance.
    torch.testing.assert_close(norm, weight.norm().expand(len(problem)), **EXACT)
    gap, _ = gaps(problem, weight)
    torch.testing.assert_close(estimate["relative_jacobian_frobenius"], norm / gap, **EXACT)
    stderr = estimate["jacobian_frobenius_stderr"] / gap
    torch.testing.assert_close(estimate["relative_jacobian_frobenius_stderr"], stderr, **EXACT)


def test_hutchinsons_standard_error_is_the_spread_of_independent_estimates() -> None:
    """One example a thousand times, with signs of its own each time."""
    problem, weight = softmax_regression(count=1)
    many = Problem.of(
        problem.model,
        [(problem.inputs["input"].expand(1000, 5), problem.targets.expand(1000))],
        batch_size=1000,
    )
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(50, 1000, 4, generator=generator, dtype=torch.float64).sign()
    estimate = estimated_jacobian_norms(all_of(many), signs)
    for name in ("jacobian_frobenius", "softmax_jacobian_frobenius"):
        found = estimate[f"{name}_stderr"].square().mean().sqrt()
        # A spread of 1000 values is known to 2 %; the next order in 50 draws is a few percent.
        assert float(found / estimate[name].std()) == pytest.approx(1, abs=0.12), name


def test_the_networks_own_normalisation_is_undone_by_the_chain_rule() -> None:
    problem, weight = softmax_regression()
    images = torch.rand(3, 5, 1, 1, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), problem.model)
    scaled = Problem(
        model,
        {"input": images},
        torch.tensor([0, 1, 2]),
        normalization=Normalization((0.5,) * 5, (0.1, 0.2, 0.3, 0.4, 0.5)),
        batch_size=3,
    )
    _, rows = jacobians.jacobian(Inputs(scaled), scaled.inputs)
    std = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    torch.testing.assert_close(rows, (weight / std).expand(3, 4, 5), **EXACT)


def test_saliency_of_captum_has_the_same_norms() -> None:
    captum = pytest.importorskip("captum.attr", reason="Captum, a second opinion, is not installed")
    problem = make_problem(torch.device("cpu"), count=6)
    network = problem.model.eval()

    def losses(images: Tensor) -> Tensor:
        return problem.losses(problem.outputs(network, {"input": images}), problem.targets)

    images = problem.inputs["input"].clone().requires_grad_()
    theirs = captum.Saliency(losses).attribute(images, abs=False)
    ours = gradient_norms(all_of(problem))["gradient_l2"]
    torch.testing.assert_close(ours, theirs.flatten(1).norm(dim=1), rtol=1e-8, atol=1e-12)


def test_the_gradient_of_a_certain_example_is_exact_in_float32() -> None:
    """At a margin of some hundred, slopes of the loss are far below what float32 holds."""
    problem, weight = softmax_regression()
    x = problem.inputs["input"].float().double()
    y = (x @ weight.T).argmax(dim=1)
    certain = replace(problem, inputs={"input": x}, targets=y, temperature=5e-3)
    narrow = certain.to("cpu", torch.float32)
    weight = weight.float().double()
    p = (x @ weight.T / 5e-3).softmax(dim=1)
    others = p - p * nn.functional.one_hot(y, 4)
    slopes = others - others.sum(dim=1, keepdim=True) * nn.functional.one_hot(y, 4)
    expected = (slopes @ weight / 5e-3).norm(dim=1)
    found = gradient_norms(all_of(narrow))["gradient_l2"]
    assert (expected < 1e-50).any()
    # The logits are those of float32: their error, some 1e-6 here, divided by the temperature.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
