"""The cost of trusted kernels: the comparison with float64, and memory formats without faults.

python benchmarks/kernels.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import torch

from checkpoints import kernels
from checkpoints.device import KERNELS
from checkpoints.problem import Problem
from checkpoints.source import load_problem
from landscape.core.spaces import Weights
from landscape.hessian.operator import Curvature


def gradient(problem: Problem) -> Callable[[], object]:
    """A function that computes the gradient over all examples in the weights."""
    space = Weights(problem)
    point = {name: value.clone().requires_grad_() for name, value in space.origin.items()}

    def run() -> object:
        with space.exact():
            losses = problem.losses(space.outputs(point), problem.targets)
            return torch.autograd.grad(losses.sum(), list(point.values()))

    return run


def product(problem: Problem) -> Callable[[], object]:
    """A function that computes a Hessian-vector product over all examples, nothing kept."""
    operator = Curvature(Weights(problem))
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
    return lambda: operator.matvec(vector)


def loss(problem: Problem) -> Callable[[], object]:
    """A function that computes the loss of all examples at the origin."""
    space = Weights(problem)
    return lambda: space.evaluate(space.origin)


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Print CPU seconds per network, kind of work and kernels, and those of the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet18.pt", "fmmnet18.pt"])
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"CPU seconds, one thread, {chosen.examples} examples, medians of {chosen.rounds} rounds")
    for name in chosen.networks:
        problem = load_problem(name, examples=chosen.examples, batch_size=chosen.examples)
        for order, (what, make) in enumerate(
            {"loss": loss, "gradient": gradient, "Hessian product": product}.items()
        ):
            runs: dict[str, Callable[[], object]] = {
                which: make(replace(problem, kernels=which)) for which in KERNELS
            }
            runs["comparison"] = partial(kernels.chosen, problem, {"weights": order})
            spent: dict[str, list[float]] = {which: [] for which in runs}
            for repeat in range(chosen.rounds + 1):
                for which, run in runs.items():
                    took = seconds(run)
                    if repeat:  # The first is the warm-up.
                        spent[which].append(took)
            medians = ", ".join(f"{which} {median(rows):.3f}" for which, rows in spent.items())
            print(f"{name:12} {what:16} {medians}", flush=True)


if __name__ == "__main__":
    main()
