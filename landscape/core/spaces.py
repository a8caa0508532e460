"""The two spaces in which a problem's loss is a landscape; the only module that calls a model."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from checkpoints import hooks, kernels
from checkpoints.batch_norm import NORMS, recompute_statistics
from checkpoints.device import exact_arithmetic, in_order
from checkpoints.differentiable import twice_differentiable
from checkpoints.problem import Problem, Tensors
from landscape.core.fingerprint import fingerprint
from landscape.core.summary import mean_and_stderr

log = logging.getLogger(__name__)
# Forward passes of about this size were the fastest, or within a few per cent of it, on every CPU
# and network tried; another size is taken only where it gains more than a tenth.
USUAL_BATCH = 100
EVERYTHING = slice(None)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The loss at one point, example by example.

    Args:
        losses: (N,) float64, nat.
        hits: (N,) whether each example is classified correctly, bool, or the share of its
            positions that are, float64; None if not defined.
    """

    losses: NDArray[np.float64]
    hits: NDArray[np.bool_] | NDArray[np.float64] | None

    def summary(self) -> dict[str, float]:
        """Mean loss and accuracy over the examples, with their standard errors.

        The standard error is that of a mean of N independent examples, s / sqrt(N) with the
        unbiased s; it is NaN for a single example. inf and NaN are kept.
        """
        measures = {"loss": self.losses}
        if self.hits is not None:
            measures["accuracy"] = self.hits.astype(np.float64)
        row: dict[str, float] = {}
        for name, values in measures.items():
            mean, stderr = mean_and_stderr(values)
            row |= {name: float(mean), f"{name}_stderr": float(stderr)}
        return row


class Space(ABC):
    """The coordinates that move, and the evaluation of the problem's loss at a point.

    The network is a private copy: the problem's own is never changed.

    Args:
        problem: with a batch size (see `prepared`).

    Raises:
        ValueError: a batch norm without running statistics, with which examples depend on each
            other.

    Attributes:
        origin: {name: tensor}, the point of the problem itself. Do not modify.
        replacements: the arguments of the `replacing` contexts that are open.
    """

    origin: Tensors

    def __init__(self, problem: Problem) -> None:
        for name, module in problem.model.named_modules():
            if isinstance(module, NORMS) and module.running_mean is None:
                raise ValueError(
                    f"{name or 'the model'} is a batch norm without running statistics: what it "
                    "makes of an example depends on the batch it is in. Expected "
                    "track_running_stats=True, and statistics of the training."
                )
        self.problem = problem
        self._kernels = problem.kernels or kernels.without_known_faults(problem)
        network = copy.deepcopy(problem.model).eval().requires_grad_(requires_grad=False)
        self._network = in_order(network, self._kernels)
        self.replacements: tuple[Mapping[str, Callable[[Tensor], Tensor]], ...] = ()

    @abstractmethod
    def _moved(self, point: Tensors) -> Tensors:
        """Put the private network at `point`; return the raw inputs to evaluate it on."""

    @abstractmethod
    def outputs(self, point: Tensors, part: slice = EVERYTHING) -> Any:
        """The network's outputs at `point`, differentiable in it any number of times.

        In eval mode no example's output depends on another example. Batch norm's statistics are
        those of the origin, also if the problem recomputes them at every point: derivatives are
        taken with statistics held fixed. To keep TF32 off in the backward pass too, call and
        differentiate inside `exact()`.

        Args:
            point: in the weights, the names and shapes of `origin`; in the inputs, examples,
                {name: (n, ...)}, any number of them.
            part: which examples; of the problem in the weights, of `point` in the inputs.

        Returns:
            Logits (n, classes), or whatever the model returns; the loss of each example is
            `problem.losses(outputs, targets)`.

        Cost: one forward pass of these examples; the memory of their activations until the backward
        pass.
        """

    def exact(self) -> AbstractContextManager[None]:
        """The arithmetic of this space, a context in which to differentiate its outputs."""
        return exact_arithmetic(self._kernels)

    @property
    def tensors(self) -> Tensors:
        """Parameters and buffers of the network, by name. Do not modify."""
        return dict(self._network.named_parameters()) | dict(self._network.named_buffers())

    def fingerprint(self) -> Hashable | None:
        """What `outputs_of` and the losses depend on besides tensors: see `core.fingerprint`.

        It is that of the network as it is now, with the replacements that are open.
        """
        problem = self.problem
        treatment = (problem.loss, problem.temperature, problem.normalization, self._kernels)
        settings = (torch.get_default_dtype(), torch.is_autocast_enabled(problem.device.type))
        return fingerprint((self._network, treatment, settings), self.tensors.values())

    def inner_values(self) -> dict[str, tuple[int, ...]]:
        """The names of the network's inner values, with their shapes for one example.

        Cost: one forward pass of one example.
        """
        inputs = {name: value[:1] for name, value in self.problem.inputs.items()}
        return hooks.names_during(self._network, lambda: self.outputs_of(inputs))

    def reading(self, patterns: str | Sequence[str]) -> AbstractContextManager[Tensors]:
        """Keep inner values of the network, wherever it is called: see `hooks.reading`.

        They are those of the last batch, and differentiable in the point if outputs are.
        """
        return hooks.reading(self._network, patterns)

    @contextmanager
    def replacing(self, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Make this the landscape of a network with inner values replaced: see `hooks.replacing`.

        Everything computed inside belongs to that network: outputs, losses, derivatives, recomputed
        statistics. Code that caches between calls must compare `replacements`.
        """
        before = self.replacements
        with hooks.replacing(self._network, functions):
            self.replacements = (*before, functions)
            try:
                yield
            finally:
                self.replacements = before

    def outputs_of(self, inputs: Tensors, tensors: Tensors | None = None) -> Any:
        """The network's outputs for any raw inputs.

        Args:
            inputs: {name: (n, ...)}.
            tensors: other values of parameters and buffers; those not named keep their values.
        """

        def moved(*args: Tensor, **kwargs: Tensor) -> Any:
            return functional_call(self._network, cast(Tensors, tensors), args, kwargs)

        call = self._network if tensors is None else moved
        batch = {name: in_order(value, self._kernels) for name, value in inputs.items()}
        with self.exact(), twice_differentiable():
            return self.problem.outputs(call, batch)

    def _recompute_statistics(self) -> None:
        problem = self.problem
        recompute_statistics(self._network, problem.outputs, problem.calibration, self._kernels)

    def parts(self, size: int = 0) -> Iterator[slice]:
        """All examples of the problem, a batch of `size` at a time (the problem's own if 0)."""
        size = size or self.problem.batch_size or USUAL_BATCH
        for start in range(0, len(self.problem), size):
            yield slice(start, min(start + size, len(self.problem)))

    @torch.inference_mode()
    def evaluate(self, point: Tensors) -> Evaluation:
        """The losses of all examples at `point`.

        Args:
            point: the names and shapes of `origin`.

        Returns:
            One loss per example, not averaged over batches. Exactly the same values for the same
            point and batch size, whatever was evaluated before.

        Raises:
            ValueError: the loss does not return one value per example.

        Cost: one forward pass of all examples, in float32 without TF32 unless the problem has
        another dtype.
        """
        problem = self.problem
        inputs = self._moved(point)
        losses, hits = [], []
        with self.exact():
            for part in self.parts():
                outputs = self.outputs_of({name: value[part] for name, value in inputs.items()})
                losses.append(problem.losses(outputs, problem.targets[part]))
                if problem.correct is not None:
                    hits.append(problem.correct(outputs, problem.targets[part]))
        return Evaluation(
            torch.cat(losses).cpu().numpy(), torch.cat(hits).cpu().numpy() if hits else None
        )


class Weights(Space):
    """The space of a network's parameters.

    Args:
        problem: with a batch size.
        statistics: let batch norm's running means and variances move as well. Along a line to
            another network both ends are then those two networks.

    Attributes:
        parameters: the names in `origin` of parameters, not statistics.
    """

    def __init__(self, problem: Problem, *, statistics: bool = False) -> None:
        super().__init__(problem)
        self._places = dict(self._network.named_parameters())
        if not self._places:
            raise ValueError("the model has no parameters, so there is no weight space to move in.")
        self.parameters = frozenset(self._places)
        if statistics:
            self._places |= {
                f"{name}.{which}" if name else which: getattr(module, which)
                for name, module in self._network.named_modules()
                if isinstance(module, NORMS) and module.track_running_stats
                for which in ("running_mean", "running_var")
            }
        self.origin = {name: place.detach().clone() for name, place in self._places.items()}
        if problem.batch_norm == "recompute":
            self._recompute_statistics()

    def outputs(self, point: Tensors, part: slice = EVERYTHING) -> Any:
        """See `Space.outputs`."""
        return self.outputs_of({n: value[part] for n, value in self.problem.inputs.items()}, point)

    def _moved(self, point: Tensors) -> Tensors:
        torch._foreach_copy_(list(self._places.values()), [point[name] for name in self._places])
        if self.problem.batch_norm == "recompute":
            self._recompute_statistics()
        return self.problem.inputs


class Inputs(Space):
    """The space of the examples: each moves independently, the network is fixed."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        integer = [name for name, value in problem.inputs.items() if not value.is_floating_point()]
        if integer:
            raise ValueError(f"inputs {', '.join(integer)} are integers; only real ones can move.")
        self.origin = problem.inputs
        if problem.batch_norm == "recompute":
            self._recompute_statistics()

    def outputs(self, point: Tensors, part: slice = EVERYTHING) -> Any:
        """See `Space.outputs`."""
        return self.outputs_of({name: value[part] for name, value in point.items()})

    def _moved(self, point: Tensors) -> Tensors:
        return point
