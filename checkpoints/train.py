"""Train a registered model: python -m checkpoints.train --model fmmnet20 --data fashion-mnist."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from checkpoints import allocator, checkpoint, flags
from checkpoints.checkpoint import Checkpoint
from checkpoints.data.images import Images, interleave
from checkpoints.flags import option
from checkpoints.registry import load_images

STATE_VERSION = 1


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
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def normalized(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 as normalised float32, channels last in memory."""
        scale, offset = 1 / (255 * self.std), self.mean / self.std
        images = torch.addcmul(-offset[:, None, None], pixels.float(), scale[:, None, None])
        return images.contiguous(memory_format=torch.channels_last)

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
            f"--examples {examples} ask for {validation + max(examples, 1)}."
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
    std = np.sqrt(shares @ values**2 - mean**2)
    if not std.all():
        raise ValueError(f"{images.name}: a channel has the same value in every pixel.")
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(std, 4).tolist())


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Batches, size: int = 100) -> tuple[float, float]:
    """Mean cross-entropy (nat) and accuracy (fraction), in eval mode and float32."""
    training = network.training
    network.eval()
    loss, hits = 0.0, 0
    for images, labels in batches.plain(size):
        logits = network(images).double()
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        hits += int((logits.argmax(1) == labels).sum())
    network.train(training)
    return loss / len(batches.labels), hits / len(batches.labels)


@contextmanager
def watched(network: nn.Module) -> Iterator[dict[str, dict[str, float]]]:
    """Record both factors of every block's merge while the context is open.

    Yields:
        {block: {residual_mean, residual_var, shortcut_mean, shortcut_var, activation_max}},
        filled by the next forward pass. Science: a product whose factors drift from mean 1
        vanishes or explodes over depth.
    """
    seen: dict[str, dict[str, float]] = {}

    def record(block: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, factors: tuple[Tensor, ...], merged: Tensor) -> None:
            row: dict[str, float] = {}
            for name, factor in zip(("residual", "shortcut"), factors[:2], strict=True):
                variance, mean = torch.var_mean(factor.detach().float())
                row |= {f"{name}_mean": mean.item(), f"{name}_var": variance.item()}
            seen[block] = row | {"activation_max": merged.detach().abs().max().item()}

        return hook

    hooks = [
        module.register_forward_hook(record(name.removesuffix(".merge")))
        for name, module in network.named_modules()
        if name.endswith(".merge")
    ]
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
    of threads): each epoch draws from its own generator, seeded by (seed, epoch).

    Args:
        model: a name in `MODELS`, or a builder.
        options: the builder's keyword arguments; classes and channels are added from the data.
        train_images: its held-out part selects the epoch that `validation_selected` reports.
        test_images: evaluated after every epoch, used for nothing but reporting.
        recipe: its precision resolved.
        seed: of the initial weights, the order and the augmentation.
        device: where to train.
        state_file: written after every epoch, whole or not at all.
        progress: show a bar on stderr.

    Returns:
        The last epoch's weights, with metrics and history.

    Raises:
        ValueError: the loss stopped being finite; or `state_file` belongs to another run.
    """
    if len(test_images.classes) != len(train_images.classes):
        raise ValueError(f"{train_images.name}: training and test images differ in their classes.")
    kept, held = split(train_images, recipe.validation, recipe.examples)
    mean, std = statistics(kept)
    channels = {"mean": torch.tensor(mean, device=device), "std": torch.tensor(std, device=device)}

    def batches(images: Images) -> Batches:
        pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
        return Batches(pixels.to(device), labels.to(device), **channels)

    training, validation, test = batches(kept), batches(held), batches(test_images)
    options = dict(options)
    options |= {"classes": len(train_images.classes), "channels": train_images.pixels.shape[1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = checkpoint.build(model, options)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
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
        state = torch.load(state_file, map_location=device, weights_only=True)
        for name, value in identity.items():
            if state["identity"].get(name) != value:
                raise ValueError(
                    f"{state_file} belongs to a run with {name}={state['identity'].get(name)}, "
                    f"this one has {name}={value}. Finish that run, delete the file, or pass --out."
                )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
    steps = len(kept) // recipe.batch
    if not steps:
        raise ValueError(f"--batch {recipe.batch} exceeds the {len(kept)} training images.")
    cast = torch.autocast(
        device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16", cache_enabled=True
    )
    for epoch in range(len(history), recipe.epochs):
        network.train()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        epoch_batches = training.augmented(recipe.batch, recipe.shift, generator, flip=recipe.flip)
        total = torch.zeros((), dtype=torch.float64, device=device)
        row: dict[str, Any] = {"epoch": epoch + 1}
        bar = tqdm(
            epoch_batches, f"epoch {epoch + 1}/{recipe.epochs}", steps, disable=not progress,
            leave=False, unit="step", file=sys.stderr,
        )  # fmt: skip
        for step, (images, labels) in enumerate(bar):
            rate = learning_rate(recipe, epoch * steps + step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate

            def forward(images: Tensor = images, labels: Tensor = labels) -> Tensor:
                with cast:
                    logits = network(images)
                return functional.cross_entropy(
                    logits.float(), labels, label_smoothing=recipe.smoothing
                )

            optimizer.zero_grad(set_to_none=True)
            if step == steps - 1:
                with watched(network) as seen:
                    forward().backward()  # type: ignore[no-untyped-call]
                norms = gradient_norms(network, iter(seen))
                row["blocks"] = {b: r | {"gradient_norm": norms[b]} for b, r in seen.items()}
            else:
                loss = forward()
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            optimizer.step()
            if step % 20 == 19 or step == steps - 1:
                running = (total / max(step, 1)).item()
                if not math.isfinite(running):
                    raise ValueError(
                        f"{model}: the loss became {running} by step {step + 1} of epoch "
                        f"{epoch + 1} (learning rate {rate:.3g}). Try a smaller --rate, or "
                        "another merge."
                    )
                bar.set_postfix(loss=f"{running:.4f}")
        row |= {"rate": rate, "train_loss": running}
        row["validation_loss"], row["validation_accuracy"] = evaluate(network, validation)
        row["test_loss"], row["test_accuracy"] = evaluate(network, test)
        history.append(row)
        if progress:
            tqdm.write(
                f"epoch {epoch + 1}/{recipe.epochs}  loss {running:.4f}  "
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


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m checkpoints.train",
        description="Train a network and save it as one self-describing file. The same command "
        "again continues a run that was stopped.",
    )
    parser.add_argument("--model", required=True, help="a registered name such as fmmnet20")
    parser.add_argument(
        "--option", action="append", default=[], type=flags.key_value, metavar="NAME=VALUE",
        help="keyword argument of the model, such as width=16 or merge=sigmoid_shortcut",
    )  # fmt: skip
    parser.add_argument("--data", required=True, help="a data set's name, npz:FILE or folder:DIR")
    parser.add_argument("--data-root", type=Path, help="folder that holds the data set's files")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_argument("--out", type=Path, help="checkpoint to write (default: MODEL-seedN.pt)")
    parser.add_argument("--half", action="store_true", help="store the weights as float16")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    flags.add_flags(parser.add_argument_group("recipe"), Recipe)
    chosen = parser.parse_args(arguments)
    out = chosen.out or Path(f"{chosen.model}-seed{chosen.seed}.pt")
    try:
        allocator.keep_freed_memory()
        device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        recipe = flags.from_flags(Recipe, chosen).resolved(device)
        if out.exists():
            raise ValueError(f"{out} exists already. Delete it, or pass another --out.")
        trained = train(
            chosen.model,
            dict(chosen.option),
            load_images(chosen.data, "train", chosen.data_root),
            load_images(chosen.data, "test", chosen.data_root),
            recipe,
            seed=chosen.seed,
            device=device,
            state_file=out.with_name(out.name + ".train.pt"),
            progress=True,
        )
        checkpoint.save(trained, out, half=chosen.half)
        out.with_name(out.name + ".train.pt").unlink()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for name, value in trained.metrics.items():
        print(f"{name} {value:.4f}", file=sys.stderr)
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
