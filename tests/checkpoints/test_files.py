"""The checkpoints that ship are what their descriptions say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checkpoints import loading
from checkpoints.registry import load_images
from checkpoints.source import load_problem
from checkpoints.train.batches import Batches
from checkpoints.train.loop import evaluate

pytestmark = pytest.mark.timeout(240)

LONG = ("resnet18", "fmmnet18")  # trained on all images
SAMPLE = 500  # images of the sample on which the larger networks are measured
FILES = sorted(
    (Path(__file__).parents[2] / "checkpoints" / "files").glob("*.pt"), key=lambda path: path.name
)


def test_the_files_that_ship_are_there() -> None:
    names = [path.name for path in FILES]
    assert names == [
        "cbam_resnet18.pt",
        "deformable_resnet18.pt",
        "dynamic_resnet18.pt",
        "fmmnet18.pt",
        "fmmnet8.pt",
        "resnet18.pt",
        "resnet8.pt",
        "se_resnet18.pt",
        "spatial_resnet18-0010.pt",
        "spatial_resnet18.pt",
    ]
    assert sum(path.stat().st_size for path in FILES) < 20e6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_that_ships_describes_itself(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    loaded = loading.load(path.name)
    assert loaded.model == path.stem.partition("-")[0] == content["model"]
    assert loaded.data == "fashion-mnist"
    assert loaded.input_shape == (1, 28, 28)
    assert len(loaded.history) == loaded.recipe["epochs"]
    assert loaded.metrics["test_accuracy_last"] == loaded.history[-1]["test_accuracy"]
    assert all("gradient_norm" in block for block in loaded.history[-1]["blocks"].values())
    assert loaded.metrics["test_accuracy_last"] >= (0.925 if path.stem in LONG else 0.8)
    if path.stem.endswith("18"):
        assert loaded.options["width"] == 16


@pytest.mark.parametrize("path", [p for p in FILES if p.stem.endswith("t8")], ids=lambda p: p.stem)
def test_a_file_that_ships_has_the_loss_that_it_was_trained_to(path: Path) -> None:
    """Stored as float16; the loss over the whole test split agrees to 1e-3."""
    try:
        images = load_images("fashion-mnist", "test")
    except ValueError as error:
        pytest.skip(f"needs the whole Fashion-MNIST: {error}")
    loaded = loading.load(path.name)
    batches = Batches(
        torch.from_numpy(images.pixels),
        torch.from_numpy(images.labels),
        torch.tensor(loaded.mean),
        torch.tensor(loaded.std),
    )
    loss, accuracy = evaluate(loaded.network(), batches)
    assert loss == pytest.approx(loaded.metrics["test_loss"], abs=1e-3)
    # One image in 2,000 may change sides by the rounding of the weights.
    assert accuracy == pytest.approx(loaded.metrics["test_accuracy_last"], abs=5e-4)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_that_ships_classifies_the_sample_as_well_as_its_test_split(path: Path) -> None:
    problem = load_problem(path.name, examples=SAMPLE)
    with torch.inference_mode():
        hits = [
            problem.outputs(problem.model, {"input": part}).argmax(1)
            for part in problem.inputs["input"].split(100)
        ]
    accuracy = float((torch.cat(hits) == problem.targets).double().mean())
    told = loading.load(path.name).metrics["test_accuracy_last"]
    # Four standard errors of a share over so many images.
    assert abs(accuracy - told) < 4 * (told * (1 - told) / SAMPLE) ** 0.5
