"""A few examples with their logits, losses and gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints.problem import Tensors
from landscape.core.jacobian import gradient, shaped
from landscape.core.spaces import Inputs


@dataclass(frozen=True, eq=False)
class Examples:
    """Some examples in the precision of a space, and the network's outputs for them.

    Args:
        space: the only caller of the network.
        inputs: {name: (n, ...)}.
        targets: (n, ...).
        logits: (n, classes) float64; of sequences all positions' in one row.
        losses: (n,) float64.
        gradients: (n, d) float64, of the loss.
        shape: of an example's outputs, (classes) or (classes, T).
    """

    space: Inputs
    inputs: Tensors
    targets: Tensor
    logits: Tensor
    losses: Tensor
    gradients: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, space: Inputs, inputs: Tensors, targets: Tensor) -> Examples:
        """Evaluate them: one forward and one backward pass.

        Args:
            space: the only caller of the network.
            inputs: {name: (n, ...)}, in its precision.
            targets: (n, ...).
        """
        problem = space.problem
        logits, rows = gradient(space, inputs, lambda outputs: problem.losses(outputs, targets))
        losses = problem.losses(logits, targets)
        shape = logits.shape[1:]
        return cls(space, inputs, targets, logits.double().flatten(1), losses, rows, shape)

    @classmethod
    def numbered(cls, space: Inputs, numbers: list[int]) -> Examples:
        """Evaluate these examples of the space's problem, by their positions."""
        inputs = {name: value[numbers] for name, value in space.problem.inputs.items()}
        return cls.of(space, inputs, space.problem.targets[numbers])

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the network is evaluated in."""
        return self.space.problem.dtype

    def moved(self, steps: Tensor) -> Tensors:
        """The inputs plus rows (n, d), added in float64 and rounded once, not clipped."""
        wide = {name: value.double() for name, value in self.inputs.items()}
        parts = shaped(steps, wide)
        return {n: (wide[n] + parts[n]).to(value) for n, value in self.inputs.items()}

    def at(self, steps: Tensor) -> Examples:
        """Evaluate the examples displaced by rows (n, d)."""
        return Examples.of(self.space, self.moved(steps), self.targets)

    def outputs_at(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and losses (n,) of the displaced examples: one forward pass."""
        with torch.no_grad():
            logits = self.space.outputs(self.moved(steps))
        return logits.double().flatten(1), self.space.problem.losses(logits, self.targets)

    def hits(self, logits: Tensor) -> Tensors:
        """{"accuracy": (n,)}, from 0 to 1, for these logits; empty if it is not defined."""
        correct = self.space.problem.correct
        if correct is None:
            return {}
        outputs = logits.view(-1, *self.shape)
        return {"accuracy": correct(outputs, self.targets).double()}
