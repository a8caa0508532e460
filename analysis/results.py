"""Result files: open them, check them, and read what they say about themselves."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analysis import result_file, upgrade
from analysis.plain import plain
from analysis.upgrade import SCHEMA_VERSION

VARIABLES = {  # always there; accuracy only where it is defined
    "hessian": (),  # any of its parts
    "interpolate": ("loss",),
    "sensitivity": ("loss",),
    "surface": ("loss", "loss_stderr"),
    "terms": ("setting_loss",),
}

_LETTERS = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi"
    "|omega"
)
_SPELLED = {"lambda": "LAMDA"}  # as Unicode has it
_GREEK = re.compile(rf"(?<![^\W_])({_LETTERS})(?:_([^\W_]+))?(?![^\W_])", re.IGNORECASE)
_INDEX = 3  # letters of an index, such as max
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LOWERED = str.maketrans("0123456789aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ")


def load(path: str | Path) -> xr.Dataset:
    """The result stored in one file, checked, wholly in memory, the file closed.

    Values come as they were measured: NaN and infinity included, points not measured are NaN
    with `measured` = 0.

    Raises:
        ValueError: no such file, or `result_file.read` or `checked` refuses it.

    Cost: the memory of the whole file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file. Give the path of a result file (.h5).")
    try:
        result = result_file.read(path)
    except ValueError as error:
        raise ValueError(
            f"{error}. Give a file written by python -m landscape.<probe>; if this is a copy of "
            "one, copy it again."
        ) from error
    return checked(result)


def checked(result: xr.Dataset) -> xr.Dataset:
    """A result in the current schema; refused where it is none, or of a newer version.

    Raises:
        ValueError: no `probe` attribute, schema version unknown, variables or coordinates missing.
    """
    file = source(result)
    if "probe" not in result.attrs:
        raise ValueError(
            f"{file}: no `probe` attribute, so this is no result of this toolkit. "
            "Give a file written by python -m landscape.<probe>."
        )
    probe = result.attrs["probe"]
    version = result.attrs.get("schema_version")
    if not isinstance(version, int | np.integer) or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema version is {version}, this toolkit reads 1 to {SCHEMA_VERSION}. "
            "Update the toolkit, or measure again with this one."
        )
    for attribute in ("spec", "provenance"):
        try:
            _attribute(result, attribute)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: its `{attribute}` is damaged ({error}). Measure it again."
            ) from error
    needed = ["measured", *VARIABLES.get(probe, ())]
    if "measured" in result:
        needed += [str(dim) for dim in result["measured"].dims]
    missing = [variable for variable in needed if variable not in result.variables]
    if missing:
        raise ValueError(
            f"{file}: {', '.join(missing)} missing, needed for a {probe} result. Measure it again."
        )
    return upgrade.result(result)


def source(result: xr.Dataset) -> str:
    """Name of the file the result was read from, for messages."""
    return Path(result.encoding.get("source", "result")).name


def spec(result: xr.Dataset) -> dict[str, Any]:
    """Every setting the measurement was made with."""
    return _attribute(result, "spec")


def provenance(result: xr.Dataset) -> dict[str, Any]:
    """What was measured and with what: checkpoint, data, device, dtype, versions."""
    return _attribute(result, "provenance")


def name(result: xr.Dataset) -> str:
    """A short label for legends: the stem of the checkpoint's file, else the model's name.

    Where no network was measured it is the manifold's.

    A line or plane towards a second checkpoint is named after both: `a → b`.
    """
    checkpoint = provenance(result).get("checkpoint") or {}
    file, model = checkpoint.get("file"), checkpoint.get("model")
    unnamed = spec(result).get("manifold") or "unnamed network"
    label = Path(file).stem if file else str(model or unnamed)
    other = spec(result).get("to")
    return plain(f"{label} → {Path(other).stem}" if other else label)


def names(results: Sequence[xr.Dataset]) -> list[str]:
    """`name` of each result; where names coincide, with the settings that tell them apart."""
    labels = [name(result) for result in results]
    settings = [_settings(result) for result in results]
    full = []
    for label, own in zip(labels, settings, strict=True):
        namesakes = [other for at, other in zip(labels, settings, strict=True) if at == label]
        differing = [
            key
            for key, value in own.items()
            if value is not None and any(other.get(key) != value for other in namesakes)
        ]
        full.append(", ".join([label, *(f"{key} {own[key]}" for key in differing)]))
    return full


def axis_label(variable: xr.DataArray) -> str:
    """Name and unit for an axis or colour bar, such as `loss (nat)`; a unit of 1 is left out.

    Names are written as the field does: `kappa_max` is κₘₐₓ, `tau` is τ.
    """
    text, own = _written(str(variable.attrs.get("long_name", variable.name))), units(variable)
    return text if own == "1" else f"{text} ({own})"


def units(variable: xr.DataArray) -> str:
    """Of a variable, powers and roots as a reader wants them: `nat / weight²`; "1" for none."""
    own = str(variable.attrs.get("units", "1"))
    own = re.sub(r"(?:\^|\*\*)(-?\d+)", lambda power: power[1].translate(_RAISED), own)
    own = re.sub(r"\bsqrt\((\w+)\)", "\N{SQUARE ROOT}\\1", own)
    return re.sub(r"^1 / ", "per ", _written(own))


def _written(text: str) -> str:
    """`text` with Greek letters for their names, and no underscores."""
    words = _GREEK.sub(lambda found: _letter(found[1]) + _lowered(found[2] or ""), text)
    return words.replace("_", " ")


def _letter(name: str) -> str:
    case = "CAPITAL" if name[0].isupper() else "SMALL"
    return unicodedata.lookup(f"GREEK {case} LETTER {_SPELLED.get(name.lower(), name.upper())}")


def _lowered(index: str) -> str:
    """A short index below the line, where all of its letters exist there; else after a space."""
    lowered = index.translate(_LOWERED)
    short = len(index) <= _INDEX and not any(c.isascii() for c in lowered)
    return lowered if short or not index else f" {index}"


def grid_label(result: xr.Dataset, dim: Hashable) -> str:
    """`axis_label` of one axis of the grid.

    The axis towards a second checkpoint has one label for all pairs: `name` tells which they are.
    """
    if spec(result).get("to") and dim == result["measured"].dims[0]:
        return "fraction of the way to the second network"
    return axis_label(result[dim])


def _settings(result: xr.Dataset) -> dict[str, Any]:
    data = provenance(result).get("data") or {}
    checkpoint = provenance(result).get("checkpoint") or {}
    return spec(result) | {
        "data": data.get("name"),
        "split": data.get("split"),
        "examples": data.get("examples"),
        "SHA-256": str(checkpoint.get("sha256") or "")[:8] or None,
    }


def _attribute(result: xr.Dataset, key: str) -> dict[str, Any]:
    content = json.loads(result.attrs.get(key, "{}"))
    return content if isinstance(content, dict) else {}
