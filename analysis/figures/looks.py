"""How the networks in one Axes are told apart: in colour, in grey print, and seeds by arm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from analysis import results
from analysis.figures import style

_BANDS = 3  # networks up to which bands can be read
_SPACING = 0.3  # between two marks on a line, of the diagonal of the Axes
_SEED = re.compile(r"[-_.,= ]*seed[-_.= ]*\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Look:
    """How one network is drawn: no two in one Axes are alike, with or without their colours.

    Args:
        colour: of all that belongs to the network.
        dash: of its line, where the figure does not use dashes for something else.
        mark: its shape.
        hollow: whether the mark is.
        marked: whether the line carries its mark: where there are many lines, or dashes are taken.
        thin: one of several seeds.
        band: whether there is room for its band.
        shift: of its first mark along the line, as a share of the distance between two.
    """

    colour: str
    dash: Any
    mark: str
    hollow: bool = False
    marked: bool = False
    thin: bool = False
    band: bool = True
    shift: float = 0.0

    def line(self, **other: Any) -> dict[str, Any]:
        """Keywords of a line, such as `Axes.plot` takes; `other` ones take precedence."""
        width = {"linewidth": 0.7} if self.thin else {}
        look = {"color": self.colour, "linestyle": self.dash} | width
        if self.marked:
            every = (_SPACING * (0.2 + 0.8 * self.shift), _SPACING)
            look |= self.dots(markevery=every, linestyle=self.dash)
        return look | other

    def dots(self, **other: Any) -> dict[str, Any]:
        """Keywords of marks that no line joins; `other` ones take precedence."""
        return {
            "color": self.colour,
            "linestyle": "",
            "marker": self.mark,
            "markersize": 2.8,
            "markeredgewidth": 0.6,
            "markerfacecolor": "white" if self.hollow else self.colour,
        } | other


def looks(shown: Sequence[xr.Dataset], *, dashes: bool = True, hollow: bool = True) -> list[Look]:
    """One look for each result.

    Up to six networks have a colour and a dash each. More have them by arm, as do the seeds of
    several arms: networks whose names differ in `seed0`, `seed1` only are thin lines of one
    colour, each with a mark of its own. Above three, lines have marks and no bands.

    Args:
        shown: at least one.
        dashes: whether the figure leaves dashes to them; else marks tell them apart.
        hollow: whether the figure leaves hollow marks to them.

    Raises:
        ValueError: more than can be told apart.
    """
    names = results.names(shown)
    arms = [_SEED.sub("", name) for name in names]
    by_arm = 1 < len(set(arms)) < len(set(names)) or len(names) > len(style.LINES)
    groups: list[Any] = arms if by_arm else list(range(len(names)))
    kinds = list(dict.fromkeys(groups))
    fills = (False, True) if hollow else (False,)
    marks = [(mark, empty) for empty in fills for mark in style.MARKS]
    if len(kinds) > len(style.LINES) or len(names) > len(marks):
        raise ValueError(
            f"{len(names)} networks would look alike in one figure: it can tell "
            f"{len(style.LINES)} apart, or {len(marks)} seeds of {len(style.LINES)} networks, "
            "named net-seed0, net-seed1. Draw fewer."
        )
    order = sorted(range(len(names)), key=lambda at: kinds.index(groups[at]))
    found = []
    for at, group in enumerate(groups):
        colour, dash = style.LINES[kinds.index(group)]
        mark, empty = marks[order.index(at)]
        found.append(
            Look(
                colour,
                dash,
                mark,
                hollow=empty,
                marked=len(names) > _BANDS or (not dashes and len(names) > 1),
                thin=by_arm,
                band=len(names) <= _BANDS,
                shift=at / len(names),
            )
        )
    return found


def following(ax: Axes) -> Look:
    """The first look whose colour no line of `ax` has, for marks that are drawn by hand.

    Raises:
        ValueError: there is none left.
    """
    taken = {to_hex(line.get_color()) for line in ax.lines}
    for (colour, dash), mark in zip(style.LINES, style.MARKS, strict=False):
        if to_hex(colour) not in taken:
            return Look(colour, dash, mark)
    raise ValueError(
        f"{len(style.LINES)} networks are drawn in these Axes, and another would look like one of "
        "them. Draw it elsewhere, or give it a look."
    )
