"""Second derivatives of attention, gates and bilinear sampling, in weights and inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from checkpoints.models.aggregation import ScaledResidual
from checkpoints.models.cbam import CBAM
from checkpoints.models.eca import EfficientChannelAttention
from checkpoints.models.nam import NormalizationAttention
from checkpoints.models.se import SqueezeExcitation
from checkpoints.models.sk import SelectiveKernel
from checkpoints.models.spatial_attention import SpatialAttention
from checkpoints.models.spatial_convolution import DeformableConvolution, DynamicConvolution
from checkpoints.problem import Problem
from landscape.core.spaces import Inputs, Space, Weights
from landscape.hessian.operator import Curvature

pytestmark = pytest.mark.second_derivative

CHANNELS = 4
MECHANISMS: dict[str, Callable[[], nn.Module]] = {
    "1111": lambda: SpatialAttention(CHANNELS, heads=2, key_stride=2),
    "0010": lambda: SpatialAttention(CHANNELS, heads=2, terms="0010"),
    "within reach": lambda: SpatialAttention(CHANNELS, heads=2, terms="1101", reach=1),
    "added": lambda: SpatialAttention(CHANNELS, heads=2, terms="0101", encoding="added"),
    "deformable": lambda: DeformableConvolution(CHANNELS, CHANNELS),
    "dynamic": lambda: DynamicConvolution(CHANNELS, groups=2),
    "se": lambda: SqueezeExcitation(CHANNELS),
    "eca": lambda: EfficientChannelAttention(CHANNELS),
    "cbam": lambda: CBAM(CHANNELS),
    "nam": lambda: NormalizationAttention(CHANNELS),
    "sk": lambda: SelectiveKernel(CHANNELS, CHANNELS),
}
KEPT = ("deformable",)  # tracing takes seconds


class Tiny(nn.Module):
    """A smooth layer, a mechanism on a residual connection, and a head that is not linear."""

    def __init__(self, mechanism: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.block = ScaledResidual(mechanism)
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.block(torch.tanh(self.conv(images)))
        return self.head(features.square().mean(dim=(2, 3)))


def tiny(mechanism: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Tiny(MECHANISMS[mechanism]())
    for parameter in model.block.parameters():  # nothing stays at its initial zero
        nn.init.normal_(parameter, 0.0, 0.5, generator=generator)
    images = torch.rand(3, 1, 4, 4, generator=generator)
    labels = torch.arange(3) // 2
    return Problem.of(model, [(images, labels)], batch_size=2).to("cpu", torch.float64)


def loss_of(problem: Problem, space: Space) -> Callable[[Tensor], Tensor]:
    """The mean loss as a function of a flat vector, without the toolkit's own code."""
    shapes = {name: value.shape for name, value in space.origin.items()}
    model = problem.model.eval()

    def loss(flat: Tensor) -> Tensor:
        sizes = [shape.numel() for shape in shapes.values()]
        pieces = flat.split(sizes)
        point = {n: p.view(s) for (n, s), p in zip(shapes.items(), pieces, strict=True)}
        if isinstance(space, Weights):
            logits = functional_call(model, point, (problem.inputs["input"],))
        else:
            logits = model(point["input"])
        return functional.cross_entropy(logits, problem.targets)

    return loss


def dense(loss: Callable[[Tensor], Tensor], origin: Tensor) -> Tensor:
    """The Hessian, held to central differences of the gradient along a few directions."""
    found = torch.autograd.functional.hessian(loss, origin, vectorize=True)

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(loss(at), at)[0]

    step = 1e-6  # small enough that no maximum and no ReLU changes sides on the way
    for v in directions(len(origin)):
        difference = (gradient(origin + step * v) - gradient(origin - step * v)) / (2 * step)
        # 1e-12 of the step squared, 1e-10 of rounding
        torch.testing.assert_close(found @ v, difference, rtol=1e-5, atol=1e-7)
    return found


def directions(size: int, count: int = 4) -> Tensor:
    """Normal draws: two different matrices differ in the product with each of them."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_hessian_in_the_weights_is_the_dense_one(mechanism: str) -> None:
    problem = tiny(mechanism)
    space = Weights(problem)
    origin = torch.cat([value.flatten() for value in space.origin.values()])
    exact = dense(loss_of(problem, space), origin)
    for keep in {False, mechanism in KEPT}:
        operator = Curvature(space, keep=keep)
        for v in directions(operator.size):
            torch.testing.assert_close(operator.matvec(v), exact @ v, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_hessian_in_the_inputs_is_the_dense_one(mechanism: str) -> None:
    problem = tiny(mechanism)
    space = Inputs(problem)
    exact = dense(loss_of(problem, space), problem.inputs["input"].flatten())
    pixels = len(exact) // 3
    for example in range(3):
        block = slice(example * pixels, (example + 1) * pixels)
        operator = Curvature(space, part=slice(example, example + 1))
        for v in directions(pixels, 2):
            # the mean over three examples has a third of each one's own Hessian
            wanted = 3 * exact[block, block] @ v
            torch.testing.assert_close(operator.matvec(v), wanted, rtol=1e-9, atol=1e-10)
