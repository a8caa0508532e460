"""What every probe owes its users, whichever it is."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import landscape
from checkpoints.checkpoint import build
from checkpoints.losses import top1
from checkpoints.problem import Problem
from checkpoints.registry import MODELS, load_images
from landscape.core import store
from landscape.core.batch_size import prepared
from landscape.core.ends import taken
from landscape.core.plan import Plan, run
from landscape.registry import PROBES
from tests.oracles import attend, make_problem, walked

pytestmark = pytest.mark.second_derivative

# Grids small enough for a test; a probe that is not named here is measured with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "attention": {"importance": ("gradient",), "fractions": (0.5,), "directions": 1},
    "hessian": {
        "top": 2,
        "steps": 5,
        "draws": 2,
        "trace_products": 6,
        "tol": 0.01,
        "activations": "recompute",
    },
    "interpolate": {"pairs": 2, "points": 5},
    "sensitivity": {"draws": 2, "directions": 1, "tangents": 1, "radii": (0.003, 0.1)},
    "sharpness": {"radii": (0.01, 0.02), "ascent_steps": 2, "draws": 2},
    "surface": {"points": (3, 2)},
}
UNITS = {"nat", "1"}


# What a probe needs of the network that the others are measured on: other inner modules, or another
# merge of the branches.
NETWORKS: dict[str, Callable[[Any], None]] = {"terms": attend}
MERGES = {"attention": "sigmoid_residual"}


def problem_for(probe: str, device: torch.device) -> Problem:
    made = make_problem(device, merge=MERGES.get(probe, "add"), count=11, batch_size=4)
    NETWORKS.get(probe, lambda network: None)(made.model)
    if probe == "trajectory":
        made, SMALL[probe] = taken(made, {"snapshots": walked(made, 2), "points": (3, 2)})
    return made


@pytest.fixture
def problem(device: torch.device, probe: str) -> Problem:
    return problem_for(probe, device)


@pytest.fixture(scope="module", params=list(PROBES))
def probe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def measured(probe: str, problem: Problem, out: Path | None = None) -> xr.Dataset:
    return landscape.measure(probe, problem, out=out, **SMALL.get(probe, {}))


@pytest.fixture(scope="module")
def straight(probe: str, device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a whole run of `problem`, made once for all tests that look at one."""
    path = tmp_path_factory.mktemp("straight") / f"net.{probe}.h5"
    measured(probe, problem_for(probe, device), path)
    return path


def planned(probe: str, problem: Problem) -> Plan:
    entry = PROBES[probe]
    spec = entry.spec(**SMALL.get(probe, {}))
    return entry.plan(prepared(problem, spec.derivatives), spec)


def test_the_problem_is_left_as_it_was_and_nothing_is_printed(
    probe: str, problem: Problem, capfd: pytest.CaptureFixture[str]
) -> None:
    problem.model.train()
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    examples = {k: v.clone() for k, v in problem.inputs.items()}
    state = torch.random.get_rng_state()
    measured(probe, problem)
    assert problem.model.training
    assert all(torch.equal(v, before[k]) for k, v in problem.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in problem.model.parameters())
    assert all(torch.equal(v, examples[k]) for k, v in problem.inputs.items())
    assert torch.equal(torch.random.get_rng_state(), state), "the global seed was used"
    assert capfd.readouterr() == ("", "")


def test_the_same_spec_gives_the_same_bytes(
    probe: str, problem: Problem, straight: Path, tmp_path: Path
) -> None:
    torch.manual_seed(123)
    measured(probe, problem, tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == straight.read_bytes()


def test_another_seed_gives_another_result(probe: str, problem: Problem) -> None:
    entry = PROBES[probe]
    if probe == "trajectory":
        pytest.skip("draws nothing at random")
    assert "seed" in {field.name for field in dataclasses.fields(entry.spec)}
    results = [
        run(entry.plan(problem, entry.spec(**SMALL.get(probe, {}), seed=seed))) for seed in (0, 1)
    ]
    assert not results[0].identical(results[1])


def test_killed_and_resumed_is_straight(
    probe: str, problem: Problem, straight: Path, tmp_path: Path
) -> None:
    halted = tmp_path / "halted.h5"
    plan = planned(probe, problem)
    count = []

    def stopping(cells: Any) -> Any:
        if count:
            raise KeyboardInterrupt
        count.append(1)
        return plan.measure(cells)

    if plan.blank()["measured"].size > plan.block:
        with pytest.raises(KeyboardInterrupt):
            run(replace(plan, measure=stopping), halted)
    measured(probe, problem, halted)
    xr.testing.assert_identical(store.load(halted), store.load(straight))


def test_dims_units_and_names_are_declared(straight: Path) -> None:
    result = store.load(straight)
    for name, variable in result.data_vars.items():
        assert variable.attrs.get("units"), f"{name} has no units"
        assert variable.attrs.get("long_name"), f"{name} has no long_name"
        if "loss" in str(name):
            assert variable.attrs["units"] == "nat"
    for dim in result.dims:
        assert dim in result.coords, f"{dim} has no coordinate"
    for name, coordinate in result.coords.items():
        assert coordinate.attrs.get("units"), f"{name} has no units"
        assert coordinate.attrs.get("long_name"), f"{name} has no long_name"
    assert (result["measured"] == 1).all()
    spec = json.loads(result.attrs["spec"])
    assert spec.get("seed", 0) == 0
    assert {"checkpoint", "data", "device", "dtype", "versions"} <= set(
        json.loads(result.attrs["provenance"])
    )


def test_every_option_has_a_help_text(probe: str) -> None:
    for field in dataclasses.fields(PROBES[probe].spec):
        assert field.metadata.get("help"), f"{probe}.{field.name}"


def test_its_figures_draw_from_its_file(probe: str, straight: Path) -> None:
    from analysis.figures import FIGURES, draw_beside

    drawn = draw_beside(straight)
    has_figure = any(kind.probe == probe for kind in FIGURES.values())
    assert {p.suffix for p in drawn} == ({".png", ".pdf"} if has_figure else set())
    assert all(p.stat().st_size > 1000 for p in drawn)


def test_float32_agrees_with_float64(probe: str, problem: Problem, straight: Path) -> None:
    wide = store.load(straight)
    narrow = measured(probe, problem.to(problem.device, torch.float32))
    for name in wide.data_vars:
        if str(name) in ("loss", "accuracy"):
            np.testing.assert_allclose(narrow[name], wide[name], rtol=1e-4)


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "hessian": [{}, {"save_directions": "keep.h5"}, {"space": "inputs", "top": 1}],
    "surface": [{}, {"save_directions": "keep.h5"}, {"space": "inputs"}],
}


@pytest.mark.parametrize("options", [{}, {"space": "inputs"}, {"jacobian": False}])
def test_no_derivative_is_taken_that_the_spec_does_not_declare(
    probe: str, problem: Problem, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The kernels are compared with float64 up to the declared derivative, not beyond it."""
    entry = PROBES[probe]
    fields = {field.name for field in dataclasses.fields(entry.spec)}
    if not set(options) <= fields or (probe, "jacobian") == ("sensitivity", *options):
        pytest.skip("the probe has no such option")
    small = {k: v for k, v in SMALL.get(probe, {}).items() if "space" not in options}
    spec = entry.spec(**{**small, **options, **({"top": 1} if "top" in fields else {})})
    plan = entry.plan(prepared(problem, spec.derivatives), spec)
    taken = 0
    grad, recorded = torch.autograd.grad, torch.autograd.backward

    def seen(*args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken = max(taken, 2 if kwargs.get("create_graph") else 1)
        return grad(*args, **kwargs)

    def backward(*args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken = max(taken, 2 if kwargs.get("create_graph") else 1)
        return recorded(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", seen)
    monkeypatch.setattr(torch.autograd, "backward", backward)
    run(plan)
    assert taken <= max(spec.derivatives.values())


def test_planning_writes_nothing(
    probe: str, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keep.h5").write_bytes(b"a finished result")
    entry = PROBES[probe]
    for options in OPTIONS.get(probe, [{}]):
        small = {k: v for k, v in SMALL.get(probe, {}).items() if "space" not in options}
        spec = entry.spec(**{**small, **options})
        entry.plan(prepared(problem, spec.derivatives), spec)
        assert [path.name for path in tmp_path.iterdir()] == ["keep.h5"]
        assert (tmp_path / "keep.h5").read_bytes() == b"a finished result"


@pytest.mark.parametrize("probe", ["hessian", "surface"], indirect=True)
def test_what_is_written_next_to_a_result_replaces_nothing_of_another(
    probe: str, problem: Problem, tmp_path: Path
) -> None:
    """Not a result, not the directions of another run; its own it continues."""
    keep, out = tmp_path / "keep.h5", tmp_path / "out.h5"
    small = SMALL[probe] | {"save_directions": str(keep)}
    landscape.measure(probe, problem, out=keep, **SMALL[probe])
    for place, line in ((out, "exists, and is not what this command wrote"), (keep, "Name two")):
        before = keep.read_bytes()
        with pytest.raises(ValueError, match=line):
            landscape.measure(probe, problem, out=place, **small)
        assert keep.read_bytes() == before
        assert not out.exists()
    keep.unlink()
    landscape.measure(probe, problem, out=out, **small)
    landscape.measure(probe, problem, out=out, **small)
    written = keep.read_bytes()
    for other in (out, tmp_path / "other.h5"):
        with pytest.raises(ValueError, match=r"seed=0|exists, and is not"):
            landscape.measure(probe, problem, out=other, **small, seed=1)
        assert keep.read_bytes() == written


# The first network of every kind of the zoo, and specs with which a probe does everything once.
KINDS = {re.sub(r"(?<!seq)\d.*", "", name): name for name in reversed(MODELS)}
ONCE: dict[str, dict[str, Any]] = {
    "attention": {"parts": "agreement", "importance": ("gradient",)},
    "hessian": {"top": 1, "steps": 2, "draws": 2, "trace_products": 6, "tol": 0.5},
    "interpolate": {"pairs": 1, "points": 3},
    "sensitivity": {"draws": 1, "directions": 1, "tangents": 1, "neighbors": 2, "radii": (0.1,)},
    "sharpness": {"radii": (0.01,), "ascent_steps": 1, "starts": 1, "draws": 1},
    "surface": {"points": (1, 1)},
}
REFUSALS = {
    "attention": "multiplies no features by a gate|outputs \\(n, classes\\)",
    "terms": "has no spatial attention",
    "interpolate": "one label per sample",
}


def of_kind(kind: str) -> Problem:
    """A network of a kind on four examples, images or sequences."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "seq2seq":
            made = load_images("sort", "test").take(slice(0, 4))
            inputs, targets = torch.from_numpy(made.pixels) / 255, torch.from_numpy(made.labels)
            network = build(KINDS[kind], {"width": 8})
        else:
            inputs, targets = torch.rand(4, 1, 8, 8), torch.arange(4) // 2
            # A wide ResNet's width is a factor, and the first name has the smallest.
            width = {} if kind.endswith("wrn") else {"width": 8}
            network = build(KINDS[kind], {"channels": 1, **width})
    batch = [(inputs, targets)]
    return Problem.of(network, batch, batch_size=4, correct=top1).to("cpu", torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_is_measured(probe: str, kind: str) -> None:
    problem = of_kind(kind)
    more = {"snapshots": walked(problem, 2), "points": 2} if probe == "trajectory" else {}
    try:
        result = landscape.measure(probe, problem, **ONCE.get(probe, {}), **more)
    except ValueError as refusal:
        if not re.search(REFUSALS.get(probe, "$^"), str(refusal)):
            raise
        pytest.skip(str(refusal))
    assert (result["measured"] == 1).all()
    for name in {"eigenvalue", "importance", "loss_mean"} & set(result.data_vars):
        assert np.isfinite(result[name]).all(), name


@pytest.mark.parametrize("probe", ["hessian", "interpolate", "surface"], indirect=True)
def test_a_network_for_sequences_is_measured_in_the_other_space(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = of_kind("seq2seq")
    other: dict[str, Any] = {"space": "inputs"}
    if probe == "interpolate":
        other = {"to": {n: v + 0.1 for n, v in problem.model.state_dict().items()}}
    monkeypatch.chdir(tmp_path)
    once = {k: v for k, v in ONCE[probe].items() if k in ("points", "top", "tol")}
    result = landscape.measure(probe, problem, **once, **other)
    assert (result["measured"] == 1).all()
