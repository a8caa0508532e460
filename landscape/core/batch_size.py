"""How many examples are evaluated at once, and by which kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from checkpoints import checks, kernels
from checkpoints.device import memory_exhausted
from checkpoints.problem import Problem
from checkpoints.reader import reason
from landscape.core import store
from landscape.core.spaces import USUAL_BATCH, Inputs, Space, Weights, log

# Fixed, not timed, so that the same command gives the same bytes. On a CPU 25 to 200 examples cost
# the same within a tenth; see docs/log.md.
USUAL = {"cpu": USUAL_BATCH, "cuda": 1000}


def prepared(
    problem: Problem,
    derivatives: kernels.Derivatives,
    path: Path | None = None,
    say: Callable[[str], None] = log.info,
) -> Problem:
    """The problem with its kernels and its batch size decided.

    Args:
        problem: kernels and batch size that it leaves open come from the result file, or else from
            a comparison with float64 (the kernels) and `USUAL` (the batch size). A file that was
            continued in smaller batches than the problem asks for stays with them.
        derivatives: what the probe computes; see `kernels.chosen`.
        path: the result file, if any.
        say: called with a line if a faster choice of kernels is rejected.

    Raises:
        ValueError: the problem is not a function of one example, see `checkpoints.checks`; no
            gradient reaches what moves; no kernels agree with float64.
    """
    problem = _checked(problem, derivatives, say)
    recorded = {
        name: store.recorded(path, name) if path is not None else None
        for name in ("kernels", "batch_size", "larger_batches")
    }
    first = problem.kernels or recorded["kernels"]
    choice = kernels.chosen(problem, derivatives, first=first, say=say)
    provenance = {**problem.provenance, "kernel_errors": dict(choice.errors)}
    problem = replace(problem, kernels=choice.kernels, provenance=provenance)
    usual = min(USUAL.get(problem.device.type, USUAL_BATCH), len(problem))
    size = problem.batch_size or recorded["batch_size"] or usual
    if size in (recorded["larger_batches"] or ()):
        size = recorded["batch_size"]
    return replace(problem, batch_size=size)


def _checked(
    problem: Problem, derivatives: kernels.Derivatives, say: Callable[[str], None]
) -> Problem:
    try:
        space = _first(problem, 2)
    except ValueError:
        raise
    except Exception as error:  # a user's network may raise anything
        if memory_exhausted(error):
            raise
        text = reason(error)
        raise ValueError(f"the network fails on the first examples: {text}") from error
    before = {name: value.clone() for name, value in space.tensors.items()}
    found = checks.checked(problem, space.outputs_of, say)
    for name, value in space.tensors.items():
        if not torch.equal(value, before[name]) and not value.isnan().any():
            raise ValueError(
                f"{name} changes with every pass in evaluation mode: the network keeps state, and "
                "is not a function of its inputs."
            )
    kinds: dict[str, type[Space]] = {"weights": Weights, "inputs": Inputs}
    for name in [name for name, order in derivatives.items() if order]:
        _check_gradient(kinds[name](replace(found.take(slice(2)), batch_size=2)), name)
    return found


def _check_gradient(space: Space, name: str) -> None:
    """Refuse a loss that depends on nothing that moves: all its derivatives would be 0."""
    point = {key: value.detach().requires_grad_() for key, value in space.origin.items()}
    with torch.random.fork_rng(devices=[]), space.exact():
        outputs = space.outputs(point)
        loss = space.problem.losses(outputs, space.problem.targets).sum()
        tensors = list(point.values())
        reached = loss.requires_grad and any(
            gradient is not None
            for gradient in torch.autograd.grad(loss, tensors, allow_unused=True)
        )
    if not reached:
        raise ValueError(
            f"no gradient reaches the {name}: every derivative would be 0. Look for no_grad, "
            "detach or reentrant activation checkpointing in the network's forward."
        )


def _first(problem: Problem, size: int) -> Space:
    part = replace(problem.take(slice(size)), batch_size=size)
    return (
        Inputs(part) if all(v.is_floating_point() for v in part.inputs.values()) else Weights(part)
    )
