from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PolyCollection
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure

from analysis.figures import draw, fitting, style
from analysis.figures.contour import contour
from analysis.figures.grid import Grid
from analysis.figures.scale import shared_scale
from analysis.figures.surface3d import surface3d


def _axes(projection=None):
    return Figure().add_subplot(projection=projection)


def _gap(ax, label):
    (collection,) = [
        marks
        for marks in ax.collections
        if isinstance(marks, PolyCollection) and marks.get_label() == label
    ]
    return np.concatenate([path.vertices for path in collection.get_paths()])


def test_contour_has_the_limits_labels_and_levels_of_its_result(bowl):
    ax = _axes()
    filled = contour(bowl, ax)
    assert ax.get_xlim() == (-1, 1)
    assert ax.get_ylim() == (-0.5, 0.5)
    assert ax.get_xlabel() == "step along direction 1 (filter norms)"
    assert ax.get_ylabel() == "step along direction 2 (filter norms)"
    assert ax.get_aspect() == 1
    np.testing.assert_array_equal(filled.levels, shared_scale([bowl], "loss").levels)


def test_axes_of_different_units_are_not_drawn_to_scale(bowl):
    bowl["beta"].attrs["units"] = "pixel range"
    ax = _axes()
    contour(bowl, ax)
    assert ax.get_aspect() == "auto"


def test_contour_of_many_decades_has_logarithmic_levels(surface):
    result = surface(
        lambda a, b: 10 ** (8 * a**2 - 1) + 0 * b, alpha=np.linspace(-1, 1, 9), beta=[0, 1, 2]
    )
    scale = shared_scale([result], "loss", ceiling=np.inf)
    filled = contour(result, _axes(), scale=scale)
    np.testing.assert_allclose(filled.levels, np.arange(-1, 8), atol=1e-12)  # rounding of log10


@pytest.mark.parametrize(("value", "label"), [(np.inf, "not finite"), (np.nan, "not finite")])
def test_value_that_is_not_finite_is_marked_where_it_was_measured(bowl, value, label):
    bowl["loss"].values[4, 3] = value  # alpha 1/3, beta 0.25
    ax = _axes()
    contour(bowl, ax)
    x, y = _gap(ax, label).T
    np.testing.assert_allclose([x.min(), x.max()], [0, 2 / 3], atol=1e-12)
    np.testing.assert_allclose([y.min(), y.max()], [0, 0.5], atol=1e-12)


def test_point_not_measured_is_marked_whatever_the_order_of_the_dimensions(bowl):
    bowl["measured"].values[0, 4] = 0  # alpha -1, beta 0.5
    ax = _axes()
    contour(bowl.assign(loss=bowl["loss"].transpose("beta", "alpha")), ax)
    x, y = _gap(ax, "not measured").T
    np.testing.assert_allclose([x.min(), x.max()], [-1, -2 / 3])
    np.testing.assert_allclose([y.min(), y.max()], [0.25, 0.5])


def test_trained_network_is_marked_at_the_origin_and_only_there(bowl, surface):
    ax = _axes()
    contour(bowl, ax)
    (star,) = ax.lines
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (0, 0)
    assert star.get_label() == "trained network"
    away = _axes()
    contour(surface(np.ones((2, 2)), alpha=[1, 2], beta=[0, 1]), away)
    assert not away.lines


@pytest.mark.parametrize(("draw_marks", "projection"), [(contour, None), (surface3d, "3d")])
def test_plane_through_two_networks_marks_both(surface, draw_marks, projection):
    result = surface(lambda a, b: 1 + a + b, alpha=[0, 0.5, 1], beta=[-1, 0, 1], to="b.pt")
    ax = _axes(projection)
    draw_marks(result, ax)
    assert [tuple(star.get_data()) for star in ax.lines] == [([0], [0]), ([1], [0])]


def test_drawing_does_not_write_to_the_result(bowl):
    bowl["loss"].values[2, 2] = np.inf
    before = bowl.copy(deep=True)
    contour(bowl, _axes())
    surface3d(bowl, _axes("3d"))
    xr.testing.assert_identical(bowl, before)


def test_faces_of_the_surface_have_every_measured_value_as_a_corner(bowl):
    grid = Grid.of(bowl, "loss")
    faces = grid.faces(grid.values)
    corners = {tuple(corner) for face in faces for corner in face}
    assert len(faces) == 6 * 4
    assert corners == {
        (a, b, float(bowl["loss"].sel(alpha=a, beta=b)))
        for a in bowl["alpha"].values
        for b in bowl["beta"].values
    }


def test_face_with_one_unknown_corner_is_a_triangle(surface):
    grid = Grid.of(surface([[1, 2], [3, np.nan]], alpha=[0, 1], beta=[0, 1]), "loss")
    (face,) = grid.faces(grid.values)
    assert {tuple(corner) for corner in face} == {(0, 0, 1), (0, 1, 2), (1, 0, 3)}
    assert not grid.lone().any()


def test_known_point_among_unknown_ones_stands_alone(surface):
    values = np.full((3, 3), np.nan)
    values[0, 2] = 1.0
    grid = Grid.of(surface(values, alpha=[0, 1, 2], beta=[0, 1, 2]), "loss")
    assert grid.faces(grid.values) == []
    assert np.argwhere(grid.lone()).tolist() == [[2, 0]]  # rows are beta


def test_surface_in_three_dimensions_has_a_face_for_every_cell(bowl):
    ax = _axes("3d")
    drawn = surface3d(bowl, ax)
    assert drawn.get_array().size == 6 * 4
    assert ax.get_zlim() == tuple(shared_scale([bowl], "loss").levels[[0, -1]])
    assert "(filter norms)" in ax.get_xlabel()


def test_results_side_by_side_share_colours_limits_and_one_colour_bar(bowl, surface):
    wider = surface(
        lambda a, b: 1 + a**2 + b**2, alpha=[-2, 0, 2], beta=[-1, 0, 1], file="fmmnet18.pt"
    )
    figure = draw([bowl, wider], kind="contour", columns=2)
    left, right, bar = figure.axes
    sets = [
        marks
        for ax in (left, right)
        for marks in ax.collections
        if isinstance(marks, ContourSet) and marks.filled
    ]
    assert sets[0].norm is sets[1].norm
    assert sets[0].levels.tolist() == sets[1].levels.tolist()
    assert left.get_xlim() == right.get_xlim() == (-2, 2)
    assert left.get_ylim() == right.get_ylim() == (-1, 1)
    assert [left.get_title(), right.get_title()] == ["resnet18", "fmmnet18"]
    assert bar.get_ylabel() == "loss (nat)"
    assert figure.get_figwidth() == style.WIDTHS[2]


def test_surfaces_side_by_side_share_their_heights(bowl, surface):
    higher = surface(lambda a, b: 3 + a + b, alpha=[-1, 0, 1], beta=[-1, 0, 1], file="b.pt")
    figure = draw([bowl, higher], kind="surface3d")
    assert figure.axes[0].get_zlim() == figure.axes[1].get_zlim() == (0.5, 5.0)


def test_note_counts_points_not_measured_and_not_finite(bowl):
    bowl["measured"].values[5:] = 0
    bowl["loss"].values[0, 0] = np.inf
    figure = draw(bowl, kind="contour")
    notes = [text.get_text() for text in figure.axes[0].texts]
    assert "25 of 35 points measured, 1 not finite" in notes
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(legend) == ["not finite", "not measured", "trained network"]


def test_logarithmic_colour_bar_says_so(surface):
    result = surface(lambda a, b: 10 ** (3 * a) + b, alpha=[0, 0.5, 1], beta=[0, 0.5, 1])
    assert draw(result).axes[-1].get_ylabel() == "loss (nat), log scale"
    assert draw(result, scale="linear").axes[-1].get_ylabel() == "loss (nat)"


def test_accuracy_can_be_drawn_instead_of_loss(bowl):
    assert draw(bowl, variable="accuracy").axes[-1].get_ylabel() == "accuracy"


@pytest.mark.parametrize("kind", ["contour", "surface3d"])
@pytest.mark.parametrize(("alpha", "beta"), [([0.0], [0.0]), ([-1, 0, 1], [0.0])])
def test_grid_of_one_point_or_one_row_is_drawn_as_points(surface, kind, alpha, beta):
    result = surface(lambda a, b: 1 + a**2 + b, alpha=alpha, beta=beta)
    figure = draw(result, kind=kind)
    points = figure.axes[0].collections[-1].get_offsets()
    assert len(points) == len(alpha)


@pytest.mark.parametrize("columns", [1, 2])
def test_nothing_is_drawn_outside_the_page(bowl, columns):
    for kind in ("contour", "surface3d"):
        figure = draw(bowl, kind=kind, columns=columns)
        figure.draw_without_rendering()  # lays the figure out, as saving does
        page, inked = figure.bbox_inches, figure.get_tightbbox()
        assert page.x0 <= inked.x0
        assert inked.x1 <= page.x1
        assert page.y0 <= inked.y0
        assert inked.y1 <= page.y1


def test_results_that_cannot_share_a_figure_are_refused(bowl, surface):
    line = surface([1.0, 2.0], alpha=[0, 1])
    unnormalised = surface(np.ones((2, 2)), alpha=[0, 1], beta=[0, 1], units="weight units")
    with pytest.raises(ValueError, match="2-dimensional surface.*1-dimensional surface"):
        draw([bowl, line])
    with pytest.raises(ValueError, match=r"alpha is .*\(filter norms\).*\(weight units\)"):
        draw([bowl, unnormalised])
    with pytest.raises(ValueError, match="profile does not fit a 2-dimensional surface"):
        draw(bowl, kind="profile")
    with pytest.raises(ValueError, match="no result to draw"):
        draw([])
    with pytest.raises(ValueError, match="columns=3"):
        draw(bowl, columns=3)
    with pytest.raises(ValueError, match="no figure is for that"):
        draw(bowl.assign_attrs(probe="attention"))


def test_kinds_that_fit_depend_on_the_dimensions(bowl, surface):
    assert fitting([bowl]) == ["contour", "surface3d"]
    assert fitting([surface([1.0, 2.0], alpha=[0, 1])]) == ["profile"]
