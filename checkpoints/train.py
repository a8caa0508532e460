"""Train a registered model: python -m checkpoints.train --model fmmnet20 --data fashion-mnist."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from checkpoints import allocator, checkpoint, kernels, options
from checkpoints.checkpoint import Checkpoint
from checkpoints.data.images import Images, interleave
from checkpoints.device import Kernels, device_named, exact_arithmetic, in_order
from checkpoints.models.merge import Factors, Merge
from checkpoints.options import option
from checkpoints.problem import Problem
from checkpoints.reader import read
from checkpoints.registry import load_images

STATE_VERSION = 1
REMEDY = "Try a smaller --rate, a longer --warmup, or another merge."


@dataclass(frozen=True)
class Recipe:
    """Every number that decides what the trained network is, besides model, data and seed."""

    epochs: int = option(15, "passes over the training examples")
    batch: int = option(128, "examples in a step")
    rate: float = option(0.1, "highest learning rate, reached after the warm-up")
    warmup: float = option(
        1.0, "epochs in which the rate rises linearly; then it falls as a cosine"
    )
    momentum: float = option(0.9, "Nesterov momentum of SGD")
    decay: float = option(5e-4, "weight decay, on tensors with two axes or more")
    smoothing: float = option(0.0, "label smoothing")
    shift: int = option(2, "random crops are shifted by up to this many pixels")
    flip: bool = option(True, "mirror half of the images")
    validation: int = option(5000, "training images held out, the same ones for every seed")
    examples: int = option(0, "train on the first N images in class-interleaved order; 0 for all")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "of the training's convolutions; auto takes bfloat16 where the hardware has it"
    )

    def __post_init__(self) -> None:
        for name, fits, needed in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("rate", 0 <= self.rate < math.inf, "0 or more"),
            ("warmup", 0 <= self.warmup < math.inf, "0 or more"),
            ("momentum", 0 <= self.momentum < 1, "0 or more, below 1"),
            ("decay", 0 <= self.decay < math.inf, "0 or more"),
            ("smoothing", 0 <= self.smoothing < 1, "0 or more, below 1"),
            ("shift", self.shift >= 0, "0 or more"),
            ("validation", self.validation >= 1, "at least 1, to select an epoch by"),
            ("examples", self.examples >= 0, "1 or more, or 0 for all"),
        ):
            if not fits:
                raise ValueError(f"--{name} {getattr(self, name)}; needed: {needed}.")

    def resolved(self, device: torch.device) -> Recipe:
        """This recipe with `precision` decided for `device`."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bfloat16" if _has_bfloat16(device) else "float32")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpuinfo = Path("/proc/cpuinfo")
    flags_line = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "amx_bf16" in flags_line or "avx512_bf16" in flags_line


@dataclass(frozen=True, eq=False)
class Batches:
    """A whole data set in memory as uint8, augmented a batch at a time.

    Args:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64.
        mean: (C,) in [0, 1].
        std: (C,) in [0, 1].
        kernels: those of the network; see `checkpoints.kernels`.
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    kernels: Kernels = "channels_last"

    def normalized(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 as normalised float32, in the kernels' memory order."""
        scale, offset = 1 / (255 * self.std), self.mean / self.std
        images = torch.addcmul(-offset[:, None, None], pixels.float(), scale[:, None, None])
        return in_order(images, self.kernels)

    def plain(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All examples in order."""
        for start in range(0, len(self.labels), size):
            part = slice(start, start + size)
            yield self.normalized(self.pixels[part]), self.labels[part]

    def augmented(
        self, size: int, shift: int, generator: torch.Generator, *, flip: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of shuffled, shifted and mirrored examples, without the last, smaller batch.

        Every random number comes from `generator`, on the CPU, so that an epoch is the same on
        any device and after any interruption.
        """
        count, _, height, width = self.pixels.shape
        padded = functional.pad(self.pixels, (shift,) * 4)
        order = torch.randperm(count, generator=generator)
        offsets = torch.randint(0, 2 * shift + 1, (count, 2), generator=generator)
        mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
        rows = torch.arange(height)[None, :] + offsets[:, :1]
        columns = torch.arange(width).repeat(count, 1)
        columns[mirrored] = columns[mirrored].flip(1)
        columns += offsets[:, 1:]
        where = self.pixels.device
        order, rows, columns = order.to(where), rows.to(where), columns.to(where)
        for start in range(0, count - size + 1, size):
            part = slice(start, start + size)
            chosen = order[part]
            crops = padded[chosen[:, None, None], :, rows[part, :, None], columns[part, None, :]]
            yield self.normalized(crops.permute(0, 3, 1, 2)), self.labels[chosen]


def split(images: Images, validation: int, examples: int) -> tuple[Images, Images]:
    """The training part and the held-out part of `images`, balanced and the same for every seed.

    Args:
        images: the training split.
        validation: how many are held out.
        examples: how many of the rest to train on; 0 for all.

    Raises:
        ValueError: fewer images than asked for.
    """
    if validation + max(examples, 1) > len(images):
        raise ValueError(
            f"{images.name} has {len(images)} training images; --validation {validation} and "
            f"--examples {examples} ask for {validation + max(examples, 1)}. Ask for fewer."
        )
    order = interleave(images.labels)
    held, kept = order[:validation], order[validation:]
    kept = np.sort(kept[:examples] if examples else kept)
    return images.take(kept), images.take(held)


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in [0, 1], to four decimals."""
    shares = np.stack(
        [np.bincount(channel.ravel(), minlength=256) for channel in images.pixels.swapaxes(0, 1)]
    ) / (images.pixels.size / images.pixels.shape[1])
    values = np.arange(256) / 255
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1)).round(4)
    if not std.all():
        raise ValueError(
            f"{images.name}: a channel has the same value in every pixel, so that nothing can be "
            "learned from it. Leave that channel out."
        )
    return tuple(np.round(mean, 4).tolist()), tuple(std.tolist())


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Batches, size: int = 100) -> tuple[float, float]:
    """Mean cross-entropy (nat) and accuracy (fraction), in eval mode and float32."""
    training = network.training
    network.eval()
    loss, hits = 0.0, 0
    with exact_arithmetic(batches.kernels):
        for images, labels in batches.plain(size):
            logits = network(images).double()
            loss += functional.cross_entropy(logits, labels, reduction="sum").item()
            hits += int((logits.argmax(1) == labels).sum())
    network.train(training)
    return loss / len(batches.labels), hits / len(batches.labels)


@contextmanager
def watched(network: nn.Module) -> Iterator[dict[str, dict[str, float]]]:
    """Record what every block's merge combines, while the context is open.

    Yields:
        {block: {residual_mean, residual_var, shortcut_mean, shortcut_var, activation_max}},
        filled by the next forward pass, over all examples, channels and positions: of the two
        factors as they are multiplied, after their norms and sigmoids (`gate_` instead of
        `shortcut_` where the branch meets a gate), and the maximum of the merged features' size.
        Why: a product whose factors drift from mean 1 vanishes or explodes over depth.
    """
    seen: dict[str, dict[str, float]] = {}

    def on_factors(block: str) -> Callable[[nn.Module, Any, tuple[Tensor, Tensor]], None]:
        def hook(module: nn.Module, _: Any, factors: tuple[Tensor, Tensor]) -> None:
            row = seen.setdefault(block, {})
            for name, factor in zip(cast(Factors, module).names, factors, strict=True):
                variance, mean = torch.var_mean(factor.detach().float())
                row |= {f"{name}_mean": mean.item(), f"{name}_var": variance.item()}

        return hook

    def on_merged(block: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, merged: Tensor) -> None:
            seen.setdefault(block, {})["activation_max"] = merged.detach().abs().max().item()

        return hook

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, Factors):
            block = name.removesuffix(".factors").removesuffix(".merge")
            hooks.append(module.register_forward_hook(on_factors(block)))
        elif isinstance(module, Merge):
            hooks.append(module.register_forward_hook(on_merged(name.removesuffix(".merge"))))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def gradient_norms(network: nn.Module, blocks: Iterator[str]) -> dict[str, float]:
    """The L2 norm of the gradient over the parameters of each block."""
    norms = {}
    for block in blocks:
        gradients = [
            p.grad for p in network.get_submodule(block).parameters() if p.grad is not None
        ]
        norms[block] = math.hypot(*(g.norm().item() for g in gradients))
    return norms


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = recipe.warmup * steps_per_epoch
    total = recipe.epochs * steps_per_epoch
    if step < warm:
        return recipe.rate * (step + 1) / (warm + 1)
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def train(
    model: str,
    options: Mapping[str, Any],
    train_images: Images,
    test_images: Images,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    state_file: Path | None = None,
    progress: bool = False,
) -> Checkpoint:
    """Train a network from its seed, continuing from `state_file` where there is one.

    A continued run ends with the same weights as a straight one (on one machine, with one number
    of threads): each epoch draws from its own generators, seeded by (seed, epoch).

    Args:
        model: a name in `MODELS`, or code as `checkpoint.build` takes it.
        options: the builder's keyword arguments; `classes` and `channels` are added from the data.
        train_images: its held-out part selects the epoch that `validation_selected` reports.
        test_images: evaluated after every epoch, used for nothing but reporting.
        recipe: every number besides.
        seed: of the initial weights, the order and the augmentation.
        device: where to train.
        state_file: written after every epoch, whole or not at all.
        progress: tell every epoch on stderr, with a bar where that is a terminal.

    Returns:
        The last epoch's weights, with metrics and history.

    Raises:
        ValueError: the loss stopped being finite; `state_file` belongs to another run; the data
            are too few, or training and test images differ in kind.
    """
    recipe = recipe.resolved(device)
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed {seed}; needed: 0 to {2**32 - 1}.")
    for what, first, second in (
        ("shape", train_images.pixels.shape[1:], test_images.pixels.shape[1:]),
        ("number of classes", len(train_images.classes), len(test_images.classes)),
    ):
        if first != second:
            raise ValueError(
                f"{train_images.name}: the {what} is {first} in training and {second} in testing; "
                "needed: the same."
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

    options = dict(options)
    options |= {"classes": len(train_images.classes), "channels": train_images.pixels.shape[1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = checkpoint.build(model, options)
    network = network.to(device)
    training, validation, test = batches(kept), batches(held), batches(test_images)

    def say(line: str) -> None:
        if progress:
            tqdm.write(line, file=sys.stderr)

    using = trusted_kernels(network, training, recipe, say)
    network = in_order(network, using)
    training, validation, test = (replace(b, kernels=using) for b in (training, validation, test))
    optimizer = torch.optim.SGD(
        [
            {
                "params": [p for p in network.parameters() if p.ndim > 1],
                "weight_decay": recipe.decay,
            },
            {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
    )
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
    for epoch in range(len(history), recipe.epochs):
        # For dropout and its like: everything of ours has a generator of its own.
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
        if progress:
            tqdm.write(
                f"epoch {epoch + 1}/{recipe.epochs}  loss {row['train_loss']:.4f}  "
                f"validation {row['validation_accuracy']:.4f}  test {row['test_accuracy']:.4f}",
                file=sys.stderr,
            )
        if state_file is not None:
            state_file.parent.mkdir(parents=True, exist_ok=True)
            partial = state_file.with_name(state_file.name + ".partial")
            torch.save(
                {
                    "identity": identity,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history,
                },
                partial,
            )
            partial.replace(state_file)
    network.eval()
    final_loss, final_accuracy = evaluate(network, training)
    if not math.isfinite(final_loss + history[-1]["test_loss"]):
        raise ValueError(
            f"{model}: after the last epoch the training loss is {final_loss}, the test loss "
            f"{history[-1]['test_loss']}. {REMEDY}"
        )
    accuracies = [row["test_accuracy"] for row in history]
    selected = max(range(len(history)), key=lambda i: history[i]["validation_accuracy"])
    return Checkpoint(
        state_dict={k: v.cpu().contiguous() for k, v in network.state_dict().items()},
        model=model,
        options=options,
        classes=len(train_images.classes),
        input_shape=train_images.pixels.shape[1:],
        mean=mean,
        std=std,
        data=train_images.name,
        recipe=asdict(recipe),
        seed=seed,
        metrics={
            "test_accuracy_best": max(accuracies),
            "test_accuracy_last": accuracies[-1],
            "test_accuracy_validation_selected": accuracies[selected],
            "test_loss": history[-1]["test_loss"],
            "train_loss": final_loss,
            "train_accuracy": final_accuracy,
        },
        history=tuple(history),
    )


def trusted_kernels(
    network: nn.Module,
    training: Batches,
    recipe: Recipe,
    say: Callable[[str], None] = lambda line: None,
) -> Kernels:
    """The fastest kernels whose gradients are right for this network; see `kernels.chosen`."""
    images, labels = next(training.plain(2 * recipe.batch))
    return kernels.chosen(
        Problem(network, {"input": images}, labels),
        {"weights": 1},
        say=say,
        mode=kernels.training_mode,
        precision=torch.bfloat16 if recipe.precision == "bfloat16" else None,
    ).kernels


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def _restored(
    state_file: Path,
    identity: Mapping[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> list[dict[str, Any]]:
    """Put network and optimizer where `state_file` left them; returns the history up to there."""
    state = read(state_file)
    if "identity" not in state:
        raise ValueError(f"{state_file} is no state of a training. Delete it, or pass --out.")
    was, now = (
        {k: v for k, v in entries.items() if k != "recipe"} | entries["recipe"]
        for entries in (state["identity"], identity)
    )
    for name, value in now.items():
        if was.get(name) != value:
            raise ValueError(
                f"{state_file} belongs to a run with {name}={was.get(name)}, this one has "
                f"{name}={value}. Finish that run, delete the file, or pass --out."
            )
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return list(state["history"])


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
        batches, f"epoch {epoch + 1}/{recipe.epochs}", steps, disable=None if progress else True,
        leave=False, unit="step", file=sys.stderr,
    ) as bar:  # fmt: skip
        for step, (images, labels) in enumerate(bar):
            last = step == steps - 1
            rate = learning_rate(recipe, epoch * steps + step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            watching: AbstractContextManager[dict[str, dict[str, float]]]
            watching = watched(network) if last else nullcontext({})
            with watching as seen, autocast:
                logits = network(images)
            loss = functional.cross_entropy(
                logits.float(), labels, label_smoothing=recipe.smoothing
            )
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


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m checkpoints.train",
        description="Train a network and save it as one self-describing file. The same command "
        "again continues a run that was stopped.",
    )
    parser.add_argument(
        "--model", required=True, metavar="NAME",
        help="a registered name such as fmmnet20, path/to/file.py:build or package.module:build",
    )  # fmt: skip
    parser.add_argument(
        "--option", action="append", default=[], type=options.key_value, metavar="NAME=VALUE",
        help="keyword argument of the model, such as width=16 or merge=sigmoid_shortcut",
    )  # fmt: skip
    parser.add_argument(
        "--data", required=True, metavar="NAME",
        help="fashion-mnist, cifar10, cifar100, npz:FILE, folder:DIR, or package.module:function",
    )  # fmt: skip
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of its files")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="resize a folder's")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="of the weights, the order and the augmentation (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="the checkpoint to write; .safetensors in that format (default: MODEL-seedN.pt)",
    )  # fmt: skip
    parser.add_argument("--half", action="store_true", help="store the weights as float16")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU where there is one)")
    options.add_flags(parser.add_argument_group("recipe"), Recipe)
    chosen = parser.parse_args(arguments)
    name = chosen.model.rpartition("/")[2].replace(":", "-")
    out = chosen.out or Path(f"{name}-seed{chosen.seed}.pt")
    size = chosen.size and tuple(chosen.size)
    try:
        allocator.keep_freed_memory()
        recipe = options.from_flags(Recipe, chosen)
        device = device_named(chosen.device)
        if out.exists():
            raise ValueError(f"{out} exists already. Delete it, or pass another --out.")
        out.parent.mkdir(parents=True, exist_ok=True)
        trained = train(
            chosen.model,
            dict(chosen.option),
            load_images(chosen.data, "train", chosen.data_root, size),
            load_images(chosen.data, "test", chosen.data_root, size),
            recipe,
            seed=chosen.seed,
            device=device,
            state_file=out.with_name(out.name + ".train.pt"),
            progress=True,
        )
        checkpoint.save(trained, out, half=chosen.half)
        out.with_name(out.name + ".train.pt").unlink()
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split("\n")), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command continues after the last whole epoch.", file=sys.stderr)
        return 130
    for name, value in trained.metrics.items():
        print(f"{name} {value:.4f}", file=sys.stderr)
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
