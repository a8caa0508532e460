from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from analysis import results


def test_loaded_result_is_the_stored_one_with_nan_and_infinity_kept(surface, tmp_path):
    stored = surface([0.5, np.inf, np.nan], alpha=[-1, 0, 1])
    path = tmp_path / "resnet18.surface.h5"
    stored.to_netcdf(path, engine="h5netcdf")
    loaded = results.load(path)
    xr.testing.assert_identical(loaded, stored)
    path.unlink()
    assert np.isinf(loaded["loss"].values[1])


def _text(path: Path, stored: xr.Dataset) -> None:
    path.write_text("no HDF5")


def _cut(path: Path, stored: xr.Dataset) -> None:
    stored.to_netcdf(path, engine="h5netcdf")
    path.write_bytes(path.read_bytes()[:-500])


def _foreign(path: Path, stored: xr.Dataset) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = 1


def _newer(path: Path, stored: xr.Dataset) -> None:
    stored.assign_attrs(schema_version=99).to_netcdf(path, engine="h5netcdf")


def _incomplete(path: Path, stored: xr.Dataset) -> None:
    stored.drop_vars(["loss_stderr", "alpha"]).to_netcdf(path, engine="h5netcdf")


def _nothing(path: Path, stored: xr.Dataset) -> None:
    pass


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (_nothing, "no such file"),
        (_text, "no result file, or a damaged one"),
        (_cut, "no result file, or a damaged one"),
        (_foreign, "no `probe` attribute"),
        (_newer, "schema version is 99"),
        (_incomplete, "loss_stderr, alpha missing"),
    ],
)
def test_file_that_is_no_result_is_refused_in_one_line(bowl, tmp_path, write, complaint):
    path = tmp_path / "x.h5"
    write(path, bowl)
    with pytest.raises(ValueError, match=complaint) as refused:
        results.load(path)
    assert "x.h5" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_name_is_the_stem_of_the_checkpoint_else_the_model(surface):
    assert results.name(surface([1.0], alpha=[0])) == "resnet18"
    assert results.name(surface([1.0], alpha=[0], file=None)) == "resnet20"
    line = surface([1.0, 2.0], alpha=[0, 1], to="files/resnet18-b.pt")
    assert results.name(line) == "resnet18 → resnet18-b"


def test_results_of_one_checkpoint_are_told_apart_by_what_differs(surface):
    shown = [surface([1.0], alpha=[0], seed=seed) for seed in (0, 1)]
    other = surface([1.0], alpha=[0], file="fmmnet18.pt")
    assert results.names([*shown, other]) == [
        "resnet18, seed 0",
        "resnet18, seed 1",
        "fmmnet18",
    ]


def test_spec_and_provenance_come_back_as_dicts(bowl):
    assert results.spec(bowl)["space"] == "weights"
    assert results.provenance(bowl)["data"]["examples"] == 300
    assert results.spec(xr.Dataset()) == {}


def test_axis_label_leaves_out_a_unit_of_one(bowl):
    assert results.axis_label(bowl["loss"]) == "loss (nat)"
    assert results.axis_label(bowl["accuracy"]) == "accuracy"


def test_axis_towards_a_second_checkpoint_is_labelled_alike_for_all_pairs(surface):
    lines = [surface([1.0, 2.0], alpha=[0, 1], to=f"resnet18-{end}.pt") for end in "bc"]
    assert results.grid_label(lines[0], "alpha") == results.grid_label(lines[1], "alpha")
    assert "filter norms" in results.grid_label(surface([1.0], alpha=[0]), "alpha")
