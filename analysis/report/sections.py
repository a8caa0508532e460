"""A study's results as one web page, figures and tables: python -m analysis.report RESULTS."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from analysis import claims, results
from analysis.claims import CLAIMS, Evaluation, Verdict
from analysis.figures import save
from analysis.report import render
from analysis.report.effects import Row, effects
from analysis.report.numbers import NONE, interval, many, number, p_value, times
from analysis.report.plots import Drawing, drawings, turning
from analysis.report.tables import Column, Table
from analysis.study import Endpoint, Folder, Missing

_MOST = 6  # networks in one figure: as many lines as differ in colour and dash
UNITS = {"log_ratio": "log ratio", "difference": "difference"}
ROWS = {
    "treatment": "{arm} against {against}",
    "accuracy-matched": "{arm} against {against}, accuracy-matched",
    "control": "control: {arm} against {against}",
    "untrained": "negative control: {arm} against {against}",
    "halves": "negative control: half of the {arm} seeds against the others",
}
VERDICTS = [
    Column("claim"), Column("verdict", "verdict"), Column("effect and 95 % interval", "number"),
    Column("p, Holm", "number"), Column("p", "number"), Column("pairs of seeds", "number"),
    Column("endpoint"),
]  # fmt: skip
NUMBERS = [
    Column("endpoint"), Column("compared"), Column("effect and 95 % interval", "number"),
    Column("verdict", "verdict"), Column("p", "number"), Column("p, Holm", "number"),
    Column("p, equivalence", "number"), Column("pairs of seeds", "number"),
    Column("samples", "number"),
]  # fmt: skip


@dataclass
class Section:
    """One part of the page, with what of it a paper takes.

    Args:
        name: its anchor.
        title: its heading.
        body: HTML.
        drawings: its figures.
        tables: its tables.
    """

    name: str
    title: str
    body: list[str] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def add(self, table: Table) -> None:
        """Append a table."""
        self.tables.append(table)
        self.body.append(table.html())


@dataclass(frozen=True, eq=False)
class Report:
    """A study, told.

    Args:
        folder: of its results.
        evaluation: its claims.
        sections: in order, the verdicts first.
    """

    folder: Folder
    evaluation: Evaluation
    sections: Sequence[Section]

    def html(self) -> str:
        """The page: one file that asks the network for nothing."""
        words = Counter(verdict.verdict for verdict in self.evaluation.primary())
        counts = ", ".join(f"{count} {word}" for word, count in words.items())
        planned = {record["file"] for record in self.folder.planned}
        gaps = {gap.file for gap in unusable(self.folder, self.evaluation)}
        there = len(planned - gaps)
        summary = (
            f"{many(len(self.evaluation.primary()), 'claim')}: {counts}. "
            f"{many(len(self.folder.checkpoints), 'network')}, "
            f"{there} of {many(len(self.folder.planned), 'result')}."
        )
        study = str(self.folder.manifest.get("study_sha256", ""))[:12]
        return render.page(
            title=self.folder.title,
            summary=summary,
            footer=f"Made by python -m analysis.report from {self.folder.path.name}; "
            f"SHA-256 of the study file {study}…",
            sections=[(s.name, s.title, "".join(s.body)) for s in self.sections],
        )

    def paper(self, folder: Path) -> list[Path]:
        """Write every figure as PDF, one column wide, and every table as LaTeX and CSV.

        Returns:
            The paths written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for section in self.sections:
            for drawing in section.drawings:
                written += save(drawing.figure, folder / drawing.name, formats=["pdf"])
            for table in section.tables:
                for ending, text in (("tex", table.latex()), ("csv", table.csv())):
                    path = folder / f"{table.name}.{ending}"
                    path.write_text(text, encoding="utf-8")
                    written.append(path)
        return written


def report(path: Path) -> Report:
    """Evaluate a study and lay out its page.

    Results that are missing or damaged leave a gap, which the page names with the command that
    fills it; what is left is shown.

    Args:
        path: folder that `python -m landscape.study` wrote.

    Raises:
        ValueError: no readable `study.json`, or endpoints in it that are none.

    Cost: every result file is read once, and once more where it is drawn; about a second a figure.
    """
    folder = Folder.open(path)
    evaluation = claims.evaluate(folder.study)
    sections = [_verdicts(folder, evaluation)]
    gaps = unusable(folder, evaluation)
    if gaps:
        sections.append(_missing(gaps))
    labels = folder.probes
    for claim in dict.fromkeys(endpoint.claim for endpoint in evaluation.endpoints):
        section = Section(claim, CLAIMS.get(claim, claim))
        own = [e.probe for e in evaluation.endpoints if e.claim == claim]
        _claim(section, evaluation, claim)
        for label in [label for label in dict.fromkeys(own) if label in labels]:
            labels.remove(label)
            _measured(section, folder, label, gaps)
        sections.append(section)
    if labels:
        section = Section("further", "Further measurements")
        for label in labels:
            _measured(section, folder, label, gaps)
        sections.append(section)
    sections += [_checkpoints(folder), _study(folder)]
    return Report(folder, evaluation, sections)


def _verdicts(folder: Folder, evaluation: Evaluation) -> Section:
    section = Section("verdicts", "Verdicts")
    for amendment in folder.manifest.get("amendments") or []:
        changes = "; ".join(map(str, amendment.get("changes", [])))
        section.body.append(_p(f"The study was changed after it was begun: {changes}."))
    compares = {endpoint.name: endpoint.compare for endpoint in evaluation.endpoints}
    rows = [
        [
            CLAIMS.get(v.claim, v.claim), v.verdict, interval(v, compares[v.endpoint]),
            p_value(v.p_holm), p_value(v.p), str(v.seeds), v.endpoint,
        ]
        for v in evaluation.primary()
    ]  # fmt: skip
    (treatment,), (baseline,) = (folder.study.arms_of(r) for r in ("treatment", "baseline"))
    caption = f"What the seeds say of each claim: {treatment.name} against {baseline.name}"
    data = [_record(v, evaluation) for v in evaluation.primary()]
    section.add(Table("verdicts", caption, VERDICTS, rows, data))
    section.body.append(
        _p(
            "One endpoint decides each claim, fixed before anything was measured. Effects are log "
            "ratios or differences of what the two arms have for the same seed, averaged over "
            "seeds; × is the ratio itself. p is of the exact two-sided sign-flip test over seeds; "
            "Holm corrects it over the claims.",
            "note",
        )
    )
    return section


def _missing(gaps: Sequence[Missing]) -> Section:
    section = Section("missing", "Missing results")
    columns = [Column("result", "code"), Column("why"), Column("made by", "code", paper=False)]
    rows = [[gap.file or f"{gap.arm}, seed {gap.seed}", gap.why, gap.command] for gap in gaps]
    data = [{"file": g.file, "arm": g.arm, "seed": g.seed, "why": g.why, "command": g.command}
            for g in gaps]  # fmt: skip
    section.add(
        Table("missing", "Results that are missing, damaged or incomplete", columns, rows, data)
    )
    section.body.append(_p("python -m landscape.study makes all of them; it measures only these."))
    return section


def _claim(section: Section, evaluation: Evaluation, claim: str) -> None:
    """Verdict in a sentence, effects in a figure, numbers in a table."""
    endpoints = {e.name: e for e in evaluation.endpoints if e.claim == claim}
    verdicts = [v for v in evaluation.verdicts if v.endpoint in endpoints]
    for verdict in verdicts:
        if verdict.primary:
            section.body.append(_p(_sentence(verdict, endpoints[verdict.endpoint])))
    made = list(_effects(claim, verdicts, endpoints))
    section.drawings += made
    section.body.append(_figures(made))
    rows = []
    for v in verdicts:
        compare = endpoints[v.endpoint].compare
        role = "primary: " if endpoints[v.endpoint].primary else ""
        rows.append(
            [
                role + v.endpoint, _compared(v), interval(v, compare), v.verdict, p_value(v.p),
                p_value(v.p_holm), p_value(v.p_equivalence), str(v.seeds), f"{v.samples:,}",
            ]
        )  # fmt: skip
    data = [_record(v, evaluation) for v in verdicts]
    section.body.append("<h3>Numbers</h3>\n")
    caption = f"{section.title}: all endpoints and comparisons"
    section.add(Table(f"{claim}.endpoints", caption, NUMBERS, rows, data))
    notes = [(f"{v.endpoint}, {_compared(v)}", n) for v in verdicts for n in v.notes]
    if notes:
        items = "".join(f"<li>{_t(about)}: {_t(note)}</li>\n" for about, note in notes)
        section.body.append(_details("Notes on these numbers", f"<ul>\n{items}</ul>\n"))
    section.body.append(
        _details("The number of every seed", _seeds(section, evaluation, endpoints))
    )


def _seeds(section: Section, evaluation: Evaluation, endpoints: dict[str, Endpoint]) -> str:
    columns = [
        Column("endpoint"), Column("arm"), Column("seed", "number"), Column("value", "number"),
        Column("average"), Column("samples", "number"),
    ]  # fmt: skip
    data: list[dict[str, object]] = [
        {
            "endpoint": told.endpoint, "arm": told.arm, "role": told.role, "seed": seed,
            "value": value, "average": told.average, "samples": told.samples,
        }
        for told in evaluation.seedwise
        if told.endpoint in endpoints
        for seed, value in zip(told.seeds, told.values, strict=True)
    ]  # fmt: skip
    rows = [
        [
            str(r["endpoint"]), str(r["arm"]), str(r["seed"]), number(float(str(r["value"]))),
            str(r["average"]), str(r["samples"]),
        ]
        for r in data
    ]  # fmt: skip
    table = Table(f"{section.name}.seeds", f"{section.title}: each seed", columns, rows, data)
    section.tables.append(table)
    return table.html()


def _sentence(verdict: Verdict, endpoint: Endpoint) -> str:
    measured = interval(verdict, endpoint.compare).replace("\n", ", that is ")
    known = verdict.low == verdict.low  # one pair has no interval
    bracket = " (in brackets the 95 % interval)" if known else ""
    told = [
        f"{verdict.verdict.capitalize()}. The claim predicts a {endpoint.predicts} "
        f"{endpoint.name} in {verdict.arm} than in {verdict.against}. Measured: "
        f"{UNITS[endpoint.compare]} {measured}{bracket}, corrected p "
        f"{p_value(verdict.p_holm)}, {many(verdict.seeds, 'pair')} of seeds, "
        f"{many(verdict.samples, 'sample')} each. The smallest {UNITS[endpoint.compare]} that "
        f"matters is {times(endpoint.margin, endpoint.compare)}."
    ]
    if verdict.seeds_needed is not None:
        told.append(
            f"About {verdict.seeds_needed:,} pairs of seeds would decide with 80 % probability, "
            "were effect and spread as observed."
            if known
            else f"At least {verdict.seeds_needed} pairs of seeds are needed to show a difference."
        )
    if verdict.missing:
        told.append(f"Missing for this endpoint: {many(len(verdict.missing), 'result')}.")
    return " ".join(told)


def _effects(
    claim: str, verdicts: Sequence[Verdict], endpoints: dict[str, Endpoint]
) -> Iterable[Drawing]:
    """A figure for each unit: all endpoints, and beside the primary one its controls."""
    groups: dict[tuple[str, float], list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda v: not endpoints[v.endpoint].primary):
        endpoint = endpoints[verdict.endpoint]
        if verdict.effect == verdict.effect and (verdict.row == "treatment" or endpoint.primary):
            # Differences in different units do not share an axis; those of one margin have one.
            unit = 0.0 if endpoint.compare == "log_ratio" else endpoint.margin
            groups.setdefault((endpoint.compare, unit), []).append(verdict)
    for at, ((compare, _), members) in enumerate(groups.items()):
        rows, told = [], []
        for v in members:
            label = v.endpoint if v.row == "treatment" else _compared(v)
            margin = endpoints[v.endpoint].margin
            rows.append(Row(label, v.effect, v.low, v.high, v.effects, margin, v.primary))
            told.append(f"{label}: {interval(v, compare)}.")
        caption = (
            f"Effects of {members[0].arm} against {members[0].against}, with 95 % intervals; each "
            "stroke is a pair of seeds, the grey band what is too small to matter."
        )
        name = f"{claim}.effects" + (f"-{at + 1}" if at else "")
        figure = effects(rows, unit=f"{UNITS[compare]} (below 0: lower)")
        yield Drawing(name, caption, f"{caption} {' '.join(told)}", figure)


def _measured(section: Section, folder: Folder, label: str, gaps: Sequence[Missing]) -> None:
    """Figures of one probe, surfaces that turn, and how it was measured."""
    chosen, seed = _chosen(folder, label)
    records = [record for record in folder.planned if record["probe"] == label]
    if chosen:
        shown = list(chosen.values())
        what = f"{', '.join(chosen)}; seed {seed}."
        made, complaints = drawings(shown, f"{section.name}.{label}", f"Here: {what}")
        section.body.append(f"<h3>Figures of {_t(label)}, seed {seed}</h3>\n")
        section.drawings += made
        turns = ""
        if all(r.attrs["probe"] == "surface" and r["measured"].ndim == 2 for r in shown):
            try:
                turns = turning(shown, list(chosen), f"turn-{label}")
            except ValueError as error:
                complaints.append(str(error))
        section.body.append(_figures(made, still="surface3d" if turns else ""))
        section.body.append(turns)
        section.body += [_p(f"Not drawn: {complaint}", "note") for complaint in complaints]
    else:
        section.body.append(f"<h3>{_t(label)}</h3>\n")
        section.body.append(_p("No result of this probe can be drawn: see the missing results."))
    section.body.append(_details(f"How {label} was measured", _how(folder, records, chosen, gaps)))


def _chosen(folder: Folder, label: str) -> tuple[dict[str, xr.Dataset], int]:
    """Results of one seed, by arm: the first seed that has baseline and treatment, else any."""
    arms = [arm for arm in folder.study.arms if arm.role != "negative"][:_MOST]
    arms.sort(key=lambda arm: arm.role not in ("baseline", "treatment"))
    best: tuple[dict[str, xr.Dataset], int] = ({}, 0)
    for seed in sorted({seed for arm in arms for seed in arm.seeds}):
        found: dict[str, xr.Dataset] = {}
        for arm in arms:
            record = folder.study.files.get((arm.name, seed, label))
            if record is None:
                continue
            try:
                found[arm.name] = folder.load(dict(record))
            except ValueError:
                continue  # it is among the missing results
        if {arm.name for arm in arms[:2]} <= set(found):
            return found, seed
        if len(found) > len(best[0]):
            best = found, seed
    return best


def _how(
    folder: Folder,
    records: Sequence[dict[str, Any]],
    chosen: dict[str, xr.Dataset],
    gaps: Sequence[Missing],
) -> str:
    """Settings, versions, and for each network the checkpoint and the command."""
    hashes = {(c.get("arm"), c.get("seed")): str(c.get("sha256") or "") for c in folder.checkpoints}
    why = {gap.file: gap.why for gap in gaps}
    columns = [
        Column("file", "code"), Column("checkpoint SHA-256", "code"), Column("state"),
        Column("command", "code"),
    ]  # fmt: skip
    rows = [
        [
            record["file"],
            hashes.get((record["arm"], record["seed"]), "")[:16],
            why.get(record["file"], "measured"),
            str(record.get("command", "")),
        ]
        for record in records
    ]
    parts = [Table("", "The command that made each file", columns, rows, []).html()]
    for arm, result in list(chosen.items())[:1]:
        for title, content in (("Settings", results.spec(result)),
                               ("Provenance", results.provenance(result))):  # fmt: skip
            parts.append(f"<h4>{title} of {_t(arm)}</h4>\n{_json(content)}")
    return "".join(parts)


def _checkpoints(folder: Folder) -> Section:
    section = Section("checkpoints", "Networks")
    metrics = list(dict.fromkeys(key for c in folder.checkpoints for key in c.get("metrics") or {}))
    metrics = [key for key in metrics if "test_accuracy" in key] or metrics[:3]
    columns = [
        Column("arm"), Column("seed", "number"), Column("model"),
        *(Column(key.replace("_", " "), "number") for key in metrics),
        Column("parameters", "number"), Column("file", "code", paper=False),
        Column("SHA-256", "code", paper=False),
    ]  # fmt: skip
    rows, data = [], []
    for c in folder.checkpoints:
        told = c.get("metrics") or {}
        options = ", ".join(f"{k} {v}" for k, v in (c.get("options") or {}).items())
        model = f"{c.get('model')} ({options})" if options else str(c.get("model"))
        rows.append(
            [
                str(c["arm"]), str(c["seed"]), model,
                *(number(float(told[key]), 4) if key in told else NONE for key in metrics),
                f"{c.get('parameters', 0):,}", Path(str(c.get("file", ""))).name,
                str(c.get("sha256") or ""),
            ]
        )  # fmt: skip
        data.append(
            {key: c.get(key) for key in ("arm", "seed", "model", "parameters", "file", "sha256")}
            | {key: told.get(key) for key in metrics}
            | {"options": json.dumps(c.get("options") or {}, sort_keys=True)}
        )
    section.add(Table("checkpoints", "Every network of the study", columns, rows, data))
    return section


def _study(folder: Folder) -> Section:
    section = Section("study", "The study file")
    sha256 = str(folder.manifest.get("study_sha256", ""))
    section.body.append(_p(f"SHA-256 {sha256}"))
    section.body.append(_details("All of it", _json(folder.manifest.get("study"))))
    return section


def unusable(folder: Folder, evaluation: Evaluation) -> list[Missing]:
    """What is missing of any probe, each file once."""
    found = {gap.file or str(gap): gap for gap in (*folder.missing, *evaluation.missing)}
    return list(found.values())


def _record(verdict: Verdict, evaluation: Evaluation) -> dict[str, object]:
    (endpoint,) = (e for e in evaluation.endpoints if e.name == verdict.endpoint)
    told = {
        key: getattr(verdict, key)
        for key in (
            "claim", "endpoint", "primary", "row", "arm", "against", "verdict", "effect", "low",
            "high", "p", "p_holm", "p_equivalence", "seeds", "samples", "seeds_needed",
        )
    }  # fmt: skip
    return told | {"compare": endpoint.compare, "predicts": endpoint.predicts,
                   "margin": endpoint.margin, "notes": " ".join(verdict.notes)}  # fmt: skip


def _compared(verdict: Verdict) -> str:
    return ROWS[verdict.row].format(arm=verdict.arm, against=verdict.against)


def _figures(made: Sequence[Drawing], *, still: str = "") -> str:
    """All figures in a frame; one kind is `still`: on paper in place of a surface that turns."""
    inside = "".join(
        drawing.html("still" if still and drawing.name.endswith(still) else "") for drawing in made
    )
    return f'<div class="figures">\n{inside}</div>\n' if made else ""


def _details(summary: str, content: str) -> str:
    return f"<details>\n<summary>{_t(summary)}</summary>\n{content}</details>\n"


def _json(content: object) -> str:
    text = html.escape(json.dumps(content, indent=1, sort_keys=True))
    return f'<pre tabindex="0">{text}</pre>\n'


def _p(text: str, kind: str = "") -> str:
    return f"<p{f' class={kind!r}' if kind else ''}>{_t(text)}</p>\n"


def _t(text: str) -> str:
    return html.escape(text)
