"""The endpoints of a study, and the values that result files hold for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import results
from analysis.stats.bootstrap import Average, Compare

Floats = NDArray[np.float64]
Role = Literal["baseline", "treatment", "control", "negative"]

SCHEMA_VERSION = 1
SAMPLES = ("example", "pair")  # dims whose entries are the samples of a seed
CHECKPOINT = "checkpoint"  # the probe of endpoints that are metrics of the checkpoint files
UNMEASURED = "not measured yet"
_NEAR = 0.01  # relative: a coordinate further from the one asked for is told


@dataclass(frozen=True)
class Endpoint:
    """One number that a claim is judged by, fixed before anything was measured.

    Args:
        claim: which.
        name: in words.
        probe: label of the probe in the study, or `checkpoint` for a metric of the checkpoint file.
        variable: of its result, or the metric.
        predicts: what the claim says of the treatment against the baseline.
        margin: the smallest effect that matters, in units of `compare`.
        compare: of the averages of two arms.
        average: over the samples of a seed. `fraction_below`: the fraction of all values, such as
            the points of a surface, below `level`.
        primary: whether it decides its claim.
        select: {name: value}: dims, or variables along a dim such as `kind`. A text selects what is
            named so, else what begins with it; a number the nearest. Dims that are neither
            selected nor samples are averaged over within each sample.
        level: for `fraction_below`.
        test: of the paired differences.
    """

    claim: str
    name: str
    probe: str
    variable: str
    predicts: Literal["lower", "higher"]
    margin: float
    compare: Compare
    average: Average | Literal["fraction_below"] = "mean"
    primary: bool = False
    select: Mapping[str, str | float] = field(default_factory=dict)
    level: float | None = None
    test: Literal["sign_flip"] = "sign_flip"

    @property
    def worst(self) -> float:
        """What a value that is NaN stands for: the worst by what the claim predicts."""
        return np.inf if self.predicts == "lower" else -np.inf


@dataclass(frozen=True)
class Arm:
    """Networks that differ by their seed alone."""

    name: str
    role: Role
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Missing:
    """A value that is not there.

    Args:
        arm, seed, probe: whose it would be.
        file: that would hold it.
        why: in a line.
        command: that makes it; empty where none is known.
    """

    arm: str
    seed: int
    probe: str
    file: str
    why: str
    command: str

    def __str__(self) -> str:
        told = f"{self.arm} seed {self.seed} is missing: {self.why}"
        return f"{told} Make it: {self.command}" if self.command else told


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


@dataclass(frozen=True)
class Study:
    """A folder of results, as its `study.json` describes it.

    Args:
        folder: of the results.
        title: in words.
        arms: in the study's order.
        endpoints: likewise.
        files: {(arm, seed, label): entry of the manifest}.
        metrics: {(arm, seed): what the checkpoint file says}.
        hashes: {(arm, seed): SHA-256 of the checkpoint file}.
        probes: {label: the study's table of that probe}.
        problems: {arm: the study's settings of network and data}.
    """

    folder: Path
    title: str
    arms: tuple[Arm, ...]
    endpoints: tuple[Endpoint, ...]
    files: Mapping[tuple[str, int, str], Mapping[str, Any]]
    metrics: Mapping[tuple[str, int], Mapping[str, float]]
    hashes: Mapping[tuple[str, int], str]
    probes: Mapping[str, Mapping[str, Any]]
    problems: Mapping[str, Mapping[str, Any]]

    def load(self, arm: str, seed: int, label: str, file: str) -> xr.Dataset:
        """One result file of a network, measured or partly so.

        Raises:
            ValueError: missing, damaged, of another schema, of another checkpoint, or measured
                otherwise than the study says.
        """
        result = results.load(self.folder / file)
        found = (results.provenance(result).get("checkpoint") or {}).get("sha256")
        named = self.hashes.get((arm, seed))
        if named and named != found:
            raise ValueError(
                f"{file}: was measured on the checkpoint {str(found)[:12]}, the study names "
                f"{named[:12]}. Delete it and measure it again."
            )
        for name, asked, stored in _settings(result, self.probes[label], self.problems[arm]):
            if not _same(asked, stored):
                raise ValueError(
                    f"{file}: was measured with {name} = {stored}, the study asks for {asked}. "
                    "Delete it and measure it again."
                )
        return result

    def copies(self, arm: str, seed: int) -> list[int]:
        """The seeds before this one whose checkpoint is the same file: copies, no seeds."""
        own = self.hashes.get((arm, seed))
        others = [other for (name, other) in self.hashes if name == arm and other < seed]
        return [other for other in others if own and self.hashes[arm, other] == own]

    def arms_of(self, role: Role) -> tuple[Arm, ...]:
        """Those that have this role."""
        return tuple(arm for arm in self.arms if arm.role == role)


def read(folder: str | Path) -> Study:
    """The study whose results lie in `folder`.

    Raises:
        ValueError: no `study.json` there, one that is damaged or of a newer schema, or a study
            with an endpoint or roles that do not fit.
    """
    path = Path(folder) / "study.json"
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such file. Give the folder that python -m landscape.study wrote."
        )
    again = "Run python -m landscape.study again with --amend: it keeps the results."
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged ({error}). {again}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema version is {version}, this toolkit reads {SCHEMA_VERSION}. "
            "Update the toolkit, or measure with this one."
        )
    try:
        tables = content["study"]
        arms = tuple(
            Arm(table["name"], table["role"], tuple(table["seeds"])) for table in tables["arms"]
        )
        endpoints = tuple(_endpoint(table, path) for table in tables["endpoints"])
        entries = [*content["results"], *content.get("missing", [])]
        files = {(row["arm"], row["seed"], row["probe"]): row for row in entries}
        metrics = {
            (row["arm"], row["seed"]): row.get("metrics") or {} for row in content["checkpoints"]
        }
        hashes = {
            (row["arm"], row["seed"]): str(row["sha256"])
            for row in content["checkpoints"]
            if row.get("sha256")
        }
        probes = {label: dict(table) for label, table in tables["probes"].items()}
        common = dict(tables.get("problem") or {})
        problems = {
            table["name"]: common | dict(table.get("problem") or {}) for table in tables["arms"]
        }
        _check_numbers(metrics.values())
        if not all(isinstance(told, dict) for told in content.get("amendments") or []):
            raise TypeError("amendments")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip("'")
        if reason.startswith(str(path)):  # an endpoint, told in full
            raise
        raise ValueError(f"{path}: damaged ({reason} is missing or wrong). {again}") from error
    title = str(content.get("title", ""))
    study = Study(Path(folder), title, arms, endpoints, files, metrics, hashes, probes, problems)
    roles: tuple[Role, ...] = ("baseline", "treatment")
    for role in roles:
        count = len(study.arms_of(role))
        if count != 1:
            raise ValueError(f"{path}: {count} arms have the role {role!r}; needed: exactly one.")
    return study


def _check_numbers(tables: Iterable[Mapping[str, Any]]) -> None:
    for table in tables:
        for name, value in table.items():
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise TypeError(f"metric {name} = {value!r}")


def _settings(
    result: xr.Dataset, probe: Mapping[str, Any], problem: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """(name, what the study asks for, what the file tells) of all that both speak of."""
    spec, told = results.spec(result), results.provenance(result)
    yield "probe", probe.get("probe"), result.attrs["probe"]
    for name, asked in probe.items():
        if name != "probe" and not (isinstance(asked, str) and "{next}" in asked):
            yield name, asked, spec.get(name)
    temperature, data = told.get("temperature") or {}, told.get("data") or {}
    if temperature:
        value = "fit" if "sha256" in temperature else temperature.get("value")
        yield "temperature", problem.get("temperature", 1), value
    stored = {
        "batch_norm": (told.get("batch_norm") or {}).get("policy"),
        "batch_size": told.get("batch_size"),
        "dtype": told.get("dtype"),
        "examples": data.get("examples"),
        "split": data.get("split"),
    }
    for name, value in stored.items():
        if name in problem and value is not None and problem[name] != 0:  # 0: all there are
            yield name, problem[name], value


def _same(asked: Any, stored: Any) -> bool:
    """Whether a file's setting is the study's; one value may stand for a list of equal ones."""
    if isinstance(stored, list) and not isinstance(asked, list):
        return all(entry == asked for entry in stored)
    return bool(asked == stored)


def _endpoint(table: Mapping[str, Any], path: Path) -> Endpoint:
    where = f"{path}: endpoint {table.get('name', '?')!r}"
    known = {member.name: member for member in fields(Endpoint)}
    unknown = [key for key in table if key not in known]
    absent = [
        name
        for name, member in known.items()
        if member.default is MISSING and member.default_factory is MISSING and name not in table
    ]
    if unknown or absent:
        told = f"has no key {unknown[0]!r}" if unknown else f"needs the key {absent[0]!r}"
        raise ValueError(f"{where} {told}. Known: {', '.join(known)}.")
    choices = {
        "predicts": ("lower", "higher"),
        "compare": ("log_ratio", "difference"),
        "average": ("mean", "log_mean", "median", "fraction_below"),
        "test": ("sign_flip",),
    }
    for key, allowed in choices.items():
        if table.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{where}: {key} = {table[key]!r}; needed: {', '.join(allowed)}.")
    if not 0 < table["margin"] < np.inf:
        raise ValueError(f"{where}: margin = {table['margin']}; needed: above 0 and finite.")
    if (table.get("average") == "fraction_below") != (table.get("level") is not None):
        raise ValueError(f"{where}: level goes with average = 'fraction_below', and only with it.")
    return Endpoint(**table)


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
                entry = study.files.get((arm.name, seed, label), {})
                file = str(entry.get("file", ""))
                command = str(entry.get("command", ""))
                result: xr.Dataset | str | None
                try:
                    reason = str(entry.get("reason", UNMEASURED))
                    for other in study.copies(arm.name, seed):
                        raise ValueError(f"its checkpoint is that of seed {other}: a copy.")
                    result = None if label == CHECKPOINT else _whole(study, entry, reason)
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
                            metrics = study.metrics.get((arm.name, seed), {})
                            found[key] = _metric(metrics, endpoint)
                    except ValueError as error:
                        why = " ".join(str(error).split())
                        missing[key] = Missing(arm.name, seed, label, file, why, command)
    return found, missing


def _metric(metrics: Mapping[str, float], endpoint: Endpoint) -> Samples:
    value = metrics.get(endpoint.variable)
    if value is None:
        raise ValueError(f"its checkpoint tells no {endpoint.variable}.")
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
    beside = [name for name in ("correct", "margin", "label", "sample") if name in result]
    chosen = result[[endpoint.variable, *beside]].isel(kept, missing_dims="ignore")
    variable = chosen[endpoint.variable]
    whole = np.asarray(variable.values, dtype=float)
    lost = int((~np.isfinite(whole)).sum())
    dim = next((name for name in SAMPLES if name in variable.dims), None)
    if endpoint.average == "fraction_below":
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
        entries = _names(result[name])
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


def _names(labels: xr.DataArray) -> NDArray[Any]:
    """The entries of a coordinate or a flag variable, flags by their meanings."""
    if "flag_meanings" not in labels.attrs:
        return np.asarray(labels.values)
    meanings = str(labels.attrs["flag_meanings"]).split()
    flags = np.atleast_1d(labels.attrs["flag_values"])
    named = dict(zip(map(int, flags), meanings, strict=True))
    return np.array([named.get(int(flag), str(flag)) for flag in labels.values])


def _correct(chosen: xr.Dataset, dim: str) -> NDArray[np.bool_] | None:
    if dim in chosen.get("correct", xr.DataArray()).dims:
        return np.asarray(chosen["correct"].values == 1)
    if "margin" in chosen and chosen["margin"].dims == (dim, "rank"):
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
