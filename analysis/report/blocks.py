"""What a section of the page consists of: data alone, which `templates/blocks.html` sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from analysis.report.plots import Drawing, Surfaces
from analysis.report.tables import Table


@dataclass(frozen=True)
class Text:
    """A paragraph; a note is set small."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading below that of the section, which is of level 2."""

    text: str
    level: int = 3


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Listing:
    """Text whose lines and blanks are kept."""

    text: str


@dataclass(frozen=True)
class Glossary:
    """Terms, each with its meaning."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Details:
    """Blocks that are hidden until a reader unfolds or prints them."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Figures:
    """Figures in a frame.

    Args:
        drawings: the figures.
        still: end of the names of those shown only on paper, in place of surfaces that turn.
    """

    drawings: Sequence[Drawing]
    still: str = ""


Block = Text | Heading | Items | Listing | Glossary | Details | Figures | Table | Surfaces


@dataclass
class Section:
    """One part of the page.

    Args:
        name: its anchor.
        title: its heading.
        blocks: from top to bottom.
    """

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def drawings(self) -> list[Drawing]:
        """Its figures."""
        found = (block for block in _walk(self.blocks) if isinstance(block, Figures))
        return [drawing for figures in found for drawing in figures.drawings]

    @property
    def tables(self) -> list[Table]:
        """Its tables, without those that have no name."""
        return [block for block in _walk(self.blocks) if isinstance(block, Table) and block.name]


def _walk(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Details):
            yield from _walk(block.blocks)
