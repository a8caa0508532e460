"""Second derivatives of every merge, in weights and inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from checkpoints.models.merge import MERGES
from checkpoints.models.wide_resnet import PreactivationBlock
from checkpoints.problem import Problem
from landscape.core.spaces import Inputs, Weights
from landscape.hessian.operator import Curvature
from tests.landscape.hessian.test_spatial import dense, directions, loss_of

pytestmark = pytest.mark.second_derivative


class Tiny(nn.Module):
    """One block of two channels and a head that is not linear."""

    def __init__(self, merge: str) -> None:
        super().__init__()
        self.block = PreactivationBlock(1, 2, 1, merge, dropout=0.5)
        self.head = nn.Linear(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(images).square().mean(dim=(2, 3)))


def tiny(merge: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Tiny(merge)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.3, generator=generator)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.5, generator=generator)
    images = torch.rand(3, 1, 4, 4, generator=generator)
    problem = Problem.of(model, [(images, torch.arange(3))], batch_size=2)
    return problem.to("cpu", torch.float64)


@pytest.mark.parametrize("merge", MERGES)
def test_the_hessian_in_the_weights_is_the_dense_one(merge: str) -> None:
    problem = tiny(merge)
    space = Weights(problem)
    origin = torch.cat([value.flatten() for value in space.origin.values()])
    exact = dense(loss_of(problem, space), origin)
    operator = Curvature(space)
    for v in directions(operator.size):
        torch.testing.assert_close(operator.matvec(v), exact @ v, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("merge", MERGES)
def test_the_hessian_in_the_inputs_is_the_dense_one(merge: str) -> None:
    problem = tiny(merge)
    space = Inputs(problem)
    exact = dense(loss_of(problem, space), problem.inputs["input"].flatten())
    operator = Curvature(space, part=slice(0, 1))
    for v in directions(16, 2):
        # the mean over three examples has a third of each one's own Hessian
        torch.testing.assert_close(
            operator.matvec(v), 3 * exact[:16, :16] @ v, rtol=1e-9, atol=1e-10
        )
