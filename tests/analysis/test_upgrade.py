"""Results and studies of the first schema: those that ship, and what is made of their names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from analysis import results, study, upgrade
from analysis.figures import draw_beside

SHIPPED = Path(__file__).parents[2] / "results" / "fashion-mnist"
FILES = {
    "weight-surface": ("surface", {"alpha", "beta"}),
    "near": ("sensitivity", {"direction_kind", "sigma", "radius", "direction", "example"}),
    "between": ("interpolate", {"pair", "path_kind", "path_sample", "gallery", "gallery_t", "t"}),
    "barrier": ("interpolate", {"batch_norm_statistics", "t", "example"}),
    "curvature": ("hessian", {"measurement", "end", "rank"}),
}


def shipped(label: str) -> Path:
    (first, *_) = sorted(SHIPPED.glob(f"*-seed0.{label}.h5"))
    return first


@pytest.mark.parametrize("label", FILES)
def test_a_result_of_the_first_schema_opens_under_today_s_names(label: str) -> None:
    probe, dims = FILES[label]
    path = shipped(label)
    with h5py.File(path) as file:
        assert file.attrs["schema_version"] == 1
        stored = {name: array[...] for name, array in file.items()}
    found = results.load(path)
    assert found.attrs["probe"] == probe
    assert found.attrs["schema_version"] == upgrade.SCHEMA_VERSION
    assert dims <= set(found.dims)
    old = set(upgrade.RENAMED[probe]) - {"rank"}
    assert not old & set(found.dims)
    assert not any("flag_meanings" in found[name].attrs for name in found.variables)
    for name in found.data_vars:
        np.testing.assert_array_equal(found[name].values, stored[str(name)])


def test_kinds_that_were_numbers_are_texts() -> None:
    between, barrier = (results.load(shipped(label)) for label in ("between", "barrier"))
    kinds = ["same_class", "cross_class"]
    assert between["path_kind"].values.tolist() == kinds
    assert between["kind"].dims == ("pair",)
    with h5py.File(shipped("between")) as file:
        numbers = file["kind"][...].astype(int)
    assert between["kind"].values.tolist() == [kinds[number] for number in numbers]
    assert set(barrier["batch_norm_statistics"].values) <= {"kept", "interpolated", "recomputed"}


@pytest.mark.parametrize("label", ["near", "between", "barrier", "curvature"])
def test_a_result_of_the_first_schema_draws(label: str, tmp_path: Path) -> None:
    path = shutil.copy(shipped(label), tmp_path / f"net.{label}.h5")
    assert draw_beside(path)


def test_a_study_of_the_first_schema_selects_by_today_s_names(tmp_path: Path) -> None:
    path = SHIPPED / "study.json"
    content = json.loads(path.read_text())
    assert content["schema_version"] == 1
    old = {row["name"]: row.get("select", {}) for row in content["study"]["endpoints"]}
    new = {endpoint.name: dict(endpoint.select) for endpoint in study.read(SHIPPED).endpoints}
    changed = {name: (old[name], new[name]) for name in old if old[name] != new[name]}
    assert sorted(map(str, changed.values())) == sorted(
        map(
            str,
            [
                ({"noise": 0.05}, {"sigma": 0.05}),
                ({"part": "interpolated"}, {"batch_norm_statistics": "interpolated"}),
            ],
        )
    )
    assert upgrade.study(upgrade.study(content)) == upgrade.study(content)
    assert {"end": "magnitude", "rank": 0} in new.values(), "an eigenpair keeps its rank"


def test_the_hessian_s_scale_is_read_by_its_earlier_name() -> None:
    path = shipped("scaled-curvature")
    with h5py.File(path) as file:
        assert json.loads(file.attrs["spec"])["scale"] == "filter"
    found = results.load(path)
    assert results.spec(found)["scale"] == "relative"
    assert results.source(found) == path.name
    again = upgrade.result(found)
    assert again.attrs == found.attrs
    assert study.read(SHIPPED).probes["scaled-curvature"]["scale"] == "relative"
    normalised = upgrade.options("surface", {"normalize": "filter", "points": (3,)})
    assert normalised == {"normalize": "filter", "points": (3,)}


@pytest.mark.parametrize("tables", [{}, {"probes": 3}, {"probes": {"a": False, "b": {}}}])
def test_study_tables_of_another_shape_are_left_to_the_checks(tables: dict) -> None:
    assert upgrade.tables(tables) == tables
