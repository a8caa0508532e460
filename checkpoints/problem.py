"""The problem that every probe measures: a network, examples, and a per-example loss."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from checkpoints.device import KERNELS, Kernels
from checkpoints.losses import cross_entropy, top1, unit_of

Tensors: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Callable[[Any, Tensor], Tensor]
BatchNorm: TypeAlias = Literal["running", "recompute"]
INPUT = "input"  # the name of a single input, which the model takes positionally


@dataclass(frozen=True)
class Normalization:
    """(x - mean) / std per channel; with it a problem's inputs stay in pixel units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        values = [*self.mean, *self.std]
        real = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if (
            not real
            or len(self.mean) != len(self.std)
            or not self.mean
            or not all(math.isfinite(v) for v in values)
            or not all(s > 0 for s in self.std)
        ):
            raise ValueError(
                f"--mean {self.mean} and --std {self.std}; expected one value per channel each, "
                "finite, std positive; one value alone serves every channel."
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise (N, C, ...)."""
        shape = (1, -1) + (1,) * (images.ndim - 2)
        return (images - images.new_tensor(self.mean).view(shape)) / images.new_tensor(
            self.std
        ).view(shape)


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, examples and a loss. Frozen; no probe modifies its contents.

    `Problem.of(model, batches)` makes one from your own network and data, `load_problem` from a
    checkpoint file.

    Args:
        model: called with the inputs: one called `input` positionally, others by their names.
            Outputs with an entry or attribute `logits` stand for these. What DataParallel,
            `torch.compile` or AveragedModel wrap is taken out. Probes
            work on a private copy in eval mode.
        inputs: {name: (N, ...)}, the first axis the example. Images are in [0, 1].
        targets: (N, ...).
        loss: (outputs, targets) to (N,), one value per example. Floating-point outputs reach it
            as float64, since in float32 a confident example's loss cancels.
        correct: (outputs, targets) to (N,), bool or a share; None where accuracy means nothing.
        normalization: applied to a single input before the model sees it.
        batch_norm: `running` uses the running statistics, as in deployment; `recompute` replaces
            them, at every point, by the exact statistics of `calibration` at that point.
        calibration: {name: (M, ...)}, for `recompute`.
        reference: {name: (M, ...)}, inputs among which the neighbours of the examples are sought,
            and between which neighbour distances are measured; by default the examples
            themselves. With a fixed set these distances do not depend on how many are measured.
        reference_indices: (M,) their positions, as `indices`, where examples are among them.
        batch_size: examples per forward pass; 0 for the usual size, 100 on a CPU. It
            affects results by rounding only.
        kernels: which kernels compute; None takes the fastest that agree with float64, see
            `checkpoints.kernels`. They affect results by rounding only.
        temperature: divides the outputs (logits), so that networks can be compared at equal
            confidence; see `checkpoints.temperature.fit`.
        classes: class names in label order; optional.
        indices: (N,) position of each example in its data set; by default 0 to N - 1.
        index_label: in what these are positions, for result files.
        loss_unit: of the loss; by default `nat` for a negative log-likelihood, else `1`.
        input_unit: of distances between inputs; by default `pixel range` for images in [0, 1],
            else `input unit`.
        handed: networks and directions given as objects, see `landscape.core.ends`.
        provenance: where all this came from, as recorded in result files.
    """

    model: nn.Module
    inputs: Tensors
    targets: Tensor
    loss: Loss = cross_entropy
    correct: Callable[[Any, Tensor], Tensor] | None = top1
    normalization: Normalization | None = None
    batch_norm: BatchNorm = "running"
    calibration: Tensors = field(default_factory=dict)
    reference: Tensors = field(default_factory=dict)
    reference_indices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    batch_size: int = 0
    kernels: Kernels | None = None
    temperature: float = 1.0
    classes: Sequence[str] = ()
    indices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    index_label: str = "position among the examples given"
    loss_unit: str = ""
    input_unit: str = ""
    handed: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.model, torch.jit.ScriptModule):
            raise ValueError(
                "the model is TorchScript, whose weights cannot be replaced by others. Expected "
                "the torch.nn.Module that it was made of."
            )
        while isinstance(inner := _wrapped(self.model), nn.Module):
            object.__setattr__(self, "model", inner)
        if isinstance(self.loss, nn.Module):  # outputs reach it as float64
            wide = copy.deepcopy(self.loss).to(self.targets.device, torch.float64)
            object.__setattr__(self, "loss", wide)
        sizes = {name: len(value) for name, value in self.inputs.items()}
        if not sizes or any(size != len(self.targets) for size in sizes.values()):
            raise ValueError(f"inputs have {sizes} examples, targets {len(self.targets)}.")
        if not len(self.targets):
            raise ValueError("there are no examples.")
        if not len(self.indices):
            object.__setattr__(self, "indices", np.arange(len(self.targets)))
        if len(self.indices) != len(self.targets):
            raise ValueError(
                f"there are {len(self.indices)} indices for {len(self.targets)} examples."
            )
        loss_unit = self.loss_unit or unit_of(self.loss)
        object.__setattr__(self, "loss_unit", loss_unit)
        object.__setattr__(self, "input_unit", self.input_unit or _input_unit(self))
        if self.batch_norm not in get_args(BatchNorm):
            raise ValueError(f"batch_norm={self.batch_norm!r}; expected running or recompute.")
        if self.batch_norm == "recompute" and not self.calibration:
            raise ValueError("batch_norm='recompute' needs a calibration set, and there is none.")
        if self.reference:
            rows = {len(value) for value in self.reference.values()}
            if set(self.reference) != set(self.inputs) or len(rows) > 1:
                raise ValueError(
                    f"the reference has {sorted(self.reference)} with {sorted(rows)} examples; "
                    f"expected {sorted(self.inputs)}, as the inputs, with as many examples each."
                )
            if len(self.reference_indices) not in (0, *rows):
                raise ValueError(
                    f"there are {len(self.reference_indices)} reference_indices for {rows.pop()} "
                    "reference inputs."
                )
        if self.batch_size < 0:
            raise ValueError(
                f"batch_size={self.batch_size}; expected at least 1, or 0 for the usual size."
            )
        if self.kernels is not None and self.kernels not in KERNELS:
            raise ValueError(f"kernels={self.kernels!r}; expected one of {', '.join(KERNELS)}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}; expected a positive number, or fit.")

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        """What a notebook shows: the kinds of things, not their numbers."""
        shapes = ", ".join(f"{name} {tuple(v.shape[1:])}" for name, v in self.inputs.items())
        return (
            f"<Problem: {type(self.model).__name__} in {self.dtype}, {len(self)} examples of "
            f"{shapes}, loss {getattr(self.loss, '__name__', type(self.loss).__name__)}>"
        )

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Iterable[tuple[Tensor | Mapping[str, Tensor], Tensor]],
        loss: Loss = cross_entropy,
        *,
        name: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **others: Any,
    ) -> Problem:
        """A problem from your own network and batches.

        Args:
            model: any module.
            batches: (inputs, targets) pairs of tensors, such as a DataLoader; they are read once
                and kept, where the model is. Inputs may also be a mapping of several, which the
                model takes as keyword arguments.
            loss: (outputs, targets) to (N,): one value per example.
            name: of the network, in files and figures.
            device: where model and examples are moved, on a copy; by default they stay.
            dtype: `torch.float32` or `torch.float64`, to which a copy of them is converted.
            **others: further fields of `Problem`.

        Raises:
            ValueError: there are no batches, or one is not such a pair.
        """
        parts: list[Tensors] = []
        targets: list[Tensor] = []
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    f"a batch is a {type(batch).__name__}; expected a pair (inputs, targets)."
                )
            inputs, target = batch
            part = dict(inputs) if isinstance(inputs, Mapping) else {INPUT: inputs}
            for value in (*part.values(), target):
                if not isinstance(value, Tensor):
                    raise ValueError(
                        f"a batch contains a {type(value).__name__}; expected tensors, or a "
                        "mapping of names to tensors as the inputs."
                    )
            if parts and (found := sorted(part)) != (first := sorted(parts[0])):
                raise ValueError(
                    f"a batch has the inputs {found}; expected {first}, as in the first."
                )
            parts.append(part)
            targets.append(target)
        if not parts:
            raise ValueError("there are no batches.")
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        where = next((p.device for p in model.parameters()), targets[0].device)
        joined = {name: torch.cat([part[name] for part in parts]).to(where) for name in parts[0]}
        if own in (torch.float32, torch.float64):
            joined = {n: v.to(own) if v.is_floating_point() else v for n, v in joined.items()}
        labels = torch.cat(targets).to(where)
        if labels.is_floating_point() or labels.ndim != 1:
            others.setdefault("correct", None)
        problem = cls(model, joined, labels, loss, **others)
        if name:
            described = {"model": name, "sha256": digest(problem.model.state_dict())}
            problem = replace(problem, provenance={"checkpoint": described, **problem.provenance})
        if device is None and dtype is None:
            return problem
        return problem.to(device or where, dtype or own or torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """The device of the examples and the model."""
        return self.targets.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's weights."""
        return next((p.dtype for p in self.model.parameters()), torch.get_default_dtype())

    def take(self, rows: slice) -> Problem:
        """The same problem with only these of its examples."""
        return replace(
            self,
            inputs={name: value[rows] for name, value in self.inputs.items()},
            targets=self.targets[rows],
            indices=self.indices[rows],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Problem:
        """A copy of the problem on another device or with another dtype."""

        def moved(tensors: Tensors) -> Tensors:
            return {
                k: v.to(device, dtype if v.is_floating_point() else v.dtype)
                for k, v in tensors.items()
            }

        return replace(
            self,
            model=copy.deepcopy(self.model).to(device, dtype),
            inputs=moved(self.inputs),
            targets=moved({"": self.targets})[""],
            calibration=moved(self.calibration),
            reference=moved(self.reference),
        )

    def neighbourhood(self) -> tuple[Tensors, NDArray[np.int64]]:
        """The inputs among which neighbours are sought, and where each example is among them.

        Returns:
            {name: (M, ...)}, and (N,) positions, -1 for an example that is not among them.
        """
        if not self.reference:
            return self.inputs, np.arange(len(self))
        place = {int(index): row for row, index in enumerate(self.reference_indices)}
        return self.reference, np.array([place.get(int(index), -1) for index in self.indices])

    def described_reference(self) -> dict[str, Any]:
        """What identifies the reference inputs, as an entry `reference` of the provenance."""
        if not self.reference:
            return {}
        count = len(next(iter(self.reference.values())))
        return {"reference": {"examples": count, "sha256": digest(self.reference)}}

    def outputs(self, call: Callable[..., Any], inputs: Tensors) -> Any:
        """The outputs for a batch of raw inputs, divided by the temperature.

        Args:
            call: the model, or a functional form of it.
            inputs: {name: (B, ...)}, before normalization.
        """
        if len(inputs) > 1:
            outputs = call(**inputs)
        else:
            ((name, value),) = inputs.items()
            value = self.normalization(value) if self.normalization else value
            outputs = call(value) if name == INPUT else call(**{name: value})
        if isinstance(outputs, Mapping):
            outputs = outputs.get("logits", outputs)
        elif not isinstance(outputs, Tensor):
            outputs = getattr(outputs, "logits", outputs)
        return outputs if self.temperature == 1 else outputs / self.temperature

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """The per-example losses, (N,) float64.

        Raises:
            ValueError: the loss does not return one value per example.
        """
        wide = outputs.double() if is_real(outputs) else outputs
        target = targets.double() if targets.is_floating_point() else targets
        losses = self.loss(wide, target)
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else ()
        if shape != (len(targets),):
            raise ValueError(
                f"the loss returned shape {shape} for {len(targets)} examples; "
                "expected one value per example. Use reduction='none', and a mean over all axes "
                "but the first."
            )
        return losses.double()

    def fingerprints(self) -> dict[str, Any]:
        """The provenance that identifies a result: network, examples, and how they are treated."""
        described = dict(self.provenance)
        described.setdefault("checkpoint", {"sha256": digest(self.model.state_dict())})
        examples = {**self.inputs, "targets": self.targets}
        described.setdefault("data", {"examples": len(self), "sha256": digest(examples)})
        calibration: dict[str, Any] = {"examples": 0} | described.pop("calibration", {})
        if self.calibration:
            calibration["examples"] = len(next(iter(self.calibration.values())))
            calibration["sha256"] = digest(self.calibration)
        described["batch_norm"] = {"policy": self.batch_norm, "calibration": calibration}
        described["temperature"] = {"value": self.temperature} | described.get("temperature", {})
        units = {"loss": self.loss_unit, "input": self.input_unit}
        if units != {"loss": "nat", "input": "pixel range"}:
            described["units"] = units
        described["batch_size"], described["kernels"] = self.batch_size, self.kernels
        described["device"] = self.device.type
        described["dtype"] = str(self.dtype).removeprefix("torch.")
        return described


def _wrapped(model: nn.Module) -> Any:
    """The network inside what torch wraps around one for training or compiling; None if bare."""
    if isinstance(model, nn.DataParallel | DistributedDataParallel | AveragedModel):
        return model.module
    return getattr(model, "_orig_mod", None)


def _input_unit(problem: Problem) -> str:
    """Images in [0, 1], which a normalisation takes for granted, have the pixel range as unit."""
    images = [v for v in problem.inputs.values() if v.ndim == 4 and v.is_floating_point()]
    in_range = problem.normalization or all(v.min() >= 0 and v.max() <= 1 for v in images)
    return "pixel range" if images and in_range else "input unit"


def is_real(value: Any) -> bool:
    """Whether a value is a floating-point tensor."""
    return isinstance(value, Tensor) and value.is_floating_point()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and values, in the order of the mapping."""
    found = hashlib.sha256()
    for name, value in tensors.items():
        add_tensor(found, name, value)
    return found.hexdigest()


def add_tensor(found: Any, name: str, value: Tensor) -> None:
    """Add a tensor's name, shape, dtype and values to a digest of hashlib."""
    found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
    found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
