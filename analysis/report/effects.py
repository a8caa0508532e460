"""Effects with their intervals, one row each, and the value of every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.figures import style
from analysis.figures.arrange import fit_height, legend, new_figure, wrapped

_LABELS = 1.5  # inches of the width that the names of the rows may take
_LINE, _GAP = 0.13, 0.13  # inches: a line of a name, between rows
_WIDTH = 1.7  # inches that the labels leave to the Axes, about
_CLAIM, _REACH = "#D55E00", 0.12  # of what is predicted; length of its arrow, of the width
_HALF = 0.32  # of the distance of two rows: half the height of a band


@dataclass(frozen=True)
class Row:
    """One effect.

    Args:
        label: what is compared.
        effect: NaN where it is not known.
        low: end of its interval.
        high: other end.
        seeds: the effect in each pair of seeds; may be empty.
        margin: smallest effect that matters.
        primary: whether the verdict rests on it.
        bound: of an effect that is predicted above it or below it, and then there is no margin.
        predicts: the side of 0 on which the claim has it; empty where it says nothing.
    """

    label: str
    effect: float
    low: float
    high: float
    seeds: Sequence[float]
    margin: float
    primary: bool
    bound: float | None = None
    predicts: Literal["lower", "higher", ""] = ""


def effects(rows: Sequence[Row], *, unit: str) -> Figure:
    """Draw effects as dots on their intervals, seeds as strokes, and what is too small to matter.

    An arrow from 0 points to the side on which the claim has the effect. An end that is infinite is
    an arrow at the edge. What is not known leaves its row empty.

    Args:
        rows: from top to bottom, of one unit.
        unit: of the effects, for the axis.
    """
    with style.context():
        figure = new_figure(1, gap=0.02)
        ax = figure.add_subplot()
        values = [v for r in rows for v in _numbers(r)]
        finite = [value for value in values if np.isfinite(value)]
        room = 0.06 * (max(finite) - min(finite))
        edges = (min(finite) - room, max(finite) + room)
        if any(row.predicts for row in rows):  # room for an arrow on either side of 0
            reach = 1.2 * _REACH * (edges[1] - edges[0])
            edges = (min(edges[0], -reach), max(edges[1], reach))
        ax.axvline(0, color="0.5", lw=0.6, linestyle="-")
        for place, row in enumerate(rows):
            _row(ax, place, row, edges)
        if any(row.margin for row in rows):
            ax.add_patch(Rectangle((0, 0), 0, 0, color="0.88", lw=0, label="negligible"))
        if any(row.bound is not None for row in rows):
            ax.plot([], [], ":", color="#D55E00", lw=1.4, label="predicted bound")
        ax.plot([], [], "|", color="0.4", ms=7, label="pair of seeds")
        ax.plot([], [], "ko-", ms=4, lw=1.4, label="primary")
        ax.plot([], [], "ko-", mfc="white", ms=4, lw=0.8, label="secondary")
        names = [wrapped(row.label, _LABELS) for row in rows]
        ax.set_yticks(range(len(rows)), names)
        ax.tick_params(axis="y", length=0)
        ax.set(xlim=edges, ylim=(len(rows) - 0.45, -0.55))
        ax.set_xlabel(wrapped(unit, 1.9))
        ax.locator_params(axis="x", nbins=4)
        if any(row.predicts for row in rows):
            ax.plot([], [], color=_CLAIM, marker=">", ms=4, lw=1.0, label="predicted by the claim")
        legend(figure, [ax])
        tallest = max(name.count("\n") + 1 for name in names)
        fit_height(figure, [ax], 1, len(rows) * (tallest * _LINE + _GAP) / _WIDTH)
    return figure


def _numbers(row: Row) -> list[float]:
    bound = 0.0 if row.bound is None else row.bound
    return [row.effect, row.low, row.high, row.margin, -row.margin, bound, *row.seeds]


def _row(ax: Axes, place: int, row: Row, edges: tuple[float, float]) -> None:
    box = Rectangle((-row.margin, place - _HALF), 2 * row.margin, 2 * _HALF, color="0.88", lw=0)
    ax.add_patch(box)
    if row.bound is not None:
        ax.plot([row.bound] * 2, [place - _HALF, place + _HALF], ":", color="#D55E00", lw=1.4)
    if row.predicts:
        to = _REACH * (edges[1] - edges[0]) * (1 if row.predicts == "higher" else -1)
        arrow = {"arrowstyle": "-|>", "color": _CLAIM, "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
        at = place - _HALF
        ax.annotate("", (to, at), (0, at), arrowprops=arrow | {"mutation_scale": 6})
    ax.plot(row.seeds, np.full(len(row.seeds), place), "|", color="0.4", ms=7, mew=0.8)
    ends = np.clip([row.low, row.high], *edges)
    ax.plot(ends, [place, place], "-", color="black", lw=1.4 if row.primary else 0.8)
    for end, edge, mark in zip((row.low, row.high), edges, "<>", strict=True):
        if np.isinf(end):
            ax.plot(edge, place, mark, color="black", ms=4, clip_on=False)
    face = "black" if row.primary else "white"
    ax.plot(row.effect, place, "o", color="black", mfc=face, ms=4, zorder=4)
