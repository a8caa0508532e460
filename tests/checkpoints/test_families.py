"""A model family from outside: one file and one line, and its files load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpoints import loading, registry
from checkpoints.models import resnet
from checkpoints.models.family import Family


class ViT(nn.Module):
    """A small vision transformer whose head is called `linear`."""

    def __init__(self, width: int = 16, classes: int = 10, patch: int = 7) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.shortcut = nn.ModuleDict({"norm": nn.LayerNorm(width)})
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.linear = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.shortcut["norm"](self.patches(images).flatten(2).mT)
        weights = (self.query(tokens) @ self.key(tokens).mT).softmax(dim=-1)
        return self.linear((weights @ tokens).mean(dim=1))


def width_and_classes(shapes: Any) -> dict[str, Any] | None:
    if "query.weight" not in shapes:
        return None
    return {"width": shapes["query.weight"][0], "classes": shapes["linear.weight"][0]}


@pytest.fixture(autouse=True)
def shipped_alone() -> Iterator[None]:
    """The registry without families added since, which may share a name or fit the same files."""
    families, models = list(registry.FAMILIES), dict(registry.MODELS)
    registry.FAMILIES[:] = [resnet.FAMILY]
    registry.MODELS.clear()
    registry.MODELS.update(resnet.FAMILY.builders)
    yield
    registry.FAMILIES[:] = families
    registry.MODELS.clear()
    registry.MODELS.update(models)


@pytest.fixture
def vit() -> Family:
    family = Family({"vit_tiny": ViT}, options_from=width_and_classes)
    registry.register(family)
    return family


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({"state_dict": ViT(width=8, classes=5).state_dict()}, tmp_path / "vit.pth")
    return tmp_path / "vit.pth"


@pytest.mark.parametrize("model", ["vit_tiny", None])
def test_it_loads_its_own_state_dict_by_name_and_by_recognition(
    vit: Family, file: Path, model: str | None
) -> None:
    said: list[str] = []
    loaded = loading.load(file, model=model, say=said.append)
    assert loaded.model == "vit_tiny"
    assert loaded.options == {"width": 8, "classes": 5}
    assert set(loaded.state_dict) == set(ViT().state_dict())
    assert loaded.network()(torch.zeros(2, 1, 28, 28)).shape == (2, 5)
    assert bool(said) == (model is None)


def test_it_is_the_end_of_a_line_from_its_own_kind(vit: Family, file: Path) -> None:
    origin = ViT(width=8, classes=5).state_dict()
    end = loading.load_end(file, origin, {})
    stored = torch.load(file, weights_only=True)["state_dict"]
    assert all(torch.equal(end[name], stored[name]) for name in origin)


def test_without_its_family_the_file_is_not_taken_for_another(file: Path) -> None:
    with pytest.raises(ValueError, match="no registered model fits"):
        loading.load(file)


def test_a_name_is_registered_once(vit: Family) -> None:
    with pytest.raises(ValueError, match="vit_tiny: a model of that name"):
        registry.register(vit)
