"""Where a problem comes from: a checkpoint file, its data, and how they are treated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from checkpoints import loading
from checkpoints import temperature as temperature_of
from checkpoints.batch_norm import recompute_statistics
from checkpoints.checkpoint import Checkpoint
from checkpoints.data.images import Images, interleave
from checkpoints.device import exact_arithmetic
from checkpoints.options import in_callers_words
from checkpoints.problem import BatchNorm, Normalization, Problem, Tensors, is_real
from checkpoints.registry import load_images

# The real images that ship with the project, for networks trained on the data set they are from.
SAMPLES = {"fashion-mnist": "fashion-mnist-sample"}


@in_callers_words
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
    source = loading.load(
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
    if not is_real(outputs) or outputs.ndim != 2:
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
