"""Result files: one HDF5 file each, written atomically, refused if it belongs to another run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from filelock import FileLock, Timeout

from analysis import result_file, upgrade
from analysis.upgrade import SCHEMA_VERSION
from checkpoints.whole_file import check_name, whole

log = logging.getLogger(__name__)

LARGE = 1000  # number of values from which compression saves more than it costs
PACKED = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
BUSY = "another process measures it now"
PACKAGES = ("cnn-landscape", "torch", "numpy", "xarray", "h5py")
# What a result is bound to besides its spec; the names are paths into its provenance, those that
# people recognise before the checksums that decide.
BOUND = (
    "checkpoint.file",
    "checkpoint.model",
    "checkpoint.options",
    "checkpoint.mean",
    "checkpoint.std",
    "checkpoint.sha256",
    "data.name",
    "data.split",
    "data.examples",
    "data.sha256",
    "batch_norm",
    "temperature.value",
    "temperature.sha256",
    "batch_size",
    "device",
    "dtype",
    "kernels",
    "files",
    "reference",
)
LATER = ("kernels",)  # what the first version did not record


def described(probe: str, spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that describe a result file.

    Args:
        probe: its name in `PROBES`.
        spec: every number that changed the answer.
        provenance: origin of network and data, device, dtype, batch size.
    """
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return {
        "probe": probe,
        "schema_version": SCHEMA_VERSION,
        "spec": json.dumps(spec),
        "provenance": json.dumps({**provenance, "versions": versions}),
    }


def identity(probe: str, spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """What distinguishes one run from another: SHA-256 of everything that a result is bound to."""
    bound = {path: _entry(provenance, path) for path in BOUND}
    return hashlib.sha256(json.dumps([probe, spec, bound], sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def check_writable(path: Path) -> None:
    """Make the folder of `path`, and raise before anything is measured if nothing can be saved.

    Raises:
        ValueError: `path` is a folder, its name is too long, or its folder cannot be written to.
    """
    check_name(path)
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; expected a file, such as {path / 'result.h5'}.")
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a regular file. Pass another --out.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror or error}. Pass another --out."
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from measuring into `path` until this one ends, however it does.

    Raises:
        ValueError: another process is measuring it.
    """
    name = path.with_name(f".{path.name}.lock")
    if name.is_symlink() or (name.exists() and not name.is_file()):
        raise ValueError(f"{name} is not a regular file, and serves as the lock. Delete it.")
    lock = FileLock(name)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{path}: {BUSY}. Wait for it, or pass --out with a new name.") from error
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows does not remove open files
            name.unlink(missing_ok=True)
        lock.release()


def save(result: xr.Dataset, path: Path) -> None:
    """Write `result` next to `path` and move it there, so that a file is never incomplete.

    The file is built in memory, where HDF5 cannot fail halfway, and carries a checksum of its
    content. Large arrays are compressed without loss: values measured in float32 fill half of a
    float64.

    Raises:
        OSError: no space left, or no permission; `path` is unchanged.
    """
    encoding: dict[Any, dict[str, Any]] = {
        name: {"_FillValue": None} | (PACKED if variable.size >= LARGE else {})
        for name, variable in result.variables.items()
    }
    sealed = result.assign_attrs({result_file.DIGEST: result_file.digest(result)})
    image = io.BytesIO()
    sealed.to_netcdf(image, engine="h5netcdf", encoding=encoding)
    with whole(path) as file:
        file.write_bytes(image.getbuffer())


def load(path: Path) -> xr.Dataset:
    """Read a whole result file, and close it.

    Raises:
        ValueError: it is not a result of this toolkit, is damaged, or has a newer schema.
    """
    with _advising():
        result = result_file.read(path)
    _check_attributes(result.attrs, path)
    return upgrade.result(result)


@contextmanager
def _advising() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}. Delete it, or pass --out with a new name.") from error


def _check_attributes(attributes: Mapping[Any, Any], path: Path) -> None:
    version = attributes.get("schema_version")
    if not isinstance(version, int | np.integer) or not _told(attributes):
        raise ValueError(f"{path} is not a result of this toolkit. Pass --out with a new name.")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}; this version reads {SCHEMA_VERSION}. "
            "Update cnn-landscape, or pass --out with a new name."
        )


def _told(attributes: Mapping[Any, Any]) -> bool:
    """Whether a file has the attributes of `described`."""
    try:
        tables = [json.loads(attributes[name]) for name in ("spec", "provenance")]
    except (KeyError, TypeError, ValueError, RecursionError):
        return False
    return "probe" in attributes and all(isinstance(table, dict) for table in tables)


def _outlined(path: Path) -> tuple[dict[str, Any], dict[str, result_file.Outline]]:
    """A result file without its values: today's attributes, and its arrays by today's names.

    Raises:
        ValueError: see `load`; the checksum is not looked at.
    """
    with _advising():
        attributes, arrays = result_file.outlined(path)
    _check_attributes(attributes, path)
    probe, spec = str(attributes["probe"]), json.loads(attributes["spec"])
    names = {}
    if attributes["schema_version"] < SCHEMA_VERSION:
        names = upgrade.renamed(probe, spec)
    named = {
        names.get(name, name): replace(each, dims=tuple(names.get(d, d) for d in each.dims))
        for name, each in arrays.items()
    }
    return attributes | {"spec": json.dumps(upgrade.options(probe, spec))}, named


def recorded(path: Path, name: str) -> Any:
    """The entry `name` of a result file's provenance; None if there is no file or entry."""
    if not path.is_file():
        return None
    return json.loads(_outlined(path)[0]["provenance"]).get(name)


def resume(blank: xr.Dataset, path: Path) -> xr.Dataset:
    """The cells of the result described by `blank` that `path` holds; `blank` if there is no file.

    Args:
        blank: the result with nothing measured, with the attributes of `described`.
        path: a result file, which need not exist yet. What an earlier version did not measure stays
            blank.

    Raises:
        ValueError: one line that names the first difference of the file.
    """
    if not path.is_file():
        return blank
    attributes, arrays = _outlined(path)
    if attributes["probe"] != blank.attrs["probe"]:
        raise ValueError(
            f"{path} is a result of {attributes['probe']}, this run is {blank.attrs['probe']}. "
            "Pass --out with a new name."
        )
    for label, flag, was, now in _differences(attributes, blank.attrs):
        back = f"Pass {flag} to continue it, or" if flag else "Pass"
        raise ValueError(
            f"{path} was measured with {label}={was}, this run asks for {label}={now}. "
            f"{back} --out with a new name."
        )
    _check_arrays(arrays, blank, path)
    stored = load(path)
    for name in blank.coords:
        if name not in stored.coords:  # an earlier schema did not store it
            stored = stored.assign_coords({name: blank[name]})
        elif not np.array_equal(stored[name].values, blank[name].values):
            raise ValueError(
                f"{path} was measured at another {blank[name].attrs['long_name']} ({name}). Pass "
                "--out with a new name."
            )
    lacking = sorted(set(blank.data_vars) - set(stored.data_vars), key=str)
    if lacking:
        log.info(
            f"{path} was begun by a version that did not measure {', '.join(map(str, lacking))}: "
            "blank for what it holds. To have them, measure again with another --out."
        )
        stored = stored.assign({name: blank[name] for name in lacking})
    was, now = (json.loads(r.attrs["provenance"]) for r in (stored, blank))
    if now["versions"] not in [was.get("versions"), *was.get("continued_with", [])]:
        was["continued_with"] = [*was.get("continued_with", []), now["versions"]]
        stored.attrs["provenance"] = json.dumps(was)
    return stored


def _check_arrays(arrays: Mapping[str, result_file.Outline], blank: xr.Dataset, path: Path) -> None:
    """Refuse a file whose arrays are not as planned, before any values are read.

    Raises:
        ValueError: another array, or one of other dims, shape or type.
    """
    for name, found in arrays.items():
        planned = blank.variables.get(name)
        if planned is None:
            raise ValueError(
                f"{path} has other dims or variables, such as {name}. Pass --out with a new name."
            )
        wanted = result_file.Outline(tuple(map(str, planned.dims)), planned.shape, planned.dtype)
        if name in blank.coords:  # compared by their values, and once numbers where texts are now
            found = replace(found, dtype=wanted.dtype)
        if found != wanted:
            was, now = (f"{list(each.shape)} of {each.dtype}" for each in (found, wanted))
            raise ValueError(
                f"{path} has other dims or variables: {name} is {was} along "
                f"{', '.join(found.dims) or 'no dim'}, planned are {now} along "
                f"{', '.join(wanted.dims) or 'no dim'}. Pass --out with a new name."
            )


def record_smaller_batch(path: Path, blank: xr.Dataset, tried: Sequence[int]) -> None:
    """Let a result that was begun in larger batches be continued in those of `blank`.

    Nothing is changed if the file does not exist, or differs in anything else.

    Args:
        path: the result file.
        blank: the result with nothing measured.
        tried: the larger batch sizes of this run, one of which the file records.
    """
    if not path.is_file():
        return
    attributes, arrays = _outlined(path)
    differing = [name for name, _, _, _ in _differences(attributes, blank.attrs)]
    provenance = json.loads(attributes["provenance"])
    if differing != ["batch_size"] or provenance["batch_size"] not in tried:
        return
    larger = [*provenance.get("larger_batches", []), provenance["batch_size"]]
    provenance["batch_size"] = json.loads(blank.attrs["provenance"])["batch_size"]
    provenance["larger_batches"] = larger
    _check_arrays(arrays, blank, path)
    save(load(path).assign_attrs(provenance=json.dumps(provenance)), path)


def _differences(
    stored: Mapping[Any, Any], blank: Mapping[Any, Any]
) -> Iterator[tuple[str, str, str, str]]:
    """(label, flag to continue the file, was, now) of what differs in two results' attributes."""
    was, now = (json.loads(each["spec"]) for each in (stored, blank))
    files = [_entry(json.loads(each["provenance"]), "files") for each in (stored, blank)]
    known = set.intersection(*(set(each) if isinstance(each, dict) else set() for each in files))
    for name in [*now, *(set(was) - set(now))]:
        if name in known:
            continue  # a file is known by its content, which is bound below, not by its name
        if name not in was and not now[name]:
            continue  # an option that the file's version did not have, and that is not used
        if was.get(name) != now.get(name):
            yield name, _flag(name, was.get(name)), _shown(was.get(name)), _shown(now.get(name))
    was, now = (json.loads(each["provenance"]) for each in (stored, blank))
    for path in BOUND:
        old, new = _entry(was, path), _entry(now, path)
        if old != new and (old is not None or path not in LATER):
            flag = FLAGS.get(path)
            yield path, f"{flag} {_shown(old)}" if flag else "", _shown(old), _shown(new)


FLAGS = {
    "checkpoint.file": "--ckpt",
    "data.name": "--data",
    "data.split": "--split",
    "data.examples": "--examples",
    "batch_size": "--batch-size",
    "temperature.value": "--temperature",
    "device": "--device",
    "dtype": "--dtype",
}


def _entry(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _flag(name: str, value: Any) -> str:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    return f"without {flag}" if value is None or value == [] else f"{flag} {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    text = str(value)
    return text[:12] if len(text) == 64 else text
