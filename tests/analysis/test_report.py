from __future__ import annotations

import csv
import html
import json
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from analysis import claims
from analysis.report import numbers, opening, plots, render
from analysis.report.__main__ import main
from analysis.report.blocks import (
    Details,
    Figures,
    Glossary,
    Heading,
    Items,
    Listing,
    Section,
    Text,
)
from analysis.report.effects import Row, effects
from analysis.report.sections import Report, report
from analysis.report.tables import Column, Table
from analysis.study import CLAIMS, Endpoint
from tests.analysis.extents import faults
from tests.analysis.planted import ARMS, EFFECT, planted

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(surface, tmp_path_factory) -> Path:
    return planted(tmp_path_factory.mktemp("planted.study"), surface)


@pytest.fixture(scope="module")
def made(folder) -> Report:
    return report(folder)


@pytest.fixture(scope="module")
def page(made) -> str:
    return made.html()


@pytest.fixture
def small(surface, tmp_path) -> Path:
    """Two seeds, to be damaged."""
    return planted(tmp_path, surface, seeds=2)


class Reader(HTMLParser):
    """Tables by caption as lists of rows of texts, headings, images, ids and links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[tuple[str, str]] = []
        self.images: list[dict[str, str]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.addresses: list[str] = []
        self._rows: list[list[str]] = []
        self._text = ""
        self.feed(re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        self.ids += [own["id"]] if "id" in own else []
        self.addresses += [own[key] for key in ("src", "href") if key in own]
        if tag == "img":
            self.images.append(own)
        elif tag == "a":
            self.links.append(own["href"])
        elif tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag == "br":
            self._text += "\n"
        if tag in ("th", "td", "caption", "h1", "h2", "h3", "h4"):
            self._text = ""

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self._rows[-1].append(self._text.strip())
        elif tag == "caption":
            self.tables[self._text] = self._rows
        elif tag[0] == "h" and tag[1:].isdigit():
            self.headings.append((tag, self._text))


def test_verdict_table_agrees_with_the_evaluation(folder, page):
    evaluation = claims.evaluate(folder)
    reader = Reader(page)
    heading, *rows = reader.tables[
        "What the seeds say of each claim: multiplicative against vanilla"
    ]
    assert heading[:3] == ["claim", "verdict", "effect and 95 % interval"]
    assert len(rows) == len(evaluation.primary()) == 2
    for row, verdict in zip(rows, evaluation.primary(), strict=True):
        assert row[0] == CLAIMS[verdict.claim]
        assert row[1].endswith(verdict.verdict)
        shown = [float(x) for x in re.findall(r"[-\d.e]+", row[2].replace("\N{MINUS SIGN}", "-"))]
        # Three significant digits are shown: half a unit of the third is at most 0.5 %.
        expected = [verdict.effect, verdict.low, verdict.high]
        np.testing.assert_allclose(shown[:3], expected, rtol=5e-3, atol=1e-12)
        assert float(row[3]) == pytest.approx(verdict.p_holm, rel=0.05)  # two digits
        assert float(row[4]) == pytest.approx(verdict.p, rel=0.05)
        assert row[5] == str(verdict.seeds) == "8"


def test_page_begins_with_the_claim_its_words_and_both_directions(page):
    (caption, (heading, *rows)), *_ = Reader(page).tables.items()
    first = html.unescape(page[page.index("<main>") : page.index("</table>")])
    assert "compared with vanilla, multiplicative is smoother near real samples and" in first
    terms = re.findall(r"<dt>(.*?)</dt>", first)
    assert terms == ["vanilla", "multiplicative", "arm", "endpoint"]
    assert "(resnet8, 8 networks)" in first
    assert caption.startswith("multiplicative against vanilla")
    assert heading[2:] == ["predicted", "measured, 95 % interval", "verdict"]
    assert [row[2] for row in rows] == ["lower", "higher"]
    near, generalises = (row[3].replace("\N{NO-BREAK SPACE}", " ") for row in rows)
    assert re.fullmatch(r"lower: \N{MULTIPLICATION SIGN}0\.6\d+ \[0\.\d+, 0\.\d+\]", near)
    assert generalises.startswith("the same: 0 [0, 0]")
    assert "<nav" not in first and "<details" not in first


def decided(effect: float, predicts: str, verdict: claims.Word, name: str) -> tuple:
    endpoint = Endpoint("near", name, "x", "y", predicts, 0.1, "difference", primary=True)
    row = claims.Verdict(
        *("near", name, True, "treatment", "a", "b", verdict, effect),
        *(effect - 0.1, effect + 0.1, 0.5, 0.5, 0.5, 8, 1),
    )
    return endpoint, row


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        (
            [(0.1, "lower", "undecided"), (-0.2, "higher", "undecided")],
            "Both primary endpoints point the other way. Both claims are undecided.",
        ),
        ([(0.1, "higher", "supported")], "The primary endpoint points as the claim predicts."),
        (
            [
                (0.1, "lower", "contradicted"),
                (0.1, "higher", "supported"),
                (float("nan"), "higher", "undecided"),
                (0.0, "lower", "no relevant difference"),
                (0.3, "higher", "undecided"),
            ],
            "Of the five primary endpoints, two point as the claim predicts, one the other way and "
            "two neither way. One claim is supported, one contradicted, one has no relevant "
            "difference and two undecided.",
        ),
    ],
)
def test_directions_and_verdicts_are_said_as_they_are(cases, said):
    rows = [decided(*case, name=str(at)) for at, case in enumerate(cases)]
    endpoints, verdicts = zip(*rows, strict=True)
    evaluation = claims.Evaluation("t", endpoints, verdicts, (), ())
    assert opening.outcome(evaluation).startswith(said)


def test_what_the_study_file_says_of_an_arm_is_its_meaning(small):
    for path in small.glob("*.h5"):  # nothing to draw: the test is quicker
        path.unlink()
    path = small / "study.json"
    content = json.loads(path.read_text())
    content["study"]["arms"][1]["about"] = "branches are <multiplied>"
    path.write_text(json.dumps(content))
    page = report(small).html()
    assert "<dd>branches are &lt;multiplied&gt; (resnet8, 2 networks)</dd>" in page


def test_captions_have_no_labels_of_the_study(made):
    captions = [d.caption for section in made.sections for d in section.drawings]
    assert len(captions) >= 4
    for caption in captions:
        assert not re.search(r"\bnear\b|seed \d|\.h5", caption)
        assert caption.endswith(".")
    assert any(c.startswith("Sensitivity around each real sample. The share") for c in captions)
    assert any(c.startswith("Loss around the trained weights, on a random") for c in captions)


def test_figures_call_networks_by_their_arms(made):
    (alt,) = [d.alt for s in made.sections for d in s.drawings if d.name.endswith(".norms")]
    assert "multiplicative, L2 norm of the loss gradient:" in alt


def test_numbers_are_folded_and_verdicts_and_figures_are_not(made):
    for section in made.sections:
        whole = [block for block in section.blocks if not isinstance(block, Details)]
        assert not [block for block in whole if isinstance(block, Table) and block.name]
        folded = Section("", "", [b for b in section.blocks if isinstance(b, Details)])
        assert not folded.drawings
        assert folded.tables == section.tables


def test_planted_effect_is_supported_and_the_same_accuracy_is_no_difference(made):
    near, generalises = made.evaluation.primary()
    assert near.verdict == "supported"
    # 8 seeds of 20 images with noise 0.02 in both arms: a standard error of about 0.0022.
    assert near.effect == pytest.approx(EFFECT["multiplicative"], abs=4 * 0.0022)
    assert generalises.verdict == "no relevant difference"


def test_every_row_of_the_evaluation_is_on_the_page(made, page):
    tables = Reader(page).tables
    for claim in ("near", "generalises"):
        rows = tables[f"{CLAIMS[claim]}: all endpoints and comparisons"][1:]
        verdicts = [v for v in made.evaluation.verdicts if v.claim == claim]
        assert len(rows) == len(verdicts) > 0
        for row, verdict in zip(rows, verdicts, strict=True):
            assert row[0].endswith(verdict.endpoint)
            assert row[3].endswith(verdict.verdict)
    compared = [
        row[1] for row in tables["Smoother near real samples: all endpoints and comparisons"]
    ]
    assert "control: gated against vanilla" in compared
    assert "negative control: half of the vanilla seeds against the others" in compared
    assert "multiplicative against vanilla, accuracy-matched" in compared


def test_commands_settings_and_hashes_stand_next_to_the_numbers(made, page):
    text = html.unescape(page)
    for record in made.folder.planned:
        assert record["command"] in text
    for checkpoint in made.folder.checkpoints:
        assert checkpoint["sha256"] in text
    rows = Reader(page).tables["Every network of the study"][1:]
    assert [row[:2] for row in rows] == [[arm, str(seed)] for arm in ARMS for seed in range(8)]
    assert rows[3][3] == "0.903"
    assert rows[0][4] == "4,321"
    assert '"seed": 0' in text


def test_page_needs_nothing_else(page):
    reader = Reader(page)
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert "default-src 'none'" in page
    assert {link[1:] for link in reader.links} <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)


def test_headings_go_down_one_level_at_a_time(page):
    levels = [int(tag[1:]) for tag, _ in Reader(page).headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_every_figure_has_a_text_with_its_numbers(made, page):
    images = Reader(page).images
    assert len(images) == sum(len(section.drawings) for section in made.sections) >= 4
    for image in images:
        assert re.search(r"\d", image["alt"])
        assert len(image["alt"]) > 60


def test_texts_of_the_study_are_escaped(page):
    assert "<effects>" not in page
    assert "<h1>Planted &lt;effects&gt; &amp; none</h1>" in page


def test_same_results_give_the_same_bytes(bowl, made, page):
    assert made.html() == page
    once, again = (plots.drawings([bowl], "x", "Here.")[0] for _ in range(2))
    assert [drawing.uri for drawing in once] == [drawing.uri for drawing in again]


def test_surfaces_that_turn_hold_the_measured_values(folder, page):
    (content,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    drawn = json.loads(content)
    assert [panel["label"] for panel in drawn["panels"]] == list(ARMS)
    result = xr.open_dataset(folder / "vanilla-seed0.plane.h5", engine="h5netcdf")
    panel = drawn["panels"][0]
    # Heights are rounded to five decimals; rows run along beta.
    np.testing.assert_allclose(panel["z"], result["loss"].values.T, atol=6e-6)
    np.testing.assert_array_equal(panel["x"], result["alpha"].values)
    result.close()


def test_what_explodes_is_cut_at_the_top_and_noted(surface):
    axis = np.linspace(-1, 1, 3)
    loss = np.array([[1.0, 2.0, 1e9], [1.0, 0.5, 3.0], [np.inf, 2.0, np.nan]])
    turning = plots.turning([surface(loss, alpha=axis, beta=axis)], ["a </script> b"], "x")
    text = render.show(turning)
    assert "a </script>" not in text
    drawn = json.loads(re.findall(r"json\">(.*?)</script>", text)[0])
    (panel,) = drawn["panels"]
    assert panel["label"] == "a </script> b"
    assert panel["z"][2][0] == pytest.approx(drawn["range"][1], abs=1e-5)  # rounded
    assert panel["text"][2][0] == "1e+09"
    assert panel["z"][0][2] is None
    assert panel["z"][2][2] is None
    assert panel["note"] == "1 of 9 points above the scale; 2 not finite: holes"


def test_plotly_is_there_once_and_only_for_surfaces_that_turn(made, page):
    assert page.count("plotly.js v") == 1
    still = [
        Section(s.name, s.title, [b for b in s.blocks if not isinstance(b, plots.Surfaces)])
        for s in made.sections
    ]
    without = render.page(title="t", summary="s", footer="f", sections=still)
    assert "plotly" not in without
    assert len(Reader(without).images) == len(Reader(page).images)


@pytest.mark.parametrize("kind", ["text", "number", "code", "verdict"])
def test_every_block_escapes_its_texts(bowl, kind):
    bad = "<b>'\"&"
    (drawing, *_), _ = plots.drawings([bowl], "x", bad)
    cells = [["supported", "supported"]] if kind == "verdict" else [[bad, bad]]
    table = Table("t", bad, [Column(bad, kind), Column(bad, kind)], cells, [])
    blocks = [
        Text(bad),
        Heading(bad),
        Glossary([(bad, bad)]),
        Items([bad]),
        Listing(bad),
        Figures([drawing]),
        table,
    ]
    section = Section("s", bad, [*blocks, Details(bad, blocks)])
    page = render.page(title=bad, summary=bad, footer=bad, sections=[section])
    assert "<b>" not in page
    assert section.tables == [table, table]
    assert section.drawings == [drawing, drawing]
    for attributes in Reader(page).images:
        assert set(attributes) == {"src", "alt"}
        assert bad in attributes["alt"]
    assert Reader(page).tables[bad][0] == [bad, bad]


def test_package_has_every_file_that_the_page_is_made_of():
    folder = Path(render.__file__).parent
    content = tomllib.loads((folder.parents[1] / "pyproject.toml").read_text())
    patterns = content["tool"]["setuptools"]["package-data"]["analysis.report"]
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert packed == {path for path in files if path.suffix not in (".py", ".pyc")}
    assert len(packed) >= 4


def test_a_row_of_another_length_than_the_columns_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        render.show(Table("t", "c", [Column("a"), Column("b")], [["1"]], []))


def test_page_is_made_without_results_and_shows_how_to_make_them(small, capsys):
    damaged = {
        "vanilla-seed0.near.h5": "no such file",
        "multiplicative-seed0.near.h5": "damaged",
        "gated-seed0.near.h5": "does not fit its checksum",
        "gated-seed1.near.h5": "schema version is 99",
        "multiplicative-seed0.plane.h5": "the study names",
    }
    deleted, truncated, foreign, newer, swapped = (small / name for name in damaged)
    deleted.unlink()
    truncated.write_bytes(truncated.read_bytes()[:2000])
    with h5py.File(foreign, "a") as file:
        del file.attrs["probe"]
    with h5py.File(newer, "a") as file:
        file.attrs["schema_version"] = 99
    swapped.write_bytes((small / "vanilla-seed0.plane.h5").read_bytes())
    out = small / "page.html"
    assert main([str(small), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [str(out)]
    assert printed.err.startswith("5 results missing or incomplete")
    reader = Reader(out.read_text())
    rows = reader.tables["Results that are missing, damaged or incomplete"][1:]
    assert sorted(row[0] for row in rows) == sorted(damaged)
    for file, why, command in rows:
        assert damaged[file] in why
        assert command.startswith("python -m landscape.")
        assert command.endswith(f"--out {file}")
    assert reader.tables["What the seeds say of each claim: multiplicative against vanilla"][1:]
    # The first seed that both arms have is drawn.
    assert out.read_text().count("<summary>How this was measured; seed 1 is drawn</summary>") == 2
    assert "5 results missing, damaged or incomplete." in out.read_text()


def test_page_is_made_where_nothing_was_measured(small):
    for path in small.glob("*.h5"):
        path.unlink()
    reader = Reader(report(small).html())
    assert len(reader.tables["Results that are missing, damaged or incomplete"][1:]) == 12


def test_missing_metrics_are_no_missing_files(small):
    path = small / "study.json"
    content = json.loads(path.read_text())
    for checkpoint in content["checkpoints"]:
        checkpoint["metrics"] = {}
    path.write_text(json.dumps(content))
    for file in small.glob("*.h5"):
        file.unlink()
    page = report(small).html()
    assert "6 networks, 0 of 12 results." in page
    rows = Reader(page).tables["Results that are missing, damaged or incomplete"][1:]
    assert sum("tells no test_accuracy" in row[1] for row in rows) == 6
    assert len(rows) == 18


def test_amendments_are_shown(small):
    for path in small.glob("*.h5"):  # nothing to draw: the test is quicker
        path.unlink()
    path = small / "study.json"
    content = json.loads(path.read_text())
    content["amendments"] = [{"study_sha256": "d", "changes": ["margin was 0.05, now 0.01"]}]
    path.write_text(json.dumps(content))
    assert "changed after it was begun: margin was 0.05, now 0.01." in report(small).html()


def test_folder_without_a_study_is_refused_with_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "study.json: there is no such file" in printed.err
    assert len(printed.err.splitlines()) == 1


def test_paper_has_every_figure_as_pdf_and_every_table_twice(made, tmp_path):
    paths = made.paper(tmp_path / "paper")
    assert all(path.stat().st_size for path in paths)
    pdfs = [path for path in paths if path.suffix == ".pdf"]
    assert len(pdfs) == sum(len(section.drawings) for section in made.sections)
    for path in pdfs:
        content = path.read_bytes()
        assert b"/FontFile2" in content
        assert b"/Type3" not in content
        (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+)", content)
        assert float(width) == pytest.approx(3.35 * 72, abs=0.01)  # points of one column
    rows = list(csv.DictReader((tmp_path / "paper" / "verdicts.csv").read_text().splitlines()))
    for row, verdict in zip(rows, made.evaluation.primary(), strict=True):
        assert float(row["effect"]) == verdict.effect
        assert float(row["p_holm"]) == verdict.p_holm
        assert row["verdict"] == verdict.verdict
    latex = (tmp_path / "paper" / "verdicts.tex").read_text()
    assert "\\toprule" in latex
    assert latex.isascii()
    assert latex.count("\\\\") == 1 + len(rows)


def test_every_seed_can_be_recomputed_from_the_table(made, folder, tmp_path):
    made.paper(tmp_path)
    rows = list(csv.DictReader((tmp_path / "near.seeds.csv").read_text().splitlines()))
    for row in rows:
        if row["endpoint"] == "input-gradient norm":
            with h5py.File(folder / f"{row['arm']}-seed{row['seed']}.near.h5") as file:
                geometric = np.exp(np.log(file["gradient_l2"][...]).mean())
            # The same float64 sum of 20 logarithms, in another order at most.
            assert float(row["value"]) == pytest.approx(geometric, rel=1e-13)


def test_latex_and_html_escape_what_they_would_read_as_commands():
    table = Table("t", "c", [Column("a_b"), Column("n", "number")], [["x & <y> 5 %", "−1"]], [])
    assert "a\\_b & n \\\\" in table.latex()
    assert "x \\& \\textless{}y\\textgreater{} 5 \\% & $-$1 \\\\" in table.latex()
    assert "x &amp; &lt;y&gt; 5 %" in render.show(table)
    assert table.csv() == "\n"


def test_numbers_are_written_with_dashes_for_what_is_not_known():
    assert numbers.number(float("nan")) == "\N{EN DASH}"
    assert numbers.number(float("-inf")) == "\N{MINUS SIGN}\N{INFINITY}"
    assert numbers.number(-0.012345) == "\N{MINUS SIGN}0.0123"
    alone = Row("", -0.5, float("nan"), float("nan"), (), 0.1, True)
    assert numbers.interval(alone, "difference") == "\N{MINUS SIGN}0.5, no interval"
    assert numbers.interval(alone, "log_ratio").endswith("\n\N{MULTIPLICATION SIGN}0.607")
    assert numbers.p_value(1e-9) == "< 0.0001"
    assert numbers.p_value(0.0078125) == "0.0078"


def test_effects_figure_shows_effects_intervals_seeds_and_margins():
    rows = [
        Row("a", -0.5, -0.7, -0.3, (-0.4, -0.6), 0.05, True),
        Row("b", 0.1, -np.inf, np.inf, (), 0.2, False),
    ]
    (ax,) = effects(rows, unit="log ratio").axes
    drawn = [(line.get_xdata(), line.get_ydata()) for line in ax.lines]
    for expected in (([-0.4, -0.6], [0, 0]), ([-0.7, -0.3], [0, 0]), ([-0.5], [0]), ([0.1], [1])):
        assert any(
            np.shape(x) == np.shape(expected[0]) and np.allclose([x, y], expected) for x, y in drawn
        )
    widths = [patch.get_width() for patch in ax.patches]
    assert widths[:2] == [0.1, 0.4]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert sum(line.get_marker() in "<>" and line.get_marker() != "" for line in ax.lines) == 2


def test_effects_figure_points_to_the_side_that_the_claim_predicts():
    rows = [
        Row("a", 0.5, 0.3, 0.7, (), 0.05, True, predicts="lower"),
        Row("b", 0.1, 0, 0.2, (), 0.2, False, predicts="higher"),
        Row("control", 0.1, 0, 0.2, (), 0.2, False),
    ]
    figure = effects(rows, unit="log ratio")
    arrows = [text for text in figure.axes[0].texts if text.arrow_patch]
    assert [np.sign(arrow.xy[0]) for arrow in arrows] == [-1, 1]
    assert [round(arrow.xy[1]) for arrow in arrows] == [0, 1]
    low, high = figure.axes[0].get_xlim()
    assert all(low < arrow.xy[0] < high for arrow in arrows)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "predicted by the claim" in said
    assert faults(figure) == []


def test_report_needs_no_torch_and_no_measuring_package():
    script = (
        "import sys, analysis.report;"
        "print(*({'torch', 'landscape', 'checkpoints', 'plotly'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("ends", "null", "shown"),
    [
        ((1.4449, 1.04, 2.006), 1.0, ["1.44", "1.04", "2.01"]),
        ((1.4, 1.0004, 2.0), 1.0, ["1.4000", "1.0004", "2.0000"]),
        ((0.0138, -0.00693, 0.0346), 0.0, ["0.014", "-0.007", "0.035"]),
        ((-0.5, -0.9, -0.0001), 0.0, ["-0.5000", "-0.9000", "-0.0001"]),
        ((0.5, 0.0, 0.9), 0.0, ["0.50", "0.00", "0.90"]),
        ((123.4, 80.2, 166.0), 0.0, ["123", "80", "166"]),
        ((0.5, 0.5, 0.5), 0.0, ["0.5", "0.5", "0.5"]),
        ((2e9, 1.0, 4e18), 1.0, ["2e+09", "1", "4e+18"]),
    ],
)
def test_ends_of_an_interval_share_their_decimals_and_never_round_onto_the_null(ends, null, shown):
    found = [text.replace("\N{MINUS SIGN}", "-") for text in numbers.alike(ends, null=null)]
    assert found == shown
