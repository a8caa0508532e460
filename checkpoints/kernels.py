"""Which kernels compute a network's convolutions: known faults avoided, and the rest checked.

A fast kernel may be wrong on one processor and right on all others; see `docs/kernels.md`. So no
run trusts one: the memory order is chosen by a rule about the network's convolutions, and then a
few examples' losses, gradient and Hessian product are compared with contiguous float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints.batch_norm import NORMS
from checkpoints.device import KERNELS, Kernels, channels_come_last, exact_arithmetic, in_order

if TYPE_CHECKING:
    from checkpoints.problem import Problem

# What a probe evaluates: the order of the highest derivative in each space, 0 for losses alone.
Derivatives: TypeAlias = Mapping[str, int]
NAMES = ("losses", "gradient", "Hessian product")
BLOCK = 8  # channels in a block of the kernels that oneDNN has for AVX2
EXAMPLES, POOL = 4, 32  # those compared, and among how many they are chosen
# Exact ties, of max pooling on a constant background say, are broken by noise of this share of an
# input's size: which of two equal values is passed on is for no kernel to decide.
TIES = 0.01
# How far rounding moves the operands, in units of the precision, and the error it may cause: four
# times what moving them so does to the float64 result, plus this share of that result.
MOVED = {torch.float64: 16.0, torch.float32: 16.0, torch.bfloat16: 2.0, torch.float16: 2.0}
SHARE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}
# Where a result cancels or underflows (a bias before a batch norm, the loss of a certain example),
# as much as torch's own kernels are off, up to this many roundings of the result's natural size.
NATURAL, LIKE_NATIVE = 64.0, 10.0
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
        contiguous: whether torch takes neither input nor weight for channels-last.
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


# What autocast, also one of the network's own, computes in a narrower type.
_MULTIPLYING = {
    getattr(torch.ops.aten, name)
    for name in ("convolution", "mm", "addmm", "bmm", "baddbmm", "linear", "matmul")
}


class _Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every convolution, whatever module or function calls it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = list[Convolution]()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in _MULTIPLYING:
            self.types |= {a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()}
        if func.overloadpacket is torch.ops.aten.convolution:
            inputs, weight, _, stride = args[:4]
            self.seen.append(
                Convolution(
                    # The weight gradient of a transposed one is that of a plain one whose input
                    # is the output, so that this is the input's axis of both.
                    channels=weight.shape[1],
                    kernel=tuple(weight.shape[2:]),
                    stride=tuple(stride),
                    contiguous=not (channels_come_last(inputs) or channels_come_last(weight)),
                    narrow=inputs.dtype != torch.float64,
                )
            )
        return func(*args, **(kwargs or {}))


def convolutions(
    problem: Problem, kernels: Kernels, mode: Callable[[nn.Module], nn.Module] = nn.Module.eval
) -> list[Convolution]:
    """Every convolution that the network calls for an example, in the order of these kernels.

    Backward passes, second ones too, differentiate in the operands of these calls: what a double
    backward pass adds are forward convolutions, of other shapes, which have no known fault.

    Cost: one forward pass of two examples; of one alone, the strides do not tell the order.
    """
    return _recorded(problem, kernels, mode).seen


def _recorded(
    problem: Problem, kernels: Kernels, mode: Callable[[nn.Module], nn.Module]
) -> _Convolutions:
    network = in_order(mode(copy.deepcopy(problem.model)), kernels)
    inputs = {name: in_order(value[:2], kernels) for name, value in problem.inputs.items()}
    recorded = _Convolutions()
    devices = [problem.device] if problem.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), exact_arithmetic(kernels), recorded:
        problem.outputs(network, inputs)
    return recorded


def without_known_faults(
    problem: Problem, mode: Callable[[nn.Module], nn.Module] = nn.Module.eval
) -> Kernels:
    """The fastest kernels among which none is known to be wrong for this network.

    Args:
        problem: its own kernels are not looked at.
        mode: `eval`, or `train` for a network whose branches differ in training.

    Cost: one forward pass of two examples; one more for a network that fails the rule.
    """
    first = convolutions(problem, KERNELS[0], mode)
    if problem.device.type != "cpu" or not any(call.wrong_gradient for call in first):
        return KERNELS[0]
    # A network may order its own feature maps, so that contiguous inputs are not enough.
    wrong = any(call.wrong_gradient for call in convolutions(problem, "contiguous", mode))
    return "native" if wrong else "contiguous"


def chosen(
    problem: Problem,
    derivatives: Derivatives,
    *,
    first: Kernels | None = None,
    say: Callable[[str], None] = lambda line: None,
    mode: Callable[[nn.Module], nn.Module] = nn.Module.eval,
    precision: torch.dtype | None = None,
    remedy: str = "Pass --dtype float64.",
) -> Choice:
    """The fastest kernels that are right for this network on this machine.

    Args:
        problem: its own kernels are not looked at.
        derivatives: what is going to be computed, {"weights": 2} say.
        first: begin with these: what an earlier part of the same run used.
        say: is handed a line where a faster choice is given up.
        mode: puts the network into the mode in which it will run.
        precision: of autocast; None computes in the network's own.
        remedy: what a refusal advises.

    Returns:
        The choice and its errors. An error is held to four times what rounding of the operands
        does to the float64 result, which knows about kinks: a ReLU that rounding switches changes
        a gradient. One disagreement is overruled by two agreements elsewhere.

    Raises:
        ValueError: no kernels agree with float64.

    Cost: two gradients of four examples, and two products where asked for, half of them in
        float64; three times as much where the two differ by more than a hundred roundings.
    """
    modes = [nn.Module.eval] if mode is nn.Module.eval else [nn.Module.eval, nn.Module.train]
    rules = [without_known_faults(problem, each) for each in modes]
    start = max(KERNELS.index(name) for name in (*rules, first or KERNELS[0]))
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
        f"disagree with float64, whichever kernels compute them ({'; '.join(failed)}). "
        f"{remedy}"
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
    """The same as `_compared`, on one set of examples.

    Tensor by tensor, and where the loss or the inputs are concerned example by example, so that
    nothing large hides what is small.
    """
    dtype = precision or _narrowest(problem)
    wide: tuple[Kernels, torch.dtype | None] = ("contiguous", torch.float64)
    if any(value.is_complex() for value in problem.model.parameters()):
        wide = ("native", None)
    point, right = _reference(problem, derivatives, mode, attempt, wide)
    if right is None:  # a network with a precision of its own inside
        wide = ("native", None)
        point, right = _reference(problem, derivatives, mode, attempt, wide)
    assert right is not None  # the last reference raises
    found = point.evaluated(derivatives, kernels, None, precision)
    errors, sizes = _apart(found, right), {name: part.norm for name, part in right.items()}
    suspect = [name for name, error in errors.items() if error > SHARE[dtype] * sizes[name]]
    worst = ""
    if suspect:
        native = _apart(point.evaluated(derivatives, "native", None, precision), right)
        noise = _noise(point, right, derivatives, wide, dtype)
        eps = torch.finfo(dtype).eps
        for name in suspect:
            excused = min(LIKE_NATIVE * native[name], NATURAL * eps * right[name].natural)
            tiny = torch.finfo(dtype).tiny * right[name].values.numel()  # what is smaller is 0
            allowed = 4 * noise[name] + SHARE[dtype] * sizes[name] + excused + tiny
            overflows = math.isinf(native[name]) and kernels != "native"
            if errors[name] > allowed and not overflows:
                share = errors[name] / (sizes[name] or 1.0)
                worst = worst or f"{right[name].of} off by {share:.0e}"
    return _summed(errors, right), worst


def _reference(
    problem: Problem,
    derivatives: Derivatives,
    mode: Callable[[nn.Module], nn.Module],
    attempt: int,
    wide: tuple[Kernels, torch.dtype | None],
) -> tuple[_Point, dict[str, _Part] | None]:
    """Where kernels are compared, and what is right there; None where float64 cannot be had.

    A little beside the examples, so that no values are tied; at them, where the network is not
    finite beside them, or refuses what is there.
    """
    for share in (TIES, 0.0):
        point = _Point.of(problem, attempt, mode, share)
        try:
            right = point.evaluated(derivatives, *wide, None)
        except Exception:  # the network may be the user's own and raise anything
            if not share and wide[1] is None:
                raise
            continue
        if not share or all(bool(part.values.isfinite().all()) for part in right.values()):
            return point, right
    return point, None


def _noise(
    point: _Point,
    right: Mapping[str, _Part],
    derivatives: Derivatives,
    wide: tuple[Kernels, torch.dtype | None],
    dtype: torch.dtype,
) -> dict[str, float]:
    """What moving the operands as rounding does changes of each part."""
    share = MOVED[dtype] * torch.finfo(dtype).eps
    moved = [
        _apart(point.moved(share, draw, wide[1]).evaluated(derivatives, *wide, None), right)
        for draw in range(DRAWS)
    ]
    return {name: max(_finite(other[name]) for other in moved) for name in right}


@dataclass(frozen=True, eq=False)
class _Part:
    """One tensor of a result, or one example's.

    Attributes:
        of: which result, in words.
        values: of any shape, in float64.
        natural: the norm that it would have, were the loss as steep as its outputs.
    """

    of: str
    values: Tensor
    natural: float

    @property
    def norm(self) -> float:
        """Of the finite values."""
        return float(self.values.where(self.values.isfinite(), 0.0).norm())


def _apart(found: Mapping[str, _Part], right: Mapping[str, _Part]) -> dict[str, float]:
    """The distance of each part; infinite where one is not finite and the reference is.

    Where the reference is not finite there is nothing to compare.
    """
    apart = {}
    for name, reference in right.items():
        there = reference.values.isfinite()
        difference = (found[name].values - reference.values).where(there, 0.0)
        apart[name] = float(difference.norm()) if bool(difference.isfinite().all()) else math.inf
    return apart


def _summed(errors: Mapping[str, float], right: Mapping[str, _Part]) -> dict[str, float]:
    """The relative error of each result as a whole; none of what could not be compared."""
    told = {}
    for of in dict.fromkeys(part.of for part in right.values()):
        names = [name for name, part in right.items() if part.of == of]
        if any(bool(right[name].values.isfinite().any()) for name in names):
            size = math.hypot(*(right[name].norm for name in names))
            told[of] = math.hypot(*(errors[name] for name in names)) / (size or 1.0)
    return told


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


@dataclass(frozen=True, eq=False)
class _Point:
    """A few examples and the network in float64, where kernels are compared."""

    problem: Problem
    network: nn.Module
    inputs: dict[str, Tensor]
    targets: Tensor

    @classmethod
    def of(
        cls, problem: Problem, attempt: int, mode: Callable[[nn.Module], nn.Module], share: float
    ) -> _Point:
        """The examples of one attempt, each moved by noise within the range of its values."""
        rows = _spread(problem, attempt).to(problem.device)
        network = mode(copy.deepcopy(problem.model)).requires_grad_(requires_grad=False)
        generator = torch.Generator().manual_seed(attempt)
        inputs = {
            name: _noisy(value[rows].double(), share, generator)
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
    ) -> dict[str, _Part]:
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
        found: dict[str, _Part] = {}
        where = self.problem.device
        devices = [where] if where.type == "cuda" else []
        for space, order in derivatives.items():
            own = dict(network.named_parameters()) if space == "weights" else inputs
            leaves = {
                name: value.detach().clone().requires_grad_()
                for name, value in own.items()
                if value.is_floating_point() or value.is_complex()
            }
            call = partial(_called, network, leaves if space == "weights" else {})
            given = inputs if space == "weights" else inputs | leaves
            with (
                torch.random.fork_rng(devices),
                torch.set_grad_enabled(order > 0),
                exact_arithmetic(kernels),
            ):
                torch.manual_seed(0)  # for a network that draws, the same numbers every time
                with torch.autocast(where.type, precision, enabled=precision is not None):
                    outputs = self.problem.outputs(call, given)
                losses = self.problem.losses(outputs, self.targets)
                results = [
                    [(loss, 1.0) for loss in losses],
                    *_derived(losses.sum(), outputs, list(leaves.values()), order),
                ]
            for name, rows in zip(NAMES, results, strict=False):
                of = f"{name} in the {space}"
                for number, (value, natural) in enumerate(rows):
                    real = torch.view_as_real(value) if value.is_complex() else value
                    real = real.detach().double()
                    rows_of = real if space == "inputs" and real.ndim else real[None]
                    for row, values in enumerate(rows_of):
                        found[f"{of} {number} {row}"] = _Part(of, values, natural)
        return found


def _spread(problem: Problem, attempt: int) -> Tensor:
    """Which examples, from the largest loss among the first to the smallest.

    Of certain examples alone, whose slopes are smaller than a rounding of 1, float32 tells nothing.
    """
    pool = min(len(problem), POOL)
    inputs = {name: value[:pool] for name, value in problem.inputs.items()}
    devices = [problem.device] if problem.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), exact_arithmetic("native"):
        network = in_order(copy.deepcopy(problem.model).eval(), "native")
        losses = problem.losses(problem.outputs(network, inputs), problem.targets[:pool])
    order = losses.nan_to_num(0.0, 0.0, 0.0).cpu().argsort(descending=True, stable=True)
    count = min(EXAMPLES, pool)
    return order[(attempt + torch.arange(count) * pool // count) % pool]


def _called(network: nn.Module, state: dict[str, Tensor], *args: Tensor, **kwargs: Tensor) -> Any:
    return functional_call(network, state, args, kwargs)


Results: TypeAlias = list[tuple[Tensor, float]]


def _derived(loss: Tensor, outputs: Any, leaves: list[Tensor], order: int) -> Iterator[Results]:
    """The gradient, and the product of the Hessian with a fixed vector, as far as there are any.

    Each tensor comes with the natural size of the whole: that of a loss whose slope in every output
    is about 1.
    """
    if not order or not loss.requires_grad:
        return
    slopes = _slopes(outputs, leaves)
    gradient = torch.autograd.grad(
        loss, leaves, create_graph=order > 1, retain_graph=True, materialize_grads=True
    )
    steep = math.hypot(*(float(slope.norm()) for slope in slopes))
    yield [(g, steep) for g in gradient]
    if order < 2:
        return
    generator = torch.Generator().manual_seed(0)
    vector = [
        torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
        for leaf in leaves
    ]
    along = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
    bend = sum(float((s * v).abs().sum()) for s, v in zip(slopes, vector, strict=True))
    try:
        if cast(Tensor, along).requires_grad:
            product = torch.autograd.grad(cast(Tensor, along).real, leaves, materialize_grads=True)
            yield [(p, steep * bend) for p in product]
    except (RuntimeError, NotImplementedError) as error:
        # A layer without a second derivative: the probe that needs it says which.
        if "derivative" not in str(error) and "not implemented" not in str(error):
            raise


def _slopes(outputs: Any, leaves: list[Tensor]) -> list[Tensor]:
    """The gradient of a random sum of the outputs; zero where outputs are no real tensor."""
    if not (isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.requires_grad):
        return [torch.zeros_like(leaf) for leaf in leaves]
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    found = torch.autograd.grad(outputs, leaves, seeds, retain_graph=True, materialize_grads=True)
    return [slope.detach() for slope in found]


def _narrowest(problem: Problem) -> torch.dtype:
    """The least precise type of weights and inputs, and of what is multiplied inside."""
    tensors = (*problem.model.parameters(), *problem.inputs.values())
    types = {value.dtype for value in tensors if value.is_floating_point()}
    types |= {value.real.dtype for value in tensors if value.is_complex()}
    types |= _recorded(problem, "contiguous", nn.Module.eval).types
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def _noisy(value: Tensor, share: float, generator: torch.Generator) -> Tensor:
    if not share or not value.numel():
        return value
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    moved = value + share * value.abs().amax() * noise
    return moved.clamp(value.amin(), value.amax()) if value.amin() < value.amax() else moved


def training_mode(problem: Problem) -> Callable[[nn.Module], nn.Module]:
    """The mode in which a training's kernels are compared: training, but for what is random.

    Dropout is off. Where something else in the network draws random numbers, only its batch norms
    are in training: two evaluations would not be of one function.
    """

    def quiet(network: nn.Module) -> nn.Module:
        network.train()
        for module in network.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        return network

    def norms_alone(network: nn.Module) -> nn.Module:
        network.eval()
        for module in network.modules():
            if isinstance(module, NORMS):
                module.train()
        return network

    inputs = {name: value[:EXAMPLES] for name, value in problem.inputs.items()}
    drawn = []
    for seed in (0, 1):
        devices = [problem.device] if problem.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            drawn.append(problem.outputs(quiet(copy.deepcopy(problem.model)), inputs))
    return quiet if torch.equal(*drawn) else norms_alone
