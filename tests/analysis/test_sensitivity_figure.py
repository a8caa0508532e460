from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from analysis.figures import FIGURES, draw, fitting, save
from analysis.figures.distribution import tick_text
from analysis.figures.sensitivity import distribution, radius_curve

RADII = np.array([0.001, 0.1, 1.0])
KINDS = ["random", "gradient"]


def sensitivity(
    name: str = "resnet18", *, at_radii: bool = True, noisy: bool = True, scale: float = 1.0
) -> xr.Dataset:
    """A result as `landscape.sensitivity` stores it, of four examples."""
    examples = np.arange(4)
    slopes = {"units": "nat / pixel range", "long_name": "L2 norm of the loss gradient"}
    data = {
        "loss": ("example", np.array([0.1, 0.2, 0.3, 4.0]), {"units": "nat", "long_name": "loss"}),
        "gradient_l2": ("example", scale * np.array([10.0, 0.01, 1.0, 0.1]), slopes),
        "correct": ("example", np.array([1.0, 1, 1, 0])),
        "margin": ("example", np.array([2.0, 1, 1, -1])),
        "measured": ("example", np.ones(4, "u1")),
    }
    coords = {"example": examples}
    if noisy:
        noise = {"units": "pixel range", "long_name": "standard deviation of the noise"}
        coords["sigma"] = ("sigma", np.array([0.1, 0.5]), noise)
        dims, nat = ("example", "sigma"), {"units": "nat", "long_name": "loss under noise"}
        data["noise_loss"] = (dims, scale * np.outer([1, 2, 3, 6], [1.0, 100.0]), nat)
        data["noise_accuracy"] = (dims, np.outer([1, 1, 0.5, 0], [1.0, 0.5]), {"units": "1"})
    if at_radii:
        coords |= {"radius": RADII, "direction_kind": np.array(KINDS, dtype=object)}
        bends = {"units": "nat / pixel range²", "long_name": "bend"}
        for variable in ("second_difference", "gradient_change"):
            values = scale * np.array([[8.0, 4.0, 2.0], [80.0, 40.0, 20.0]])
            data[variable] = (("example", "direction", "radius"), np.zeros((4, 2, 3)), bends)
            for quantile, factor in {"q10": 0.5, "median": 1.0, "q90": 3.0}.items():
                data[f"{variable}_{quantile}"] = (
                    ("direction_kind", "radius"),
                    factor * values,
                    bends,
                )
        floor = np.tile([6.0, 1e-3, 1e-5], (4, 1))
        data["second_difference_floor"] = (("example", "radius"), floor, bends)
    provenance = {"checkpoint": {"file": f"{name}.pt", "sha256": "0" * 64}}
    attributes = {
        "probe": "sensitivity",
        "schema_version": 2,
        "spec": json.dumps({"seed": 0}),
        "provenance": json.dumps(provenance),
    }
    return xr.Dataset(data, coords, attributes)


def blank_axes() -> Axes:
    return Figure().add_subplot()


def test_a_distribution_steps_up_at_every_example() -> None:
    ax = blank_axes()
    distribution(sensitivity(), ax, variable="gradient_l2")
    line, middle = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [0.01, 0.1, 1.0, 10.0])
    np.testing.assert_array_equal(line.get_ydata(), [0.25, 0.5, 0.75, 1.0])
    assert ax.get_xscale() == "log"
    assert (middle.get_xdata(), middle.get_ydata()) == ([0.1], [0.5])


def test_values_without_a_place_on_the_axis_count_all_the_same() -> None:
    result = sensitivity()
    result["gradient_l2"][:] = [0.0, 1.0, 2.0, np.inf]
    ax = blank_axes()
    distribution(result, ax, variable="gradient_l2")
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1.0, 2.0])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, 0.75])


def test_examples_not_yet_measured_are_left_out() -> None:
    result = sensitivity()
    result["gradient_l2"][3], result["measured"][3] = np.nan, 0
    ax = blank_axes()
    distribution(result, ax, variable="gradient_l2")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1 / 3, 2 / 3, 1])


def test_a_curve_is_the_stored_median_in_its_stored_band() -> None:
    ax = blank_axes()
    radius_curve(sensitivity(), ax, variable="second_difference", kind="gradient")
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), RADII)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [80, 40, 20])
    band = next(c for c in ax.collections if isinstance(c, PolyCollection))
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (10, 240)
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_a_median_that_is_not_finite_leaves_through_the_top_and_is_marked() -> None:
    result = sensitivity()
    result["second_difference_median"][0, 2] = np.nan
    result["second_difference_q90"][0, 2] = 1e20
    ax = blank_axes()
    radius_curve(result, ax, variable="second_difference", kind="random")
    # 1,000 times the smallest median, 4, and a margin: what explodes ends above, out of sight.
    assert ax.get_ylim() == pytest.approx((1 / 1.5, 1.5 * 4000))
    assert ax.lines[0].get_ydata()[2] > ax.get_ylim()[1]
    (cross,) = (line for line in ax.lines if line.get_marker() == "x" and len(line.get_xdata()))
    assert list(cross.get_xdata()) == [1.0]


def test_the_rounding_error_is_drawn_where_it_matters() -> None:
    close, far = blank_axes(), blank_axes()
    radius_curve(sensitivity(), close, variable="second_difference", kind="random")
    result = sensitivity()
    result["second_difference_floor"] *= 1e-6
    radius_curve(result, far, variable="second_difference", kind="random")
    assert "rounding error" in close.get_legend_handles_labels()[1]
    assert "rounding error" not in far.get_legend_handles_labels()[1]


@pytest.mark.parametrize("columns", [1, 2])
def test_two_networks_share_panels_and_heights(columns: int) -> None:
    figure = draw(
        [sensitivity(), sensitivity("fmmnet18", scale=100.0)], kind="radii", columns=columns
    )
    assert [ax.get_title() for ax in figure.axes][:2] == KINDS
    assert len(figure.axes) == 4
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    medians = [ax.lines[0].get_ydata()[0] for ax in figure.axes[:2]]
    assert medians == [8, 80]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["resnet18", "fmmnet18"]


def test_every_result_has_the_figures_that_its_parts_allow(tmp_path: Path) -> None:
    assert fitting([sensitivity()]) == ["norms", "radii", "noise"]
    slim = sensitivity(at_radii=False, noisy=False)
    assert fitting([slim]) == ["norms"]
    figure = draw(slim.drop_vars("gradient_l2"), kind="norms")
    assert "loss" in figure.axes[0].get_xlabel()
    first, again = (save(draw(slim), tmp_path / name, formats=("pdf",))[0] for name in "ab")
    assert first.read_bytes() == again.read_bytes()


def summed_up(result: xr.Dataset, variable: str, **rows: object) -> xr.Dataset:
    """`result` with a variable at radii whose summaries are `rows`, the same for both kinds."""
    shape = (len(KINDS), len(RADII))
    added = {variable: (("example", "direction", "radius"), np.zeros((4, 2, 3)), {"units": "1"})}
    for name in ("mean", "mean_stderr", "q10", "median", "q90"):
        values = np.broadcast_to(np.asarray(rows.get(name, 0.0), float), shape)
        added[f"{variable}_{name}"] = (("direction_kind", "radius"), values.copy(), {"units": "1"})
    return result.assign(added)


def test_accuracies_at_radii_are_means_with_one_standard_error_on_a_linear_axis() -> None:
    result = summed_up(
        sensitivity(), "moved_accuracy", mean=[1, 0.75, 0.5], mean_stderr=[0, 0.1, np.nan], q90=1
    )
    figure = draw(result, variable="moved_accuracy")
    ax = figure.axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, 0.75, 0.5])
    band = next(c for c in ax.collections if isinstance(c, PolyCollection))
    edges = band.get_paths()[0].vertices
    np.testing.assert_allclose(np.unique(edges[edges[:, 0] == 0.1, 1]), [0.65, 0.85])
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim() == pytest.approx((0.48, 1.02))
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["resnet18", "\N{PLUS-MINUS SIGN} 1 standard error"]


def test_curvatures_of_both_signs_are_linear_around_zero_and_logarithmic_beyond() -> None:
    result = summed_up(
        sensitivity(), "curvature", q10=[-20, -2, -np.inf], median=[0, 0.01, np.nan], q90=[20, 2, 9]
    )
    ax = draw(result, variable="curvature").axes[0]
    assert ax.get_yscale() == "symlog"
    low, high = ax.get_ylim()
    assert (low, high) == pytest.approx((-30, 30))  # the largest that is finite, and a margin
    assert "linear below 0.1" in ax.get_ylabel().replace("\n", " ")
    np.testing.assert_array_equal(ax.lines[0].get_ydata()[:2], [0, 0.01])
    assert ax.lines[0].get_ydata()[2] > high
    assert sorted(ax.get_yticks()) == [-10, -0.1, 0, 0.1, 10]


def test_a_variable_that_the_kind_cannot_draw_is_refused_with_those_it_can() -> None:
    result = summed_up(sensitivity(), "curvature")
    for kind, there in (
        ("radii", "second_difference, gradient_change, curvature"),
        ("norms", "loss, gradient_l2"),  # neither a margin, negative, nor what is right or wrong
        ("noise", "noise_loss, noise_accuracy"),
    ):
        with pytest.raises(ValueError, match=f"that {kind} could draw. Ask for {there}.$"):
            draw(result, kind=kind, variable="margin")
    assert fitting([result], variable="curvature") == ["radii"]
    with pytest.raises(ValueError, match="no curvature that radii could draw"):
        draw([result, sensitivity()], variable="curvature")


def test_distributions_fill_their_rows_evenly() -> None:
    result = sensitivity()
    for name in FIGURES["norms"].variables:
        result[name] = result["gradient_l2"]
    for columns, shape in ((1, (3, 2)), (2, (2, 3))):
        grid = draw(result, kind="norms", columns=columns).axes[0].get_gridspec()
        assert (grid.nrows, grid.ncols) == shape


def test_noise_is_drawn_from_none_as_means_with_one_standard_error() -> None:
    result = sensitivity()
    figure = draw([result, sensitivity("fmmnet18", scale=2.0)], kind="noise")
    loss, accuracy = figure.axes
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    np.testing.assert_array_equal(accuracy.lines[0].get_xdata(), [0, 0.1, 0.5])
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1.15, 3, 300])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [0.75, 0.625, 0.3125])
    band = accuracy.collections[0].get_paths()[0].vertices
    error = np.std([1, 1, 0.5, 0], ddof=1) / 2
    np.testing.assert_allclose(
        np.unique(band[band[:, 0] == 0.1, 1]), [0.625 - error, 0.625 + error], rtol=1e-12
    )
    assert "original inputs" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_noise_counts_only_the_examples_measured_and_tells_of_losses_not_finite() -> None:
    result = sensitivity()
    result["noise_loss"][0, 1] = np.inf
    result["measured"][3] = 0
    result["noise_loss"][3] = result["noise_accuracy"][3] = np.nan
    loss, accuracy = draw(result, kind="noise").axes
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [0.2, 2, np.nan])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata()[:2], [1, 2.5 / 3])
    assert "1 not finite" in [text.get_text() for text in loss.texts]
    one = result.isel(example=[1])  # no standard error
    assert len(draw(one, kind="noise").axes) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1000, "$10^{3}$"),
        (2000, r"$2\times10^{3}$"),
        (999.9999, "1000"),
        (5e-3, r"$5\times10^{-3}$"),
        (1e-3, "$10^{-3}$"),
        (9.999e5, "$10^{6}$"),
        (3162.27766, r"$3.16\times10^{3}$"),
        (-2e4, "\N{MINUS SIGN}" + r"$2\times10^{4}$"),
        (0.02, "0.02"),
        (0.0, "0"),
        (float("inf"), "inf"),
    ],
)
def test_a_tick_reads_its_own_value_and_not_the_nearest_power_of_ten(value, text):
    assert tick_text(value) == text
