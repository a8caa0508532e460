"""The report in a real browser: Debian's `chromium`, where it is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.report.sections import report
from tests.analysis.browser import Browser, found
from tests.analysis.planted import planted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
NEEDED = "LANDSCAPE_REQUIRE_BROWSER"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    if found() is None:
        if os.environ.get(NEEDED):
            pytest.fail(f"{NEEDED} is set, and there is no chromium")
        pytest.skip("no chromium here: apt-get install chromium")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(surface, tmp_path_factory) -> Path:
    folder = planted(tmp_path_factory.mktemp("planted.study"), surface, seeds=2)
    (folder / "gated-seed1.near.h5").unlink()  # so that every section is there
    path = folder / "report.html"
    path.write_text(report(folder).html(), encoding="utf-8")
    return path


def show_surfaces(browser: Browser) -> None:
    browser.run("document.querySelector('.surfaces').scrollIntoView({block: 'start'})")
    browser.until(
        "[...document.querySelectorAll('.plot')].every(p => p.layout && p.querySelector('canvas'))"
    )


EYES = (
    "[...document.querySelectorAll('.plot')].map(p => p._fullLayout.scene._scene.getCamera().eye)"
)
TURNED = EYES + "[{plot}].x < {x} - 0.05"
# Plotly turns a camera into a matrix and back: the last digits may differ.
TOGETHER = f"({EYES}).every((e, i, all) => Math.hypot(e.x - all[0].x, e.y - all[0].y) < 1e-6)"


def cameras(browser: Browser) -> list[dict[str, float]]:
    return list(browser.run(EYES))


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_shows_all_and_asks_the_network_for_nothing(browser, page, tmp_path, width, scheme):
    browser.open(page, width=width, dark=scheme == "dark")
    show_surfaces(browser)
    images = browser.run(
        "[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.alt, i.clientWidth,"
        " Boolean(i.closest('.still'))])"
    )
    assert len(images) >= 4
    for wide, high, alt, shown, still in images:
        assert min(wide, high) > 50
        assert alt
        assert still or shown > 250
    assert browser.run("document.documentElement.scrollWidth") <= width
    shot = tmp_path / f"{width}-{scheme}.png"
    browser.screenshot(shot)
    assert shot.stat().st_size > 10_000
    assert browser.complaints() == []
    asked = [
        address for address in browser.requests() if not address.startswith(("data:", "blob:"))
    ]
    assert asked == [page.resolve().as_uri()]


def test_a_surface_turns_by_mouse_and_the_others_with_it(browser, page):
    browser.open(page)
    show_surfaces(browser)
    before = cameras(browser)
    assert before[0] == before[1] == before[2]
    x, y, wide, high = browser.run(
        "(r => [r.x, r.y, r.width, r.height])"
        "(document.querySelector('.plot').getBoundingClientRect())"
    )
    x, y = x + wide / 2, y + high / 2
    browser.mouse("mouseMoved", x, y)
    browser.mouse("mousePressed", x, y, buttons=1, clickCount=1)
    for step in range(1, 9):
        browser.mouse("mouseMoved", x + 10 * step, y + 3 * step, buttons=1)
    browser.until(TURNED.format(plot=0, x=before[0]["x"]))
    browser.until(TURNED.format(plot=1, x=before[1]["x"]))  # while the button is still held
    browser.mouse("mouseReleased", x + 80, y + 24, clickCount=1)
    browser.until(TOGETHER)
    assert browser.complaints() == []


def test_surfaces_turn_by_keyboard(browser, page):
    browser.open(page)
    show_surfaces(browser)
    before = cameras(browser)
    browser.run("document.querySelector('button[data-turn=left]').focus()")
    browser.key("Enter")
    browser.until(TURNED.format(plot=2, x=before[2]["x"]))
    browser.until(TOGETHER)
    browser.run("document.querySelector('button[data-turn=reset]').click()")
    browser.until(f"Math.abs({EYES}[2].x - {before[2]['x']}) < 1e-6")


def test_first_tab_reaches_a_visible_link_past_the_contents(browser, page):
    browser.open(page)
    browser.key("Tab")
    focused = browser.run(
        "(e => [e.className, e.getBoundingClientRect().x, getComputedStyle(e).outlineStyle])"
        "(document.activeElement)"
    )
    assert focused[0] == "skip"
    assert focused[1] >= 0
    assert focused[2] == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, page, scheme):
    """WCAG 2.2, 1.4.3: a contrast of 4.5; every colour of text is tried on what lies behind it."""
    browser.open(page, dark=scheme == "dark")
    worst = browser.run(
        """
        (() => {
          const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = (colour) => {
            const [r, g, b] = numbers(colour).slice(0, 3).map((c) => c / 255)
              .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ground = (element) => {
            for (let e = element; e; e = e.parentElement) {
              const colour = getComputedStyle(e).backgroundColor;
              if (!/, 0\\)$/.test(colour)) return colour;
            }
            return "rgb(255, 255, 255)";
          };
          let worst = [21, ""];
          for (const e of document.querySelectorAll("body *")) {
            const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
            if (!own || e.closest("svg, script, style, noscript, .plot")) continue;
            const two = [light(getComputedStyle(e).color), light(ground(e))].sort((a, b) => b - a);
            const contrast = (two[0] + 0.05) / (two[1] + 0.05);
            if (contrast < worst[0]) worst = [contrast, e.outerHTML.slice(0, 200)];
          }
          return worst;
        })()
        """
    )
    assert 4.5 <= worst[0] < 21, worst[1]


def test_a_phone_s_first_screen_has_claim_words_and_verdicts(browser, page):
    browser.open(page, width=390)
    ends = browser.run(
        "['dl', '#verdicts > .scroll', 'nav'].map(s => document.querySelector(s)"
        ".getBoundingClientRect().bottom)"
    )
    assert ends == sorted(ends)
    assert ends[1] < 844  # pixels of the window


def test_what_is_folded_is_printed(browser, page):
    browser.open(page)
    shown = "[...document.querySelectorAll('details')].map(d => d.offsetHeight > 60)"
    assert not any(browser.run(shown))
    browser.call("Emulation.setEmulatedMedia", media="print")  # by the style sheet alone
    assert all(browser.run(shown))
    browser.call("Emulation.setEmulatedMedia", media="")
    opened = "[...document.querySelectorAll('details')].map(d => d.open)"
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert all(browser.run(opened))
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert not any(browser.run(opened))


def test_print_shows_still_surfaces_in_place_of_those_that_turn(browser, page):
    browser.open(page)
    shown = "[...document.querySelectorAll('.still, .surfaces')].map(e => e.offsetHeight > 0)"
    assert browser.run(shown) == [False, True]
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run(shown) == [True, False]
    browser.call("Emulation.setEmulatedMedia", media="")
