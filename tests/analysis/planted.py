"""A small folder of results with known effects, as `landscape.study` leaves one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from landscape.core import store

SEEDS = 8
ARMS = {"vanilla": "baseline", "multiplicative": "treatment", "gated": "control"}
EFFECT = {"vanilla": 0.0, "multiplicative": -0.5, "gated": -0.1}  # log ratio of the gradients
EXAMPLES = 20


def planted(folder: Path, surface: Any, *, seeds: int = SEEDS) -> Path:
    """Write the folder: gradients lower by exp(-0.5), accuracies that differ by nothing."""
    results, checkpoints = [], []
    for number, (arm, seed) in enumerate((a, s) for a in ARMS for s in range(seeds)):
        sha256 = f"{number:064x}"
        generator = np.random.default_rng([seed, list(ARMS).index(arm)])
        for label, result in (
            ("near", _sensitivity(arm, seed, generator)),
            ("plane", _plane(surface, arm, generator)),
        ):
            file = f"{arm}-seed{seed}.{label}.h5"
            about = {"file": f"{arm}-seed{seed}.pt", "sha256": sha256, "model": "resnet8"}
            data = {"name": "planted", "split": "test", "examples": EXAMPLES}
            result.attrs["provenance"] = json.dumps({"checkpoint": about, "data": data})
            store.save(result, folder / file)
            probe = result.attrs["probe"]
            command = f"python -m landscape.{probe} --ckpt {arm}-seed{seed}.pt --out {file}"
            results.append(
                {"arm": arm, "seed": seed, "probe": label, "file": file, "command": command}
            )
        checkpoints.append(
            {
                "arm": arm,
                "seed": seed,
                "file": f"{arm}-seed{seed}.pt",
                "sha256": sha256,
                "model": "resnet8",
                "options": {"width": 4},
                "recipe": {},
                "metrics": {"test_accuracy": 0.9 + 0.001 * seed},
                "parameters": 4321,
            }
        )
    manifest = {
        "schema_version": 2,
        "title": "Planted <effects> & none",
        "study": _study(seeds),
        "study_sha256": "c" * 64,
        "amendments": [],
        "checkpoints": checkpoints,
        "results": results,
        "missing": [],
    }
    (folder / "study.json").write_text(json.dumps(manifest))
    return folder


def _study(seeds: int) -> dict[str, Any]:
    arms = [{"name": n, "role": r, "seeds": list(range(seeds))} for n, r in ARMS.items()]
    endpoints = [
        {
            "claim": "near",
            "name": "input-gradient norm",
            "primary": True,
            "probe": "near",
            "variable": "gradient_l2",
            "average": "log_mean",
            "compare": "log_ratio",
            "predicts": "lower",
            "margin": 0.05,
        },
        {
            "claim": "near",
            "name": "loss",
            "probe": "near",
            "variable": "loss",
            "average": "mean",
            "compare": "difference",
            "predicts": "lower",
            "margin": 0.5,
        },
        {
            "claim": "generalises",
            "name": "test accuracy",
            "primary": True,
            "probe": "checkpoint",
            "variable": "test_accuracy",
            "compare": "difference",
            "predicts": "higher",
            "margin": 0.01,
        },
    ]
    probes = {"near": {"probe": "sensitivity"}, "plane": {"probe": "surface"}}
    return {"title": "Planted", "arms": arms, "endpoints": endpoints, "probes": probes}


def _sensitivity(arm: str, seed: int, generator: np.random.Generator) -> xr.Dataset:
    common = np.random.default_rng(99).normal(size=EXAMPLES)  # of the images, so of all networks
    noise = 0.02 * generator.normal(size=EXAMPLES)
    norms = np.exp(common + 0.1 * seed + EFFECT[arm] + noise)
    slope = {"units": "nat / pixel range", "long_name": "L2 norm of the loss gradient"}
    data = {
        "loss": ("example", norms / 10, {"units": "nat", "long_name": "loss"}),
        "correct": ("example", np.ones(EXAMPLES, "u1")),
        "gradient_l2": ("example", norms, slope),
        "measured": ("example", np.ones(EXAMPLES, "u1")),
    }
    attributes = {"probe": "sensitivity", "schema_version": 2, "spec": json.dumps({"seed": 0})}
    return xr.Dataset(data, {"example": np.arange(EXAMPLES)}, attributes)


def _plane(surface: Any, arm: str, generator: np.random.Generator) -> xr.Dataset:
    tilt = 0.1 * generator.normal()
    axis = np.linspace(-1, 1, 5)
    result: xr.Dataset = surface(
        lambda a, b: 0.5 + np.exp(EFFECT[arm]) * (a**2 + b**2 + tilt * a * b), alpha=axis, beta=axis
    )
    return result
