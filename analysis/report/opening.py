"""The first screen of the page: what is claimed, what the words mean, and what was measured."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.claims import Evaluation, Verdict, Word
from analysis.report import factorial
from analysis.report.blocks import Block, Glossary, Text
from analysis.report.numbers import NO_BREAK, interval, listed, many, spelled
from analysis.report.tables import Column, Table
from analysis.study import Arm, Endpoint, Folder, Role, Study

# What the treatment does, by what is claimed of it.
_CLAIMED = {
    "near": "is smoother near real samples",
    "between": "is more predictive and stable between real samples",
    "weights": "is smoother in the weights",
    "generalises": "generalises better",
}
# What a registered model does where branch and shortcut meet, by the beginning of its name.
_MODELS = {
    "resnet": "each block adds branch and shortcut",
    "fmmnet": "each block multiplies branch and shortcut",
}
_SAID: dict[Word, str] = {
    "supported": "{is_are} supported",
    "contradicted": "{is_are} contradicted",
    "no relevant difference": "{has_have} no relevant difference",
    "undecided": "{is_are} undecided",
}
_ENDPOINT = (
    "endpoint",
    "a number of each network, fixed before anything was measured; the primary one decides its "
    "claim",
)
_FURTHER: dict[Role, str] = {"control": "control", "negative": "negative control"}
_OPENING = [
    Column("claim"),
    Column("primary endpoint"),
    Column("predicted"),
    Column("measured, 95 % interval"),
    Column("verdict", "verdict"),
]


def opening(folder: Folder, evaluation: Evaluation) -> list[Block]:
    """The claim, a glossary, and each primary endpoint with both its directions and its verdict."""
    study = folder.study
    if not study.arms_of("treatment"):
        return _of_contrasts(study, evaluation)
    (treatment,), (baseline,) = (study.arms_of(role) for role in ("treatment", "baseline"))
    endpoints = {endpoint.name: endpoint for endpoint in evaluation.endpoints}
    rows = [
        [
            study.claims[verdict.claim],
            verdict.endpoint,
            endpoints[verdict.endpoint].predicts,
            _measured(verdict, endpoints[verdict.endpoint]),
            verdict.verdict,
        ]
        for verdict in evaluation.primary()
    ]
    caption = f"{treatment.name} against {baseline.name}, by the endpoint that decides each claim"
    return [
        Text(_claim(treatment, baseline, study, evaluation)),
        Glossary(
            [
                *((arm.name, _meaning(arm, folder.checkpoints)) for arm in (baseline, treatment)),
                ("arm", _arms(study.arms)),
                _ENDPOINT,
            ]
        ),
        Text(outcome(evaluation)),
        Table("", caption, _OPENING, rows, []),
    ]


def _of_contrasts(study: Study, evaluation: Evaluation) -> list[Block]:
    """The same of a study whose endpoints are weighted sums of its arms."""
    endpoints = {endpoint.name: endpoint for endpoint in evaluation.endpoints}
    primary = evaluation.primary()
    rows = []
    for verdict in primary:
        endpoint = endpoints[verdict.endpoint]
        measured = interval(verdict, endpoint.compare).splitlines()[-1].replace(" ", NO_BREAK)
        expected = factorial.predicted(endpoint)
        rows.append(
            [study.claims[verdict.claim], verdict.endpoint, expected, measured, verdict.verdict]
        )
    decided = evaluation.words()
    words = Counter(decided.values())
    said = [_verdict(words[word], len(decided), word) for word in _SAID if words[word]]
    claims = listed([study.claims[claim] for claim in decided])
    return [
        Text(f"The claims: {claims}."),
        Glossary([("arm", _arms(study.arms)), _ENDPOINT]),
        Text(f"{listed(said).capitalize()}."),
        Table("", "The endpoints that decide each claim", _OPENING, rows, []),
    ]


def outcome(evaluation: Evaluation) -> str:
    """In a sentence each: which way the primary endpoints point, and what the verdicts are."""
    predicts = {endpoint.name: endpoint.predicts for endpoint in evaluation.endpoints}
    primary = evaluation.primary()
    ways = Counter(_way(verdict, predicts[verdict.endpoint]) for verdict in primary)
    every = _every(len(primary)).capitalize()
    noun = f"primary endpoint{'s' * (len(primary) != 1)}"
    if len(ways) == 1:
        (way,) = ways
        points = f"{every} {noun} {'points' if len(primary) == 1 else 'point'} {way}."
    else:
        of = [f"{spelled(ways[way])} {way}" for way in _WAYS if ways[way]]
        points = f"Of the {spelled(len(primary))} {noun}, {listed(_pointing(of, ways))}."
    words = Counter(verdict.verdict for verdict in primary)
    said = [_verdict(words[word], len(primary), word) for word in _SAID if words[word]]
    said[1:] = [re.sub(r" claims?( is| are)?\b", "", text) for text in said[1:]]  # said once
    return f"{points} {listed(said).capitalize()}."


_WAYS = ("as the claim predicts", "the other way", "neither way")


def _pointing(of: Sequence[str], ways: Mapping[str, int]) -> list[str]:
    """With the verb in the first part alone: `two point the other way, one neither way`."""
    count, _, way = of[0].partition(" ")
    verb = "points" if ways[way] == 1 else "point"
    return [f"{count} {verb} {way}", *of[1:]]


def _verdict(count: int, total: int, word: Word) -> str:
    one = count == 1
    said = _SAID[word].format(is_are="is" if one else "are", has_have="has" if one else "have")
    if count < total:
        return f"{spelled(count)} claim{'s' * (not one)} {said}"
    return f"{_every(count)} claim{'s' * (not one)} {said}"


def _every(count: int) -> str:
    return {1: "the", 2: "both"}.get(count, f"all {spelled(count)}")


def _claim(treatment: Arm, baseline: Arm, study: Study, evaluation: Evaluation) -> str:
    claims = [verdict.claim for verdict in evaluation.primary()]
    said = [_CLAIMED.get(claim, study.claims[claim]) for claim in claims]
    said[1:] = [text.removeprefix("is ") for text in said[1:]]  # said once for all
    return f"The claim: compared with {baseline.name}, {treatment.name} {listed(said)}."


def _meaning(arm: Arm, checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """What the study file says of an arm, else what is known of its model; and how many it has."""
    models = {str(c["model"]): c.get("options") or {} for c in checkpoints if c["arm"] == arm.name}
    about = arm.about
    for model, options in models.items():
        plain = next((text for head, text in _MODELS.items() if model.startswith(head)), "")
        about = about or ("" if {"merge", "attention"} & set(options) else plain)
    who = ", ".join([*models, many(len(arm.seeds), "network")])
    return f"{about} ({who})" if about else who


def _arms(arms: Sequence[Arm]) -> str:
    roles = Counter(arm.role for arm in arms)
    there = [
        f"{spelled(roles[role])} {noun}{'s' * (roles[role] != 1)}"
        for role, noun in _FURTHER.items()
        if roles[role]
    ]
    compared = sum(roles[role] for role in ("treatment", "baseline", "arm"))
    here = ", ".join([f"{spelled(compared)} that are compared seed by seed", *there])
    return f"networks that differ by their seed alone; here {here}"


def _measured(verdict: Verdict, endpoint: Endpoint) -> str:
    """The direction and the effect; of a log ratio, the ratio."""
    shown = interval(verdict, endpoint.compare).splitlines()[-1]
    if math.isnan(verdict.effect):
        return "not known"
    way = "higher" if verdict.effect > 0 else "lower" if verdict.effect < 0 else "the same"
    return f"{way}: {shown.replace(' ', NO_BREAK)}"


def _way(verdict: Verdict, predicted: str) -> str:
    if not verdict.effect or math.isnan(verdict.effect):
        return _WAYS[2]
    return _WAYS[0] if (verdict.effect > 0) == (predicted == "higher") else _WAYS[1]
