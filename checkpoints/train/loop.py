"""The training loop, evaluation, and the state file from which an interrupted run continues."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from checkpoints import checkpoint, kernels
from checkpoints.checkpoint import Checkpoint
from checkpoints.checks import check_fits
from checkpoints.data.images import Images
from checkpoints.device import KERNELS, Kernels, exact_arithmetic, in_order
from checkpoints.losses import all_right, cross_entropy, mean_over_positions, top1
from checkpoints.options import LARGEST_SEED
from checkpoints.problem import Loss, Problem
from checkpoints.reader import one_line, read
from checkpoints.train.batches import Batches, split, statistics
from checkpoints.train.monitor import gradient_norms, watched
from checkpoints.train.recipe import Recipe, completed, learning_rate
from checkpoints.whole_file import whole

STATE_VERSION = 1
OF_DATA = ("classes", "channels")  # options of every builder, which the data decide
REMEDY = "Try a smaller --rate, a longer --warmup, or another merge."


def evaluate(network: nn.Module, batches: Batches, size: int = 100) -> tuple[float, float]:
    """Mean cross-entropy (nat) and accuracy (fraction), in eval mode and float32."""
    loss, accuracy = _means(network, batches, size, cross_entropy, top1)
    return loss, accuracy


@torch.inference_mode()
def _means(network: nn.Module, batches: Batches, size: int, *functions: Loss) -> list[float]:
    """The mean over examples of functions of (outputs, labels) that give a value for each."""
    training = network.training
    network.eval()
    totals = [0.0] * len(functions)
    with exact_arithmetic(batches.kernels):
        for images, labels in batches.plain(size):
            logits = network(images).double()
            found = [float(function(logits, labels).double().sum()) for function in functions]
            totals = [total + each for total, each in zip(totals, found, strict=True)]
    network.train(training)
    return [total / len(batches.labels) for total in totals]


def train(
    model: str,
    options: Mapping[str, Any],
    train_images: Images,
    test_images: Images,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    longer: Images | None = None,
    state_file: Path | None = None,
    progress: bool = False,
    snapshot: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint:
    """Train a network from a seed, continuing from `state_file` if it exists.

    A continued run ends with the same weights as an uninterrupted one (on the same machine, with
    the same number of threads): each epoch has its own generators, seeded by (seed, epoch).

    Args:
        model: a name in `MODELS`, or code as `checkpoint.build` takes it.
        options: the builder's keyword arguments; `classes` and `channels` come from the data.
        train_images: a part is held out to select the epoch that `validation_selected` reports.
        test_images: evaluated after every epoch, for reporting only.
        longer: test sequences that are longer than those, evaluated after the last epoch.
        recipe: all hyperparameters.
        seed: seed of the initial weights, the order and the augmentation.
        device: the device to train on.
        state_file: written after every epoch, whole or not at all.
        progress: report every epoch on stderr, with a progress bar on a terminal.
        snapshot: called with the network as it was initialised, and after every epoch; its
            `metrics` say the `epoch`, 0 for the first. A continued run goes on with the next.

    Returns:
        The last epoch's weights, with metrics and history.

    Raises:
        ValueError: the loss became infinite or NaN; `state_file` belongs to another run; there are
            too few images, or training and test images differ in shape or number of classes.
    """
    recipe = recipe.resolved(device)
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"--seed {seed}; expected 0 to {LARGEST_SEED}.")
    for what, first, second in (
        ("shape", train_images.pixels.shape[1:], test_images.pixels.shape[1:]),
        ("number of classes", len(train_images.classes), len(test_images.classes)),
    ):
        if first != second:
            raise ValueError(
                f"{train_images.name}: the {what} is {first} in training and {second} in testing; "
                "expected the same."
            )
    if train_images.sequences and (recipe.shift or recipe.flip):
        raise ValueError(
            f"{train_images.name} holds sequences, which cannot be shifted or mirrored. Pass "
            "--shift 0 --no-flip."
        )
    kept, held = split(train_images, recipe.validation, recipe.examples)
    if recipe.batch > len(kept):
        raise ValueError(
            f"--batch {recipe.batch} exceeds the {len(kept)} training images. Pass a smaller one."
        )
    mean, std = statistics(kept)

    def batches(images: Images) -> Batches:
        pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
        scales = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        return Batches(pixels.to(device), labels.to(device), *scales)

    options = checkpoint.declared_options(model, options)
    of_data = {"classes": len(train_images.classes), "channels": train_images.pixels.shape[1]}
    for name, value in of_data.items():
        if options.get(name, value) != value:
            raise ValueError(
                f"--option {name}={options[name]}; {train_images.name} has {value}. Leave it out."
            )
    options |= of_data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = checkpoint.build(model, options)
    network = network.to(device)
    training, validation, test = batches(kept), batches(held), batches(test_images)

    def say(line: str) -> None:
        if progress:
            tqdm.write(line, file=sys.stderr)

    _check_takes(network, model, train_images, training)
    using = trusted_kernels(network, training, recipe, say, _kernels_so_far(state_file))
    network = in_order(network, using)
    training, validation, test = (replace(b, kernels=using) for b in (training, validation, test))
    optimizer = recipe.stepping(parameter_groups(network, recipe))
    identity = {
        "version": STATE_VERSION,
        "model": model,
        "options": options,
        "recipe": asdict(recipe),
        "seed": seed,
        "data": train_images.fingerprint(),
    }
    history: list[dict[str, Any]] = []
    if state_file is not None and state_file.is_file():
        history = _restored(state_file, identity, network, optimizer)

    def taken(metrics: Mapping[str, Any]) -> Checkpoint:
        """The network as it is now."""
        return Checkpoint(
            state_dict={k: v.detach().cpu().clone() for k, v in network.state_dict().items()},
            model=model,
            options=options,
            classes=len(train_images.classes),
            input_shape=train_images.pixels.shape[1:],
            mean=mean,
            std=std,
            data=train_images.name,
            recipe=asdict(recipe),
            seed=seed,
            metrics=metrics,
            history=tuple(history),
        )

    if snapshot is not None and not history:
        snapshot(taken({"epoch": 0}))
    for epoch in range(len(history), recipe.epochs):
        # For dropout and the like: our own random numbers come from separate generators.
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), exact_arithmetic(using):
            torch.manual_seed(-1 - _epoch_seed(seed, epoch))
            row = _train_epoch(
                network, optimizer, training, recipe, epoch=epoch, seed=seed, progress=progress
            )
        row["kernels"] = using
        row["validation_loss"], row["validation_accuracy"] = evaluate(network, validation)
        row["test_loss"], row["test_accuracy"] = evaluate(network, test)
        history.append(row)
        if snapshot is not None:
            snapshot(taken({"epoch": epoch + 1, "test_accuracy_last": row["test_accuracy"]}))
        if progress:
            tqdm.write(
                f"epoch {epoch + 1}/{recipe.epochs}  loss {row['train_loss']:.4f}  "
                f"validation {row['validation_accuracy']:.4f}  test {row['test_accuracy']:.4f}",
                file=sys.stderr,
            )
        if state_file is not None:
            state_file.parent.mkdir(parents=True, exist_ok=True)
            with whole(state_file) as file:
                torch.save(
                    {
                        "identity": identity,
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "history": history,
                    },
                    file,
                )
    network.eval()
    final_loss, final_accuracy = evaluate(network, training)
    if not math.isfinite(final_loss + history[-1]["test_loss"]):
        raise ValueError(
            f"{model}: after the last epoch the training loss is {final_loss}, the test loss "
            f"{history[-1]['test_loss']}. {REMEDY}"
        )
    beyond = None if longer is None else replace(batches(longer), kernels=using)
    accuracies = [row["test_accuracy"] for row in history]
    selected = selected_epoch(history)
    return taken(
        {
            "test_accuracy_best": max(accuracies),
            "test_accuracy_last": accuracies[-1],
            "test_accuracy_validation_selected": accuracies[selected],
            "epoch": len(history),
            "epoch_validation_selected": selected + 1,
            "test_loss": history[-1]["test_loss"],
            "train_loss": final_loss,
            "train_accuracy": final_accuracy,
            **_of_sequences(network, test, beyond),
        }
    )


def _of_sequences(network: nn.Module, test: Batches, longer: Batches | None) -> dict[str, float]:
    """Further metrics of a network for sequences: the share that is wholly right, and longer ones.

    Nothing of a network for images.
    """
    found = {}
    if test.labels.ndim > 1:
        found["test_sequences_right"] = _means(network, test, 100, all_right)[0]
    if longer is not None:
        values = _means(network, longer, 100, cross_entropy, top1, all_right)
        names = ("longer_loss", "longer_accuracy", "longer_sequences_right")
        found |= dict(zip(names, values, strict=True))
    return found


def _check_takes(network: nn.Module, model: str, images: Images, training: Batches) -> None:
    """Refuse images for a network of sequences, and the reverse; see `check_fits`."""
    inputs, _ = next(training.plain(2))
    mode = network.training
    try:
        check_fits(lambda: network.eval()(inputs), model, images)
    finally:
        network.train(mode)


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters as SGD takes them, by weight decay and learning rate.

    Tensors with two or more axes decay. A module with an attribute `rate_factor` learns at that
    multiple of the recipe's rate, with all that it contains.
    """
    factors = {
        parameter: module.rate_factor
        for module in network.modules()
        if hasattr(module, "rate_factor")
        for parameter in module.parameters()
    }
    groups: dict[tuple[bool, Any], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for parameter in network.parameters():
        key = parameter.ndim > 1, factors.get(parameter, 1.0)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": group, "weight_decay": recipe.decay if decays else 0.0, "rate_factor": factor}
        for (decays, factor), group in groups.items()
    ]


def selected_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """The row of the epoch with the best validation accuracy, the first of equals.

    Test images must not choose: the accuracy reported for them would be too good.
    """
    return max(range(len(history)), key=lambda row: history[row]["validation_accuracy"])


def trusted_kernels(
    network: nn.Module,
    training: Batches,
    recipe: Recipe,
    say: Callable[[str], None] = lambda line: None,
    first: Kernels | None = None,
) -> Kernels:
    """The fastest kernels whose gradients are right for this network; see `kernels.chosen`."""
    images, labels = next(training.plain(2 * recipe.batch))
    problem = Problem(network, {"input": images}, labels)
    return kernels.chosen(
        problem,
        {"weights": 1},
        say=say,
        mode=kernels.training_mode(problem),
        precision=torch.bfloat16 if recipe.precision == "bfloat16" else None,
        first=first,
        remedy="Pass --precision float32."
        if recipe.precision == "bfloat16"
        else "This network cannot be trained in float32.",
    ).kernels


def _kernels_so_far(state_file: Path | None) -> Kernels | None:
    """The kernels of the last epoch in a state file, with which the run continues."""
    if state_file is None or not state_file.is_file():
        return None
    history = read(state_file).get("history") or [{}]
    last = history[-1].get("kernels")
    return last if last in KERNELS else None


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def _restored(
    state_file: Path,
    identity: Mapping[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> list[dict[str, Any]]:
    """Load network and optimizer from `state_file`; returns the history so far."""
    state = read(state_file)
    if "identity" not in state:
        raise ValueError(f"{state_file} is not a training state. Delete it, or pass --out.")
    was, now = (
        {k: v for k, v in entries.items() if k != "recipe"} | completed(entries["recipe"])
        for entries in (state["identity"], identity)
    )
    pairs = {name: (was.get(name), value) for name, value in now.items() if name != "options"}
    if was.get("model") == now["model"]:
        pairs |= differing_options(now["model"], was.get("options", {}), now["options"])
    for name, (found, asked) in pairs.items():
        if found != asked:
            raise ValueError(
                f"{state_file} belongs to a run with {name}={one_line(str(found), 60)}, this one "
                f"has {name}={one_line(str(asked), 60)}. Finish that run, delete the file, or pass "
                "--out."
            )
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return list(state["history"])


def differing_options(
    model: str, recorded: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """{option: (recorded, asked)} of those in which two runs differ, by value or type."""
    was, now = (checkpoint.complete_options(model, options) for options in (recorded, asked))
    absent = "(not given)"
    return {
        name: (was.get(name, absent), now.get(name, absent))
        for name in [*now, *was]
        if was.get(name) != now.get(name)
    }


def _training_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The mean cross-entropy of a batch; of sequences, of each one's mean over its positions."""
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    each = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return mean_over_positions(each, labels).mean()


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Batches,
    recipe: Recipe,
    *,
    epoch: int,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """One pass over the training examples; returns its row of the history."""
    network.train()
    device = training.pixels.device
    steps = len(training.labels) // recipe.batch
    generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
    batches = training.augmented(recipe.batch, recipe.shift, generator, flip=recipe.flip)
    total = torch.zeros((), dtype=torch.float64, device=device)
    row: dict[str, Any] = {"epoch": epoch + 1}
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16", cache_enabled=True
    )
    with tqdm(
        batches,
        f"epoch {epoch + 1}/{recipe.epochs}",
        steps,
        disable=None if progress else True,
        leave=False,
        unit="step",
        file=sys.stderr,
    ) as bar:
        for step, (images, labels) in enumerate(bar):
            last = step == steps - 1
            rate = learning_rate(recipe, epoch * steps + step, steps)
            for group in optimizer.param_groups:
                # absent from state files that were written before there were such factors
                group["lr"] = rate * group.get("rate_factor", 1.0)
            optimizer.zero_grad(set_to_none=True)
            watching: AbstractContextManager[dict[str, dict[str, float]]]
            watching = watched(network) if last else nullcontext({})
            with watching as seen, autocast:
                logits = network(images)
            loss = _training_loss(logits.float(), labels, recipe.smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            if last:
                norms = gradient_norms(network, iter(seen))
                row["blocks"] = {b: r | {"gradient_norm": norms[b]} for b, r in seen.items()}
            optimizer.step()
            if step % 20 == 19 or last:
                running = (total / (step + 1)).item()
                if not math.isfinite(running):
                    raise ValueError(
                        f"the loss became {running} by step {step + 1} of epoch {epoch + 1} "
                        f"(learning rate {rate:.3g}). {REMEDY}"
                    )
                bar.set_postfix(loss=f"{running:.4f}")
    return row | {"rate": rate, "train_loss": running}
