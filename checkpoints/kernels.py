"""Which kernels compute a network's convolutions: known faults avoided, and the rest checked.

A fast kernel may be wrong on one processor and right on all others; see `docs/kernels.md`. So no
run trusts one: the memory order is chosen by a rule about the network's convolutions, and then a
few examples' losses, gradient and Hessian product are compared with contiguous float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints.batch_norm import NORMS
from checkpoints.device import KERNELS, Kernels, exact_arithmetic, in_default_order, in_order

if TYPE_CHECKING:
    from checkpoints.problem import Problem

# What a probe evaluates: the order of the highest derivative in each space, 0 for losses alone.
Derivatives: TypeAlias = Mapping[str, int]
NAMES = ("losses", "gradient", "Hessian product")
BLOCK = 8  # channels in a block of the kernels that oneDNN has for AVX2
EXAMPLES = 4
# Exact ties, of max pooling on a constant background say, are broken by noise of this share of an
# input's size: which of two equal values is passed on is for no kernel to decide.
TIES = 0.01
# How far rounding moves the operands, in units of the precision, and the error it may cause: four
# times what moving them so does to the float64 result, plus this share of that result.
MOVED = {torch.float64: 16.0, torch.float32: 16.0, torch.bfloat16: 2.0}
SHARE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 0.1}
DRAWS, TRIES = 2, 3


@dataclass(frozen=True)
class Choice:
    """The kernels of a run, and how far from float64 they were found to be.

    Attributes:
        kernels: the choice.
        errors: {"gradient in the weights": |x - reference| / |reference|, ...}.
    """

    kernels: Kernels
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Convolution:
    """One call of a convolution, as it reaches the kernels.

    Attributes:
        channels: in each group, of the input of the convolution whose weight gradient this one has.
        kernel: its size along each axis.
        stride: along each axis.
        contiguous: whether input and weight both are, in the default order.
        narrow: float32 or narrower, which oneDNN computes; float64 it does not.
    """

    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    contiguous: bool
    narrow: bool

    @property
    def wrong_gradient(self) -> bool:
        """Whether oneDNN's weight gradient of it may be wrong, or crash.

        On a processor without AVX-512, with a 1x1 kernel, a stride, and fewer channels than a
        block, in channels-last order. Held to be wrong everywhere, so that one network has one
        memory order on every machine.

        Source: github.com/uxlfoundation/oneDNN/issues/6035.
        """
        pointwise = all(size == 1 for size in self.kernel)
        return (
            pointwise
            and any(step > 1 for step in self.stride)
            and self.channels < BLOCK
            and self.narrow
            and not self.contiguous
        )


class _Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every convolution, whatever module or function calls it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = list[Convolution]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket is torch.ops.aten.convolution:
            inputs, weight, _, stride = args[:4]
            self.seen.append(
                Convolution(
                    # The weight gradient of a transposed one is that of a plain one whose input
                    # is the output, so that this is the input's axis of both.
                    channels=weight.shape[1],
                    kernel=tuple(weight.shape[2:]),
                    stride=tuple(stride),
                    contiguous=in_default_order(inputs) and in_default_order(weight),
                    narrow=inputs.dtype != torch.float64,
                )
            )
        return func(*args, **(kwargs or {}))


def convolutions(problem: Problem, kernels: Kernels) -> list[Convolution]:
    """Every convolution that the network calls for an example, in the order of these kernels.

    Backward passes, second ones too, differentiate in the operands of these calls: what a double
    backward pass adds are forward convolutions, of other shapes, which have no known fault.

    Cost: one forward pass of one example.
    """
    network = in_order(copy.deepcopy(problem.model).eval(), kernels)
    inputs = {name: in_order(value[:1], kernels) for name, value in problem.inputs.items()}
    recorded = _Convolutions()
    with torch.no_grad(), exact_arithmetic(kernels), recorded:
        problem.outputs(network, inputs)
    return recorded.seen


def without_known_faults(problem: Problem) -> Kernels:
    """The fastest kernels among which none is known to be wrong for this network.

    Cost: one forward pass of one example; two more for a network that fails the rule.
    """
    first = convolutions(problem, KERNELS[0])
    if problem.device.type != "cpu" or not any(call.wrong_gradient for call in first):
        return KERNELS[0]
    # A network may order its own feature maps, so that contiguous inputs are not enough.
    wrong = any(call.wrong_gradient for call in convolutions(problem, "contiguous"))
    return "native" if wrong else "contiguous"


def chosen(
    problem: Problem,
    derivatives: Derivatives,
    *,
    first: Kernels | None = None,
    say: Callable[[str], None] = lambda line: None,
    mode: Callable[[nn.Module], nn.Module] = nn.Module.eval,
    precision: torch.dtype | None = None,
) -> Choice:
    """The fastest kernels that are right for this network on this machine.

    Args:
        problem: its own kernels are not looked at.
        derivatives: what is going to be computed, {"weights": 2} say.
        first: begin with these: what an earlier part of the same run used.
        say: is handed a line where a faster choice is given up.
        mode: puts the network into the mode in which it will run.
        precision: of autocast; None computes in the network's own.

    Returns:
        The choice and its errors. An error is held to four times what rounding of the operands
        does to the float64 result, which knows about kinks: a ReLU that rounding switches changes
        a gradient. One disagreement is overruled by two agreements elsewhere.

    Raises:
        ValueError: no kernels agree with float64.

    Cost: two gradients of four examples, and two products where asked for, half of them in
        float64; three times as much where the two differ by more than a hundred roundings.
    """
    rule = without_known_faults(problem)
    start = max(KERNELS.index(rule), KERNELS.index(first or KERNELS[0]))
    failed: list[str] = []
    for kernels in KERNELS[start:]:
        errors, worst = _compared(problem, derivatives, kernels, mode, precision)
        if not worst:
            return Choice(kernels, errors)
        failed.append(f"{kernels}: {worst}")
        if kernels != KERNELS[-1]:
            following = KERNELS[KERNELS.index(kernels) + 1]
            say(f"kernels: {failed[-1]} against float64 on this machine; trying {following}.")
    raise ValueError(
        f"the network's results in {str(precision or _narrowest(problem)).removeprefix('torch.')} "
        f"disagree with float64, whichever kernels compute them ({'; '.join(failed)}). Pass "
        "--dtype float64."
    )


def _compared(
    problem: Problem,
    derivatives: Derivatives,
    kernels: Kernels,
    mode: Callable[[nn.Module], nn.Module],
    precision: torch.dtype | None,
) -> tuple[dict[str, float], str]:
    """The errors of these kernels, and the one that is too large, in words; empty where none is."""
    agreed, failures = 0, ""
    errors: dict[str, float] = {}
    for attempt in range(TRIES):
        errors, worst = _tried(problem, derivatives, kernels, mode, precision, attempt)
        agreed += not worst
        failures = failures or worst
        if agreed == (2 if failures else 1):
            return errors, ""
        if attempt + 1 - agreed > TRIES - 2:
            break
    return errors, failures


def _tried(
    problem: Problem,
    derivatives: Derivatives,
    kernels: Kernels,
    mode: Callable[[nn.Module], nn.Module],
    precision: torch.dtype | None,
    attempt: int,
) -> tuple[dict[str, float], str]:
    """The same as `_compared`, on one set of examples."""
    dtype = precision or _narrowest(problem)
    point = _Point.of(problem, attempt, mode)
    found = point.evaluated(derivatives, kernels, None, precision)
    wide: tuple[Kernels, torch.dtype | None] = ("contiguous", torch.float64)
    try:
        right = point.evaluated(derivatives, *wide, None)
    except RuntimeError:  # a network with a precision of its own inside
        wide = ("native", None)
        right = point.evaluated(derivatives, *wide, None)
    errors = {name: _apart(value, right[name], 1.0) for name, value in found.items()}
    sizes = {name: _apart(value, right[name], 0.0) for name, value in found.items()}
    suspect = [name for name, error in errors.items() if error > SHARE[dtype] * sizes[name]]
    worst = ""
    if suspect:
        others = [
            point.moved(MOVED[dtype] * torch.finfo(dtype).eps, draw, wide[1]).evaluated(
                derivatives, *wide, None
            )
            for draw in range(DRAWS)
        ]
        for name in suspect:
            noise = max(_apart(other[name], right[name], 1.0) for other in others)
            if errors[name] > 4 * noise + SHARE[dtype] * sizes[name] and not worst:
                worst = f"{name} off by {errors[name] / (sizes[name] or 1.0):.0e}"
    return {name: error / (sizes[name] or 1.0) for name, error in errors.items()}, worst


def _apart(value: Tensor, reference: Tensor, share: float) -> float:
    """|share * value - reference|, over the entries that are finite in both."""
    one, two = value.double(), reference.double()
    there = one.isfinite() & two.isfinite()
    return float((share * one - two).where(there, 0.0).norm())


@dataclass(frozen=True, eq=False)
class _Point:
    """A few examples and the network in float64, where kernels are compared."""

    problem: Problem
    network: nn.Module
    inputs: dict[str, Tensor]
    targets: Tensor

    @classmethod
    def of(cls, problem: Problem, attempt: int, mode: Callable[[nn.Module], nn.Module]) -> _Point:
        """The examples of one attempt, each a little beside itself, so that no values are tied."""
        count = len(problem)
        rows = torch.arange(EXAMPLES * attempt, EXAMPLES * (attempt + 1)) % count
        rows = rows[: min(EXAMPLES, count)].to(problem.device)
        network = mode(copy.deepcopy(problem.model)).requires_grad_(requires_grad=False)
        generator = torch.Generator().manual_seed(attempt)
        inputs = {
            name: _noisy(value[rows].double(), TIES, generator)
            if value.is_floating_point()
            else value[rows]
            for name, value in problem.inputs.items()
        }
        return cls(problem, network, inputs, problem.targets[rows])

    def moved(self, share: float, seed: int, dtype: torch.dtype | None) -> _Point:
        """The same with every operand moved as rounding would move it, in float64 or as it is."""
        generator = torch.Generator().manual_seed(1000 + seed)
        network = copy.deepcopy(self.network).to(dtype)
        with torch.no_grad():
            for value in network.parameters():
                value.mul_(1 + share * torch.randn(value.shape, generator=generator).to(value))
        inputs = {
            name: _noisy(value, share, generator) if value.is_floating_point() else value
            for name, value in self.inputs.items()
        }
        return _Point(self.problem, network, inputs, self.targets)

    def evaluated(
        self,
        derivatives: Derivatives,
        kernels: Kernels,
        dtype: torch.dtype | None,
        precision: torch.dtype | None,
    ) -> dict[str, Tensor]:
        """Losses, gradients and Hessian products by name, as asked for; None is the problem's."""
        network = copy.deepcopy(self.network)
        network = in_order(network.to(dtype) if dtype else network, kernels)
        inputs = {
            name: in_order(
                value.to(dtype or own.dtype) if own.is_floating_point() else value, kernels
            )
            for (name, value), own in zip(
                self.inputs.items(), self.problem.inputs.values(), strict=True
            )
        }
        found: dict[str, Tensor] = {}
        device = self.problem.device.type
        for space, order in derivatives.items():
            own = dict(network.named_parameters()) if space == "weights" else inputs
            leaves = {
                name: value.detach().clone().requires_grad_()
                for name, value in own.items()
                if value.is_floating_point()
            }
            call = partial(_called, network, leaves if space == "weights" else {})
            given = inputs if space == "weights" else inputs | leaves
            with torch.set_grad_enabled(order > 0), exact_arithmetic(kernels):
                with torch.autocast(device, precision, enabled=precision is not None):
                    outputs = self.problem.outputs(call, given)
                losses = self.problem.losses(outputs, self.targets)
                values = [losses, *_derived(losses.sum(), list(leaves.values()), order)]
            names = (f"{name} in the {space}" for name in NAMES)
            found |= {name: value.detach() for name, value in zip(names, values, strict=False)}
        return found


def _called(network: nn.Module, state: dict[str, Tensor], *args: Tensor, **kwargs: Tensor) -> Any:
    return functional_call(network, state, args, kwargs)


def _derived(loss: Tensor, leaves: list[Tensor], order: int) -> Iterator[Tensor]:
    """The gradient, and the product of the Hessian with a fixed vector, as far as there are any."""
    if not order or not loss.requires_grad:
        return
    gradient = torch.autograd.grad(loss, leaves, create_graph=order > 1, materialize_grads=True)
    yield _flat(gradient)
    if order < 2:
        return
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(leaf.shape, generator=generator).to(leaf) for leaf in leaves]
    along = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
    try:
        if cast(Tensor, along).requires_grad:
            yield _flat(torch.autograd.grad(cast(Tensor, along), leaves, materialize_grads=True))
    except (RuntimeError, NotImplementedError) as error:
        # A layer without a second derivative: the probe that needs it says which.
        if "derivative" not in str(error) and "not implemented" not in str(error):
            raise


def _narrowest(problem: Problem) -> torch.dtype:
    """The least precise of the floating-point types of weights and inputs."""
    tensors = (*problem.model.parameters(), *problem.inputs.values())
    types = {value.dtype for value in tensors if value.is_floating_point()}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _noisy(value: Tensor, share: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    return value + share * value.abs().amax() * noise


def training_mode(network: nn.Module) -> nn.Module:
    """As in training, but for what is random: batch norms take the batch's statistics."""
    network.eval()
    for module in network.modules():
        if isinstance(module, NORMS):
            module.train()
    return network
