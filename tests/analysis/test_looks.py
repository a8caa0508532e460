"""No two networks in one Axes are drawn alike, in colour or in grey print."""

from __future__ import annotations

from itertools import pairwise

import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.figures import draw, style
from analysis.figures.looks import Look, following, looks
from analysis.figures.profile import profile
from tests.analysis.every_figure import RESULTS, line, renamed

OVERLAID = [
    kind
    for kind in RESULTS
    if RESULTS[kind]().attrs["probe"] not in ("attention", "diffusion", "terms")
    and kind not in ("contour", "surface3d", "gallery", "trajectory")
]


def named(*names: str) -> list[xr.Dataset]:
    return [renamed(line(), name) for name in names]


def arms(kind: str, seeds: int) -> list[xr.Dataset]:
    names = [f"{arm}-seed{seed}" for arm in ("sum", "product") for seed in range(seeds)]
    return [renamed(RESULTS[kind](), name) for name in names]


def in_grey(look: Look) -> tuple[object, ...]:
    return str(look.dash), look.mark, look.hollow


@pytest.mark.parametrize("count", range(1, 7))
def test_up_to_six_networks_have_a_colour_a_dash_and_a_mark_each(count: int) -> None:
    found = looks(named(*(f"net{n}" for n in range(count))))
    for thing in ("colour", "mark"):
        assert len({getattr(look, thing) for look in found}) == count
    assert len({str(look.dash) for look in found}) == count
    assert {look.band for look in found} == {count <= 3}
    assert {look.marked for look in found} == {count > 3}


def test_seeds_of_several_arms_are_thin_lines_of_the_colour_and_dash_of_their_arm() -> None:
    names = [f"{arm}-seed{seed}" for seed in range(8) for arm in ("sum", "product")]
    found = looks(named(*names))
    assert len({in_grey(look) for look in found}) == 16
    for at, (one, other) in enumerate(pairwise(found[::2])):
        assert (one.colour, one.dash) == (other.colour, other.dash), at
    assert {look.colour for look in found[::2]}.isdisjoint(look.colour for look in found[1::2])
    assert {look.thin for look in found} == {True}


@pytest.mark.parametrize("name", ["a-seed{}", "a_seed{}", "a seed {}", "seed={}-a", "a.Seed{}"])
def test_a_seed_is_known_by_its_name(name: str) -> None:
    found = looks([*named(*(name.format(n) for n in range(3))), *named("b")])
    assert len({look.colour for look in found}) == 2


def test_seeds_of_one_network_have_looks_of_their_own_while_there_are_enough() -> None:
    assert len({look.colour for look in looks(named("a-seed0", "a-seed1"))}) == 2
    assert len({look.mark for look in looks(named(*(f"a-seed{n}" for n in range(8))))}) == 8


def test_one_network_given_twice_is_drawn_in_two_ways() -> None:
    assert len({in_grey(look) for look in looks(named(*["net"] * 6))}) == 6
    assert len({in_grey(look) for look in looks(named(*["net"] * 8))}) == 8


@pytest.mark.parametrize(
    "names", [[f"net-{n}" for n in "abcdefg"], [f"a-seed{n}" for n in range(17)]]
)
def test_more_networks_than_can_be_told_apart_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match=f"^{len(names)} networks would look alike.*Draw fewer"):
        draw(named(*names))


def test_lines_that_are_drawn_one_by_one_differ_until_there_are_no_looks_left() -> None:
    ax = Figure().add_subplot()
    for count, result in enumerate(named(*"abcdef"), start=1):
        profile(result, ax)
        seen = {to_hex(drawn.get_color()) for drawn in ax.lines}
        assert len(seen & {to_hex(colour) for colour, _ in style.LINES}) == count
    with pytest.raises(ValueError, match="another would look like one of them"):
        following(ax)


def marks(ax: Axes) -> set[tuple[str, str, bool]]:
    """Colour, shape and hollowness of the marks that have a network's colour."""
    known = {to_hex(colour) for colour, _ in style.LINES}
    return {
        (colour, str(line.get_marker()), to_hex(line.get_markerfacecolor()) == "#ffffff")
        for line in ax.lines
        if (colour := to_hex(line.get_color())) in known
        and line.get_marker() not in ("None", "", "x")
    }


@pytest.mark.parametrize("kind", OVERLAID)
@pytest.mark.usefixtures("not_laid_out")
def test_eight_lines_are_told_apart_by_marks_in_every_figure(kind: str) -> None:
    shown = arms(kind, 4)
    if kind == "barrier":
        shown = [one.isel(batch_norm_statistics=[0]) for one in shown]
    ax = draw(shown, kind=kind).axes[0]
    found = marks(ax)
    if kind in ("spectrum", "eigenvalues"):  # where hollow ones have not converged
        found = {mark for mark in found if not mark[2]}
    assert len({mark[1:] for mark in found}) == 8
    assert len({colour for colour, *_ in found}) == 2
    assert not any(band.get_alpha() for band in ax.collections), "a band"


@pytest.mark.parametrize("kind", ["paths", "eigenvalues"])
@pytest.mark.usefixtures("not_laid_out")
def test_where_dashes_mean_something_else_two_networks_differ_in_their_marks(kind: str) -> None:
    figure = draw([renamed(RESULTS[kind](), name) for name in "ab"], kind=kind)
    assert len({mark for _, mark, _ in marks(figure.axes[0])}) == 2
