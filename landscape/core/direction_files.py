"""Directions in HDF5 files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from analysis import result_file
from checkpoints.problem import Tensors
from checkpoints.whole_file import whole
from landscape.core import store
from landscape.core.directions import check

log = logging.getLogger(__name__)


def save(
    directions: Sequence[Tensors],
    path: Path,
    about: Mapping[str, NDArray[Any]] | None = None,
    *,
    run: str = "",
) -> None:
    """Write directions as one HDF5 file: for each name an array (rank, ...) in `directions/`.

    Args:
        directions: at least one.
        path: the file; an existing one is replaced, so call `check_place` first.
        about: attributes of the group, such as the eigenvalue of each direction.
        run: the run that they belong to, from `store.identity`.

    Raises:
        ValueError: `path` cannot be written.
    """
    try:
        with whole(path) as partial, h5py.File(partial, "w") as file:
            group = file.create_group("directions")
            for name in directions[0]:
                group[name] = np.stack([d[name].detach().cpu().numpy() for d in directions])
            group.attrs.update({"run": run, **(about or {})})
    except OSError as error:
        reason = error.strerror or str(error).split(" (")[0]
        raise ValueError(f"{path} cannot be written: {reason}. Choose another file.") from error


def load(path: Path, origin: Tensors) -> list[Tensors]:
    """Read the directions that a result file holds in its group `directions`.

    Args:
        path: written by `save`, or a result with stored eigenvectors.
        origin: gives names, shapes, dtypes and devices, which they must match.

    Returns:
        All of them, in the file's order.

    Raises:
        ValueError: no such file, no directions in it, or they do not fit.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Expected an HDF5 file with a group `directions`.")
    try:
        with h5py.File(path) as file:
            if not _has_directions(file):
                raise ValueError(
                    "it holds no directions. Expected a group `directions` with one array "
                    "(rank, ...) a parameter, as --save-directions writes it."
                )
            group = file["directions"]
            items = {item.name.rpartition("/")[2]: item for item in result_file.arrays(group)}
            check({n: torch.empty(i.shape[1:], device="meta") for n, i in items.items()}, origin)
            arrays = {name: np.asarray(item) for name, item in items.items()}
            residuals = np.asarray(group.attrs.get("residual", []))
            converged = np.asarray(group.attrs.get("converged", []))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} is no HDF5 file, or damaged: {error}") from error
    for rank in np.flatnonzero(converged == 0):
        log.warning(
            f"{path}: direction {rank} is an eigenvector that has not converged (residual "
            f"{residuals[rank]:.1e})."
        )
    for name, array in arrays.items():
        if array.ndim != origin[name].ndim + 1 or array.dtype.kind != "f":
            raise ValueError(
                f"{path}: {name} is {array.dtype} of {array.ndim} axes; expected real numbers of "
                f"{origin[name].ndim + 1}, the first the direction."
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has NaN or infinite values; expected finite ones.")
    ranks = {len(array) for array in arrays.values()}
    if len(ranks) != 1:
        raise ValueError(f"{path}: the parameters hold different numbers of directions, {ranks}.")
    read = [
        {name: torch.from_numpy(array[rank]) for name, array in arrays.items()}
        for rank in range(ranks.pop())
    ]
    return [{n: direction[n].to(v) for n, v in origin.items()} for direction in read]


def check_place(path: Path, run: str) -> None:
    """Refuse a path for directions at which there is anything not written by the same run.

    Args:
        path: of the directions.
        run: the run that they belong to, from `store.identity`.

    Raises:
        ValueError: the path is taken.
    """
    store.check_writable(path)
    if not path.exists() or attributes(path).get("run") == run:
        return
    raise ValueError(
        f"{path} exists, and is not what this command wrote. Delete it, or choose another file for "
        "--save-directions."
    )


def attributes(path: Path) -> dict[str, Any]:
    """The attributes of a file of directions; empty if it is missing or another kind of file."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return {}
    with h5py.File(path) as file:
        return dict(file["directions"].attrs) if _has_directions(file) else {}


def _has_directions(file: h5py.File) -> bool:
    """Whether a file has a group of that name, which is no link to somewhere else."""
    link = file.get("directions", getlink=True)
    return isinstance(link, h5py.HardLink) and isinstance(file["directions"], h5py.Group)
