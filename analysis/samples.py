"""The values that result files hold for an endpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import results
from analysis.stats.arrays import Floats
from analysis.study import (
    CHECKPOINT,
    COST,
    FRACTION_BELOW,
    MANIFEST,
    SAMPLES,
    UNMEASURED,
    Endpoint,
    Missing,
    Study,
)

_TOLD = (CHECKPOINT, COST)  # without a result file: `study.json` holds what they are
_NEAR = 0.01  # relative: a coordinate further from the one asked for is noted


@dataclass(frozen=True, eq=False)
class Samples:
    """What one network has for one endpoint.

    Args:
        values: (samples, repeats), repeats being directions, radii, points that were not selected;
            none is NaN.
        correct: (samples,), whether the network classifies what the sample is made of correctly;
            None where the result does not say.
        identity: of the samples; two networks with the same have seen the same.
        notes: what a reader must know.
        not_finite: how many of the stored values were NaN or infinite.
    """

    values: Floats
    correct: NDArray[np.bool_] | None = None
    identity: str = ""
    notes: tuple[str, ...] = ()
    not_finite: int = 0


def gather(
    study: Study,
) -> tuple[dict[tuple[str, str, int], Samples], dict[tuple[str, str, int], Missing]]:
    """The values of every endpoint, arm and seed, and what is missing. Each file is read once.

    Returns:
        Two dicts by (endpoint's name, arm, seed). Missing is what has no result file, or one that
        is damaged, foreign, incomplete, or without what the endpoint asks for; and a metric that a
        trained network's checkpoint lacks.

    Cost: the largest result file in memory at a time.
    """
    found: dict[tuple[str, str, int], Samples] = {}
    missing: dict[tuple[str, str, int], Missing] = {}
    for arm in study.arms:
        for seed in arm.seeds:
            for label in dict.fromkeys(endpoint.probe for endpoint in study.endpoints):
                if not study.measures(label, arm.name):
                    continue
                entry = study.files.get((arm.name, seed, label), {})
                file = str(entry.get("file", ""))
                command = str(entry.get("command", ""))
                result: xr.Dataset | str | None
                try:
                    reason = str(entry.get("reason", UNMEASURED))
                    for other in study.copies(arm.name, seed):
                        raise ValueError(f"its checkpoint is that of seed {other}: a copy.")
                    result = None if label in _TOLD else _whole(study, entry, reason)
                except ValueError as error:
                    result = str(error)
                for endpoint in study.endpoints:
                    if endpoint.probe != label:
                        continue
                    key = (endpoint.name, arm.name, seed)
                    try:
                        if isinstance(result, xr.Dataset):
                            found[key] = samples(result, endpoint)
                        elif isinstance(result, str):
                            raise ValueError(result)
                        elif arm.role != "negative":
                            told = study.costs if label == COST else study.metrics
                            found[key] = _metric(told.get((arm.name, seed), {}), endpoint)
                    except ValueError as error:
                        why = " ".join(str(error).split())
                        missing[key] = Missing(arm.name, seed, label, file, why, command)
    return found, missing


def _metric(metrics: Mapping[str, float], endpoint: Endpoint) -> Samples:
    value = metrics.get(endpoint.variable)
    if value is None:
        where = MANIFEST if endpoint.probe == COST else "its checkpoint"
        raise ValueError(f"{where} tells no {endpoint.variable}.")
    known = endpoint.worst if np.isnan(value) else float(value)
    return Samples(np.array([[known]]), not_finite=int(not np.isfinite(value)))


def _whole(study: Study, entry: Mapping[str, Any], reason: str) -> xr.Dataset:
    if not entry:
        raise ValueError("the study names no such result.")
    path = study.folder / str(entry["file"])
    if reason != UNMEASURED:
        raise ValueError(f"{path.name}: {reason.rstrip('.')}.")
    if not path.is_file():
        raise ValueError(f"{path.name}: there is no such file.")
    result = study.load(entry["arm"], entry["seed"], entry["probe"], str(entry["file"]))
    done = int((result["measured"] == 1).sum())
    if done < result["measured"].size:
        raise ValueError(
            f"{path.name}: {done} of {result['measured'].size} cells are measured; the "
            "measurement was interrupted, the same command continues it."
        )
    return result


def samples(result: xr.Dataset, endpoint: Endpoint) -> Samples:
    """What a result holds for an endpoint.

    Raises:
        ValueError: no such variable, or nothing that fits what is to be selected.
    """
    file = results.source(result)
    if endpoint.variable not in result:
        raise ValueError(
            f"{file}: no variable {endpoint.variable!r}, which {endpoint.name!r} asks for. Correct "
            "the study's endpoint, or what its probe measures."
        )
    kept, notes = _kept(result, endpoint)
    companions = [name for name in ("correct", "margin", "label", "sample") if name in result]
    chosen = result[[endpoint.variable, *companions]].isel(kept, missing_dims="ignore")
    variable = chosen[endpoint.variable]
    whole = np.asarray(variable.values, dtype=float)
    lost = int((~np.isfinite(whole)).sum())
    dim = next((name for name in SAMPLES if name in variable.dims), None)
    if endpoint.average == FRACTION_BELOW:
        with np.errstate(invalid="ignore"):
            fraction = float((whole < cast(float, endpoint.level)).mean())
        return Samples(np.array([[fraction]]), notes=notes, not_finite=lost)
    variable = variable.fillna(endpoint.worst)
    if dim is None:
        values = np.asarray(variable.values, dtype=float).reshape(1, -1)
        return Samples(values, notes=notes, not_finite=lost)
    values = np.asarray(variable.transpose(dim, ...).values, dtype=float)
    return Samples(
        values.reshape(len(values), -1), _correct(chosen, dim), _identity(chosen, dim), notes, lost
    )


def _kept(
    result: xr.Dataset, endpoint: Endpoint
) -> tuple[dict[str, NDArray[np.intp]], tuple[str, ...]]:
    """What `select` leaves of each dim, and where the nearest coordinate is not near."""
    file, dims = results.source(result), result[endpoint.variable].dims
    masks: dict[str, NDArray[np.bool_]] = {}
    notes = []
    for name, wanted in endpoint.select.items():
        if (
            name not in result.variables
            or result[name].ndim != 1
            or result[name].dims[0] not in dims
        ):
            raise ValueError(
                f"{file}: {endpoint.variable} cannot be selected by {name!r}; it has "
                f"{', '.join(map(str, dims)) or 'no dims'}."
            )
        entries = np.asarray(result[name].values)
        if isinstance(wanted, str):
            texts = entries.astype(str)
            mask = texts == wanted
            mask = mask if mask.any() else np.char.startswith(texts, wanted)
        else:
            apart = np.abs(entries.astype(float) - wanted)
            mask = np.arange(len(entries)) == apart.argmin()
            if apart.min() > _NEAR * abs(wanted):
                notes.append(f"{name} {float(entries[mask][0]):g} stands for {wanted:g}")
        if not mask.any():
            there = ", ".join(dict.fromkeys(entries.astype(str)))
            raise ValueError(
                f"{file}: no {name} {wanted!r} in {endpoint.variable}; it has {there}."
            )
        dim = str(result[name].dims[0])
        masks[dim] = masks.get(dim, np.ones(len(mask), dtype=bool)) & mask
    return {dim: np.flatnonzero(mask) for dim, mask in masks.items()}, tuple(notes)


def _correct(chosen: xr.Dataset, dim: str) -> NDArray[np.bool_] | None:
    if dim in chosen.get("correct", xr.DataArray()).dims:
        return np.asarray(chosen["correct"].values == 1)
    if "margin" in chosen and chosen["margin"].dims == (dim, "path_sample"):
        # A path's samples: all that there are. A margin that overflowed is not correct.
        there = ~np.isnan(chosen["label"].values)
        return np.asarray(((chosen["margin"].values > 0) | ~there).all(axis=1))
    return None


def _identity(chosen: xr.Dataset, dim: str) -> str:
    data = json.dumps(results.provenance(chosen).get("data"), sort_keys=True)
    drawn = (
        chosen["sample"].values.tobytes()
        if dim in chosen.get("sample", xr.DataArray()).dims
        else b""
    )
    return f"{data} {chosen.sizes[dim]} {hashlib.sha256(drawn).hexdigest()}"
