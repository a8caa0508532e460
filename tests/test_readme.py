"""What the README shows must run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import nn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_notebook_lines_measure_a_module_of_the_readers_own() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 6, 4, generator=generator)
    names = {
        "model": nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)),
        "batches": [(batch, torch.tensor([0, 1, 2, 0, 1, 2])) for batch in inputs],
        "loss": lambda outputs, targets: nn.functional.cross_entropy(
            outputs, targets, reduction="none"
        ),
    }
    exec(block, names)
    result = names["result"]
    assert isinstance(result, xr.Dataset)
    assert result["loss"].shape == (11, 11)
    assert isinstance(names["figure"], Figure)


def test_every_link_of_the_pages_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_tree_has_a_line_for_every_folder() -> None:
    (tree,) = re.findall(r"## Where things are\n\n```\n(.*?)```", README, re.DOTALL)
    listed, top = [], ""
    for line in tree.splitlines():
        name, about = line.split(maxsplit=1)
        top = top if line.startswith("  ") else name
        listed.append(name if name == top else top + name)
        assert about
    for package in ("checkpoints", "landscape", "analysis"):
        folders = [path.parent for path in (ROOT / package).glob("*/*.*")]
        found = {f"{path.relative_to(ROOT)}/" for path in folders if path.name[0] not in "_."}
        assert found == {
            name for name in listed if name.startswith(package) and name.count("/") > 1
        }
    for name in listed:
        assert (ROOT / name).is_dir(), name
