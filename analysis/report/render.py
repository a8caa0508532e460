"""The web page: templates, style and scripts in one file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.report.blocks import Block, Section
from analysis.report.plots import Surfaces

_TEMPLATES = Environment(
    loader=PackageLoader("analysis.report"),
    autoescape=True,
    trim_blocks=True,
    undefined=StrictUndefined,
)
_TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":")}


def page(*, title: str, summary: str, footer: str, sections: Sequence[Section]) -> str:
    """One HTML file that needs no other and asks the network for nothing.

    Args:
        title: of the page.
        summary: one line below it.
        footer: one line at the end.
        sections: from top to bottom.
    """
    turning = any(isinstance(block, Surfaces) for s in sections for block in s.blocks)
    return _TEMPLATES.get_template("page.html").render(
        title=title,
        summary=summary,
        footer=footer,
        sections=sections,
        style=_part("style.css"),
        scripts=[_part("print.js"), *(_scripts() if turning else [])],
    )


def show(block: Block) -> Markup:
    """One block as HTML, by the macro that has the name of its class."""
    macros = _TEMPLATES.get_template("blocks.html").module
    return Markup(getattr(macros, type(block).__name__.lower())(block))


def _scripts() -> list[Markup]:
    """Plotly and what turns the surfaces, for a page that has some."""
    from plotly.offline import get_plotlyjs  # late: it takes a while

    return [Markup(get_plotlyjs()), _part("surfaces.js")]


def _part(name: str) -> Markup:
    return Markup((resources.files("analysis.report") / name).read_text(encoding="utf-8"))


_TEMPLATES.globals |= {"show": show, "zip": zip}
