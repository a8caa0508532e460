"""Whether a problem is what probes take it for, asked once before anything is measured.

Every number of this package is a mean over examples of a function of one example. A network that
draws random numbers, keeps state between passes, or mixes the examples of a batch gives numbers
too, and they mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from checkpoints.data.images import Images
from checkpoints.device import memory_exhausted
from checkpoints.losses import IGNORED, bare, cross_entropy, top1
from checkpoints.problem import Problem, Tensors, is_real
from checkpoints.reader import reason

# How far two passes over the same example may be apart, relative to the largest output: rounding
# of sums in another order, with room for deep networks.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}
LOW_PRECISION = 5e-2
LOOKED_AT = 5  # examples
STANDARD = 20.0  # standardised columns of a table stay within it but for a rare outlier
BYTES = 3.0  # a mean or standard deviation above this was computed from bytes, not from [0, 1]


def check_fits(call: Callable[[], Any], model: str, images: Images) -> int:
    """Refuse data that a network is not made for: sequences where it takes images, or the reverse.

    Args:
        call: the network's outputs for the first two examples, in evaluation mode.
        model: what to call it.
        images: the data.

    Returns:
        The number of logits of each label.

    Raises:
        ValueError: one line: the network fails, or it has no logits for each label.
    """
    what = "sequences" if images.sequences else "images"
    try:
        with torch.inference_mode():
            outputs = call()
    except Exception as error:  # the network may be the user's own and raise anything
        if memory_exhausted(error):
            raise
        raise ValueError(
            f"{model} does not take {what} of shape {tuple(images.pixels.shape[1:])} of "
            f"{images.name}: {reason(error)}"
        ) from error
    places = tuple(images.labels.shape[1:])  # of one example
    if not is_real(outputs) or outputs.ndim < 2 or tuple(outputs.shape[2:]) != places:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        expected = ", ".join(map(str, ("N", len(images.classes), *places)))
        raise ValueError(
            f"{model} returns {found} for {what} of {images.name}; expected logits of shape "
            f"({expected})."
        )
    return int(outputs.shape[1])


def checked(
    problem: Problem, call: Callable[[Tensors], Any], say: Callable[[str], None]
) -> Problem:
    """The problem, without an accuracy where that means nothing.

    Args:
        problem: its first few examples are looked at.
        call: the network's outputs for raw inputs, in evaluation mode.
        say: is handed a line for what is probably not what was meant.

    Raises:
        ValueError: one line: two passes over the same examples differ; an example alone gives
            other outputs, or another loss, than among others; network or loss fail.

    Cost: two forward passes of five examples, and two of one.
    """
    count = min(LOOKED_AT, len(problem))
    inputs = {name: value[:count] for name, value in problem.inputs.items()}
    targets = problem.targets[:count]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        together, again = (_outputs(call, inputs) for _ in range(2))
        tolerance = TOLERANCE.get(problem.dtype, LOW_PRECISION)
        if not _same(together, again, tolerance):
            raise ValueError(
                "two passes over the same examples differ: the network draws random numbers, or "
                "keeps state between passes, in evaluation mode. A landscape needs a function."
            )
        _check_labels(problem, together)
        losses = _losses(problem, together, targets)
        for at in {0, count - 1}:  # what a batch leaks may flow in either direction
            part = slice(at, at + 1)
            alone = _outputs(call, {name: value[part] for name, value in inputs.items()})
            if not _same(_rows(together, count, part), _rows(alone, 1, slice(0, 1)), tolerance):
                raise ValueError(
                    f"example {at} alone gives other outputs than among others: the network mixes "
                    "the examples of a batch, so that no example has outputs of its own."
                )
            loss = _losses(problem, alone, targets[part])
            if not torch.isclose(losses[part], loss, tolerance, tolerance, equal_nan=True).all():
                raise ValueError(
                    f"example {at} alone has the loss {float(loss[0]):.4g}, among others "
                    f"{float(losses[at]):.4g}: the loss mixes examples, as a broadcast of (N, 1) "
                    "with (N,) does. Expected one value per example, of that example alone."
                )
    if not bool(losses.isfinite().all()):
        at = int((~losses.isfinite()).nonzero()[0])
        say(f"the loss of example {at} is {float(losses[at])} at the network itself.")
    for line in _implausible(problem, together):
        say(line)
    classes = together.shape[1] if isinstance(together, Tensor) and together.ndim > 1 else 0
    fits = classes > 1 and together.ndim == problem.targets.ndim + 1
    if problem.correct is top1 and not fits:
        say("accuracy is left out: it needs outputs of shape (N, classes), two classes or more.")
        return replace(problem, correct=None)
    return problem


def _check_labels(problem: Problem, outputs: Any) -> None:
    """Refuse class labels that the network has no output for."""
    labels = problem.targets
    loss = bare(problem.loss)
    by_class = isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
    known_function = loss in (cross_entropy, functional.cross_entropy, functional.nll_loss)
    if not (by_class or known_function) or labels.is_floating_point():
        return
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or labels.ndim != outputs.ndim - 1:
        return
    given = problem.loss.keywords if isinstance(problem.loss, partial) else {}
    known = labels[labels != given.get("ignore_index", getattr(loss, "ignore_index", IGNORED))]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < outputs.shape[1]:
        raise ValueError(
            f"targets run from {int(known.min())} to {int(known.max())}, and the network has "
            f"{outputs.shape[1]} outputs; expected 0 to {outputs.shape[1] - 1}."
        )


def _outputs(call: Callable[[Tensors], Any], inputs: Tensors) -> Any:
    try:
        return call(inputs)
    except Exception as error:  # the network may be the user's own and raise anything
        if memory_exhausted(error):
            raise
        raise ValueError(f"the network fails on the first examples: {reason(error)}") from error


def _losses(problem: Problem, outputs: Any, targets: Tensor) -> Tensor:
    try:
        return problem.losses(outputs, targets)
    except ValueError:
        raise
    except Exception as error:  # likewise
        if memory_exhausted(error):
            raise
        raise ValueError(f"the loss fails on the first examples: {reason(error)}") from error


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _rows(outputs: Any, count: int, part: slice) -> list[Tensor]:
    """The part of every output that has one row per example."""
    return [leaf[part] for leaf in _tensors(outputs) if leaf.ndim and len(leaf) == count]


def _same(one: Any, other: Any, tolerance: float) -> bool:
    pairs = zip(_tensors(one), _tensors(other), strict=False)
    return all(a.shape == b.shape and _close(a, b, tolerance) for a, b in pairs)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not is_real(a):
        return bool((a == b).all())
    finite = a[a.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return bool(torch.isclose(a, b, rtol=0, atol=tolerance * largest, equal_nan=True).all())


def _probabilities(outputs: Any) -> bool:
    """Whether outputs (N, C, ...) look like probabilities of two classes or more."""
    if not is_real(outputs) or outputs.ndim < 2 or outputs.shape[1] < 2:
        return False
    sums = outputs.double().sum(dim=1)
    return bool((outputs >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())


def _implausible(problem: Problem, outputs: Any) -> Iterator[str]:
    """What is probably not what was meant, a line each."""
    loss = bare(problem.loss)
    softmax = loss in (cross_entropy, functional.cross_entropy)
    softmax = softmax or isinstance(loss, nn.CrossEntropyLoss)
    logs = loss is functional.nll_loss or isinstance(loss, nn.NLLLoss)
    if (softmax or logs) and _probabilities(outputs):
        takes, remedy = (
            ("the cross-entropy, takes logits", "Leave out the network's softmax")
            if softmax
            else ("NLLLoss, takes log-probabilities", "End the network in log_softmax")
        )
        yield (
            "the outputs look like probabilities (not negative, rows sum to 1), and the loss, "
            f"{takes}. {remedy}."
        )
    elif logs and is_real(outputs) and outputs.ndim > 1 and not _probabilities(outputs.exp()):
        yield (
            "the outputs are no log-probabilities (their exponentials do not sum to 1), and the "
            "loss, NLLLoss, takes these. End the network in log_softmax, or pass a cross-entropy."
        )
    for name, value in problem.inputs.items():
        if value.numel() > 1 and bool((value == value.flatten()[0]).all()):
            yield (
                f"all values of {name} are {float(value.flatten()[0]):.3g}, in all {len(value)} "
                "examples: the data may not have been read as they should."
            )
    norm = problem.normalization
    if norm is not None and max(*norm.mean, *norm.std) > BYTES:
        yield (
            f"mean {norm.mean} and std {norm.std} look like those of bytes; inputs are in [0, 1]. "
            "Divide both by 255."
        )
    for name, value in problem.inputs.items():
        if norm is not None or not is_real(value) or value.ndim not in (2, 4):
            continue
        low, high = float(value.min()), float(value.max())
        if value.ndim == 2 and not -STANDARD <= low <= high <= STANDARD:
            yield (
                f"{name} runs from {low:.3g} to {high:.3g}: distances are in the units of these "
                "columns. They mean more where each column has a standard deviation near 1."
            )
        if value.ndim == 4 and (low < 0 or high > 1):
            yield (
                f"inputs run from {low:.3g} to {high:.3g}, not from 0 to 1: distances are in the "
                "units of these inputs. With raw pixels and Problem.of(..., "
                "normalization=Normalization(mean, std)) they are comparable between networks."
            )
