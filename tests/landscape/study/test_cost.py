from __future__ import annotations

import pytest
import torch
from torch import nn

from checkpoints.registry import MODELS
from landscape.study.cost import cost

CPU = torch.device("cpu")


def test_a_cost_is_that_of_a_hand_count() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3)
    )
    found = cost(network, (2, 5, 5), CPU)
    assert found["parameters"] == 4 * 2 * 9 + 100 * 3 + 3
    assert found["flops"] == 2 * (25 * 4 * 2 * 9 + 100 * 3)
    # The input of either layer; the second is the ReLU's result too, and so kept once.
    assert found["memory"] == 4 * (2 * 25 + 4 * 25)
    assert found["seconds"] > 0
    assert found["module_seconds"] == 0
    assert found.keys() == {"parameters", "flops", "memory", "seconds", "module_seconds"}


def test_terms_cost_operations_and_their_module_time() -> None:
    options = {"width": 8, "classes": 10, "channels": 1}
    without = cost(MODELS["resnet8"](**options), (1, 12, 12), CPU)
    key = cost(MODELS["spatial_resnet8"](terms="0010", **options), (1, 12, 12), CPU)
    every = cost(MODELS["spatial_resnet8"](**options), (1, 12, 12), CPU)
    for name in ("parameters", "flops", "memory"):
        assert without[name] < key[name] < every[name]
    assert without["module_seconds"] == 0 < every["module_seconds"] < every["seconds"]
    again = cost(MODELS["spatial_resnet8"](**options), (1, 12, 12), CPU)
    assert again["memory"] == pytest.approx(every["memory"])
