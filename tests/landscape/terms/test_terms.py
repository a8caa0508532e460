"""What the terms probe stores, against the same written out, and on planted maps."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import landscape
from analysis.figures import draw
from checkpoints import hooks
from checkpoints.checkpoint import Checkpoint, build, save
from checkpoints.models.spatial_attention import TERMS, SpatialAttention
from checkpoints.problem import Problem
from landscape.core.cli import main
from landscape.registry import PROBES
from landscape.terms import statistics
from tests.oracles import attend, make_problem

LAYER = "layer2.0.attention.branch"


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attending(count: int = 5, **options: Any) -> Problem:
    problem = make_problem(torch.device("cpu"), count=count, batch_size=3)
    attend(problem.model, **options)
    return problem


def maps_of(problem: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights (N, M, Q, K) and terms of the whole problem, by hooks alone."""
    with torch.no_grad(), hooks.reading(problem.model.eval(), f"{LAYER}.*") as values:
        problem.model(problem.inputs["input"])
    short = {name.removeprefix(f"{LAYER}."): value for name, value in values.items()}
    return short["weights"], {t: short[f"energies.{t}"] for t in TERMS if f"energies.{t}" in short}


def test_every_number_of_a_map_is_its_definition() -> None:
    problem = attending()
    result = landscape.measure("terms", problem).isel(layer=0)
    weights, energies = maps_of(problem)
    spread = {t: e.expand_as(weights).var(dim=-1, correction=0) for t, e in energies.items()}
    total = sum(spread.values())
    logits = sum(energies.values())
    mean = weights.mean(dim=2, keepdim=True)
    wanted: dict[str, Any] = {
        "entropy": -(weights * weights.log()).sum(dim=-1).mean(dim=(1, 2)),
        "query_dependence": jensen_shannon(weights, mean.expand_as(weights)),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-10, atol=1e-14)
    for term, energy in energies.items():
        without = (logits - energy).softmax(dim=-1)
        divergence = (weights * (weights / without).log()).sum(dim=-1).mean(dim=(1, 2))
        at = result.sel(term=term)
        np.testing.assert_allclose(at["removal_divergence"], divergence, rtol=1e-9, atol=1e-14)
        share = (spread[term] / total).mean(dim=(1, 2))
        np.testing.assert_allclose(at["variance_share"], share, rtol=1e-10)
    np.testing.assert_allclose(result["variance_share"].sum("term"), 1, rtol=1e-12)
    place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    distance = (weights * torch.cdist(place, place)).sum(dim=-1).mean(dim=(1, 2))
    np.testing.assert_allclose(result["distance"], distance, rtol=1e-10)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    middle = (first + second) / 2
    parts = [(each * (each / middle).log()).sum(dim=-1) for each in (first, second)]
    return ((parts[0] + parts[1]) / 2).mean(dim=(1, 2))


def test_images_are_compared_in_a_circle_that_the_seed_draws() -> None:
    problem = attending()
    weights, _ = maps_of(problem)
    drawn = []
    for seed in (0, 1):
        found = landscape.measure("terms", problem, seed=seed)["image_dependence"].values[:, 0]
        every = torch.stack(
            [jensen_shannon(weights, w.expand_as(weights)) for w in weights[:, None]]
        )
        partner = (every - torch.from_numpy(found)).abs().argmin(dim=0)
        np.testing.assert_allclose(every[partner, torch.arange(5)], found, rtol=1e-9)
        assert sorted(partner.tolist()) == list(range(5)), "each image is compared once"
        assert (partner != torch.arange(5)).all()
        drawn.append(partner.tolist())
    assert drawn[0] != drawn[1]


def test_masked_terms_are_a_network_without_them_and_the_gradient_is_a_difference() -> None:
    problem = attending()
    result = landscape.measure("terms", problem)
    assert list(result["setting"].values[[0, 1, 2, 8, 15]]) == [
        "1111",
        "1110",
        "1101",
        "0111",
        "0000",
    ]
    uniform = {f"{LAYER}.weights": lambda w: torch.full_like(w, 1 / w.shape[-1])}
    model, images = problem.model.eval(), problem.inputs["input"]
    for setting, change in (("1111", {}), ("0000", uniform)):
        with torch.no_grad(), hooks.replacing(model, change):
            outputs = model(images)
        at = result.sel(setting=setting)
        np.testing.assert_allclose(at["setting_loss"], problem.losses(outputs, problem.targets))
        hits = (outputs.argmax(dim=1) == problem.targets).double()
        np.testing.assert_array_equal(at["setting_accuracy"], hits)

    def slope(term: str, example: int) -> Tensor:
        """The gradient of one example's loss in one term, entry by entry."""
        leaf: list[Tensor] = []

        def add(energy: Tensor) -> Tensor:
            leaf.append(torch.zeros_like(energy).requires_grad_())
            return energy + leaf[0]

        with hooks.replacing(model, {f"{LAYER}.energies.{term}": add}):
            loss = problem.losses(model(images[[example]]), problem.targets[[example]]).sum()
        return torch.autograd.grad(loss, leaf)[0]

    for term in ("key", "position"):
        norms = [float(slope(term, example).norm()) for example in range(5)]
        found = result["gradient_norm"].sel(term=term).values[:, 0]
        np.testing.assert_allclose(found, norms, rtol=1e-9)


@pytest.mark.parametrize(
    ("terms", "zero", "settings"),
    [
        ("0010", ["query_dependence"], ["0010", "0000"]),
        ("0001", ["image_dependence"], ["0001", "0000"]),
        ("0000", ["query_dependence", "image_dependence"], ["0000"]),
    ],
)
def test_what_a_map_cannot_depend_on_is_zero(
    terms: str, zero: list[str], settings: list[str]
) -> None:
    result = landscape.measure("terms", attending(terms=terms))
    for name in ("query_dependence", "image_dependence"):
        largest = float(np.abs(result[name]).max())
        assert (largest < 1e-14) == (name in zero), name
    assert list(result["setting"].values) == settings
    for term, switch in zip(TERMS, terms, strict=True):
        assert result["variance_share"].sel(term=term).isnull().all() == (switch == "0")


def test_keys_out_of_reach_count_for_nothing() -> None:
    """A term that differs outside the reach alone has no variance, and nothing depends on it."""
    logits = rand(2, 1, 3, 4)
    masked = torch.tensor([False, False, True, True])
    weights = logits.masked_fill(masked, -math.inf).softmax(dim=-1)
    maps = statistics.log_weights(logits, weights)
    torch.testing.assert_close(maps.exp(), weights)
    outside = torch.where(masked, 50.0, 2.0).double().expand_as(logits)
    torch.testing.assert_close(statistics.variance(outside, maps), torch.zeros(2, 1, 3).double())
    torch.testing.assert_close(
        statistics.removal(maps, outside), torch.zeros(2).double(), rtol=0, atol=1e-14
    )
    assert (statistics.entropy(maps) < math.log(2) + 1e-12).all()


def test_a_weight_too_small_for_its_precision_is_not_taken_for_a_masked_one() -> None:
    logits = torch.tensor([0.0, -120.0]).reshape(1, 1, 1, 2)
    maps = statistics.log_weights(logits, logits.softmax(dim=-1))
    assert logits.softmax(dim=-1)[..., 1] == 0
    torch.testing.assert_close(maps, logits.double())
    # without this term the second key has all: its divergence is 120 nat, not 0
    energy = torch.tensor([0.0, -240.0]).reshape(1, 1, 1, 2)
    torch.testing.assert_close(statistics.removal(maps, energy), torch.tensor([120.0]).double())


def test_divergences_have_their_known_values() -> None:
    one, other = torch.tensor([1.0, 0.0]).double().log(), torch.tensor([0.0, 1.0]).double().log()
    assert float(statistics.jensen_shannon(one, other)) == pytest.approx(math.log(2))
    assert float(statistics.jensen_shannon(one, one)) == pytest.approx(0, abs=1e-15)
    even = torch.tensor([0.5, 0.5]).double().log()
    assert float(statistics.divergence(one, even)) == pytest.approx(math.log(2))
    uniform = torch.full((1, 1, 1, 8), -math.log(8)).double()
    assert float(statistics.entropy(uniform)) == pytest.approx(math.log(8))


def test_a_network_without_spatial_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="the network has no spatial attention") as refusal:
        landscape.measure("terms", make_problem(torch.device("cpu")))
    assert "One that ships has: spatial_resnet18.pt" in str(refusal.value)
    assert len(str(refusal.value)) <= 200


class Attending(nn.Module):
    """Two attentions, which may be one module; the first may run under no_grad."""

    def __init__(self, *, second: bool, recorded: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)
            self.first = SpatialAttention(4, heads=2, key_stride=2)
            self.never = SpatialAttention(4, heads=2)
        if second:
            self.second = copy.deepcopy(self.first)
        self.recorded = recorded

    def forward(self, images: Tensor) -> Tensor:
        features = torch.tanh(self.conv(images))
        with torch.set_grad_enabled(self.recorded and torch.is_grad_enabled()):
            attended = self.first(features)
        features = features + attended
        # smaller maps in the second call
        features = getattr(self, "second", self.first)(features[:, :, ::2, ::2])
        return self.head(features.mean(dim=(2, 3)))


def of(network: nn.Module) -> xr.Dataset:
    problem = make_problem(torch.device("cpu"), count=5, batch_size=3)
    return landscape.measure("terms", replace(problem, model=network.double()))


def test_a_module_that_is_called_twice_is_two_layers() -> None:
    twice, two = of(Attending(second=False)), of(Attending(second=True))
    assert list(twice["layer"].values) == ["first", "first#2"]
    assert list(two["layer"].values) == ["first", "second"]
    for name in two.data_vars:
        np.testing.assert_array_equal(twice[name], two[name], err_msg=str(name))
    assert not two.isel(layer=0)["entropy"].equals(two.isel(layer=1)["entropy"])


def test_a_gradient_that_is_not_recorded_is_nan_and_no_other_number() -> None:
    whole, partly = of(Attending(second=True)), of(Attending(second=True, recorded=False))
    for name in whole.data_vars:
        if "gradient_norm" not in str(name):
            np.testing.assert_array_equal(partly[name], whole[name], err_msg=str(name))
    found, wanted = partly["gradient_norm"], whole["gradient_norm"]
    assert found.sel(layer="first").isnull().all()
    np.testing.assert_array_equal(found.sel(layer="second"), wanted.sel(layer="second"))


def test_the_command_measures_a_checkpoint_and_says_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"width": 4, "channels": 1, "terms": "0010"}
    state = build("spatial_resnet8", options).state_dict()
    net = Checkpoint(state, "spatial_resnet8", options, 10, (1, 28, 28), (0.3,), (0.3,))
    save(net, tmp_path / "net.pt")
    shown = ["--ckpt", "net.pt", "--data", "fashion-mnist-sample", "--examples", "10"]
    assert main(PROBES["terms"], [*shown, "--batch-size", "10", "--no-figure"]) == 0
    told = capsys.readouterr()
    assert told.out == "net.terms.h5\n"
    assert "key 1" in told.err
    assert "loss with these terms: 0010" in told.err


def test_its_figure_shows_means_by_layer_and_by_setting() -> None:
    result = landscape.measure("terms", attending(terms="1010"))
    axes = draw(result).axes
    assert axes[0].get_ylabel().replace("\n", " ") == "share of the variance over keys"
    labels = [text.get_text() for text in axes[2].get_xticklabels()]
    assert labels == list(result["setting"].values) == ["1010", "1000", "0010", "0000"]
    heights = axes[2].lines[0].get_ydata()
    np.testing.assert_allclose(heights, result["setting_loss_mean"])
    drawn = {float(line.get_ydata()[0]) for line in axes[0].lines if line.get_xdata().size}
    shares = result["variance_share_mean"].values[0]
    assert drawn == set(shares[np.isfinite(shares)])


def test_a_single_image_has_no_other_to_be_compared_with() -> None:
    result = landscape.measure("terms", attending(terms="1111").take(slice(0, 1)))
    assert np.isnan(result["image_dependence"]).all()
    assert np.isfinite(result["entropy"]).all()


def test_a_network_without_any_term_has_a_figure() -> None:
    result = landscape.measure("terms", attending(terms="0000"))
    assert draw(result).axes
