from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from landscape.core import store
from landscape.core.plan import Cell, Plan, Values, forecast, run
from landscape.core.variables import Coordinate, Variable, numbered


@dataclass(frozen=True)
class Spec:
    points: tuple[int, ...] = (3, 4)
    seed: int = 0
    orthogonal: bool = False


def measure(cells: Sequence[Cell]) -> Values:
    rows = [float(10 * cell["alpha"] + cell["beta"]) for cell in cells]
    return {"loss": np.array(rows), "example_loss": np.add.outer(rows, [0.0, 0.5])}


def make_plan(**changes: object) -> Plan:
    plan = Plan(
        probe="surface",
        spec=Spec(),
        provenance={"checkpoint": {"file": "a.pt", "sha256": "1" * 64}, "batch_size": 100},
        coords={
            "alpha": Coordinate(np.linspace(-1, 1, 3), "a"),
            "beta": Coordinate(np.linspace(-1, 1, 4), "b"),
            "example": numbered(2, "example"),
        },
        variables={
            "loss": Variable(("alpha", "beta"), "loss", "nat"),
            "example_loss": Variable(("alpha", "beta", "example"), "loss", "nat"),
        },
        walk=("alpha", "beta"),
        measure=measure,
        watch="loss",
    )
    return replace(plan, **changes)


def stopping_after(count: int):
    calls = []

    def measured(cells: Sequence[Cell]) -> Values:
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(cells)
        return measure(cells)

    return measured


def test_a_result_of_a_version_that_measured_less_is_continued_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan, path = make_plan(), tmp_path / "a.h5"
    fewer = {"loss": plan.variables["loss"]}

    def losses(cells: Sequence[Cell]) -> Values:
        return {"loss": measure(cells)["loss"]}

    run(make_plan(variables=fewer, measure=losses), path)
    with caplog.at_level(logging.INFO):
        result = run(plan, path)
    assert "did not measure example_loss: blank for what it holds" in caplog.text
    assert np.isfinite(result["loss"]).all() and np.isnan(result["example_loss"]).all()
    more = tmp_path / "b.h5"
    run(plan, more)
    with pytest.raises(ValueError, match="has other dims or variables"):
        run(make_plan(variables=fewer, measure=losses), more)


@pytest.mark.parametrize("block", [1, 5, 100])
def test_every_cell_is_measured_once_and_lies_where_its_coordinates_say(block: int) -> None:
    result = run(make_plan(block=block))
    wanted = 10 * np.arange(3)[:, None] + np.arange(4)
    np.testing.assert_array_equal(result["loss"], wanted)
    np.testing.assert_array_equal(result["example_loss"], wanted[..., None] + [0.0, 0.5])
    assert (result["measured"] == 1).all()


def test_an_interrupted_run_keeps_what_it_has_and_continues_to_the_same_file(
    tmp_path: Path,
) -> None:
    straight, halted = tmp_path / "straight.h5", tmp_path / "halted.h5"
    run(make_plan(), straight)
    with pytest.raises(KeyboardInterrupt):
        run(make_plan(measure=stopping_after(5)), halted)
    half = store.load(halted)
    assert half["measured"].sum() == 5
    assert np.isfinite(half["loss"]).sum() == 5
    seen: list[Cell] = []

    def watched(cells: Sequence[Cell]) -> Values:
        seen.extend(cells)
        return measure(cells)

    run(make_plan(measure=watched), halted)
    assert len(seen) == 7
    xr.testing.assert_identical(store.load(halted), store.load(straight))


def test_a_whole_result_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    first = run(make_plan(), path)
    before = path.read_bytes()
    again = run(make_plan(measure=stopping_after(0)), path)
    xr.testing.assert_identical(first, again)
    assert path.read_bytes() == before


def test_a_diverged_value_is_measured_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"

    def diverging(cells: Sequence[Cell]) -> Values:
        values = measure(cells)
        values["loss"][:] = np.inf
        values["example_loss"][:] = np.nan
        return values

    run(make_plan(measure=diverging), path)
    again = run(make_plan(measure=stopping_after(0)), path)
    assert np.isinf(again["loss"]).all()
    assert np.isnan(again["example_loss"]).all()


def test_an_error_before_the_first_cell_leaves_no_file(tmp_path: Path) -> None:
    def broken(cells: Sequence[Cell]) -> Values:
        raise ValueError("the loss is a mean")

    with pytest.raises(ValueError, match="the loss is a mean"):
        run(make_plan(measure=broken), tmp_path / "r.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"spec": Spec(points=(3, 5))}, "points=3 4, this run asks for points=3 5. Pass --points"),
        ({"spec": Spec(seed=1)}, "seed=0, this run asks for seed=1. Pass --seed 0 to continue it"),
        ({"spec": Spec(orthogonal=True)}, "orthogonal=False.*Pass --no-orthogonal to"),
        (
            {"provenance": {"checkpoint": {"file": "b.pt", "sha256": "1" * 64}, "batch_size": 100}},
            "checkpoint.file=a.pt, this run asks for checkpoint.file=b.pt. Pass --ckpt a.pt",
        ),
        (
            {"provenance": {"checkpoint": {"file": "a.pt", "sha256": "2" * 64}, "batch_size": 100}},
            "checkpoint.sha256=1{12}, this run asks for checkpoint.sha256=2{12}. Pass --out",
        ),
        (
            {"provenance": {"checkpoint": {"file": "a.pt", "sha256": "1" * 64}, "batch_size": 50}},
            "batch_size=100, this run asks for batch_size=50. Pass --batch-size 100",
        ),
        ({"probe": "hessian"}, "is a result of surface, this run is hessian"),
    ],
)
def test_a_file_of_another_run_is_refused_by_the_field_that_differs(
    tmp_path: Path, changes: dict[str, object], line: str
) -> None:
    path = tmp_path / "r.h5"
    run(make_plan(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=line) as refused:
        run(make_plan(**changes), path)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "foreign", "newer"])
def test_a_damaged_or_foreign_file_is_refused_in_one_line_and_left_alone(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "r.h5"
    run(make_plan(), path)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("loss,alpha\n")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif damage == "foreign":
        xr.Dataset({"x": ("t", [1.0])}).to_netcdf(path, engine="h5netcdf")
    else:
        with h5py.File(path, "a") as file:
            file.attrs["schema_version"] = 99
    before = path.read_bytes()
    with pytest.raises(ValueError, match="out with a new name") as refused:
        run(make_plan(), path)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before


def test_other_package_versions_continue_a_file_and_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    with pytest.raises(KeyboardInterrupt):
        run(make_plan(measure=stopping_after(2)), path)
    partial = store.load(path)
    provenance = json.loads(partial.attrs["provenance"])
    provenance["versions"]["torch"] = "0.4.1"
    partial.attrs["provenance"] = json.dumps(provenance)
    store.save(partial, path)
    run(make_plan(), path)
    found = json.loads(store.load(path).attrs["provenance"])
    assert found["versions"]["torch"] == "0.4.1"
    assert [v["torch"] for v in found["continued_with"]] != ["0.4.1"]


def test_a_file_is_saved_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    seen = []

    def looking(cells: Sequence[Cell]) -> Values:
        if path.is_file():
            seen.append(int(store.load(path)["measured"].sum()))
        return measure(cells)

    run(make_plan(measure=looking), path, save_seconds=0)
    assert seen, "nothing was saved before the end"
    assert seen == sorted(seen)
    assert [p.name for p in tmp_path.iterdir()] == ["r.h5"]


def test_a_dim_without_a_coordinate_is_refused() -> None:
    with pytest.raises(ValueError, match="loss has a dim alpha without coordinate"):
        make_plan(coords={"gamma": Coordinate([0.0], "c")})
    plan = make_plan()
    with pytest.raises(ValueError, match="label has a dim gamma without coordinate"):
        make_plan(coords={**plan.coords, "label": Coordinate([0], "class", dims=("gamma",))})


def test_texts_and_what_is_known_of_a_dim_are_stored_as_they_are(tmp_path: Path) -> None:
    texts = Coordinate(["größer", "b"], "kind", dims=("example",), more={"names": "x"})
    plan = make_plan(coords={**make_plan().coords, "kind": texts})
    run(plan, tmp_path / "a.h5")
    found = store.load(tmp_path / "a.h5")
    assert found["kind"].dims == ("example",)
    assert found["kind"].values.tolist() == ["größer", "b"]
    assert found["kind"].attrs == {"long_name": "kind", "units": "1", "names": "x"}


def test_a_file_measured_at_other_coordinates_is_not_continued(tmp_path: Path) -> None:
    run(make_plan(), tmp_path / "a.h5")
    other = store.load(tmp_path / "a.h5").assign_coords(alpha=[5.0, 6.0, 7.0])
    store.save(other, tmp_path / "a.h5")
    changed = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(ValueError, match=r"at another (a|alpha) \(alpha\). Pass --out"):
        run(make_plan(), tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == changed


def summed_up(**changes: object) -> Plan:
    """A plan with a mean over all cells, and a table that each cell fills one entry of."""
    plan = make_plan()

    def noting(cells: Sequence[Cell]) -> Values:
        table = np.full((3, 4), np.nan)
        for cell in cells:
            table[cell["alpha"], cell["beta"]] = 100 + cell["beta"]
        return measure(cells) | {"table": table.T}

    return replace(
        plan,
        variables={
            **plan.variables,
            "mean": Variable((), "mean", "nat"),
            "table": Variable(("beta", "alpha"), "table", "nat"),
        },
        measure=noting,
        finish=lambda result: {"mean": np.array(float(result["loss"].mean()))},
        **changes,
    )


def test_what_follows_from_all_cells_is_filled_in_at_the_end() -> None:
    result = run(summed_up())
    assert float(result["mean"]) == float(result["loss"].mean())


def test_each_cell_fills_its_entries_of_a_variable_that_belongs_to_none() -> None:
    result = run(summed_up(block=5))
    np.testing.assert_array_equal(result["table"], 100 + np.arange(4)[:, None] + np.zeros((4, 3)))


def test_a_run_killed_right_before_its_end_is_finished_by_the_next(tmp_path: Path) -> None:
    whole, halted = tmp_path / "whole.h5", tmp_path / "halted.h5"
    run(summed_up(), whole)

    def killed(result: xr.Dataset) -> Values:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(summed_up(), finish=killed), halted)
    assert np.isnan(store.load(halted)["mean"])
    assert (store.load(halted)["measured"] == 1).all()
    run(summed_up(), halted)
    xr.testing.assert_identical(store.load(halted), store.load(whole))
    stamp = halted.stat().st_mtime_ns
    run(summed_up(), halted)
    assert halted.stat().st_mtime_ns == stamp, "nothing is left to do"


@pytest.mark.parametrize("block", [1, 5, 12])
def test_a_forecast_measures_some_blocks_from_all_over_and_keeps_none(block: int) -> None:
    seen: list[Cell] = []

    def slow(cells: Sequence[Cell]) -> Values:
        seen.extend(cells)
        time.sleep(0.002 * len(cells))
        return measure(cells)

    found = forecast(make_plan(measure=slow, block=block), seconds=0.005)
    blocks = -(-12 // block)
    assert (found.points, found.blocks) == (12, blocks)
    assert min(2, blocks) <= found.tried <= 5
    assert len(seen) <= found.tried * block
    assert found.seconds >= 0.8 * 0.002 * 12  # a sleep is never shorter, the last block may be
    whole = forecast(make_plan(block=block), seconds=60)
    assert whole.tried == blocks
    assert found.size == make_plan().blank().nbytes
