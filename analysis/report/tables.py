"""One table, written for a web page, for LaTeX and for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\n": " ",
    "\N{MINUS SIGN}": "$-$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{EN DASH}": "--",
    "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{ALMOST EQUAL TO}": r"$\approx$",
    "\N{INFINITY}": r"$\infty$",
}
Kind = Literal["text", "number", "code", "verdict"]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        heading: for people, with the unit.
        kind: how its cells are set: words, numbers to the right, code to be copied, or a verdict.
        paper: whether the LaTeX table has it; the others have it always.
    """

    heading: str
    kind: Kind = "text"
    paper: bool = True


def columns(kind: Kind, *headings: str) -> list[Column]:
    """Columns of one kind."""
    return [Column(heading, kind) for heading in headings]


@dataclass(frozen=True)
class Table:
    """Rows as people read them, and the same as numbers.

    Args:
        name: of its files, such as `verdicts`; empty where a paper does not take it.
        caption: one sentence.
        columns: (C,). The first heads the rows.
        rows: (R, C), the texts of the cells.
        data: R records of unrounded values, for the spreadsheet; all have the same keys.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    data: Sequence[dict[str, object]]

    def latex(self) -> str:
        """A `tabular` with booktabs' rules; caption and label stand in a comment above it."""
        shown = [at for at, column in enumerate(self.columns) if column.paper]
        places = "".join("r" if self.columns[at].kind == "number" else "l" for at in shown)
        lines = [
            f"% {self.caption}",
            "% needs \\usepackage{booktabs}",
            f"\\begin{{tabular}}{{{places}}}",
            "\\toprule",
            " & ".join(latex_text(self.columns[at].heading) for at in shown) + " \\\\",
            "\\midrule",
            *(" & ".join(latex_text(row[at]) for at in shown) + " \\\\" for row in self.rows),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Unrounded values, a line a row, headed by their keys; NaN and None are empty cells."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.data[0]) if self.data else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: "" if v is None or v != v else v for k, v in r.items()} for r in self.data
        )
        return text.getvalue()


def latex_text(text: str) -> str:
    """`text` with everything escaped that LaTeX would read as a command."""
    return "".join(_LATEX.get(character, character) for character in text)
