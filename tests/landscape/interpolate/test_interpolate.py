from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import landscape
from checkpoints.problem import Problem
from landscape.core.spaces import Inputs
from landscape.interpolate import between, interpolate, pairs, path_statistics
from landscape.interpolate.pairs import SamplePath
from landscape.interpolate.spec import Spec
from landscape.interpolate.transitions import transitions
from tests.oracles import LinearRegression, half_squared_error, make_problem

RATIOS = ("tortuosity", "chord_deviation", "relative_roughness", "relative_jacobian_norm")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Function(nn.Module):
    """A network that is any function of its inputs."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def classifier(
    function: Callable[[Tensor], Tensor], inputs: Tensor, labels: Any, **others: Any
) -> Problem:
    batch = (inputs, torch.as_tensor(labels))
    return Problem.of(Function(function), [batch], batch_size=4, **others)


def measured(problem: Problem, **spec: Any) -> xr.Dataset:
    return landscape.measure("interpolate", problem, **{"pairs": 3, "points": 9} | spec)


def of_kind(result: xr.Dataset, kind: str) -> xr.Dataset:
    return result.isel(pair=np.flatnonzero(result["kind"] == kind))


def test_a_linear_model_moves_straight() -> None:
    weight = drawn(3, 5)
    problem = classifier(lambda x: x @ weight.T, drawn(12, 5, seed=1), [0, 1, 2] * 4)
    result = measured(problem)
    lines = result.isel(pair=np.flatnonzero(result["kind"] != "circle"))
    # Rounding of logits of size 3 at most; roughness squares it and multiplies by 8^3.
    np.testing.assert_allclose(lines["tortuosity"], 1, rtol=1e-12)
    np.testing.assert_allclose(lines["chord_deviation"], 0, atol=1e-13)
    np.testing.assert_allclose(lines["roughness"], 0, atol=1e-24)
    np.testing.assert_array_equal(result["transitions"], 0)
    np.testing.assert_allclose(result["jacobian_norm"], float(weight.norm()), rtol=1e-12)
    p = np.exp(result["logits"] - np.log(np.exp(result["logits"]).sum("class"))).values
    slope = (p[..., :, None] * np.eye(3) - p[..., :, None] * p[..., None, :]) @ weight.numpy()
    np.testing.assert_allclose(
        result["probability_jacobian_norm"], np.linalg.norm(slope, axis=(2, 3)), rtol=1e-10
    )


def test_a_quadratic_model_has_its_closed_form() -> None:
    """f = V x + (W x)^2: along a line f'' = 2 (W d)^2, the same everywhere."""
    linear, square, inputs = drawn(3, 5), drawn(3, 5, seed=1), drawn(12, 5, seed=2)
    problem = classifier(lambda x: x @ linear.T + (x @ square.T) ** 2, inputs, [0, 1, 2] * 4)
    result = of_kind(measured(problem, points=17), "cross_class")
    for pair in range(3):
        one = result.isel(pair=pair)
        first, second = (inputs[int(index)] for index in one["sample"].values[:2])
        bend = 2 * ((second - first) @ square.T) ** 2
        # 15 second differences of 16 steps; rounding of logits of 10, times 16^3.
        wanted = 15 / 16 * float(bend.square().sum())
        assert float(one["roughness"]) == pytest.approx(wanted, rel=1e-9)
        away = float(bend.norm()) / 8  # t (1 - t) / 2 in the middle
        ends = one["logits"].values[[0, -1]]
        distance = np.linalg.norm(ends[1] - ends[0])
        assert float(one["chord_deviation"]) == pytest.approx(away / distance, rel=1e-10)


def test_a_nearest_centre_classifier_flips_where_planted() -> None:
    """Centres 0, 1, 2, 3 on a line: from 0 to 3 the decision flips at 1/6, 3/6 and 5/6."""
    centres = torch.arange(4, dtype=torch.float64)
    problem = classifier(
        lambda x: -((x - centres) ** 2), torch.tensor([[0.0], [3.0]]).double(), [0, 3]
    )
    result = of_kind(
        measured(problem, pairs=1, points=61, same_class=False, controls=False), "cross_class"
    )
    assert float(result["flips"].item()) == 3
    # Of 61 points those from 10 or 11 to 49 or 50; ties at the two flips may go either way.
    assert float(result["miss_rate"].item()) == pytest.approx(40 / 61, abs=1.5 / 61)
    assert float(result["length"].item()) == 3
    assert float(result["monotonicity_violation"].item()) == 0


@pytest.mark.parametrize(
    "relu",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.functional.relu,
        lambda x: nn.functional.relu(x, inplace=True),
        torch.relu,
        lambda x: x.clone().relu_(),
        lambda x: x.relu(),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_transitions_are_those_counted_by_hand(
    relu: Callable[[Tensor], Tensor], batch_size: int
) -> None:
    hidden, bias, out = drawn(20, 5), drawn(20, seed=1), drawn(3, 20, seed=2)
    inputs = drawn(12, 5, seed=3)
    problem = classifier(lambda x: relu(x @ hidden.T + bias) @ out.T, inputs, [0, 1, 2] * 4)
    result = measured(replace(problem, batch_size=batch_size), points=8, beyond=0.5)
    t = np.arange(8)[:, None] / 7
    for pair in range(6):
        first, second = (inputs[int(i)].numpy() for i in result["sample"].values[pair, :2])
        codes = ((1 - t) * first + t * second) @ hidden.numpy().T + bias.numpy() > 0
        assert float(result["transitions"][pair]) == (codes[1:] != codes[:-1]).sum()


@pytest.mark.parametrize(
    ("activation", "kinks"),
    [
        (lambda x: nn.functional.leaky_relu(x, 0.3), [0]),
        (lambda x: nn.functional.leaky_relu(x, 0.3, inplace=True), [0]),
        (lambda x: nn.functional.prelu(x, torch.tensor([0.2], dtype=x.dtype)), [0]),
        (lambda x: nn.functional.threshold(x, 0.5, 0.0), [0.5]),
        (lambda x: nn.functional.hardtanh(x), [-1, 1]),
        (lambda x: nn.functional.relu6(10 * x), [0, 0.6]),
        (lambda x: nn.functional.hardtanh(x, -0.5, 2.0, inplace=True), [-0.5, 2.0]),
        (torch.tanh, []),
        (nn.functional.gelu, []),
    ],
)
def test_every_piecewise_linear_activation_has_a_code_and_smooth_ones_have_none(
    activation: Callable[[Tensor], Tensor], kinks: list[float]
) -> None:
    hidden, out, inputs = drawn(20, 5), drawn(3, 20, seed=2), drawn(12, 5, seed=3)
    space = Inputs(classifier(lambda x: activation(x @ hidden.T) @ out.T, inputs, [0, 1, 2] * 4))
    outputs, switched = transitions(space, space.origin)
    before = (inputs @ hidden.T).numpy()
    piece = np.sum([before > kink for kink in kinks], axis=0) * np.ones_like(before)
    np.testing.assert_array_equal(switched, (piece[1:] != piece[:-1]).sum(axis=1))
    torch.testing.assert_close(outputs, space.outputs(space.origin))


def test_a_path_between_equal_samples_has_no_ratios() -> None:
    inputs = drawn(1, 5).repeat(6, 1)
    weight = drawn(3, 5, seed=1)
    same = measured(classifier(lambda x: (x @ weight.T).tanh(), inputs, [0, 1] * 3))
    for name in ("tortuosity", "chord_deviation"):
        assert np.isnan(same.isel(pair=slice(0, 2))[name]).all()


@pytest.mark.parametrize("beyond", [-0.1, 101.0, 1e9, float("nan"), float("inf")])
def test_a_line_that_goes_on_for_ever_is_refused(problem: Problem, beyond: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and at most 100"):
        measured(problem, beyond=beyond)


def test_an_empty_name_is_no_second_network(problem: Problem) -> None:
    with pytest.raises(ValueError, match="to"):
        measured(problem, to="")


def test_ends_of_a_path_are_the_two_samples_own_logits(problem: Problem) -> None:
    result = measured(problem, beyond=0.25)
    with torch.no_grad():
        own = problem.model.eval()(problem.inputs["input"]).cpu().numpy()
    for kind in ("same_class", "cross_class"):
        for pair in of_kind(result, kind).transpose("pair", ...).groupby("pair"):
            one = pair[1].squeeze("pair")
            for t, rank in ((0.0, 0), (1.0, 1)):
                index = int(one["sample"][rank])
                # Float64; a batch of another size sums in another order.
                np.testing.assert_allclose(one["logits"].sel(t=t), own[index], rtol=1e-9)
                label = int(problem.targets[index])
                assert int(one["label"][rank]) == label
                margin = own[index, label] - np.delete(own[index], label).max()
                assert float(one["margin"][rank]) == pytest.approx(margin, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("kind", pairs.KINDS)
def test_margins_are_the_samples_own_and_their_mean_size_divides(
    problem: Problem, kind: str
) -> None:
    """A shuffled image has the network's own decision for its class."""
    network = problem.model.eval()
    with torch.no_grad():
        decided = network(problem.inputs["input"]).argmax(dim=1)
    wrong = (decided + 3) % 10
    right = torch.arange(len(problem)) == 2
    problem = replace(problem, targets=torch.where(right.to(wrong.device), decided, wrong))
    samples = (2, 5, 9)[: 3 if kind == "circle" else 2]
    path, t = SamplePath(kind, samples, (0, 0)), path_statistics.grid(9, 0.5)
    with torch.no_grad():
        logits = network(pairs.ends(path, problem.inputs)["input"]).cpu().numpy()
    labels = problem.targets.cpu().numpy()[list(samples)]
    labels = logits.argmax(axis=1) if kind == "random" else labels
    rest = np.where(np.eye(10)[labels] > 0, -np.inf, logits)
    margins = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0] - rest.max(axis=1)
    assert (margins[0] > 0) and ((margins[1:] < 0) == (kind != "random")).all()
    found = between.measure(Inputs(problem), path, t, ranks=3, with_jacobian=True)
    # Float64; a batch of another size sums in another order.
    for name, wanted in {"label": labels, "margin": margins, "sample": samples}.items():
        np.testing.assert_allclose(found[name][: len(samples)], wanted, rtol=1e-8)
        assert np.isnan(found[name][len(samples) :]).all()
    norms = found["jacobian_norm"][(t >= 0) & (t <= 1)]
    mean = (norms[1:] + norms[:-1]).mean() / 2
    size = np.abs(margins).mean()
    assert found["path_jacobian_norm"] == pytest.approx(mean, rel=1e-12)
    assert found["relative_jacobian_norm"] == pytest.approx(mean / size, rel=1e-8)
    if kind != "circle":
        rough = found["roughness"] / size**2
        assert found["relative_roughness"] == pytest.approx(rough, rel=1e-8)


def test_points_beyond_the_ends_change_no_statistic(problem: Problem) -> None:
    plain, beyond = measured(problem), measured(problem, beyond=0.5)
    assert beyond.sizes["t"] > plain.sizes["t"]
    for name in between.statistics(with_jacobian=True):
        # Float64; other batches sum in another order.
        np.testing.assert_allclose(beyond[name], plain[name], rtol=1e-7, atol=1e-10, err_msg=name)


def test_losses_probabilities_and_entropy_are_those_of_the_logits(problem: Problem) -> None:
    result = measured(problem)
    logits = torch.from_numpy(result["logits"].values)
    log_p = torch.log_softmax(logits, dim=2).numpy()
    for rank in (0, 1, 2):
        there = result["label"].notnull().values[:, rank]
        labels = result["label"].values[there, rank].astype(int)[:, None, None]
        wanted = np.take_along_axis(log_p[there], labels, axis=2)[..., 0]
        losses, probabilities = (result[n].values[..., rank] for n in ("loss", "probability"))
        # The same float64 formula.
        np.testing.assert_allclose(losses[there], -wanted, rtol=1e-12)
        np.testing.assert_allclose(probabilities[there], np.exp(wanted), rtol=1e-12)
        assert np.isnan(losses[~there]).all() and there.any()
    np.testing.assert_allclose(result["entropy"], -(np.exp(log_p) * log_p).sum(axis=2), rtol=1e-12)


@pytest.mark.parametrize("kind", ["same_class", "cross_class"])
def test_swapping_the_samples_mirrors_the_path(problem: Problem, kind: str) -> None:
    space, t = Inputs(problem), path_statistics.grid(9, 0.5)
    there, back = (
        between.measure(space, SamplePath(kind, samples, (0, 0)), t, ranks=2, with_jacobian=True)
        for samples in ((2, 5), (5, 2))
    )
    # Points are mirrored up to rounding, and relu networks are continuous.
    for name in ("logits", "entropy", "jacobian_norm", "probability_jacobian_norm"):
        np.testing.assert_allclose(back[name], there[name][::-1], rtol=1e-8, atol=1e-12)
    for name in ("loss", "probability"):
        np.testing.assert_allclose(back[name], there[name][::-1, ::-1], rtol=1e-8, atol=1e-12)
    same = ("flips", "miss_rate", "transitions", "length", *RATIOS)
    for name in same:
        assert back[name] == pytest.approx(there[name], rel=1e-8)


def test_batch_size_and_order_change_nothing(problem: Problem) -> None:
    wanted = measured(problem)
    other = measured(replace(problem, batch_size=5))
    for name in wanted.data_vars:
        # Float64: another batch size sums in another order.
        np.testing.assert_allclose(other[name], wanted[name], rtol=1e-7, atol=1e-10)
    plan = interpolate(problem, Spec(pairs=3, points=9))
    backwards = plan.measure([{"pair": pair} for pair in range(11, -1, -1)])
    for name, values in backwards.items():
        if "pair" not in wanted[name].dims:
            continue
        np.testing.assert_array_equal(values[::-1], wanted[name].values)


def test_temperature_changes_nothing_that_is_relative_to_the_margin(problem: Problem) -> None:
    cold, hot = measured(problem), measured(replace(problem, temperature=3.0))
    np.testing.assert_allclose(hot["logits"], cold["logits"] / 3, rtol=1e-12)
    np.testing.assert_allclose(hot["roughness"], cold["roughness"] / 9, rtol=1e-9)
    for name in (*RATIOS, "flips", "miss_rate", "transitions"):
        np.testing.assert_allclose(hot[name], cold[name], rtol=1e-9)


def test_what_means_nothing_for_a_kind_is_nan_and_nothing_else(problem: Problem) -> None:
    result = measured(problem)
    absent = {
        "circle": {"tortuosity", "chord_deviation", "roughness", "relative_roughness"}
        | {"monotonicity_violation", "minimum_probability"},
        "random": {"monotonicity_violation", "minimum_probability"},
        "same_class": {"monotonicity_violation"},
        "cross_class": {"minimum_probability"},
    }
    for kind, names in absent.items():
        part = of_kind(result, kind)
        for name in between.statistics(with_jacobian=True):
            assert np.isnan(part[name]).all() == (name in names), f"{kind} {name}"
            assert np.isfinite(part[name]).all() == (name not in names), f"{kind} {name}"
    same = of_kind(result, "same_class")
    np.testing.assert_array_equal(same["minimum_probability"], same["probability"][..., 0].min("t"))


def test_a_circle_closes_and_random_images_are_shuffled_real_ones(problem: Problem) -> None:
    result = of_kind(measured(problem), "circle")
    # The same image in two places of a batch.
    np.testing.assert_allclose(result["logits"].sel(t=1.0), result["logits"].sel(t=0.0), rtol=1e-9)
    colour = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    ends = pairs.ends(SamplePath("random", (1, 3), (0, 7)), {"input": colour})["input"]
    for end, whole in zip(ends, colour[[1, 3]], strict=True):
        assert not torch.equal(end, whole)
        pixels = (image.flatten(1).T.tolist() for image in (end, whole))
        assert len({tuple(sorted(map(tuple, found))) for found in pixels}) == 1
    again = pairs.ends(SamplePath("random", (1, 3), (0, 7)), {"input": colour})["input"]
    assert torch.equal(again, ends)
    one, other = pairs.ends(SamplePath("random", (1, 1), (0, 7)), {"input": colour})["input"]
    assert not torch.equal(one, other), "each image has a permutation of its own"


def test_every_path_and_seed_shuffles_in_its_own_way() -> None:
    """Of one image alone, so that nothing but the shuffling tells paths apart."""
    image = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    weight = drawn(2, 16)
    problem = classifier(lambda x: x.flatten(1) @ weight.T, image.expand(4, 1, 4, 4), [0, 1, 0, 1])
    logits = []
    for seed in (0, 1):
        spec = Spec(pairs=4, points=3, same_class=False, cross_class=False, seed=seed)
        cells = [{"pair": pair} for pair in range(4)]  # `random` comes first
        logits.append(interpolate(problem, spec).measure(cells)["logits"][:, [0, -1], 0])
    assert len(np.unique(logits)) == 16


def test_a_path_through_a_right_triangle_has_its_hypotenuse_for_a_diameter() -> None:
    points = torch.tensor([[0.0, 0, 7], [3, 0, 7], [0, 4, 7]]).double()
    centre = torch.tensor([1.5, 2, 7]).double()
    found, length = pairs.along(
        SamplePath("circle", (0, 1, 2), (0, 0)), {"input": points}, np.linspace(0, 1, 101)
    )
    # Float64 through a triangle that is not thin.
    assert length == pytest.approx(5 * np.pi, rel=1e-12)
    torch.testing.assert_close(
        (found["input"] - centre).norm(dim=1), torch.full((101,), 2.5).double(), rtol=1e-12, atol=0
    )
    _, length = pairs.along(
        SamplePath("random", (1, 2), (0, 0)), {"input": points[1:]}, np.zeros(1)
    )
    assert length == 5


def test_points_of_a_line_are_computed_in_float64_and_rounded_once() -> None:
    ends = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    t = path_statistics.grid(10, 0.5)
    along, _ = pairs.along(SamplePath("same_class", (0, 1), (0, 0)), {"input": ends}, t)
    first, second = ends.double()
    at = torch.from_numpy(t)[:, None]
    assert along["input"].dtype == torch.float32
    assert torch.equal(along["input"], ((1 - at) * first + at * second).float())
    assert torch.equal(along["input"][(t == 0) | (t == 1)], ends)


def test_outputs_that_overflow_are_stored_and_counted_but_decide_nothing() -> None:
    """x^400 is finite between 0 and 1 and overflows soon after 5; inf - inf is NaN."""
    inputs = torch.tensor([[0.5, 0.2], [9.0, 8.0], [0.1, 0.9], [0.3, 0.7]]).double()

    def overflowing(x: Tensor) -> Tensor:
        powers = torch.relu(x) ** 400
        return torch.stack([x[:, 0], x[:, 1], powers[:, 0] - powers[:, 1]], dim=1)

    problem = classifier(overflowing, inputs, [0, 0, 1, 1])
    plan = interpolate(problem, Spec(pairs=1, points=9, same_class=False, controls=False, seed=1))
    result = measured(problem, pairs=4, same_class=False, controls=False)
    broken = np.isnan(result["logits"]).any(("t", "class")).values
    assert broken.tolist() == (result["sample"] == 1).any("path_sample").values.tolist()
    for name in ("flips", "miss_rate", "transitions"):
        np.testing.assert_array_equal(np.isnan(result[name]), broken)
    assert plan.tell is not None
    assert plan.tell(result)[0].endswith(f"{broken.sum()} with outputs that are not finite")


def test_outputs_that_overflow_beyond_the_ends_leave_what_is_between() -> None:
    """4^400 is finite and 7^400 is not."""
    inputs = torch.tensor([[0.5, 0.4], [4.0, 4.0]]).double()

    def overflowing(x: Tensor) -> Tensor:
        powers = torch.relu(x) ** 400
        return torch.stack([x[:, 0] - 2, powers[:, 0] - powers[:, 1]], dim=1)

    problem = classifier(overflowing, inputs, [0, 1])
    result = measured(problem, pairs=1, same_class=False, controls=False, beyond=1.0)
    inside = (result["t"] >= 0) & (result["t"] <= 1)
    assert np.isnan(result["logits"].isel(t=~inside)).any()
    for name in ("flips", "miss_rate", "transitions"):
        assert np.isfinite(result[name]).all()


def test_means_by_kind_are_those_over_its_pairs(problem: Problem) -> None:
    result = measured(problem)
    assert result["path_kind"].values.tolist() == list(pairs.KINDS)
    for kind in pairs.KINDS:
        own, over = of_kind(result, kind), result.sel(path_kind=kind)
        for name, values in (
            ("flips_mean", own["flips"].values),
            ("log_path_jacobian_norm_mean", np.log(own["path_jacobian_norm"].values)),
        ):
            assert float(over[name]) == pytest.approx(values.mean(), rel=1e-12)
            stderr = values.std(ddof=1) / np.sqrt(3)
            assert float(over[f"{name}_stderr"]) == pytest.approx(stderr, abs=1e-12)


def test_images_of_the_gallery_lie_on_their_paths(problem: Problem) -> None:
    result = measured(problem, gallery=3, beyond=0.5)
    assert result["image"].dims == ("gallery", "gallery_t", "channel", "height", "width")
    np.testing.assert_array_equal(result["gallery_t"][[0, -1]], [0, 1])
    images = problem.inputs["input"].cpu().numpy()
    for shown, pair in zip(result["image"], result["gallery_pair"].values, strict=True):
        one = result.isel(pair=int(pair))
        assert one["kind"].item() in ("same_class", "cross_class")
        first, second = (images[int(index)] for index in one["sample"][:2])
        for image, t in zip(shown.values, result["gallery_t"].values, strict=True):
            np.testing.assert_allclose(image, (1 - t) * first + t * second, atol=1e-15)


def test_the_gallery_shows_each_kind_of_real_path_in_turn(problem: Problem) -> None:
    result = measured(problem, gallery=4)
    # Three pairs a kind: the first and second of `same_class`, 0 and 1, of `cross_class` 3 and 4.
    np.testing.assert_array_equal(result["gallery_pair"], [0, 3, 1, 4])
    controls = measured(problem, gallery=2, same_class=False, cross_class=False)
    np.testing.assert_array_equal(controls["gallery_pair"], [0, 3])


def test_correct_only_draws_correctly_classified_samples(problem: Problem) -> None:
    with torch.no_grad():
        decisions = problem.model.eval()(problem.inputs["input"]).argmax(dim=1)
    right = torch.arange(len(problem)) % 3 > 0
    wrong = (decisions + 1) % 10
    problem = replace(problem, targets=torch.where(right.to(wrong.device), decisions, wrong))
    result = measured(problem, correct_only=True, same_class=False, cross_class=False)
    samples = result["sample"].values
    assert right[samples[~np.isnan(samples)].astype(int)].all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"points": 2}, "points 2; expected a whole number, at least 3"),
        ({"beyond": -0.5}, "beyond -0.5"),
        ({"pairs": 0}, "pairs 0"),
        ({"pairs": 9999}, "pairs 9999 exceeds the .* of kind same_class among 23"),
        ({"statistics": ("kept",)}, "pass to as well"),
        ({"same_class": False, "cross_class": False, "controls": False}, "no kind of path"),
        ({"to": "b.pt", "pairs": 4}, "pairs is for paths between samples"),
        ({"to": "b.pt", "correct_only": True}, "correct_only is for paths between samples"),
        ({"to": "b.pt", "statistics": ("kpet",)}, "statistics kpet; expected some of kept, inter"),
        ({"to": "b.pt", "statistics": ("recomputed",)}, "Pass batch_norm recompute"),
        ({"to": "b.pt"}, "b.pt"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    problem: Problem, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        interpolate(problem, Spec(**spec))
    assert "\n" not in str(caught.value)


def test_paths_between_samples_need_labels_and_a_gallery_images() -> None:
    with pytest.raises(ValueError, match="need a classification problem"):
        interpolate(LinearRegression.random().problem(), Spec())
    weight = drawn(3, 5)
    vectors = classifier(lambda x: x @ weight.T, drawn(12, 5), [0, 1, 2] * 4)
    with pytest.raises(ValueError, match="gallery 2 needs one batch of images"):
        interpolate(vectors, Spec(gallery=2))
    assert "image" not in measured(vectors)


def moved(problem: Problem) -> Problem:
    """Another network of the same architecture, its batch-norm statistics different too."""
    other = make_problem(problem.device).model
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for value in other.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator).to(value))
    return replace(problem, model=other.float().double())


def mean_loss(problem: Problem, *, recomputed: bool = False) -> float:
    network = make_problem(problem.device).model
    network.load_state_dict(problem.model.state_dict())
    with torch.no_grad():
        if recomputed:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1.0
            network.train()(problem.calibration["input"])
        logits = network.eval()(problem.inputs["input"])
    return nn.functional.cross_entropy(logits, problem.targets).item()


def test_ends_of_the_line_are_the_two_networks(problem: Problem, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(11, 1, 8, 8, generator=generator).to(problem.inputs["input"])
    problem = replace(problem, calibration={"input": images})
    other = moved(problem)
    torch.save(other.model.state_dict(), tmp_path / "other.pt")
    every = ("recomputed", "kept", "interpolated")
    result = landscape.measure(
        "interpolate", problem, to=str(tmp_path / "other.pt"), points=5, statistics=every
    )
    treatments = result["batch_norm_statistics"].values.tolist()
    assert treatments == ["kept", "interpolated", "recomputed"]
    kept, interpolated, recomputed = (
        result["loss"].sel(batch_norm_statistics=name) for name in treatments
    )
    plain, far = mean_loss(problem), mean_loss(other)
    # Float64, but for the file, whose tensors are float32 and were made so before.
    for line in (kept, interpolated):
        assert float(line[0]) == pytest.approx(plain, rel=1e-10)
    assert float(interpolated[-1]) == pytest.approx(far, rel=1e-10)
    assert float(kept[-1]) != pytest.approx(far, rel=1e-3), "neither network has these statistics"
    for end, found in ((problem, recomputed[0]), (other, recomputed[-1])):
        assert float(found) == pytest.approx(mean_loss(end, recomputed=True), rel=1e-10)
    for name in treatments:
        one = result.sel(batch_norm_statistics=name)
        losses, t = one["example_loss"].mean("example").values, result["t"].values
        excess = losses - (1 - t) * losses[0] - t * losses[-1]
        # A mean in another order.
        np.testing.assert_allclose(one["excess_loss"], excess, rtol=1e-9, atol=1e-12)
        assert float(one["barrier"]) == pytest.approx(excess.max(), rel=1e-9, abs=1e-12)
        assert float(one["barrier_at"]) == t[excess.argmax()]
    usual = landscape.measure("interpolate", problem, to=str(tmp_path / "other.pt"), points=3)
    assert usual["batch_norm_statistics"].values.tolist() == ["interpolated", "recomputed"]


def test_barrier_of_a_concave_quadratic_has_its_closed_form(tmp_path: Path) -> None:
    """-|W x - y|^2 / 2 is above its chord by t (1 - t) |D x|^2 / 2, for D between the ends."""
    oracle = LinearRegression.random()
    change = drawn(3, 5, seed=8).float().double()
    torch.save({"weight": oracle.weight + change}, tmp_path / "b.pt")
    problem = replace(
        oracle.problem(), loss=lambda outputs, targets: -half_squared_error(outputs, targets)
    )
    result = landscape.measure(
        "interpolate", problem, to=str(tmp_path / "b.pt"), points=9, beyond=0.5
    )
    each = (oracle.inputs @ change.T).square().sum(dim=1).numpy() / 8
    assert float(result["barrier_at"].item()) == 0.5
    # The file may be read in float32.
    assert float(result["barrier"].item()) == pytest.approx(each.mean(), rel=1e-6)
    stderr = each.std(ddof=1) / np.sqrt(len(each))
    assert float(result["barrier_stderr"].item()) == pytest.approx(stderr, rel=1e-6)
    t = result["t"].values
    np.testing.assert_allclose(
        result["excess_loss"][:, 0], 4 * t * (1 - t) * each.mean(), rtol=1e-5, atol=1e-12
    )
    np.testing.assert_allclose(
        result["excess_loss_stderr"][:, 0], np.abs(4 * t * (1 - t)) * stderr, rtol=1e-5, atol=1e-12
    )
    convex = landscape.measure(
        "interpolate", oracle.problem(), to=str(tmp_path / "b.pt"), points=9, beyond=0.5
    )
    assert float(convex["excess_loss"].max()) > 0, "beyond its ends it is above its chord"
    assert float(convex["barrier"].item()) == 0
    assert float(convex["barrier_at"].item()) in (0, 1)


def test_both_ends_of_a_line_are_exact_however_far_apart_they_are(tmp_path: Path) -> None:
    """1e20 + (1 - 1e20) is 0 in float64, and so would be a line that started at one end only."""
    oracle = LinearRegression.random(count=4)
    ones, huge = torch.ones(3, 5).double(), torch.full((3, 5), 1e20).double()
    for name, (first, second) in {"up": (ones, huge), "down": (huge, ones)}.items():
        torch.save({"weight": second}, tmp_path / f"{name}.pt")
        problem = replace(oracle, weight=first).problem()
        line = landscape.measure("interpolate", problem, to=str(tmp_path / f"{name}.pt"), points=3)[
            "example_loss"
        ].isel(batch_norm_statistics=0)
        for at, weight in ((0, first), (-1, second)):
            # A handful of float64 products; the file holds 1e20 to float32.
            wanted = oracle.losses(weight, oracle.inputs)
            np.testing.assert_allclose(line[at], wanted, rtol=1e-6)


def test_a_second_network_of_another_architecture_is_refused(
    problem: Problem, tmp_path: Path
) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(ValueError, match="Both need the same architecture"):
        interpolate(problem, Spec(to=str(tmp_path / "linear.pt")))


def test_the_command_tells_means_and_barriers(problem: Problem, tmp_path: Path) -> None:
    plan = interpolate(problem, Spec(pairs=3, points=5))
    assert plan.tell is not None
    lines = plan.tell(measured(problem, points=5))
    assert [line.split(",")[0] for line in lines] == [
        "same class",
        "cross class",
        "random",
        "circle",
    ]
    assert "tortuosity" in lines[0]
    assert "tortuosity" not in lines[3]
    torch.save(moved(problem).model.state_dict(), tmp_path / "other.pt")
    to = str(tmp_path / "other.pt")
    plan = interpolate(problem, Spec(to=to, points=3))
    assert plan.tell is not None
    (line,) = plan.tell(landscape.measure("interpolate", problem, to=to, points=3))
    assert "interpolated: barrier" in line
