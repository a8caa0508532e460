"""The problem that every probe is given: a network, examples, a loss for each of them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from checkpoints import checkpoint
from checkpoints import temperature as temperature_of
from checkpoints.batch_norm import recompute_statistics
from checkpoints.checkpoint import Checkpoint
from checkpoints.data.images import Images, interleave
from checkpoints.device import KERNELS, Kernels, exact_arithmetic
from checkpoints.registry import load_images

Tensors: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Callable[[Any, Tensor], Tensor]
BatchNorm: TypeAlias = Literal["running", "recompute"]

IGNORED = -100  # the label whose loss torch, too, takes for 0
# The real images that ship with the project, for networks trained on the data set they are from.
SAMPLES = {"fashion-mnist": "fashion-mnist-sample"}


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood of each example in nat: (N,) from (N, classes) and (N,).

    As ln(1 + sum of exp(z_c - z_target) over the other classes c), so that nothing cancels where
    the network is certain: the loss, its gradient and its curvature there are as exact, relative
    to their size, as anywhere else. Targets of another form, such as probabilities, are left to
    torch's own.

    Raises:
        ValueError: outputs of a single class, whose likelihood is always 1.
    """
    if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        return functional.cross_entropy(outputs, targets, reduction="none")
    classes = outputs.shape[1]
    if classes < 2:
        raise ValueError(
            f"the network has {classes} output and the loss is the cross-entropy of classes; "
            "needed: an output a class, or a loss of your own."
        )
    ignored = targets == IGNORED
    target = targets.long().where(~ignored, 0)[:, None]
    rank = torch.arange(classes - 1, device=targets.device)
    others = outputs.gather(1, rank + (rank >= target))
    true = outputs.gather(1, target)[:, 0]
    # Where all others are masked out nothing depends on them, and their logsumexp has no slope.
    alone = torch.isneginf(others).all(dim=1) & (true > -torch.inf)
    gap = others.where(~alone[:, None], 0.0).logsumexp(dim=1) - true
    # ln(1 + e^gap), from the side on which neither it nor its derivatives cancel.
    loss = torch.where(gap > 0, gap + functional.softplus(-gap), functional.softplus(gap))
    return loss.where(~(alone | ignored), 0.0)


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest output is the target's: (N,) bool from (N, classes) and (N,)."""
    return outputs.argmax(dim=1) == targets


@dataclass(frozen=True)
class Normalization:
    """(x - mean) / std, channel by channel, so that a problem's inputs stay in pixel units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean or not all(s > 0 for s in self.std):
            raise ValueError(
                f"--mean {self.mean} and --std {self.std}: needed: one value a channel each, "
                "std positive; one value alone serves every channel."
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise (N, C, ...)."""
        shape = (1, -1) + (1,) * (images.ndim - 2)
        return (images - images.new_tensor(self.mean).view(shape)) / images.new_tensor(
            self.std
        ).view(shape)


@dataclass(frozen=True, eq=False)
class Problem:
    """What is probed. Frozen, and no probe writes to what it holds.

    `Problem.of(model, batches)` makes one from a network and data of your own, `load_problem`
    from a checkpoint file.

    Args:
        model: called with the inputs: one tensor positionally, several by their names. Probes
            work on a private copy in eval mode.
        inputs: {name: (N, ...)}, the first axis the example. Images are in [0, 1].
        targets: (N, ...).
        loss: (outputs, targets) to (N,), one value an example in nat. Floating-point outputs
            reach it as float64, since in float32 a confident example's loss cancels.
        correct: (outputs, targets) to (N,) bool; None where accuracy means nothing.
        normalization: applied to a single input before the model sees it.
        batch_norm: `running` uses the running statistics, as in deployment; `recompute` sets
            them, at every point, to the exact statistics of `calibration` there.
        calibration: {name: (M, ...)}, for `recompute`.
        batch_size: examples in a forward pass; 0 lets a short measurement decide. It changes
            results by rounding alone.
        kernels: which compute; None lets a comparison with float64 decide, see
            `checkpoints.kernels`. They change results by rounding alone.
        temperature: the outputs, logits, are divided by it, so that networks can be compared at
            equal confidence; see `checkpoints.temperature.fit`.
        classes: their names, in the order of the labels; may be left out.
        provenance: what result files record of where all this came from.
    """

    model: nn.Module
    inputs: Tensors
    targets: Tensor
    loss: Loss = cross_entropy
    correct: Callable[[Any, Tensor], Tensor] | None = top1
    normalization: Normalization | None = None
    batch_norm: BatchNorm = "running"
    calibration: Tensors = field(default_factory=dict)
    batch_size: int = 0
    kernels: Kernels | None = None
    temperature: float = 1.0
    classes: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {name: len(value) for name, value in self.inputs.items()}
        if not sizes or any(size != len(self.targets) for size in sizes.values()):
            raise ValueError(f"inputs hold {sizes} examples, targets {len(self.targets)}.")
        if not len(self.targets):
            raise ValueError("there are no examples.")
        if self.batch_norm not in get_args(BatchNorm):
            raise ValueError(f"batch_norm={self.batch_norm!r}; needed: running or recompute.")
        if self.batch_norm == "recompute" and not self.calibration:
            raise ValueError("batch_norm='recompute' needs a calibration set, and there is none.")
        if self.batch_size < 0:
            raise ValueError(f"batch_size={self.batch_size}; needed: at least 1, or 0 to measure.")
        if self.kernels is not None and self.kernels not in KERNELS:
            raise ValueError(f"kernels={self.kernels!r}; needed: one of {', '.join(KERNELS)}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}; needed: a positive number, or fit.")

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Iterable[tuple[Tensor | Mapping[str, Tensor], Tensor]],
        loss: Loss = cross_entropy,
        **others: Any,
    ) -> Problem:
        """A problem from a network and batches of your own.

        Args:
            model: any module.
            batches: (inputs, targets) pairs of tensors, such as a DataLoader; they are read once
                and kept, where the model is. Inputs may also be a mapping of several, which the
                model takes as keyword arguments.
            loss: (outputs, targets) to (N,): one value an example.
            **others: further fields of `Problem`.

        Raises:
            ValueError: no batches, or batches that are no such pairs.
        """
        parts: list[Tensors] = []
        targets: list[Tensor] = []
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    f"a batch is a {type(batch).__name__}; needed: a pair (inputs, targets)."
                )
            inputs, target = batch
            part = dict(inputs) if isinstance(inputs, Mapping) else {"input": inputs}
            for value in (*part.values(), target):
                if not isinstance(value, Tensor):
                    raise ValueError(
                        f"a batch holds a {type(value).__name__}; needed: tensors, or a mapping "
                        "of names to tensors as the inputs."
                    )
            if parts and (found := sorted(part)) != (first := sorted(parts[0])):
                raise ValueError(f"a batch has the inputs {found}, the first one {first}.")
            parts.append(part)
            targets.append(target)
        if not parts:
            raise ValueError("there are no batches.")
        where = next((p.device for p in model.parameters()), targets[0].device)
        joined = {name: torch.cat([part[name] for part in parts]).to(where) for name in parts[0]}
        labels = torch.cat(targets).to(where)
        if labels.is_floating_point() or labels.ndim != 1:
            others.setdefault("correct", None)
        return cls(model, joined, labels, loss, **others)

    @property
    def device(self) -> torch.device:
        """Where the examples are; the model is there as well."""
        return self.targets.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network's weights."""
        return next((p.dtype for p in self.model.parameters()), torch.get_default_dtype())

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Problem:
        """The same problem elsewhere, or in another precision; this one stays as it is."""

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
        )

    def outputs(self, call: Callable[..., Any], inputs: Tensors) -> Any:
        """What `call`, the model or a functional form of it, gives for a batch of raw inputs.

        Divided by the temperature.
        """
        if len(inputs) > 1:
            outputs = call(**inputs)
        else:
            (value,) = inputs.values()
            outputs = call(self.normalization(value) if self.normalization else value)
        return outputs if self.temperature == 1 else outputs / self.temperature

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of each example, (N,) float64.

        Raises:
            ValueError: the loss does not return one value an example.
        """
        wide = outputs.double() if _is_real(outputs) else outputs
        target = targets.double() if targets.is_floating_point() else targets
        losses = self.loss(wide, target)
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else ()
        if shape != (len(targets),):
            raise ValueError(
                f"the loss returned shape {shape} for {len(targets)} examples; "
                "needed: one value an example. Use reduction='none', and a mean over all axes "
                "but the first."
            )
        return losses.double()

    def fingerprints(self) -> dict[str, Any]:
        """The provenance that a result is bound to: what network, which examples, how treated."""
        told = dict(self.provenance)
        told.setdefault("checkpoint", {"sha256": _digest(self.model.state_dict())})
        examples = {**self.inputs, "targets": self.targets}
        told.setdefault("data", {"examples": len(self), "sha256": _digest(examples)})
        calibration: dict[str, Any] = {"examples": 0} | told.pop("calibration", {})
        if self.calibration:
            calibration["examples"] = len(next(iter(self.calibration.values())))
            calibration["sha256"] = _digest(self.calibration)
        told["batch_norm"] = {"policy": self.batch_norm, "calibration": calibration}
        told["temperature"] = {"value": self.temperature} | told.get("temperature", {})
        told["batch_size"], told["kernels"] = self.batch_size, self.kernels
        told["device"] = self.device.type
        told["dtype"] = str(self.dtype).removeprefix("torch.")
        return told


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_problem(
    name: str | Path,
    *,
    data: str | None = None,
    root: Path | None = None,
    size: tuple[int, int] | None = None,
    split: Literal["train", "test"] = "test",
    examples: int = 0,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    batch_norm: BatchNorm = "running",
    calibration: int = 500,
    batch_size: int = 0,
    temperature: float | Literal["fit"] = 1.0,
    say: Callable[[str], None] = lambda line: None,
) -> Problem:
    """The problem of a checkpoint file on real images.

    Args:
        name: a path, or the name of a checkpoint that ships.
        data: a data set's name, `npz:FILE`, `folder:DIR` or a function; by default the one the
            checkpoint was trained on, or the sample of it that ships.
        root: the folder that holds that data set's files.
        size: (height, width) that a folder's images are resized to.
        split: `train` or `test`.
        examples: how many, balanced over the classes; 0 for all.
        model: the architecture, for files that do not tell.
        options: its keyword arguments.
        mean: one value a channel, or one for all; for files that do not tell.
        std: one value a channel, or one for all; for files that do not tell.
        batch_norm: see `Problem`.
        calibration: how many examples set the statistics for `recompute`: of the training split,
            or, where the data have none, of those that are not measured.
        batch_size: see `Problem`.
        temperature: see `Problem`; `fit` takes the one that suits held-out test images best, none
            of which is measured.
        say: is handed a line for everything that was decided here.

    Raises:
        ValueError: one line: what is missing or does not fit, and what to pass.
    """
    source = checkpoint.load(
        name, model=model, options=options, mean=mean, std=std, data=data, say=say
    )
    missing = [
        flag
        for flag, value in (("--mean", source.mean), ("--std", source.std), ("--data", source.data))
        if not value
    ]
    if missing:
        raise ValueError(
            f"{name} does not say what it was trained on. Pass {' and '.join(missing)} "
            "(--mean 0 --std 1 for inputs in [0, 1] as they are)."
        )
    if data is None and _is_code(source.data):
        raise ValueError(
            f"{name} was trained on {source.data}, which is code outside this package. A file does "
            "not decide what code runs: pass it as --data if you trust it."
        )
    chosen = data or (SAMPLES.get(source.data) if split == "test" else None) or source.data
    if chosen != source.data:
        say(f"data: {chosen}; the whole test split is --data {source.data}.")
    images = load_images(chosen, split, root, size)
    order = interleave(images.labels)
    if examples < 0:
        raise ValueError(f"--examples {examples}; needed: 1 or more, or 0 for all.")
    if examples > len(order):
        raise ValueError(
            f"--examples {examples} exceeds the {len(order)} of {chosen} ({split}). Ask for fewer, "
            "or pass 0 for all."
        )
    measured, others = np.split(order, [examples or len(order)])
    normalization = Normalization(*_for_channels(source.mean, source.std, images))
    provenance = _provenance(source, normalization, images.take(measured))
    calibrating: Tensors = {}
    if batch_norm == "recompute":
        if split == "train":
            pool = images.take(order)
        elif _has_training_split(chosen):
            train = load_images(chosen, "train", root, size)
            pool = train.take(interleave(train.labels))
        else:
            pool = _unmeasured(images, others, calibration)
        if not 2 <= calibration <= len(pool):
            raise ValueError(f"--calibration {calibration}; needed: 2 to {len(pool)} examples.")
        pool = pool.take(slice(0, calibration))
        calibrating = _tensors(pool)["inputs"]
        provenance["calibration"] = {"name": pool.name, "split": pool.split}
        say(f"batch norm: statistics of {calibration} {pool.split} images of {pool.name}.")
    problem = Problem(
        model=source.network(),
        **_tensors(images.take(measured)),
        normalization=normalization,
        batch_norm=batch_norm,
        calibration=calibrating,
        batch_size=batch_size,
        temperature=1.0 if temperature == "fit" else temperature,
        classes=images.classes,
        provenance=provenance,
    )
    _check(problem, source, images)
    if temperature == "fit":
        if split == "test" and not len(others):
            raise ValueError(
                "--temperature fit needs images that are not measured, and all of them are. Pass "
                "a smaller --examples, or a number."
            )
        if split == "test":
            held_out = images.take(others)
        else:
            held_out = load_images(SAMPLES.get(source.data, chosen), "test", root, size)
        problem = _at_fitted_temperature(problem, held_out)
        say(
            f"temperature: {problem.temperature:.4f}, fitted on {len(held_out)} held-out "
            f"{held_out.split} images of {held_out.name}."
        )
    return problem


def _at_fitted_temperature(problem: Problem, held_out: Images) -> Problem:
    examples = replace(problem, **_tensors(held_out))
    network = copy.deepcopy(problem.model).eval()
    if problem.batch_norm == "recompute":
        recompute_statistics(network, problem.outputs, problem.calibration)
    with torch.inference_mode(), exact_arithmetic():
        logits = torch.cat(
            [
                examples.outputs(
                    network, {name: value[part] for name, value in examples.inputs.items()}
                )
                for part in (slice(i, i + 100) for i in range(0, len(examples), 100))
            ]
        )
    told = {
        "name": held_out.name,
        "split": held_out.split,
        "examples": len(held_out),
        "sha256": held_out.fingerprint(),
    }
    fitted = temperature_of.fit(logits.double().numpy(), held_out.labels)
    return replace(
        problem, temperature=fitted, provenance={**problem.provenance, "temperature": told}
    )


def _tensors(images: Images) -> dict[str, Any]:
    pixels = torch.from_numpy(images.pixels).float() / 255
    return {"inputs": {"input": pixels}, "targets": torch.from_numpy(images.labels)}


def _for_channels(
    mean: tuple[float, ...], std: tuple[float, ...], images: Images
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = images.pixels.shape[1]
    mean, std = (v * channels if len(v) == 1 else v for v in (mean, std))
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"{images.name} has {channels} channels; mean has {len(mean)} values, std {len(std)}. "
            "Pass --mean and --std with one value a channel, or other --data."
        )
    return mean, std


def _is_code(data: str) -> bool:
    return ":" in data and not data.startswith(("npz:", "folder:"))


def _has_training_split(data: str) -> bool:
    """Whether `data`, whose test split could be loaded, has a training split beside it."""
    form, _, place = data.partition(":")
    if form == "folder":
        return (Path(place) / "train").is_dir()
    if form == "npz":
        with np.load(place) as archive:
            return "x_train" in archive
    return data not in SAMPLES.values()


def _unmeasured(images: Images, others: NDArray[np.int64], count: int) -> Images:
    """The examples that are not measured, as the pool of calibration examples."""
    if len(others) < max(count, 1):
        raise ValueError(
            f"{images.name} has no training split and {len(others)} examples that are not "
            f"measured; --calibration {count} needs as many. Pass a smaller --examples, or --data "
            "with a training split."
        )
    return images.take(others)


def _provenance(source: Checkpoint, normalization: Normalization, images: Images) -> dict[str, Any]:
    return {
        "checkpoint": {
            "file": source.file,
            "sha256": source.sha256,
            "model": source.model,
            "options": dict(source.options),
            "seed": source.seed,
            "mean": list(normalization.mean),
            "std": list(normalization.std),
        },
        "data": {
            "name": images.name,
            "split": images.split,
            "examples": len(images),
            "sha256": images.fingerprint(),
        },
    }


def _check(problem: Problem, source: Checkpoint, images: Images) -> None:
    """One forward pass of two images, so that what does not fit is said in one line."""
    first = {name: value[:2] for name, value in problem.inputs.items()}
    shape = tuple(images.pixels.shape[1:])
    try:
        with torch.inference_mode():
            outputs = problem.outputs(problem.model, first)
    except Exception as error:  # the network may be the user's own and raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{source.file}: {source.model} does not take images of shape {shape} of "
            f"{images.name}: {reason}"
        ) from error
    if not _is_real(outputs) or outputs.ndim != 2:
        raise ValueError(f"{source.model} does not return logits of shape (N, classes).")
    if source.input_shape and shape != source.input_shape:
        raise ValueError(
            f"{source.file} was trained on images of shape {source.input_shape}, {images.name} has "
            f"{shape}. Pass other --data, or --size for a folder."
        )
    classes = cast(int, outputs.shape[1])
    if len(images.classes) != classes:
        raise ValueError(
            f"{source.file} has {classes} classes, {images.name} has {len(images.classes)}. "
            "Pass the --data that it was trained on."
        )
