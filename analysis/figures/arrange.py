"""Several results in one figure: side by side or one over the other, on one scale."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import BboxBase

from analysis import results
from analysis.figures import style
from analysis.figures.grid import limits
from analysis.figures.looks import looks
from analysis.figures.scale import Choice, Scale, finite, shared_scale

T = TypeVar("T")
# Most panels side by side in one and two columns; labels of 3-D axes need the room.
_PANELS = {None: {1: 2, 2: 4}, "3d": {1: 1, 2: 2}}
_HEIGHT, _HEIGHT_3D = 0.8, 0.75  # of a panel's width, unless it is drawn to scale
_HEIGHT_OVERLAY = {1: 0.5, 2: 0.3}  # of the width
_TICKS_3D = 6
_LIFT_3D, _GAP_3D = -11, 0.13  # 3-D Axes are empty at the top and overhang at the bottom
_TICK = {False: 0.15, True: 0.3}  # inches a tick of an upright and of a lying colour bar takes
_CHARACTER = 0.055  # inches a character of 8 pt takes
_LEGEND = 0.85  # of a panel's width may be taken by the legend above it
_AXIS = 0.62  # of a panel's width its horizontal axis is longer
_LINES = 0.28  # inches between two lines of text that ascend by 30 degrees
_ROOM = 0.8  # inches between two rows, at most
_GAP = 1.2  # length of an upright axis label over that of its axis, where it may use the gap
_TIGHTER = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # lengths to try for lines of a label, of what it has


@dataclass(frozen=True)
class Kind:
    """One kind of figure: its marks, the results it fits, and how several share a page.

    Args:
        marks: (result, Axes, *, variable, scale) -> what a colour bar needs.
        probe: the probe whose results it draws.
        dimensions: of the grid of these results; None for any.
        arrange: `panels` (side by side, one colour bar) or `overlay` (in the same Axes).
        variables: drawn unless another is asked for.
        divided: (page) -> how many things can be shared out to pages, and how many of them stand
            side by side; by default the results, one below the other.
        finish: (Axes, scale) -> None, called once the Axes have their size.
        also: whether it can draw a certain variable of a result besides; None for no other.
        projection: of the Axes; None or "3d".
        needs: variables without which there is nothing to draw.
        compared: dims of which it draws what all results have, one panel an entry.
        settings: of the spec, which give what it draws another meaning.
    """

    marks: Callable[..., Any]
    probe: str
    dimensions: int | None
    arrange: Callable[[Page], Figure]
    variables: tuple[str, ...] = ("loss",)
    projection: Literal["3d"] | None = None
    needs: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    also: Callable[[xr.Dataset, str], bool] | None = None
    finish: Callable[[Axes, Scale], None] | None = None
    divided: Callable[[Page], tuple[int, int]] = lambda page: (len(page.shown), 1)

    def fits(self, result: xr.Dataset) -> bool:
        """Whether this figure can draw `result`."""
        return (
            result.attrs["probe"] == self.probe
            and self.dimensions in (None, result["measured"].ndim)
            and all(name in result for name in self.needs)
        )

    def fits_all(self, shown: Sequence[xr.Dataset]) -> bool:
        """Whether it can draw all of `shown` together."""
        return all(self.fits(result) for result in shown) and not self.differing(shown)

    def shared(self, shown: Sequence[xr.Dataset]) -> list[str]:
        """Its variables that all of `shown` hold; the first that it can draw of all, if none is."""
        common = [name for name in self.variables if all(name in result for result in shown)]
        if common:
            return common
        also = [set(self.drawable(result)) for result in shown]
        return [n for n in self.drawable(shown[0]) if all(n in names for names in also)][:1]

    def differing(self, shown: Sequence[xr.Dataset]) -> str:
        """Why it cannot draw all of `shown` together, in a few words; empty where it can."""
        for result in shown:
            lost = [name for name in self.needs if name not in result]
            if lost:
                return f"{results.source(result)} holds no {lost[0]}"
        for dim in self.compared:
            if not common(shown, dim):
                held = [f"{'/'.join(common([one], dim))} in {results.source(one)}" for one in shown]
                return f"no {dim} is in all: {' and '.join(held)}"
        if not self.shared(shown):
            held = [
                f"{', '.join(self.drawable(one)[:3]) or 'none of them'} in {results.source(one)}"
                for one in shown
            ]
            return f"no variable is in all: {', '.join(held)}"
        for described in (
            *(_setting(name) for name in self.settings),
            *map(_label, self.shared(shown)),
        ):
            said = [described(result) for result in shown]
            other = next((at for at, text in enumerate(said) if text != said[0]), 0)
            if other:
                files = results.source(shown[0]), results.source(shown[other])
                return f"{said[0]} in {files[0]}, {said[other]} in {files[1]}"
        return ""

    def drawable(self, result: xr.Dataset) -> list[str]:
        """The variables of `result` that this figure can draw."""
        names = map(str, result.data_vars)
        return [n for n in names if n in self.variables or (self.also and self.also(result, n))]


def _setting(name: str) -> Callable[[xr.Dataset], str]:
    return lambda result: f"{name} is {results.spec(result).get(name)}"


def _label(name: str) -> Callable[[xr.Dataset], str]:
    return lambda result: f"{name} is {results.axis_label(result[name])}"


def common(shown: Sequence[xr.Dataset], dim: str) -> list[str]:
    """The entries of `dim` that all of `shown` have, in the order of the first."""
    return [
        name
        for name in dict.fromkeys(map(str, shown[0][dim].values))
        if all(name in map(str, result[dim].values) for result in shown)
    ]


def on_the_grid(result: xr.Dataset, variable: str) -> bool:
    """Whether there is one value of `variable` for every cell of the grid."""
    return variable != "measured" and result[variable].dims == result["measured"].dims


def summed_up(result: xr.Dataset, variable: str) -> bool:
    """Whether there is a mean of `variable` over the examples."""
    return f"{variable}_mean" in result


def has_stderr(result: xr.Dataset, variable: str) -> bool:
    """Whether `variable` runs along the grid with a standard error at every point."""
    return (
        f"{variable}_stderr" in result and result[variable].dims[:1] == result["measured"].dims[:1]
    )


@dataclass(frozen=True)
class Page:
    """What one figure is to show; see `analysis.figures.draw`, which decides every default."""

    kind: Kind
    shown: Sequence[xr.Dataset]
    variables: Sequence[str]
    choice: Choice
    columns: int
    ceiling: float | None
    part: tuple[int, int] | None = None  # from, up to: of what the kind divides

    def own(self, things: Sequence[T]) -> Sequence[T]:
        """Those of `things` that are in this figure, where all would be taller than a page."""
        return things if self.part is None else things[self.part[0] : self.part[1]]


def panels(page: Page) -> Figure:
    """One panel a result, the same limits and colours in all, one colour bar."""
    kind, shown, columns = page.kind, page.own(page.shown), page.columns
    (variable,) = page.variables
    scale = shared_scale(page.shown, variable, page.choice, page.ceiling)
    figure = new_figure(columns, gap=_GAP_3D if kind.projection else 0.02)
    across = side_by_side(page)[1]
    down = -(-len(shown) // across)
    axes = [
        figure.add_subplot(down, across, position + 1, projection=kind.projection)
        for position in range(len(shown))
    ]
    drawn = [
        kind.marks(result, ax, variable=variable, scale=scale)
        for result, ax in zip(shown, axes, strict=True)
    ]
    flat = kind.projection is None
    below = not flat or (columns == 1 and across > 1)  # where a bar at the side is too dear
    panel = style.WIDTHS[columns] / across
    for result, name, ax in zip(shown, page.own(names(page.shown)), axes, strict=True):
        title(ax, name, note(result, variable, scale), 0.8 * panel, lift=0 if flat else _LIFT_3D)
    _share_limits(axes, page.shown)
    ratio = _HEIGHT_3D
    if flat:
        to_scale = axes[0].get_aspect() == 1
        ratio = np.ptp(axes[0].get_ylim()) / np.ptp(axes[0].get_xlim()) if to_scale else _HEIGHT
        _label_outer(axes, across)
    length = 0.9 * style.WIDTHS[columns] if below else 0.65 * panel * ratio * down
    ticks = scale.place(scale.levels) if flat else scale.ticks(_TICKS_3D)
    label = scale.label(results.axis_label(shown[0][variable]))
    figure.colorbar(
        drawn[0],
        ax=axes,
        label=wrapped(label, length),
        format=FuncFormatter(scale.text),
        ticks=ticks[:: int(np.ceil(len(ticks) * _TICK[below] / length))],
        location="bottom" if below else "right",
        extend="max" if scale.over else "neither",
        aspect=40 if below else 25,
        pad=0.02 if flat else _GAP_3D / down,
        shrink=0.75 if columns == 2 and below else 1.0,
    )
    legend(figure, axes)
    fit_height(figure, axes, down, ratio)
    for ax in axes:
        ax.apply_aspect()
        if kind.finish is not None:
            kind.finish(ax, scale)
    return figure


def side_by_side(page: Page) -> tuple[int, int]:
    """How many `panels` there are, and how many of them stand next to each other."""
    own = len(page.own(page.shown))
    return own, min(own, _PANELS[page.kind.projection][page.columns])


def blocks(
    page: Page,
    *,
    ways: Callable[[xr.Dataset, str], Sequence[Callable[..., Any]]],
    across: dict[int, int],
    ratio: dict[int, float],
) -> Figure:
    """A block of panels a result: one a variable and way to draw it, with its own scale and legend.

    Args:
        page: what to show.
        ways: (result, variable) -> marks (result, Axes, *, variable), one panel each.
        across: panels side by side, by columns.
        ratio: height of a panel over its width, by columns.
    """
    shown, columns = page.own(page.shown), page.columns
    drawings = [(marks, name) for name in page.variables for marks in ways(shown[0], name)]
    figure = new_figure(columns, gap=0.04)
    many = min(across[columns], len(drawings))
    down = -(-len(drawings) // many)
    width = style.WIDTHS[columns] / many
    axes = []
    for number, (result, name) in enumerate(zip(shown, page.own(names(page.shown)), strict=True)):
        for at, (marks, variable) in enumerate(drawings):
            ax = figure.add_subplot(len(shown) * down, many, number * down * many + at + 1)
            marks(result, ax, variable=variable)
            key = _legend_above(ax, _LEGEND * width)
            if at == 0:
                title(ax, name, "", 0.8 * width, lift=key)
            axes.append(ax)
    fit_height(figure, axes, len(shown) * down, ratio[columns])
    return figure


def errors(ax: Axes) -> None:
    """Say in the legend what the bars of `ax` are."""
    ax.errorbar([], [], [], color="0.2", lw=0.8, label=style.TWO_ERRORS)


def name_places(ax: Axes, names: Sequence[str]) -> None:
    """Name the places 0, 1, ... of the horizontal axis: side by side where they fit, else aslant.

    To fit, names are broken at their spaces, or else at their last dot.
    """
    place, figure = ax.get_subplotspec(), ax.get_figure(root=True)
    assert place is not None and figure is not None  # all Axes here are subplots
    room = _AXIS * figure.get_figwidth() / place.get_gridspec().ncols / len(names)
    character = _CHARACTER * style.NOTE_SIZE / style.TEXT_SIZE
    broken = [n.replace(" ", "\n") if " " in n else "\n".join(n.rsplit(".", 1)) for n in names]
    fit = [
        lines
        for lines in (list(names), broken)
        if max(len(line) for name in lines for line in name.split("\n")) * character <= room
    ]
    ax.set_xticks(range(len(names)), fit[0] if fit else list(names))
    for label in ax.get_xticklabels() if not fit else []:
        label.set(rotation=30 if room > _LINES else 60, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.5, len(names) - 0.5)


def overlay(page: Page, *, remark: Callable[[xr.Dataset], str] = lambda _: "") -> Figure:
    """All results in the same Axes, one Axes a variable, one above the other.

    Args:
        page: what to show.
        remark: a few words on a result, after its name.
    """
    shown, variables, columns = page.shown, page.variables, page.columns
    figure = new_figure(columns, gap=0.02)
    axes = [
        figure.add_subplot(len(variables), 1, position + 1) for position in range(len(variables))
    ]
    labels = names(shown)
    scales = [shared_scale(shown, variable, page.choice, page.ceiling) for variable in variables]
    counts = [
        ", ".join(filter(None, (note(result, variables[0], scales[0]), remark(result))))
        for result in shown
    ]
    if len(shown) == 1:
        title(axes[0], labels[0], counts[0], 0.8 * style.WIDTHS[columns], lift=0)
        labels = [""]
    else:
        labels = [
            f"{label} ({count})" if count else label
            for label, count in zip(labels, counts, strict=True)
        ]
    for variable, scale, ax in zip(variables, scales, axes, strict=True):
        for result, label, look in zip(shown, labels, looks(shown), strict=True):
            page.kind.marks(result, ax, variable=variable, scale=scale, label=label, look=look)
    for ax in axes[:-1]:
        ax.sharex(axes[-1])
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
    figure.align_ylabels()
    legend(figure, axes, labels)
    fit_height(figure, axes, len(axes), _HEIGHT_OVERLAY[columns])
    return figure


def note(result: xr.Dataset, variable: str, scale: Scale) -> str:
    """How many points were not measured, are not finite or lie above the scale, if any."""
    points, measured = result["measured"].size, int(result["measured"].sum())
    values = finite(result, variable)
    astray, above = measured - values.size, scale.note(values)
    counts = [f"{measured} of {points} points measured"] if measured < points else []
    counts += [above] if above else []
    counts += [f"{astray} not finite"] if astray else []
    return ", ".join(counts)


def names(shown: Sequence[xr.Dataset]) -> list[str]:
    """`results.names`, as a figure can write them."""
    return [style.written(text) for text in results.names(shown)]


def new_figure(columns: int, *, gap: float) -> Figure:
    """An empty figure, one or two columns of a journal wide, of no window and no global state."""
    width = style.WIDTHS[columns]
    figure = Figure(figsize=(width, width), layout=ConstrainedLayoutEngine(hspace=gap))
    FigureCanvasAgg(figure)
    return figure


def title(ax: Axes, name: str, counts: str, width: float, *, lift: float) -> None:
    """Write a result's name above its Axes, and in small type below it what is left out."""
    counts = wrapped(counts, width)
    above = (counts.count("\n") + 1) * 1.25 * style.NOTE_SIZE if counts else 0.0
    ax.set_title(name, pad=4 + lift + above)
    _break(ax.title, name, width)
    ax.annotate(
        counts,
        (0.5, 1),
        (0, 3 + lift),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        size=style.NOTE_SIZE,
    )


def _label_outer(axes: Sequence[Axes], across: int) -> None:
    """Keep only the outer axis labels."""
    for position, ax in enumerate(axes):
        left, lowest = position % across == 0, position + across >= len(axes)
        ax.set_xlabel(ax.get_xlabel() if lowest else "")
        ax.set_ylabel(ax.get_ylabel() if left else "")
        ax.tick_params(labelbottom=lowest, labelleft=left)


def wrapped(text: str, width: float) -> str:
    """`text` in lines of about `width` inches at most, broken before and after a unit if any."""
    if "\n" in text:
        return "\n".join(wrapped(line, width) for line in text.splitlines())
    if len(text) * _CHARACTER <= width:
        return text
    for end, start in (("),", ""), ("", "(")):
        first, _, rest = text.partition(f"{end} {start}")
        if first and rest:
            return f"{wrapped(first + end, width)}\n{wrapped(start + rest, width)}"
    return _filled(
        re.sub(r" (\S{1,2})$", "\N{NO-BREAK SPACE}\\1", text), max(12, int(width / _CHARACTER))
    )


def _share_limits(axes: Sequence[Axes], shown: Sequence[xr.Dataset]) -> None:
    ends = [
        [limits(result[dim].values.astype(float)) for result in shown]
        for dim in shown[0]["measured"].dims
    ]
    (left, right), (bottom, top) = (zip(*limits_, strict=True) for limits_ in ends)
    for ax in axes:
        ax.set(xlim=(min(left), max(right)), ylim=(min(bottom), max(top)))


def legend(figure: Figure, axes: Sequence[Axes], first: Sequence[str] = ()) -> None:
    """One legend below for all Axes: the labels in `first`, then the others.

    A label stands there once for each look of its lines. The legend fits the width of the
    figure: what the labels in `first` begin with in common is its title, it has no more columns
    than have room, and labels that are longer still are broken into lines.
    """
    entries: dict[tuple[str, str], Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            look = ""
            if isinstance(handle, Line2D):
                face = to_hex(handle.get_markerfacecolor())
                look = f"{to_hex(handle.get_color())} {handle.get_marker()} {face}"
            entries.setdefault((label, look), handle)
    if not entries:
        return
    keys = sorted(entries, key=lambda key: key[0] not in first)
    labels = [label for label, _ in keys]
    named = [label for label in labels if label in first]
    common = os.path.commonprefix(named).rpartition(", ")[0] if len(named) > 1 else ""
    shortened = [label.removeprefix(f"{common}, ") if label in named else label for label in labels]
    box = _as_wide(
        figure,
        [entries[key] for key in keys],
        shortened,
        figure.get_figwidth(),
        heading=common,
        loc="outside lower center",
    )
    figure.set_figheight(figure.get_figheight() + box.height)  # it takes no height from the Axes


def _legend_above(ax: Axes, width: float) -> float:
    """A legend above Axes, no wider than so many inches; its height in points, 0 without one."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return 0.0
    where: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2}
    return 72 * _as_wide(ax, handles, labels, width, **where).height


def _as_wide(
    owner: Figure | Axes,
    handles: Sequence[Any],
    labels: Sequence[str],
    room: float,
    *,
    heading: str = "",
    **where: Any,
) -> BboxBase:
    """Draw a legend of as few rows as `room` inches allow; the box that it takes, in inches."""
    figure = owner.get_figure(root=True)
    assert figure is not None
    rows, characters = 1, max(map(len, [heading, *labels]))
    while True:
        title, *lines = (_filled(text, characters) for text in [heading, *labels])
        drawn = owner.legend(
            handles,
            lines,
            title=title,
            title_fontsize=style.NOTE_SIZE,
            ncols=-(-len(labels) // rows),
            **where,
        )
        box = drawn.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        if box.width <= room:
            return box
        drawn.remove()
        if rows < len(labels):
            rows += 1
        else:
            characters = int(characters * room / box.width)


def _filled(text: str, characters: int) -> str:
    """`text` with its own lines broken where they are longer than so many characters.

    An error stays with its value.
    """
    bound = text.replace(
        " \N{PLUS-MINUS SIGN} ", "\N{NO-BREAK SPACE}\N{PLUS-MINUS SIGN}\N{NO-BREAK SPACE}"
    )
    filled = "\n".join(textwrap.fill(line, characters) for line in bound.splitlines())
    return filled.replace("\N{NO-BREAK SPACE}", " ")


def fit_height(figure: Figure, axes: Sequence[Axes], down: int, ratio: float) -> None:
    """Give every one of `down` rows of Axes `ratio` times its width: no white margins.

    Their labels are broken into lines that fit along them.
    """
    aspects = [ax.get_aspect() for ax in axes]
    labels = [(ax, axis.label) for ax in axes if ax.name != "3d" for axis in (ax.xaxis, ax.yaxis)]
    whole = [" ".join(label.get_text().split()) for _, label in labels]
    for ax in axes:
        ax.set_aspect("auto")  # fill the place, so that the labels stay where they will be
    place = axes[0].get_gridspec()
    rows, across = (place.nrows, place.ncols) if place is not None else (down, 1)
    # In which all rows have room, so that there is a layout to begin with.
    titles = max(ax.title.get_window_extent().height for ax in axes) / figure.dpi
    first = down * ratio * figure.get_figwidth() / across + rows * (_ROOM + titles)
    figure.set_figheight(max(figure.get_figheight(), first))
    layout = figure.get_layout_engine()
    assert layout is not None, "no figure of new_figure"
    for _ in range(5):  # labels and colour bar change a little with the height
        layout.execute(figure)
        width, height = figure.get_size_inches()
        before = [label.get_text() for _, label in labels]
        for (ax, label), text in zip(labels, whole, strict=True):
            box = ax.get_position(original=True)
            upright = label is ax.yaxis.label
            length = box.height * height if upright else box.width * width
            gap = _GAP if upright and rows > 1 else 1.0
            _break(label, text, gap * length)
        box = axes[0].get_position(original=True)
        change = down * (box.width * width * ratio - box.height * height)
        figure.set_size_inches(width, height + change)
        if abs(change) < 0.01 and before == [label.get_text() for _, label in labels]:
            break
    for ax, aspect in zip(axes, aspects, strict=True):
        ax.set_aspect(aspect)


def _break(label: Text, text: str, length: float) -> None:
    """Write `text` in lines that are no longer than `length` inches as drawn, if words allow it."""
    for share in _TIGHTER:
        label.set_text(wrapped(text, share * length))
        extent = label.get_window_extent()
        dpi = label.get_figure(root=True).dpi  # type: ignore[union-attr]
        if max(extent.width, extent.height if label.get_rotation() == 90 else 0) <= length * dpi:
            return
