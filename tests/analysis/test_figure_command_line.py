from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.figures import draw, draw_beside, save
from analysis.figures.__main__ import main
from landscape.core import store


@pytest.fixture
def files(bowl, surface, tmp_path):
    other = surface(lambda a, b: 1 + a * b, alpha=[-1, 0, 1], beta=[-1, 0, 1], file="fmmnet18.pt")
    line = surface([1.0, 2.0], alpha=[0, 1])
    paths = {}
    for name, result in (("resnet18", bowl), ("fmmnet18", other), ("line", line)):
        paths[name] = tmp_path / f"{name}.surface.h5"
        store.save(result, paths[name])
    return paths


def test_figures_stand_beside_their_result(files):
    names = [path.name for path in draw_beside(files["resnet18"])]
    assert names == [
        "resnet18.surface.contour.png",
        "resnet18.surface.contour.pdf",
        "resnet18.surface.surface3d.png",
        "resnet18.surface.surface3d.pdf",
    ]
    assert all((files["resnet18"].parent / name).stat().st_size > 1000 for name in names)


def test_result_without_a_kind_of_figure_has_none_beside_it(bowl, tmp_path):
    path = tmp_path / "resnet18.attention.h5"
    store.save(bowl.assign_attrs(probe="attention"), path)
    assert draw_beside(path) == []


def test_several_files_become_one_figure_named_after_all(files, capsys):
    chosen = [str(files[name]) for name in ("resnet18", "fmmnet18")]
    assert main([*chosen, "--kind", "contour", "--format", "png", "--columns", "2"]) == 0
    written = files["line"].with_name("resnet18-fmmnet18.surface.contour.png")
    assert capsys.readouterr().out.splitlines() == [str(written)]
    assert written.is_file()


def test_out_and_variable_are_part_of_the_name(files, tmp_path, capsys):
    stem = tmp_path / "figure-1"
    line = str(files["line"])
    assert main([line, "--out", str(stem), "--variable", "loss", "--format", "pdf", "--log"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{stem}.loss.profile.pdf"]


def test_mistakes_are_refused_with_one_line_on_stderr(files, tmp_path, capsys):
    for arguments, complaint in (
        ([files["resnet18"], files["line"]], "line.surface.h5 is a 1-dimensional surface"),
        ([files["line"], "--kind", "contour"], "contour does not fit"),
        ([tmp_path / "none.h5"], "no such file"),
        ([files["line"], "--out", tmp_path / "none" / "x"], "no such folder"),
        ([files["line"]] * 30, "--out"),
    ):
        assert main([str(argument) for argument in arguments]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert complaint in shown.err
        assert len(shown.err.splitlines()) == 1


def test_wrong_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_same_result_gives_the_same_bytes(bowl, tmp_path):
    once = save(draw(bowl), tmp_path / "once")
    again = save(draw(bowl), tmp_path / "again")
    for first, second in zip(once, again, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_pdf_embeds_its_fonts_and_has_no_date(bowl, tmp_path):
    (path,) = save(draw(bowl), tmp_path / "x", formats=["pdf"])
    content = path.read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    assert b"CreationDate" not in content


def test_figures_need_no_torch_no_measuring_package_and_no_pyplot():
    script = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy();"
        "import analysis.figures.__main__;"
        "assert matplotlib.rcParams.copy() == before;"
        "print(*({'torch', 'landscape', 'checkpoints', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_a_figure_takes_the_place_of_its_like_only(files, tmp_path, capsys):
    """What stands beside a result under a figure's name may be the user's own."""
    result = Path(shutil.copy(files["line"], tmp_path / "a.surface.h5"))
    first = draw_beside(result)
    assert draw_beside(result) == first
    mine = tmp_path / "a.surface.profile.png"
    mine.write_bytes(b"my own picture")
    with pytest.raises(ValueError, match=r"a.surface.profile.png exists, and was not drawn"):
        draw_beside(result)
    assert main([str(result)]) == 1
    assert "Move it, or draw elsewhere" in capsys.readouterr().err
    assert mine.read_bytes() == b"my own picture"
    assert main([str(result), "--out", str(tmp_path / "b")]) == 0
