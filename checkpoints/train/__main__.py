"""Train a registered model: python -m checkpoints.train --model fmmnet20 --data fashion-mnist."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from checkpoints import checkpoint, interrupts, loading, options
from checkpoints.checkpoint import Checkpoint
from checkpoints.device import device_named, keep_freed_memory
from checkpoints.reader import one_line
from checkpoints.registry import LONGER, load_images
from checkpoints.train.loop import OF_DATA, differing_options, train
from checkpoints.train.recipe import Recipe, completed
from checkpoints.whole_file import check_name, shortened


@options.given_as_flags()
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m checkpoints.train",
        description="Train a network and save it as one self-describing file. The same command "
        "again continues a stopped run.",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="a registered name such as fmmnet20, path/to/file.py:build or package.module:build",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=options.key_value,
        metavar="NAME=VALUE",
        help="keyword argument of the model, such as width=16 or merge=sigmoid_shortcut",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="NAME",
        help="fashion-mnist, cifar10, cifar100, npz:FILE, folder:DIR, or package.module:function",
    )
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder with the files of the data set"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="resize the images of folder:DIR"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the weights, the order and the augmentation (default: 0)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the checkpoint to write; .safetensors in that format (default: MODEL-seedN.pt)",
    )
    parser.add_argument("--half", action="store_true", help="store the weights as float16")
    parser.add_argument(
        "--snapshots",
        type=int,
        metavar="N",
        help="also save the network before training and after every N epochs, as "
        "OUT.snapshots/epochNNNN.pt, for landscape.trajectory",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    options.add_flags(parser.add_argument_group("recipe"), Recipe)
    chosen = parser.parse_args(arguments)
    name = chosen.model.rpartition("/")[2].replace(":", "-")
    out = chosen.out or Path(shortened(f"{name}-seed{chosen.seed}.pt"))
    size = chosen.size and tuple(chosen.size)
    interrupts.raise_stopped()
    try:
        check_name(out)
        keep_freed_memory()
        recipe = options.from_flags(Recipe, chosen)
        if chosen.snapshots is not None and chosen.snapshots < 1:
            raise ValueError(f"--snapshots {chosen.snapshots}; expected 1 or more epochs.")
        device = device_named(chosen.device)
        if out.exists():
            _check_complete(out, chosen, recipe.resolved(device))
            print(one_line(str(out)))
            return 0
        out.parent.mkdir(parents=True, exist_ok=True)
        trained = train(
            chosen.model,
            dict(chosen.option),
            load_images(chosen.data, "train", chosen.data_root, size),
            load_images(chosen.data, "test", chosen.data_root, size),
            recipe,
            longer=load_images(longer, "test") if (longer := LONGER.get(chosen.data)) else None,
            seed=chosen.seed,
            device=device,
            state_file=out.with_name(out.name + ".train.pt"),
            progress=True,
            snapshot=_snapshots(out, chosen.snapshots, half=chosen.half),
        )
        checkpoint.save(trained, out, half=chosen.half)
        out.with_name(out.name + ".train.pt").unlink()
    except (ValueError, OSError) as error:
        print(one_line(str(error)), file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print("Stopped. The same command continues after the last complete epoch.", file=sys.stderr)
        return interrupts.status(stopped)
    for name, value in trained.metrics.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        print(f"{name} {shown}", file=sys.stderr)
    print(one_line(str(out)))
    return 0


def _snapshots(out: Path, every: int | None, *, half: bool) -> Callable[[Checkpoint], None] | None:
    """What saves every so many epochs next to `out`; an epoch that is there stays.

    The same run computes the same network again, so that a killed run misses no epoch.
    """
    if every is None:
        return None
    folder = out.with_name(f"{out.stem}.snapshots")

    def save(taken: Checkpoint) -> None:
        epoch = int(taken.metrics["epoch"])
        path = folder / f"epoch{epoch:04}.pt"
        if epoch % every == 0 and not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.save(taken, path, half=half)

    return save


def _check_complete(out: Path, chosen: argparse.Namespace, recipe: Recipe) -> None:
    """Refuse a file that is there and is not what this command would train.

    Raises:
        ValueError: with the first difference.
    """
    advice = "Delete it, or pass another --out."
    try:
        there = loading.recorded(out)
    except ValueError as error:
        raise ValueError(f"{out} exists already, and is no checkpoint. {advice}") from error
    was = completed(there.recipe)
    asked = {
        "model": (there.model, chosen.model),
        "seed": (there.seed, chosen.seed),
        "data": (there.data, chosen.data),
        **{name: (was.get(name), value) for name, value in asdict(recipe).items()},
    }
    if there.model == chosen.model:
        of_data = {name: there.options[name] for name in OF_DATA if name in there.options}
        asked |= differing_options(chosen.model, there.options, {**dict(chosen.option), **of_data})
    for name, (found, now) in asked.items():
        if found != now:
            raise ValueError(f"{out} exists already, with {name}={found}, not {now}. {advice}")


if __name__ == "__main__":
    raise SystemExit(main())
