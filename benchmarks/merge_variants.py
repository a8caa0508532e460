"""Which product trains well and stably? Short trainings of every merge, one line each.

    python benchmarks/merge_variants.py --out merges.jsonl --seeds 0 1

Fashion-MNIST, ResNet-20, 10,000 images, 4 epochs, tested on 2,000. Finished lines are kept, so a
stopped run continues. The table in docs/models.md comes from here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from checkpoints.data.images import interleave
from checkpoints.device import keep_freed_memory
from checkpoints.models.merge import MERGES
from checkpoints.registry import load_images
from checkpoints.train.loop import train
from checkpoints.train.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("merges.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--merges", nargs="+", default=list(MERGES), choices=list(MERGES))
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--data-root", type=Path)
    chosen = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = Recipe(
        epochs=chosen.epochs, examples=chosen.examples, rate=chosen.rate, validation=1000
    )
    train_images = load_images("fashion-mnist", "train", chosen.data_root)
    test = load_images("fashion-mnist", "test", chosen.data_root)
    sides = train_images, test.take(interleave(test.labels)[:2000])
    lines = chosen.out.read_text().splitlines() if chosen.out.exists() else []
    rows = [json.loads(line) for line in lines]
    for seed in chosen.seeds:
        for merge in chosen.merges:
            key = {"model": chosen.model, "merge": merge, "seed": seed, "rate": chosen.rate}
            key |= {"epochs": chosen.epochs, "examples": chosen.examples}
            if any(key.items() <= row.items() for row in rows):
                continue
            try:
                here = {"seed": seed, "device": device}
                trained = train(chosen.model, {"merge": merge}, *sides, recipe, **here)
                row = key | dict(trained.metrics)
                row["epochs_test_accuracy"] = [r["test_accuracy"] for r in trained.history]
                blocks = trained.history[-1]["blocks"]
                row["last_block"] = blocks[list(blocks)[-1]]
            except ValueError as error:
                row = key | {"stopped": str(error)}
            rows.append(row)
            with chosen.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(merge, seed, row.get("test_accuracy_last", row.get("stopped")), flush=True)


if __name__ == "__main__":
    main()
