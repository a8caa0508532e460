"""Make a problem from a checkpoint file, a data set, and options for how to treat them."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from checkpoints import loading, options
from checkpoints import temperature as temperature_of
from checkpoints.batch_norm import recompute_statistics
from checkpoints.checkpoint import Checkpoint
from checkpoints.checks import check_fits
from checkpoints.data.images import Images, interleave
from checkpoints.device import device_named, exact_arithmetic
from checkpoints.losses import IGNORED
from checkpoints.options import in_callers_words, option
from checkpoints.problem import BatchNorm, Normalization, Problem, Tensors
from checkpoints.reader import one_line
from checkpoints.registry import load_images

# {data set: the sample of it that ships}, for networks trained on that data set.
SAMPLES = {"fashion-mnist": "fashion-mnist-sample"}
DEFAULT = "resnet8.pt"  # the smallest network that ships: a first look takes seconds
# Images of the split between which neighbour distances are measured, the first in class-interleaved
# order: the same ones however many are measured, and for the sample and the whole test set. Fewer
# where they are so large that their pixels would fill memory.
REFERENCE, FEWEST, PIXELS = 2000, 100, 25_000_000
USUAL = 300  # examples measured by default
# The headings of `--help`.
EXAMPLES, UNSAID, HOW = "on which examples", "for a checkpoint that does not say", "how"


@options.spec
class Source:
    """Where a problem comes from and how it is treated.

    The fields are at once the flags of every probe, the keys of `[problem]` in a study file, the
    arguments of `load_problem`, and the entry `source` in a result's provenance.
    """

    ckpt: str = option(
        DEFAULT, "the checkpoint: a path, or one that ships, such as resnet18.pt", "FILE"
    )
    data: str | None = option(
        None,
        "fashion-mnist, cifar10, cifar100, npz:FILE, folder:DIR, or package.module:function "
        "(default: what the checkpoint was trained on, or the sample of it that ships)",
        "NAME",
        group=EXAMPLES,
    )
    data_root: Path | None = option(None, "folder that holds its files", "DIR", group=EXAMPLES)
    split: Literal["train", "test"] = option("test", "of the data", group=EXAMPLES)
    examples: int | None = option(
        None,
        f"how many, balanced over the classes; 0 for all (default: {USUAL}, or all where there are "
        "fewer)",
        group=EXAMPLES,
        least=0,
    )
    size: tuple[int, int] | None = option(
        None, "resize the images of folder:DIR", "H W", group=EXAMPLES, least=1
    )
    weights: str | None = option(
        None,
        "the entry that is taken, of a file that holds several state dicts, such as state_dict_ema",
        "NAME",
        group=UNSAID,
    )
    model: str | None = option(
        None,
        "its architecture: resnet20, path/to/file.py:build or package.module:build",
        "NAME",
        group=UNSAID,
    )
    options: Mapping[str, Any] = option(
        dict,
        "a keyword argument of the architecture, such as num_classes=10",
        flag="--option",
        group=UNSAID,
    )
    mean: tuple[float, ...] = option(
        (),
        "of its normalisation, one value per channel or one for all, for inputs in [0, 1]",
        group=UNSAID,
    )
    std: tuple[float, ...] = option((), "likewise", group=UNSAID, above=0)
    batch_norm: BatchNorm = option(
        "running", "use the running statistics, or recompute them at every point", group=HOW
    )
    calibration: int = option(
        500,
        "examples from which statistics are recomputed: of the training split, else those not "
        "measured",
        group=HOW,
        least=2,
    )
    temperature: float | Literal["fit"] = option(
        1.0,
        "divide the logits by it; fit: by the value that fits held-out images best, to compare "
        "networks at equal confidence",
        "X|fit",
        group=HOW,
        above=0,
    )
    device: str | None = option(
        None, "cpu, cuda, cuda:1 … (default: a GPU where there is one)", group=HOW
    )
    dtype: Literal["float32", "float64"] = option("float32", "of weights and inputs", group=HOW)
    batch_size: int = option(
        0,
        "examples per forward pass (0: 100 on a CPU, 1000 on a GPU); halved where memory runs out",
        group=HOW,
        least=0,
    )

    @in_callers_words
    def problem(self, say: Callable[[str], None] = lambda line: None) -> Problem:
        """The network on its examples.

        Args:
            say: called with one line per decision made here.

        Raises:
            ValueError: one line: what is missing or does not fit, and what to pass.
        """
        checkpoint = self._checkpoint(say)
        data = self._data(checkpoint, say)
        images = self._images(data, self.split)
        order = interleave(images.labels)
        measured, others = np.split(order, [self._count(images)])
        reference = images.take(order[: _reference_size(images)])
        normalization = Normalization(*_for_channels(checkpoint.mean, checkpoint.std, images))
        provenance = _provenance(checkpoint, normalization, images.take(measured))
        provenance["source"] = self._record()
        _check_shape(checkpoint, images)
        calibrating: Tensors = {}
        pool: Images | None = None
        if self.batch_norm == "recompute":
            pool = self._calibration(data, images, others)
            calibrating = _tensors(pool)["inputs"]
            provenance["calibration"] = {"name": pool.name, "split": pool.split}
            say(f"batch norm: statistics of {len(pool)} {pool.split} examples of {pool.name}.")
        problem = Problem(
            model=checkpoint.network(),
            **_tensors(images.take(measured)),
            normalization=normalization,
            batch_norm=self.batch_norm,
            calibration=calibrating,
            reference=_tensors(reference)["inputs"],
            reference_indices=reference.indices,
            batch_size=self.batch_size,
            temperature=1.0 if self.temperature == "fit" else self.temperature,
            classes=images.classes,
            indices=images.indices[measured],
            index_label=f"position in {images.source or images.name} ({images.split})",
            input_unit="symbol" if images.sequences else "",
            provenance=provenance,
        )
        _check(problem, checkpoint, images)
        if self.temperature == "fit":
            held_out = self._held_out(data, checkpoint, images, others)
            problem = _at_fitted_temperature(problem, held_out)
            say(
                f"temperature: {problem.temperature:.4f}, fitted on {len(held_out)} held-out "
                f"{held_out.split} examples of {held_out.name}."
            )
        return self._placed(problem, images.take(measured), reference, pool)

    def _placed(
        self, problem: Problem, measured: Images, reference: Images, pool: Images | None
    ) -> Problem:
        """On the device, in the precision asked for: pixels are divided in that precision."""
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        placed = problem.to(device_named(self.device, rank), getattr(torch, self.dtype))
        if self.dtype != "float64":
            return placed
        wide = {
            name: {"input": _pixels(images, torch.float64).to(placed.device)} if images else {}
            for name, images in (
                ("inputs", measured),
                ("reference", reference),
                ("calibration", pool),
            )
        }
        return replace(placed, **wide)  # type: ignore[arg-type]

    def _checkpoint(self, say: Callable[[str], None]) -> Checkpoint:
        checkpoint = loading.load(
            self.ckpt,
            weights=self.weights,
            model=self.model,
            options=self.options,
            mean=self.mean,
            std=self.std,
            data=self.data,
            say=say,
        )
        found = {"--mean": checkpoint.mean, "--std": checkpoint.std, "--data": checkpoint.data}
        missing = [flag for flag, value in found.items() if not value]
        if missing:
            raise ValueError(
                f"{self.ckpt} does not record what it was trained on. Pass {' and '.join(missing)} "
                "(--mean 0 --std 1 for inputs in [0, 1] as they are)."
            )
        if self.data is None and ":" in checkpoint.data:
            raise ValueError(
                f"{self.ckpt} was trained on {one_line(checkpoint.data, 40)}, which lies outside "
                "this package. A checkpoint never decides what is opened or run: pass it as --data "
                "if you trust it."
            )
        return checkpoint

    def _data(self, checkpoint: Checkpoint, say: Callable[[str], None]) -> str:
        sample = SAMPLES.get(checkpoint.data) if self.split == "test" else None
        chosen = self.data or sample or checkpoint.data
        if chosen != checkpoint.data:
            say(f"data: {chosen}; the whole test split is --data {checkpoint.data}.")
        return chosen

    def _images(self, data: str, split: Literal["train", "test"]) -> Images:
        return load_images(data, split, self.data_root, self.size)

    def _count(self, images: Images) -> int:
        there = len(images)
        if self.examples is None:
            return min(USUAL, there)
        if self.examples > there:
            raise ValueError(
                f"--examples {self.examples} exceeds the {there} of {images.name} "
                f"({images.split}). Pass fewer, or 0 for all."
            )
        return self.examples or there

    def _calibration(self, data: str, images: Images, others: NDArray[np.int64]) -> Images:
        """The examples from which batch-norm statistics are recomputed."""
        if self.split == "train":
            pool = images.take(interleave(images.labels))
        elif _has_training_split(data):
            train = self._images(data, "train")
            pool = train.take(interleave(train.labels))
        else:
            pool = _unmeasured(images, others, self.calibration)
        if not 2 <= self.calibration <= len(pool):
            raise ValueError(
                f"--calibration {self.calibration}; expected 2 to {len(pool)} examples."
            )
        return pool.take(slice(0, self.calibration))

    def _held_out(
        self, data: str, checkpoint: Checkpoint, images: Images, others: NDArray[np.int64]
    ) -> Images:
        """Test images that are not measured, for the temperature."""
        if self.split == "train":
            return self._images(SAMPLES.get(checkpoint.data, data), "test")
        if not len(others):
            raise ValueError(
                "--temperature fit needs images that are not measured, but all are measured. Pass "
                "a smaller --examples, or a number."
            )
        return images.take(others)

    def _record(self) -> dict[str, Any]:
        """The options as given, without this machine's folders and devices."""
        given = dataclasses.asdict(self) | {"ckpt": Path(self.ckpt).name}
        return {name: v for name, v in given.items() if name not in ("data_root", "device")}


def load_problem(
    ckpt: str | Path = DEFAULT, *, say: Callable[[str], None] = lambda line: None, **options: Any
) -> Problem:
    """Load a checkpoint file as a problem on real images.

    Args:
        ckpt: a path, or the name of a checkpoint that ships.
        say: called with one line per decision made here.
        **options: further fields of `Source`, such as `examples=100` or `dtype="float64"`.

    Raises:
        ValueError: one line: what is missing or does not fit, and what to pass.
    """
    known = [field.name for field in dataclasses.fields(Source)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"there is no option {unknown[0]}. Known: {', '.join(known)}.")
    return Source(cast(str, ckpt), **options).problem(say)


def _at_fitted_temperature(problem: Problem, held_out: Images) -> Problem:
    examples = replace(problem, **_tensors(held_out), indices=held_out.indices)
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
    described = {
        "name": held_out.name,
        "split": held_out.split,
        "examples": len(held_out),
        "sha256": held_out.fingerprint(),
    }
    known = held_out.labels != IGNORED  # one row for each position of a sequence
    fitted = temperature_of.fit(
        logits.double().movedim(1, -1).numpy()[known], held_out.labels[known]
    )
    return replace(
        problem, temperature=fitted, provenance={**problem.provenance, "temperature": described}
    )


def _tensors(images: Images) -> dict[str, Any]:
    pixels = _pixels(images, torch.float32)
    return {"inputs": {"input": pixels}, "targets": torch.from_numpy(images.labels)}


def _pixels(images: Images, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(images.pixels).to(dtype) / 255


def _reference_size(images: Images) -> int:
    """How many images are the reference; it depends on their size alone."""
    return max(FEWEST, min(REFERENCE, PIXELS // int(np.prod(images.pixels.shape[1:]))))


def _for_channels(
    mean: tuple[float, ...], std: tuple[float, ...], images: Images
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = images.pixels.shape[1]
    mean, std = (v * channels if len(v) == 1 else v for v in (mean, std))
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"{images.name} has {channels} channels; mean has {len(mean)} values, std {len(std)}. "
            "Pass --mean and --std with one value per channel, or other --data."
        )
    return mean, std


def _has_training_split(data: str) -> bool:
    """Whether `data`, whose test split could be loaded, has a training split as well."""
    form, _, place = data.partition(":")
    if form == "folder":
        return (Path(place) / "train").is_dir()
    if form == "npz":
        with np.load(place) as archive:
            return "x_train" in archive
    return data not in SAMPLES.values()


def _unmeasured(images: Images, others: NDArray[np.int64], count: int) -> Images:
    """The examples that are not measured, from which calibration examples are taken."""
    if len(others) < max(count, 1):
        raise ValueError(
            f"{images.name} has no training split and {len(others)} examples that are not "
            f"measured; expected at least --calibration {count}. Pass a smaller --examples, or "
            "--data with a training split."
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


def _check_shape(source: Checkpoint, images: Images) -> None:
    """Refuse images of another shape before they take memory as floats or pass the network."""
    shape = tuple(images.pixels.shape[1:])
    fixed = slice(-1 if images.sequences else None)  # a sequence may have any length
    if source.input_shape and shape[fixed] != source.input_shape[fixed]:
        raise ValueError(
            f"{source.file} was trained on examples of shape {source.input_shape}, {images.name} "
            f"has {shape}. Pass other --data, or --size for a folder."
        )


def _check(problem: Problem, source: Checkpoint, images: Images) -> None:
    """Try a forward pass of two images, to report what does not fit in one line."""
    first = {name: value[:2] for name, value in problem.inputs.items()}
    classes = check_fits(
        lambda: problem.outputs(problem.model, first), f"{source.file}: {source.model}", images
    )
    if len(images.classes) != classes:
        raise ValueError(
            f"{source.file} has {classes} classes, {images.name} has {len(images.classes)}. "
            "Pass the --data that it was trained on."
        )
