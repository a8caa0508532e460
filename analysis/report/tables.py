"""One table, written for a web page, for LaTeX and for a spreadsheet."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " ",
    "\N{MINUS SIGN}": "$-$", "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$", "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$", "\N{EN DASH}": "--", "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{ALMOST EQUAL TO}": r"$\approx$", "\N{INFINITY}": r"$\infty$",
    "\N{DOWNWARDS ARROW}": r"$\downarrow$", "\N{UPWARDS ARROW}": r"$\uparrow$",
    "\N{CHECK MARK}": "+", "\N{BALLOT X}": "--",
}  # fmt: skip
SYMBOLS = {
    "supported": "\N{CHECK MARK}",
    "contradicted": "\N{BALLOT X}",
    "no relevant difference": "\N{ALMOST EQUAL TO}",
    "undecided": "?",
    "lower": "\N{DOWNWARDS ARROW}",
    "higher": "\N{UPWARDS ARROW}",
    "unclear": "?",
}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        heading: for people, with the unit.
        kind: how its cells are set: words, numbers to the right, code to be copied, or a verdict.
        paper: whether the LaTeX table has it; the others have it always.
    """

    heading: str
    kind: Literal["text", "number", "code", "verdict"] = "text"
    paper: bool = True


@dataclass(frozen=True)
class Table:
    """Rows as people read them, and the same as numbers.

    Args:
        name: of its files, such as `verdicts`.
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

    def html(self) -> str:
        """With a caption, headings that say their scope, and a frame that scrolls on its own.

        The roles are those that the elements have anyway: some browsers forget them where the
        style sheet sets a row as a block.
        """
        head = "".join(
            f'<th role="columnheader" scope="col"{_class(column)}>{_text(column.heading)}</th>'
            for column in self.columns
        )
        body = []
        for row in self.rows:
            (column, cell), *others = zip(self.columns, row, strict=True)
            cells = [f'<th role="rowheader" scope="row"{_class(column)}>{_cell(column, cell)}</th>']
            cells += [
                f'<td role="cell" data-heading="{html.escape(column.heading, quote=True)}"'
                f"{_class(column)}>{_cell(column, cell)}</td>"
                for column, cell in others
            ]
            body.append(f'<tr role="row">{"".join(cells)}</tr>')
        label = html.escape(self.caption, quote=True)
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">\n'
            f'<table role="table">\n<caption>{_text(self.caption)}</caption>\n'
            f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>\n'
            f'<tbody role="rowgroup">\n' + "\n".join(body) + "\n</tbody>\n</table>\n</div>\n"
        )

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


def _class(column: Column) -> str:
    return f' class="{column.kind}"' if column.kind == "number" else ""


def _cell(column: Column, text: str) -> str:
    if column.kind == "code" and text:
        return f"<code>{_text(text)}</code>"
    if column.kind == "verdict":
        symbol, name = SYMBOLS.get(text, ""), text.replace(" ", "-")
        mark = f'<span aria-hidden="true">{symbol}</span>'
        return f'<span class="verdict {name}">{mark} {_text(text)}</span>'
    return _text(text)


def _text(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
