from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from analysis import results
from landscape.core import store


def test_loaded_result_is_the_stored_one_with_nan_and_infinity_kept(surface, tmp_path):
    stored = surface([0.5, np.inf, np.nan], alpha=[-1, 0, 1])
    path = tmp_path / "resnet18.surface.h5"
    store.save(stored, path)
    loaded = results.load(path)
    xr.testing.assert_identical(loaded, stored)
    path.unlink()
    assert np.isinf(loaded["loss"].values[1])


def test_a_file_is_read_as_xarray_reads_it(surface, tmp_path: Path) -> None:
    stored = surface([[0.5, np.nan], [1.5, 2.5]], alpha=[-1, 1], beta=[0, 1])
    stored = stored.assign(
        image=(("alpha", "height", "width"), np.arange(2400.0).reshape(2, 30, 40), {"empty": ""}),
        texts=(
            "alpha",
            np.array(["ä", ""], dtype=object),
            {"several": ["a", "b"], "levels": [1, 2]},
        ),
        flag=("alpha", np.array([True, False]), {"number": 3, "fraction": 0.5}),
        median=((), 5.25),
        word=((), "text"),
    ).assign_coords(
        kind=("beta", np.array(["one", "other"], dtype=object)), name=["x"], height=range(30)
    )
    path = tmp_path / "r.h5"
    store.save(stored, path)
    found = results.result_file.read(path)
    with xr.open_dataset(
        path, engine="h5netcdf", mask_and_scale=False, decode_times=False, decode_timedelta=False
    ) as file:
        expected = file.load()
    del expected.attrs["sha256"]
    xr.testing.assert_identical(found, expected)
    for name, variable in expected.variables.items():
        assert found[name].dtype == variable.dtype, name
        assert {k: type(v) for k, v in found[name].attrs.items()} == {
            k: type(v) for k, v in variable.attrs.items()
        }


def _text(path: Path, stored: xr.Dataset) -> None:
    path.write_text("no HDF5")


def _cut(path: Path, stored: xr.Dataset) -> None:
    store.save(stored, path)
    path.write_bytes(path.read_bytes()[:-500])


def _foreign(path: Path, stored: xr.Dataset) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = 1


def _newer(path: Path, stored: xr.Dataset) -> None:
    store.save(stored.assign_attrs(schema_version=99), path)


def _incomplete(path: Path, stored: xr.Dataset) -> None:
    store.save(stored.drop_vars(["loss_stderr", "alpha"]), path)


def _nothing(path: Path, stored: xr.Dataset) -> None:
    pass


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (_nothing, "no such file"),
        (_text, "no result file, or damaged"),
        (_cut, "no result file, or damaged"),
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


# What is in a file is held to its checksum, and nothing outside it is read.


@pytest.fixture
def file(surface, tmp_path) -> Path:
    path = tmp_path / "net.surface.h5"
    store.save(surface([0.5, 1.5, 2.5], alpha=[-1, 0, 1]), path)
    return path


def test_every_flipped_bit_is_noticed_or_changes_nothing(file: Path) -> None:
    whole, right = file.read_bytes(), results.load(file)
    generator = np.random.default_rng(0)
    for place in generator.integers(len(whole), size=150):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        file.write_bytes(damaged)
        try:
            found = results.load(file)
        except ValueError:
            continue
        xr.testing.assert_identical(found, right)


CHANGES = {
    "a value": lambda f: f["loss"].__setitem__(0, 0.25),
    "a coordinate": lambda f: f["alpha"].__setitem__(0, 5.0),
    "the spec": lambda f: f.attrs.__setitem__("spec", '{"seed": 7}'),
    "a unit": lambda f: f["loss"].attrs.__setitem__("units", "bit"),
    "another array": lambda f: f.create_dataset("more", data=[1.0, 2.0, 3.0]),
    "the checksum": lambda f: f.attrs.__setitem__("sha256", "0" * 64),
    "a scale factor": lambda f: f["loss"].attrs.__setitem__("scale_factor", 0.01),
    "no checksum": lambda f: f.attrs.__delitem__("sha256"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_edited_file_is_refused_whoever_reads_it(file: Path, what: str) -> None:
    with h5py.File(file, "r+") as opened:
        CHANGES[what](opened)
    for load in (results.load, store.load):
        with pytest.raises(ValueError, match=r"checksum|no result file, or damaged") as told:
            load(file)
        assert "\n" not in str(told.value)


def _external(opened: h5py.File, other: Path) -> None:
    opened["more"] = h5py.ExternalLink(str(other), "loss")


def _soft(opened: h5py.File, other: Path) -> None:
    opened["more"] = h5py.SoftLink("/loss")


def _virtual(opened: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(other), "loss", shape=(3,))
    opened.create_virtual_dataset("more", layout)


def _stored_elsewhere(opened: h5py.File, other: Path) -> None:
    opened.create_dataset("more", (3,), "f8", external=[(str(other), 0, 24)])


def _group(opened: h5py.File, other: Path) -> None:
    opened.create_group("more")


def _compound(opened: h5py.File, other: Path) -> None:
    opened.create_dataset("more", (3,), np.dtype([("a", "f8"), ("b", "i4")]))


@pytest.mark.parametrize("add", [_external, _soft, _virtual, _stored_elsewhere, _group, _compound])
def test_a_file_that_points_elsewhere_is_refused_and_nothing_is_followed(file, tmp_path, add):
    other = tmp_path / "secret.h5"
    shutil.copy(file, other)
    with h5py.File(file, "r+") as opened:
        add(opened, other)
    other.unlink()
    os.mkfifo(other)  # reading it would hang
    with pytest.raises(ValueError, match="more is"):
        results.load(file)


def test_a_pipe_is_no_result(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(ValueError, match="no such file"):
        results.load(tmp_path / "pipe.h5")
    with pytest.raises(ValueError, match="is not a regular file"):
        store.check_writable(tmp_path / "pipe.h5")


def test_a_link_to_a_result_stays_a_link_and_its_target_is_written(file, tmp_path) -> None:
    link = tmp_path / "link.h5"
    link.symlink_to(file)
    changed = store.load(file)
    changed["loss"].values[0] = 7.0
    store.save(changed, link)
    assert link.is_symlink()
    assert float(results.load(file)["loss"][0]) == 7.0


def test_a_full_disk_leaves_the_file_and_nothing_else(file, monkeypatch) -> None:
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(store.load(file), file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_checksum_that_is_there_is_compared_whatever_the_schema(bowl, tmp_path):
    path = tmp_path / "a.surface.h5"
    store.save(bowl, path)
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = 1
        file["loss"][0, 0] = 7.0
    with pytest.raises(ValueError, match="does not fit its checksum"):
        results.load(path)


def test_a_name_is_no_control_sequence(bowl):
    about = json.loads(bowl.attrs["provenance"])
    about["checkpoint"]["file"] = "r$\\frac{x$\x1b[31m.pt"
    named = results.name(bowl.assign_attrs(provenance=json.dumps(about)))
    assert named == "r$\\frac{x$ [31m"


@pytest.mark.parametrize(
    ("name", "units", "label"),
    [
        ("kappa_max", "nat / weight^2", "κₘₐₓ (nat / weight²)"),
        ("Kendall's tau-b", "1", "Kendall's τ-b"),
        ("lambda_1", "nat^-1", "λ₁ (nat⁻¹)"),
        ("sigma", "pixel range**2", "σ (pixel range²)"),
        ("Delta_loss", "nat", "Δ loss (nat)"),
        ("alpha_b", "1 / pixel range", "α b (per pixel range)"),
        ("jensen_shannon", "sqrt(nat)", "jensen shannon (√nat)"),
        ("max_beta", "1", "max β"),
        ("a number of betas", "nu", "a number of betas (ν)"),
        ("L2 norm of the loss gradient", "1", "L2 norm of the loss gradient"),
    ],
)
def test_labels_are_written_as_the_field_writes_them(name: str, units: str, label: str) -> None:
    described = xr.DataArray(0.0, attrs={"long_name": name, "units": units})
    unnamed = xr.DataArray(0.0, name=name, attrs={"units": units})
    assert results.axis_label(described) == results.axis_label(unnamed) == label
