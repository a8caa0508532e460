from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.layout_engine import ConstrainedLayoutEngine

from analysis.figures import style

Surface = Callable[..., xr.Dataset]


def _surface(
    loss: Any,
    *,
    alpha: Any,
    beta: Any = None,
    file: str | None = "resnet18.pt",
    units: str = "filter norms",
    **spec: Any,
) -> xr.Dataset:
    """A result as `landscape.surface` stores it: `loss` is an array or a function of the grid."""
    grid = {"alpha": np.asarray(alpha, float)}
    if beta is not None:
        grid["beta"] = np.asarray(beta, float)
    dims = tuple(grid)
    if callable(loss):
        loss = loss(*np.meshgrid(*grid.values(), indexing="ij"))
    loss = np.asarray(loss, float)
    accuracy = np.where(np.isfinite(loss), np.exp(-np.abs(np.nan_to_num(loss, posinf=0.0))), np.nan)
    nat, fraction = {"units": "nat", "long_name": "loss"}, {"units": "1", "long_name": "accuracy"}
    return xr.Dataset(
        {
            "loss": (dims, loss, nat),
            "loss_stderr": (dims, np.full(loss.shape, 0.01), nat),
            "accuracy": (dims, accuracy, fraction),
            "accuracy_stderr": (dims, np.full(loss.shape, 0.02), fraction),
            "measured": (dims, np.ones(loss.shape, "u1")),
        },
        {
            dim: (dim, values, {"long_name": f"step along direction {number}", "units": units})
            for number, (dim, values) in enumerate(grid.items(), start=1)
        },
        {
            "probe": "surface",
            "schema_version": 2,
            "spec": json.dumps({"space": "weights", "seed": 0, "to": None} | spec),
            "provenance": json.dumps(
                {
                    "checkpoint": {"file": file, "sha256": "0" * 64, "model": "resnet20"},
                    "data": {"name": "fashion-mnist-sample", "split": "test", "examples": 300},
                }
            ),
        },
    )


@pytest.fixture(scope="session")
def surface() -> Surface:
    return _surface


@pytest.fixture
def bowl() -> xr.Dataset:
    """Not square, and not symmetric: 7 steps along alpha, 5 along beta."""
    return _surface(
        lambda a, b: 0.5 + (a - 0.3 * b) ** 2 + 0.2 * b**2,
        alpha=np.linspace(-1, 1, 7),
        beta=np.linspace(-0.5, 0.5, 5),
    )


@pytest.fixture
def not_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that are made, and neither laid out nor divided, which takes most of the time."""
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda *_: None)
    monkeypatch.setattr(style, "TALLEST", math.inf)
