"""The figures of hessian results, and the density that they draw."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from scipy.stats import norm

from analysis.figures import draw, draw_beside, fitting
from analysis.figures.curvature import curvature
from analysis.figures.spectrum import ranked, resolution, spectrum
from analysis.stats.density import density, mean_and_stderr, negative_square, place, values_at
from landscape.core import store

PARAMETERS = 1000


def _result(
    variables: dict[str, Any], coords: dict[str, Any], walk: str, **spec: Any
) -> xr.Dataset:
    units = {"node": "nat / weight^2", "eigenvalue": "nat / weight^2"}
    data = {
        name: (dims, np.asarray(values, float), {"long_name": name, "units": units.get(name, "1")})
        for name, (dims, values) in variables.items()
    }
    data["measured"] = (walk, np.ones(len(coords[walk]), "u1"))
    return xr.Dataset(
        data,
        coords,
        {
            "probe": "hessian",
            "schema_version": 2,
            "spec": json.dumps({"matrix": "hessian", "which": ["magnitude"]} | spec),
            "provenance": json.dumps(
                {"checkpoint": {"file": spec.pop("file", "resnet18.pt")}, "parameters": PARAMETERS}
            ),
        },
    )


NODES = [[-2.0, 0.0, 0.5, 40.0], [-2.0, 0.1, 0.7, 40.0]]
WEIGHTS = [[0.01, 0.89, 0.095, 0.005], [0.03, 0.9, 0.069, 0.001]]


def weights_result(*parts: str, **spec: Any) -> xr.Dataset:
    """As `landscape.hessian` stores it: by default with every part."""
    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {"measurement": list(parts or ["eigenpairs", "density", "trace"])}
    if "eigenpairs" in coords["measurement"]:
        dims = ("end", "rank")
        coords |= {"end": ["magnitude", "smallest"], "rank": [0, 1]}
        variables |= {
            "eigenvalue": (dims, [[40.0, -2.0], [-2.0, np.nan]]),
            "residual": (dims, [[1e-4, 0.5], [1e-4, np.nan]]),
            "converged": (dims, [[1, 0], [1, np.nan]]),
        }
    if "density" in coords["measurement"]:
        dims = ("draw", "lanczos_step")
        variables |= {
            "node": (("draw", "lanczos_step"), NODES),
            "weight": (("draw", "lanczos_step"), WEIGHTS),
        }
    if "trace" in coords["measurement"]:
        variables |= {"trace": ((), 58.123), "trace_stderr": ((), 2.0)}
        variables |= {"frobenius_norm": ((), 40.123), "frobenius_norm_stderr": ((), 0.05)}
    return _result(variables, coords, "measurement", **spec)


def inputs_result(eigenvalue: Any, gauss_newton: Any, *, jacobian: bool, **spec: Any) -> xr.Dataset:
    count = len(eigenvalue)
    rows, one = ("example", "rank"), ("example",)
    variables = {
        "eigenvalue": (rows, np.reshape(eigenvalue, (count, 1))),
        "converged": (rows, np.ones((count, 1))),
        "gauss_newton_eigenvalue": (one, gauss_newton),
        "beyond_gauss_newton": (one, np.full(count, 1e-7 if jacobian else 0.5)),
        "from_jacobian": (one, np.full(count, jacobian)),
    }
    return _result(variables, {"example": np.arange(count)}, "example", **spec)


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_places_are_decades_far_from_zero_and_keep_the_sign():
    far = place(np.array([-1e4, -1e3, 0.0, 1e3, 1e4]), 0.1)
    # asinh(x) is log(2x) to 1 / (4 x^2), here 2.5e-9
    np.testing.assert_allclose(np.diff(far)[[0, 3]], 1, atol=1e-8)
    assert far[2] == 0
    assert far[0] == -far[4]
    values = np.array([-300.0, -0.2, 0.0, 1e-3, 7.0])
    np.testing.assert_allclose(values_at(place(values, 0.3), 0.3), values, rtol=1e-12)


def test_density_integrates_to_one_for_every_draw():
    at = np.linspace(-8, 8, 4001)
    curves = density(np.array(NODES), np.array(WEIGHTS), at, linear=0.3)
    assert curves.shape == (2, 4001)
    # the sum of a smooth function on a grid of 40 points a width: exact to rounding
    np.testing.assert_allclose(curves.sum(axis=1) * (at[1] - at[0]), 1, rtol=1e-10)


def test_density_of_a_known_spectrum_has_its_eigenvalues_under_it():
    spectrum = np.concatenate([np.full(90, 0.0), np.full(8, 1.0), np.full(2, -100.0)])
    nodes, weights = np.array([[-100.0, 0.0, 1.0]]), np.array([[0.02, 0.9, 0.08]])
    at = np.linspace(-6, 6, 3001)
    (curve,) = density(nodes, weights, at, linear=0.01, width=0.1)
    expected = norm.pdf(at[:, None], place(spectrum, 0.01), 0.1).mean(axis=1)
    np.testing.assert_allclose(curve, expected, rtol=1e-12, atol=1e-300)
    around = np.abs(at - place(np.array([1.0]), 0.01)) < 0.5
    assert curve[around].sum() * 0.004 == pytest.approx(0.08, rel=1e-5)  # 5 widths: 1 - 6e-7


def test_the_negative_part_is_that_of_the_spectrum():
    np.testing.assert_allclose(negative_square(np.array(NODES), np.array(WEIGHTS)), [0.04, 0.12])
    mean, stderr = mean_and_stderr(np.array([0.04, 0.12]))
    assert mean == pytest.approx(0.08)
    assert stderr == pytest.approx(0.04)  # |0.12 - 0.04| / sqrt(2) / sqrt(2)
    assert np.isnan(mean_and_stderr(np.array([0.04]))[1])


def test_spectrum_is_the_mean_density_within_the_range_over_draws():
    result = weights_result()
    ax = Figure().add_subplot()
    spectrum(result, ax, linear=0.5)
    x, y = ax.lines[0].get_data()
    curves = PARAMETERS * density(
        np.array(NODES), np.array(WEIGHTS), place(np.asarray(x), 0.5), linear=0.5
    )
    np.testing.assert_allclose(y, curves.mean(axis=0), rtol=1e-6)  # places are computed twice
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(curves.max(), rel=1e-6)
    for edge in (curves.min(axis=0), curves.max(axis=0)):
        assert np.isin(np.round(edge, 6), np.round(band[:, 1], 6)).all()
    assert (ax.get_xscale(), ax.get_yscale()) == ("asinh", "log")
    assert ax.get_xlabel() == "eigenvalue of the Hessian (nat / weight²)"
    assert "kernel: 0.15 decades" in ax.get_ylabel()


def test_top_eigenvalues_are_marked_and_hollow_where_not_converged():
    ax = Figure().add_subplot()
    spectrum(weights_result(), ax)
    filled, hollow = ax.lines[1:3]
    assert sorted(filled.get_xdata()) == [-2, 40]
    assert list(hollow.get_xdata()) == [-2]
    assert hollow.get_markerfacecolor() == "white"
    assert filled.get_markerfacecolor() == filled.get_color()


def test_the_axis_resolves_no_more_than_the_nodes_do():
    # the node nearest zero has its farther neighbour at a distance of 2 and 2.1
    assert resolution([weights_result()]) == 2
    assert resolution([weights_result(), weights_result()]) == 2


def test_trace_norm_and_negative_eigenvalues_are_told():
    figure = draw(weights_result(), kind="spectrum")
    (told,) = [text.get_text() for text in figure.axes[0].texts]
    assert "trace 58.1 ± 2.0, Frobenius norm 40.123 ± 0.050" in told
    # 1,000 times 4 * (0.01, 0.03): 80 ± 40, whose root is 8.94 ± 40 / (2 * 8.94)
    assert told.endswith("norm of the negative part 8.9 ± 2.2")


def test_results_in_one_spectrum_share_its_axis():
    results = [weights_result(), weights_result(file="fmmnet18.pt")]
    results[1]["node"].values[:] *= 10
    (ax,) = draw(results, kind="spectrum").axes
    first, second = (line for line in ax.lines if line.get_marker() == "None")
    assert ax.xaxis.get_transform().linear_width == 20
    assert first.get_color() != second.get_color()
    marks = [line for line in ax.lines if line.get_marker() != "None" and len(line.get_xdata())]
    rows = [line.get_ydata()[0] for line in marks if line.get_color() == second.get_color()]
    assert set(rows) == {0.12}, "a row of marks for each result"
    labels = _legend(draw(results, kind="spectrum"))
    assert labels[0].startswith("resnet18: trace")
    assert labels[1].startswith("fmmnet18: trace")


def test_every_part_alone_draws_what_it_holds(tmp_path):
    assert fitting([weights_result("density")]) == ["spectrum"]
    assert fitting([weights_result("eigenpairs")]) == ["eigenvalues"]
    (text,) = draw(weights_result("density")).axes[0].texts
    assert text.get_text() == "norm of the negative part 8.9 ± 2.2"
    assert draw(weights_result("eigenpairs")).axes
    path = tmp_path / "net.hessian.h5"
    store.save(weights_result("trace"), path)
    assert draw_beside(path) == []


def test_random_vectors_not_measured_are_left_out():
    result = weights_result("density")
    result["node"].values[1] = np.nan
    ax = Figure().add_subplot()
    spectrum(result, ax)
    assert len(ax.collections) == 0  # a single curve has no range
    assert "1 of 2 random vectors measured" in draw(result).axes[0].texts[0].get_text()
    result["node"].values[:] = np.nan
    with pytest.raises(ValueError, match="no random vector of the density has been measured"):
        draw(result)


def test_eigenvalues_by_rank_tell_sign_residual_and_convergence():
    ax = Figure().add_subplot()
    ranked(weights_result("eigenpairs"), ax)
    lines = [line for line in ax.lines if line.get_marker() == "None" and len(line.get_xdata())]
    shown = [
        (line.get_linestyle(), list(line.get_xdata()), list(line.get_ydata())) for line in lines
    ]
    assert shown == [("-", [1], [40]), ("--", [2], [2]), ("--", [1], [2])]
    bars = ax.collections[1].get_segments()[0]
    np.testing.assert_allclose(bars[:, 1], [1, 3])  # 2, with a residual of half of it
    assert ax.get_ylabel() == "|eigenvalue of the Hessian| (nat / weight²)"


def test_other_matrices_are_named():
    ax = Figure().add_subplot()
    spectrum(weights_result(matrix="gauss_newton", scale="relative"), ax)
    assert ax.get_xlabel().startswith(
        "eigenvalue of the Gauss-Newton matrix, relative to the weights"
    )


def test_input_curvature_is_the_distribution_over_examples():
    result = inputs_result([5.0, 1.0, -3.0], [5.0, 1.0, 0.0], jacobian=True)
    ax = Figure().add_subplot()
    curvature(result, ax)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 3, 5])
    np.testing.assert_allclose(line.get_ydata(), [1 / 3, 2 / 3, 1])
    assert ax.get_xscale() == "log"
    (ax,) = draw(result).axes
    assert [text.get_text() for text in ax.texts] == ["1 of 3 negative"]


def test_gauss_newton_stands_beside_where_the_network_is_not_piecewise_linear():
    result = inputs_result([5.0, 1.0, 4.0], [2.0, 1.0, 0.5], jacobian=False)
    result["converged"].values[1] = 0
    figure = draw(result)
    first, second = figure.axes
    np.testing.assert_array_equal(first.lines[1].get_xdata(), [0.5, 1, 2])
    np.testing.assert_array_equal(second.lines[0].get_xdata(), [0.5, 0.5, 0.5])
    assert "Gauss-Newton" in _legend(figure)
    assert [text.get_text() for text in first.texts] == ["1 of 3 not converged"]


def test_the_largest_only_counts_what_is_not_positive():
    ax = Figure().add_subplot()
    curvature(inputs_result([5.0, -1.0], [5.0, 0.0], jacobian=True, which=["largest"]), ax)
    np.testing.assert_allclose(ax.lines[0].get_data(), [[5], [1]])


def test_the_most_negative_are_drawn_with_their_sign_changed():
    result = inputs_result([-5.0, 1.0], [5.0, 1.0], jacobian=False, which=["smallest"])
    first = draw(result).axes[0]
    np.testing.assert_allclose(first.lines[0].get_data(), [[5], [1]])
    assert first.get_xlabel().startswith("−smallest eigenvalue")
    assert [text.get_text() for text in first.texts] == ["1 of 2 not negative"]


def test_weights_and_inputs_are_not_drawn_in_one_figure():
    pixels = inputs_result(np.ones(3), np.ones(3), jacobian=True)
    with pytest.raises(ValueError, match=r"over measurement.*over example.*separate figures"):
        draw([weights_result(), pixels])
