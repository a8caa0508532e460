"""Input gradients, Jacobians and top input eigenvalues, against Captum and plain loops.

    python benchmarks/sensitivity.py

All rows of a table alternate in one process, forwards and backwards; the first round is a warm-up.
Captum's row appears if Captum is installed. Every row starts from raw images and ends with one
number per image; errors are relative to float64.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor

from checkpoints import device
from checkpoints.problem import Problem
from checkpoints.source import load_problem
from landscape.core import jacobian as jacobians
from landscape.core.spaces import Inputs
from landscape.sensitivity.examples import Examples
from landscape.sensitivity.gradients import jacobian_norms

# CPU time is summed over all threads; on a busy machine, use it with one thread.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Row = Callable[[], Tensor]


def batches(problem: Problem, size: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        yield problem.inputs["input"][part], problem.targets[part]


def plain_gradients(problem: Problem, size: int, count: int) -> Tensor:
    """The usual way: the summed loss, one backward pass per batch."""
    norms = []
    for images, labels in batches(problem, size, count):
        images = images.clone().requires_grad_()
        loss = problem.losses(problem.outputs(problem.model, {"input": images}), labels).sum()
        (rows,) = torch.autograd.grad(loss, images)
        norms.append(rows.flatten(1).norm(dim=1))
    return torch.cat(norms)


def our_gradients(space: Inputs, size: int, count: int) -> Tensor:
    problem = space.problem
    return torch.cat(
        [
            jacobians.gradient(
                space,
                {"input": images},
                lambda outputs, labels=labels: problem.losses(outputs, labels),
            )[1].norm(dim=1)
            for images, labels in batches(problem, size, count)
        ]
    )


def captum_gradients(problem: Problem, size: int, count: int) -> Tensor:
    from captum.attr import Saliency

    norms = []
    for images, labels in batches(problem, size, count):

        def losses(batch: Tensor, labels: Tensor = labels) -> Tensor:
            return problem.losses(problem.outputs(problem.model, {"input": batch}), labels)

        images = images.clone().requires_grad_()
        norms.append(Saliency(losses).attribute(images, abs=False).flatten(1).norm(dim=1))
    return torch.cat(norms)


def plain_jacobians(problem: Problem, size: int, count: int) -> Tensor:
    """A forward pass, a backward pass per class, and the sum of squares of the gradients."""
    norms = []
    for images, _ in batches(problem, size, count):
        images = images.clone().requires_grad_()
        logits = problem.outputs(problem.model, {"input": images})
        squares = 0
        for column in logits.unbind(dim=1):
            (rows,) = torch.autograd.grad(column.sum(), images, retain_graph=True)
            squares = squares + rows.flatten(1).square().sum(dim=1)
        norms.append(torch.as_tensor(squares).sqrt())
    return torch.cat(norms)


def our_jacobians(space: Inputs, size: int, count: int) -> Tensor:
    """All norms that the probe stores: of logits and softmax; Frobenius, spectral, eigenvalue."""
    norms = []
    for images, labels in batches(space.problem, size, count):
        nothing = torch.empty(0)
        examples = Examples(space, {"input": images}, labels, nothing, nothing, nothing)
        norms.append(jacobian_norms(examples)["jacobian_frobenius"])
    return torch.cat(norms)


def our_eigenvalues(space: Inputs, size: int, count: int) -> Tensor:
    values = []
    for images, _ in batches(space.problem, size, count):
        logits, rows = jacobians.jacobian(space, {"input": images})
        values.append(jacobians.gauss_newton_top(rows, logits.softmax(dim=1))[0])
    return torch.cat(values)


def power_iteration(problem: Problem, size: int, count: int, steps: int) -> Tensor:
    """All images of a batch at once, by double backward, each with its own normalisation."""
    values = []
    generator = torch.Generator().manual_seed(0)
    for images, labels in batches(problem, size, count):
        images = images.clone().requires_grad_()
        loss = problem.losses(problem.outputs(problem.model, {"input": images}), labels).sum()
        (slope,) = torch.autograd.grad(loss, images, create_graph=True)
        vector = torch.randn(images.shape, generator=generator).to(images)
        value = torch.zeros(len(images))
        for _ in range(steps):
            vector = vector / vector.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            (product,) = torch.autograd.grad(slope, images, vector, retain_graph=True)
            value = (product * vector).flatten(1).sum(dim=1)
            vector = product
        values.append(value)
    return torch.cat(values)


def table(title: str, rows: dict[str, Row], truth: Tensor, rounds: int, clock: Any) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    errors: dict[str, Tensor] = {}
    for repeat in range(rounds + 1):
        for name in list(rows)[:: -1 if repeat % 2 else 1]:
            start = clock()
            values = rows[name]()
            spent = clock() - start
            errors[name] = (values.double() - truth).abs() / truth
            if repeat:  # The first round is the warm-up.
                seconds[name].append(spent)
    print(title)
    ours = next(iter(rows))
    for name, spents in seconds.items():
        ratio = median(a / b for a, b in zip(seconds[ours], spents, strict=True))
        print(
            f"  {name:36} {median(spents):8.3f} s ({min(spents):.3f}..{max(spents):.3f})  "
            f"ours / this {ratio:5.2f}   error {errors[name].median():.0e}, "
            f"worst {errors[name].max():.0e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ckpt", default="resnet18.pt")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="of the power iteration")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what is measured")
    chosen = parser.parse_args()
    device.keep_freed_memory()  # as the command does
    torch.set_num_threads(chosen.threads)
    count, size, clock = chosen.images, chosen.batch, CLOCKS[chosen.clock]
    problem = load_problem(chosen.ckpt, examples=count)
    problem.model.eval().requires_grad_(requires_grad=False)
    space, wide = Inputs(problem), Inputs(problem.to("cpu", torch.float64))
    few, fewer = max(count // 5, 1), max(count // 10, 1)
    print(
        f"{chosen.ckpt}, batches of {size}, {chosen.threads} threads, torch {torch.__version__}, "
        f"{chosen.rounds} rounds, {chosen.clock} time"
    )
    gradients: dict[str, Row] = {
        "ours": lambda: our_gradients(space, size, count),
        "summed loss, by hand": lambda: plain_gradients(problem, size, count),
        "a loop over images": lambda: plain_gradients(problem, 1, count),
    }
    if importlib.util.find_spec("captum"):
        gradients["Captum's Saliency"] = lambda: captum_gradients(problem, size, count)
    truth = our_gradients(wide, size, count)
    table(f"gradient norms of {count} images", gradients, truth, chosen.rounds, clock)
    table(
        f"Jacobian norms of {few} images",
        {
            "ours, all five": lambda: our_jacobians(space, size, few),
            "a backward pass per class, Frobenius": lambda: plain_jacobians(problem, size, few),
        },
        our_jacobians(wide, size, few),
        chosen.rounds,
        clock,
    )
    table(
        f"top input eigenvalues of {fewer} images",
        {
            "ours, from the Jacobian": lambda: our_eigenvalues(space, size, fewer),
            f"{chosen.steps} power steps": lambda: power_iteration(
                problem, size, fewer, chosen.steps
            ),
        },
        our_eigenvalues(wide, size, fewer),
        chosen.rounds,
        clock,
    )


if __name__ == "__main__":
    main()
