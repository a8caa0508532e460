"""A folder of a study's results: its files, the commands that make them, and `study.json`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from analysis import result_file, upgrade
from analysis.study import COST, MANIFEST, UNMEASURED, table_digest
from analysis.upgrade import SCHEMA_VERSION
from checkpoints import checkpoint, loading
from checkpoints.checkpoint import Checkpoint
from checkpoints.options import as_flags
from checkpoints.source import Source
from checkpoints.whole_file import whole
from landscape.registry import probe_named
from landscape.study.cost import cost
from landscape.study.file import NEXT, Networks, Study, stem


@dataclass(frozen=True)
class Network:
    """One network of a study: an arm and a seed.

    Args:
        arm: of networks that differ only in the seed.
        seed: its own.
        file: the checkpoint, as `--ckpt` takes it.
        options: of its problem.
    """

    arm: Networks
    seed: int
    file: str
    options: Mapping[str, Any]

    def result(self, label: str) -> str:
        """The name of a result file."""
        return f"{stem(self.arm.name)}-seed{self.seed}.{label}.h5"

    def is_there(self) -> bool:
        """Whether its checkpoint exists, or is made when the study is run."""
        if self.arm.model:
            return True
        try:
            checkpoint.find(self.file)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"


@dataclass(frozen=True)
class Run:
    """A study, with the folder and the device of its measurement."""

    study: Study
    out: Path
    device: torch.device

    def networks(self) -> list[Network]:
        """All networks, arm by arm."""
        return [
            Network(arm, seed, self._file(arm, seed), self.study.options(arm))
            for arm in self.study.arms
            for seed in arm.seeds
        ]

    def asked(self, network: Network, labels: Sequence[str]) -> list[str]:
        """Those of some probes that are measured on a network."""
        return [label for label in self.study.labels(network.arm) if label in labels]

    def _file(self, arm: Networks, seed: int) -> str:
        if arm.checkpoints:
            return self.study.checkpoint(arm.checkpoints, seed)
        return str(self.out / f"{stem(arm.name)}-seed{seed}.pt")

    def spec(self, network: Network, label: str) -> dict[str, Any]:
        """The options of a probe for one network."""
        _, values = self.study.probes[label]
        seeds = network.arm.seeds
        following = self._file(network.arm, seeds[(seeds.index(network.seed) + 1) % len(seeds)])
        return {
            key: value.replace(NEXT, following) if isinstance(value, str) else value
            for key, value in values.items()
        }

    def command(self, network: Network, label: str) -> str:
        """The command for one result, to be run in the folder of the study."""
        words = ["python", "-m", f"landscape.{self.study.probes[label][0]}"]
        words += ["--ckpt", network.file, "--out", str(self.out / network.result(label))]
        words += ["--no-figure", "--device", str(self.device)]
        words += as_flags(Source, network.options)
        words += as_flags(probe_named(self.study.probes[label][0]).spec, self.spec(network, label))
        return shlex.join(words)


class Manifest:
    """`study.json`: the contents of a folder of results, rewritten as a whole at every change.

    Every write looks for results on disk, so several processes may share a folder. The reason for a
    missing result stays until the result is measured or checked again.

    Args:
        task: the study.
    """

    def __init__(self, task: Run) -> None:
        self.task, self.path = task, task.out / MANIFEST
        self._checkpoints: list[dict[str, Any]] = []
        self._amendments: list[dict[str, Any]] = []
        self._reasons: dict[str, str] = {}  # why a result is missing; "" if this run has seen it
        self._seen: dict[Path, tuple[int, int]] = {}
        self._costs: dict[str, dict[str, float]] = {}  # by SHA-256: measured once

    def begin(self, *, amend: bool) -> None:
        """Compare the study with the one for which the folder was begun.

        Raises:
            ValueError: it has changed, and `amend` does not say that it may.
        """
        content = json.loads(json.dumps(self.task.study.content, default=str))
        stored = self._stored()
        version = stored.get("schema_version", SCHEMA_VERSION)
        if version not in range(1, SCHEMA_VERSION + 1):
            raise ValueError(
                f"{self.path} has schema version {version}; this version reads {SCHEMA_VERSION}. "
                "Update cnn-landscape, or pass --out with a new folder."
            )
        with suppress(KeyError, TypeError, AttributeError):  # damaged: compared as it is
            stored = upgrade.study(stored)
        self._amendments = stored.get("amendments", [])
        self._costs = {
            row["sha256"]: row[COST] for row in stored.get("checkpoints", []) if row.get(COST)
        }
        changes = list(_changes(stored.get("study", content), content))
        if self.path.is_file() and "study" not in stored:
            changes = [f"{MANIFEST} was damaged: with which study it began is not known"]
        if changes and not amend:
            raise ValueError(
                f"{self.task.out} was begun with another study, or may have been: "
                f"{_short(changes[0])}. Pass --out with a new folder, or --amend to go on and have "
                "the change recorded."
            )
        if changes:
            was = stored.get("study_sha256", "")
            self._amendments = [*self._amendments, {"study_sha256": was, "changes": changes}]
            for network, label in self._all():
                self._reasons[network.result(label)] = "not checked since the study was amended"

    def describe(self, network: Network) -> None:
        """Record a network's description from its checkpoint.

        Raises:
            ValueError: no checkpoint, or that of another seed: a copy is not another seed.
        """
        record, loaded = _described(network)
        for other in self._checkpoints:
            if (other["arm"], other["sha256"]) == (record["arm"], record["sha256"]):
                raise ValueError(
                    f"{network.file} is the checkpoint of seed {other['seed']} as well; expected "
                    "for each seed one that was trained with it."
                )
        if any(endpoint.probe == COST for endpoint in self.task.study.endpoints):
            if loaded.sha256 not in self._costs:
                made = cost(loaded.network(), loaded.input_shape, self.task.device)
                self._costs[loaded.sha256] = made
            record[COST] = self._costs[loaded.sha256]
        self._checkpoints.append(record)

    def tell(self, network: Network, label: str, reason: str) -> None:
        """Record why a result is missing; with an empty reason, that it exists."""
        self._reasons[network.result(label)] = reason

    def write(self) -> None:
        """Write the present state."""
        results: list[dict[str, Any]] = []
        missing: list[dict[str, Any]] = []
        stored = {row["file"]: row["reason"] for row in self._stored().get("missing", [])}
        reasons = {k: v for k, v in stored.items() if v != UNMEASURED} | self._reasons
        for network, label in self._all():
            file = network.result(label)
            row = {
                "arm": network.arm.name,
                "seed": network.seed,
                "probe": label,
                "file": file,
                "command": self.task.command(network, label),
            }
            if not reasons.get(file) and self._finished(self.task.out / file):
                results.append(row | {"sha256": _digest(self.task.out / file)})
            else:
                missing.append(row | {"reason": reasons.get(file) or UNMEASURED})
        study = self.task.study
        content = {
            "schema_version": SCHEMA_VERSION,
            "title": study.title,
            "study": study.content,
            "study_sha256": study.sha256,
            "study_table_sha256": table_digest(json.loads(json.dumps(study.content, default=str))),
            "amendments": self._amendments,
            "checkpoints": self._checkpoints,
            "results": results,
            "missing": missing,
        }
        with whole(self.path) as written:
            written.write_text(json.dumps(content, indent=1, default=str) + "\n")

    def _all(self) -> Iterator[tuple[Network, str]]:
        for network in self.task.networks():
            yield from ((network, label) for label in self.task.study.labels(network.arm))

    def _finished(self, path: Path) -> bool:
        """`finished`, cached until the file changes."""
        if not path.is_file():
            return False
        status = path.stat()
        signature = (status.st_mtime_ns, status.st_size)
        if self._seen.get(path) != signature:
            if not finished(path):
                return False
            self._seen[path] = signature
        return True

    def _stored(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError):  # none yet, or damaged
            return {}
        return content if isinstance(content, dict) else {}


def _digest(path: Path) -> str:
    """The checksum that a result file carries; empty in the first schema."""
    return str(result_file.outlined(path)[0].get(result_file.DIGEST, ""))


def finished(path: Path) -> bool:
    """Whether a result file exists, is intact, and has every cell measured."""
    try:
        mask = result_file.values(path, "measured")
    except (OSError, ValueError):
        return False
    return bool((mask == 1).all())


def _described(network: Network) -> tuple[dict[str, Any], Checkpoint]:
    wanted = {
        k: network.options[k]
        for k in ("model", "options", "mean", "std", "data")
        if k in network.options
    }
    loaded = loading.load(network.file, **wanted)
    record = {
        "arm": network.arm.name,
        "seed": network.seed,
        "file": network.file,
        "sha256": loaded.sha256,
        "model": loaded.model,
        "options": dict(loaded.options),
        "recipe": dict(loaded.recipe),
        "metrics": dict(loaded.metrics),
        "parameters": sum(p.numel() for p in loaded.network().parameters()),
    }
    return record, loaded


def _changes(was: Any, now: Any, where: str = "") -> Iterator[str]:
    """The differences between two studies, one line each."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(set(now) - set(was))]:
            yield from _changes(was.get(key), now.get(key), f"{where}.{key}".lstrip("."))
    elif _named(was) and _named(now):
        pairs = [{table["name"]: table for table in tables} for tables in (was, now)]
        yield from _changes(pairs[0], pairs[1], where)
        order = [[name for name in each if name in other] for each, other in (pairs, pairs[::-1])]
        if order[0] != order[1]:
            yield f"{where} are in another order"
    elif was != now:
        yield f"{where} was {_text(was)}, now {_text(now)}"


def _named(tables: Any) -> bool:
    return isinstance(tables, list) and all(
        isinstance(table, dict) and "name" in table for table in tables
    )


def _text(value: Any) -> str:
    return "not there" if value is None else json.dumps(value, default=str)


def _short(text: str) -> str:
    return text if len(text) < 200 else f"{text[:197]}..."
