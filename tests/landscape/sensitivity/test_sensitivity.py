from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.spatial.distance import cdist
from torch import Tensor, nn

import landscape
from checkpoints.data import sample
from checkpoints.problem import Normalization, Problem
from checkpoints.source import load_problem
from landscape.core.plan import run
from landscape.core.spaces import Inputs
from landscape.core.summary import summarized
from landscape.sensitivity import finite_differences, sensitivity
from landscape.sensitivity.examples import Examples
from landscape.sensitivity.neighbors import neighbors, tangents
from landscape.sensitivity.spec import PARTS, Spec
from tests.oracles import LinearRegression, make_problem

SMALL: dict[str, Any] = {
    "directions": 2,
    "tangents": 1,
    "neighbors": 3,
    "draws": 3,
    "radii": (3e-3, 0.1),
}


def measured(problem: Problem, **spec: Any) -> xr.Dataset:
    return landscape.measure("sensitivity", problem, **(SMALL | spec))


class Quadratic(nn.Module):
    """Outputs f_c(x) = x^T A_c x / 2 + B_c x."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        drawn = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
        self.forms = nn.Parameter(drawn + drawn.mT)
        self.slopes = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,cij,nj->nc", x, self.forms, x) / 2 + x @ self.slopes.T


def quadratic(count: int = 6) -> Problem:
    """The loss is the first output: a quadratic form itself."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    targets = torch.zeros(count, 1, dtype=torch.float64)
    return Problem.of(
        Quadratic(), [(inputs, targets)], lambda outputs, _: outputs[:, 0], batch_size=4
    )


def directions_of(problem: Problem, spec: Spec) -> Tensor:
    """The random directions, made again from what the documentation says: (N, count, d)."""
    rows = [
        [np.random.default_rng((spec.seed, 0, draw, i)).standard_normal(4) for draw in range(2)]
        for i in range(len(problem))
    ]
    drawn = torch.from_numpy(np.array(rows))
    return drawn / drawn.norm(dim=2, keepdim=True)


def test_differences_of_a_quadratic_are_exact_at_every_radius() -> None:
    problem = quadratic()
    assert isinstance(problem.model, Quadratic)
    forms, slopes = problem.model.forms.detach(), problem.model.slopes.detach()
    result = measured(problem, parts=("radii",), radii=(0.01, 0.1, 1.0))
    unit, x = directions_of(problem, Spec(**SMALL)), problem.inputs["input"]
    bend = torch.einsum("nki,cij,nkj->nkc", unit, forms, unit)
    turn = torch.einsum("ij,nkj->nki", forms[0], unit).norm(dim=2)
    random = result.sel(direction=["random_0", "random_1"])
    for radius in result["radius"].values:
        at = random.sel(radius=radius)
        r = float(radius * result["median_distance"])
        # The smallest r is about 0.003: float64 rounding over r^2 is 1e-16 / 1e-5.
        close = {"rtol": 1e-9, "atol": 1e-9}
        np.testing.assert_allclose(at["second_difference"], bend.norm(dim=2), **close)
        np.testing.assert_allclose(at["curvature"], bend[..., 0], **close)
        np.testing.assert_allclose(at["gradient_change"], turn, **close)
        slope = torch.einsum("ci,nki->nkc", slopes, unit)
        slope = slope + torch.einsum("ni,cij,nkj->nkc", x, forms, unit)
        np.testing.assert_allclose(at["difference"], (slope + r / 2 * bend).norm(dim=2), **close)


def test_a_linear_model_has_gradients_and_no_bend() -> None:
    oracle = LinearRegression.random(ins=6, count=9)
    problem = oracle.problem()
    result = measured(problem, parts=("norms", "jacobian", "radii"), radii=(0.1, 1.0))
    residual = oracle.inputs @ oracle.weight.T - oracle.targets
    slopes = residual @ oracle.weight
    # A handful of float64 products.
    np.testing.assert_allclose(result["gradient_l2"], slopes.norm(dim=1), rtol=1e-12)
    np.testing.assert_allclose(result["gradient_linf"], slopes.abs().amax(dim=1), rtol=1e-12)
    np.testing.assert_allclose(result["jacobian_frobenius"], oracle.weight.norm(), rtol=1e-12)
    spectral = torch.linalg.matrix_norm(oracle.weight, 2)
    np.testing.assert_allclose(result["jacobian_spectral"], spectral, rtol=1e-10)
    # Rounding alone: a few 1e-16 over a squared distance of about 0.04.
    np.testing.assert_allclose(result["second_difference"], 0, atol=1e-12)
    uphill = slopes / slopes.norm(dim=1, keepdim=True)
    along = (uphill @ oracle.weight.T).norm(dim=1)
    ahead = result.sel(direction="gradient", radius=1.0)
    np.testing.assert_allclose(ahead["difference"], along, rtol=1e-10)
    np.testing.assert_allclose(ahead["curvature"], along**2, rtol=1e-9)
    # No classes, so nothing that needs them.
    assert not [n for n in result.data_vars if "margin" in str(n) or "accuracy" in str(n)]
    assert "gauss_newton_eigenvalue" not in result


def test_bands_of_a_linear_model_are_known() -> None:
    oracle = LinearRegression.random(ins=6, count=9)
    result = measured(oracle.problem(), parts=("bands",), steps=(0.1, 0.2))
    slopes = (oracle.inputs @ oracle.weight.T - oracle.targets) @ oracle.weight
    size = slopes.norm(dim=1, keepdim=True)
    turn = (slopes / size @ oracle.weight.T @ oracle.weight).norm(dim=1)
    steps = [s * float(result["median_distance"]) for s in (0.1, 0.2)]
    losses = [oracle.losses(oracle.weight, oracle.inputs - s * slopes / size) for s in steps]
    # A handful of float64 products.
    close = {"rtol": 1e-10}
    np.testing.assert_allclose(result["band_smoothness"], turn, **close)
    np.testing.assert_allclose(result["band_gradient_min"], steps[0] * turn, **close)
    np.testing.assert_allclose(result["band_gradient_max"], steps[1] * turn, **close)
    np.testing.assert_allclose(result["band_loss_min"], torch.minimum(*losses), **close)
    np.testing.assert_allclose(result["band_loss_max"], torch.maximum(*losses), **close)


def test_a_relu_network_has_no_bend_below_its_kink_distance() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(8, 5, generator=generator, dtype=torch.float64)
    problem = Problem.of(model, [(inputs, torch.arange(8) % 3)], batch_size=8)
    result = measured(problem, parts=("radii",), radii=(0.01, 0.03, 0.1, 0.3, 1.0))
    first = model[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        # Each unit's kink is a plane; no unit vector reaches one within this distance.
        away = (first(inputs).abs() / first.weight.norm(dim=1)).amin(dim=1).numpy()
    reached = result["radius"].values * float(result["median_distance"])
    inside = reached[None] < away[:, None]
    assert inside.any() and not inside.all()
    bend = result["second_difference"].transpose("example", "radius", "direction").values
    floor = result["second_difference_floor"].values
    # Rounding, for which the stored floor is an estimate: within ten times of it.
    assert (bend[inside].max(axis=1) < 10 * floor[inside] + 1e-12).all()
    assert bend[~inside].max() > 0.1


def test_the_rounding_floor_foretells_the_error_in_float32() -> None:
    problem = make_problem(torch.device("cpu"), merge="sigmoid_both", count=12)
    asked = {"parts": ("radii",), "radii": (0.01, 0.02), "tangents": 0}
    wide = measured(problem, **asked)
    narrow = measured(problem.to("cpu", torch.float32), **asked)
    for name in ("second_difference", "curvature", "gradient_change"):
        error = np.abs(narrow[name] - wide[name])
        error = error.sel(direction=["random_0", "random_1"]).mean(["direction", "example"])
        floor = narrow[f"{name}_floor"].mean("example")
        ratio = (error / floor).values
        # An estimate from a single rounding error an example: its order of magnitude.
        assert ((ratio > 0.1) & (ratio < 10)).all(), (name, ratio)


def test_below_a_hundredth_differences_are_taken_in_float64() -> None:
    problem = make_problem(torch.device("cpu"), merge="sigmoid_both", count=12)
    asked = {"parts": ("radii",), "radii": (1e-3, 1e-2), "tangents": 0}
    wide = measured(problem, **asked)["second_difference"]
    rounded = problem.to("cpu", torch.float32)
    again = measured(rounded, **asked)["second_difference"]
    # The same kernels: at 1e-3 another order of sums in float64 shows in the sixth digit.
    widened = replace(rounded.to("cpu", torch.float64), kernels="contiguous")
    exact = measured(widened, **asked)["second_difference"]
    random = {"direction": ["random_0", "random_1"]}
    # The weights are rounded once, and the distance to the neighbours with the inputs.
    fine = {"radius": 1e-3}
    np.testing.assert_allclose(again.sel(fine).sel(random), exact.sel(fine).sel(random), rtol=1e-6)
    assert not np.allclose(again.sel(radius=1e-2), exact.sel(radius=1e-2), rtol=1e-6)
    assert wide.shape == again.shape


@pytest.mark.parametrize("batch_size", [3, 23])
def test_the_batch_size_changes_nothing_but_rounding(batch_size: int, problem: Problem) -> None:
    spec = {"directions": 1, "sigmas": (0.1,), "steps": (0.1,)}
    whole = measured(problem, **spec)
    other = measured(replace(problem, batch_size=batch_size), **spec)
    for name in whole.data_vars:
        # Second differences at 0.003 of a distance of 2 enlarge 1e-15 by 3e4.
        np.testing.assert_allclose(other[name], whole[name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_the_order_in_which_examples_are_measured_changes_nothing(problem: Problem) -> None:
    plan = sensitivity(problem, Spec(**SMALL, parts=("norms", "radii", "noise")))
    forth = plan.measure([{"example": 3}, {"example": 7}])
    back = plan.measure([{"example": 7}, {"example": 3}])
    for name, values in forth.items():
        np.testing.assert_allclose(back[name][::-1], values, rtol=1e-6, atol=1e-7, err_msg=name)


def powers(units: str) -> tuple[int, int]:
    """Of nat and of the pixel range in a unit such as "nat / pixel range²"."""
    above, _, below = units.partition(" / ")
    assert above in ("1", "nat", "pixel range")
    squared = {"": 0, "pixel range": -1, "pixel range²": -2}[below]
    return int(above == "nat"), int(above == "pixel range") + squared


def test_other_pixel_units_change_values_by_their_units(problem: Problem) -> None:
    shifted = {"input": 2 * problem.inputs["input"] + 1}
    scaled = replace(problem, inputs=shifted, normalization=Normalization((1.0,), (2.0,)))
    plain, other = measured(problem, sigmas=(0.1,)), measured(scaled, sigmas=(0.2,))
    # A rounding error depends on the numbers; it is of the second difference.
    floor = plain["second_difference_floor"].attrs["units"]
    assert floor == plain["second_difference"].attrs["units"]
    for name in set(plain.data_vars) - {"second_difference_floor"}:
        _, power = powers(plain[name].attrs["units"])
        # Distances are the same multiples of the neighbours', so the same points are evaluated;
        # second differences at 0.003 of a distance of 2 enlarge 1e-15 by 3e4.
        np.testing.assert_allclose(
            other[name] / 2**power, plain[name], rtol=1e-6, atol=1e-7, err_msg=name
        )


def test_multiplied_logits_and_losses_change_values_by_their_units(problem: Problem) -> None:
    """Four times the logits, and a loss of these that is four times what it was."""
    larger = replace(
        problem,
        temperature=0.25,
        loss=lambda outputs, targets: 4 * problem.loss(outputs / 4, targets),
    )
    plain, other = measured(problem, sigmas=(0.1,)), measured(larger, sigmas=(0.1,))
    # A softmax is not that of the logits before, and has no unit itself.
    softmax = {"softmax_jacobian_frobenius", "softmax_jacobian_spectral"}
    assert {plain[name].attrs["units"] for name in softmax} == {"1 / pixel range"}
    assert plain["gauss_newton_eigenvalue"].attrs["units"] == "nat / pixel range²"
    # What is 0 everywhere would agree with any unit.
    assert {plain[name].attrs["units"] for name in plain if "accuracy" in str(name)} == {"1"}
    left_out = softmax | {"gauss_newton_eigenvalue", "second_difference_floor"}
    for name in set(plain.data_vars) - left_out:
        power, _ = powers(plain[name].attrs["units"])
        # A power of two: rounding in the softmax alone, enlarged as above.
        np.testing.assert_allclose(
            other[name] / 4**power, plain[name], rtol=1e-6, atol=1e-7, err_msg=name
        )


def test_noise_in_a_linear_model_costs_what_it_must() -> None:
    oracle = LinearRegression.random(ins=6, count=9)
    result = measured(oracle.problem(), parts=("noise",), draws=400, sigmas=(0.1, 0.3))
    slopes = (oracle.inputs @ oracle.weight.T - oracle.targets) @ oracle.weight
    for sigma in (0.1, 0.3):
        at = result.sel(sigma=sigma)
        expected = result["loss"] + sigma**2 * float(oracle.weight.norm()) ** 2 / 2
        error = (at["noise_loss"] - expected) / at["noise_loss_stderr"]
        assert (np.abs(error) < 4).all()  # of its own standard errors
        # |e + s W n|^2 / 2 with normal n has the variance s^2 |W^T e|^2 + s^4 |W^T W|^2 / 2.
        gram = oracle.weight.T @ oracle.weight
        variance = sigma**2 * slopes.square().sum(dim=1) + sigma**4 * gram.square().sum() / 2
        # A standard deviation of 400 draws is known to about 5 %, for tails not far from normal.
        np.testing.assert_allclose(at["noise_loss_stderr"], (variance / 400).sqrt(), rtol=0.25)


def test_noise_is_that_of_each_examples_own_generator() -> None:
    """Of the stream 2: the directions have 0."""
    oracle = LinearRegression.random(ins=6, count=5)
    spec = {"parts": ("noise",), "draws": 3, "sigmas": (0.1, 0.3), "seed": 4}
    result = measured(oracle.problem(), **spec)
    for sigma in (0.1, 0.3):
        losses = torch.stack(
            [
                oracle.losses(
                    oracle.weight,
                    oracle.inputs
                    + sigma
                    * torch.from_numpy(
                        np.stack(
                            [
                                np.random.default_rng((4, 2, draw, i)).standard_normal(6)
                                for i in range(5)
                            ]
                        )
                    ),
                )
                for draw in range(3)
            ]
        )
        at = result.sel(sigma=sigma)
        # A handful of float64 products.
        np.testing.assert_allclose(at["noise_loss"], losses.mean(dim=0), rtol=1e-12)
        stderr = losses.std(dim=0) / 3**0.5
        np.testing.assert_allclose(at["noise_loss_stderr"], stderr, rtol=1e-10)


def test_accuracy_without_noise_is_accuracy(problem: Problem) -> None:
    result = measured(problem, parts=("noise",), sigmas=(1e-9,))
    np.testing.assert_array_equal(result["noise_accuracy"][:, 0], result["correct"])
    # The logits move by about 1e-9 times a slope of order one.
    np.testing.assert_allclose(result["noise_loss"][:, 0], result["loss"], atol=1e-6)


def test_the_adversarial_direction_does_more_harm_than_the_gradient(problem: Problem) -> None:
    result = measured(problem, parts=("radii",), radii=(0.1,))
    loss = result["moved_loss"].sel(radius=0.1)
    attacked = loss.sel(direction="adversarial")
    assert (attacked >= result["loss"]).all()
    assert float(attacked.mean()) >= float(loss.sel(direction="gradient").mean())
    assert float(attacked.mean()) > float(loss.sel(direction="random_0").mean())


def test_the_attack_climbs_to_the_sphere_in_a_linear_model() -> None:
    oracle = LinearRegression.random(ins=6, count=4)
    problem = oracle.problem()
    examples = Examples.of(Inputs(problem), problem.inputs, problem.targets)
    found = finite_differences.adversarial(examples, 1e-3)
    uphill = examples.gradients / examples.gradients.norm(dim=1, keepdim=True)
    # So near the example the loss is linear up to 1e-3 of its slope.
    torch.testing.assert_close(
        (found * uphill).sum(dim=1), torch.ones(4).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4).double())


def attacked(problem: Problem, radius: float) -> Tensor:
    """Where five steps of half a radius, each projected onto the ball, lead: of norm `radius`."""
    assert isinstance(problem.model, Quadratic)
    form, slope = problem.model.forms[0].detach(), problem.model.slopes[0].detach()
    places = []
    for x in problem.inputs["input"]:
        place = torch.zeros(4, dtype=torch.float64)
        for _ in range(5):
            uphill = form @ (x + place) + slope
            place = place + radius / 2 * uphill / uphill.norm()
            if place.norm() > radius:
                place = radius * place / place.norm()
        places.append(place)
    return torch.stack(places)


def test_the_attack_takes_five_steps_of_half_a_radius_and_looks_again_at_each() -> None:
    problem = quadratic()
    examples = Examples.of(Inputs(problem), problem.inputs, problem.targets)
    # At this radius the gradient turns much; projected steps do not enlarge rounding.
    expected = attacked(problem, 0.7) / 0.7
    straight = finite_differences.unit(examples.gradients)
    assert ((expected * straight).sum(dim=1) < 0.99).any(), "the model is too straight to tell"
    torch.testing.assert_close(
        finite_differences.adversarial(examples, 0.7), expected, rtol=0, atol=1e-12
    )


def test_the_attack_is_sought_at_a_tenth_of_the_neighbours_distance() -> None:
    problem = quadratic()
    result = measured(problem, parts=("radii",), radii=(0.1, 1.0))
    x, model = problem.inputs["input"], problem.model
    distance = float(result["median_distance"])
    unit = attacked(problem, 0.1 * distance) / (0.1 * distance)
    for radius in (0.1, 1.0):
        moved = result["moved_loss"].sel(direction="adversarial", radius=radius)
        # A quadratic form in float64.
        expected = model(x + radius * distance * unit)[:, 0].detach()
        np.testing.assert_allclose(moved, expected, rtol=1e-10)


def test_floors_are_what_independent_errors_make_of_differences() -> None:
    """Errors of 7, 3 and 5 units of float32's epsilon, as two precisions would tell them."""
    eps = torch.finfo(torch.float32).eps

    def of(dtype: torch.dtype, units: float) -> Any:
        logits, losses = torch.tensor([[7.0, 0.0]]), torch.tensor([3.0])
        gradients = torch.tensor([[0.0, 5.0, 0.0]])
        rows = (units * eps * value.double() for value in (logits, losses, gradients))
        return SimpleNamespace(
            dtype=dtype, **dict(zip(("logits", "losses", "gradients"), rows, strict=True))
        )

    narrow, wide = of(torch.float32, 1), of(torch.float64, 0)
    found = finite_differences.floors(narrow, wide, [wide, narrow], [0.1, 0.2])
    drawn = torch.randn(3, 20000, 10, generator=torch.Generator().manual_seed(0)).double()
    left, here, right = eps * drawn / drawn.norm(dim=2, keepdim=True)
    bend = float((left - 2 * here + right).norm(dim=1).square().mean().sqrt()) / 0.2**2
    turn = float((right - here).norm(dim=1).square().mean().sqrt()) / 0.2
    for name, wanted in (
        ("second_difference", 7 * bend),
        ("curvature", 3 * bend),
        ("gradient_change", 5 * turn),
    ):
        # A root mean square of 20000 draws: 0.4 % of its own, five times that.
        assert float(found[f"{name}_floor"][0, 1]) == pytest.approx(wanted, rel=0.02)
        power = 1 if name == "gradient_change" else 2
        ratio = torch.finfo(torch.float64).eps / eps * 2**power
        at_once = found[f"{name}_floor"][0]
        assert float(at_once[0] / at_once[1]) == pytest.approx(ratio, rel=1e-12)


def test_radii_are_multiples_of_the_median_distance_to_the_nearest_neighbour() -> None:
    problem = quadratic(count=7)
    apart = torch.cdist(problem.inputs["input"], problem.inputs["input"])
    nearest = apart.fill_diagonal_(torch.inf).amin(dim=1)
    result = measured(problem, parts=("bands",))
    # Four squares in float64.
    np.testing.assert_allclose(result["nearest_distance"], nearest, rtol=1e-12)
    assert float(result["median_distance"]) == pytest.approx(float(nearest.median()), rel=1e-12)


def test_points_are_moved_in_float64_and_rounded_once() -> None:
    inputs = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    steps = 1e-3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(1)).double()
    problem = Problem.of(nn.Linear(4, 2), [(inputs, torch.zeros(50, dtype=torch.long))])
    examples = Examples.of(Inputs(problem), problem.inputs, problem.targets)
    # Steps that float32 does not hold: rounded before they are added, some sums would differ.
    steps = steps * (1 + 1e-9)
    expected = (inputs.double() + steps).float()
    assert not torch.equal(inputs + steps.float(), expected)
    assert torch.equal(examples.moved(steps)["input"], expected)


def test_moved_losses_and_accuracies_are_those_at_the_end_of_the_step() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs, steps = (
        torch.randn(size, 4, generator=generator, dtype=torch.float64) for size in (3, 20, 20)
    )
    model = nn.Linear(4, 3, bias=False).double()
    model.load_state_dict({"weight": weight})
    labels = (inputs @ weight.T).argmax(dim=1)
    problem = Problem.of(model, [(inputs, labels)])
    examples = Examples.of(Inputs(problem), problem.inputs, problem.targets)
    found = finite_differences.differences(examples, finite_differences.unit(steps), 3.0)
    logits = (inputs + 3 * finite_differences.unit(steps)) @ weight.T
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    # A handful of float64 products; a loss near 0 keeps the rounding of its logits.
    torch.testing.assert_close(found["moved_loss"], losses, rtol=1e-10, atol=1e-14)
    hits = (logits.argmax(dim=1) == labels).double()
    assert torch.equal(found["moved_accuracy"], hits) and 0 < hits.sum() < 20


def test_neighbours_are_those_of_a_full_comparison() -> None:
    points = torch.rand(600, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = {"input": points.view(600, 7, 1)}
    distances, found = neighbors(inputs, inputs, np.arange(600), 3)
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    apart.fill_diagonal_(torch.inf)
    nearest = apart.topk(3, largest=False)
    np.testing.assert_array_equal(found, nearest.indices)
    np.testing.assert_allclose(distances, nearest.values[:, 0], rtol=1e-12)  # seven squares


def test_neighbour_distances_do_not_depend_on_how_many_examples_are_measured() -> None:
    parts = {"parts": ("bands",)}
    few, more = (
        landscape.measure("sensitivity", load_problem(examples=n), **parts) for n in (10, 30)
    )
    assert float(few["median_distance"]) == float(more["median_distance"])
    np.testing.assert_array_equal(few["nearest_distance"], more["nearest_distance"][:10])
    # Another batch changes a loss by rounding, on some processors.
    np.testing.assert_allclose(few["band_loss_max"], more["band_loss_max"][:10], rtol=1e-5)
    images = sample.load("test").pixels.reshape(2000, -1) / 255
    apart = cdist(images[:10], images)
    apart[np.arange(10), np.arange(10)] = np.inf
    np.testing.assert_allclose(few["nearest_distance"], apart.min(axis=1), rtol=1e-6)  # float32


def test_an_example_outside_the_reference_has_all_of_it_as_neighbours() -> None:
    points = torch.rand(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Linear(5, 3).double()
    problem = Problem.of(
        model,
        [(points[:4], torch.arange(4) % 3)],
        reference={"input": points[4:]},
        reference_indices=np.arange(100, 116),
    )
    result = landscape.measure("sensitivity", problem, parts=("bands",))
    nearest = torch.cdist(points[:4], points[4:]).min(dim=1).values
    np.testing.assert_allclose(result["nearest_distance"], nearest, rtol=1e-9)
    between = torch.cdist(points[4:], points[4:]).fill_diagonal_(torch.inf).min(dim=1).values
    assert float(result["median_distance"]) == pytest.approx(float(np.median(between)), rel=1e-9)


def test_tangents_of_a_plane_lie_in_it() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64)).Q.T
    spread = torch.tensor([3.0, 1.0], dtype=torch.float64)
    weights = torch.randn(4, 9, 2, generator=generator, dtype=torch.float64) * spread
    found = tangents(weights @ plane + 5, 2)
    inside = (found @ plane.T).norm(dim=2)
    torch.testing.assert_close(inside, torch.ones(4, 2).double(), rtol=1e-10, atol=0)
    torch.testing.assert_close(
        found @ found.mT, torch.eye(2).double().expand(4, 2, 2), rtol=0, atol=1e-10
    )
    assert (found.amax(dim=2) == found.abs().amax(dim=2)).all()
    variance = ((weights @ plane) @ found.mT).var(dim=1)
    assert (variance[:, 0] > variance[:, 1]).all()
    # About the mean of the points, not about the example: the spectrum of their covariance.
    covariance = torch.stack([points.T.cov() for points in weights])
    spectrum = torch.linalg.eigvalsh(covariance).flip(1)
    torch.testing.assert_close(variance, spectrum, rtol=1e-10, atol=0)


def test_tangents_are_of_the_example_and_as_many_neighbours_as_asked_for() -> None:
    problem = quadratic(count=9)
    result = measured(problem, parts=("radii",), radii=(1.0,), tangents=2, neighbors=3)
    x, model = problem.inputs["input"], problem.model
    order = torch.cdist(x, x).argsort(dim=1)[:, :4]  # the example itself is the nearest
    for i, points in enumerate(x[order]):
        axes = torch.linalg.eigh(points.T.cov()).eigenvectors.flip(1).T
        for number in (0, 1):
            unit = axes[number] * axes[number][axes[number].abs().argmax()].sign()
            place = x[i] + float(result["median_distance"]) * unit
            expected = model(place[None])[0, 0].detach()
            moved = result["moved_loss"].sel(direction=f"tangent_{number}", example=i)
            # The eigenvectors of a covariance whose spectrum is well apart.
            assert float(moved.item()) == pytest.approx(float(expected), rel=1e-8)


def test_each_part_alone_gives_what_it_gives_among_the_others(problem: Problem) -> None:
    whole = measured(problem)
    for part in PARTS:
        alone = measured(problem, parts=(part,))
        for name in alone.data_vars:
            xr.testing.assert_identical(alone[name], whole[name])
        assert set(alone.data_vars) != set(whole.data_vars)


def test_means_over_examples_count_each_example_once() -> None:
    values = np.array([[1.0, 3.0], [2.0, 2.0], [6.0, np.inf]])
    row = summarized("x", values[:2])
    assert row["x_mean"] == 2 and row["x_mean_stderr"] == 0
    assert row["x_median"] == 2
    row = summarized("x", values)
    assert np.isinf(row["x_mean"]) and np.isinf(row["x_q90"]) and row["x_median"] == 2
    assert np.isnan(summarized("x", values[:1])["x_mean_stderr"])
    values[2] = np.nan
    row = summarized("x", values)
    assert np.isnan(row["x_mean"]) and np.isnan(row["x_q90"]) and row["x_median"] == 2


def test_quantiles_are_order_statistics() -> None:
    values = np.random.default_rng(0).normal(size=(37, 3, 2))
    row = summarized("x", values)
    for name, level in {"q10": 0.1, "median": 0.5, "q90": 0.9}.items():
        expected = np.quantile(values.reshape(-1, 2), level, axis=0, method="inverted_cdf")
        np.testing.assert_array_equal(row[f"x_{name}"], expected)


def test_summaries_are_those_of_the_stored_values(problem: Problem) -> None:
    result = measured(problem, parts=("radii", "noise"))
    random = result["difference"].sel(direction=["random_0", "random_1"]).values
    means = random.mean(axis=1)
    at = result.sel(direction_kind="random")
    # The same sums in another order.
    np.testing.assert_allclose(at["difference_mean"], means.mean(axis=0), rtol=1e-12)
    stderr = means.std(axis=0, ddof=1) / np.sqrt(len(problem))
    np.testing.assert_allclose(at["difference_mean_stderr"], stderr, rtol=1e-12)
    accuracy = result["noise_accuracy"].mean("example")
    np.testing.assert_allclose(result["noise_accuracy_mean"], accuracy, rtol=1e-12)


def test_a_loss_that_explodes_is_stored_as_it_comes(problem: Problem) -> None:
    broken = {"input": problem.inputs["input"].clone()}
    broken["input"][4] = torch.inf
    result = measured(replace(problem, inputs=broken), parts=("norms", "jacobian", "noise"))
    assert np.isnan(result["loss"][4])
    assert np.isnan(result["gradient_l2"][4])
    assert np.isnan(result["noise_loss"][4]).all()
    assert np.isfinite(np.delete(result["gradient_l2"].values, 4)).all()


def test_many_classes_are_estimated(problem: Problem) -> None:
    result = measured(problem, parts=("jacobian",), exact_classes=5, draws=64)
    exact = measured(problem, parts=("jacobian",), jacobian="exact", exact_classes=5)
    assert "jacobian_spectral" not in result
    error = result["jacobian_frobenius"] - exact["jacobian_frobenius"]
    assert (np.abs(error) < 4 * result["jacobian_frobenius_stderr"]).all()
    for name in set(result.data_vars) & set(exact.data_vars):
        assert result[name].attrs == exact[name].attrs
        if "jacobian" in name:
            assert result[f"{name}_stderr"].attrs["units"] == exact[name].attrs["units"]


def test_a_temperature_divides_the_slopes_of_the_logits(problem: Problem) -> None:
    plain = measured(problem, parts=("norms", "jacobian"))
    warm = measured(replace(problem, temperature=4.0), parts=("norms", "jacobian"))
    # A power of two: no rounding but in the softmax.
    for name in ("jacobian_frobenius", "margin_gradient_l2", "margin"):
        np.testing.assert_allclose(4 * warm[name], plain[name], rtol=1e-10)
    for name in ("margin_gradient_l2", "jacobian_frobenius", "jacobian_spectral"):
        name = f"relative_{name}"
        np.testing.assert_allclose(warm[name], plain[name], rtol=1e-10)


def test_the_jacobian_is_exact_up_to_the_classes_asked_for() -> None:
    assert Spec(exact_classes=10).resolved(10).jacobian == "exact"
    assert Spec(exact_classes=10).resolved(11).jacobian == "hutchinson"
    assert Spec(exact_classes=10, jacobian="hutchinson").resolved(3).jacobian == "hutchinson"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"parts": ("norm",)}, "parts norm; expected some of norms, jacobian"),
        ({"parts": ()}, "expected some of"),
        ({"radii": (0.1, 0.0)}, "radii 0.1 0.0; expected a list of numbers, above 0"),
        ({"sigmas": (float("inf"),)}, "sigmas inf"),
        ({"draws": 0}, "draws 0; expected a whole number, at least 1"),
        ({"seed": -1}, "seed -1; expected a whole number, at least 0"),
        ({"tangents": 5, "neighbors": 3}, "tangents 5 exceeds the neighbors 3"),
        ({"neighbors": 40}, "40 neighbours of each example need 41 examples, and there are 23"),
    ],
)
def test_what_cannot_be_measured_is_said(
    spec: dict[str, Any], words: str, problem: Problem
) -> None:
    with pytest.raises(ValueError, match=words):
        measured(problem, **spec)


def test_examples_that_coincide_have_no_radius(problem: Problem) -> None:
    same = {"input": problem.inputs["input"][:1].expand(23, -1, -1, -1).clone()}
    with pytest.raises(ValueError, match="median distance between nearest neighbours is 0"):
        measured(replace(problem, inputs=same), parts=("bands",))
    measured(replace(problem, inputs=same), parts=("norms",))


def test_outputs_that_are_no_rows_are_refused() -> None:
    problem = Problem.of(nn.Identity(), [(torch.rand(3, 2, 2), torch.zeros(3, 2, 2))])
    with pytest.raises(ValueError, match="needs a network whose outputs are"):
        run(sensitivity(problem, Spec()))


def test_the_command_tells_medians_and_leaves_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from landscape.core.cli import main
    from landscape.registry import PROBES

    monkeypatch.chdir(tmp_path)
    flags = ["--parts", "norms", "radii", "noise", "--radii", "0.1", "--directions", "1"]
    few = ["--tangents", "0", "--draws", "1", "--examples", "4", "--device", "cpu", "--no-figure"]
    assert main(PROBES["sensitivity"], ["--ckpt", "fmmnet18.pt", *flags, *few]) == 0
    printed = capsys.readouterr()
    assert printed.out == "fmmnet18.norms-radii-noise.sensitivity.h5\n"
    assert "L2 norm of the loss gradient (nat / pixel range): median" in printed.err
    assert "accuracy under noise:" in printed.err
    assert list(
        xr.open_dataset("fmmnet18.norms-radii-noise.sensitivity.h5")["direction_kind"].values
    ) == [
        "random",
        "gradient",
        "adversarial",
    ]
