from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from checkpoints import checkpoint, loading
from checkpoints.checkpoint import Checkpoint
from checkpoints.data.images import Images
from checkpoints.models.merge import MERGES
from checkpoints.models.resnet import ResNet
from checkpoints.train import loop, monitor
from checkpoints.train import recipe as recipe_module
from checkpoints.train.__main__ import main
from checkpoints.train.batches import Batches, split, statistics
from checkpoints.train.loop import evaluate, selected_epoch
from checkpoints.train.monitor import watched
from checkpoints.train.recipe import Recipe, learning_rate

CPU = torch.device("cpu")
OPTIONS = {"width": 4}
RECIPE = Recipe(epochs=3, batch=16, rate=0.05, shift=1, validation=20, precision="float32")


def refusal(call: Callable[[], object]) -> str:
    """The message of the ValueError that `call` raises, which must be one printable line."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    return message


def made_images(count: int = 120, seed: int = 0, side: str = "train", channels: int = 1) -> Images:
    """Noise with a bright column whose place is the class."""
    random = np.random.default_rng(seed)
    labels = (np.arange(count) * 7 % 5).astype(np.int64)
    pixels = random.integers(0, 120, (count, channels, 8, 8)).astype(np.uint8)
    pixels[np.arange(count), :, :, 2 + labels] += 100
    return Images(pixels, labels, tuple("abcde"), "columns", side)


def trained(recipe: Recipe = RECIPE, **changes: Any) -> Checkpoint:
    given: dict[str, Any] = {
        "model": "fmmnet8",
        "options": OPTIONS,
        "train_images": made_images(),
        "test_images": made_images(40, 1, "test"),
        "seed": 0,
        "device": CPU,
    }
    return loop.train(recipe=recipe, **(given | changes))


@pytest.fixture(scope="module")
def straight() -> Checkpoint:
    return trained()


def test_a_wrong_kernel_trains_nothing(tmp_path: Path) -> None:
    """A gradient that is wrong channels-last; in bfloat16, whose rounding is large, too."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    for precision in ("float32", "bfloat16"):
        recipe = replace(RECIPE, epochs=1, precision=precision)
        data = {
            "train_images": made_images(channels=3),
            "test_images": made_images(40, 1, "test", channels=3),
        }
        made = trained(recipe, model=f"{tmp_path / 'faulty.py'}:build", options={}, **data)
        assert [row["kernels"] for row in made.history] == ["contiguous"]
        assert trained(recipe).history[0]["kernels"] in ("channels_last", "contiguous")


def test_a_branch_that_runs_in_training_alone_decides_the_kernels_too(tmp_path: Path) -> None:
    (tmp_path / "auxiliary.py").write_text(AUXILIARY)
    recipe = replace(RECIPE, epochs=1)
    made = trained(recipe, model=f"{tmp_path / 'auxiliary.py'}:build", options={})
    assert [row["kernels"] for row in made.history] == ["contiguous"]


AUXILIARY = """
from torch import nn


class Network(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.stem, self.head = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(4, classes)
        self.auxiliary = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(4, 8, 1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, classes),
        )

    def forward(self, x):
        x = self.stem(x).relu()
        outputs = self.head(x.mean((2, 3)))
        return outputs + 0.3 * self.auxiliary(x) if self.training else outputs


def build(classes, channels):
    return Network(classes, channels)
"""


FAULTY = """
import torch
from torch import nn


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor, wrong):
        ctx.save_for_backward(x, factor)
        ctx.wrong = wrong
        return x * factor

    @staticmethod
    def backward(ctx, gradient):
        x, factor = ctx.saved_tensors
        return gradient * factor * (-2 if ctx.wrong else 1), (gradient * x).sum(), None


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return Half.apply(x, self.factor, x.dtype != torch.float64 and not x.is_contiguous())


def build(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), Layer(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )
"""


def assert_same(found: Checkpoint, wanted: Checkpoint) -> None:
    assert found.state_dict.keys() == wanted.state_dict.keys()
    for name, value in wanted.state_dict.items():
        assert found.state_dict[name].equal(value), name
    assert found.metrics == wanted.metrics
    assert found.history == wanted.history


# What the data become.


def as_batches(images: Images, mean: float = 0.0, std: float = 1.0) -> Batches:
    channels = images.pixels.shape[1]
    return Batches(
        torch.from_numpy(images.pixels),
        torch.from_numpy(images.labels),
        torch.full((channels,), mean),
        torch.full((channels,), std),
    )


def numbered(count: int, shape: tuple[int, ...] = (2, 5, 4)) -> Images:
    """Random images, each with a class of its own."""
    pixels = np.random.default_rng(0).integers(1, 256, (count, *shape)).astype(np.uint8)
    return Images(pixels, np.arange(count), tuple(map(str, range(count))), "noise", "train")


def test_every_crop_is_a_shifted_or_mirrored_copy_of_its_source() -> None:
    images, shift = numbered(40), 2
    generator = torch.Generator().manual_seed(0)
    seen: dict[tuple[int, int, bool], int] = {}
    for _ in range(20):
        labels = []
        for crops, sources in as_batches(images).augmented(8, shift, generator, flip=True):
            labels += sources.tolist()
            for crop, source in zip(crops, sources.tolist(), strict=True):
                bytes_ = (crop * 255).round().to(torch.uint8).numpy()
                padded = np.pad(images.pixels[source], ((0, 0), (shift,) * 2, (shift,) * 2))
                fits = []
                for down in range(2 * shift + 1):
                    for right in range(2 * shift + 1):
                        window = padded[:, down : down + 5, right : right + 4]
                        for flip in (False, True):
                            if np.array_equal(bytes_, window[:, :, ::-1] if flip else window):
                                fits.append((down, right, flip))
                assert len(fits) == 1
                seen[fits[0]] = seen.get(fits[0], 0) + 1
        assert sorted(labels) == list(range(40))
    # 800 draws of 50 equally likely forms: 16 each, to within five standard errors.
    assert len(seen) == 50
    assert max(seen.values()) < 16 + 5 * 4
    mirrored = sum(count for (_, _, flip), count in seen.items() if flip)
    assert abs(mirrored - 400) < 4 * math.sqrt(800) / 2


def test_without_shift_and_flip_the_originals_come_in_another_order() -> None:
    images = numbered(30)
    batches = as_batches(images, mean=0.25, std=0.5)
    plain = dict(
        (label, image)
        for part, labels in batches.plain(7)
        for image, label in zip(part, labels.tolist(), strict=True)
    )
    assert list(plain) == list(range(30))
    orders = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        order = []
        for part, labels in batches.augmented(7, 0, generator, flip=False):
            order += labels.tolist()
            for image, label in zip(part, labels.tolist(), strict=True):
                assert image.equal(plain[label])
        assert len(order) == len(set(order)) == 28  # the last two make no whole batch
        orders.append(order)
    assert orders[0] == orders[1] != orders[2]


def test_pixels_are_normalized_channel_by_channel() -> None:
    images = numbered(5, (3, 4, 4))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 1.0])
    batches = replace(as_batches(images), mean=mean, std=std)
    ((found, labels),) = batches.plain(10)
    wanted = (images.pixels / 255.0 - mean[:, None, None].double().numpy()) / std[
        :, None, None
    ].double().numpy()
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted), rtol=1e-6, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == list(range(5))


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_numpy(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (50, channels, 6, 7)).astype(np.uint8)
    images = replace(numbered(50), pixels=pixels)
    mean, std = statistics(images)
    np.testing.assert_allclose(mean, (pixels / 255).mean(axis=(0, 2, 3)), atol=5.01e-5)
    np.testing.assert_allclose(std, (pixels / 255).std(axis=(0, 2, 3)), atol=5.01e-5)
    assert [round(value, 4) for value in mean + std] == list(mean + std)


@pytest.mark.parametrize("level", range(0, 256, 5))
def test_a_channel_without_variation_is_refused(level: int) -> None:
    pixels = np.full((4, 2, 3, 3), level, np.uint8)
    pixels[:, 0] = np.arange(36).reshape(4, 3, 3)
    line = refusal(lambda: statistics(replace(numbered(4), pixels=pixels)))
    assert "noise: a channel has the same value in every pixel" in line


def test_the_split_is_disjoint_balanced_and_keeps_all() -> None:
    images = made_images(103)
    pixels = np.random.default_rng(3).integers(0, 256, images.pixels.shape).astype(np.uint8)
    images = replace(images, pixels=pixels)
    kept, held = split(images, 25, 0)
    parts = [{image.tobytes() for image in part.pixels} for part in (kept, held)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {image.tobytes() for image in images.pixels}
    assert np.bincount(held.labels).tolist() == [5] * 5
    fewer, same = split(images, 25, 20)
    assert same.fingerprint() == held.fingerprint()
    assert np.bincount(fewer.labels).tolist() == [4] * 5
    assert {image.tobytes() for image in fewer.pixels} <= parts[0]


@pytest.mark.parametrize(("validation", "examples"), [(120, 0), (100, 21), (200, 1)])
def test_more_images_than_there_are_cannot_be_split(validation: int, examples: int) -> None:
    line = refusal(lambda: split(made_images(120), validation, examples))
    asked = validation + max(examples, 1)
    assert line == (
        f"columns has 120 training images; --validation {validation} and --examples {examples} "
        f"need {asked}. Pass smaller numbers."
    )


def test_the_held_out_images_are_the_same_for_every_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, str]] = []

    def noted(network: nn.Module, batches: Batches, size: int = 100) -> tuple[float, float]:
        calls.append((len(batches.labels), batches.pixels.numpy().tobytes().hex()))
        return 1.0, 0.5

    monkeypatch.setattr(loop, "evaluate", noted)
    trained(replace(RECIPE, epochs=1), seed=0)
    first = list(calls)
    calls.clear()
    trained(replace(RECIPE, epochs=1), seed=1)
    assert calls == first
    assert [count for count, _ in calls] == [20, 40, 100]  # validation, test, training


# The steps.


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    recipe = Recipe(epochs=5, rate=0.4, warmup=1.0)
    found = [learning_rate(recipe, step, 9) for step in range(45)]
    np.testing.assert_allclose(found[:10], 0.4 * np.arange(1, 11) / 10)
    wanted = [0.2 * (1 + math.cos(math.pi * step / 36)) for step in range(36)]
    np.testing.assert_allclose(found[9:], wanted)
    assert learning_rate(recipe, 45, 9) == pytest.approx(0)
    assert learning_rate(replace(recipe, warmup=0.0), 0, 9) == 0.4
    short = [learning_rate(replace(recipe, epochs=1), step, 9) for step in range(9)]
    np.testing.assert_allclose(short, 0.4 * np.arange(1, 10) / 10)


def small_network(merge: str = "bn_product_mean1", channels: int = 1) -> ResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ResNet(8, width=4, classes=5, channels=channels, merge=merge)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_evaluation_is_a_plain_mean_in_float64(size: int) -> None:
    images, network = made_images(23), small_network()
    network.train()
    loss, accuracy = evaluate(network, as_batches(images, 0.3, 0.5), size)
    assert network.training
    exact = small_network().double().eval()
    losses, hits = [], []
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        with torch.no_grad():
            logits = exact(torch.from_numpy((pixels[None] / 255 - 0.3) / 0.5))[0]
        losses.append(float(logits.logsumexp(0) - logits[label]))
        hits.append(int(logits.argmax()) == label)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)  # float32 against float64
    assert accuracy == np.mean(hits)
    for name, value in network.state_dict().items():
        assert value.equal(small_network().state_dict()[name])


def test_watching_tells_both_factors_of_every_block() -> None:
    network = small_network().eval()
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with watched(network) as seen, torch.no_grad():
        network(images)
    assert list(seen) == ["layer1.0", "layer2.0", "layer3.0"]
    features = torch.relu(network.bn1(network.conv1(images)))
    for name, row in seen.items():
        block: Any = network.get_submodule(name)
        with torch.no_grad():
            hidden = torch.relu(block.bn1(block.conv1(features)))
            residual = block.merge.norm_residual(block.bn2(block.conv2(hidden))).double()
            shortcut = block.merge.norm_shortcut(block.downsample(features)).double()
            merged = (residual * shortcut).float()
            features = torch.relu(merged)
        wanted = {
            "residual_mean": residual.mean(),
            "residual_var": residual.var(),
            "shortcut_mean": shortcut.mean(),
            "shortcut_var": shortcut.var(),
            "activation_max": merged.abs().max(),
        }
        assert row == pytest.approx({k: float(v) for k, v in wanted.items()}, rel=1e-4, abs=1e-6)
    seen.clear()
    with torch.no_grad():
        network(images)
    assert seen == {}


def test_watching_tells_the_factors_as_they_are_multiplied() -> None:
    """Behind their norms and sigmoids: what comes in is not what is multiplied."""
    generator = torch.Generator().manual_seed(0)
    residual, shortcut, hidden = torch.randn(3, 6, 4, 5, 5, generator=generator)
    wanted = {
        # Batch norm in train mode: mean = bias, variance = weight^2 (of 6 * 5 * 5 values).
        "bn_product_mean1": {"residual": (1.0, 0.04), "shortcut": (1.0, 1.0)},
        "sigmoid_shortcut": {
            "residual": (float(residual.mean()), float(residual.var())),
            "shortcut": (float(shortcut.sigmoid().mean()) + 0.5, float(shortcut.sigmoid().var())),
        },
        "tanh_residual": {
            "residual": (float(residual.tanh().mean()) + 1, float(residual.tanh().var())),
            "shortcut": (float(shortcut.mean()), float(shortcut.var())),
        },
    }
    for name, factors in wanted.items():
        block = torch.nn.Module()
        block.merge = MERGES[name](4)
        with watched(block) as seen:
            block.merge(residual, shortcut)
        for factor, (mean, variance) in factors.items():
            assert seen["merge"][f"{factor}_mean"] == pytest.approx(mean, abs=1e-5)
            # The unbiased variance over 600 values, of channels normalised by the biased one.
            assert seen["merge"][f"{factor}_var"] == pytest.approx(variance, rel=2e-3)
    block.merge = MERGES["inner_gate"](4)
    with watched(block) as seen:
        block.merge(residual, shortcut, hidden)
    gate = block.merge.gate(hidden).sigmoid()
    assert seen["merge"]["gate_mean"] == pytest.approx(gate.mean().item())
    assert seen["merge"]["residual_var"] == pytest.approx(float(residual.var()))


def test_gradient_norms_are_those_of_each_block() -> None:
    network = small_network()
    loss = network(torch.rand(6, 1, 8, 8)).square().sum()
    torch.autograd.backward(loss)
    found = monitor.gradient_norms(network, iter(["layer1.0", "layer3.0"]))
    for block, norm in found.items():
        squares = [
            float(p.grad.double().square().sum())
            for name, p in network.named_parameters()
            if name.startswith(block + ".") and p.grad is not None
        ]
        assert norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)


def test_one_step_is_sgd_with_momentum_and_decay_on_weights_alone() -> None:
    """Against the update rule, written out for a network of one layer."""
    images = made_images(36, channels=1)
    recipe = Recipe(
        epochs=2,
        batch=16,
        rate=0.1,
        warmup=0,
        momentum=0.9,
        decay=0.01,
        shift=0,
        flip=False,
        validation=20,
        precision="float32",
    )
    result = trained(
        recipe, model="checkpoints_line:build", options={}, train_images=images, seed=3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        start = Line(5, 1)
    kept, _ = split(images, 20, 0)
    mean, std = statistics(kept)
    weight, bias = (p.detach().double() for p in start.fc.parameters())
    speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(2):
        rate = 0.1 * 0.5 * (1 + math.cos(math.pi * epoch / 2))
        x = (torch.from_numpy(kept.pixels).double().flatten(1) / 255 - mean[0]) / std[0]
        y = nn.functional.one_hot(torch.from_numpy(kept.labels), 5).double()
        slope = ((x @ weight.T + bias).softmax(1) - y) / len(x)
        gradients = [slope.T @ x + 0.01 * weight, slope.sum(0)]
        speeds = [0.9 * v + g for v, g in zip(speeds, gradients, strict=True)]
        steps = [g + 0.9 * v for v, g in zip(speeds, gradients, strict=True)]
        weight, bias = weight - rate * steps[0], bias - rate * steps[1]
    torch.testing.assert_close(
        result.state_dict["fc.weight"].double(), weight, rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(result.state_dict["fc.bias"].double(), bias, rtol=1e-4, atol=1e-6)


class Line(nn.Module):
    """Linear regression on pixels, with dropout on request."""

    def __init__(self, classes: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(64 * channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.fc(self.dropout(images.flatten(1)))
        return result


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("checkpoints_line")
    module.build = Line  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "checkpoints_line", module)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_optimizer_has_the_recipe_s_numbers(momentum: float) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    recipe = Recipe(momentum=momentum, rate=0.3, decay=0.02)
    sgd = recipe.stepping(loop.parameter_groups(network, recipe))
    adam = replace(recipe, optimizer="adam").stepping(loop.parameter_groups(network, recipe))
    assert (type(sgd), type(adam)) == (torch.optim.SGD, torch.optim.AdamW)
    for group in sgd.param_groups:
        assert (group["momentum"], group["nesterov"]) == (momentum, momentum > 0)
    for optimizer in (sgd, adam):
        assert all(group["lr"] == 0.3 for group in optimizer.param_groups)
        groups = optimizer.param_groups
        decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
        assert {p.ndim > 1: decay for p, decay in decays.items()} == {True: 0.02, False: 0.0}
        assert set(decays) == set(network.parameters())
    assert all(group["betas"] == (momentum, 0.98) for group in adam.param_groups)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_training_loss_is_a_smoothed_mean_over_examples_and_positions(smoothing: float) -> None:
    logits = torch.linspace(-1, 2, 2 * 4 * 3, dtype=torch.float64).view(2, 4, 3)
    labels = torch.tensor([[0, 3, -100], [1, -100, -100]])

    def by_hand(row: Tensor, label: int) -> Tensor:
        wanted = torch.full((4,), smoothing / 4, dtype=torch.float64)
        wanted[label] += 1 - smoothing
        return -(wanted * row.log_softmax(0)).sum()

    first = (by_hand(logits[0, :, 0], 0) + by_hand(logits[0, :, 1], 3)) / 2
    second = by_hand(logits[1, :, 0], 1)
    found = loop._training_loss(logits, labels, smoothing)
    torch.testing.assert_close(found, (first + second) / 2)
    images = loop._training_loss(logits[..., 0], labels[:, 0], smoothing)
    torch.testing.assert_close(images, (by_hand(logits[0, :, 0], 0) + second) / 2)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_network_in_its_mode(training: bool) -> None:
    network = Line(5, 1, dropout=0.5).train(training)
    batches = as_batches(made_images(8))
    first, second = (evaluate(network, batches) for _ in range(2))
    assert first == second
    assert network.training is training


def test_a_recipe_of_an_earlier_version_has_today_s_defaults() -> None:
    assert recipe_module.completed({"epochs": 7}) == asdict(Recipe(epochs=7))


# A whole training.


def test_a_module_learns_at_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one step of plain SGD the offsets, which begin at 0, are a tenth of what they'd be."""
    recipe = replace(RECIPE, epochs=1, batch=100, momentum=0.0, decay=0.0)
    slow = trained(recipe, model="deformable_resnet8").state_dict
    monkeypatch.setattr("checkpoints.models.spatial_convolution.Offsets.rate_factor", 1.0)
    fast = trained(recipe, model="deformable_resnet8").state_dict
    for name, value in fast.items():
        if "offsets" in name:
            assert value.abs().max() > 0
            torch.testing.assert_close(10 * slow[name], value)
        elif value.is_floating_point():
            torch.testing.assert_close(slow[name], value, rtol=0, atol=0)


def test_a_training_is_described_whole(straight: Checkpoint, tmp_path: Path) -> None:
    assert straight.model == "fmmnet8"
    assert straight.options == {"width": 4, "classes": 5, "channels": 1}
    assert (straight.classes, straight.input_shape) == (5, (1, 8, 8))
    assert (straight.data, straight.seed) == ("columns", 0)
    assert straight.recipe == {
        "epochs": 3,
        "batch": 16,
        "rate": 0.05,
        "warmup": 1.0,
        "optimizer": "sgd",
        "momentum": 0.9,
        "decay": 5e-4,
        "smoothing": 0.0,
        "shift": 1,
        "flip": True,
        "validation": 20,
        "examples": 0,
        "precision": "float32",
    }
    kept, _ = split(made_images(), 20, 0)
    assert (straight.mean, straight.std) == statistics(kept)
    checkpoint.save(straight, tmp_path / "net.pt")
    assert_same(loading.load(tmp_path / "net.pt"), straight)


def test_metrics_follow_from_history_and_weights(straight: Checkpoint) -> None:
    history, metrics = straight.history, straight.metrics
    assert [row["epoch"] for row in history] == [1, 2, 3]
    accuracies = [row["test_accuracy"] for row in history]
    assert metrics["test_accuracy_best"] == max(accuracies)
    assert metrics["test_accuracy_last"] == accuracies[-1]
    selected = max(history, key=lambda row: row["validation_accuracy"])
    assert metrics["test_accuracy_validation_selected"] == selected["test_accuracy"]
    assert metrics["test_loss"] == history[-1]["test_loss"]
    for row in history:
        assert math.isfinite(row["train_loss"])
        assert set(row["blocks"]) == {"layer1.0", "layer2.0", "layer3.0"}
        for block in row["blocks"].values():
            assert set(block) == {
                "residual_mean",
                "residual_var",
                "shortcut_mean",
                "shortcut_var",
                "activation_max",
                "gradient_norm",
            }
            assert all(math.isfinite(value) for value in block.values())
            assert block["gradient_norm"] > 0
    network = straight.network()
    for name, images in (("train", split(made_images(), 20, 0)[0]), ("test", made_images(40, 1))):
        batches = as_batches(images, straight.mean[0], straight.std[0])
        loss, accuracy = evaluate(network, batches)
        assert loss == pytest.approx(metrics[f"{name}_loss"], rel=1e-6)
        if name == "train":
            assert accuracy == metrics["train_accuracy"]


def test_a_training_learns() -> None:
    """A bright column tells the class: plain networks and products find it."""
    recipe = replace(RECIPE, epochs=6, flip=False, shift=0, rate=0.1)
    for model in ("resnet8", "fmmnet8"):
        metrics = trained(recipe, model=model).metrics
        assert metrics["test_accuracy_last"] > 0.8
        assert metrics["train_loss"] < 0.7


def test_the_training_loss_is_the_mean_over_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate of zero the weights stay: every step's loss is one and the same network's."""
    recipe = replace(RECIPE, epochs=1, rate=0, shift=0, flip=False, batch=20, smoothing=0.0)
    result = trained(recipe, model="checkpoints_line:build", options={})
    assert result.history[0]["train_loss"] == pytest.approx(result.metrics["train_loss"], rel=1e-6)
    one_step = trained(replace(recipe, batch=100), model="checkpoints_line:build", options={})
    assert one_step.history[0]["train_loss"] == pytest.approx(
        one_step.metrics["train_loss"], rel=1e-6
    )


def test_the_same_seed_gives_the_same_bits_and_another_does_not(straight: Checkpoint) -> None:
    torch.manual_seed(99)  # the global seed is of no account, and is left alone
    state = torch.get_rng_state()
    assert_same(trained(), straight)
    assert torch.get_rng_state().equal(state)
    other = trained(seed=1)
    assert not other.state_dict["conv1.weight"].equal(straight.state_dict["conv1.weight"])


def test_half_storage_keeps_the_loss(straight: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(straight, tmp_path / "net.pt", half=True)
    network = loading.load(tmp_path / "net.pt").network()
    batches = as_batches(made_images(40, 1), straight.mean[0], straight.std[0])
    assert evaluate(network, batches)[0] == pytest.approx(straight.metrics["test_loss"], abs=1e-3)


@pytest.mark.parametrize("model", ["fmmnet8", "checkpoints_line:build"])
@pytest.mark.parametrize("whole_epochs", [0, 1, 2, 3])
def test_a_stopped_training_continues_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_epochs: int, model: str
) -> None:
    """Also with dropout, whose random numbers are not of our own generators."""
    options: dict[str, Any] = OPTIONS if model == "fmmnet8" else {"dropout": 0.5}
    given: dict[str, Any] = {"model": model, "options": options}
    state_file = tmp_path / "net.pt.train.pt"
    calls = iter(range(100))

    def stopping(network: nn.Module, batches: Batches, size: int = 100) -> tuple[float, float]:
        if next(calls) == 2 * whole_epochs:  # two evaluations an epoch
            raise KeyboardInterrupt
        return evaluate(network, batches, size)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", stopping)
        with pytest.raises(KeyboardInterrupt):
            trained(**given, state_file=state_file)
    assert state_file.is_file() == (whole_epochs > 0)
    torch.manual_seed(whole_epochs)
    continued = trained(**given, state_file=state_file)
    assert_same(continued, trained(**given))
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt.train.pt"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"recipe": replace(RECIPE, epochs=4)}, "with epochs=3, this one has epochs=4"),
        ({"recipe": replace(RECIPE, rate=0.1)}, "with rate=0.05, this one has rate=0.1"),
        ({"seed": 1}, "with seed=0, this one has seed=1"),
        ({"model": "resnet8"}, "with model=fmmnet8, this one has model=resnet8"),
        ({"options": {"width": 5}}, "with width=4, this one has width=5"),
        ({"train_images": made_images(seed=5)}, "with data="),
    ],
)
def test_another_run_s_state_is_refused_and_the_difference_named(
    tmp_path: Path, change: dict[str, Any], line: str
) -> None:
    state_file = tmp_path / "state.pt"
    if not state_file.exists():
        trained(state_file=state_file)
    told = refusal(lambda: trained(**({"recipe": RECIPE} | change), state_file=state_file))
    assert f"{state_file} belongs to a run {line}" in told
    assert told.endswith("Finish that run, delete the file, or pass --out.")


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_a_damaged_state_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    assert ("damaged" if content else "is empty") in refusal(
        lambda: trained(state_file=tmp_path / "state.pt")
    )
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pt")
    line = refusal(lambda: trained(state_file=tmp_path / "state.pt"))
    assert "state.pt is not a training state. Delete it, or pass --out." in line


def test_a_loss_that_diverges_stops_the_training(tmp_path: Path) -> None:
    line = refusal(lambda: trained(replace(RECIPE, rate=1e30), state_file=tmp_path / "s.pt"))
    assert re.match(r"the loss became (nan|inf) by step 6 of epoch 1 \(learning rate .*\)\. ", line)
    assert "Try a smaller --rate" in line
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_diverges_in_the_last_step_stops_it_too() -> None:
    recipe = replace(RECIPE, epochs=1, batch=100, rate=1e38, warmup=0)
    line = refusal(lambda: trained(recipe))
    assert "after the last epoch the training loss is " in line


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", [0, -1]),
        ("batch", [0, -1]),
        ("rate", [-0.1, math.nan, math.inf]),
        ("warmup", [-1.0, math.nan]),
        ("momentum", [-0.1, 1.0]),
        ("decay", [-1e-4]),
        ("smoothing", [-0.1, 1.0]),
        ("shift", [-1]),
        ("validation", [0, -5]),
        ("examples", [-5]),
    ],
)
def test_a_recipe_that_is_none_is_refused(name: str, values: list[float]) -> None:
    for value in values:
        line = refusal(lambda value=value: Recipe(**{name: value}))  # type: ignore[misc]
        assert line.startswith(f"{name} {value}; expected ")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"recipe": replace(RECIPE, batch=101)}, "--batch 101 exceeds the 100 training images"),
        ({"recipe": replace(RECIPE, validation=120)}, "--validation 120 and --examples 0 need"),
        ({"seed": -1}, "--seed -1; expected 0 to 4294967295"),
        ({"seed": 2**32}, "--seed 4294967296; expected"),
        ({"test_images": made_images(40, 1, "test", 3)}, "columns: the shape is (1, 8, 8) in"),
        (
            {"test_images": replace(made_images(40, 1), classes=tuple("abcdef"))},
            "columns: the number of classes is 5 in training and 6 in testing",
        ),
        (
            {"model": "seq2seq", "options": {"width": 8}},
            "seq2seq does not take images of shape (1, 8, 8) of columns: it reads sequences",
        ),
        ({"options": {"classes": 7}}, "--option classes=7; columns has 5. Leave it out."),
    ],
)
def test_what_cannot_be_trained_is_refused(change: dict[str, Any], line: str) -> None:
    assert line in refusal(lambda: trained(**change))


def test_auto_precision_is_decided_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, chosen in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(recipe_module, "_has_bfloat16", lambda device, able=able: able)
        assert Recipe().resolved(CPU).precision == chosen
        assert Recipe(precision="float32").resolved(CPU).precision == "float32"
    recipe = replace(RECIPE, epochs=1, precision="auto")
    assert trained(recipe).recipe["precision"] == "float32"


def test_bfloat16_trains_with_weights_in_float32() -> None:
    result = trained(replace(RECIPE, epochs=1, precision="bfloat16"))
    floats = [v for v in result.state_dict.values() if v.is_floating_point()]
    assert all(value.dtype == torch.float32 for value in floats)
    plain = trained(replace(RECIPE, epochs=1))
    assert not result.state_dict["conv1.weight"].equal(plain.state_dict["conv1.weight"])


# The command line.


@pytest.fixture
def data(tmp_path: Path) -> str:
    train_images, test_images = made_images(), made_images(40, 1)
    np.savez(
        tmp_path / "columns.npz",
        x_train=train_images.pixels[:, 0],
        y_train=train_images.labels,
        x_test=test_images.pixels[:, 0],
        y_test=test_images.labels,
    )
    return f"npz:{tmp_path / 'columns.npz'}"


FLAGS = (
    *("--option", "width=4", "--epochs", "3", "--batch", "16", "--rate", "0.05", "--shift", "1"),
    *("--validation", "20", "--precision", "float32", "--device", "cpu"),
)


def command(*arguments: str | Path) -> int:
    return main([*map(str, arguments)])


def test_the_command_writes_a_checkpoint_and_tells_where(
    tmp_path: Path,
    data: str,
    straight: Checkpoint,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in ("fmmnet8-seed0.pt", "deep/er/net.safetensors"):
        name = [] if out.startswith("fmmnet8") else ["--out", out]
        assert command("--model", "fmmnet8", "--data", data, *FLAGS, *name) == 0
        told = capsys.readouterr()
        assert told.out == f"{out}\n"
        assert len(re.findall(r"^epoch \d/3  loss \d\.\d+  validation ", told.err, re.M)) == 3
        assert "\r" not in told.err  # no bar where stderr is no terminal
        assert f"test_accuracy_best {straight.metrics['test_accuracy_best']:.4f}" in told.err
        written = loading.load(out)
        assert_same(written, straight)
        assert written.data == data
        assert [p.name for p in Path(out).parent.glob("*.train.pt")] == []
        assert command("--model", "fmmnet8", "--data", data, *FLAGS, *name) == 0  # complete
        assert capsys.readouterr().out == f"{out}\n"
        for other in (["--seed", "3"], ["--epochs", "4"], ["--option", "width=5"]):
            changed = [*FLAGS, *other, "--out", str(out)]
            assert command("--model", "fmmnet8", "--data", data, *changed) == 1
            name_of_it = {"--option": "width"}.get(other[0], other[0].strip("-"))
            line = capsys.readouterr().err
            assert line.startswith(f"{out} exists already, with {name_of_it}="), line
            assert line.endswith("Delete it, or pass another --out.\n")
        assert loading.load(out).sha256 == written.sha256


def test_a_training_is_not_continued_with_options_that_it_was_not_begun_with(
    tmp_path: Path,
    data: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from checkpoints.models.resnet import ResNet\n"
        "def net(classes, channels, width=2, scaled=False, **others):\n"
        "    return ResNet(8, width=width, classes=classes, channels=channels)\n"
    )
    start = ["--model", "mine.py:net", "--data", data, *FLAGS[2:], "--epochs", "1"]
    recorded = ["--option", "scaled=no", "--option", "more=1"]
    assert command(*start, *recorded, "--out", "a\x1b[1m.pt") == 0
    assert capsys.readouterr().out == "a [1m.pt\n"
    same = ["--option", "more=1", "--option", "width=2"]  # the rest are defaults
    others = {
        "scaled": ["--option", "more=1", "--option", "scaled=on"],
        "more": ["--option", "more=true"],
        "width": [*recorded, "--option", "width=3"],
    }
    assert command(*start, *same, "--out", "a\x1b[1m.pt") == 0
    capsys.readouterr()
    for name, options in others.items():
        assert command(*start, *options, "--out", "a\x1b[1m.pt") == 1
        assert f"exists already, with {name}=" in capsys.readouterr().err
    assert command(*start, *others["more"][:0], "--out", "a\x1b[1m.pt") == 1
    assert "with more=1, not (not given)" in capsys.readouterr().err
    monkeypatch.setattr(checkpoint, "save", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    assert command(*start, *recorded, "--out", "b.pt") == 1
    capsys.readouterr()
    for name, options in others.items():
        assert command(*start, *options, "--out", "b.pt") == 1
        assert f"b.pt.train.pt belongs to a run with {name}=" in capsys.readouterr().err
    assert command(*start, "--out", "x" * 221) == 1
    assert "a name of 221 bytes" in capsys.readouterr().err


def test_a_model_of_one_s_own_names_its_file(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from checkpoints.models.resnet import ResNet\n"
        "def net(classes, channels, width):\n"
        "    return ResNet(8, width=width, classes=classes, channels=channels)\n"
    )
    monkeypatch.chdir(tmp_path)
    model = f"{tmp_path / 'mine.py'}:net"
    assert command("--model", model, "--data", data, *FLAGS, "--epochs", "1") == 0
    loaded = loading.load("mine.py-net-seed0.pt", model=model)
    assert loaded.options == {"width": 4, "classes": 5, "channels": 1}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "resnet21"], "model 'resnet21' is not known. Known: resnet8, "),
        (["--data", "no-such-data"], "'no-such-data' is not a known data set. Known: "),
        (["--data", "npz:absent.npz"], "npz:absent.npz: there is no such file."),
        (["--validation", "5000"], "--validation 5000 and --examples 0 need 5001. Pass"),
        (["--batch", "128"], "--batch 128 exceeds the 100 training images."),
        (["--option", "colour=red"], "fmmnet8 has no option colour. It has: width, "),
        (["--option", "width=-4"], "fmmnet8: width=-4; expected a whole number, at least 1."),
        (["--option", "merge=sum"], "merge='sum'; expected one of add, product, "),
        (["--device", "abacus"], "--device abacus cannot be used: "),
        (["--rate", "1e30"], "the loss became "),
        (["--rate", "-1"], "--rate -1.0; expected a number, at least 0."),
        (["--epochs", "0"], "--epochs 0; expected a whole number, at least 1."),
        (["--seed", "-3"], "--seed -3; expected 0 to "),
        (["--size", "9", "9"], "Only folder:DIR can be resized"),
        (["--out", "columns.npz/x.pt"], "columns.npz"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    tmp_path: Path,
    data: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--model", "fmmnet8", "--data", data, *FLAGS, *arguments]
    assert command(*given) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert line in told.err
    assert told.err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["columns.npz"]


@pytest.mark.parametrize("arguments", [[], ["--epochs", "x"], ["--option", "width"]])
def test_wrong_usage_exits_with_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    assert "usage: python -m checkpoints.train" in capsys.readouterr().err


def test_help_tells_every_flag_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("--help")
    assert stopped.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for line in (
        "The same command again continues a stopped run.",
        "--model NAME a registered name such as fmmnet20, path/to/file.py:build or",
        "--seed N seed of the weights, the order and the augmentation (default: 0)",
        "(default: MODEL-seedN.pt)",
        "--epochs N passes over the training examples (default: 15)",
        "--decay X weight decay of tensors with two or more axes (default: 0.0005)",
    ):
        assert line in told


def test_a_command_that_is_interrupted_says_how_to_go_on(
    tmp_path: Path,
    data: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopping(network: nn.Module, batches: Batches) -> tuple[float, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "evaluate", stopping)
    given = ["--model", "fmmnet8", "--data", data, *FLAGS, "--out", str(tmp_path / "net.pt")]
    assert command(*given) == 130
    assert "Stopped. The same command continues" in capsys.readouterr().err


def test_a_killed_process_is_continued_to_the_same_bits(
    tmp_path: Path, data: str, straight: Checkpoint
) -> None:
    out = tmp_path / "net.pt"
    arguments = ["--model", "fmmnet8", "--data", data, *FLAGS, "--out", str(out)]
    code = (
        "import os, signal, sys, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "from checkpoints.train import __main__ as command, loop\n"
        "evaluate, calls = loop.evaluate, iter(range(9))\n"
        "def kill(*arguments):\n"
        "    if next(calls) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return evaluate(*arguments)\n"
        "loop.evaluate = kill\n"
        f"command.main({json.dumps(arguments)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=os.environ, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / "net.pt.train.pt").is_file()
    assert command(*arguments) == 0
    assert_same(loading.load(out), straight)


def test_the_epoch_is_selected_by_validation_and_the_weights_epoch_is_said(
    straight: Checkpoint,
) -> None:
    rows = [(0.7, 0.9), (0.8, 0.6), (0.8, 0.95)]  # validation, test
    history = [{"validation_accuracy": v, "test_accuracy": t} for v, t in rows]
    assert selected_epoch(history) == 1
    assert straight.metrics["epoch"] == 3
    chosen = selected_epoch(straight.history)
    assert straight.metrics["epoch_validation_selected"] == chosen + 1
