"""The command: python -m analysis.report RESULTS."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.plain import plain
from analysis.report.numbers import many
from analysis.report.sections import report, unusable


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the report that the command line asks for; print the paths written, one a line.

    Returns:
        0 done, 1 refused with one line on stderr; argparse exits with 2 itself.
    """
    options = _parser().parse_args(arguments)
    out = options.out or options.results / "report.html"
    try:
        made = report(options.results)
        out.write_text(made.html(), encoding="utf-8")
        print(plain(out))
        for path in made.paper(options.paper) if options.paper else []:
            print(plain(path))
        missing = len(unusable(made.folder, made.evaluation))
        if missing:
            count = many(missing, "result")
            print(plain(f"{count} missing or incomplete: {out} says which."), file=sys.stderr)
    except (ValueError, OSError) as error:
        print(plain(" ".join(str(error).split())), file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description="Evaluate the results of a study, and show them on one web page.",
    )
    parser.add_argument(
        "results", type=Path, metavar="RESULTS", help="folder that python -m landscape.study wrote"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: RESULTS/report.html)"
    )
    parser.add_argument(
        "--paper",
        type=Path,
        metavar="DIR",
        help="also write the figures as PDF, and the tables as LaTeX and CSV, into this folder",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
