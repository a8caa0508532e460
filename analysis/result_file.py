"""The HDF5 file of a result: read without following what it points to, and held to its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.plain import plain
from analysis.upgrade import SCHEMA_VERSION

DIGEST = "sha256"  # the attribute that holds it
WITH_DIGEST = range(2, SCHEMA_VERSION + 1)
KINDS = "fiuOSU"  # of dtypes: numbers and texts
PACKING = 1100  # more than deflate makes of any bytes, so what claims more was never written
NO_ARRAY = b"This is a netCDF dimension but not a netCDF variable"  # a dim without values
HIDDEN = (  # attributes that HDF5 and netCDF keep for themselves
    "CLASS",
    "NAME",
    "REFERENCE_LIST",
    "DIMENSION_LIST",
    "_Netcdf4Dimid",
    "_Netcdf4Coordinates",
    "_NCProperties",
)


@dataclass(frozen=True)
class Outline:
    """What a file says of an array before its values are read."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def outlined(path: Path) -> tuple[dict[str, Any], dict[str, Outline]]:
    """The attributes of a result file and {name: outline} of its arrays; no values are read.

    Nothing is held to the checksum yet: `read` does that.

    Raises:
        ValueError: see `read`.

    Cost: a few milliseconds, however large the arrays are.
    """
    with _opened(path) as file:
        found = {_name(item): Outline(_dims(item), item.shape, item.dtype) for item in arrays(file)}
        return _described(file.attrs), found


def read(path: Path) -> xr.Dataset:
    """The content of a result file, wholly in memory, as it was written.

    Raises:
        ValueError: what is wrong with it, without advice: not HDF5, damaged or cut short; links,
            groups, virtual or external storage; other than numbers and texts; arrays whose values
            were never written; a checksum that is missing or does not fit.
    """
    with _opened(path) as file:
        variables = dict(map(_variable, list(arrays(file))))
        stored = xr.Dataset(variables, attrs=_described(file.attrs))
        result = xr.decode_cf(
            stored, mask_and_scale=False, decode_times=False, decode_timedelta=False
        ).load()
    result.encoding["source"] = str(path)
    stored = result.attrs.pop(DIGEST, None)
    version = result.attrs.get("schema_version")
    number = int(version) if isinstance(version, int | np.integer) else 0
    if number > max(WITH_DIGEST) or (stored is None and number not in WITH_DIGEST):
        return result  # the first schema had none; a later one is refused by the caller
    if stored is None:
        raise ValueError(f"{path} has no checksum, so it was not written by this toolkit")
    try:
        fits = stored == digest(result)
    except (TypeError, ValueError):  # attributes that this toolkit does not write
        fits = False
    if not fits:
        raise ValueError(f"{path} is damaged or was changed: its content does not fit its checksum")
    result.encoding[DIGEST] = stored
    return result


def values(path: Path, name: str) -> NDArray[Any]:
    """One array of numbers in a result file; it is not held to the checksum.

    Raises:
        ValueError: see `read`; there is no such array.
    """
    with _opened(path) as file:
        found = {_name(item): item for item in arrays(file)}
        if name not in found:
            raise ValueError(f"it has no {name}")
        return np.asarray(found[name][()])


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


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """A result file; what goes wrong while it is open is told as its fault."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except Exception as error:  # h5py documents no exception types for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is no result file, or damaged ({reason})") from error


def arrays(group: h5py.Group) -> Iterator[h5py.Dataset]:
    """The arrays of a file or group, without their values.

    Raises:
        ValueError: it holds anything but plain arrays of its own.
    """
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{plain(name[:60])} is a link to somewhere else")
        item = group[name]
        if not isinstance(item, h5py.Dataset):
            raise ValueError(f"{plain(name[:60])} is a group; expected arrays alone")
        if item.is_virtual or item.external:
            raise ValueError(f"{plain(name[:60])} is stored in another file")
        text = h5py.check_string_dtype(item.dtype) is not None
        if item.dtype.kind not in KINDS or (item.dtype.kind == "O" and not text):
            raise ValueError(f"{plain(name[:60])} is of type {item.dtype}; expected numbers")
        if bytes(item.attrs.get("NAME", b"")).startswith(NO_ARRAY):
            continue
        written = item.id.get_storage_size()
        if item.nbytes > PACKING * written:
            raise ValueError(
                f"{plain(name[:60])} has {item.size} values by its shape, of which {written} bytes"
                " are there"
            )
        yield item


def _name(item: h5py.Dataset) -> str:
    return str(item.name).removeprefix("/")


def _dims(item: h5py.Dataset) -> tuple[str, ...]:
    lists = item.attrs.get("DIMENSION_LIST")
    if lists is not None:
        return tuple(_name(item.file[scales[-1]]) for scales in lists)
    return (_name(item),) if item.is_scale else ()


def _variable(item: h5py.Dataset) -> tuple[str, xr.Variable]:
    """An array with its dims and attributes, as xarray wrote it with h5netcdf.

    Read with h5py, which takes a third of the time: h5netcdf looks each array up forty times.
    """
    text = item.dtype.kind == "O"
    values = np.asarray(item.asstr()[()] if text else item[()], dtype=item.dtype)
    encoding = {"dtype": str} if text else {}
    return _name(item), xr.Variable(_dims(item), values, _described(item.attrs), encoding)


def _described(stored: h5py.AttributeManager) -> dict[str, Any]:
    """Attributes, but for `HIDDEN`, as h5netcdf gives them."""
    found = {}
    for name, value in stored.items():
        if name in HIDDEN:
            continue
        value = value.decode() if isinstance(value, bytes) else value
        if isinstance(value, np.ndarray):  # netCDF stores every number as an array of one
            texts = value.dtype.kind == "O"
            value = value[0] if value.size == 1 else value.tolist() if texts else value
        found[name] = value
    return found
