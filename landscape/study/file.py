"""A study file: its networks, its probes, and the endpoints, which are fixed before measuring."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from analysis import upgrade
from analysis.contrasts import Design
from analysis.study import (
    ARMS,
    CHECKPOINT,
    COST,
    Arm,
    Endpoint,
    check_endpoints,
    check_roles,
    weights_of,
)
from checkpoints import network_file
from checkpoints.options import LARGEST_SEED, as_arguments, built, checked
from checkpoints.registry import MODELS, check_data_name
from checkpoints.source import Source
from landscape.registry import probe_named

SUFFIX = ".toml"
NEXT = "{next}"  # in a probe's texts: the checkpoint of the arm's next seed
# The command line times batch sizes; a study fixes one to be reproducible.
DEFAULTS: dict[str, Any] = {"examples": 300, "batch_size": 100}
OPTIONS = {
    name: annotation
    for name, annotation in typing.get_type_hints(Source).items()
    if name not in ("ckpt", "device")
}
SHAPE: dict[str, Any] = {
    "title": str,
    "problem": Mapping[str, Any],
    "arms": list[Mapping[str, Any]],
    "probes": Mapping[str, Any],
    "endpoints": list[Mapping[str, Any]],
    "design": Mapping[str, Any],
    "contrasts": Mapping[str, Mapping[str, float]],
    "claims": Mapping[str, str],
}


@dataclass(frozen=True)
class Networks(Arm):
    """An arm, and where its networks come from.

    Args:
        checkpoints: their files, with `{seed}` in the name.
        model: for role `negative`: the model that is initialised, but not trained.
        options: of that model.
        reference: a checkpoint with the data, normalisation and classes for an untrained network.
        problem: replacements of entries of `[problem]` for this arm.
    """

    checkpoints: str = ""
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    problem: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study as described by its file, checked.

    Args:
        name: of the file, without its suffix.
        folder: of the file, which is searched first for its checkpoints.
        sha256: of the bytes of the file and its base.
        content: the file's tables, including the base's, for the record; the arms of its design
            among the others.
        title: in words.
        problem: fields of `Source`.
        arms: the networks.
        probes: {label: (probe, fields of its Spec)}.
        endpoints: in the file's order.
        only: {label: names of the arms that it is measured on}, of probes that name some.
    """

    name: str
    folder: Path
    sha256: str
    content: Mapping[str, Any]
    title: str
    problem: Mapping[str, Any]
    arms: tuple[Networks, ...]
    probes: Mapping[str, tuple[str, Mapping[str, Any]]]
    endpoints: tuple[Endpoint, ...]
    only: Mapping[str, tuple[str, ...]]

    def labels(self, arm: Networks) -> list[str]:
        """The probes that are measured on an arm."""
        return [label for label in self.probes if arm.name in self.only.get(label, (arm.name,))]

    def options(self, arm: Networks) -> dict[str, Any]:
        """The problem of an arm's networks."""
        return {**DEFAULTS, **self.problem, **arm.problem}

    def checkpoint(self, template: str, seed: int) -> str:
        """The name of a checkpoint: next to the study file, otherwise as on the command line."""
        name = template.replace("{seed}", str(seed))
        neighbour = self.folder / name
        return str(neighbour) if neighbour.is_file() else name


def find(name: str) -> Path:
    """The study called `name`: a path, else one that ships in `landscape/studies/`.

    Raises:
        ValueError: neither is there.
    """
    if (path := Path(name)).is_file():
        return path
    folder = Path(str(resources.files("landscape"))) / "studies"
    shipped = folder / f"{name.removesuffix(SUFFIX)}{SUFFIX}"
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(file.stem for file in folder.glob(f"*{SUFFIX}")))
    raise ValueError(f"{name}: no such file, nor a study that ships (there are: {known}).")


def read(name: str) -> Study:
    """The study called `name`, every table of it checked.

    Only the file is read: neither the existence of the checkpoints is checked, nor what depends on
    a network or its data.

    Raises:
        ValueError: one line, with the table and the key, and what was expected there.
    """
    path = find(name)
    content, text = _loaded(path)
    digest = hashlib.sha256(text).hexdigest()
    return Study(path.stem, path.parent, digest, **_checked_study(content, path))


def _loaded(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], bytes]:
    """A file's tables merged into those of the study that it is based on, and the bytes of both.

    Args:
        path: of the file.
        above: the files that are based on this one.
    """
    text = path.read_bytes()
    try:
        own = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}.") from error
    if "base" not in own:
        return upgrade.tables(own), text
    chain = (*above, path.resolve())
    try:
        name = checked(own, "the file", SHAPE | {"base": str}).pop("base")
        neighbour = path.parent / name
        file = find(str(neighbour) if neighbour.is_file() else name).resolve()
        if file in chain:
            raise ValueError(f"base = {name!r} leads back to the file itself.")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    base, below = _loaded(file, chain)
    _checked_study(base, file)
    try:
        return upgrade.tables(_over(base, own)), text + below
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The tables of a file, merged into those of its base.

    A key replaces the base's key: in `[problem]` and in each probe one by one, elsewhere the whole
    list. A probe that is `false` is left out with its endpoints.
    """
    merged = base | {key: value for key, value in own.items() if key != "base"}
    merged["problem"] = base.get("problem", {}) | own.get("problem", {})
    probes = dict(base["probes"])
    for label, table in own.get("probes", {}).items():
        both = isinstance(table, dict) and label in probes
        probes[label] = probes[label] | table if both else table
        if table is False and label not in base["probes"]:
            raise ValueError(f"[probes] {label} = false; its base has no such probe.")
    out = [label for label, table in probes.items() if table is False]
    merged["probes"] = {label: table for label, table in probes.items() if label not in out}
    if "endpoints" not in own:
        merged["endpoints"] = [e for e in base["endpoints"] if e["probe"] not in out]
        claims = [{e["claim"] for e in each["endpoints"]} for each in (base, merged)]
        if lost := sorted(claims[0] - claims[1]):
            raise ValueError(
                f"[probes] false leaves claim {lost[0]!r} without an endpoint, and the others with "
                "a weaker correction; expected [[endpoints]] of your own."
            )
    return merged


def _checked_study(content: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        return _study(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _study(content: dict[str, Any]) -> dict[str, Any]:
    top = checked(content, "the file", SHAPE, required=("title", "probes", "endpoints"))
    design = built(Design, top["design"], "design") if "design" in top else None
    tables = [*(design.arms() if design else ()), *top.get("arms", ())]
    if not tables:
        raise ValueError("[the file] arms is missing; expected [[arms]], a [design], or both.")
    arms = tuple(built(Networks, table, f"arms {i}") for i, table in enumerate(tables, 1))
    only = {label: _arms_of(label, table, arms) for label, table in top["probes"].items()}
    probes = {label: _probe(label, table) for label, table in top["probes"].items()}
    endpoints = tuple(
        built(Endpoint, table, f"endpoints {i}") for i, table in enumerate(top["endpoints"], 1)
    )
    problem = _problem(top.get("problem", {}), "problem")
    arms = tuple(
        dataclasses.replace(arm, problem=_problem(arm.problem, f"arms {i}.problem"))
        for i, arm in enumerate(arms, 1)
    )
    _check_arms(arms)
    _check_next(arms, probes)
    check_roles(arms, endpoints)
    check_endpoints(endpoints, probes, top.get("claims", {}))
    weights = weights_of(endpoints, arms, top.get("contrasts", {}), design)
    for number, endpoint in enumerate(endpoints, 1):
        asked = weights.get(endpoint.name, ())
        if lost := [name for name in asked if name not in (only.get(endpoint.probe) or asked)]:
            raise ValueError(
                f"[endpoints {number}] contrast has arm {lost[0]!r}, on which {endpoint.probe} is "
                f"not measured; expected it in [probes.{endpoint.probe}] arms."
            )
    return {
        "content": {**content, "arms": tables} if design else content,
        "title": top["title"],
        "problem": problem,
        "arms": arms,
        "probes": probes,
        "endpoints": endpoints,
        "only": {label: names for label, names in only.items() if names},
    }


def _arms_of(label: str, table: Any, arms: tuple[Networks, ...]) -> tuple[str, ...]:
    """The arms that a probe names; none: all."""
    named = table.get(ARMS, []) if isinstance(table, dict) else []
    known = [arm.name for arm in arms]
    names = checked({ARMS: named}, f"probes.{label}", {ARMS: tuple[str, ...]})[ARMS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"[probes.{label}] arms: {unknown[0]!r}; expected some of {', '.join(known)}."
        )
    return tuple(names)


def _problem(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a `Source`, of the right types and within their bounds."""
    values = checked(table, where, OPTIONS)
    try:
        Source(**values)
        if "data" in values:
            check_data_name(values["data"])
        if values.get("model") in MODELS:
            network_file.outline(values["model"], values.get("options", {}))
    except ValueError as error:
        raise ValueError(f"[{where}] {as_arguments(str(error))}") from error
    return values


def _probe(label: str, table: Any) -> tuple[str, dict[str, Any]]:
    where = f"probes.{label}"
    if not re.fullmatch(r"[\w-]+", label) or label in (CHECKPOINT, COST):
        raise ValueError(
            f"[{where}]; expected a label of letters, digits, - and _, other than checkpoint and "
            "cost."
        )
    if not isinstance(table, dict) or not isinstance(table.get("probe"), str):
        raise ValueError(f"[{where}] probe is missing; expected the name of a probe.")
    try:
        spec = probe_named(table["probe"]).spec
    except ValueError as error:
        raise ValueError(f"[{where}] probe: {error}") from error
    hints = typing.get_type_hints(spec)
    names = [option.name for option in fields(spec) if "help" in option.metadata]
    given = {key: value for key, value in table.items() if key not in ("probe", ARMS)}
    values = checked(given, where, {name: hints[name] for name in names})
    try:
        spec(**values)
    except ValueError as error:
        raise ValueError(f"[{where}] {as_arguments(str(error))}") from error
    return table["probe"], values


def _check_arms(arms: tuple[Networks, ...]) -> None:
    for number, arm in enumerate(arms):
        where = f"[arms {number + 1}]"
        if not re.fullmatch(r"\w[\w .+-]*", arm.name):
            raise ValueError(
                f"{where} name = {arm.name!r}; expected letters, digits, spaces and . + - _, since "
                "files are named after it."
            )
        seeds = [seed for seed in arm.seeds if 0 <= seed <= LARGEST_SEED]
        if not seeds or len(set(seeds)) < len(arm.seeds):
            raise ValueError(
                f"{where} seeds = {list(arm.seeds)}; expected one or more, each once, from 0 to "
                f"{LARGEST_SEED}."
            )
        if bool(arm.checkpoints) == bool(arm.model):
            raise ValueError(f"{where} needs either checkpoints, or a model that is not trained.")
        if arm.model and (arm.role != "negative" or not arm.reference):
            raise ValueError(
                f"{where} model = {arm.model!r}; expected role = 'negative', and as reference a "
                "checkpoint that tells data and normalisation."
            )
        if arm.model in MODELS:
            try:
                network_file.outline(arm.model, arm.options)
            except ValueError as error:
                raise ValueError(f"{where} {error}") from error
        if arm.checkpoints and (arm.options or arm.reference):
            raise ValueError(f"{where} options and reference are for a model that is not trained.")
        if arm.checkpoints and len(arm.seeds) > 1 and "{seed}" not in arm.checkpoints:
            raise ValueError(
                f"{where} checkpoints = {arm.checkpoints!r}; expected {{seed}} in it, since there "
                f"are {len(arm.seeds)} seeds."
            )
    stems = [stem(arm.name) for arm in arms]
    twice = {name for name in stems if stems.count(name) > 1}
    if twice:
        raise ValueError(f"[arms]: {sorted(twice)[0]} is the name of two; expected one each.")


def _check_next(arms: tuple[Networks, ...], probes: Mapping[str, Any]) -> None:
    for label, (_, values) in probes.items():
        single = [arm.name for arm in arms if len(arm.seeds) == 1]
        if single and any(NEXT in value for value in values.values() if isinstance(value, str)):
            raise ValueError(
                f"[probes.{label}] {NEXT}; expected two seeds or more in every arm, "
                f"{single[0]!r} has one."
            )


def stem(arm: str) -> str:
    """An arm's name in names of files."""
    return arm.replace(" ", "-")
