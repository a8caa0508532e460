"""Texts from files and paths, as a terminal or a figure may show them."""

from __future__ import annotations


def plain(text: object) -> str:
    """`text` without line breaks and control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in str(text))
