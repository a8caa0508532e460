"""What holds for every kind of figure: files with other parts, extents of texts, names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import xarray as xr
from matplotlib.figure import Figure

from analysis.figures import FIGURES, draw, draw_beside, fitting, left_out, pages, style
from analysis.figures.__main__ import main
from landscape.core import store
from tests.analysis.every_figure import LONG, MATHS, RESULTS, UNBROKEN, parts, renamed
from tests.analysis.extents import faults

# Of panels, one below the other: one result is enough.
BLOCKS = ("contributions", "attention", "maps", "convergence")
ONE_LINE = 260  # characters, with the names of two files


def drawn_or_refused(shown: Sequence[xr.Dataset], kind: str) -> str:
    """What is said where the results cannot be drawn together; empty where they are."""
    try:
        draw(shown, kind=kind)
    except ValueError as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) <= ONE_LINE, said
        return said
    return ""


@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.usefixtures("not_laid_out")
def test_files_with_other_parts_draw_what_they_share_or_say_what_differs(kind: str) -> None:
    """Whichever comes first, and whichever of its variables one of them lacks."""
    whole = renamed(RESULTS[kind](), "full")
    assert drawn_or_refused([whole], kind) == ""
    for about, part in parts(kind):
        part = renamed(part, "part")
        said = [drawn_or_refused(pair, kind) for pair in ([whole, part], [part, whole])]
        assert bool(said[0]) == bool(said[1]), about
        assert not said[0] or "part.h5" in said[0], about


@pytest.mark.parametrize("kind", ["radii", "paths"])
def test_nothing_in_common_is_refused_with_what_each_has(kind: str) -> None:
    _, (_, one), (_, other) = list(parts(kind))[-3:]
    said = drawn_or_refused([renamed(one, "a"), renamed(other, "b")], kind)
    assert f"no {FIGURES[kind].compared[0]} is in all" in said
    assert "a.h5" in said
    assert "b.h5" in said


@pytest.mark.parametrize("kind", ["norms", "eigenvalues", "profile"])
def test_one_variable_in_two_units_is_refused(kind: str) -> None:
    one, other = RESULTS[kind](), RESULTS[kind]()
    for name in FIGURES[kind].variables:
        if name in other:
            other[name].attrs["units"] = "bit"
    said = drawn_or_refused([renamed(one, "a"), renamed(other, "b")], kind)
    assert "(bit) in b.h5" in said


def test_hessians_of_other_matrices_share_no_axis() -> None:
    from tests.analysis.test_spectrum_figure import weights_result

    pair = [renamed(weights_result(matrix=name), name) for name in ("hessian", "gauss_newton")]
    said = drawn_or_refused(pair, "spectrum")
    assert "matrix is hessian in hessian.h5, matrix is gauss_newton in gauss_newton.h5" in said


def test_the_command_draws_what_is_shared_and_says_what_is_not(tmp_path, capsys) -> None:
    results = [RESULTS["radii"](), RESULTS["radii"]().drop_vars(["second_difference"])]
    files = []
    for name, result in zip(("full", "part"), results, strict=True):
        files.append(tmp_path / f"{name}.near.h5")
        store.save(result, files[-1])
    for pair in (files, files[::-1]):
        assert main([*map(str, pair), "--format", "png", "--out", str(tmp_path / "x")]) == 0
        printed = capsys.readouterr()
        assert printed.err == "radii not drawn, part.near.h5 holds no second_difference.\n"
        kinds = [line.rpartition("x.")[2] for line in printed.out.splitlines()]
        assert kinds == ["norms.png", "noise.png"]
    assert main([*map(str, files), "--kind", "radii"]) == 1
    assert "part.near.h5 holds no second_difference. Ask for norms" in capsys.readouterr().err


def test_all_kinds_are_named_that_some_of_the_files_could_be() -> None:
    whole = RESULTS["spectrum"]()
    part = renamed(whole.drop_vars(["node", "weight", "draw"], errors="ignore"), "part")
    assert fitting([whole, part]) == ["eigenvalues"]
    assert left_out([whole, part]) == ["spectrum not drawn, part.h5 holds no node"]


@pytest.mark.parametrize("kind", RESULTS)
def test_texts_of_two_networks_lie_inside_their_figure_and_clear_of_each_other(kind: str) -> None:
    shown = [renamed(RESULTS[kind](), name) for name in ("resnet20", "fmmnet20")]
    (figure,) = pages(shown[: 1 if kind in BLOCKS else 2], kind=kind)
    assert faults(figure) == []
    assert figure.get_figheight() <= style.TALLEST


@pytest.mark.parametrize("kind", RESULTS)
def test_texts_lie_inside_their_figure_whatever_the_networks_are_called(kind: str) -> None:
    shown = [renamed(RESULTS[kind](), name) for name in (UNBROKEN, LONG, MATHS)]
    (figure,) = pages(shown[: 1 if kind in BLOCKS else 3], kind=kind, columns=2)
    assert faults(figure) == []


def test_what_the_extents_are_held_to_can_fail() -> None:
    """A number that the frame cuts, a lone tick, texts on one another and beyond the page."""
    figure = Figure(figsize=(3, 3))
    ax = figure.add_subplot()
    ax.set_xticks([0.5], ["0"])
    ax.text(0.99, 0.5, "200", rotation=1)
    ax.text(0.3, 0.3, "one")
    ax.text(0.3, 0.3, "other")
    figure.text(0.99, 0.5, "beyond")
    said = " ".join(faults(figure))
    for fault in (
        "'200' is cut by the frame",
        "'one' overlaps 'other'",
        "'beyond' leaves the figure",
        "{'0'} alone on an axis",
    ):
        assert fault in said


def test_a_figure_taller_than_a_page_is_divided_and_says_so() -> None:
    figures = pages(RESULTS["gallery"]().isel(gallery=[0, 1] * 4), kind="gallery")
    assert len(figures) > 1
    assert sum(len([ax for ax in figure.axes if ax.images]) for figure in figures) == 8
    for number, figure in enumerate(figures, start=1):
        assert figure.get_figheight() <= style.TALLEST
        assert figure.get_suptitle() == f"part {number} of {len(figures)}"


def test_parts_of_a_figure_are_numbered_files(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "net.between.h5"
    store.save(RESULTS["gallery"](), path)
    for module in ("analysis.figures", "analysis.figures.__main__"):
        monkeypatch.setattr(f"{module}.pages", lambda *_, **__: [Figure(), Figure()])
    wanted = [f"net.between.{kind}-{n}.png" for kind in ("paths", "gallery") for n in (1, 2)]
    assert main([str(path), "--format", "png"]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == wanted
    assert [one.name for one in draw_beside(path) if one.suffix == ".png"] == wanted


def test_panels_on_several_pages_share_their_scale_and_fill_whole_rows() -> None:
    results = [renamed(RESULTS["contour"](), f"net{n}") for n in range(10)]
    results[-1]["loss"].values[:] *= 2
    figures = pages(results, kind="contour")
    shown = [[ax for ax in figure.axes if ax.get_title()] for figure in figures]
    assert [ax.get_title() for axes in shown for ax in axes] == [f"net{n}" for n in range(10)]
    assert all(len(axes) % 2 == 0 for axes in shown)
    assert len({figure.axes[-1].get_ylim() for figure in figures}) == 1
    assert all(figure.get_figheight() <= style.TALLEST for figure in figures)


def test_names_are_written_letter_by_letter() -> None:
    assert style.written("a$x$b") == r"a\$x\$b"
    assert style.written("\u6a21 \u03c4") == "\\u6a21 \u03c4"
    assert not style.written("_net").startswith("_")
