"""The web page's frame: template, style and scripts in one file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from string import Template


def page(*, title: str, summary: str, footer: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """One HTML file that needs no other and asks the network for nothing.

    Args:
        title: of the page.
        summary: one line below it.
        footer: one line at the end.
        sections: name, heading and HTML of each.
    """
    shown = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{html.escape(heading)}</h2>\n{body}</section>\n'
        for name, heading, body in sections
    )
    contents = "".join(
        f'<li><a href="#{name}">{html.escape(heading)}</a></li>\n' for name, heading, _ in sections
    )
    return Template(_part("page.html")).substitute(
        title=html.escape(title),
        summary=html.escape(summary),
        footer=html.escape(footer),
        contents=contents,
        sections=shown,
        style=_part("style.css"),
        scripts=_scripts() if 'class="surfaces"' in shown else "",
    )


def _scripts() -> str:
    """Plotly and what turns the surfaces, for a page that has some."""
    from plotly.offline import get_plotlyjs  # late: it takes a while

    return f"<script>{get_plotlyjs()}</script>\n<script>{_part('surfaces.js')}</script>"


def _part(name: str) -> str:
    return (resources.files("analysis.report") / name).read_text(encoding="utf-8")
