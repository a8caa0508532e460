"""The HDF5 file of a result: read without following what it points to, and held to its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from analysis.upgrade import SCHEMA_VERSION

DIGEST = "sha256"  # the attribute that holds it
WITH_DIGEST = range(2, SCHEMA_VERSION + 1)
KINDS = "fiuOSU"  # of dtypes: numbers and texts


def read(path: Path) -> xr.Dataset:
    """The content of a result file, wholly in memory, as it was written.

    Raises:
        ValueError: what is wrong with it, without advice: not HDF5, damaged or cut short; links,
            groups, virtual or external storage; other than numbers and texts; a checksum that is
            missing or does not fit.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        _walk(path)
        with xr.open_dataset(
            path,
            engine="h5netcdf",
            mask_and_scale=False,
            decode_times=False,
            decode_timedelta=False,
        ) as file:
            result = file.load()
    except Exception as error:  # h5py documents no exception types for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is no result file, or damaged ({reason})") from error
    stored = result.attrs.pop(DIGEST, None)
    version = result.attrs.get("schema_version")
    if not isinstance(version, int | np.integer) or version not in WITH_DIGEST:
        return result  # the first schema had none; a later one is refused by the caller
    if stored is None:
        raise ValueError(f"{path} has no checksum, so it was not written by this toolkit")
    if stored != digest(result):
        raise ValueError(f"{path} is damaged or was changed: its content does not fit its checksum")
    result.encoding[DIGEST] = stored
    return result


def digest(result: xr.Dataset) -> str:
    """SHA-256 of every array and attribute of a result, by name.

    Args:
        result: without the attribute `sha256` itself.
    """
    found = hashlib.sha256()
    found.update(_attributes(result.attrs))
    for name in sorted(result.variables, key=str):
        variable = result[name].variable
        head = [str(name), [str(dim) for dim in variable.dims], list(variable.shape)]
        found.update(json.dumps(head).encode())
        found.update(_attributes(variable.attrs))
        values = np.asarray(variable.values)
        if values.dtype.kind in "OSU":
            found.update(json.dumps([str(text) for text in values.ravel()]).encode())
        else:
            wide = "<f8" if values.dtype.kind == "f" else "<i8"
            found.update(np.ascontiguousarray(values.astype(wide)).tobytes())
    return found.hexdigest()


def _attributes(attributes: Mapping[Any, Any]) -> bytes:
    plain = {
        str(name): np.asarray(value).tolist() if not isinstance(value, str) else value
        for name, value in attributes.items()
    }
    return json.dumps(plain, sort_keys=True).encode()


def _walk(path: Path) -> None:
    """Refuse a file that holds anything but plain arrays of its own."""
    with h5py.File(path, "r") as file:
        for name in file:
            link = file.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{_shown(name)} is a link to somewhere else")
            item = file[name]
            if not isinstance(item, h5py.Dataset):
                raise ValueError(f"{_shown(name)} is a group; expected arrays alone")
            if item.is_virtual or item.external:
                raise ValueError(f"{_shown(name)} is stored in another file")
            text = h5py.check_string_dtype(item.dtype) is not None
            if item.dtype.kind not in KINDS or (item.dtype.kind == "O" and not text):
                raise ValueError(f"{_shown(name)} is of type {item.dtype}; expected numbers")


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else " " for c in name)[:60]
