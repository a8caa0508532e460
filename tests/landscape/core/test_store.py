"""What a result file is bound to, and what it says where it differs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from landscape.core import direction_files, store

PROVENANCE: dict[str, Any] = {
    "checkpoint": {
        "file": "a.pt",
        "model": "resnet20",
        "options": {"width": 16},
        "mean": [0.5],
        "std": [0.25],
        "sha256": "1" * 64,
    },
    "data": {"name": "cifar10", "split": "test", "examples": 300, "sha256": "2" * 64},
    "batch_norm": "eval",
    "temperature": {"value": 1.5, "sha256": "3" * 64},
    "batch_size": 100,
    "device": "cpu",
    "dtype": "float32",
    "kernels": "onednn",
    "files": {"to": "4" * 64},
    "reference": "5" * 64,
}
PATHS = [
    f"{name}.{key}" if key else name
    for name, entry in PROVENANCE.items()
    for key in (entry if isinstance(entry, dict) and name != "files" else [""])
]
SPEC = {"points": [3, 4], "seed": 0, "orthogonal": False, "layers": [], "to": None, "extent": 1.0}


def result(
    spec: dict[str, Any] = SPEC, provenance: dict[str, Any] = PROVENANCE, size: int = 3
) -> xr.Dataset:
    return xr.Dataset(
        {"loss": (("alpha",), np.linspace(0.1, 0.3, size), {"units": "nat"})},
        {"alpha": ("alpha", np.arange(float(size)), {"long_name": "step"})},
        store.described("surface", spec, provenance),
    )


def changed(path: str, value: Any) -> dict[str, Any]:
    provenance = json.loads(json.dumps(PROVENANCE))
    *outer, last = path.split(".")
    tree = provenance[outer[0]] if outer else provenance
    if value is None:
        del tree[last]
    else:
        tree[last] = value
    return provenance


def refusal(blank: xr.Dataset, path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        store.resume(blank, path)
    return str(caught.value)


def test_the_paths_are_all_that_results_are_bound_to() -> None:
    assert sorted(PATHS) == sorted(store.BOUND)


@pytest.mark.parametrize("path", PATHS)
def test_a_file_is_bound_to_each_part_of_its_origin(path: str, tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    store.save(result(), file)
    xr.testing.assert_identical(store.resume(result(), file), result())
    other = result(provenance=changed(path, {"to": "9" * 64} if path == "files" else "other"))
    assert f"was measured with {path}=" in refusal(other, file)
    assert store.identity("surface", SPEC, PROVENANCE) != store.identity(
        "surface", SPEC, json.loads(other.attrs["provenance"])
    )


@pytest.mark.parametrize("path", PATHS)
def test_what_an_old_file_does_not_say_differs_but_for_the_kernels(
    path: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.h5"
    store.save(result(provenance=changed(path, None)), file)
    if path == "kernels":
        store.resume(result(), file)
    else:
        assert f"was measured with {path}=None" in refusal(result(), file)


@pytest.mark.parametrize(
    ("name", "was", "now", "line"),
    [
        ("points", [3, 4], [5, 4], "points=3 4, this run asks for points=5 4. Pass --points 3 4"),
        ("seed", 0, 1, "seed=0, this run asks for seed=1. Pass --seed 0 to continue it, or --out"),
        ("orthogonal", False, True, "Pass --no-orthogonal to continue"),
        ("orthogonal", True, False, "Pass --orthogonal to continue"),
        ("layers", [], ["fc.*"], "Pass without --layers to continue"),
        ("layers", ["fc.*"], [], "Pass --layers fc.* to continue"),
        ("extent", None, 2.0, "Pass without --extent to continue"),
        ("two_words", 1, 2, "Pass --two-words 1 to continue"),
    ],
)
def test_a_difference_is_named_with_the_flag_that_continues_the_file(
    name: str, was: Any, now: Any, line: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.h5"
    store.save(result(SPEC | {name: was}), file)
    assert line in refusal(result(SPEC | {name: now}), file)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("batch_size", 50, "Pass --batch-size 50 to continue it"),
        ("device", "cuda", "Pass --device cuda to continue it"),
        ("dtype", "float64", "Pass --dtype float64 to continue it"),
        ("data.examples", 200, "Pass --examples 200 to continue it"),
        ("data.split", "train", "Pass --split train to continue it"),
        ("temperature.value", 2.0, "Pass --temperature 2.0 to continue it"),
        ("checkpoint.file", "b.pt", "Pass --ckpt b.pt to continue it"),
        ("checkpoint.sha256", "6" * 64, "sha256=666666666666, this run asks for"),
        ("data.sha256", "6" * 64, "sha256=222222222222. Pass --out with a new name"),
    ],
)
def test_another_origin_is_named_with_its_flag_where_there_is_one(
    path: str, value: Any, line: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.h5"
    store.save(result(provenance=changed(path, value)), file)
    assert line in refusal(result(), file)


def test_an_option_that_a_file_s_version_did_not_have_matters_only_where_it_is_used(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.h5"
    store.save(result(), file)
    store.resume(result(SPEC | {"later": None, "longer": []}), file)
    assert "later=None, this run asks for later=2" in refusal(result(SPEC | {"later": 2}), file)
    shorter = {name: value for name, value in SPEC.items() if name != "extent"}
    assert "extent=1.0, this run asks for extent=None" in refusal(result(shorter), file)


def test_a_file_that_a_run_was_given_is_known_by_its_content_and_not_by_its_name(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.h5"
    store.save(result(SPEC | {"to": "b.pt"}), file)
    store.resume(result(SPEC | {"to": "copied/b.pt"}), file)
    bare = changed("files", {})
    store.save(result(SPEC | {"to": "b.pt"}, bare), file)
    assert "to=b.pt" in refusal(result(SPEC | {"to": "c.pt"}, bare), file)
    assert "to=b.pt" in refusal(result(SPEC | {"to": "c.pt"}), file)


def test_other_sizes_and_variables_and_probes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    store.save(result().assign(more=("alpha", np.zeros(3))), file)
    assert "other dims or variables" in refusal(result(), file)
    store.save(result(size=4), file)
    assert re.search("at another step .alpha.|other dims", refusal(result(), file))
    other = result().assign_attrs(probe="hessian")
    store.save(other, file)
    assert "is a result of hessian, this run is surface" in refusal(result(), file)


def test_the_versions_that_measured_are_recorded() -> None:
    versions = json.loads(result().attrs["provenance"])["versions"]
    assert set(versions) == {"cnn-landscape", "torch", "numpy", "xarray", "h5py", "python"}
    assert versions["numpy"] == np.__version__
    assert versions["h5py"] == h5py.__version__


def test_large_arrays_are_compressed_and_small_ones_are_not(tmp_path: Path) -> None:
    for size, packed in ((999, False), (1000, True)):
        store.save(result(size=size), tmp_path / "a.h5")
        with h5py.File(tmp_path / "a.h5") as file:
            assert (file["loss"].compression == "gzip") == packed
            assert file["loss"].shuffle == packed
            assert "_FillValue" not in file["loss"].attrs


def test_only_a_larger_batch_is_made_smaller(tmp_path: Path) -> None:
    file, blank = tmp_path / "a.h5", result(provenance=changed("batch_size", 50))
    store.record_smaller_batch(file, blank, [100])
    assert not file.exists()
    store.save(result(), file)
    before = file.read_bytes()
    store.record_smaller_batch(file, blank, [200])
    store.record_smaller_batch(file, result(SPEC | {"seed": 1}, changed("batch_size", 50)), [100])
    assert file.read_bytes() == before
    store.record_smaller_batch(file, blank, [100])
    provenance = json.loads(store.resume(blank, file).attrs["provenance"])
    assert (provenance["batch_size"], provenance["larger_batches"]) == (50, [100])
    assert store.recorded(file, "batch_size") == 50
    assert store.recorded(file, "nothing") is store.recorded(tmp_path / "b.h5", "device") is None


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in ("probe", "spec", "provenance", "schema_version")),
        {"spec": "no JSON"},
        {"spec": "[1]"},
        {"provenance": "1"},
        {"schema_version": "2"},
    ],
    ids=str,
)
def test_a_file_without_what_describes_a_result_is_none(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    file, other = tmp_path / "a.h5", result()
    other.attrs |= changes
    other.attrs = {name: value for name, value in other.attrs.items() if value is not None}
    store.save(other, file)
    assert "is not a result of this toolkit" in refusal(result(), file)


@pytest.mark.parametrize("name", ["loss", "alpha", "more"])
@pytest.mark.parametrize("shape", [(300_000_000,), (3, 1), (4,)])
@pytest.mark.parametrize("dtype", ["f8", "f4", "S5"])
def test_arrays_that_are_not_planned_are_refused_before_a_value_is_read(
    name: str, shape: tuple[int, ...], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.h5"
    store.save(result(), file)
    with h5py.File(file, "a") as opened:
        if name in opened:
            del opened[name]
        array = opened.create_dataset(name, shape, dtype)  # its values are not written
        if array.nbytes < 100:
            array[...] = np.zeros(shape, dtype)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("values were read"))
    line = refusal(result(), file)
    written = "other dims or variables" if shape != (300_000_000,) else "of which 0 bytes are there"
    assert written in line
    assert name in line


def test_directions_of_other_shapes_are_refused_before_a_value_is_read(tmp_path: Path) -> None:
    file, origin = tmp_path / "d.h5", {"weight": torch.ones(2, 3)}
    for shape, line in (
        ((300_000_000, 2, 3), "0 bytes are there"),
        ((1, 3, 2), "direction is (3, 2)"),
    ):
        with h5py.File(file, "w") as opened:
            array = opened.create_group("directions").create_dataset("weight", shape, "f4")
            if array.nbytes < 100:
                array[...] = 1
        with pytest.raises(ValueError, match=re.escape(line)):
            direction_files.load(file, origin)
    with h5py.File(file, "w") as opened:
        opened["directions"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
    with pytest.raises(ValueError, match="holds no directions"):
        direction_files.load(file, origin)
