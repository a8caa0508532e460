"""What a checkout weighs."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from checkpoints.checkpoint import find

ROOT = Path(__file__).parents[1]
MOST = 10 * 10**6  # bytes of a new study
# The first studies are older than the limit; one has its networks with it.
OLD = {"fashion-mnist": 37 * 10**6, "cifar10-12k": 23 * 10**6}


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


def test_the_wheel_carries_networks_and_the_sample_alone() -> None:
    files = ROOT / "checkpoints" / "files"
    shipped = [path for path in files.rglob("*") if path.suffix in (".pt", ".npz")]
    names = {str(path.relative_to(files)) for path in shipped}
    networks = {path.name for path in files.glob("*.pt")}  # which: see test_files
    assert names == networks | {"fashion-mnist-sample.npz"}
    assert sum(path.stat().st_size for path in shipped) < 20 * 10**6


def test_networks_of_a_study_are_found_in_a_checkout(tmp_path: Path) -> None:
    for name in ("fashion-mnist/resnet14-seed0.pt", "fashion-mnist/fmmnet14-seed7.pt"):
        assert find(name).parent == ROOT / "results" / "fashion-mnist" / "networks"
    with pytest.raises(ValueError, match="the networks of studies are in the repository"):
        find("fashion-mnist/absent.pt")
