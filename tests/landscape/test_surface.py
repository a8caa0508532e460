from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import landscape
from checkpoints import checkpoint
from checkpoints.checkpoint import Checkpoint
from checkpoints.problem import Problem
from landscape.core import direction_files, directions, store
from landscape.surface import Spec, surface
from tests.oracles import LinearRegression, make_problem


def test_center_of_surface_is_plain_loss(problem: Problem) -> None:
    result = landscape.measure("surface", problem, points=(3,), extent=(0.5,))
    with torch.no_grad():
        logits = problem.model.eval()(problem.inputs["input"])
    plain = nn.functional.cross_entropy(logits, problem.targets)
    centre = result.sel(alpha=0, beta=0)
    # float64 throughout; only the order of the sums differs.
    assert float(centre["loss"]) == pytest.approx(plain.item(), rel=1e-12)
    hits = (logits.argmax(1) == problem.targets).double().mean()
    assert float(centre["accuracy"]) == pytest.approx(hits.item())


def test_a_surface_is_the_same_as_an_independent_loop(problem: Problem, tmp_path: Path) -> None:
    """Set the weights of a fresh network by hand at every point of a non-square grid."""
    saved = str(tmp_path / "d.h5")
    result = landscape.measure(
        "surface", problem, points=(3, 5), extent=(0.5, 1.0), seed=4, save_directions=saved
    )
    network = make_problem(problem.device).model.eval()
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    with h5py.File(saved) as file:
        first, second = (
            {n: torch.from_numpy(v[i]) for n, v in file["directions"].items()} for i in (0, 1)
        )
    for i, alpha in enumerate([-0.5, 0.0, 0.5]):
        for j, beta in enumerate([-1.0, -0.5, 0.0, 0.5, 1.0]):
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    step = alpha * first[name] + beta * second[name]
                    parameter.copy_(start[name] + step.to(parameter))
                logits = network(problem.inputs["input"])
            wanted = nn.functional.cross_entropy(logits, problem.targets).item()
            assert float(result["loss"][i, j]) == pytest.approx(wanted, rel=1e-10)
            assert float(result["alpha"][i]) == alpha
            assert float(result["beta"][j]) == beta


def test_a_linear_regression_has_the_surface_of_its_closed_form(tmp_path: Path) -> None:
    oracle = LinearRegression.random()
    saved = tmp_path / "d.h5"
    result = landscape.measure(
        "surface", oracle.problem(), points=(4, 3), normalize="none", save_directions=str(saved)
    )
    first, second = direction_files.load(saved, {"weight": oracle.weight})
    for alpha in result["alpha"].values:
        for beta in result["beta"].values:
            weight = oracle.weight + alpha * first["weight"] + beta * second["weight"]
            losses = oracle.losses(weight, oracle.inputs)
            cell = result.sel(alpha=alpha, beta=beta)
            assert float(cell["loss"]) == pytest.approx(losses.mean().item(), rel=1e-12)
            stderr = losses.std().item() / len(losses) ** 0.5
            assert float(cell["loss_stderr"]) == pytest.approx(stderr, rel=1e-10)
    assert "accuracy" not in result


def test_rescaling_a_network_by_filters_changes_nothing_after_filter_normalisation() -> None:
    """Two ReLU networks that compute the same function have the same filter-normalised surface."""

    def two_layers(scale: torch.Tensor) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False))
        network = network.double()
        with torch.no_grad():
            for layer in (network[0], network[2]):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            network[0].weight.mul_(scale[:, None])
            network[2].weight.div_(scale)
        return network

    # One common scale: the last layer's single filter is then rescaled as a whole.
    inputs = torch.randn(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batches = [(inputs, torch.zeros(9, 1, dtype=torch.float64))]

    def result(scale: float) -> xr.Dataset:
        network = two_layers(torch.full((8,), scale, dtype=torch.float64))
        problem = Problem.of(network, batches, lambda o, t: ((o - t) ** 2).sum(1), batch_size=9)
        return landscape.measure("surface", problem, points=(5,))

    np.testing.assert_allclose(result(1.0)["loss"], result(37.0)["loss"], rtol=1e-9)


def test_the_line_to_a_second_checkpoint_ends_at_that_network(
    problem: Problem, tmp_path: Path
) -> None:
    """With its batch-norm statistics too; otherwise the far end is neither network."""
    other = make_problem(problem.device, merge="add").model
    with torch.no_grad():
        for value in other.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(9)))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    result = landscape.measure(
        "surface", problem, dimensions=1, points=(3,), to=str(tmp_path / "other.pt")
    )
    np.testing.assert_array_equal(result["alpha"], [0.0, 0.5, 1.0])
    ends = [problem, replace(problem, model=other.float().double())]
    for end, found in zip(ends, result["loss"].values[[0, -1]], strict=True):
        with torch.no_grad():
            logits = end.model.eval()(problem.inputs["input"])
        wanted = nn.functional.cross_entropy(logits, problem.targets).item()
        # The file's tensors were read as float32.
        assert found == pytest.approx(wanted, rel=1e-6)


def test_a_second_checkpoint_of_another_architecture_is_refused(
    problem: Problem, tmp_path: Path
) -> None:
    other = make_problem(problem.device, merge="bn_product_mean1").model
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(ValueError, match="Both need the same architecture"):
        landscape.measure("surface", problem, to=str(tmp_path / "linear.pt"))
    own = Checkpoint(other.state_dict(), "resnet8", {"merge": "x"}, mean=(0.5,), std=(0.5,))
    checkpoint.save(own, tmp_path / "own.pt")
    known = {"checkpoint": {"model": "resnet8", "options": {}}}
    with pytest.raises(ValueError, match="has options .*one architecture"):
        landscape.measure(
            "surface", replace(problem, provenance=known), to=str(tmp_path / "own.pt")
        )


def test_swapping_the_directions_transposes_the_surface(problem: Problem, tmp_path: Path) -> None:
    ab, ba = tmp_path / "ab.h5", tmp_path / "ba.h5"
    straight = landscape.measure(
        "surface", problem, points=(3, 4), extent=(1.0, 0.5), save_directions=str(ab)
    )
    first, second = direction_files.load(ab, dict(problem.model.named_parameters()))
    direction_files.save([second, first], ba)
    swapped = landscape.measure(
        "surface", problem, points=(4, 3), extent=(0.5, 1.0), directions=str(ba)
    )
    np.testing.assert_allclose(swapped["loss"].T, straight["loss"], rtol=1e-12)


def test_other_directions_in_a_file_of_the_same_name_are_refused(
    problem: Problem, tmp_path: Path
) -> None:
    path, out = tmp_path / "d.h5", tmp_path / "r.h5"
    origin = {name: p.detach() for name, p in problem.model.named_parameters()}
    drawn = [directions.gaussian(origin, torch.Generator().manual_seed(s)) for s in (0, 1)]
    direction_files.save(drawn, path)
    landscape.measure("surface", problem, points=(1,), directions=str(path), out=out)
    direction_files.save(drawn[::-1], path)
    with pytest.raises(ValueError, match="was measured with files="):
        landscape.measure("surface", problem, points=(1,), directions=str(path), out=out)


def test_in_the_input_space_every_example_moves_by_the_step_in_pixel_units(
    problem: Problem,
) -> None:
    result = landscape.measure("surface", problem, space="inputs", dimensions=1, points=(3,))
    assert result["example_loss"].dims == ("alpha", "example")
    np.testing.assert_allclose(result["example_loss"].mean("example"), result["loss"], rtol=1e-12)
    plan = surface(problem, Spec(space="inputs", dimensions=1))
    (_, axes, _, _), origin = plan.measure.args, problem.inputs["input"]
    norms = axes[0]["input"].flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(len(origin), dtype=norms.dtype).to(norms))
    # Independent: one example, moved by hand.
    with torch.no_grad():
        moved = origin[5:6] + 4.0 * axes[0]["input"][5:6]
        logits = problem.model.eval()(moved)
    wanted = nn.functional.cross_entropy(logits, problem.targets[5:6]).item()
    assert float(result["example_loss"][-1, 5]) == pytest.approx(wanted, rel=1e-10)


def test_a_plain_number_serves_every_axis(problem: Problem) -> None:
    number = landscape.measure("surface", problem, points=2, extent=0.5)
    xr.testing.assert_identical(
        number, landscape.measure("surface", problem, points=(2, 2), extent=(0.5, 0.5))
    )


def test_an_unknown_option_is_refused_with_those_that_there_are(problem: Problem) -> None:
    with pytest.raises(ValueError, match="surface has no option pionts. Known: space, dimensions"):
        landscape.measure("surface", problem, pionts=3)


def test_a_model_without_parameters_has_no_weight_space() -> None:
    batch = (torch.rand(3, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="no parameters"):
        landscape.measure("surface", Problem.of(nn.Flatten(), [batch]), points=1)


@pytest.mark.parametrize("points", [(1,), (1, 3), (2, 2)])
def test_small_grids_are_measured(problem: Problem, points: tuple[int, ...]) -> None:
    result = landscape.measure("surface", problem, points=points)
    assert result["measured"].values.all()
    if 1 in points:
        assert 0.0 in result["alpha"].values


@pytest.mark.parametrize("count", [3, 21, 51, 101])
@pytest.mark.parametrize("extent", [1.0, 0.3, 1e-3])
def test_the_origin_is_a_point_of_every_odd_grid_exactly(
    problem: Problem, count: int, extent: float
) -> None:
    plan = surface(problem, Spec(points=(count,), extent=(extent,)))
    alpha = plan.coords["alpha"].values
    assert alpha[count // 2] == 0
    assert (alpha[0], alpha[-1]) == (-extent, extent)
    np.testing.assert_array_equal(alpha, -alpha[::-1])
    np.testing.assert_allclose(np.diff(alpha), 2 * extent / (count - 1))


def test_a_result_tells_what_it_is_to_xarray_and_to_plain_h5py(
    problem: Problem, tmp_path: Path
) -> None:
    path = tmp_path / "r.h5"
    landscape.measure("surface", problem, points=(3, 4), out=path)
    with xr.open_dataset(path, engine="h5netcdf") as result:
        assert result["loss"].dims == ("alpha", "beta")
        assert result["loss"].attrs["units"] == "nat"
        assert result["accuracy"].attrs["units"] == "1"
        assert result["alpha"].attrs["units"] == "filter norms"
        np.testing.assert_allclose(result.sel(alpha=0)["alpha"], 0)
    with h5py.File(path) as file:
        assert file["loss"].shape == (3, 4)
        assert file["loss"].dims[0][0].name == "/alpha"
        np.testing.assert_allclose(file["beta"][:], np.linspace(-1, 1, 4))
        assert (file["measured"][:] == 1).all()
        spec = json.loads(file.attrs["spec"])
        found = json.loads(file.attrs["provenance"])
        assert file.attrs["schema_version"] == store.SCHEMA_VERSION
    assert spec["points"] == [3, 4]
    assert spec["normalize"] == "filter"
    assert spec["seed"] == 0
    assert found["batch_norm"]["policy"] == "running"
    assert found["dtype"] == "float64"
    assert found["batch_size"] == 8
    assert len(found["checkpoint"]["sha256"]) == len(found["data"]["sha256"]) == 64
    assert found["versions"]["torch"].startswith("2")


def test_a_network_with_other_weights_or_other_data_is_refused(
    problem: Problem, tmp_path: Path
) -> None:
    path = tmp_path / "r.h5"
    landscape.measure("surface", problem, points=(1,), out=path)
    other = make_problem(problem.device)
    with torch.no_grad():
        other.model.fc.bias[0] += 1e-9
    with pytest.raises(ValueError, match=r"checkpoint\.sha256"):
        landscape.measure("surface", other, points=(1,), out=path)
    brighter = replace(problem, inputs={"input": problem.inputs["input"] * 0.99})
    with pytest.raises(ValueError, match=r"data\.sha256"):
        landscape.measure("surface", brighter, points=(1,), out=path)
    found = {"checkpoint": {"file": "a.pt"}, "data": {"name": "images"}}
    from_file = replace(problem, provenance=found)
    landscape.measure("surface", from_file, points=1, out=tmp_path / "file.h5")
    with pytest.raises(ValueError, match="dtype=float64, this run asks for dtype=float32"):
        narrow = from_file.to(problem.device, torch.float32)
        landscape.measure("surface", narrow, points=1, out=tmp_path / "file.h5")
    recomputed = replace(problem, batch_norm="recompute", calibration=problem.inputs)
    with pytest.raises(ValueError, match="batch_norm="):
        landscape.measure("surface", recomputed, points=(1,), out=path)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"points": (0,)}, "a list of whole numbers, at least 1"),
        ({"points": (3, 3, 3)}, "one number, or 2, one per axis"),
        ({"points": (3, 3), "dimensions": 1}, "one number, or 1"),
        ({"extent": (-1.0,)}, "a list of numbers, at least 0"),
        ({"extent": (float("nan"),)}, "a list of finite numbers"),
        ({"dimensions": 1, "orthogonal": True}, "a line has no second direction"),
        ({"space": "inputs", "to": "resnet18.pt"}, "are for space weights"),
        ({"to": "a.pt", "directions": "b.h5"}, "pass one of them"),
        ({"to": "missing.pt"}, "missing.pt: no such file"),
        ({"directions": "missing.h5"}, "missing.h5: no such file"),
    ],
)
def test_a_spec_that_cannot_be_measured_is_refused_in_one_line(
    problem: Problem, spec: dict[str, object], line: str
) -> None:
    with pytest.raises(ValueError, match=line) as refused:
        landscape.measure("surface", problem, **spec)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"points": 10**9}, "points 1000000000; expected a list of whole numbers, at least 1 and"),
        ({"points": 10**6}, "the result of 1000000 x 1000000 points would take .* GiB; expected"),
        ({"extent": 1e39}, r"extent 1e\+39; expected a list of numbers, at least 0 and at most"),
    ],
)
def test_a_result_that_fits_no_memory_is_refused_before_it_is_allocated(
    problem: Problem, spec: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        landscape.measure("surface", problem, **spec)


def test_a_second_network_and_directions_may_be_objects(problem: Problem, tmp_path: Path) -> None:
    other = make_problem(problem.device, count=3)
    with torch.no_grad():
        for value in other.model.parameters():
            value += 0.1
    grid: dict[str, Any] = {"points": 3, "dimensions": 1}
    ways = [other.model, other, other.model.state_dict()]
    lines = [landscape.measure("surface", problem, to=way, **grid) for way in ways]
    both = replace(problem, model=other.model)
    ends = landscape.measure("surface", both, points=1, dimensions=1)
    assert float(lines[0]["loss"][-1]) == pytest.approx(float(ends["loss"][0]), rel=1e-12)
    for line in lines[1:]:
        np.testing.assert_array_equal(line["loss"], lines[0]["loss"])
        assert line.attrs["spec"] == lines[0].attrs["spec"]
    path = landscape.measure("interpolate", problem, to=other.model, points=3)
    np.testing.assert_allclose(path["loss"][-1], ends["loss"][0], rtol=1e-12)

    origin = dict(problem.model.named_parameters())
    first = {name: torch.ones_like(value) for name, value in origin.items()}
    found = landscape.measure("surface", problem, directions=first, extent=0.1, **grid)
    file = tmp_path / "d.h5"
    direction_files.save([first], file)
    stored = landscape.measure("surface", problem, directions=str(file), extent=0.1, **grid)
    np.testing.assert_array_equal(found["loss"], stored["loss"])
    out = tmp_path / "r.h5"
    landscape.measure("surface", problem, directions=[first], out=out, **grid)
    first["conv1.weight"] = first["conv1.weight"] * 2
    with pytest.raises(ValueError, match="was measured with"):
        landscape.measure("surface", problem, directions=[first], out=out, **grid)
    with pytest.raises(ValueError, match="to: found a dict; expected tensors by name"):
        landscape.measure("surface", problem, to={"conv1.weight": 3}, **grid)
    with pytest.raises(ValueError, match="Both need the same architecture"):
        landscape.measure("surface", problem, to=torch.nn.Linear(2, 2), **grid)


def test_only_the_layers_that_are_named_move(problem: Problem, tmp_path: Path) -> None:
    grid: dict[str, Any] = {"points": 3, "dimensions": 1}
    whole, part = str(tmp_path / "whole.h5"), str(tmp_path / "part.h5")
    landscape.measure("surface", problem, save_directions=whole, **grid)
    landscape.measure("surface", problem, layers="layer3.*", save_directions=part, **grid)
    with h5py.File(whole) as all_of_them, h5py.File(part) as some:
        for name, value in all_of_them["directions"].items():
            moved = some[f"directions/{name}"][...]
            expected = value[...] if name.startswith("layer3.") else np.zeros_like(value)
            np.testing.assert_array_equal(moved, expected)
    with pytest.raises(ValueError, match="layer9: no parameter matches. There are 29: bn1.bias"):
        landscape.measure("surface", problem, layers="layer9", **grid)
    with pytest.raises(ValueError, match="layers is for random directions"):
        landscape.measure("surface", problem, layers="layer3.*", space="inputs", **grid)


def test_a_surface_is_summed_up_in_two_lines(problem: Problem) -> None:
    plan = surface(replace(problem, batch_size=8), Spec(points=(3, 2)))
    assert plan.tell is not None
    result = plan.blank()
    result["loss"].values[...] = [[3.0, 2.5], [0.5, 1.0], [np.inf, np.nan]]
    result["accuracy"].values[...] = 0.25
    loss, accuracy = plan.tell(result)
    assert loss == (
        "loss at the point nearest to the origin 0.5 nat; lowest 0.5 at alpha 0, beta -1; "
        "highest 3; 2 of 6 points not finite"
    )
    assert accuracy.startswith("accuracy at the point nearest to the origin 0.25; lowest 0.25")
    result["loss"].values[...] = np.nan
    assert plan.tell(result)[0].endswith("nan nat; 6 of 6 points not finite")
    line = surface(replace(problem, batch_size=8), Spec(points=(3,), dimensions=1))
    result = line.blank()
    result["loss"].values[...] = [2.0, 1.5, 1.0]
    assert line.tell is not None
    assert line.tell(result)[0] == "loss at the origin 1.5 nat; lowest 1 at alpha 1; highest 2"
