"""Where the texts of a figure lie: inside it, and clear of each other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

SLACK = 1.5  # pixels of 1/100 inch: padding of a text's own box
MARGIN = 1.0  # pixels by which a number on a contour stays within its Axes, at least


def texts(figure: Figure) -> list[Text]:
    """All that is drawn; the figure has been laid out."""
    found: list[Text] = [*figure.texts]
    for legend in figure.legends:
        found += [legend.get_title(), *legend.get_texts()]
    for ax in figure.axes:
        found += [ax.title, *ax.texts]
        if own := ax.get_legend():
            found += own.get_texts()
        if ax.axison:
            for axis in axes_of(ax):
                found += [axis.label, axis.offsetText, *(text for _, text in ticks(axis))]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def axes_of(ax: Axes) -> list[Axis]:
    return [ax.xaxis, ax.yaxis, *([ax.zaxis] if hasattr(ax, "zaxis") else [])]


def ticks(axis: Axis) -> Iterator[tuple[float, Text]]:
    """Place and label of every tick that is drawn with a label."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    for minor in (False, True):
        places = axis.get_ticklocs(minor=minor)
        for place, tick in zip(places, axis.get_ticklabels(minor=minor), strict=False):
            if low - slack <= place <= high + slack and tick.get_visible() and tick.get_text():
                yield float(place), tick


def corners(text: Text) -> NDArray[np.float64]:
    """(4, 2) pixels, turned as the text is."""
    around = text.get_window_extent()
    middle, angle = (around.min + around.max) / 2, text.get_rotation()
    text.set_rotation(0)
    box = text.get_window_extent()
    text.set_rotation(angle)
    radians = np.deg2rad(angle)
    turn = np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
    half = np.maximum(np.array([box.width, box.height]) / 2 - SLACK, 0.5)
    return middle + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ turn


def overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two rectangles do: no side of either separates them."""
    for sides in (one, other):
        for side in np.diff(sides[:3], axis=0):
            normal = np.array([-side[1], side[0]])
            a, b = one @ normal, other @ normal
            if a.max() <= b.min() or b.max() <= a.min():
                return False
    return True


def faults(figure: Figure) -> list[str]:
    """What no paper would print; empty where there is nothing."""
    figure.draw_without_rendering()
    page, found = figure.bbox, []
    drawn = [(text.get_text(), corners(text), text.get_window_extent()) for text in texts(figure)]
    for text, _, box in drawn:
        if box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1 or box.y1 > page.y1:
            found.append(f"{text!r} leaves the figure")
    for (text, one, _), (next_to_it, other, _) in combinations(drawn, 2):
        if overlap(one, other):
            found.append(f"{text!r} overlaps {next_to_it!r}")
    for ax in figure.axes:
        for number in ax.texts if ax.name != "3d" else ():
            box, frame = number.get_window_extent(), ax.get_window_extent()
            inside = frame.x0 + MARGIN < box.x0 and box.x1 < frame.x1 - MARGIN
            inside = inside and frame.y0 + MARGIN < box.y0 and box.y1 < frame.y1 - MARGIN
            if number.get_rotation() and not inside:
                found.append(f"{number.get_text()!r} is cut by the frame")
        for axis in axes_of(ax) if ax.axison else ():
            labelled = {text.get_text() for _, text in ticks(axis)}
            if labelled and len(labelled) < 2:
                found.append(f"{labelled} alone on an axis labelled {axis.label.get_text()!r}")
    return found
