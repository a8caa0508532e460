"""A study's results as one web page, figures and tables: python -m analysis.report RESULTS."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xarray as xr

from analysis import claims, results
from analysis.claims import Evaluation, Verdict
from analysis.figures import save
from analysis.report import factorial, opening, render, words
from analysis.report.blocks import Block, Details, Figures, Heading, Items, Listing, Section, Text
from analysis.report.effects import Row, effects
from analysis.report.numbers import NONE, interval, many, number, p_value, times
from analysis.report.plots import Drawing, drawings, turning
from analysis.report.tables import Column, Table, columns
from analysis.study import Endpoint, Folder, Missing

_MOST = 6  # networks in one figure: as many lines as differ in colour and dash
BEHIND = "The tests behind these verdicts"
_MAIN = ("treatment", "contrast")  # the rows of an endpoint itself, without controls
UNITS = {"log_ratio": "log ratio", "difference": "difference"}
ROWS = {
    "treatment": "{arm} against {against}",
    "contrast": "{arm}",
    "accuracy-matched": "{arm} against {against}, accuracy-matched",
    "control": "control: {arm} against {against}",
    "untrained": "negative control: {arm} against {against}",
    "halves": "negative control: half of the {arm} seeds against the others",
}
VERDICTS = [
    Column("claim"),
    Column("verdict", "verdict"),
    *columns("number", "effect and 95 % interval", "p, Holm", "p", "pairs of seeds"),
    Column("endpoint"),
]
NUMBERS = [
    *columns("text", "endpoint", "compared"),
    Column("effect and 95 % interval", "number"),
    Column("verdict", "verdict"),
    *columns("number", "p", "p, Holm", "p, equivalence", "pairs of seeds", "samples"),
]


@dataclass(frozen=True, eq=False)
class Report:
    """A study as it is shown.

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
        said = self.evaluation.words()
        words = Counter(said.values())
        counts = ", ".join(f"{count} {word}" for word, count in words.items())
        planned = {record["file"] for record in self.folder.planned}
        gaps = {gap.file for gap in unusable(self.folder, self.evaluation)}
        there = len(planned - gaps)
        summary = (
            f"{many(len(said), 'claim')}: {counts}. "
            f"{many(len(self.folder.checkpoints), 'network')}, "
            f"{there} of {many(len(self.folder.planned), 'result')}."
        )
        study = str(self.folder.manifest.get("study_sha256", ""))[:12]
        return render.page(
            title=self.folder.title,
            summary=summary,
            footer=f"Made by python -m analysis.report from {self.folder.path.name}; "
            f"SHA-256 of the study file {study}…",
            sections=self.sections,
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

    Cost: every result file is read once, and once more where it is drawn; about a second per
    figure.
    """
    folder = Folder.open(path)
    evaluation = claims.evaluate(folder.study)
    sections = [_verdicts(folder, evaluation)]
    gaps = unusable(folder, evaluation)
    if gaps:
        sections.append(_missing(gaps))
    sections += factorial.sections(folder.study, evaluation)
    labels = folder.probes
    for claim in dict.fromkeys(endpoint.claim for endpoint in evaluation.endpoints):
        section = Section(claim, folder.study.claims[claim])
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
    section = Section("verdicts", "Verdicts", opening.opening(folder, evaluation))
    for amendment in folder.manifest.get("amendments") or []:
        changes = "; ".join(map(str, amendment.get("changes", [])))
        section.blocks.append(Text(f"The study was changed after it was begun: {changes}."))
    if all(endpoint.contrast for endpoint in evaluation.endpoints):
        tests = factorial.verdicts(folder.study, evaluation)
        section.blocks.append(Details(BEHIND, tests))
        return section
    compares = {endpoint.name: endpoint.compare for endpoint in evaluation.endpoints}
    rows = []
    for v in evaluation.primary():
        effect = interval(v, compares[v.endpoint])
        ps = map(p_value, (v.p_holm, v.p))
        name = folder.study.claims[v.claim]
        rows.append([name, v.verdict, effect, *ps, str(v.seeds), v.endpoint])
    (treatment,), (baseline,) = (folder.study.arms_of(r) for r in ("treatment", "baseline"))
    caption = f"What the seeds say of each claim: {treatment.name} against {baseline.name}"
    data = [_record(v, evaluation) for v in evaluation.primary()]
    explained = Text(
        "One endpoint decides each claim, fixed before anything was measured. Effects are log "
        "ratios or differences of what the two arms have for the same seed, averaged over "
        "seeds; × is the ratio itself. p is of the exact two-sided sign-flip test over seeds; "
        "Holm corrects it over the claims.",
        note=True,
    )
    table = Table("verdicts", caption, VERDICTS, rows, data)
    section.blocks.append(Details(BEHIND, [table, explained]))
    return section


def _missing(gaps: Sequence[Missing]) -> Section:
    shown = [Column("result", "code"), Column("why"), Column("made by", "code", paper=False)]
    rows = [[gap.file or f"{gap.arm}, seed {gap.seed}", gap.why, gap.command] for gap in gaps]
    keys = ("file", "arm", "seed", "why", "command")
    data = [{key: getattr(gap, key) for key in keys} for gap in gaps]
    caption = "Results that are missing, damaged or incomplete"
    hint = Text(
        f"{many(len(gaps), 'result')} missing, damaged or incomplete. python -m landscape.study "
        "makes all of them; it measures only these."
    )
    table = Table("missing", caption, shown, rows, data)
    return Section("missing", "Missing results", [hint, Details("Which, and why", [table])])


def _claim(section: Section, evaluation: Evaluation, claim: str) -> None:
    """Verdict in a sentence, effects in a figure, numbers in a table."""
    endpoints = {e.name: e for e in evaluation.endpoints if e.claim == claim}
    verdicts = [v for v in evaluation.verdicts if v.endpoint in endpoints]
    section.blocks += [Text(_sentence(v, endpoints[v.endpoint])) for v in verdicts if v.primary]
    made = list(_effects(claim, verdicts, endpoints))
    section.blocks += [Figures(made)] if made else []
    rows = []
    for v in verdicts:
        endpoint = endpoints[v.endpoint]
        name = f"primary: {v.endpoint}" if endpoint.primary else v.endpoint
        effect = factorial.effect_text(v, endpoint)
        ps = map(p_value, (v.p, v.p_holm, v.p_equivalence))
        rows.append([name, _compared(v), effect, v.verdict, *ps, str(v.seeds), f"{v.samples:,}"])
    data = [_record(v, evaluation) for v in verdicts]
    caption = f"{section.title}: all endpoints and comparisons"
    table = Table(f"{claim}.endpoints", caption, NUMBERS, rows, data)
    numbers: list[Block] = [table]
    notes = [f"{v.endpoint}, {_compared(v)}: {note}" for v in verdicts for note in v.notes]
    if notes:
        numbers += [Heading("Notes"), Items(notes)]
    seeds = _seeds(section, evaluation, endpoints)
    section.blocks += [
        Details(f"Numbers of {many(len(endpoints), 'endpoint')}, with their controls", numbers),
        Details("The number of every seed", [seeds]),
    ]


def _seeds(section: Section, evaluation: Evaluation, endpoints: dict[str, Endpoint]) -> Table:
    shown = [
        *columns("text", "endpoint", "arm"),
        *columns("number", "seed", "value"),
        Column("average"),
        Column("samples", "number"),
    ]
    data: list[dict[str, Any]] = [
        {"endpoint": s.endpoint, "arm": s.arm, "role": s.role, "seed": seed, "value": value}
        | {"average": s.average, "samples": s.samples}
        for s in evaluation.seedwise
        if s.endpoint in endpoints
        for seed, value in zip(s.seeds, s.values, strict=True)
    ]
    rows = [
        [number(r[c.heading]) if c.heading == "value" else str(r[c.heading]) for c in shown]
        for r in data
    ]
    return Table(f"{section.name}.seeds", f"{section.title}: each seed", shown, rows, data)


def _sentence(verdict: Verdict, endpoint: Endpoint) -> str:
    measured = factorial.effect_text(verdict, endpoint).replace("\n", ", that is ")
    known = verdict.low == verdict.low  # one pair has no interval
    each = f", {verdict.samples:,} samples each" * (verdict.samples > 1)
    bracket = " (in brackets the 95 % interval)" if known and "[" in measured else ""
    claimed = f"a {endpoint.predicts} {endpoint.name} in {verdict.arm} than in {verdict.against}"
    matters = f"The smallest {UNITS[endpoint.compare]} that matters is "
    if endpoint.contrast:
        claimed = f"{endpoint.name}: {factorial.predicted(endpoint)}"
    sentences = [
        f"{verdict.verdict.capitalize()}. The claim predicts {claimed}. Measured: "
        f"{UNITS[endpoint.compare]} {measured}{bracket}, corrected p "
        f"{p_value(verdict.p_holm)}, {many(verdict.seeds, 'pair')} of seeds{each}."
    ]
    if endpoint.predicts in ("lower", "higher"):
        sentences[0] += f" {matters}{times(endpoint.margin, endpoint.compare)}."
    if verdict.seeds_needed is not None:
        sentences.append(
            f"About {verdict.seeds_needed:,} pairs of seeds would decide with 80 % probability, "
            "were effect and spread as observed."
            if known
            else f"At least {verdict.seeds_needed} pairs of seeds are needed to show a difference."
        )
    if verdict.missing:
        sentences.append(f"Missing for this endpoint: {many(len(verdict.missing), 'result')}.")
    return " ".join(sentences)


def _effects(
    claim: str, verdicts: Sequence[Verdict], endpoints: dict[str, Endpoint]
) -> Iterable[Drawing]:
    """A figure for each unit: all endpoints, the primary one followed by its controls."""
    groups: dict[tuple[str, float | str], list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda v: not endpoints[v.endpoint].primary):
        endpoint = endpoints[verdict.endpoint]
        if verdict.effect == verdict.effect and (verdict.row in _MAIN or endpoint.primary):
            # Differences in different units do not share an axis; those of one margin have one.
            unit = 0.0 if endpoint.compare == "log_ratio" else _unit(endpoint)
            groups.setdefault((endpoint.compare, unit), []).append(verdict)
    for at, ((compare, _), members) in enumerate(groups.items()):
        rows, numbers = [], []
        for v in members:
            label = v.endpoint if v.row in _MAIN else _compared(v)
            margin, bound = endpoints[v.endpoint].margin, None
            predicts = endpoints[v.endpoint].predicts
            if predicts in ("above", "below"):
                margin, bound = 0.0, margin
            row = Row(label, v.effect, v.low, v.high, v.effects, margin, v.primary, bound)
            side = predicts if v.row == "treatment" and predicts in ("lower", "higher") else ""
            rows.append(replace(row, predicts=side))
            numbers.append(f"{label}: {factorial.effect_text(v, endpoints[v.endpoint])}.")
        bounds = any(row.bound is not None for row in rows)
        dotted = ", the dotted mark what an effect should pass" if bounds else ""
        claimed = any(row.predicts for row in rows)
        arrows = ", the arrow the side that the claim predicts" if claimed else ""
        caption = (
            f"Effects{_whose(members[0])}, with 95 % intervals; each stroke is a pair of seeds, "
            f"the grey band what is too small to matter{dotted}{arrows}."
        )
        name = f"{claim}.effects" + (f"-{at + 1}" if at else "")
        figure = effects(rows, unit=f"{UNITS[compare]} (below 0: lower)")
        yield Drawing(name, caption, f"{caption} {' '.join(numbers)}", figure)


def _unit(endpoint: Endpoint) -> float | str:
    """What differences on one axis have in common: the margin, or of contrasts the variable."""
    return endpoint.variable if endpoint.contrast else endpoint.margin


def _measured(section: Section, folder: Folder, label: str, gaps: Sequence[Missing]) -> None:
    """Figures of one probe, surfaces that turn, and how it was measured."""
    blocks = section.blocks
    chosen, seed = _chosen(folder, label)
    records = [record for record in folder.planned if record["probe"] == label]
    what = words.measured(folder.study.probes[label])
    blocks.append(Heading(what))
    if chosen:
        shown = [_called(arm, result) for arm, result in chosen.items()]
        made, complaints = drawings(shown, f"{section.name}.{label}", what)
        turns = None
        if all(r.attrs["probe"] == "surface" and r["measured"].ndim == 2 for r in shown):
            try:
                turns = turning(shown, list(chosen), f"turn-{label}")
            except ValueError as error:
                complaints.append(str(error))
        blocks += [Figures(made, still="surface3d" if turns else "")] if made else []
        blocks += [turns] if turns else []
        blocks += [Text(f"Not drawn: {complaint}", note=True) for complaint in complaints]
    else:
        blocks.append(Text("No result of this probe can be drawn: see the missing results."))
    drawn = f"; seed {seed} is drawn" if chosen else ""
    how = _how(folder, records, chosen, gaps)
    blocks.append(Details(f"How this was measured{drawn}", how))


def _called(arm: str, result: xr.Dataset) -> xr.Dataset:
    """A result whose network has the name of its arm, as figures are to call it."""
    about, settings = results.provenance(result), results.spec(result)
    about["checkpoint"] = {**(about.get("checkpoint") or {}), "file": arm}
    if settings.get("to"):
        settings["to"] = "next seed"
    return result.assign_attrs(provenance=json.dumps(about), spec=json.dumps(settings))


def _chosen(folder: Folder, label: str) -> tuple[dict[str, xr.Dataset], int]:
    """Results of one seed, by arm: the first seed that has baseline and treatment, else any."""
    shown = [arm for arm in folder.study.arms if folder.study.measures(label, arm.name)]
    arms = [arm for arm in shown if arm.role != "negative"][:_MOST]
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
) -> list[Block]:
    """Settings, versions, and for each network the checkpoint and the command."""
    hashes = {(c.get("arm"), c.get("seed")): str(c.get("sha256") or "") for c in folder.checkpoints}
    why = {gap.file: gap.why for gap in gaps}
    shown = [
        *columns("code", "file", "checkpoint SHA-256"),
        Column("state"),
        Column("command", "code"),
    ]
    rows = [
        [
            record["file"],
            hashes.get((record["arm"], record["seed"]), "")[:16],
            why.get(record["file"], "measured"),
            str(record.get("command", "")),
        ]
        for record in records
    ]
    blocks: list[Block] = [Table("", "The command that made each file", shown, rows, [])]
    for arm, result in list(chosen.items())[:1]:
        blocks += [
            Heading(f"Settings of {arm}", level=4),
            _json(results.spec(result)),
            Heading(f"Provenance of {arm}", level=4),
            _json(results.provenance(result)),
        ]
    return blocks


def _checkpoints(folder: Folder) -> Section:
    metrics = list(dict.fromkeys(key for c in folder.checkpoints for key in c.get("metrics") or {}))
    metrics = [key for key in metrics if "test_accuracy" in key] or metrics[:3]
    shown = [
        Column("arm"),
        Column("seed", "number"),
        Column("model"),
        *columns("number", *(key.replace("_", " ") for key in metrics), "parameters"),
        Column("file", "code", paper=False),
        Column("SHA-256", "code", paper=False),
    ]
    rows, data = [], []
    for c in folder.checkpoints:
        measured = c.get("metrics") or {}
        values = [number(float(measured[key]), 4) if key in measured else NONE for key in metrics]
        options = ", ".join(f"{k} {v}" for k, v in (c.get("options") or {}).items())
        model = f"{c.get('model')} ({options})" if options else str(c.get("model"))
        file = Path(str(c.get("file", ""))).name
        tail = [f"{c.get('parameters', 0):,}", file, str(c.get("sha256") or "")]
        rows.append([str(c["arm"]), str(c["seed"]), model, *values, *tail])
        data.append(
            {key: c.get(key) for key in ("arm", "seed", "model", "parameters", "file", "sha256")}
            | {key: measured.get(key) for key in metrics}
            | {"options": json.dumps(c.get("options") or {}, sort_keys=True)}
        )
    table = Table("checkpoints", "Every network of the study", shown, rows, data)
    count = many(len(rows), "network")
    return Section("checkpoints", "Networks", [Details(f"Accuracies of {count}", [table])])


def _study(folder: Folder) -> Section:
    sha256 = Text(f"SHA-256 {folder.manifest.get('study_sha256', '')}")
    whole = Details("All of it", [_json(folder.manifest.get("study"))])
    return Section("study", "The study file", [sha256, whole])


def unusable(folder: Folder, evaluation: Evaluation) -> list[Missing]:
    """What is missing of any probe, each file once."""
    found = {gap.file or str(gap): gap for gap in (*folder.missing, *evaluation.missing)}
    return list(found.values())


def _record(verdict: Verdict, evaluation: Evaluation) -> dict[str, object]:
    (endpoint,) = (e for e in evaluation.endpoints if e.name == verdict.endpoint)
    several = ("effects", "notes", "missing")
    return {key: value for key, value in vars(verdict).items() if key not in several} | {
        "compare": endpoint.compare,
        "predicts": endpoint.predicts,
        "margin": endpoint.margin,
        "notes": " ".join(verdict.notes),
    }


def _whose(verdict: Verdict) -> str:
    return f" of {verdict.arm} against {verdict.against}" if verdict.against else ""


def _compared(verdict: Verdict) -> str:
    return ROWS[verdict.row].format(arm=verdict.arm, against=verdict.against)


def _json(content: object) -> Listing:
    return Listing(json.dumps(content, indent=1, sort_keys=True))
