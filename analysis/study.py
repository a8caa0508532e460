"""A study that was measured: its arms, its endpoints, and the folder of its results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import xarray as xr

from analysis import results, upgrade
from analysis.contrasts import Design, Weights, resolved
from analysis.stats.bootstrap import AVERAGES, Compare
from analysis.upgrade import SCHEMA_VERSION

CLAIMS = {
    "near": "Smoother near real samples",
    "between": "More predictive and stable between real samples",
    "weights": "Smoother in the weights",
    "generalises": "Generalises better",
}
Role = Literal["baseline", "treatment", "control", "negative", "arm"]
SAMPLES = ("example", "pair")  # dims whose entries are the samples of a seed
CHECKPOINT = "checkpoint"  # the probe of endpoints that are metrics of the checkpoint files
COST = "cost"  # the probe of endpoints that are what a network's forward pass costs
MANIFEST = "study.json"
UNMEASURED = "not measured yet"
ARMS = "arms"  # in a probe's table: those that it is measured on; left out: all
FRACTION_BELOW = "fraction_below"  # of all values, not an average over samples


@dataclass(frozen=True)
class Endpoint:
    """One number that a claim is judged by, fixed before anything was measured.

    Args:
        claim: which.
        name: in words.
        probe: label of the probe in the study, or `checkpoint` for a metric of the checkpoint file.
        variable: of its result, or the metric.
        predicts: what the claim says of the effect: `lower` or `higher` than 0, by a test that also
            tells effects within the margin; `above` or `below` the margin; `within` it, on both
            sides of 0.
        margin: in units of `compare`. For `lower`, `higher` and `within` the smallest effect that
            matters, above 0; for `above` and `below` any number.
        compare: of the averages of the arms: their differences, or those of their logarithms.
        average: over the samples of a seed, a name in `AVERAGES`; or `fraction_below`, the fraction
            of all values, such as the points of a surface, below `level`.
        primary: whether it decides its claim.
        select: {name: value}: dims, or variables along a dim such as `kind`. A text selects what is
            named so, else what begins with it; a number the nearest. Dims that are neither
            selected nor samples are averaged over within each sample.
        level: for `fraction_below`, in the variable's unit.
        test: of the paired differences: the exact `sign_flip`, or Student's `t`, which assumes that
            they are normal over seeds and can decide with fewer of them.
        contrast: {arm or name in the study's contrasts: weight}, whose sum is the effect; empty:
            treatment less baseline.

    Raises:
        ValueError: an average that there is not, a margin that is none, a level without need, a
            prediction about a margin without a contrast.
    """

    claim: str
    name: str
    probe: str
    variable: str
    predicts: Literal["lower", "higher", "above", "below", "within"]
    margin: float
    compare: Compare
    average: str = "mean"
    primary: bool = False
    select: Mapping[str, str | int | float] = field(default_factory=dict)
    level: float | None = None
    test: Literal["sign_flip", "t"] = "sign_flip"
    contrast: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = (*AVERAGES, FRACTION_BELOW)
        if self.average not in known:
            raise ValueError(f"average = {self.average!r}; expected {', '.join(known)}.")
        if not (self.margin > 0 or self.predicts in ("above", "below")) or np.isinf(self.margin):
            raise ValueError(f"margin = {self.margin}; expected above 0 and finite.")
        if self.predicts not in ("lower", "higher") and not self.contrast:
            raise ValueError(f"predicts = {self.predicts!r} needs a contrast of arms.")
        if (self.average == FRACTION_BELOW) != (self.level is not None):
            raise ValueError(
                f"level goes with average = {FRACTION_BELOW!r}, and only with it; average is "
                f"{self.average!r}."
            )

    @property
    def null(self) -> float:
        """The effect that its test is about."""
        return self.margin if self.predicts in ("above", "below") else 0.0

    @property
    def worst(self) -> float:
        """What a value that is NaN stands for: the worst by what the claim predicts."""
        return np.inf if self.predicts in ("lower", "below") else -np.inf


@dataclass(frozen=True)
class Arm:
    """Networks that differ by their seed alone.

    Args:
        name: as figures and verdicts call it.
        seeds: one network each; seeds of equal number are a pair across arms.
        role: what it is compared as; `arm`: as contrasts say.
        about: what these networks are, for the glossary of the report.
    """

    name: str
    seeds: tuple[int, ...]
    role: Role = "arm"
    about: str = ""


def check_roles(arms: Sequence[Arm], endpoints: Iterable[Endpoint]) -> None:
    """Refuse arms that are not one baseline, one treatment, and others, where endpoints need them.

    Raises:
        ValueError: one line.
    """
    if all(endpoint.contrast for endpoint in endpoints):
        return
    roles: tuple[Role, ...] = ("baseline", "treatment")
    for role in roles:
        count = sum(arm.role == role for arm in arms)
        if count != 1:
            raise ValueError(f"[arms]: {count} have the role {role!r}; expected exactly one.")


def check_endpoints(
    endpoints: Sequence[Endpoint], probes: Collection[str], claims: Mapping[str, str]
) -> None:
    """Refuse endpoints that do not decide their claims.

    Args:
        endpoints: of one study.
        probes: labels of its probes.
        claims: {name: title} of those that its file states itself; these may have several primary
            endpoints, which must all hold.

    Raises:
        ValueError: one line: an unknown claim; an endpoint of no probe of the study; two of one
            name; a claim without exactly one primary endpoint.
    """
    known = [*probes, CHECKPOINT, COST]
    for number, endpoint in enumerate(endpoints, 1):
        if endpoint.claim not in (*claims, *CLAIMS):
            raise ValueError(
                f"[endpoints {number}] claim = {endpoint.claim!r}; expected "
                f"{', '.join(map(repr, (*claims, *CLAIMS)))}."
            )
        if endpoint.probe not in known:
            raise ValueError(
                f"[endpoints {number}] probe = {endpoint.probe!r}; expected a label in [probes] or "
                f"{CHECKPOINT} ({', '.join(known)})."
            )
    names = [endpoint.name for endpoint in endpoints]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"[endpoints]: {twice[0]!r} is the name of two; expected one each.")
    for claim in dict.fromkeys(endpoint.claim for endpoint in endpoints):
        primary = sum(e.primary for e in endpoints if e.claim == claim)
        if primary < 1 or (primary > 1 and claim not in claims):
            expected = "one or more" if claim in claims else "exactly one"
            raise ValueError(
                f"[endpoints]: {primary} of claim {claim!r} are primary; expected {expected}."
            )


def weights_of(
    endpoints: Sequence[Endpoint],
    arms: Sequence[Arm],
    named: Mapping[str, Mapping[str, float]],
    design: Design | None,
) -> dict[str, Weights]:
    """{endpoint: {arm: weight}} of those that have a contrast.

    Args:
        endpoints: of one study.
        arms: likewise.
        named: its contrasts by name.
        design: whose main effects and interactions may be named too.

    Raises:
        ValueError: one line: an arm or contrast that there is not, or weights that do not sum to 0.
    """
    known = {**(design.effects if design else {}), **named}
    names = [arm.name for arm in arms]
    found = {}
    for number, endpoint in enumerate(endpoints, 1):
        if endpoint.contrast:
            try:
                found[endpoint.name] = resolved(endpoint.contrast, known, names)
            except ValueError as error:
                raise ValueError(f"[endpoints {number}] {error}") from error
    if design and design.base not in names:
        raise ValueError(
            f"[design] reference = {design.reference!r}; expected an arm ({', '.join(names)})."
        )
    return found


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
        text = f"{self.arm} seed {self.seed} is missing: {self.why}"
        return f"{text} Make it: {self.command}" if self.command else text


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
        manifest: all that `study.json` holds.
        claims: {name: title}, of all that endpoints may name.
        weights: {endpoint: {arm: weight}}, of those with a contrast.
        costs: {(arm, seed): what a forward pass takes}, where it was measured.
        design: the factorial that some of the arms are of.
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
    manifest: Mapping[str, Any]
    claims: Mapping[str, str]
    weights: Mapping[str, Weights]
    costs: Mapping[tuple[str, int], Mapping[str, float]]
    design: Design | None

    def measures(self, label: str, arm: str) -> bool:
        """Whether a probe of the study is for this arm."""
        only = self.probes.get(label, {}).get(ARMS, ())
        return not only or arm in only

    def load(self, arm: str, seed: int, label: str, file: str) -> xr.Dataset:
        """One result file of a network, measured or partly so.

        Raises:
            ValueError: missing, damaged, of another schema, of another checkpoint, or measured
                otherwise than the study says.
        """
        result = results.load(self.folder / file)
        recorded = self.files.get((arm, seed, label), {}).get("sha256")
        if recorded and recorded != result.encoding.get("sha256"):
            raise ValueError(
                f"{file}: is not the file that the study measured (its checksum is another). Run "
                "python -m landscape.study again, which records it if it is right."
            )
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
    path = Path(folder) / MANIFEST
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
    if version not in range(1, SCHEMA_VERSION + 1):
        raise ValueError(
            f"{path}: schema version is {version}, this toolkit reads 1 to {SCHEMA_VERSION}. "
            "Update the toolkit, or measure with this one."
        )
    recorded = content.get("study_table_sha256")
    if recorded and recorded != table_digest(content.get("study")):
        raise ValueError(
            f"{path}: its study table was edited after it was written (it does not fit its "
            "checksum). Change the study file instead, and pass --amend to python -m "
            "landscape.study, which records the change."
        )
    try:
        content = upgrade.study(content)
        tables = content["study"]
        arms = tuple(
            Arm(
                table["name"],
                tuple(table["seeds"]),
                table.get("role", "arm"),
                str(table.get("about", "")),
            )
            for table in tables["arms"]
        )
        endpoints = tuple(
            _endpoint(number, table) for number, table in enumerate(tables["endpoints"], 1)
        )
        entries = [*content["results"], *content.get("missing", [])]
        files = {(row["arm"], row["seed"], row["probe"]): row for row in entries}
        metrics, costs = (
            {(row["arm"], row["seed"]): row.get(key) or {} for row in content["checkpoints"]}
            for key in ("metrics", COST)
        )
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
        claims = {**CLAIMS, **tables.get("claims", {})}
        design = _design(tables.get("design"))
        _check_numbers([*metrics.values(), *costs.values()])
        if not all(isinstance(row, dict) for row in content.get("amendments") or []):
            raise TypeError("amendments")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip("'")
        if reason.startswith("["):  # an endpoint, with what is wrong
            raise ValueError(f"{path}: {reason}") from error
        raise ValueError(f"{path}: damaged ({reason} is missing or wrong). {again}") from error
    try:
        check_roles(arms, endpoints)
        weights = weights_of(endpoints, arms, tables.get("contrasts", {}), design)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Study(
        folder=Path(folder),
        title=str(content.get("title", "")),
        arms=arms,
        endpoints=endpoints,
        files=files,
        metrics=metrics,
        hashes=hashes,
        probes=probes,
        problems=problems,
        manifest=content,
        claims=claims,
        weights=weights,
        costs=costs,
        design=design,
    )


def _design(table: Mapping[str, Any] | None) -> Design | None:
    if table is None:
        return None
    lists = {key: tuple(table[key]) for key in ("factors", "seeds")}
    return Design(**{**table, **lists})


def table_digest(table: Any) -> str:
    """SHA-256 of the study table of a `study.json`."""
    return hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()


def _check_numbers(tables: Iterable[Mapping[str, Any]]) -> None:
    for table in tables:
        for name, value in table.items():
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise TypeError(f"metric {name} = {value!r}")


def _settings(
    result: xr.Dataset, probe: Mapping[str, Any], problem: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """(name, what the study asks for, what the file tells) of all that both speak of."""
    spec, provenance = results.spec(result), results.provenance(result)
    yield "probe", probe.get("probe"), result.attrs["probe"]
    for name, asked in probe.items():
        if name not in ("probe", ARMS) and not (isinstance(asked, str) and "{next}" in asked):
            yield name, asked, spec.get(name)
    temperature, data = provenance.get("temperature") or {}, provenance.get("data") or {}
    if temperature:
        value = "fit" if "sha256" in temperature else temperature.get("value")
        yield "temperature", problem.get("temperature", 1), value
    stored = {
        "batch_norm": (provenance.get("batch_norm") or {}).get("policy"),
        "batch_size": provenance.get("batch_size"),
        "dtype": provenance.get("dtype"),
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


def _endpoint(number: int, table: Mapping[str, Any]) -> Endpoint:
    hints = {member.name: member for member in fields(Endpoint)}
    where = f"[endpoints {number}]"
    unknown = [key for key in table if key not in hints]
    absent = [key for key, member in hints.items() if _required(member) and key not in table]
    if unknown or absent:
        fault = f"has no key {unknown[0]!r}" if unknown else f"needs the key {absent[0]!r}"
        raise ValueError(f"{where} {fault}. Known: {', '.join(hints)}.")
    for key, kind in get_type_hints(Endpoint).items():
        allowed = get_args(kind) if get_origin(kind) is Literal else ()
        if allowed and key in table and table[key] not in allowed:
            raise ValueError(f"{where} {key} = {table[key]!r}; expected {', '.join(allowed)}.")
    try:
        return Endpoint(**table)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error


def _required(member: Field[Any]) -> bool:
    return member.default is MISSING and member.default_factory is MISSING


@dataclass(frozen=True, eq=False)
class Folder:
    """The results of one study.

    Args:
        path: of the folder.
        study: as its endpoints need it.
        manifest: all that `study.json` holds.
    """

    path: Path
    study: Study
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Read `study.json`.

        Raises:
            ValueError: `read` refuses it.
        """
        study = read(path)
        return cls(path, study, dict(study.manifest))

    @property
    def title(self) -> str:
        """Of the study."""
        return self.study.title or self.path.name

    @property
    def probes(self) -> list[str]:
        """Labels of the probes, in the study's order."""
        return list((self.manifest.get("study") or {}).get("probes") or {})

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """One record a checkpoint."""
        return list(self.manifest.get("checkpoints") or [])

    @property
    def planned(self) -> list[dict[str, Any]]:
        """One record per result, measured or not: arm, seed, probe, file, command."""
        return [dict(record) for record in self.study.files.values()]

    def load(self, record: dict[str, Any]) -> xr.Dataset:
        """One result.

        Raises:
            ValueError: missing, damaged, of another schema, or of another checkpoint.
        """
        return self.study.load(record["arm"], record["seed"], record["probe"], record["file"])

    @cached_property
    def missing(self) -> list[Missing]:
        """Every planned result that cannot be used, or is not finished, of probes without endpoint.

        The evaluation has reported those with endpoints already.

        Cost: opens their files.
        """
        found = []
        judged = {endpoint.probe for endpoint in self.study.endpoints}
        for record in [row for row in self.planned if row["probe"] not in judged]:
            why = ""
            try:
                measured = self.load(record)["measured"]
                if int(measured.sum()) < measured.size:
                    why = f"incomplete: {int(measured.sum())} of {measured.size} parts measured"
            except ValueError as error:
                there = (self.path / record["file"]).is_file()
                untold = str(record.get("reason") or "not there")
                why = str(error).replace(f"{self.path}/", "") if there else untold
            if why:
                about = {key: record[key] for key in ("arm", "seed", "probe", "file")}
                found.append(Missing(**about, why=why, command=str(record.get("command", ""))))
        return found
