"""Legends fit their figure, whatever the results are called."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.figures import draw, style
from analysis.figures.arrange import legend, name_places, new_figure
from tests.analysis.every_figure import LONG, UNBROKEN, attention

WORDS = "a network " * 20 + "at the end"


def assert_inside(figure: Figure) -> None:
    figure.draw_without_rendering()
    (shown,) = figure.legends
    box, page = shown.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0 < box.y1 <= page.y1


@pytest.mark.parametrize("columns", [1, 2])
def test_every_word_of_a_long_label_is_in_the_legend(columns: int) -> None:
    figure = new_figure(columns, gap=0.02)
    ax = figure.add_subplot()
    labels = [LONG, WORDS, UNBROKEN, "short"]
    for label in labels:
        ax.plot([0, 1], [0, 1], label=label)
    legend(figure, [ax], labels)
    assert_inside(figure)
    told = ["".join(text.get_text().split()) for text in figure.legends[0].get_texts()]
    assert told == ["".join(label.split()) for label in labels]


def test_what_names_begin_with_is_said_once() -> None:
    figure = new_figure(1, gap=0.02)
    ax = figure.add_subplot()
    labels = [f"{LONG}, seed 1, draws {n}" for n in (4, 8)]
    for label in [*labels, f"{LONG}, seed 1, of another kind"]:
        ax.plot([0, 1], [0, 1], label=label)
    legend(figure, [ax], labels)
    shown = figure.legends[0]
    title = "".join(shown.get_title().get_text().split())
    assert title == f"{LONG},seed1"
    assert [text.get_text() for text in shown.get_texts()][:2] == ["draws 4", "draws 8"]


def test_short_labels_share_as_few_lines_as_have_room() -> None:
    rows = []
    for columns in (1, 2):
        figure = new_figure(columns, gap=0.02)
        ax = figure.add_subplot()
        for number in range(5):
            ax.plot([0, 1], [0, 1], label=f"net {number}")
        legend(figure, [ax])
        figure.draw_without_rendering()
        places = [text.get_window_extent().y0 for text in figure.legends[0].get_texts()]
        rows.append(len(np.unique(np.round(places))))
    assert rows == [2, 1]


@pytest.mark.parametrize("columns", [1, 2])
def test_each_panel_of_a_block_says_what_its_own_marks_are(columns: int) -> None:
    agreement, _, erasure, loss, *_ = draw(attention(), columns=columns).axes
    bars = style.TWO_ERRORS
    told = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in (agreement, loss)]
    assert told == [["own", "permuted", "other image", "class mean", bars], [bars]]
    told = [text.get_text() for text in erasure.get_legend().get_texts()]
    assert told == ["by attention", "by importance", "at random"]


def test_names_of_places_stand_aslant_where_they_have_no_room() -> None:
    figure = new_figure(1, gap=0.02)
    angles = []
    for number, names in enumerate((["layer1.0", "layer2.0"], ["a.b"] * 6, ["layer1.0.x"] * 12)):
        ax = figure.add_subplot(3, 1, number + 1)
        name_places(ax, names)
        angles.append(ax.get_xticklabels()[0].get_rotation())
        assert [label.get_text() for label in ax.get_xticklabels()] == names
    assert angles == [0, 0, 60]
    name_places(ax, ["a long name", "encoder.0.self_attention", "x"])
    assert ax.get_xticklabels()[1].get_text() == "encoder.0\nself_attention"
