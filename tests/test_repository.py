"""What a checkout weighs."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST = 10 * 10**6  # bytes of a new study
# The first studies weigh what they weigh: they are older than the limit.
OLD = {"fashion-mnist": 28 * 10**6, "cifar10-12k": 23 * 10**6}


def test_a_study_adds_little_to_a_checkout_and_its_report_is_not_kept() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("needs a git checkout")
    weights: Counter[str] = Counter()
    for name in listed.stdout.splitlines():
        assert Path(name).name != "report.html"
        parts = Path(name).parts
        if len(parts) > 2:
            weights[parts[1]] += (ROOT / name).stat().st_size
    assert set(OLD) <= set(weights)
    for study, weight in weights.items():
        assert weight <= OLD.get(study, MOST), study
