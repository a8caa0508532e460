"""A study's folder as the report sees it: what was planned, what is there, what is missing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xarray as xr

from analysis import endpoints
from analysis.endpoints import Missing, Study


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
            ValueError: `endpoints.read` refuses it.
        """
        study = endpoints.read(path)
        return cls(path, study, json.loads((path / "study.json").read_text()))

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
        """One record a result, measured or not: arm, seed, probe, file, command."""
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

        Those with endpoints the evaluation has read and told already.

        Cost: opens their files.
        """
        found = []
        judged = {endpoint.probe for endpoint in self.study.endpoints}
        for record in [told for told in self.planned if told["probe"] not in judged]:
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
