from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.figures import draw
from analysis.figures.profile import profile


@pytest.fixture
def line(surface):
    return surface(lambda a: 1 + a**2, alpha=np.linspace(-1, 1, 5))


def _legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_profile_is_the_stored_line_within_one_standard_error(line):
    ax = Figure().add_subplot()
    profile(line, ax)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), line["alpha"])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), line["loss"])
    band = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [1 - 0.01, 2 + 0.01])
    assert ax.get_xlabel() == "step along direction 1 (filter norms)"
    assert ax.get_ylabel() == "loss (nat)"
    assert ax.get_xlim() == (-1, 1)


def test_profile_figure_shows_loss_above_accuracy(line):
    above, below = draw(line).axes
    assert [above.get_ylabel(), below.get_ylabel()] == ["loss (nat)", "accuracy"]
    assert above.get_xlim() == below.get_xlim() == (-1, 1)
    assert above.get_title() == "resnet18"
    (only,) = draw(line, variable="accuracy").axes
    assert only.get_ylabel() == "accuracy"


def test_result_without_accuracy_shows_its_loss_alone(line):
    result = line.drop_vars(["accuracy", "accuracy_stderr"])
    assert [ax.get_ylabel() for ax in draw(result).axes] == ["loss (nat)"]
    with pytest.raises(ValueError, match="has no accuracy that profile could draw. Ask for loss"):
        draw(result, variable="accuracy")


def test_results_in_one_profile_differ_in_colour_and_line_style(line, surface):
    other = surface([3.0, 2.0, 3.0], alpha=[-2, 0, 2], file="fmmnet18.pt")
    figure = draw([line, other])
    first, second = [
        next(marks for marks in figure.axes[0].lines if marks.get_label() == name)
        for name in ("resnet18", "fmmnet18")
    ]
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    assert figure.axes[0].get_xlim() == (-2, 2)
    assert _legend(figure)[:2] == ["resnet18", "fmmnet18"]


def test_line_between_two_checkpoints_marks_both(surface):
    result = surface([1.0, 4.0, 1.0], alpha=[0, 0.5, 1], to="files/resnet18-b.pt")
    figure = draw(result)
    ends = [
        marks.get_xdata()[0]
        for marks in figure.axes[0].lines
        if marks.get_label() == "the two networks"
    ]
    assert ends == [0, 1]
    assert figure.axes[0].get_title() == "resnet18 → resnet18-b"


def test_profile_is_broken_where_values_are_not_finite_or_not_measured(line):
    line["loss"].values[3] = np.inf
    line["measured"].values[1] = 0
    figure = draw(line, variable="loss")
    (ax,) = figure.axes
    np.testing.assert_array_equal(np.isnan(ax.lines[0].get_ydata()), [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [-1, 0, 1])  # each stands alone
    np.testing.assert_array_equal(ax.lines[2].get_xdata(), [0.5])  # the infinite one
    assert "not finite" in _legend(figure)
    assert "4 of 5 points measured, 1 not finite" in [text.get_text() for text in ax.texts]


def test_profile_of_many_decades_is_logarithmic_and_says_so(surface):
    result = surface(lambda a: 10 ** (6 * a**2), alpha=np.linspace(-1, 1, 5))
    result["loss_stderr"].values[:] = result["loss"].values * (1 - 1e-9)
    ax = Figure().add_subplot()
    profile(result, ax)
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "loss (nat), log scale"
    assert ax.get_ylim()[0] > 0.1  # the error bar, down to 1e-9, does not stretch the axis


def test_losses_of_examples_are_drawn_as_order_statistics(surface):
    result = surface([5.5, 55.0], alpha=[0, 1], space="inputs", units="pixel range")
    examples = np.outer([1, 10], np.arange(1, 12)).astype(float)
    examples[1, -1] = np.inf
    result["example_loss"] = ("alpha", "example"), examples
    figure = draw(result, variable="loss")
    lines = [marks.get_ydata() for marks in figure.axes[0].lines if len(marks.get_xdata()) == 2]
    for quantile in ([2, 20], [6, 60], [10, 100]):
        assert any(np.array_equal(values, quantile) for values in lines)
    assert "original inputs" in _legend(figure)
    assert "median of examples" in _legend(figure)


def test_profile_of_one_point_is_a_dot(surface):
    (ax,) = draw(surface([2.0], alpha=[0.0]), variable="loss").axes
    assert ax.lines[1].get_xdata().tolist() == [0.0]
