"""Problems whose landscape is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.models.aggregation import ScaledResidual
from checkpoints.models.resnet import ResNet
from checkpoints.models.spatial_attention import SpatialAttention
from checkpoints.problem import Problem


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * ((outputs - targets) ** 2).sum(dim=1)


@dataclass(frozen=True, eq=False)
class LinearRegression:
    """Mean over examples of |W x - y|^2 / 2, in float64: a quadratic in W and in x."""

    weight: Tensor
    inputs: Tensor
    targets: Tensor

    @classmethod
    def random(
        cls, seed: int = 0, count: int = 17, ins: int = 5, outs: int = 3
    ) -> LinearRegression:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        return cls(draw(outs, ins), draw(count, ins), draw(count, outs))

    def problem(self, batch_size: int = 4) -> Problem:
        model = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=False).double()
        with torch.no_grad():
            model.weight.copy_(self.weight)
        batch = (self.inputs, self.targets)
        return Problem.of(model, [batch], half_squared_error, batch_size=batch_size)

    def losses(self, weight: Tensor, inputs: Tensor) -> Tensor:
        return half_squared_error(inputs @ weight.T, self.targets)


def make_problem(
    device: torch.device,
    *,
    merge: str = "add",
    count: int = 23,
    dtype: torch.dtype = torch.float64,
    batch_size: int = 8,
) -> Problem:
    """A small untrained ResNet with uneven batch-norm statistics, on random images."""
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = ResNet(8, width=4, channels=1, merge=merge)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    problem = Problem.of(network, [(images, labels)], batch_size=batch_size)
    return problem.to(device, dtype)


def walked(problem: Problem, count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """State dicts of networks on a random walk that ends near that of the problem."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(problem.model.named_parameters())
    now, states = dict(problem.model.state_dict()), []
    for _ in range(count):
        for name in parameters:
            drawn = torch.randn(now[name].shape, generator=generator, dtype=torch.float64)
            now[name] = now[name] + 0.05 * drawn.to(now[name])
        states.append(dict(now))
    return states[::-1]


def attend(network: Any, **options: Any) -> None:
    """Put spatial attention into the second stage of a ResNet of width 4, and scale it by 0.5."""
    parameter = next(network.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        attention = SpatialAttention(8, **{"heads": 2, **options})
    block = ScaledResidual(attention).to(parameter)
    nn.init.constant_(block.scale, 0.5)
    network.layer2[0].attention = block
