"""Kernels known to be wrong are not run, and what is not known is seen by a comparison."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import landscape
from checkpoints import kernels
from checkpoints.device import (
    KERNELS,
    channels_come_last,
    exact_arithmetic,
    in_default_order,
    in_order,
)
from checkpoints.problem import Problem
from landscape.core import store
from landscape.core.batch_size import prepared
from landscape.core.spaces import Weights
from tests.oracles import make_problem

pytestmark = [pytest.mark.second_derivative, pytest.mark.timeout(240)]
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def images(channels: int = 3, count: int = 20, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def problem_of(*layers: nn.Module, channels: int = 3, **others: Any) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))
        network(images(channels))
    return Problem.of(network, [(images(channels), torch.arange(20) % 3)], **others)


class Called(nn.Module):
    """A function of images and of a weight that no module tells of."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs, self.weight)


def in_its_own_order(inputs: Tensor, weight: Tensor) -> Tensor:
    ordered = inputs.contiguous(memory_format=torch.channels_last)
    return functional.conv2d(ordered, weight, stride=2)


def of_a_view(inputs: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(inputs.repeat(1, 2, 1, 1).chunk(3, 1)[0], weight, stride=2)


def of_a_crop(inputs: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(inputs[:, :, 1:-1, 1:-1], weight, stride=2)


def along_rows(inputs: Tensor, weight: Tensor) -> Tensor:
    rows = inputs.flatten(2).mT.contiguous().mT
    return functional.conv1d(rows, weight, stride=2)[..., None]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 8, 1, stride=2), "contiguous"),
        (nn.Conv2d(3, 8, 1, stride=(1, 2)), "contiguous"),
        (nn.ConvTranspose2d(3, 8, 1, stride=2), "channels_last"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 3, 1, stride=2)), "contiguous"),
        (nn.Conv2d(3, 8, 1), "channels_last"),
        (nn.Conv2d(3, 8, 3, stride=2), "channels_last"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, stride=2)), "channels_last"),
        (nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 4, 1, stride=2)), "contiguous"),
        (nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 6, 1, stride=2, groups=3)), "contiguous"),
        (Called(lambda x, w: functional.conv2d(x, w, stride=2), 8, 3, 1, 1), "contiguous"),
        (Called(in_its_own_order, 8, 3, 1, 1), "native"),
        (Called(along_rows, 8, 3, 1), "native"),
        (Called(of_a_view, 8, 2, 1, 1), "contiguous"),
        (Called(of_a_crop, 8, 3, 1, 1), "contiguous"),
    ],
)
def test_a_convolution_that_is_wrong_channels_last_is_seen_however_it_is_called(
    layer: nn.Module, expected: str
) -> None:
    problem = problem_of(layer)
    assert kernels.without_known_faults(problem) == expected
    assert kernels.without_known_faults(problem.to("cpu", torch.float64)) == "channels_last"


def test_the_weight_of_a_pointwise_convolution_decides_its_order_too() -> None:
    """Of one channel both orders are the same to `is_contiguous`, and not to oneDNN."""
    wide = nn.Sequential(nn.Conv2d(1, 7, 1), nn.ReLU(), nn.Conv2d(7, 16, 1, stride=2))
    problem = problem_of(wide, channels=1)
    assert kernels.without_known_faults(problem) == "contiguous"
    turned = in_order(wide, "channels_last")
    assert turned[2].weight.is_contiguous()
    assert not in_default_order(turned[2].weight)
    assert in_default_order(in_order(turned, "contiguous")[2].weight)


def test_spaces_and_results_hold_to_the_choice(tmp_path: Path) -> None:
    problem = problem_of(nn.Conv2d(3, 4, 1, stride=2))
    space = Weights(problem)  # also where nothing was prepared
    assert all(in_default_order(value) for value in space.origin.values())
    out = tmp_path / "a.h5"
    landscape.measure("hessian", problem, parts=("trace",), trace_products=6, out=out)
    assert store.recorded(out, "kernels") == "contiguous"
    errors = store.recorded(out, "kernel_errors")
    assert set(errors) == {f"{name} in the weights" for name in kernels.NAMES}
    assert 0 < max(errors.values()) < 1e-5


class Faulty(torch.autograd.Function):
    """y = a x whose derivative, or the derivative's, is wrong where `here` says so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, order: int, here: bool) -> Tensor:
        ctx.save_for_backward(x, factor)
        ctx.order, ctx.here = order, here
        return x * factor * (1.5 if here and order == 0 else 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, factor = ctx.saved_tensors
        here, order = ctx.here, ctx.order
        wrong = 1.5 if here and order == 1 else 1
        through = Faulty.apply(gradient, factor, 1, here) if order == 2 else gradient * factor
        return through, (gradient * x).sum() * wrong, None, None


class Layer(nn.Module):
    def __init__(self, order: int, wrong: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))
        self.order, self.wrong = order, wrong

    def forward(self, x: Tensor) -> Tensor:
        here = x.dtype == torch.float32 and self.wrong(x)
        return torch.tanh(Faulty.apply(x, self.factor, self.order, here))


def onednn_is_on(x: Tensor) -> bool:
    return bool(torch.backends.mkldnn.enabled)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    ("wrong", "expected"), [(channels_come_last, "contiguous"), (onednn_is_on, "native")]
)
def test_a_kernel_that_is_wrong_here_is_left(
    order: int, wrong: Callable[[Tensor], bool], expected: str
) -> None:
    """Its losses, its gradient, or only its second derivative; told apart from what is right."""
    problem = problem_of(nn.Conv2d(3, 8, 3), Layer(order, wrong))
    said: list[str] = []
    choice = kernels.chosen(problem, {"weights": order}, say=said.append)
    assert choice.kernels == expected
    assert len(said) == KERNELS.index(choice.kernels)
    assert said[0].startswith("kernels: channels_last: ")
    assert f"{kernels.NAMES[order]} in the weights off by" in said[0]
    assert max(choice.errors.values()) < 1e-5
    if order:
        right = kernels.chosen(problem, {"weights": order - 1}).kernels
        assert right == "channels_last", "what is not computed cannot be wrong"


def test_what_no_kernel_computes_is_refused_with_the_way_out() -> None:
    problem = problem_of(nn.Conv2d(3, 8, 3), Layer(1, lambda x: True))
    with pytest.raises(ValueError, match="disagree with float64.*Pass dtype float64") as told:
        landscape.measure("hessian", problem, parts=("trace",), trace_products=6)
    assert len(str(told.value).splitlines()) == 1
    wide = problem.to("cpu", torch.float64)
    landscape.measure("hessian", wide, parts=("trace",), trace_products=6)


def test_a_probe_that_begins_again_keeps_its_kernels(tmp_path: Path) -> None:
    problem = problem_of(nn.Conv2d(3, 8, 3), nn.Tanh())
    out, small = tmp_path / "a.h5", {"parts": ("trace",), "trace_products": 6}
    chosen = replace(problem, kernels="native")
    whole = landscape.measure("hessian", chosen, out=out, **small)
    again = landscape.measure("hessian", problem, out=out, **small)
    assert store.recorded(out, "kernels") == "native"
    np.testing.assert_array_equal(whole["trace"], again["trace"])
    faulty = problem_of(nn.Conv2d(3, 8, 3), Layer(0, channels_come_last))
    landscape.measure("surface", replace(faulty, kernels="native"), points=1, out=tmp_path / "b.h5")
    assert prepared(faulty, {"weights": 0}, tmp_path / "b.h5").kernels == "native"


def test_a_result_of_a_version_without_kernels_is_continued(tmp_path: Path) -> None:
    import json

    problem = problem_of(nn.Conv2d(3, 8, 3), nn.Tanh())
    out = tmp_path / "a.h5"
    landscape.measure("surface", problem, points=2, out=out)
    result = store.load(out)
    provenance = json.loads(result.attrs["provenance"])
    del provenance["kernels"], provenance["kernel_errors"]
    store.save(result.assign_attrs(provenance=json.dumps(provenance)), out)
    landscape.measure("surface", problem, points=2, out=out)


@pytest.mark.parametrize("seed", range(6))
def test_kinks_and_ties_are_no_faults(seed: int) -> None:
    """ReLUs and max pooling on images that are mostly black, where rounding may decide."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(12, 3, 12, 12, generator=generator)
    pixels = pixels * (pixels > 0.7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(144, 3),
        )
    problem = Problem.of(network, [(pixels, torch.arange(12) % 3)])
    said: list[str] = []
    choice = kernels.chosen(problem, {"weights": 2, "inputs": 2}, say=said.append)
    assert (choice.kernels, said) == ("channels_last", [])


def test_a_unit_at_its_kink_is_told_from_a_fault() -> None:
    """A ReLU whose input is 0 up to rounding: any gradient is right, and float32 takes one."""
    generator = torch.Generator().manual_seed(0)
    first = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.randn(4, 6, generator=generator))
        first.weight[0] = torch.tensor([0.1, 0.2, -0.3, 0.0, 0.0, 0.0]) * 1e3  # sums to 0 at ones
    network = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 3))
    problem = Problem.of(network, [(torch.ones(3, 6), torch.arange(3))])
    kernels.chosen(problem, {"weights": 2, "inputs": 2})


def test_a_network_that_insists_on_float32_is_compared_with_torchs_own_kernels() -> None:
    class Narrow(nn.Module):
        def __init__(self, wrong: Callable[[Tensor], bool]) -> None:
            super().__init__()
            self.conv, self.layer = nn.Conv2d(3, 8, 3), Layer(1, wrong)

        def forward(self, x: Tensor) -> Tensor:
            weight = torch.ones(8, 8, 1, 1)  # float32, whatever the network is
            return self.layer(functional.conv2d(self.conv(x), weight) * 0.1)

    right = kernels.chosen(problem_of(Narrow(lambda x: False)), {"weights": 1})
    assert right.kernels == "channels_last"
    assert kernels.chosen(problem_of(Narrow(onednn_is_on)), {"weights": 1}).kernels == "native"


def test_a_users_own_precision_does_not_become_that_of_a_result() -> None:
    problem = make_problem(torch.device("cpu"), dtype=torch.float32)
    expected = landscape.measure("surface", problem, points=1)["loss"].values
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        matrix = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
        exact = matrix.double() @ matrix.double()
        with exact_arithmetic():
            assert (matrix @ matrix - exact).abs().max() < 1e-3  # bfloat16: 0.2
        assert torch.get_float32_matmul_precision() == "medium"
        found = landscape.measure("surface", problem, points=1)["loss"].values
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found, expected)
    assert torch.backends.mkldnn.enabled


class Scaled(nn.Module):
    """x * w, whose gradient in w is `factor` times the truth where channels come last."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.tensor(1.5)), factor

    def forward(self, x: Tensor) -> Tensor:
        here = x.dtype == torch.float32 and channels_come_last(x)
        wrong = self.weight + (self.factor - 1) * (self.weight - self.weight.detach())
        return x * (wrong if here else self.weight)


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class WithASmallTerm(nn.Module):
    """A network to which a term adds a hundred-thousandth, with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )
        self.small = Scaled(-7.0)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tensor([1.0, 0.0, 0.0]).to(x)
        return self.large(x) + 1e-5 * self.small(x).mean((1, 2, 3))[:, None] * first


@pytest.mark.parametrize("factor", [-7.0, 1.001, math.nan, math.inf])
def test_a_kernel_that_is_wrong_in_one_small_tensor_or_not_finite_is_left(factor: float) -> None:
    problem = problem_of(nn.Conv2d(3, 8, 3), Scaled(factor), nn.Tanh())
    assert kernels.chosen(problem, {"weights": 1}).kernels == "contiguous"
    batch = (images(), torch.arange(20) % 3)
    assert kernels.chosen(Problem.of(WithASmallTerm(), [batch]), {"weights": 1}).kernels == (
        "contiguous"
    )


def test_noise_leaves_no_network_s_domain() -> None:
    """Roots of what is 0 or more, and numbers of tokens that are stored as float."""
    network = nn.Sequential(
        Root(),
        nn.Conv2d(3, 8, 3),
        Scaled(-7.0),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    black = images() * (images() > 0.5)
    choice = kernels.chosen(Problem.of(network, [(black, torch.arange(20) % 3)]), {"weights": 1})
    assert choice.kernels == "contiguous"
    assert max(choice.errors.values()) > 0

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x.long()).mean(1))

    tokens = torch.arange(120).reshape(20, 6).remainder(50).float()
    problem = Problem.of(Tokens(), [(tokens, torch.arange(20) % 3)])
    assert kernels.chosen(problem, {"weights": 2}).kernels == "channels_last"


@pytest.mark.parametrize("margin", [17.0, 25.0, 60.0, 200.0])
@pytest.mark.parametrize("derivatives", [{"weights": 0}, {"weights": 2}, {"inputs": 2}])
def test_what_float32_rounds_away_is_no_fault_of_a_kernel(
    margin: float, derivatives: dict[str, int]
) -> None:
    """Examples so certain that their loss, or its slope, is smaller than a rounding of 1."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with torch.no_grad():
        network[1].weight.mul_(0.1)
        network[1].bias.copy_(torch.tensor([margin, 0.0, 0.0]))
    labels = torch.zeros(20, dtype=torch.long)
    likely = nn.Sequential(network, nn.LogSoftmax(1))

    def likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.nll_loss(outputs, targets, reduction="none")

    for problem in (
        Problem.of(network, [(images(), labels)]),
        Problem.of(likely, [(images(), labels)], loss=likelihood),
    ):
        assert kernels.chosen(problem, derivatives).kernels == "channels_last"


@pytest.mark.parametrize("derivatives", [{"weights": 2}, {"inputs": 2}])
def test_examples_that_say_nothing_in_float32_do_not_speak_for_the_others(
    derivatives: dict[str, int],
) -> None:
    """Of a probability that rounds to 1 nothing is left; the first examples all have such."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Softmax(1))
    with torch.no_grad():
        network[1].weight[0] += 25 / 192
    pixels = images() / images().mean()
    pixels[-6:] *= 0.02  # dark, and undecided
    problem = Problem.of(network, [(pixels, torch.tensor([0] * 14 + [0, 1, 2] * 2))])
    assert kernels.chosen(problem, derivatives).kernels == "channels_last"


def test_a_network_with_a_precision_of_its_own_is_held_to_that() -> None:
    class Narrower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.layers(x)

    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phases = nn.Parameter(torch.polar(torch.ones(192), torch.arange(192.0)))
            self.head = nn.Linear(192, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x.flatten(1) * self.phases + 0.5).abs())

    for network, order in ((Narrower(), 1), (Complex(), 1), (Complex(), 0)):
        problem = Problem.of(network, [(images(), torch.arange(20) % 3)])
        assert kernels.chosen(problem, {"weights": order}).kernels == "channels_last"


def test_half_precision_and_networks_that_draw_are_compared() -> None:
    half = problem_of(nn.Conv2d(3, 8, 3), nn.Tanh()).to("cpu", torch.float16)
    assert kernels.chosen(half, {"weights": 1}).kernels == "channels_last"

    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.dropout(x, 0.5, training=True)

    drawn = problem_of(nn.Conv2d(3, 8, 3), Scaled(-1.0), Drawing(), nn.Tanh())
    state = torch.random.get_rng_state()
    assert kernels.chosen(drawn, {"weights": 1}).kernels != "channels_last"
    assert torch.equal(torch.random.get_rng_state(), state)


# In a process of their own: these kernels are chosen when torch is first used.
RANDOM_NETWORKS = """
import torch
from torch import nn
import landscape
from checkpoints import kernels
from checkpoints.problem import Problem

for seed in range(8):
    torch.manual_seed(seed)
    ins, middle, stride = 1 + seed % 4, 2 + seed % 7, 2 + seed % 2
    network = nn.Sequential(
        nn.Conv2d(ins, middle, 3, padding=1), nn.Tanh(), nn.Conv2d(middle, 8, 1, stride=stride),
        nn.Tanh(), nn.Conv2d(8, 6, 1 + 2 * (seed % 2), stride=1 + seed % 2), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )
    pixels, labels = torch.rand(24, ins, 14 + 2 * seed, 16), torch.arange(24) % 3
    way = ("keep", "recompute")[seed % 2]
    traces = [
        float(
            landscape.measure(
                "hessian", Problem.of(network.to(dtype), [(pixels.to(dtype), labels)]),
                parts=("trace",), trace_products=12, activations=activations,
            )["trace"]
        )
        for dtype, activations in ((torch.float32, way), (torch.float64, "recompute"))
    ]
    assert abs(traces[0] - traces[1]) < 1e-4 * abs(traces[1]), (seed, traces)
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize("capability", [AVX2, {}])
def test_strided_pointwise_convolutions_have_the_curvature_of_float64(
    capability: dict[str, str], tmp_path: Path
) -> None:
    """Where the rule is broken this process crashes, hangs or is far off, without AVX-512."""
    done = subprocess.run(
        [sys.executable, "-c", RANDOM_NETWORKS],
        env={**os.environ, **capability, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-500:]
    if capability:
        assert done.stdout.split() == ["AVX2"]
