"""A probe, a figure and a model family of a stranger: one file and one line each."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import analysis.figures
import checkpoints.models
import landscape.core.cli
from analysis.figures import registry as figures
from analysis.results import load as loaded
from checkpoints import loading
from checkpoints import registry as networks
from checkpoints.problem import Problem
from landscape import registry as probes
from tests import test_contracts

PROBE = """
    from checkpoints import options
    from checkpoints.options import option
    from landscape.core import directions
    from landscape.core.plan import Plan, Probe
    from landscape.core.spaces import Weights
    from landscape.core.variables import Variable, numbered
    import torch


    @options.spec
    class Spec:
        radius: float = option(0.01, "length of a step")
        draws: int = option(3, "steps")
        seed: int = option(0, "of the steps")
        derivatives = {"weights": 0}


    def roughness(problem, spec):
        '''The loss after random steps from the network.'''
        space = Weights(problem)

        def measure(cells):
            (cell,) = cells
            drawn = torch.Generator().manual_seed(1000 * spec.seed + cell["draw"])
            step = directions.gaussian(space.origin, drawn)
            moved = {n: v + spec.radius * step[n] for n, v in space.origin.items()}
            row = space.evaluate(moved).summary()
            return {name: [row[name]] for name in ("loss", "loss_stderr")}

        return Plan(
            probe="roughness",
            spec=spec,
            provenance=problem.fingerprints() | {"files": {}},
            coords={"draw": numbered(spec.draws, "random step")},
            variables={
                "loss": Variable(("draw",), "loss", "nat"),
                "loss_stderr": Variable(("draw",), "standard error of the loss", "nat"),
            },
            walk=("draw",),
            measure=measure,
        )


    PROBE = Probe("roughness", Spec, roughness)

    if __name__ == "__main__":
        from landscape.core.cli import main

        raise SystemExit(main(PROBE))
"""
FIGURE = """
    from analysis.figures.arrange import Kind, new_figure


    def steps(result, ax):
        ax.plot(result["draw"], result["loss"], marker="o")


    def one_above_the_other(page):
        figure = new_figure(page.columns, gap=0.02)
        for row, result in enumerate(page.shown):
            steps(result, figure.add_subplot(len(page.shown), 1, row + 1))
        return figure


    KIND = Kind(steps, probe="roughness", dimensions=1, arrange=one_above_the_other)
"""
FAMILY = """
    from torch import nn

    from checkpoints.models.family import Family


    class Tiny(nn.Module):
        def __init__(self, classes=10):
            super().__init__()
            self.tokens = nn.Conv2d(1, 4, 7, 7)
            self.linear = nn.Linear(4, classes)

        def forward(self, images):
            return self.linear(self.tokens(images).mean(dim=(2, 3)))


    FAMILY = Family({"added_tiny": Tiny})
"""


def add_file(package: ModuleType, name: str, text: str, folder: Path) -> None:
    """Let a package have another module, as if the file lay in its folder."""
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    package.__path__ = [*package.__path__, str(folder)]


def add_line(registry: ModuleType, table: str, line: str) -> dict[str, Any]:
    """What is defined by the source of a registry with one more line at the end of a table."""
    source = Path(str(registry.__file__)).read_text()
    before, start, after = source.partition(f"{table} = ")
    end = after.index("\n" + {"{": "}", "[": "]"}[after[0]]) + 1
    names = {"__name__": registry.__name__}
    exec(before + start + after[:end] + f"    {line}\n" + after[end:], names)
    return names


@pytest.fixture(autouse=True)
def packages_as_they_were() -> Iterator[None]:
    packages = (landscape, analysis.figures, checkpoints.models)
    paths, modules = [package.__path__ for package in packages], set(sys.modules)
    families = list(networks.FAMILIES)
    yield
    networks.FAMILIES[:] = families
    for package, path in zip(packages, paths, strict=True):
        package.__path__ = path
    for name in set(sys.modules) - modules:
        if name.endswith((".roughness", ".steps", ".tiny")):
            package, _, child = name.rpartition(".")
            delattr(sys.modules[package], child)
            del sys.modules[name]


@pytest.fixture
def roughness(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    add_file(landscape, "roughness", PROBE, tmp_path_factory.mktemp("probe"))
    added = add_line(probes, "PLACES", '"roughness": "landscape.roughness:PROBE",')["PROBES"]
    assert set(added) - set(probes.PROBES) == {"roughness"}
    monkeypatch.setitem(probes.PROBES, "roughness", added["roughness"])
    return "roughness"


@pytest.fixture
def straight(roughness: str, problem: Problem, tmp_path: Path) -> Path:
    path = tmp_path / f"net.{roughness}.h5"
    test_contracts.measured(roughness, problem, path)
    return path


# Those that are parametrized by more are of certain probes' options.
CONTRACTS = {
    name.removeprefix("test_"): contract
    for name, contract in vars(test_contracts).items()
    if name.startswith("test_")
    and "probe" in inspect.signature(contract).parameters
    and not getattr(contract, "pytestmark", ())
}


@pytest.mark.second_derivative
@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_probe_without_a_figure_keeps_every_contract(
    contract: str, roughness: str, request: pytest.FixtureRequest
) -> None:
    wanted = inspect.signature(CONTRACTS[contract]).parameters
    given = {name: request.getfixturevalue(name) for name in wanted if name != "probe"}
    CONTRACTS[contract](probe=roughness, **given)


@pytest.mark.second_derivative
def test_a_figure_draws_the_results_of_its_probe(
    roughness: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_file(analysis.figures, "steps", FIGURE, tmp_path)
    added = add_line(figures, "PLACES", '"steps": "analysis.figures.steps:KIND",')["FIGURES"]
    assert set(added) - set(figures.FIGURES) == {"steps"}
    monkeypatch.setitem(figures.FIGURES, "steps", added["steps"])
    CONTRACTS["its_figures_draw_from_its_file"](roughness, straight)
    assert (tmp_path / "net.roughness.steps.pdf").exists()


def test_a_probe_has_a_command(
    roughness: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probe = probes.probe_named(roughness)
    options = ["--ckpt", "resnet8.pt", "--examples", "8", "--batch-size", "8", "--draws", "2"]
    for _ in range(2):  # the second time it continues, and draws nothing
        assert landscape.core.cli.main(probe, options) == 0
    result = loaded(tmp_path / "resnet8.roughness.h5")
    assert result["loss"].shape == (2,)
    assert {path.suffix for path in tmp_path.glob("resnet8*")} == {".h5"}


def test_a_family_loads_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_file(checkpoints.models, "tiny", FAMILY, tmp_path)
    added = add_line(networks, "FAMILY_PLACES", '"checkpoints.models.tiny:FAMILY",')
    assert set(added["MODELS"]) - set(networks.MODELS) == {"added_tiny"}
    build = added["MODELS"]["added_tiny"]
    monkeypatch.setitem(networks.MODELS, "added_tiny", build)
    networks.FAMILIES[:] = added["FAMILIES"]
    torch.save(build(classes=10).state_dict(), tmp_path / "tiny.pth")
    for model in ("added_tiny", None):
        assert loading.load(tmp_path / "tiny.pth", model=model, say=print).model == "added_tiny"
