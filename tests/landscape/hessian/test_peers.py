"""Second opinions: the same numbers from hessian-eigenthings, PyHessian and curvlinops."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hessian_eigenthings
import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn import functional

import landscape
from checkpoints.problem import Normalization, Problem
from checkpoints.registry import load_images
from checkpoints.source import load_problem
from landscape.core.spaces import Weights
from landscape.hessian.operator import Curvature

pytestmark = [pytest.mark.second_derivative, pytest.mark.timeout(240)]


def peer(name: str, package: str) -> ModuleType:
    """A peer; where CI says that it must be there, its absence is a failure and no skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            if os.environ.get("LANDSCAPE_REQUIRE_PEERS"):
                raise
            pytest.skip(f"needs {package}: pip install --no-deps {package}")


class RNet(nn.Module):
    """The refinement network of MTCNN (Zhang et al. 2016, arXiv:1604.02878), its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = functional.max_pool2d(self.prelu1(self.conv1(images)), 3, 2, ceil_mode=True)
        maps = functional.max_pool2d(self.prelu2(self.conv2(maps)), 3, 2, ceil_mode=True)
        maps = self.prelu3(self.conv3(maps)).permute(0, 3, 2, 1).flatten(1)
        return self.dense5_1(self.prelu4(self.dense4(maps)))


def face_detector() -> Problem:
    """A network that others trained and published, in the package facenet-pytorch."""
    found = importlib.util.find_spec("facenet_pytorch")
    if found is None or not found.submodule_search_locations:
        if os.environ.get("LANDSCAPE_REQUIRE_PEERS"):
            raise ImportError("facenet_pytorch")
        pytest.skip("needs facenet-pytorch: pip install --no-deps facenet-pytorch")
    file = Path(found.submodule_search_locations[0]) / "data" / "rnet.pt"
    weights = torch.load(file, weights_only=True)
    network = RNet()
    network.load_state_dict({n: v for n, v in weights.items() if n in network.state_dict()})
    images = load_images("fashion-mnist-sample", "test").take(slice(0, 40)).pixels / 255
    crops = torch.from_numpy(images[:, :, 2:26, 2:26]).float().expand(-1, 3, -1, -1)
    labels = torch.arange(40) % 2
    half = Normalization((0.5,) * 3, (0.5,) * 3)
    return Problem.of(network, [(crops, labels)], batch_size=40, normalization=half)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "resnet8.pt": lambda: load_problem("resnet8.pt", examples=8, batch_size=8),
    "fmmnet8.pt": lambda: load_problem("fmmnet8.pt", examples=8, batch_size=8),
    "face detector": face_detector,
}


@pytest.fixture(scope="module", params=list(PROBLEMS))
def trained(request: pytest.FixtureRequest) -> Problem:
    """A trained network on real images, in float64; one batch, since not all weigh batches."""
    return PROBLEMS[request.param]().to("cpu", torch.float64)


@pytest.fixture(scope="module")
def ours(trained: Problem) -> Any:
    spec = {"parts": ("eigenpairs", "trace"), "top": 3, "tol": 1e-4, "trace_products": 45}
    return landscape.measure("hessian", trained, activations="recompute", **spec)


def normalised(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    assert problem.normalization is not None
    return problem.normalization(problem.inputs["input"]), problem.targets


def test_hessian_eigenthings_agrees(trained: Problem, ours: Any) -> None:
    operator = hessian_eigenthings.HessianOperator(
        trained.model.eval(),
        [normalised(trained)],
        hessian_eigenthings.supervised_loss(functional.cross_entropy),
    )
    vector = torch.randn(operator.size, generator=torch.Generator(), dtype=torch.float64)
    found = Curvature(Weights(trained)).matvec(vector)
    torch.testing.assert_close(found, operator.matvec(vector), rtol=1e-9, atol=1e-9)
    theirs = hessian_eigenthings.lanczos(operator, k=3, max_iter=20, seed=0).eigenvalues
    # 20 steps leave its third eigenvalue a residual of some 1e-2, the value about its square
    np.testing.assert_allclose(np.sort(theirs), np.sort(ours["eigenvalue"][0]), rtol=1e-3)


def test_pyhessian_agrees(trained: Problem, ours: Any) -> None:
    pyhessian = peer("pyhessian", "pyhessian")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of backward(create_graph=True), which it uses
        theirs = pyhessian.hessian(
            trained.model, torch.nn.CrossEntropyLoss(), data=normalised(trained), cuda=False
        )
        values, _ = theirs.eigenvalues(maxIter=100, tol=1e-6, top_n=1)
    trained.model.zero_grad(set_to_none=True)
    assert values[0] == pytest.approx(float(ours["eigenvalue"][0, 0]), rel=1e-3)


def test_curvlinops_agrees(trained: Problem, ours: Any) -> None:
    curvlinops = peer("curvlinops", "curvlinops-for-pytorch")
    model = trained.model.eval()
    operator = curvlinops.HessianLinearOperator(
        model,
        torch.nn.CrossEntropyLoss(),
        list(model.parameters()),
        [normalised(trained)],
        check_deterministic=False,
    )
    vector = torch.randn(operator.shape[0], generator=torch.Generator(), dtype=torch.float64)
    found = Curvature(Weights(trained)).matvec(vector)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own forward mode warns of torch.jit
        theirs = operator @ vector
        values = eigsh(operator.to_scipy(), k=3, which="LM", tol=1e-4, return_eigenvectors=False)
        trace = curvlinops.hutchpp_trace(operator, num_matvecs=45)
    torch.testing.assert_close(found, theirs, rtol=1e-9, atol=1e-9)
    expected = np.sort(ours["eigenvalue"][0])
    np.testing.assert_allclose(np.sort(values), expected, rtol=1e-4)
    # both are estimates; ours tells its error, and theirs has about the same
    assert abs(float(trace) - float(ours["trace"])) < 6 * float(ours["trace_stderr"])
