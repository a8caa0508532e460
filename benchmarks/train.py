"""Images per second inside an epoch of `checkpoints.train.train`, against a bare loop.

    python benchmarks/train.py

The bare loop does forward and backward passes over the same batches, prepared beforehand, with the
same network, precision and memory format; a second one also takes the optimizer's steps. They
alternate in one process. The goal is a ratio of at least 0.8.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints import checkpoint
from checkpoints.data.images import Images
from checkpoints.device import in_order, keep_freed_memory
from checkpoints.registry import load_images
from checkpoints.train import loop
from checkpoints.train.batches import Batches, split, statistics
from checkpoints.train.recipe import Recipe

# CPU time is summed over all threads; on a busy machine, use it with one thread.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def epoch_seconds(
    clock: Callable[[], float],
    model: str,
    images: Images,
    test: Images,
    recipe: Recipe,
    device: torch.device,
) -> float:
    """Seconds of an epoch of the real `train`, from shuffling to the last step."""
    moments: list[float] = []
    augmented = Batches.augmented

    def begin(*arguments: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        moments.append(clock())
        return augmented(*arguments, **options)

    def end(*arguments: Any, **options: Any) -> tuple[float, float]:
        moments.append(clock())
        return 0.0, 0.0

    with patch.object(Batches, "augmented", begin), patch.object(loop, "evaluate", end):
        loop.train(model, {}, images, test, recipe, seed=0, device=device)
    return moments[1] - moments[0]


def bare_seconds(
    clock: Callable[[], float],
    network: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    recipe: Recipe,
    optimizer: torch.optim.Optimizer | None,
) -> float:
    device = batches[0][0].device
    start = clock()
    for images, labels in batches:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()
    loss.item()  # Waits until a GPU has finished.
    return clock() - start


def measure(
    model: str, images: Images, test: Images, recipe: Recipe, chosen: argparse.Namespace
) -> None:
    device, clock = torch.device(chosen.device), CLOCKS[chosen.clock]
    kept, _ = split(images, recipe.validation, recipe.examples)
    mean, std = (torch.tensor(value, device=device) for value in statistics(kept))
    pixels, labels = torch.from_numpy(kept.pixels), torch.from_numpy(kept.labels)
    data = Batches(pixels.to(device), labels.to(device), mean, std)
    options = {"channels": images.pixels.shape[1], "classes": len(images.classes)}
    using = loop.trusted_kernels(checkpoint.build(model, options).to(device), data, recipe)
    data = replace(data, kernels=using)
    generator = torch.Generator().manual_seed(0)
    batches = list(data.augmented(recipe.batch, recipe.shift, generator, flip=recipe.flip))

    def network() -> nn.Module:
        return in_order(checkpoint.build(model, options).to(device), using)

    stepped = network()
    optimizer = torch.optim.SGD(
        stepped.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    runs: dict[str, Callable[[], float]] = {
        "bare": partial(bare_seconds, clock, network(), batches, recipe, None),
        "bare, with step": partial(bare_seconds, clock, stepped, batches, recipe, optimizer),
        "train": partial(epoch_seconds, clock, model, images, test, recipe, device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(chosen.rounds + 1):
        for name in list(runs)[:: -1 if repeat % 2 else 1]:
            spent = runs[name]()
            if repeat:  # The first round is the warm-up.
                seconds[name].append(spent)
    count = len(batches) * recipe.batch
    for name, spents in seconds.items():
        ratio = median(a / b for a, b in zip(seconds["bare"], spents, strict=True))
        rates = [count / spent for spent in spents]
        print(
            f"{model:10} {name:16} {median(rates):9.1f} images/s "
            f"({min(rates):.1f}..{max(rates):.1f})  {ratio:.2f} of bare",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet20", "fmmnet20"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40, help="steps per epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what is measured")
    chosen = parser.parse_args()
    keep_freed_memory()  # as the command does
    torch.set_num_threads(chosen.threads)
    recipe = Recipe(epochs=1, batch=chosen.batch, validation=100, precision=chosen.precision)
    recipe = recipe.resolved(torch.device(chosen.device))
    sample = load_images("fashion-mnist-sample", "test")
    # The same real images, repeated as often as the steps need.
    needed = recipe.validation + chosen.steps * chosen.batch
    images = sample.take(np.arange(needed) % len(sample))
    print(
        f"batch {chosen.batch}, {chosen.steps} steps, {recipe.precision}, {chosen.device}, "
        f"{chosen.threads} threads, torch {torch.__version__}, {chosen.rounds} rounds, "
        f"{chosen.clock} time"
    )
    for model in chosen.models:
        measure(model, images, sample, recipe, chosen)


if __name__ == "__main__":
    main()
