"""Options and small problems that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.problem import Problem
from tests.oracles import make_problem

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Threads of several processes on one core wait for each other.
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the commands that tests start
    torch.set_num_threads(threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the networks run: cpu or cuda")


def pytest_testnodedown(node: Any, error: object) -> None:
    """End the whole run where a worker has died: the others would first do all of their work."""
    if error:
        session = node.config.pluginmanager.getplugin("dsession")
        session.shouldstop = f"a worker died: {error}"
        for other in session._active_nodes - {node}:
            other.gateway._io.kill()  # it would not end before its work does


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images that are not part of the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder of real images beside the checkout, ../shared/data")
    return folder


@pytest.fixture(autouse=True)
def second_derivatives_are_marked(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """CI runs what is marked on other kernels too, so nothing that belongs there may be missing."""
    plain, seen = torch.autograd.grad, []

    def grad(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("create_graph"):
            seen.append(True)
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    yield
    if seen and request.node.get_closest_marker("second_derivative") is None:
        pytest.fail("it differentiates twice; mark it with pytest.mark.second_derivative.")


@pytest.fixture
def problem(device: torch.device) -> Problem:
    return make_problem(device)
