"""Choose the kernels that compute a network's convolutions, and check them against float64.

A fast kernel may be wrong on one processor and right on all others; see `docs/kernels.md`. So no
run trusts one: a rule about the network's convolutions avoids known faults, and then losses,
gradient and Hessian-vector product of a few examples are compared with contiguous float64.
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

# {space: order of the highest derivative that a probe computes in it}, 0 for losses only.
Derivatives: TypeAlias = Mapping[str, int]
NAMES = ("losses", "gradient", "Hessian product")
BLOCK = 8  # channels per block in oneDNN's AVX2 kernels
EXAMPLES, POOL = 4, 32  # number of examples compared, and of those they are chosen from
# Noise relative to an input's largest value. It breaks exact ties, e.g. in max pooling on a
# constant background, where kernels may pass on either of two equal values.
TIES = 0.01
# MOVED: perturbation of the operands that models rounding, in units of machine epsilon. The error
# allowed is four times its effect on the float64 result, plus SHARE of that result.
MOVED = {torch.float64: 16.0, torch.float32: 16.0, torch.bfloat16: 2.0, torch.float16: 2.0}
SHARE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}
# Allowed in addition, since a result may cancel or underflow (a bias before a batch norm, the loss
# of a confident example): LIKE_NATIVE times the error of torch's own kernels, but at most NATURAL
# roundings of the result's natural size.
NATURAL, LIKE_NATIVE = 64.0, 10.0
DRAWS, TRIES = 2, 3  # random perturbations of the operands; sets of examples


@dataclass(frozen=True)
class Choice:
    """The kernels of a run, and their measured errors relative to float64.

    Attributes:
        kernels: the kernels chosen.
        errors: {"gradient in the weights": |x - reference| / |reference|, ...}.
    """

    kernels: Kernels
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Convolution:
    """One convolution call, as the kernels receive it.

    Attributes:
        channels: input channels per group; for a transposed convolution, those of the plain one
            that has the same weight gradient.
        kernel: kernel size per axis.
        stride: stride per axis.
        contiguous: whether torch treats neither input nor weight as channels-last.
        narrow: float32 or narrower; oneDNN does not compute float64.
    """

    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    contiguous: bool
    narrow: bool

    @property
    def wrong_gradient(self) -> bool:
        """Whether oneDNN's weight gradient of this call may be wrong, or crash.

        The fault needs a processor without AVX-512, a 1x1 kernel, a stride, fewer channels than a
        block, and channels-last format. The processor is ignored here, so that a network has the
        same memory format on every machine.

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


# Operations that autocast, also inside the network, runs in a narrower dtype.
_MULTIPLYING = {
    getattr(torch.ops.aten, name)
    for name in ("convolution", "mm", "addmm", "bmm", "baddbmm", "linear", "matmul")
}


class _Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every convolution call, from modules and functions alike."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = list[Convolution]()
        self.types: set[torch.dtype] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and to skip its compiler torch imports it: two seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in _MULTIPLYING:
            self.types |= {a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()}
        if func.overloadpacket is torch.ops.aten.convolution:
            inputs, weight, _, stride = args[:4]
            self.seen.append(
                Convolution(
                    # A transposed convolution has the weight gradient of a plain one with input
                    # and output swapped, so axis 1 holds the input channels in both cases.
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
    """Every convolution call of a forward pass, in the memory format of these kernels.

    First and second backward passes differentiate these calls. A double backward pass only adds
    forward convolutions of other shapes, which have no known fault.

    Cost: one forward pass of two examples; with one, strides do not determine the memory format.
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
    """The fastest kernels without a known fault for this network.

    Args:
        problem: its own `kernels` field is ignored.
        mode: `eval`, or `train` for a network that behaves differently in training.

    Cost: one forward pass of two examples, and another if the first finds a fault.
    """
    first = convolutions(problem, KERNELS[0], mode)
    if problem.device.type != "cpu" or not any(call.wrong_gradient for call in first):
        return KERNELS[0]
    # A network may change the memory format itself, so contiguous inputs are not enough.
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
    """The fastest kernels that agree with float64 for this network on this machine.

    Args:
        problem: its own `kernels` field is ignored.
        derivatives: what will be computed, such as {"weights": 2}.
        first: the kernels to begin with, such as those of an earlier part of the same run.
        say: called with one line whenever faster kernels are rejected.
        mode: puts the network into the mode in which it will run.
        precision: autocast dtype; None computes in the network's own dtype.
        remedy: the advice at the end of the error message.

    Returns:
        The choice and its errors. The tolerance is four times the effect of rounding the operands
        on the float64 result. That accounts for kinks: a ReLU that rounding switches changes a
        gradient. Two agreements on other examples outweigh one disagreement.

    Raises:
        ValueError: no kernels agree with float64.

    Cost: two gradients of four examples, and two Hessian products if requested, half of them in
        float64; three times as much if the two differ by more than a hundred roundings.
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
    """The errors of these kernels, and a phrase about the one too large, or an empty string."""
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
    """Like `_compared`, for a single set of examples.

    Compares each tensor separately, and losses and derivatives in the inputs per example, so that
    large values do not hide errors of small ones.
    """
    dtype = precision or _narrowest(problem)
    wide: tuple[Kernels, torch.dtype | None] = ("contiguous", torch.float64)
    if any(value.is_complex() for value in problem.model.parameters()):
        wide = ("native", None)
    point, right = _reference(problem, derivatives, mode, attempt, wide)
    if right is None:  # a network that fixes a dtype inside
        wide = ("native", None)
        point, right = _reference(problem, derivatives, mode, attempt, wide)
    assert right is not None  # the last reference raises
    found = point.evaluated(derivatives, kernels, None, precision)
    errors, sizes = _apart(found, right), {name: part.norm for name, part in right.items()}
    suspect = [name for name, error in errors.items() if error > SHARE[dtype] * sizes[name]]
    worst = ""
    if suspect:
        native = _apart(point.evaluated(derivatives, "native", None, precision), right)
        noise = _rounding_effect(point, right, derivatives, wide, dtype)
        eps = torch.finfo(dtype).eps
        for name in suspect:
            excused = min(LIKE_NATIVE * native[name], NATURAL * eps * right[name].natural)
            tiny = torch.finfo(dtype).tiny * right[name].values.numel()  # smaller values are 0
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
    """The point where kernels are compared, and the float64 result there; None if that fails.

    Noise is added to the examples to break ties, unless the network then raises an error or
    returns values that are not finite.
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


def _rounding_effect(
    point: _Point,
    right: Mapping[str, _Part],
    derivatives: Derivatives,
    wide: tuple[Kernels, torch.dtype | None],
    dtype: torch.dtype,
) -> dict[str, float]:
    """The change of each part when the operands are perturbed as rounding would."""
    share = MOVED[dtype] * torch.finfo(dtype).eps
    moved = [
        _apart(point.moved(share, draw, wide[1]).evaluated(derivatives, *wide, None), right)
        for draw in range(DRAWS)
    ]
    return {name: max(_finite(other[name]) for other in moved) for name in right}


@dataclass(frozen=True, eq=False)
class _Part:
    """One tensor of a result, or one example's part of it.

    Attributes:
        of: which result, such as "gradient in the weights".
        values: any shape, float64.
        natural: the norm it would have if the loss had slope 1 in the outputs.
    """

    of: str
    values: Tensor
    natural: float

    @property
    def norm(self) -> float:
        """The norm of the finite values."""
        return float(self.values.where(self.values.isfinite(), 0.0).norm())


def _apart(found: Mapping[str, _Part], right: Mapping[str, _Part]) -> dict[str, float]:
    """The distance of each part from the reference; infinite if only the reference is finite.

    Entries whose reference is not finite are not compared.
    """
    apart = {}
    for name, reference in right.items():
        there = reference.values.isfinite()
        difference = (found[name].values - reference.values).where(there, 0.0)
        apart[name] = float(difference.norm()) if bool(difference.isfinite().all()) else math.inf
    return apart


def _summed(errors: Mapping[str, float], right: Mapping[str, _Part]) -> dict[str, float]:
    """The relative error of each whole result, without results that could not be compared."""
    relative = {}
    for of in dict.fromkeys(part.of for part in right.values()):
        names = [name for name, part in right.items() if part.of == of]
        if any(bool(right[name].values.isfinite().any()) for name in names):
            size = math.hypot(*(right[name].norm for name in names))
            relative[of] = math.hypot(*(errors[name] for name in names)) / (size or 1.0)
    return relative


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


@dataclass(frozen=True, eq=False)
class _Point:
    """The network and a few examples in float64, on which kernels are compared."""

    problem: Problem
    network: nn.Module
    inputs: dict[str, Tensor]
    targets: Tensor

    @classmethod
    def of(
        cls, problem: Problem, attempt: int, mode: Callable[[nn.Module], nn.Module], share: float
    ) -> _Point:
        """The examples of one attempt, with noise that stays within the range of their values."""
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
        """A copy with every operand perturbed as rounding would, in `dtype` or the current one."""
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
        """Losses, gradients and Hessian products by name; dtype None takes the problem's own."""
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
                torch.manual_seed(0)  # the same random numbers every time, if the network draws any
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
    """Positions of the examples to compare, spread from the largest to the smallest loss.

    Confident examples alone would not do: their slopes are smaller than a float32 rounding of 1.
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
    """The gradient and the Hessian's product with a fixed vector, where `order` asks for them.

    Each tensor comes with the natural size of the whole: its norm for a loss whose slope in every
    output is about 1.
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
        # A layer without a second derivative: the probe that needs one names the layer.
        if "derivative" not in str(error) and "not implemented" not in str(error):
            raise


def _slopes(outputs: Any, leaves: list[Tensor]) -> list[Tensor]:
    """The gradient of a random sum of the outputs; zero if they are not a real tensor."""
    if not (isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.requires_grad):
        return [torch.zeros_like(leaf) for leaf in leaves]
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    found = torch.autograd.grad(outputs, leaves, seeds, retain_graph=True, materialize_grads=True)
    return [slope.detach() for slope in found]


def _narrowest(problem: Problem) -> torch.dtype:
    """The least precise dtype of weights, inputs, and operands of products inside the network."""
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
    """The mode in which a training's kernels are compared: training mode without randomness.

    Dropout is off. If anything else in the network draws random numbers, only batch norms are in
    training mode: otherwise two evaluations would not be of the same function.
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
