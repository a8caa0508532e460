"""A matrix that is not symmetric is refused: the second derivative of some layer is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import landscape
from checkpoints.problem import Problem

pytestmark = pytest.mark.second_derivative
X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Wrong(torch.autograd.Function):
    """The square, whose derivative is right and whose second derivative is made to be wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return Backward.apply(grad, x)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        return 2 * x * grad

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        grad, x = ctx.saved_tensors
        return 5 * x * outer, 2 * grad * outer  # 2 x outer would be right


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Wrong.apply(x)


def made(middle: nn.Module, dtype: torch.dtype = torch.float64) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), middle, nn.Linear(6, 3))
    return Problem.of(net.to(dtype), [(X.to(dtype), torch.arange(12) % 3)], batch_size=5)


@pytest.mark.parametrize("options", [{}, {"parts": ("trace",)}, {"matrix": "difference"}])
def test_a_wrong_second_derivative_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="matrix is not symmetric") as found:
        landscape.measure("hessian", made(Squared()), activations="recompute", **options)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("middle", [nn.Tanh(), nn.ReLU(), nn.GELU()])
def test_what_is_stored_is_rounding_where_all_is_right(
    middle: nn.Module, dtype: torch.dtype
) -> None:
    result = landscape.measure("hessian", made(middle, dtype), parts=("trace",), top=1)
    assert float(result["asymmetry"]) < {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]


class Elementary(nn.Module):
    """What weight norm is, from elementary operations."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / v.square().sum(self.axes, keepdim=True).sqrt()

    def right_inverse(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return w.square().sum(self.axes, keepdim=True).sqrt(), w


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("activations", ["keep", "recompute"])
def test_weight_norm_has_the_curvature_of_its_formula(dim: int | None, activations: str) -> None:
    axes = {0: (1, 2, 3), 1: (0, 2, 3), None: (0, 1, 2, 3)}[dim]

    def measured(fused: bool) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            conv = nn.Conv2d(1, 4, 3).double()
            if fused:
                parametrizations.weight_norm(conv, dim=dim)
            else:
                parametrize.register_parametrization(conv, "weight", Elementary(axes))
            tail = nn.Linear(16, 3)
        net = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), tail)
        problem = Problem.of(net.double(), [(X.double(), torch.arange(12) % 3)])
        return landscape.measure(
            "hessian", problem, top=2, parts=("eigenpairs",), activations=activations, tol=1e-8
        )["eigenvalue"]

    np.testing.assert_allclose(measured(fused=True), measured(fused=False), rtol=1e-8)
