"""Products with curvature matrices, against closed forms and matrices built column by column."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hessian_eigenthings
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints.losses import cross_entropy
from checkpoints.problem import Normalization, Problem
from landscape.core.directions import matching, relative_scale
from landscape.core.spaces import Inputs, Space, Weights
from landscape.hessian import lanczos, operator, quadrature, split_graph, trace
from landscape.hessian.operator import Curvature
from tests.oracles import LinearRegression, make_problem

pytestmark = pytest.mark.second_derivative

WIDE = torch.float64


class Small(nn.Module):
    """A smooth and a piecewise linear layer, batch norm, and a product of two maps."""

    def __init__(self, *, multiplied: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.gate = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 4)
        self.multiplied = multiplied

    def forward(self, images: Tensor) -> Tensor:
        maps = functional.relu(self.norm(self.conv(images)))
        if self.multiplied:
            maps = maps * torch.tanh(self.gate(maps))
        return self.head(maps.mean(dim=(2, 3)))


def small(*, multiplied: bool = True, dtype: torch.dtype = WIDE, batch_size: int = 4) -> Problem:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Small(multiplied=multiplied)
    model.norm.running_mean.normal_(0, 0.1, generator=generator)
    model.norm.running_var.uniform_(0.02, 0.1, generator=generator)
    images = torch.rand(10, 1, 5, 5, generator=generator)
    labels = torch.randint(0, 4, (10,), generator=generator)
    return Problem.of(model, [(images, labels)], batch_size=batch_size).to("cpu", dtype)


def dense_hessian(problem: Problem) -> Tensor:
    """Of the mean loss in the weights: second derivatives by torch.autograd.functional."""
    model = problem.model.eval()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(flat: Tensor) -> Tensor:
        pieces = torch.split(flat, [math.prod(shape) for shape in shapes.values()])
        point = {n: p.view(s) for (n, s), p in zip(shapes.items(), pieces, strict=True)}
        inputs = problem.inputs["input"]
        logits = torch.func.functional_call(model, point, (inputs,))
        return functional.cross_entropy(logits, problem.targets)

    origin = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.autograd.functional.hessian(loss, origin)


def dense(operator: Curvature) -> Tensor:
    return torch.stack([operator.matvec(row) for row in torch.eye(operator.size, dtype=WIDE)])


@pytest.fixture(params=["plain", "kept"])
def keep(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "kept")


def test_the_hessian_is_the_dense_one(*, keep: bool) -> None:
    problem = small()
    found = dense(Curvature(Weights(problem), keep=keep))
    torch.testing.assert_close(found, dense_hessian(problem), rtol=1e-10, atol=1e-12)


def test_eigenvalues_trace_and_moments_are_those_of_the_dense_hessian() -> None:
    problem = small()
    operator, exact = Curvature(Weights(problem)), dense_hessian(problem)
    values = torch.linalg.eigvalsh(exact)

    def multiply(vectors: Tensor) -> Tensor:
        return operator.matvec(vectors[0])[None]

    start = lanczos.gaussian(torch.empty(1, operator.size, dtype=WIDE), torch.Generator())
    generator = torch.Generator().manual_seed(0)
    found = lanczos.eigenpairs(
        multiply, start, operator.size, tol=1e-6, max_products=400, generator=generator
    )
    torch.testing.assert_close(found.values[0].sort()[0], values, rtol=1e-9, atol=1e-12)
    result = trace.traces(multiply, start, 3 * operator.size, generator)
    assert result.trace == pytest.approx(float(values.sum()), rel=1e-10)
    assert result.squared_norm == pytest.approx(float((values**2).sum()), rel=1e-10)
    nodes, weights = quadrature.quadrature(multiply, start, 12, generator)
    unit = start[0] / start.norm()
    for power in range(1, 8):
        moment = unit @ torch.linalg.matrix_power(exact, power) @ unit
        assert float((weights * nodes**power).sum()) == pytest.approx(float(moment), rel=1e-8)


def test_gauss_newton_and_difference_add_up_to_the_hessian(*, keep: bool) -> None:
    space = Weights(small())
    whole, first, rest = (
        dense(Curvature(space, matrix, keep=keep))
        for matrix in ("hessian", "gauss_newton", "difference")
    )
    torch.testing.assert_close(first + rest, whole, rtol=0, atol=1e-13)
    assert torch.linalg.eigvalsh(first).min() > -1e-13, "it has no negative eigenvalues"
    assert rest.norm() > 1e-3 * whole.norm(), "else this tests nothing"


def test_gauss_newton_of_the_weights_is_that_of_the_jacobian() -> None:
    problem = small()
    space = Weights(problem)

    def logits(*values: Tensor) -> Tensor:
        return space.outputs(dict(zip(space.origin, values, strict=True)))

    rows = torch.autograd.functional.jacobian(logits, tuple(space.origin.values()))
    jacobian = torch.cat([row.flatten(2) for row in rows], dim=2)
    p = logits(*space.origin.values()).softmax(1)
    bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = (jacobian.mT @ bend @ jacobian).mean(0)
    found = dense(Curvature(space, "gauss_newton"))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", [Weights, Inputs])
def test_a_quadratic_has_the_hessian_of_its_formula(kind: type[Space], *, keep: bool) -> None:
    oracle = LinearRegression.random()
    operator = Curvature(kind(oracle.problem()), keep=keep)
    found = dense(operator)
    if kind is Weights:  # mean of |Wx - y|^2 / 2: the identity times the second moment of x
        moment = oracle.inputs.T @ oracle.inputs / len(oracle.inputs)
        expected = torch.kron(torch.eye(len(oracle.weight), dtype=WIDE), moment)
    else:  # W^T W for every example
        expected = torch.block_diag(*[oracle.weight.T @ oracle.weight] * len(oracle.inputs))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_in_the_inputs_every_example_has_its_own_block(*, keep: bool) -> None:
    problem = small()
    operator = Curvature(Inputs(problem), part=slice(2, 7), keep=keep)
    assert operator.blocks == 5
    rows = dense(operator).view(5, 25, 5, 25)
    for i in range(5):
        image, label = problem.inputs["input"][2 + i], problem.targets[2 + i]

        def loss(pixels: Tensor, label: Tensor = label) -> Tensor:
            logits = problem.model.eval()(pixels.view(1, 1, 5, 5))
            return functional.cross_entropy(logits, label[None])

        exact = torch.autograd.functional.hessian(loss, image.flatten())
        torch.testing.assert_close(rows[i, :, i], exact, rtol=1e-9, atol=1e-12)
        others = [j for j in range(5) if j != i]
        assert (rows[i][:, others] == 0).all()


def test_a_piecewise_linear_network_has_no_curvature_of_its_own_in_the_inputs() -> None:
    space = Inputs(small(multiplied=False))
    vector = torch.randn(Curvature(space).size, generator=torch.Generator(), dtype=WIDE)
    own = Curvature(space, "difference").matvec(vector).norm()
    # rounding
    assert own < 1e-14 * Curvature(space).matvec(vector).norm()
    curved = Inputs(small(multiplied=True))
    own = Curvature(curved, "difference").matvec(vector).norm()
    assert own > 1e-2 * Curvature(curved).matvec(vector).norm()


@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_batches_do_not_matter_also_where_the_last_is_smaller(size: int, *, keep: bool) -> None:
    whole = Curvature(Weights(small(batch_size=10)))
    vector = torch.randn(whole.size, generator=torch.Generator(), dtype=WIDE)
    found = Curvature(Weights(small(batch_size=size)), keep=keep).matvec(vector)
    torch.testing.assert_close(found, whole.matvec(vector), rtol=1e-11, atol=1e-13)


def test_an_unweighted_mean_of_batch_means_would_be_seen() -> None:
    """The fault of a public tool: batches of 4, 4 and 2 that count alike."""
    problem = small()
    whole = Curvature(Weights(problem))
    vector = torch.randn(whole.size, generator=torch.Generator(), dtype=WIDE)
    means = []
    for part in Weights(problem).parts():
        inputs, targets = problem.inputs["input"][part], problem.targets[part]
        batch = Problem.of(problem.model, [(inputs, targets)], batch_size=4)
        means.append(Curvature(Weights(batch)).matvec(vector))
    wrong = torch.stack(means).mean(0)
    assert (wrong - whole.matvec(vector)).norm() > 1e-3 * whole.matvec(vector).norm()


def test_finite_differences_of_a_float32_relu_network_would_be_far_off() -> None:
    """The fault of another: a fixed step crosses kinks and rounds; our products do neither."""
    problem = make_problem(torch.device("cpu"), dtype=torch.float32)
    exact = make_problem(torch.device("cpu"))
    operator = Curvature(Weights(problem))
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
    true = Curvature(Weights(exact)).matvec(vector.double())
    found = operator.matvec(vector).double()
    # float32 rounding through a dozen layers
    assert (found - true).norm() < 1e-4 * true.norm()
    step = 5e-3  # hessian-eigenthings' for float32
    theirs = (
        hessian_eigenthings.HessianOperator(
            problem.model.eval(),
            [(problem.inputs["input"], problem.targets)],
            hessian_eigenthings.supervised_loss(functional.cross_entropy),
            method="finite_difference",
            fd_eps=step,
        )
        .matvec(vector)
        .double()
    )
    assert (theirs - true).norm() > 20 * (found - true).norm()


def test_selected_rows_and_columns_are_those_of_the_whole() -> None:
    problem = small()
    space = Weights(problem)
    names = matching(list(space.origin), ["head.*", "norm.bias"])
    assert names == ["norm.bias", "head.weight", "head.bias"]
    flags = torch.cat([torch.full((v.numel(),), n in names) for n, v in space.origin.items()])
    whole = dense_hessian(problem)
    found = dense(Curvature(space, names=names))
    torch.testing.assert_close(found, whole[flags][:, flags], rtol=1e-10, atol=1e-13)


def test_a_pattern_without_a_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--layers layer9\.\*: no parameter"):
        matching(["layer1.weight"], ["layer9.*"])
    with pytest.raises(ValueError, match=r"nothing is not in the space"):
        Curvature(Weights(small()), names=["nothing"])


def test_a_scale_multiplies_from_both_sides() -> None:
    problem = small()
    space = Weights(problem)
    scale = relative_scale(space.origin)
    diagonal = torch.cat(
        [
            s.expand_as(v).flatten()
            for s, v in zip(scale.values(), space.origin.values(), strict=True)
        ]
    )
    found = dense(Curvature(space, scale=scale))
    expected = diagonal[:, None] * dense_hessian(problem) * diagonal
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_the_scaled_spectrum_does_not_see_a_rescaling_that_cancels() -> None:
    """Convolution before batch norm: its scale cancels, and the plain Hessian's top changes."""

    def rescaled(factor: float) -> Problem:
        problem = small(multiplied=False)
        model = problem.model
        with torch.no_grad():
            for value in (model.conv.weight, model.conv.bias, model.norm.running_mean):
                value.mul_(factor)
            model.norm.running_var.add_(model.norm.eps).mul_(factor**2).sub_(model.norm.eps)
        return problem

    tops = {}
    for kind in ("none", "relative"):
        for factor in (1.0, 3.0):
            space = Weights(rescaled(factor))
            scale = relative_scale(space.origin) if kind == "relative" else None
            tops[kind, factor] = torch.linalg.eigvalsh(dense(Curvature(space, scale=scale)))
    # rounding
    torch.testing.assert_close(tops["relative", 1.0], tops["relative", 3.0], rtol=1e-9, atol=1e-12)
    assert (tops["none", 1.0] - tops["none", 3.0]).abs().max() > 1e-2


def test_recomputed_statistics_are_those_of_the_origin_held_fixed() -> None:
    problem = small()
    calibration = {"input": torch.rand(6, 1, 5, 5, dtype=WIDE, generator=torch.Generator())}
    again = replace(problem, batch_norm="recompute", calibration=calibration)
    found = dense(Curvature(Weights(again)))
    maps = problem.model.conv(calibration["input"]).detach()
    problem.model.norm.running_mean.copy_(maps.mean(dim=(0, 2, 3)))
    problem.model.norm.running_var.copy_(maps.transpose(0, 1).flatten(1).var(dim=1))
    torch.testing.assert_close(found, dense_hessian(problem), rtol=1e-8, atol=1e-11)


def test_a_temperature_is_part_of_the_loss() -> None:
    problem = small()
    warm = Curvature(Weights(replace(problem, temperature=2.0)))
    head = problem.model.head
    with torch.no_grad():
        head.weight.div_(2)
        head.bias.div_(2)
    names = ["conv.weight"]  # rows that do not know of the head's scale
    found = Curvature(warm.space, names=names).matvec(torch.ones(27, dtype=WIDE))
    expected = Curvature(Weights(problem), names=names).matvec(torch.ones(27, dtype=WIDE))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_kept_products_agree_in_float32_with_those_in_float64() -> None:
    for merge in ("add", "bn_product_mean1"):
        wide = Curvature(Weights(make_problem(torch.device("cpu"), merge=merge)))
        narrow = make_problem(torch.device("cpu"), merge=merge, dtype=torch.float32)
        vector = torch.randn(wide.size, generator=torch.Generator(), dtype=WIDE)
        found = Curvature(Weights(narrow), keep=True).matvec(vector.float()).double()
        expected = wide.matvec(vector)
        # float32 rounding through a dozen layers
        assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions that are traced, from here on."""
    found: list[Any] = []

    def split(function: Any, arguments: Any, vector: Any) -> split_graph.Split:
        found.append(function)
        return original(function, arguments, vector)

    original = split_graph.split
    monkeypatch.setattr(split_graph, "split", split)
    monkeypatch.setattr(split_graph, "_SHARED", OrderedDict())
    return found


def test_networks_of_one_architecture_share_a_trace_and_have_the_values_of_their_own(
    traced: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, other = small(), small()
    for value in other.model.parameters():
        value.data.mul_(1.5)

    def product(problem: Problem) -> Tensor:
        multiplied = Curvature(Weights(problem), keep=True)
        return multiplied.matvec(torch.ones(multiplied.size, dtype=WIDE))

    product(problem)
    shared = product(other)
    assert len(traced) == 1
    monkeypatch.setattr(split_graph, "MOST_SHARED", 0)
    split_graph._SHARED.clear()
    assert torch.equal(product(other), shared)
    assert len(traced) == 2


def _other_slope(problem: Problem) -> Problem:
    problem.model.norm.eps *= 2
    return problem


def _with_a_hook(problem: Problem) -> Problem:
    problem.model.gate.register_forward_hook(lambda _, __, maps: 2 * maps)
    return problem


class Tilted(nn.Module):
    """A loss with numbers of its own."""

    def __init__(self, tilt: float) -> None:
        super().__init__()
        self.register_buffer("tilt", torch.tensor([tilt, 1.0, 1.0, 1.0]))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, self.tilt, reduction="none")


def test_what_changes_the_product_is_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With splits that compute as they are told: one of another problem has other values."""
    made = []

    def split(function: Any, arguments: Any, vector: Any) -> split_graph.Split:
        made.append(function)
        linear = lambda kept, vector: function(*kept, vector)  # noqa: E731
        return split_graph.Split(lambda *arguments: list(arguments), linear, 0, by_form=True)

    monkeypatch.setattr(split_graph, "split", split)
    monkeypatch.setattr(split_graph, "_SHARED", OrderedDict())
    monkeypatch.setattr(split_graph, "MOST_SHARED", 100)
    seen = []

    def multiply_once(problem: Problem, matrix: operator.Matrix = "hessian") -> None:
        multiplied = Curvature(Weights(problem), matrix, keep=True)
        multiplied.matvec(torch.ones(multiplied.size, dtype=WIDE))

    def remembering(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs)
        return cross_entropy(outputs, targets)

    others: list[Callable[[Problem], Problem]] = [
        lambda problem: problem,
        lambda problem: small(multiplied=False),
        lambda problem: small(batch_size=5),
        lambda problem: problem.take(slice(0, 8)),
        lambda problem: replace(problem, temperature=2.0),
        lambda problem: replace(problem, normalization=Normalization((0.5,), (0.5,))),
        lambda problem: replace(problem, kernels="contiguous"),
        _other_slope,
        _with_a_hook,
        *(lambda problem, t=t: replace(problem, loss=Tilted(t)) for t in (0.5, 0.7)),
        *[lambda problem: replace(problem, loss=remembering)] * 2,
    ]
    for number, change in enumerate(others, start=1):
        for matrix in ("hessian", "gauss_newton"):
            multiply_once(change(small()), matrix)
        assert len(made) == 2 * number
    for known in (0, 9):
        multiply_once(others[known](small()))
    assert len(made) == 2 * len(others)


def test_no_memory_means_recomputation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Curvature(Weights(small()))
    vector = torch.ones(plain.size, dtype=WIDE)
    monkeypatch.setattr(operator, "free_memory", lambda device: 0)
    with caplog.at_level(logging.INFO):
        found = Curvature(Weights(small()), keep=True).matvec(vector)
    assert "keeping the activations of 0 of 3 batches" in caplog.text
    assert torch.equal(found, plain.matvec(vector))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_a_full_memory_halves_the_batches(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    from landscape.hessian import products

    original = products.doubly_backward
    sizes = []

    def greedy(parts: Any, outputs_at: Any, loss_of: Any, point: Any, vector: Any) -> Any:
        count = len(outputs_at(point))
        sizes.append(count)
        if count > 2:
            raise error
        return original(parts, outputs_at, loss_of, point, vector)

    for kind in (Weights, Inputs):
        plain = Curvature(kind(small()))
        vector = torch.randn(plain.size, generator=torch.Generator(), dtype=WIDE)
        expected = plain.matvec(vector)
        with monkeypatch.context() as patch:
            patch.setattr(products, "doubly_backward", greedy)
            found = Curvature(kind(small())).matvec(vector)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)
    assert 4 in sizes
    assert 2 in sizes


class Moody(Small):
    """Decides in Python, by its input: a trace of one batch is wrong for another."""

    def forward(self, images: Tensor) -> Tensor:
        sign = -1.0 if float(images.detach().mean()) > 0.5 else 1.0
        return sign * super().forward(images)


class Untraceable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class Doubling(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(Untraceable.apply(self.conv.bias.sum() * 0 + images))


@pytest.mark.parametrize("kind", [Moody, Doubling])
def test_what_cannot_be_traced_is_multiplied_the_plain_way(
    kind: type[Small], caplog: pytest.LogCaptureFixture
) -> None:
    problem = small()
    model = kind().double()
    model.load_state_dict(problem.model.state_dict())
    bright = problem.inputs["input"].clone()
    bright[:4] *= 0.5
    bright[4:] = 0.6 + 0.4 * bright[4:]
    problem = Problem.of(model, [(bright, problem.targets)], batch_size=4)
    plain = Curvature(Weights(problem))
    vector = torch.randn(plain.size, generator=torch.Generator(), dtype=WIDE)
    with caplog.at_level(logging.INFO):
        found = Curvature(Weights(problem), keep=True).matvec(vector)
    assert "the product cannot be traced" in caplog.text
    torch.testing.assert_close(found, plain.matvec(vector), rtol=0, atol=0)


class Scaled(Small):
    """With a parameter of no dims, as a learned temperature is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * super().forward(images)


@pytest.mark.parametrize(
    "names", [None, ["head.weight", "scale"], ["scale"], ["conv.weight"], ["norm.bias"]]
)
def test_a_selection_and_a_parameter_without_dims_are_traced(
    names: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    problem = small()
    model = Scaled().double()
    problem = Problem.of(model, [(problem.inputs["input"], problem.targets)], batch_size=4)
    with caplog.at_level(logging.INFO):
        found = dense(Curvature(Weights(problem), names=names, keep=True))
    assert "cannot be traced" not in caplog.text
    torch.testing.assert_close(
        found, dense(Curvature(Weights(problem), names=names)), rtol=1e-9, atol=1e-12
    )


def test_batch_norm_is_traced_in_the_inputs_too(caplog: pytest.LogCaptureFixture) -> None:
    problem = small()
    with caplog.at_level(logging.INFO):
        found = dense(Curvature(Inputs(problem), keep=True))
    assert "cannot be traced" not in caplog.text
    torch.testing.assert_close(found, dense(Curvature(Inputs(problem))), rtol=1e-9, atol=1e-12)


class InPlace(Small):
    """Writes to what it has read, as many networks do."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.conv(images))
        maps = functional.relu(maps, inplace=True)
        maps = maps * torch.tanh(self.gate(maps))
        maps += 0.5
        return self.head(maps.mean(dim=(2, 3)))


def test_layers_that_write_in_place_are_traced_as_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problem = small()
    model = InPlace().double()
    model.load_state_dict(problem.model.state_dict())
    problem = Problem.of(model, [(problem.inputs["input"], problem.targets)], batch_size=4)
    with caplog.at_level(logging.INFO):
        found = dense(Curvature(Weights(problem), keep=True))
    assert "cannot be traced" not in caplog.text
    torch.testing.assert_close(found, dense_hessian(problem), rtol=1e-10, atol=1e-12)
    assert torch.equal(found, dense(Curvature(Weights(problem), keep=True))), "kept values stay"


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class OnceOnly(Small):
    def forward(self, images: Tensor) -> Tensor:
        return Once.apply(super().forward(images))


def test_a_layer_without_a_second_derivative_is_named_in_one_line() -> None:
    problem = Problem.of(OnceOnly(), [(torch.rand(4, 1, 5, 5), torch.zeros(4, dtype=torch.int64))])
    operator = Curvature(Weights(problem))
    with pytest.raises(ValueError, match=r"no second derivative") as caught:
        operator.matvec(torch.ones(operator.size))
    assert "\n" not in str(caught.value)


def test_a_vector_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\); expected"):
        Curvature(Weights(small())).matvec(torch.ones(3))


def test_algorithms_of_hessian_eigenthings_run_on_the_operators_as_they_are() -> None:
    problem = small()
    values = torch.linalg.eigvalsh(dense_hessian(problem))
    operator = Curvature(Weights(problem))
    assert isinstance(operator, hessian_eigenthings.CurvatureOperator)
    found = hessian_eigenthings.lanczos(operator, k=3, max_iter=40, seed=0)
    largest = values[values.abs().argsort(descending=True)[:3]]
    torch.testing.assert_close(
        found.eigenvalues.sort()[0].to(WIDE), largest.sort()[0], rtol=1e-4, atol=1e-6
    )
    value, *_ = hessian_eigenthings.power_iteration_one(operator, seed=0)
    assert value == pytest.approx(float(largest[0]), rel=1e-2)
    trace = hessian_eigenthings.hutch_plus_plus(operator, num_matvecs=3 * operator.size, seed=0)
    assert float(trace.estimate) == pytest.approx(float(values.sum()), rel=1e-6)
    inputs = Curvature(Inputs(problem), "gauss_newton")
    assert (hessian_eigenthings.lanczos(inputs, k=2, max_iter=40, seed=0).eigenvalues > 0).all()


def test_the_problem_is_untouched() -> None:
    problem = small()
    before = {name: value.clone() for name, value in problem.model.state_dict().items()}
    for keep in (False, True):
        operator = Curvature(Weights(problem), keep=keep)
        operator.matvec(torch.ones(operator.size, dtype=WIDE))
    assert all(torch.equal(v, before[n]) for n, v in problem.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in problem.model.parameters())
    assert problem.loss is cross_entropy
