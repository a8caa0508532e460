"""A study of a factorial and other arms with made-up accuracies, as `landscape.study` leaves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from analysis.contrasts import Design
from analysis.stats.factorial import settings

FACTORS = ("A", "B")
OTHERS = ("none", "other")
MEANS = {"00": 0.80, "01": 0.84, "10": 0.81, "11": 0.85, "none": 0.79, "other": 0.90}
FLOPS = {"00": 1e6, "01": 2e6, "10": 3e6, "11": 4e6, "none": 5e5, "other": 2e6}


def endpoint(name: str, contrast: dict[str, float], **more: Any) -> dict[str, Any]:
    return {
        "claim": "first",
        "name": name,
        "primary": True,
        "probe": "checkpoint",
        "variable": "test_accuracy_last",
        "contrast": contrast,
        "compare": "difference",
        "predicts": "above",
        "margin": 0.005,
        "test": "t",
    } | more


def planted(
    folder: Path,
    endpoints: list[dict[str, Any]],
    *,
    means: dict[str, float] = MEANS,
    flops: dict[str, float] = FLOPS,
    factors: tuple[str, ...] = FACTORS,
    noise: float = 0.001,
    seeds: int = 5,
    tables: dict[str, Any] | None = None,
) -> Path:
    design = {"factors": list(factors), "checkpoints": "net-{setting}-{seed}.pt"}
    design |= {"seeds": list(range(seeds)), "reference": "none"}
    arms = Design(factors, "net-{setting}-{seed}.pt", tuple(range(seeds))).arms()
    others = [name for name in means if name not in settings(factors)]
    arms += [{"name": name, "seeds": list(range(seeds))} for name in others]
    checkpoints = []
    for number, arm in enumerate(arms):
        for seed in range(seeds):
            generator = np.random.default_rng([seed, number])
            shared = 0.01 * np.random.default_rng(seed).normal()  # of the seed, in all arms
            value = means[arm["name"]] + shared + noise * generator.normal()
            checkpoints.append(
                {
                    "arm": arm["name"],
                    "seed": seed,
                    "file": f"{arm['name']}-{seed}.pt",
                    "sha256": f"{1000 * number + seed:064x}",
                    "model": "resnet8",
                    "options": {},
                    "metrics": {"test_accuracy_last": value, "test_loss": 1 - value},
                    "parameters": 100,
                    "cost": {
                        "parameters": 100 + 10 * number,
                        "flops": flops[arm["name"]],
                        "memory": 1000.0,
                        "seconds": 1e-3 * (1 + 0.1 * generator.random()),
                        "module_seconds": 5e-4,
                    },
                }
            )
    study = {
        "title": "Many arms",
        "arms": arms,
        "design": design,
        "probes": {},
        "claims": {"first": "The first claim", "second": "The second claim"},
        "endpoints": endpoints,
    } | (tables or {})
    content = {
        "schema_version": 2,
        "title": "Many arms",
        "study": study,
        "study_sha256": "c" * 64,
        "amendments": [],
        "checkpoints": checkpoints,
        "results": [],
        "missing": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(content))
    return folder
