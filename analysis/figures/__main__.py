"""Draw result files: python -m analysis.figures resnet18.surface.h5 [more.h5 ...]."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from analysis import results
from analysis.figures import FIGURES, check_replaceable, fitting, left_out, numbered, pages, save
from analysis.plain import plain

_LONGEST_NAME = 120  # bytes, to which the kind of figure is added


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the files named on the command line; print the paths written, one a line.

    Returns:
        The exit code: 0 done, 1 refused with one line on stderr. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    refused = False
    try:
        shown = [results.load(path) for path in options.files]
        stem = options.out or _default_stem(options.files)
        if options.kind is None and options.variable is None:
            for line in left_out(shown):
                print(plain(f"{line}."), file=sys.stderr)
        for kind in fitting(shown, kind=options.kind, variable=options.variable):
            try:
                _draw(shown, kind, stem, options)
            except ValueError as error:  # the other kinds may be drawn all the same
                print(plain(f"{kind}: {error}"), file=sys.stderr)
                refused = True
    except (ValueError, OSError) as error:
        print(plain(error), file=sys.stderr)
        return 1
    return int(refused)


def _draw(shown: Sequence[xr.Dataset], kind: str, stem: Path, options: argparse.Namespace) -> None:
    """Draw one kind of figure, and print the paths written."""
    given = options.variable
    figures = pages(
        shown,
        kind=kind,
        variable=given,
        scale=options.scale,
        columns=options.columns,
        ceiling=options.ceiling,
    )
    special = f".{given}" if given and FIGURES[kind].variables != (given,) else ""
    named = numbered(stem.with_name(f"{stem.name}{special}.{kind}"), figures)
    if options.out is None:
        check_replaceable(named, options.format)
    for place, figure in named.items():
        for path in save(figure, place, formats=options.format):
            print(plain(path))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.figures",
        description="Draw result files as publication figures: several files, one figure, "
        "on one scale.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result files (.h5)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="STEM",
        help="path without the ending; the kind of figure is appended (default: next to the first "
        "file, named after all of them)",
    )
    parser.add_argument("--kind", choices=FIGURES, help="kind of figure (default: all that fit)")
    parser.add_argument(
        "--columns", type=int, choices=(1, 2), default=1, help="journal columns: 85 or 175 mm"
    )
    parser.add_argument(
        "--format", nargs="+", choices=("png", "pdf"), default=("png", "pdf"), help="file formats"
    )
    parser.add_argument(
        "--variable",
        metavar="NAME",
        help="what to draw, any variable of the files that the kind of figure can: accuracy, "
        "second_difference, jacobian_spectral (default: what the kind is for; one that is not "
        "there is refused with a list of those that are)",
    )
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument(
        "--linear",
        dest="scale",
        action="store_const",
        const="linear",
        help="scale (default: log where values span more than a factor of 30)",
    )
    scale.add_argument("--log", dest="scale", action="store_const", const="log", help="likewise")
    parser.add_argument(
        "--ceiling",
        type=float,
        metavar="X",
        help="where the scale ends; larger values get a colour of their own and are counted "
        "(default: 1,000 times the smallest value on a log scale; inf for the largest)",
    )
    parser.set_defaults(scale="auto")
    return parser


def _default_stem(paths: Sequence[Path]) -> Path:
    """`resnet18.surface` and `fmmnet18.surface` give `resnet18-fmmnet18.surface`."""
    stems = [path.stem for path in paths]
    heads, dots, tails = zip(*(stem.rpartition(".") for stem in stems), strict=True)
    joined = "-".join(heads) + "." + tails[0] if all(dots) and len(set(tails)) == 1 else ""
    name = joined or "-".join(stems)
    size = len(os.fsencode(name))
    if size > _LONGEST_NAME:
        raise ValueError(
            f"{len(paths)} files make a file name of {size} bytes. Choose one with --out."
        )
    return paths[0].with_name(name)


if __name__ == "__main__":
    raise SystemExit(main())
