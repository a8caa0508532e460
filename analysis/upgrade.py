"""Results and studies of earlier schema versions, brought to the one that this version writes.

Schema 2 gave every dim one meaning and a name of its own, made kinds texts that were numbers with
`flag_meanings`, and added where each example stands in its data set. Values are as they were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

SCHEMA_VERSION = 2
# {probe: {name in schema 1: name in schema 2}} of dims and their coordinates.
RENAMED: dict[str, dict[str, str]] = {
    "hessian": {"part": "measurement", "step": "lanczos_step"},
    "interpolate": {
        "part": "path_kind",
        "rank": "path_sample",
        "draw": "gallery",
        "step": "gallery_t",
    },
    "sensitivity": {"part": "direction_kind", "noise": "sigma"},
    "surface": {},
}
UNITS = {"L2 distance a filter": "L2 distance per filter"}
BETWEEN_NETWORKS = {"part": "batch_norm_statistics"}  # an interpolation with `to`


# {probe: {option: {name of a value in an earlier version: its name now}}}, in any schema. `filter`
# was the Hessian's word for what moves biases too, which the surface's `filter` does not.
VALUES = {"hessian": {"scale": {"filter": "relative"}}}


def result(stored: xr.Dataset) -> xr.Dataset:
    """A result of any known schema in the current one; of the current one as it is.

    What the earlier schema did not store, such as `index`, is left out.
    """
    probe, spec = str(stored.attrs["probe"]), json.loads(stored.attrs["spec"])
    if (today := options(probe, spec)) != spec:
        encoding = dict(stored.encoding)
        stored = stored.assign_attrs(spec=json.dumps(today))
        stored.encoding = encoding
    if stored.attrs["schema_version"] == SCHEMA_VERSION:
        return stored
    names = renamed(probe, spec)
    found = stored.rename({old: new for old, new in names.items() if old in stored.variables})
    for name in list(found.variables):
        if "flag_meanings" in found[name].attrs:
            found = found.assign_coords({name: _texts(found[name])})
    for coordinate in found.coords.values():
        unit = coordinate.attrs.get("units")
        coordinate.attrs |= {"units": UNITS.get(unit, unit)} if unit else {}
    found.attrs["schema_version"] = SCHEMA_VERSION
    found.encoding = dict(stored.encoding)
    return found


def renamed(probe: str, spec: Mapping[str, Any]) -> dict[str, str]:
    """What the names of a probe's dims became, by what they were."""
    between_networks = probe == "interpolate" and spec.get("to")
    return BETWEEN_NETWORKS if between_networks else RENAMED.get(probe, {})


def options(probe: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A probe's options with the current names of their values."""
    renamed_values = VALUES.get(probe, {})
    return {
        name: renamed_values.get(name, {}).get(value, value) if isinstance(value, str) else value
        for name, value in given.items()
    }


def tables(study: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a study file, with the current names of its probes' options.

    Tables of another shape stay as they are, for the checks that refuse them.
    """
    probes = study.get("probes")
    if not isinstance(probes, Mapping):
        return dict(study)
    upgraded = {
        label: options(str(table.get("probe")), table) if isinstance(table, Mapping) else table
        for label, table in probes.items()
    }
    return {**study, "probes": upgraded}


def selection(probe: str, spec: Mapping[str, Any], select: Mapping[str, Any]) -> dict[str, Any]:
    """An endpoint's `select` in current names."""
    names = renamed(probe, spec)
    return {names.get(name, name): value for name, value in select.items()}


def study(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a `study.json` holds, in the current schema."""
    if isinstance(content.get("study"), Mapping):
        content = {**content, "study": tables(content["study"])}
    if content.get("schema_version") != 1:
        return dict(content)
    table = content["study"]
    probes = table["probes"]
    endpoints = [
        {**row, "select": selection(probes[row["probe"]]["probe"], probes[row["probe"]], selected)}
        if (selected := row.get("select")) and row.get("probe") in probes
        else row
        for row in table["endpoints"]
    ]
    return {
        **content,
        "schema_version": SCHEMA_VERSION,
        "study": {**table, "endpoints": endpoints},
    }


def _texts(numbers: xr.DataArray) -> xr.DataArray:
    """A coordinate of texts from one of numbers that its attributes explain."""
    meanings = str(numbers.attrs["flag_meanings"]).split()
    known = np.atleast_1d(numbers.attrs.get("flag_values", np.arange(len(meanings))))
    texts = {int(number): text for number, text in zip(known, meanings, strict=True)}
    values = np.array(
        [texts.get(int(v), "") if np.isfinite(v) else "" for v in numbers.values.ravel()],
        dtype=object,
    ).reshape(numbers.shape)
    about = {k: v for k, v in numbers.attrs.items() if k not in ("flag_meanings", "flag_values")}
    return xr.DataArray(values, dims=numbers.dims, attrs=about)
