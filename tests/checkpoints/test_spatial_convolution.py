"""Regular, deformable and dynamic convolution against torch's, and against the common formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints import hooks
from checkpoints.models.aggregation import Aggregation
from checkpoints.models.spatial_convolution import (
    DeformableConvolution,
    DynamicConvolution,
    RegularConvolution,
)
from checkpoints.train.loop import parameter_groups
from checkpoints.train.recipe import Recipe

WIDE = torch.float64
SHAPES = [
    ((7, 6), 3, 1),
    ((7, 6), 3, 2),
    ((5, 6), 5, 1),
    ((7, 7), 1, 2),
    ((9,), 3, 1),
    ((8,), 5, 3),
]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def seeded(kind: type[Any], *sizes: int, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*sizes, **options).double()


def torch_convolution(features: Tensor, module: Any, stride: int = 1) -> Tensor:
    convolution = functional.conv1d if features.ndim == 3 else functional.conv2d
    weight = module.weight
    return convolution(features, weight, module.bias, stride, weight.shape[-1] // 2)


@pytest.mark.parametrize(("sizes", "kernel", "stride"), SHAPES)
def test_a_regular_convolution_by_the_formula_is_torch_s(
    sizes: tuple[int, ...], kernel: int, stride: int
) -> None:
    options = {"kernel": kernel, "stride": stride, "axes": len(sizes), "bias": True}
    module, features = seeded(RegularConvolution, 4, 5, **options), rand(2, 4, *sizes)
    nn.init.normal_(module.bias)
    wanted = torch_convolution(features, module, stride)
    torch.testing.assert_close(Aggregation.forward(module, features), wanted)
    torch.testing.assert_close(module(features), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(("sizes", "kernel", "stride"), SHAPES)
def test_a_deformable_convolution_without_offsets_is_a_convolution(
    sizes: tuple[int, ...], kernel: int, stride: int
) -> None:
    options = {"kernel": kernel, "stride": stride, "axes": len(sizes)}
    module, features = seeded(DeformableConvolution, 4, 5, **options), rand(2, 4, *sizes)
    torch.testing.assert_close(module(features), torch_convolution(features, module, stride))


def moved(features: Tensor, step: tuple[int, ...]) -> Tensor:
    """Features at each position plus `step`, zeros from outside."""
    far = 4
    padded = functional.pad(features, (far,) * 4)
    rows, columns = features.shape[2:]
    return padded[:, :, far + step[0] :, far + step[1] :][:, :, :rows, :columns]


@pytest.mark.parametrize("step", [(0, 1), (-2, 0), (1, -3), (3, 2)])
def test_whole_offsets_are_a_shift(step: tuple[int, int]) -> None:
    """All taps moved together sample a moved image: also where they come from outside."""
    module, features = seeded(DeformableConvolution, 4, 5, kernel=1), rand(2, 4, 6, 7)
    with torch.no_grad():
        module.offsets.bias.copy_(torch.tensor(step))
    torch.testing.assert_close(module(features), torch_convolution(moved(features, step), module))


def test_each_tap_has_offsets_of_its_own_rows_before_columns() -> None:
    module, features = seeded(DeformableConvolution, 4, 5), rand(2, 4, 6, 7)
    steps = [(tap % 3 - 1, tap // 3 - 2) for tap in range(9)]
    with torch.no_grad():
        module.offsets.bias.copy_(torch.tensor(steps).flatten())
    wanted = torch.zeros(2, 5, 6, 7, dtype=WIDE)
    for tap, (down, right) in enumerate(steps):
        place = tap // 3 - 1 + down, tap % 3 - 1 + right
        weight = module.weight[:, :, tap // 3, tap % 3]
        wanted += torch.einsum("oc,nchw->nohw", weight, moved(features, place))
    torch.testing.assert_close(module(features), wanted)


def test_an_offset_between_positions_interpolates_linearly() -> None:
    module, features = seeded(DeformableConvolution, 4, 5, kernel=1), rand(2, 4, 6, 7)
    with torch.no_grad():
        module.offsets.bias.copy_(torch.tensor([0.25, -0.5]))
    corners = {(0, 0): 0.375, (0, -1): 0.375, (1, 0): 0.125, (1, -1): 0.125}
    mixed = sum(weight * moved(features, step) for step, weight in corners.items())
    torch.testing.assert_close(module(features), torch_convolution(mixed, module))


@pytest.mark.parametrize("offset_kernel", [1, 3])
@pytest.mark.parametrize(("sizes", "kernel", "stride"), SHAPES)
def test_the_gathers_of_a_deformable_convolution_are_the_formula(
    sizes: tuple[int, ...], kernel: int, stride: int, offset_kernel: int
) -> None:
    options = {"kernel": kernel, "stride": stride, "axes": len(sizes)}
    module = seeded(DeformableConvolution, 4, 5, offset_kernel=offset_kernel, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.offsets.parameters():
        nn.init.normal_(parameter, generator=generator)
    features = rand(2, 4, *sizes)
    found = module(features)
    torch.testing.assert_close(found, Aggregation.forward(module, features))
    assert not found.allclose(torch_convolution(features, module, stride))


def test_offsets_too_small_for_their_position_keep_their_sign() -> None:
    """After a few steps of training: as a number of float32, 5 - 1e-8 is 5, beyond the kink."""
    module, features = seeded(DeformableConvolution, 4, 5), rand(2, 4, 6, 7)
    generator = torch.Generator().manual_seed(1)
    nn.init.normal_(module.offsets.weight, std=1e-8, generator=generator)
    gradients = []
    for dtype in (torch.float32, WIDE):
        module, features = module.to(dtype), features.to(dtype)
        loss = (module(features) * rand(2, 5, 6, 7, seed=2).to(dtype)).sum()
        gradients += torch.autograd.grad(loss, module.offsets.weight)
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-5, atol=1e-5)


def test_offsets_are_an_inner_value_of_the_query_s_content() -> None:
    module, features = seeded(DeformableConvolution, 4, 5), rand(2, 4, 6, 7)
    nn.init.normal_(module.offsets.weight, generator=torch.Generator().manual_seed(1))
    with hooks.reading(module, "offsets") as values:
        module(features)
    weight = module.offsets.weight[:, :, 0, 0]
    wanted = torch.einsum("oc,nchw->nohw", weight, features).reshape(2, 9, 2, 6, 7)
    torch.testing.assert_close(values["offsets"], wanted)
    with hooks.replacing(module, {"offsets": torch.zeros_like}):
        torch.testing.assert_close(module(features), torch_convolution(features, module))


@pytest.mark.parametrize(("sizes", "kernel"), [((6, 7), 3), ((8,), 5)])
def test_a_dynamic_convolution_with_a_fixed_kernel_is_depthwise(
    sizes: tuple[int, ...], kernel: int
) -> None:
    """The kernel of a group for its two channels, on the gated values, before the projection."""
    axes, channels = len(sizes), 8
    module = seeded(DynamicConvolution, channels, groups=4, kernel=kernel, axes=axes)
    features, fixed = rand(2, channels, *sizes), rand(kernel**axes, 4, seed=3)
    with hooks.replacing(module, {"kernels": lambda value: fixed.expand_as(value)}):
        found = module(features)
    values, gates = module.gated(features.movedim(1, -1)).chunk(2, dim=-1)
    gated = (values / (1 + (-gates).exp())).movedim(-1, 1)
    weight = fixed.T.repeat_interleave(2, dim=0).reshape(channels, 1, *(kernel,) * axes)
    convolution = functional.conv1d if axes == 1 else functional.conv2d
    summed = convolution(gated, weight, padding=kernel // 2, groups=channels)
    torch.testing.assert_close(found, module.output(summed.movedim(1, -1)).movedim(-1, 1))


@pytest.mark.parametrize(("sizes", "kernel"), [((5, 4), 3), ((8,), 5)])
def test_the_taps_of_a_dynamic_convolution_are_the_formula(
    sizes: tuple[int, ...], kernel: int
) -> None:
    options = {"groups": 4, "kernel": kernel, "axes": len(sizes)}
    module, features = seeded(DynamicConvolution, 8, **options), rand(2, 8, *sizes)
    torch.testing.assert_close(module(features), Aggregation.forward(module, features))


def test_a_dynamic_kernel_is_a_softmax_of_the_query_s_content() -> None:
    module, features = seeded(DynamicConvolution, 8, groups=4), rand(2, 8, 5, 4)
    with hooks.reading(module, ["kernels", "predicted"]) as values:
        module(features)
    kernels, logits = values["kernels"], values["predicted"].reshape(2, 5, 4, 9, 4)
    torch.testing.assert_close(kernels.sum(dim=-2), torch.ones(2, 5, 4, 4, dtype=WIDE))
    torch.testing.assert_close(kernels.log().diff(dim=-2), logits.diff(dim=-2))


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: DynamicConvolution(8), "groups=16; expected a divisor of 8 channels"),
        (lambda: DynamicConvolution(8, groups=0), "groups=0; expected a whole number, at least 1"),
        (lambda: DynamicConvolution(16, kernel=2), "kernel=2; expected an odd number"),
        (lambda: RegularConvolution(4, 5, kernel=4), "kernel=4; expected an odd number"),
        (lambda: DeformableConvolution(4, 5, offset_kernel=0), "offset_kernel=0; expected an odd"),
    ],
)
def test_an_option_that_is_not_allowed_is_refused(build: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        build()


def test_offsets_learn_at_a_tenth_of_the_rate_and_nothing_else_does() -> None:
    model = nn.Sequential(seeded(DeformableConvolution, 4, 4), nn.BatchNorm2d(4))
    groups = parameter_groups(model, Recipe(decay=0.01))
    of = {
        name: (group["rate_factor"], group["weight_decay"])
        for name, parameter in model.named_parameters()
        for group in groups
        if any(parameter is member for member in group["params"])
    }
    assert of == {
        "0.weight": (1.0, 0.01),
        "0.offsets.weight": (0.1, 0.01),
        "0.offsets.bias": (0.1, 0.0),
        "1.weight": (1.0, 0.0),
        "1.bias": (1.0, 0.0),
    }
    assert sum(len(group["params"]) for group in groups) == len(of)


def test_predicted_kernels_and_offsets_have_the_parameters_of_their_formulas() -> None:
    module = DynamicConvolution(64)
    assert module.predicted.weight.shape == (16 * 9, 64)
    assert sum(p.numel() for p in DeformableConvolution(64, 64).offsets.parameters()) == 18 * 65
    assert (
        math.prod(DeformableConvolution(64, 64, offset_kernel=3).offsets.weight.shape) == 18 * 576
    )
