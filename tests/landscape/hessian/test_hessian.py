"""The Hessian probe: what its result says against dense matrices, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

import landscape
from checkpoints.problem import Problem
from landscape.core.spaces import Inputs, Weights
from landscape.hessian.lanczos import gaussian
from landscape.hessian.operator import Curvature
from landscape.hessian.trace import traces
from tests.landscape.hessian.test_operator import dense, dense_hessian, small
from tests.oracles import LinearRegression

pytestmark = pytest.mark.second_derivative

QUICK: dict[str, Any] = {"activations": "recompute", "top": 3}


def measured(problem: Problem, **spec: Any) -> xr.Dataset:
    return landscape.measure("hessian", problem, **(QUICK | spec))


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return torch.linalg.eigvalsh(dense_hessian(small())).numpy()


def test_eigenvalues_at_every_end_are_those_of_the_dense_hessian(exact: np.ndarray) -> None:
    result = measured(
        small(), parts=("eigenpairs",), which=("magnitude", "largest", "smallest"), tol=1e-6
    )
    expected = {
        "magnitude": exact[np.argsort(-np.abs(exact))][:3],
        "largest": exact[::-1][:3],
        "smallest": exact[:3],
    }
    for end, values in expected.items():
        # An eigenvalue is off by no more than tol times itself.
        np.testing.assert_allclose(result["eigenvalue"].sel(end=end), values, rtol=1e-6)
    assert (result["converged"] == 1).all()
    assert (result["residual"] <= 1e-6).all()
    assert (result["products"] > 3).all()


def test_three_products_are_too_few_and_the_result_says_so() -> None:
    result = measured(small(), parts=("eigenpairs",), max_products=3)
    assert (result["products"] <= 3).all()
    assert not (result["converged"] == 1).all()
    assert (result["measured"] == 1).all()


def test_the_density_has_the_moments_of_the_spectrum(exact: np.ndarray) -> None:
    result = measured(small(), parts=("density",), draws=60, steps=8)
    for power in (1, 2):
        draws = (result["weight"] * result["node"] ** power).sum("lanczos_step").values
        stderr = draws.std(ddof=1) / np.sqrt(len(draws))
        assert abs(draws.mean() - (exact**power).mean()) < 4 * stderr
    np.testing.assert_allclose(result["weight"].sum("lanczos_step"), 1, rtol=1e-10)


def test_trace_and_norm_are_within_their_errors(exact: np.ndarray) -> None:
    result = measured(small(), parts=("trace",), trace_products=30)
    assert 0 < result["trace_stderr"] < 0.1 * abs(exact.sum())
    assert abs(result["trace"] - exact.sum()) < 4 * result["trace_stderr"]
    norm = np.sqrt((exact**2).sum())
    assert abs(result["frobenius_norm"] - norm) < 4 * result["frobenius_norm_stderr"]


def with_outliers() -> torch.Tensor:
    """A matrix with a spectrum like a network's: few large values, the rest on both sides of 0."""
    generator = torch.Generator().manual_seed(0)
    values = 0.02 * torch.randn(100, generator=generator, dtype=torch.float64)
    values[:9] = torch.logspace(1, -1, 9, dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(100, 100, generator=generator, dtype=torch.float64))[0]
    return vectors * values @ vectors.T


def test_a_krylov_space_gives_a_better_trace_and_its_interval_holds_the_truth() -> None:
    matrix, runs = with_outliers(), 40
    exact = float(matrix.trace()), float(matrix.square().sum())
    errors: dict[bool, list[float]] = {}
    held = np.zeros(2)
    for krylov in (False, True):
        estimates = [
            traces(
                lambda vectors: vectors @ matrix,
                gaussian(torch.empty(1, 100, dtype=torch.float64), generator),
                30,
                generator,
                krylov=krylov,
            )
            for generator in (torch.Generator().manual_seed(seed) for seed in range(runs))
        ]
        errors[krylov] = [found.trace - exact[0] for found in estimates]
        if krylov:  # 2.26: Student's t for 95 % and 10 probes
            held += (
                sum(abs(found.trace - exact[0]) < 2.26 * found.trace_stderr for found in estimates),
                sum(
                    abs(found.squared_norm - exact[1]) < 2.26 * found.squared_norm_stderr
                    for found in estimates
                ),
            )
    assert np.std(errors[True]) < 0.9 * np.std(errors[False])
    assert abs(np.mean(errors[True])) < 4 * np.std(errors[True]) / runs**0.5, "no bias"
    # 95 %, within 4 standard errors of a share of so many runs
    assert (abs(held / runs - 0.95) < 4 * (0.95 * 0.05 / runs) ** 0.5).all()


def test_a_krylov_space_of_all_rows_gives_the_trace_exactly(exact: np.ndarray) -> None:
    result = measured(small(), parts=("trace",), trace_products=96, krylov_trace=True)
    assert float(result["trace"]) == pytest.approx(exact.sum(), rel=1e-10)
    assert float(result["trace_stderr"]) == 0


def test_a_trace_in_another_subspace_does_not_continue_a_file(tmp_path: Path) -> None:
    file = tmp_path / "net.h5"
    measured(small(), parts=("trace",), trace_products=6, out=file)
    with pytest.raises(ValueError, match="krylov_trace"):
        measured(small(), parts=("trace",), trace_products=6, krylov_trace=True, out=file)


def test_a_cell_does_not_depend_on_which_others_are_measured() -> None:
    whole = measured(small(), steps=5, draws=2)
    alone = measured(small(), steps=5, draws=2, parts=("trace",))
    assert float(whole["trace"]) == float(alone["trace"])
    several = measured(small(), parts=("eigenpairs",), which=("smallest", "magnitude"))
    np.testing.assert_array_equal(
        whole["eigenvalue"].sel(end="magnitude"), several["eigenvalue"].sel(end="magnitude")
    )


def test_kept_activations_change_rounding_alone() -> None:
    kept = measured(small(), parts=("eigenpairs",), activations="keep")
    plain = measured(small(), parts=("eigenpairs",))
    np.testing.assert_allclose(kept["eigenvalue"], plain["eigenvalue"], rtol=1e-9)


def test_stored_eigenvectors_are_eigenvectors_and_make_a_surface(tmp_path: Path) -> None:
    problem, file = small(), tmp_path / "eigenvectors.h5"
    result = measured(problem, parts=("eigenpairs",), tol=1e-8, save_directions=str(file))
    space = Weights(problem)
    operator = Curvature(space)
    with h5py.File(file) as stored:
        vectors = torch.cat(
            [torch.from_numpy(stored["directions"][n][()]).flatten(1) for n in space.origin], dim=1
        )
    for vector, value in zip(vectors, result["eigenvalue"].values[0], strict=True):
        product = operator.matvec(vector)
        assert (product - value * vector).norm() < 1e-7 * abs(value)
    line = landscape.measure(
        "surface", problem, dimensions=1, points=3, extent=1e-5, directions=str(file)
    )
    loss = line["loss"].values
    curvature = (loss[0] - 2 * loss[1] + loss[2]) / 1e-10
    # a step of 1e-5 crosses no kink here, and leaves rounding of 1e-16 / 1e-10
    assert curvature == pytest.approx(float(result["eigenvalue"][0, 0]), rel=1e-3)


def test_eigenvectors_of_the_scaled_matrix_are_stored_as_steps_in_the_weights(
    tmp_path: Path,
) -> None:
    problem, file = small(), tmp_path / "eigenvectors.h5"
    result = measured(
        problem, parts=("eigenpairs",), scale="relative", tol=1e-8, save_directions=str(file)
    )
    line = landscape.measure(
        "surface", problem, dimensions=1, points=3, extent=1e-5, directions=str(file)
    )
    loss = line["loss"].values
    curvature = (loss[0] - 2 * loss[1] + loss[2]) / 1e-10
    assert curvature == pytest.approx(float(result["eigenvalue"][0, 0]), rel=1e-3)


def test_stored_directions_come_also_from_a_run_that_had_been_finished(tmp_path: Path) -> None:
    problem, result, file = small(), tmp_path / "net.h5", tmp_path / "deep" / "vectors.h5"
    spec = {"parts": ("eigenpairs",), "tol": 1e-6}
    measured(problem, out=result, **spec)
    measured(problem, out=result, save_directions=str(file), **spec)
    first = file.read_bytes()
    with h5py.File(file) as stored:
        assert len(stored["directions"].attrs["eigenvalue"]) == 3
    stamp = file.stat().st_mtime_ns
    measured(problem, out=result, save_directions=str(file), **spec)
    assert file.stat().st_mtime_ns == stamp, "it holds these already"
    with h5py.File(file, "a") as stored:
        stored["directions"].attrs["eigenvalue"] = [1.0, 2.0, 3.0]
    measured(problem, out=result, save_directions=str(file), **spec)
    assert file.read_bytes() == first


def test_an_eigenvector_that_has_not_converged_says_so_where_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problem, file = small(), tmp_path / "vectors.h5"
    measured(problem, parts=("eigenpairs",), max_products=3, save_directions=str(file))
    with caplog.at_level("WARNING"):
        landscape.measure("surface", problem, dimensions=1, points=1, directions=str(file))
    assert "direction 0 is an eigenvector that has not converged" in caplog.text


def test_a_place_for_directions_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; expected a file"):
        measured(small(), parts=("eigenpairs",), save_directions=str(tmp_path))


def test_no_other_file_is_lost_to_directions(tmp_path: Path) -> None:
    other = tmp_path / "network.pt"
    other.write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"network.pt exists, and is not what this command wrote"):
        measured(small(), parts=("eigenpairs",), save_directions=str(other))
    assert other.read_bytes() == b"weights"
    file, result = tmp_path / "a.h5", tmp_path / "b.h5"
    asked: dict[str, Any] = {"parts": ("eigenpairs",), "top": 1}
    for _ in range(2):  # directions may be written again
        measured(small(), save_directions=str(file), out=result, **asked)
    with pytest.raises(ValueError, match=r"b.h5 exists, and is not what this command wrote"):
        measured(small(), save_directions=str(result), **asked)
    third = tmp_path / "c.h5"
    with pytest.raises(ValueError, match="c.h5 is to hold the result and something else"):
        measured(
            small(),
            save_directions=str(third),
            out=tmp_path / ".." / tmp_path.name / "c.h5",
            **asked,
        )
    assert not third.exists()


@pytest.mark.parametrize("top", [2, 3, 5])
def test_repeated_eigenvalues_are_found_where_they_are_looked_for(top: int) -> None:
    """|W x - y|^2 / 2 has X^T X / n as its Hessian, once for each output."""
    oracle = LinearRegression.random(count=4, ins=30, outs=3)
    exact = torch.linalg.eigvalsh(oracle.inputs.T @ oracle.inputs / 4).flip(0)
    wanted = exact.repeat_interleave(3)[:top]
    spec = {"parts": ("eigenpairs",), "top": top, "tol": 1e-6}
    found = measured(oracle.problem(), multiple=True, **spec)
    np.testing.assert_allclose(found["eigenvalue"][0], wanted, rtol=1e-9)
    assert (found["converged"] == 1).all()


def test_few_rows_need_no_options() -> None:
    result = landscape.measure("hessian", small(), layers=("head.bias",))
    rows = int(json.loads(result.attrs["provenance"])["parameters"])
    assert result.sizes["rank"] == min(rows, 5)
    assert result.sizes["lanczos_step"] == rows


def test_layers_restrict_the_matrix_and_the_stored_directions(tmp_path: Path) -> None:
    problem, file = small(), tmp_path / "head.h5"
    result = measured(
        problem, parts=("eigenpairs",), layers=("head.*",), tol=1e-8, save_directions=str(file)
    )
    names = ["head.weight", "head.bias"]
    values = torch.linalg.eigvalsh(dense(Curvature(Weights(problem), names=names)))
    np.testing.assert_allclose(result["eigenvalue"][0], values.flip(0)[:3], rtol=1e-7)
    with h5py.File(file) as stored:
        assert (stored["directions"]["conv.weight"][()] == 0).all()
        assert (stored["directions"]["head.weight"][()] != 0).any()


@pytest.mark.parametrize("multiplied", [True, False])
def test_input_eigenvalues_are_those_of_each_examples_dense_hessian(*, multiplied: bool) -> None:
    problem = small(multiplied=multiplied)
    result = measured(problem, space="inputs", tol=1e-7, top=1)
    rows = dense(Curvature(Inputs(problem))).view(10, 25, 10, 25)
    blocks = torch.stack([rows[i, :, i] for i in range(10)])
    values = torch.linalg.eigvalsh(blocks)
    largest = torch.where(values[:, -1] > -values[:, 0], values[:, -1], values[:, 0])
    np.testing.assert_allclose(result["eigenvalue"][:, 0], largest, rtol=1e-6)
    gauss_newton = dense(Curvature(Inputs(problem), "gauss_newton")).view(10, 25, 10, 25)
    tops = [torch.linalg.eigvalsh(gauss_newton[i, :, i])[-1] for i in range(10)]
    np.testing.assert_allclose(result["gauss_newton_eigenvalue"], tops, rtol=1e-9)
    assert (result["converged"] == 1).all()
    assert (result["from_jacobian"] == (0 if multiplied else 1)).all()
    if multiplied:
        assert (result["beyond_gauss_newton"] > 1e-3).all()
    else:
        assert (result["beyond_gauss_newton"] < 1e-12).all()
        assert (result["products"] == 2).all(), "no iteration is needed"


class NearlyPiecewise(torch.nn.Module):
    """Linear, with a curvature of its own that only examples of some size have."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(25, 3).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.flatten(1)
        return self.head(rows) + torch.relu(rows[:, :3] - 0.5) ** 3


def test_whether_the_jacobian_suffices_is_decided_example_by_example() -> None:
    images = 0.4 * torch.rand(10, 1, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    images[4:, 0, 0, :3] += 0.6
    problem = Problem.of(NearlyPiecewise(), [(images, torch.arange(10) % 3)], batch_size=10)
    result = measured(problem, space="inputs", top=1, tol=1e-6)
    assert result["from_jacobian"].values.tolist() == [1] * 4 + [0] * 6
    rows = dense(Curvature(Inputs(problem))).view(10, 25, 10, 25)
    values = torch.linalg.eigvalsh(torch.stack([rows[i, :, i] for i in range(10)]))
    largest = torch.where(values[:, -1] > -values[:, 0], values[:, -1], values[:, 0])
    np.testing.assert_allclose(result["eigenvalue"][:, 0], largest, rtol=1e-5)
    assert (result["converged"] == 1).all()
    assert (result["products"][:4] == 2).all() and (result["products"][4:] > 2).all()


def test_several_input_eigenpairs_and_the_most_negative_come_from_lanczos() -> None:
    problem = small(multiplied=True)
    rows = dense(Curvature(Inputs(problem))).view(10, 25, 10, 25)
    values = torch.linalg.eigvalsh(torch.stack([rows[i, :, i] for i in range(10)]))
    result = measured(problem, space="inputs", which=("smallest",), top=2, tol=1e-6)
    np.testing.assert_allclose(result["eigenvalue"], values[:, :2], rtol=1e-5)


def test_input_eigenvalues_do_not_depend_on_the_batches() -> None:
    results = [
        measured(small(batch_size=size), space="inputs", tol=1e-8, top=1) for size in (1, 4, 10)
    ]
    for other in results[1:]:
        # each is within the residual of the same number
        np.testing.assert_allclose(other["eigenvalue"], results[0]["eigenvalue"], rtol=1e-7)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"parts": ("eigenpairs", "spectrum")}, "parts eigenpairs spectrum; expected some of"),
        ({"which": ("top",)}, "which top; expected some of magnitude"),
        ({"space": "inputs", "layers": ("head.*",)}, "layers is for space weights"),
        ({"space": "inputs", "parts": ("trace",)}, "parts trace is for space weights"),
        ({"space": "inputs", "which": ("largest", "smallest")}, "one which at a time"),
        ({"layers": ("head9.*",)}, r"layers head9\.\*: no parameter"),
        ({"seed": -1}, "seed -1; expected a whole number, at least 0"),
        ({"top": 0}, "top 0; expected a whole number, at least 1"),
        ({"tol": 0.0}, "tol 0.0; expected"),
        ({"steps": 500}, "steps 500 exceeds the 64 parameters selected"),
        ({"top": 99}, "top 99 exceeds the 64 parameters selected"),
        ({"trace_products": 5}, "trace_products 5; expected a whole number, at least 6"),
        ({"parts": ("trace",), "save_directions": "x.h5"}, "needs parts eigenpairs"),
        ({"parts": ("density",), "krylov_trace": True}, "krylov_trace needs parts trace"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        measured(small(), **spec)
    assert "\n" not in str(caught.value)


def test_the_command_line_tells_the_eigenvalues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from landscape.core.cli import main
    from landscape.registry import PROBES

    monkeypatch.chdir(tmp_path)
    options = "--examples 20 --parts eigenpairs --top 1 --tol 0.05 --max-products 12 --no-figure"
    assert main(PROBES["hessian"], ["--ckpt", "resnet8.pt", *options.split()]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == ["resnet8.eigenpairs.hessian.h5"]
    assert "eigenvalues, magnitude:" in printed.err
    assert "products" in printed.err
