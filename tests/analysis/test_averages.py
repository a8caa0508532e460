"""A new average takes one entry of one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import results
from analysis.claims import evaluate
from analysis.stats import bootstrap
from analysis.study import Endpoint
from landscape.study.file import read as read_study_file
from tests.analysis.planted import planted


def test_an_average_is_one_entry_of_one_table(
    surface: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Study files, verdicts and notes know it, and the effect is the one that it gives."""

    def largest(values: Any) -> Any:
        return np.asarray(values.max(axis=-1))

    with pytest.raises(ValueError, match="average = 'largest'; expected mean, log_mean, median, "):
        Endpoint("near", "n", "near", "gradient_l2", "lower", 0.1, "log_ratio", "largest")
    monkeypatch.setitem(bootstrap.AVERAGES, "largest", bootstrap.Average("largest", largest))
    folder = planted(tmp_path, surface)
    path = folder / "study.json"
    content = json.loads(path.read_text())
    content["study"]["endpoints"][0]["average"] = "largest"
    path.write_text(json.dumps(content))
    verdict = next(v for v in evaluate(folder).verdicts if v.row == "treatment")

    def of(arm: str, seed: int) -> float:
        result = results.load(folder / f"{arm}-seed{seed}.near.h5")
        return float(np.log(result["gradient_l2"].max()))

    expected = [of("multiplicative", seed) - of("vanilla", seed) for seed in range(8)]
    np.testing.assert_allclose(verdict.effects, expected, rtol=1e-12)
    own = tmp_path / "own.toml"
    own.write_text(TINY.replace("AVERAGE", "largest"))
    assert read_study_file(str(own)).endpoints[0].average == "largest"
    own.write_text(TINY.replace("AVERAGE", "smallest"))
    with pytest.raises(ValueError, match=r"\[endpoints 1\] average = 'smallest'; expected .*large"):
        read_study_file(str(own))


TINY = """
title = "Tiny"
arms = [
    { name = "a", role = "baseline", seeds = [0], checkpoints = "a.pt" },
    { name = "b", role = "treatment", seeds = [0], checkpoints = "b.pt" },
]
probes = { near = { probe = "sensitivity" } }
[[endpoints]]
claim = "near"
name = "gradient"
probe = "near"
variable = "gradient_l2"
predicts = "lower"
margin = 0.1
compare = "log_ratio"
average = "AVERAGE"
primary = true
"""
