"""Publication figures of result files: `draw` and `save`, or `python -m analysis.figures`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import xarray as xr
from matplotlib.figure import Figure

from analysis import results as result_files
from analysis.figures import style
from analysis.figures.arrange import Page
from analysis.figures.registry import FIGURES
from analysis.figures.scale import Choice

__all__ = ["FIGURES", "draw", "draw_beside", "fitting", "pages", "save"]

Format = Literal["png", "pdf"]
_PART = 0.16  # inches that a line on top takes
MARK = "cnn-landscape"  # in the metadata of every figure


def draw(
    results: xr.Dataset | Sequence[xr.Dataset],
    *,
    kind: str | None = None,
    variable: str | None = None,
    scale: Choice = "auto",
    columns: int = 1,
    ceiling: float | None = None,
) -> Figure:
    """Draw one result, or several in one figure on one scale: the first page of `pages`.

    Surfaces stand side by side with the same limits, heights and colours, so that they can be
    compared by eye; lines share their Axes. The figure belongs to no window and to no global
    state; in a notebook, `%matplotlib inline` shows it.

    Args:
        results: one result or several, of the same probe and number of dimensions.
        kind: a name in `FIGURES`; by default the first that fits.
        variable: such as `accuracy`; by default what the kind of figure is for.
        scale: "linear", "log", or "auto": logarithmic where values are positive and span more
            than `scale.LOG_RATIO`; the label says so.
        columns: 1 or 2 columns of a journal, 85 or 175 mm wide.
        ceiling: about where the scale ends, for losses that explode; what lies above is drawn in
            a colour of its own and counted. inf ends it at the largest value; by default a
            logarithmic scale ends at `scale.CEILING_RATIO` times the smallest.

    Raises:
        ValueError: what `fitting` refuses, no finite value, or more networks in one Axes than can
            be told apart.
    """
    return pages(
        results,
        kind=kind,
        variable=variable,
        scale=scale,
        columns=columns,
        ceiling=ceiling,
    )[0]


def pages(
    results: xr.Dataset | Sequence[xr.Dataset],
    *,
    kind: str | None = None,
    variable: str | None = None,
    scale: Choice = "auto",
    columns: int = 1,
    ceiling: float | None = None,
) -> list[Figure]:
    """Draw as `draw` does, in as many figures as it takes for each to fit a page.

    A figure that would be taller than `style.TALLEST` is divided: results that stand below one
    another, or the paths of a gallery, go to several, which say which part they are.
    """
    given = [results] if isinstance(results, xr.Dataset) else list(results)
    shown = [result_files.checked(result) for result in given]
    if columns not in style.WIDTHS:
        raise ValueError(f"columns={columns}: a figure is 1 or 2 columns wide.")
    chosen = FIGURES[fitting(shown, kind=kind, variable=variable)[0]]
    variables = chosen.shared(shown) if variable is None else [variable]
    try:
        with style.context():
            return _divided(Page(chosen, shown, variables, scale, columns, ceiling))
    except KeyError as error:  # what xarray says of a variable or an entry that is not there
        name = str(error.args[0]).splitlines()[0]
        without = [result_files.source(r) for r in shown if name not in r.variables]
        raise ValueError(
            f"{(without or [result_files.source(shown[0])])[0]} holds no {name}, which the figure "
            "needs. Measure it again, or choose another --kind."
        ) from error


def _divided(page: Page) -> list[Figure]:
    """The figure, or as many parts of it as it takes, none taller than a page."""
    figures = [page.kind.arrange(page)]
    each, across = page.kind.divided(page)
    things = each
    room = style.TALLEST - _PART
    while each > 1 and (tallest := max(f.get_figheight() for f in figures)) > room:
        each = max(1, min(each - 1, int(each * room / tallest)))
        each -= each % across if each > across else 0
        starts = range(0, things, each)
        figures = [page.kind.arrange(replace(page, part=(at, at + each))) for at in starts]
    for number, figure in enumerate(figures, start=1) if len(figures) > 1 else ():
        part = f"part {number} of {len(figures)}"
        figure.suptitle(part, size=style.NOTE_SIZE, x=1.0, ha="right")
        figure.set_figheight(figure.get_figheight() + _PART)
    return figures


def fitting(
    results: Sequence[xr.Dataset], *, kind: str | None = None, variable: str | None = None
) -> list[str]:
    """Names in `FIGURES` of all kinds that can draw these results together.

    Args:
        results: one or several.
        kind: no other than this.
        variable: that they are to draw; by default what each is for.

    Raises:
        ValueError: no result, kinds of result mixed, axes with different names or units, or no
            figure for such results or such a variable of them.
    """
    if not results:
        raise ValueError("no result to draw. Give at least one.")
    results = [result_files.checked(result) for result in results]
    first, *others = results
    for other in others:
        files = result_files.source(first), result_files.source(other)
        grids = [result["measured"].dims for result in (first, other)]
        if _described(other) != _described(first) or grids[0] != grids[1]:
            raise ValueError(
                f"{files[0]} is {_described(first)}, {files[1]} is {_described(other)}. "
                "Draw them in separate figures."
            )
        for dim in first["measured"].dims:
            labels = [result_files.grid_label(result, dim) for result in (first, other)]
            if labels[0] != labels[1]:
                raise ValueError(
                    f"{dim} is {labels[0]} in {files[0]}, {labels[1]} in {files[1]}. "
                    "Draw them in separate figures."
                )
    kinds = [name for name in _kinds(first) if FIGURES[name].fits_all(results)]
    if _kinds(first) and not kinds:
        raise ValueError(f"No figure is of all these: {'; '.join(left_out(results))}.")
    if not kinds:
        raise ValueError(
            f"{result_files.source(first)} is {_described(first)}, and no figure is for that. "
            f"{_of_probe(first)}"
        )
    if kind is not None and kind not in kinds:
        lines = [line for line in left_out(results) if line.startswith(f"{kind} ")]
        fault = lines[0] if lines else f"{kind} does not fit {_described(first)}"
        raise ValueError(f"{fault}. Ask for {' or '.join(kinds)}.")
    kinds = kinds if kind is None else [kind]
    for result in results if variable is not None else ():
        drawable = {name: FIGURES[name].drawable(result) for name in kinds}
        kinds = [name for name in kinds if variable in drawable[name]]
        if not kinds:
            there = dict.fromkeys(itertools.chain.from_iterable(drawable.values()))
            raise ValueError(
                f"{result_files.source(result)} has no {variable} that {' or '.join(drawable)} "
                f"could draw. Ask for {', '.join(there)}."
            )
    return kinds


def _of_probe(result: xr.Dataset) -> str:
    """The figures of a result's probe, and what each of them draws, in a few words."""
    probe = result.attrs["probe"]
    kinds = {name: kind for name, kind in FIGURES.items() if kind.probe == probe}
    if not kinds:
        return "See docs/figures.md for those that there are."
    needs = [f"{n} of {', '.join(k.needs)}" if k.needs else n for n, k in kinds.items()]
    return f"Figures of {probe}: {'; '.join(needs)}."


def left_out(results: Sequence[xr.Dataset]) -> list[str]:
    """Figures that fit some of these results and cannot draw all of them, with what differs."""
    kinds = dict.fromkeys(itertools.chain.from_iterable(_kinds(result) for result in results))
    return [
        f"{name} not drawn, {why}" for name in kinds if (why := FIGURES[name].differing(results))
    ]


def save(
    figure: Figure, path_stem: str | Path, *, formats: Sequence[Format] = ("png", "pdf")
) -> list[Path]:
    """Write a figure as PNG (300 dpi) and PDF (vectors, embedded fonts).

    The same figure gives the same bytes: no date is written.

    Args:
        figure: from `draw`.
        path_stem: path without the ending, such as `figures/resnet18.surface.contour`.
        formats: which of the two.

    Returns:
        The paths written, in the order of `formats`.

    Raises:
        ValueError: the folder does not exist.
    """
    stem = Path(path_stem)
    if not stem.parent.is_dir():
        raise ValueError(f"{stem.parent}: there is no such folder. Make it, or choose another.")
    paths = []
    with style.context():
        for ending in formats:
            path = stem.with_name(f"{stem.name}.{ending}")
            metadata = (
                {"CreationDate": None, "Creator": MARK} if ending == "pdf" else {"Software": MARK}
            )
            figure.savefig(path, format=ending, metadata=metadata)
            paths.append(path)
    return paths


def draw_beside(path: str | Path) -> list[Path]:
    """Draw every kind of figure that fits one result file, next to it.

    Returns:
        The paths written, such as `resnet18.surface.contour.png`; none where no kind fits.

    Raises:
        ValueError: `path` is no result file, or holds no finite value; a file that was not drawn
            here is in a figure's place.
    """
    path = Path(path)
    result = result_files.load(path)
    figures = {
        stem: figure
        for kind in _kinds(result)
        for stem, figure in numbered(
            path.with_name(f"{path.stem}.{kind}"), pages(result, kind=kind)
        ).items()
    }
    check_replaceable(figures)
    return [written for stem, figure in figures.items() for written in save(figure, stem)]


def numbered(stem: Path, figures: Sequence[Figure]) -> dict[Path, Figure]:
    """Where each figure goes: `stem` where it is alone, else `stem-1`, `stem-2`, ..."""
    names = (
        [stem.name] if len(figures) == 1 else [f"{stem.name}-{n + 1}" for n in range(len(figures))]
    )
    return {stem.with_name(name): figure for name, figure in zip(names, figures, strict=True)}


def check_replaceable(stems: Iterable[Path], formats: Sequence[Format] = ("png", "pdf")) -> None:
    """Refuse to replace a file that these functions have not written.

    Raises:
        ValueError: one that is there, and does not carry their mark.
    """
    for stem in stems:
        for ending in formats:
            path = stem.with_name(f"{stem.name}.{ending}")
            if path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()):
                raise ValueError(
                    f"{path} exists, and was not drawn by this toolkit. Move it, or draw "
                    "elsewhere: python -m analysis.figures RESULT --out STEM."
                )


def _kinds(result: xr.Dataset) -> list[str]:
    return [name for name, kind in FIGURES.items() if kind.fits(result)]


def _described(result: xr.Dataset) -> str:
    over = " and ".join(map(str, result["measured"].dims))
    return f"a {result['measured'].ndim}-dimensional {result.attrs['probe']} over {over}"
