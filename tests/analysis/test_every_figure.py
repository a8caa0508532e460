"""What holds for every kind of figure: files with other parts, extents of texts, names."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import xarray as xr

from analysis.figures import FIGURES, draw, fitting, left_out
from analysis.figures.__main__ import main
from landscape.core import store
from tests.analysis.every_figure import RESULTS, parts, renamed

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
