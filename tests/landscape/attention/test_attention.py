from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

import landscape
from checkpoints.checkpoint import build
from checkpoints.hooks import Exposed
from checkpoints.problem import Problem
from landscape.attention import agreement, interventions, sites
from landscape.attention.importance import Importance
from landscape.attention.interventions import Gates
from landscape.attention.spec import KINDS, Spec
from landscape.core.spaces import Inputs

N, CHANNELS, CLASSES = 24, 6, 3


class Gated(nn.Module):
    """Features times a gate that depends on the image, or on the position."""

    def __init__(self, *, spatial: bool) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(CHANNELS, 1, 1) if spatial else nn.Linear(CHANNELS, CHANNELS)
        self.spatial = spatial
        self.before, self.gate = Exposed(), Exposed()

    def forward(self, features: Tensor) -> Tensor:
        features = self.before(features)
        if self.spatial:
            return features * self.gate(self.weigh(features).sigmoid())
        gate = self.gate(self.weigh(features.mean(dim=(2, 3))).sigmoid())
        return features * gate[:, :, None, None]


class Network(nn.Module):
    """A gate, and after it nothing but a linear layer."""

    def __init__(self, *, spatial: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.attention = Gated(spatial=spatial)
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.attention(self.stem(images)).mean(dim=(2, 3)))


def made(network: nn.Module | None = None, *, spatial: bool = False) -> Problem:
    torch.manual_seed(0)
    network = network or Network(spatial=spatial)
    images = torch.rand(N, 1, 6, 6, dtype=torch.float64)
    labels = torch.arange(N) % CLASSES
    return Problem.of(network.double(), [(images, labels)], batch_size=N)


def measured(problem: Problem, **spec: Any) -> xr.Dataset:
    return landscape.measure("attention", problem, **spec)


@pytest.mark.parametrize("spatial", [False, True])
def test_all_importances_agree_where_the_score_is_linear_in_the_map(spatial: bool) -> None:
    """Above the gate the network is w . mean(x), so a unit's contribution is known."""
    problem = made(spatial=spatial)
    spec = Spec(importance=KINDS, steps=3, permutations=2, patches=3)
    result = measured(problem, parts="agreement", importance=KINDS, steps=3, patches=3)
    space = Inputs(problem)
    with torch.no_grad(), space.reading("attention") as values:
        space.outputs(problem.inputs)
    (site,) = sites.found(space, (), 3)
    weights = dict(problem.model.named_parameters())["head.weight"].detach()[problem.targets]
    parts = values["attention"] * weights[:, :, None, None] / 36
    expected = site.summed(parts).abs()
    found = result["importance"].sel(side="after")
    for kind in spec.importance:
        if kind == "occlusion_mean":
            continue  # another baseline, so another contribution
        np.testing.assert_allclose(found.sel(importance_kind=kind), expected, rtol=1e-9)
    apart = values["attention"] - values["attention"].mean(dim=0)
    less = site.summed(apart * weights[:, :, None, None] / 36).abs()
    np.testing.assert_allclose(found.sel(importance_kind="occlusion_mean"), less, rtol=1e-9)
    gate = Gates.of(space, [site], (0,)).values[site.gate]
    np.testing.assert_allclose(result["attention"], site.attention(gate), rtol=1e-12)


@pytest.mark.parametrize("spatial", [False, True])
def test_images_are_stored_where_a_gate_can_be_drawn_over_them(spatial: bool) -> None:
    problem = made(spatial=spatial)
    result = measured(problem, parts="erasure", fractions=(0.5,), gallery=3)
    assert ("image" in result) is spatial
    if spatial:
        np.testing.assert_array_equal(result["image"], problem.inputs["input"][:3])
        assert "image" not in measured(problem, parts="erasure", fractions=(0.5,), gallery=0)


def test_the_patches_of_a_map_are_its_parts() -> None:
    site = sites.Site("a", "a.gate", "a.before", "a", units=4, side=2)
    features = torch.arange(2 * 3 * 5 * 4, dtype=torch.float64).view(2, 3, 5, 4)
    total = site.summed(features)
    halves = [features[:, :, rows] for rows in (slice(0, 3), slice(3, 5))]
    expected = [h[..., c].sum(dim=(1, 2, 3)) for h in halves for c in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(total, torch.stack(expected, dim=1))
    gone = torch.tensor([[True, False, False, True], [False, False, True, False]])
    left = site.summed(site.erased(features, gone, 0.0))
    torch.testing.assert_close(left, total.masked_fill(gone, 0.0))


def test_statistics_are_those_of_scipy_and_of_small_examples() -> None:
    random = np.random.default_rng(0)
    a, b = random.random(9), random.random(9).round(1)
    found = agreement.statistics(a, b, 3)
    assert found["kendall_tau"] == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)
    assert found["kendall_p"] == pytest.approx(stats.kendalltau(a, b).pvalue, abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert found["jensen_shannon"] == pytest.approx(jensenshannon(a, b), abs=1e-12)
    up, down = np.arange(1.0, 7), np.arange(6.0, 0, -1)
    same, other = agreement.statistics(up, up, 2), agreement.statistics(up, down, 2)
    for row, expected in ((same, (1, 1, 0)), (other, (-1, 0, 1))):
        values = [row[name] for name in ("kendall_tau", "top_overlap", "top_distance")]
        assert values == pytest.approx(expected)
    # Lists 6 5 and 6 4 share their first: 5 before 4 in one, 4 before 5 in the other.
    mixed = np.array([1.0, 2, 3, 5, 4, 6])
    assert agreement.top_overlap(up, mixed, 2) == 0.5
    assert agreement.top_distance(up, mixed, 2) == pytest.approx(1 / 5)


@pytest.mark.parametrize("flat", [np.ones(4), np.array([1.0, np.nan, 2.0, 3.0])])
def test_what_has_no_ranking_has_no_statistics(flat: Any) -> None:
    found = agreement.statistics(flat, np.arange(4.0), 2)
    assert all(np.isnan(v) for name, v in found.items() if name != "jensen_shannon")


def test_permuted_attention_has_tau_about_zero_and_uniform_p() -> None:
    """Over units and images; a planted consistency is found beside it."""
    random = np.random.default_rng(1)
    rows = [
        (agreement.statistics(random.permutation(a), a**2, 5), agreement.statistics(a, a**2, 5))
        for a in random.random((300, 32))
    ]
    taus = np.array([null["kendall_tau"] for null, _ in rows])
    assert abs(taus.mean()) < 4 * taus.std(ddof=1) / 300**0.5
    assert stats.kstest([null["kendall_p"] for null, _ in rows], "uniform").pvalue > 1e-4
    assert all(planted["kendall_tau"] == pytest.approx(1) for _, planted in rows)


def test_the_nulls_stand_in_the_place_of_the_attention() -> None:
    problem = made()
    result = measured(problem, parts="agreement", importance="gradient")
    attention = result["attention"].values
    importance = result["importance"].sel(side="after", importance_kind="gradient").values
    tau = result["kendall_tau"].isel(site=0, importance_kind=0).sel(side="after")
    labels = problem.targets.numpy()
    for row in range(N):
        assert tau.sel(attention_kind="own").values[row] == pytest.approx(
            stats.kendalltau(attention[row], importance[row]).statistic, abs=1e-12
        )
        mates = np.flatnonzero((labels == labels[row]) & (np.arange(N) != row))
        of_class = attention[mates].mean(axis=0)
        assert tau.sel(attention_kind="class_mean").values[row] == pytest.approx(
            stats.kendalltau(of_class, importance[row]).statistic, abs=1e-12
        )
    space = Inputs(problem)
    partner = Gates.of(space, sites.found(space, (), 7), (0, 0)).partner
    assert sorted(partner) == list(range(N))
    assert not (partner == np.arange(N)).any()
    other = [stats.kendalltau(attention[partner[r]], importance[r]).statistic for r in range(N)]
    np.testing.assert_allclose(tau.sel(attention_kind="other_image"), other, atol=1e-12)


@pytest.mark.parametrize("spatial", [False, True])
def test_interventions_are_what_they_say(spatial: bool) -> None:
    problem = made(spatial=spatial)
    space = Inputs(problem)
    places = sites.found(space, (), 7)
    gates = Gates.of(space, places, (0,))
    network = problem.model
    with torch.no_grad():
        features = network.stem(problem.inputs["input"])
        gate = gates.values["attention.gate"]
        wide = gate if spatial else gate[:, :, None, None]
        mean, uniform = wide.mean(dim=0), torch.full_like(wide, float(wide.mean()))
        means = wide.mean(dim=(0, 2, 3)), features.mean(dim=(0, 2, 3))
        g, x = (each[:, None, None] for each in means)
        expected = {
            "none": wide * features,
            "mean": mean * features,
            "uniform": uniform * features,
            "other_image": wide[torch.from_numpy(gates.partner)] * features,
            "sum": g * features + (wide - g) * x,
        }
        for name, product in expected.items():
            with interventions.intervention(space, places, gates, name, range(N), (0,)):
                outputs = space.outputs(problem.inputs)
            torch.testing.assert_close(outputs, network.head(product.mean(dim=(2, 3))))
        with (
            interventions.intervention(space, places, gates, "permuted", range(N), (0,)),
            space.reading("attention.gate") as values,
        ):
            space.outputs(problem.inputs)
        (permuted,) = values.values()
        torch.testing.assert_close(
            permuted.flatten(1).sort(dim=1).values, gate.flatten(1).sort(dim=1).values
        )
        assert not torch.equal(permuted, gate)


def test_a_constant_gate_loses_nothing_by_its_mean() -> None:
    network = Network()
    nn.init.zeros_(network.attention.weigh.weight)
    result = measured(made(network), parts="interventions", directions=1)
    loss = result["intervention_loss"]
    for name in ("mean", "other_image"):
        np.testing.assert_allclose(loss.sel(intervention=name), loss.sel(intervention="none"))
    bends = result["intervention_second_difference"].sel(intervention=["none", "mean"])
    assert float(bends.max()) < 1e-10  # a linear network, in float64


def test_the_second_difference_is_that_of_the_formula() -> None:
    """‖f(x+u) - 2 f(x) + f(x-u)‖ / r² of a gate that is linear in x: f is quadratic in x."""
    problem = made()
    result = measured(problem, parts="interventions", directions=3, radius=0.1)
    doubled = measured(problem, parts="interventions", directions=3, radius=0.05)
    name = "intervention_second_difference"
    small, large = (r[name].sel(intervention="none").values for r in (doubled, result))
    assert (large > 1e-6).all()
    np.testing.assert_allclose(small, large, rtol=0.02)  # the sigmoid bends little over 0.1


def test_erasing_follows_the_order_and_the_decision() -> None:
    problem = made()
    fractions = (1 / CHANNELS, 0.5, 1.0)
    result = measured(problem, parts="erasure", fractions=fractions)
    attention = result["attention"].values
    network = problem.model
    with torch.no_grad():
        after = network.attention(network.stem(problem.inputs["input"]))
        decision = network(problem.inputs["input"]).argmax(dim=1)
        for step, count in enumerate((1, 3, CHANNELS)):
            erased = after.clone()
            for row in range(N):
                erased[row, np.argsort(-attention[row])[:count]] = 0
            logits = network.head(erased.mean(dim=(2, 3)))
            share = logits.softmax(dim=1).gather(1, decision[:, None])[:, 0]
            found = result["erased_probability"].sel(order="attention").isel(site=0, fraction=step)
            np.testing.assert_allclose(found, share, rtol=1e-9)
    flips = result["flip_fraction"].values
    assert set(np.unique(flips.round(6))) <= {round(1 / CHANNELS, 6), 0.5, 1.0}


def test_batches_do_not_matter_and_means_are_over_the_examples() -> None:
    problem = made()
    options = {"importance": ("gradient", "shapley"), "permutations": 2, "directions": 1}
    whole, parts = (measured(replace(problem, batch_size=size), **options) for size in (N, 7))
    logarithm = "intervention_log_second_difference"  # of rounding error, within a linear region
    for name in whole.data_vars:
        if whole[name].dtype == float and not str(name).startswith(logarithm):
            np.testing.assert_allclose(whole[name], parts[name], rtol=1e-9, atol=1e-12)
    taus = whole["kendall_tau"].values
    np.testing.assert_allclose(whole["kendall_tau_mean"], taus.mean(axis=0))
    np.testing.assert_allclose(whole["kendall_tau_mean_stderr"], taus.std(axis=0, ddof=1) / N**0.5)


ATTENDING = "layer{}.0.attention"


@pytest.mark.parametrize(
    ("model", "options", "names", "units"),
    [
        ("se_resnet8", {}, [ATTENDING], [4]),
        ("eca_resnet8", {}, [ATTENDING], [4]),
        ("nam_resnet8", {}, [ATTENDING], [4]),
        # the units of a spatial gate are patches, at most one for each of the 6 x 6 positions
        ("cbam_resnet8", {}, [f"{ATTENDING}.channel", f"{ATTENDING}.spatial"], [4, 36]),
        ("sk_resnet8", {}, ["layer{}.0.conv1.select"], [8]),
        ("se_resnet8", {"apply": "mean"}, [ATTENDING], [4]),
        ("resnet8", {"merge": "sigmoid_residual"}, ["layer{}.0.merge"], [4]),
    ],
)
def test_every_gate_of_the_zoo_is_found(
    model: str, options: dict[str, Any], names: list[str], units: list[int]
) -> None:
    torch.manual_seed(0)
    network = build(model, {"width": 4, "channels": 1, "classes": CLASSES, **options})
    found = sites.found(Inputs(made(network)), (), 7)
    assert [site.name for site in found] == [n.format(stage) for stage in (1, 2, 3) for n in names]
    assert [site.units for site in found][: len(units)] == units


@pytest.mark.parametrize("apply", ["add", "concat"])
def test_what_is_added_or_joined_is_no_gate(apply: str) -> None:
    options = {"width": 4, "channels": 1, "classes": CLASSES, "apply": apply}
    with pytest.raises(ValueError, match="multiplies no features by a gate"):
        sites.found(Inputs(made(build("se_resnet8", options))), (), 7)


@pytest.mark.parametrize(
    ("merge", "site", "gate"),
    [
        ("bn_sigmoid_shortcut", "merge", "shortcut"),
        ("sigmoid_shortcut", "merge", "shortcut"),
        ("bn_sigmoid_residual", "merge", "residual"),
        ("tanh_residual", "merge", "residual"),
        ("bn_product_clamped_unit", "merge", "residual"),  # neither is a mask
        ("inner_gate", "merge.product", "gate"),
    ],
)
def test_the_mask_is_the_gate_of_a_product(merge: str, site: str, gate: str) -> None:
    torch.manual_seed(0)
    network = build("wrn10_1", {"channels": 1, "classes": CLASSES, "merge": merge})
    space = Inputs(made(network))
    found = sites.found(space, (), 7)
    assert [each.name for each in found] == [f"layer{stage}.0.{site}" for stage in (1, 2, 3)]
    factor = f"layer1.0.merge.factors.{gate}"
    with torch.no_grad(), space.reading([factor, found[0].gate]) as values:
        space.outputs(space.origin)
    assert torch.equal(values[factor], values[found[0].gate])


def test_what_has_no_gate_is_refused_in_a_line() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, CLASSES))
    with pytest.raises(ValueError, match="multiplies no features by a gate"):
        measured(made(plain))
    with pytest.raises(ValueError, match="sites layer9: no gate matches. There are 1: attention."):
        measured(made(), sites="layer9")
    problem = made()
    wide = replace(problem, targets=problem.targets.double(), correct=None, loss=nn.MSELoss)
    with pytest.raises(ValueError):
        measured(wide)


class Frozen(Network):
    """The same, after whose gate nothing is recorded."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        with torch.no_grad():
            gated = self.attention(features)
        return self.head(gated.mean(dim=(2, 3))) + 0 * features.mean()


def test_a_map_that_no_gradient_reaches_is_refused_in_a_line() -> None:
    space = Inputs(made(Frozen()))
    (site,) = sites.found(space, (), 7)
    means = Gates.of(space, [site], (0,)).means
    where = (space.problem.inputs, space.problem.targets, means, Spec(), [0])
    with pytest.raises(ValueError, match="no gradient reaches attention.before, whose"):
        Importance(space, *where).of(site, site.before, "gradient")
    found = Importance(space, *where).of(site, site.before, "occlusion_zero")
    assert (found > 0).all()


def test_an_importance_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Erasing by falling importance takes that of the agreement."""
    paths = []
    path = Importance._path
    monkeypatch.setattr(
        Importance, "_path", lambda self, *given: paths.append(given[1:]) or path(self, *given)
    )
    problem = made()
    whole = measured(problem, parts=("agreement", "erasure"), importance="gradient")
    assert len(paths) == 2  # before the gate, and after it
    alone = measured(problem, parts="erasure")
    xr.testing.assert_identical(whole["erased_probability"], alone["erased_probability"])


def test_an_importance_needs_only_its_own_examples() -> None:
    """A unit's importance for one example does not depend on the others in the batch."""
    problem = made()
    space = Inputs(problem)
    places = sites.found(space, (), 7)
    means = Gates.of(space, places, (0,)).means
    whole, part = (
        Importance(
            space,
            {"input": problem.inputs["input"][rows]},
            problem.targets[rows],
            means,
            Spec(),
            [0],
        ).of(places[0], places[0].before, "integrated_gradients")
        for rows in (slice(0, N), slice(3, 5))
    )
    torch.testing.assert_close(whole[3:5], part, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("size", [7, 8, 10, 16])
def test_attention_and_importance_are_over_the_same_patches(size: int) -> None:
    site = sites.Site("a", "a.gate", "a.before", "a", units=49, side=7)
    maps = torch.rand(3, 1, size, size, dtype=torch.float64)
    parts = site.summed(torch.ones_like(maps[:1]))
    torch.testing.assert_close(site.attention(maps) * parts, site.summed(maps))
    assert float(parts.sum()) == size**2


def test_fractions_are_in_order_and_one_image_has_no_other() -> None:
    assert Spec(fractions=(0.9, 0.2, 0.5)).fractions == (0.2, 0.5, 0.9)
    with pytest.raises(ValueError, match="two images or more, with labels from 0 to 2"):
        measured(made().take(slice(1)))
