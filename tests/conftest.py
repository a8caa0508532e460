"""Options and small problems that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

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


@pytest.fixture
def problem(device: torch.device) -> Problem:
    return make_problem(device)
