"""What a study says: each claim tested over seeds, and a verdict in one of four words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from analysis import samples
from analysis.contrasts import Weights, words
from analysis.factors import Factorial, factorials
from analysis.samples import Samples
from analysis.stats.arrays import Floats
from analysis.stats.bootstrap import AVERAGES, average, compare, interval
from analysis.stats.multiplicity import holm
from analysis.stats.permutation import divisions, permutation, unpaired_interval
from analysis.stats.power import MOST, fewest_pairs, pairs_needed
from analysis.stats.sign_flip import equivalence, sign_flip
from analysis.stats.student import t_equivalence, t_test
from analysis.study import COST, FRACTION_BELOW, Arm, Endpoint, Missing, Study
from analysis.study import read as read_study

# Verdicts of primary endpoints, corrected; and what other rows say, uncorrected.
Word = Literal[
    "supported",
    "contradicted",
    "no relevant difference",
    "undecided",
    "lower",
    "higher",
    "as predicted",
    "not as predicted",
    "unclear",
]
Row = Literal["treatment", "contrast", "accuracy-matched", "control", "untrained", "halves"]

ALPHA, LEVEL, WANTED_POWER = 0.05, 0.95, 0.8
_HALVES = 4  # seeds below which halves say nothing
_NAN = float("nan")


@dataclass(frozen=True)
class Seedwise:
    """One arm's endpoint, a number a seed.

    Args:
        endpoint: its name.
        arm: whose.
        role: of that arm.
        seeds: those that have a result.
        values: (seeds,), averaged over the samples, in the variable's unit.
        average: how; not the endpoint's own where that is not defined for these values.
        samples: how many each seed has.
    """

    endpoint: str
    arm: str
    role: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    average: str
    samples: int


@dataclass(frozen=True)
class Verdict:
    """What the seeds say of one endpoint and two arms.

    Args:
        claim: which.
        endpoint: its name.
        primary: whether this is the comparison that decides the claim.
        row: `treatment` against baseline; a `contrast` of arms; treatment against baseline on
            `accuracy-matched` samples; a `control` arm against the baseline; the `untrained` pair;
            two `halves` of the baseline's seeds.
        arm: the first, or the contrast in words.
        against: the second; empty for a contrast.
        verdict: of the corrected p values where the row is primary, else of p as it is.
        effect: first against second, in units of the endpoint's `compare`.
        low: lower end of the 95 % interval over seeds and samples.
        high: upper end.
        p: two-sided, of the endpoint's test (halves: of the exact permutation test), that the
            effect is 0 or, where the endpoint predicts `above` or `below`, the margin. Where it
            predicts `within`: `p_equivalence` of an effect within the margin, and of one beyond it
            the two-sided p that it is the margin.
        p_holm: corrected over the claims; NaN where the row is not primary.
        p_equivalence: that the difference is as large as the margin or larger; corrected likewise
            where the row is primary.
        seeds: pairs of seeds compared; in halves, seeds.
        samples: that each seed was averaged over.
        effects: (seeds,), the effect of each pair; empty in halves.
        seeds_needed: where undecided: pairs that would decide with 80 % probability if the effect
            and its spread were as observed; None where decided, or where no number would.
        notes: what must be said with it, in sentences.
        missing: what is not there.
    """

    claim: str
    endpoint: str
    primary: bool
    row: Row
    arm: str
    against: str
    verdict: Word
    effect: float
    low: float
    high: float
    p: float
    p_holm: float
    p_equivalence: float
    seeds: int
    samples: int
    effects: tuple[float, ...] = ()
    seeds_needed: int | None = None
    notes: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """A study, evaluated.

    Args:
        title: of the study.
        endpoints: in the study's order.
        verdicts: for each endpoint the treatment's row first, then the others.
        seedwise: for each endpoint and arm, a number a seed.
        missing: every result that is not there, once.
        factorials: of a study with a design, main effects and interactions.
    """

    title: str
    endpoints: tuple[Endpoint, ...]
    verdicts: tuple[Verdict, ...]
    seedwise: tuple[Seedwise, ...]
    missing: tuple[Missing, ...]
    factorials: tuple[Factorial, ...] = ()

    def primary(self) -> tuple[Verdict, ...]:
        """The verdicts that decide claims: of each its one primary endpoint, or of several all."""
        return tuple(verdict for verdict in self.verdicts if verdict.primary)

    def words(self) -> dict[str, Word]:
        """{claim: its verdict}. One of several primary endpoints is supported if all are.

        It is contradicted if one is, and else has what the first other one says.
        """
        order: tuple[Word, ...] = ("contradicted", "no relevant difference", "undecided")
        found: dict[str, Word] = {}
        for claim in dict.fromkeys(verdict.claim for verdict in self.primary()):
            said = {verdict.verdict for verdict in self.primary() if verdict.claim == claim}
            found[claim] = next((word for word in order if word in said), "supported")
        return found


def evaluate(folder: str | Path | Study) -> Evaluation:
    """Every claim of a study with its verdict, from its results.

    Seeds are the unit: samples are averaged within a seed first, arms are compared seed by seed.
    A difference is *supported* or *contradicted* where the exact sign-flip test finds it (for the
    claims' primary endpoints after Holm's correction over all of them) and the interval over seeds
    and samples lies on one side of zero; there is *no relevant difference* where the equivalence
    test excludes the margin (likewise corrected) and the interval lies within it, even where the
    difference is not zero; else, and where a pair of seeds that the study names is missing, it is
    *undecided*. An endpoint that predicts an effect above or below a margin, or within it, is
    supported or contradicted where its test finds the effect there, or on the other side. Of a
    claim with several primary endpoints all must hold. All other rows, which are not corrected,
    say *lower*, *higher*, *(not) as predicted* or *unclear*: they are no verdicts. See
    docs/statistics.md.

    Where the average that the endpoint asks for is not defined for a value of either arm (the
    logarithm of zero, infinity or NaN), both arms are averaged by the median instead, and a note
    counts the values: none is dropped.

    Args:
        folder: as `python -m landscape.study` writes it, or the study that `analysis.study.read`
            has read there. Result files may be missing or damaged: the others are evaluated, and
            the verdict says which are missing.

    Raises:
        ValueError: no readable `study.json`, or endpoints in it that are none.

    Cost: each result file is read once; about 0.1 s per row.
    """
    study = folder if isinstance(folder, Study) else read_study(folder)
    found, missing = samples.gather(study)
    rows: list[_Compared] = []
    seedwise: list[Seedwise] = []
    for endpoint in study.endpoints:
        data = {
            arm.name: {
                seed: found[endpoint.name, arm.name, seed]
                for seed in arm.seeds
                if (endpoint.name, arm.name, seed) in found
            }
            for arm in study.arms
        }
        lost = [one for (name, _, _), one in missing.items() if name == endpoint.name]
        make = _Rows(endpoint, data, lost)
        if weights := study.weights.get(endpoint.name):
            own = [arm for arm in study.arms if arm.name in weights]
            rows.append(make.contrasted(own, weights))
            seedwise += [make.seedwise(arm, own) for arm in own if data[arm.name]]
            continue
        (baseline,), (treatment,) = study.arms_of("baseline"), study.arms_of("treatment")
        rows.append(make.paired("treatment", treatment, baseline))
        rows += make.accuracy_matched(treatment, baseline, study.arms)
        rows += [make.paired("control", arm, baseline) for arm in study.arms_of("control")]
        rows += make.untrained(study.arms_of("negative"), treatment, baseline)
        rows += make.halves(baseline)
        seedwise += [
            make.seedwise(arm, (treatment, baseline)) for arm in study.arms if data[arm.name]
        ]
    return Evaluation(
        study.title,
        study.endpoints,
        _decided(rows),
        tuple(seedwise),
        tuple(dict.fromkeys(missing.values())),
        tuple(factorials(study, found)),
    )


@dataclass(frozen=True)
class _Compared:
    """A row with its numbers, before the words, which depend on all primary rows."""

    endpoint: Endpoint
    row: Verdict
    spread: float = _NAN  # standard deviation of the effects over pairs
    over_samples: float = 0.0  # variance of the effect that more seeds would not remove
    lost: int = 0  # pairs that the study names and that are not there


@dataclass(frozen=True)
class _Rows:
    """The rows of one endpoint.

    Args:
        endpoint: which.
        data: {arm: {seed: samples}}.
        lost: what is missing of it.
    """

    endpoint: Endpoint
    data: Mapping[str, Mapping[int, Samples]]
    lost: Sequence[Missing]

    def seedwise(self, arm: Arm, others: Sequence[Arm]) -> Seedwise:
        own = self.data[arm.name]
        shown = {arm.name, *(other.name for other in others if arm.role != "negative")}
        together = [one for name in sorted(shown) for one in self.data[name].values()]
        how, _ = _usable(self.endpoint, together)
        values = tuple(float(average(_sampled(one, how), how)) for one in own.values())
        count = max(len(one.values) for one in own.values())
        return Seedwise(self.endpoint.name, arm.name, arm.role, tuple(own), values, how, count)

    def paired(self, row: Row, arm: Arm, against: Arm) -> _Compared:
        first, second = self.data[arm.name], self.data[against.name]
        seeds = [seed for seed in first if seed in second]
        blank = self._blank(row, arm, against)
        notes = [note for seed in seeds for note in (*first[seed].notes, *second[seed].notes)]
        alone = sorted(set(arm.seeds) ^ set(against.seeds))
        if alone and row != "control":  # controls may have fewer seeds by design
            notes.append(f"Seeds without a partner: {', '.join(map(str, alone))}.")
        blank = replace(blank, notes=tuple(dict.fromkeys(notes)))
        pairs = [(first[seed], second[seed]) for seed in seeds]
        made = _compared(self.endpoint, blank, pairs)
        named = set(arm.seeds) & set(against.seeds)
        if row != "control":  # a seed that one arm alone names has no pair, as one that is missing
            named = set(arm.seeds) | set(against.seeds)
        return replace(made, lost=len(named) - len(pairs))

    def contrasted(self, arms: Sequence[Arm], weights: Weights) -> _Compared:
        """The weighted sum of arms, in every seed that all of them have."""
        data = [self.data[arm.name] for arm in arms]
        seeds = [seed for seed in data[0] if all(seed in each for each in data)]
        blank = replace(
            self._blank("contrast", *arms),
            arm=words(self.endpoint.contrast),
            against="",
            notes=tuple(dict.fromkeys(n for each in data for s in seeds for n in each[s].notes)),
        )
        networks = [tuple(each[seed] for each in data) for seed in seeds]
        made = _compared(self.endpoint, blank, networks, [weights[arm.name] for arm in arms])
        named = {seed for arm in arms for seed in arm.seeds}
        return replace(made, lost=len(named) - len(seeds))

    def accuracy_matched(self, arm: Arm, against: Arm, arms: Sequence[Arm]) -> list[_Compared]:
        """The same on the samples that every trained network classifies correctly."""
        trained = [
            one
            for other in arms
            if other.role != "negative"
            for one in self.data[other.name].values()
        ]
        right = [one.correct for one in trained if one.correct is not None]
        if not right or len(right) < len(trained) or len({one.identity for one in trained}) > 1:
            return []
        keep = np.logical_and.reduce(right)
        matched = {
            name: {
                seed: replace(one, values=one.values[keep])
                for seed, one in self.data[name].items()
                if keep.any()
            }
            for name in (arm.name, against.name)
        }
        made = replace(self, data=matched).paired("accuracy-matched", arm, against)
        note = (
            f"{keep.sum()} of {len(keep)} samples are classified correctly by all {len(trained)} "
            "networks."
        )
        return [replace(made, row=replace(made.row, notes=(note, *made.row.notes)))]

    def untrained(self, negatives: Sequence[Arm], treatment: Arm, baseline: Arm) -> list[_Compared]:
        """Untrained networks, where there is one of either kind: each is named after its arm."""
        named = {
            arm.name: [other for other in negatives if other.name == f"untrained {arm.name}"]
            for arm in (treatment, baseline)
        }
        first, second = named[treatment.name], named[baseline.name]
        if not (first and second and self.data[first[0].name] and self.data[second[0].name]):
            return []
        return [self.paired("untrained", first[0], second[0])]

    def halves(self, arm: Arm) -> list[_Compared]:
        """Every other seed of an arm against the rest: no difference but chance."""
        own = self.data[arm.name]
        if len(own) < _HALVES:
            return []
        how, notes = _usable(self.endpoint, own.values())
        scores = np.array([average(_sampled(one, how), how) for one in own.values()])
        if self.endpoint.compare == "log_ratio":
            scores = compare(scores, np.ones_like(scores), "log_ratio")
        count = len(next(iter(own.values())).values)
        blank = replace(self._blank("halves", arm, arm), seeds=len(own), samples=count)
        if not np.isfinite(scores).all():
            note = "Averages are not finite, so that halves have no difference."
            return [_Compared(self.endpoint, replace(blank, notes=(*notes, note)))]
        first, second = scores[::2], scores[1::2]
        low, high = unpaired_interval(first, second, level=LEVEL)
        apart = np.abs(divisions(scores, len(first)))
        note = (
            f"Over {len(apart)} ways to halve the seeds the difference is {np.median(apart):.3g} "
            f"in the median and at most {apart.max():.3g}."
        )
        row = replace(
            blank,
            effect=float(first.mean() - second.mean()),
            low=low,
            high=high,
            p=permutation(first, second),
            notes=(*notes, note),
        )
        return [_Compared(self.endpoint, row)]

    def _blank(self, row: Row, *arms: Arm) -> Verdict:
        names = [arm.name for arm in arms]
        return Verdict(
            self.endpoint.claim,
            self.endpoint.name,
            self.endpoint.primary and row in ("treatment", "contrast"),
            row,
            names[0],
            names[-1],
            "undecided",
            _NAN,
            _NAN,
            _NAN,
            _NAN,
            _NAN,
            _NAN,
            0,
            0,
            missing=tuple(one for one in self.lost if one.arm in names),
        )


def _compared(
    endpoint: Endpoint,
    blank: Verdict,
    pairs: Sequence[tuple[Samples, ...]],
    weights: Sequence[float] = (1.0, -1.0),
) -> _Compared:
    """A row of the networks of each seed, an arm each, which may be none."""
    if not pairs:
        return _Compared(endpoint, blank)
    how, notes = _usable(endpoint, [one for pair in pairs for one in pair])
    arms = [[_sampled(one, how) for one in arm] for arm in zip(*pairs, strict=True)]
    same = len({(one.identity, len(one.values)) for pair in pairs for one in pair}) == 1
    if not same:
        notes = (*notes, "The networks saw different samples: the interval is over seeds alone.")
        arms = [[np.atleast_1d(average(values, how)) for values in arm] for arm in arms]
    estimate = interval(
        [np.array(arm) for arm in arms],
        weights,
        average_by=how,
        compare_by=endpoint.compare,
        level=LEVEL,
    )
    row = replace(
        blank,
        effect=estimate.effect,
        low=estimate.low,
        high=estimate.high,
        seeds=len(pairs),
        samples=min(len(one.values) for pair in pairs for one in pair),
        effects=tuple(map(float, estimate.seeds)),
        notes=(*blank.notes, *notes),
    )
    if np.isnan(estimate.seeds).any():
        note = (
            f"{int(np.isnan(estimate.seeds).sum())} of {len(pairs)} pairs cannot be compared: both "
            "averages are zero or infinite, or one is negative and has no log ratio."
        )
        return _Compared(endpoint, replace(row, notes=(*row.notes, note)))
    if np.isfinite(estimate.seeds).all() and np.isnan(estimate.variance[1]):
        note = "Other samples could make an average zero or infinite: interval of the sign test."
        row = replace(row, notes=(*row.notes, note))
    if endpoint.test == "t" and endpoint.probe != COST and not _has_spread(estimate.seeds):
        note = "Student's t asks for seeds that differ, and finitely: the sign-flip test instead."
        row = replace(row, notes=(*row.notes, note))
    p, p_equivalence = _tested(endpoint, estimate.seeds)
    row = replace(row, p=p, p_equivalence=p_equivalence)
    if not np.isfinite(estimate.seeds).all():
        note = (
            f"{int(np.isinf(estimate.seeds).sum())} of {len(pairs)} pairs differ infinitely: "
            "signed ranks are tested, the effect is the median and the interval that of the sign "
            "test."
        )
        return _Compared(endpoint, replace(row, notes=(*row.notes, note)))
    spread = float(estimate.seeds.std(ddof=1)) if len(pairs) > 1 else _NAN
    return _Compared(endpoint, row, spread, float(np.nan_to_num(estimate.variance[1])))


def _tested(endpoint: Endpoint, effects: Floats) -> tuple[float, float]:
    """What `Verdict` says of p and p_equivalence."""
    effect, margin = float(effects.mean()), endpoint.margin
    at = endpoint.null
    if endpoint.predicts == "within" and abs(effect) >= margin:
        at = float(np.copysign(margin, effect))
    if endpoint.probe == COST and np.ptp(effects) == 0:  # a count, without error
        p, p_equivalence = float(effect == at), float(abs(effect) >= margin)
    elif endpoint.test == "t" and _has_spread(effects):
        p, p_equivalence = float(t_test(effects, at)), float(t_equivalence(effects, margin))
    else:
        p, p_equivalence = float(sign_flip(effects - at)), float(equivalence(effects, margin))
    inside = endpoint.predicts == "within" and at == 0
    return (p_equivalence if inside else p), p_equivalence if margin > 0 else _NAN


def _has_spread(effects: Floats) -> bool:
    return bool(np.isfinite(effects).all() and (len(effects) < 2 or np.ptp(effects) > 0))


def _sampled(one: Samples, how: str) -> Floats:
    """(samples,): each sample's directions, radii or points averaged as the samples will be."""
    return average(one.values, how) if one.values.shape[1] > 1 else one.values[:, 0]


def _usable(endpoint: Endpoint, data: Iterable[Samples]) -> tuple[str, tuple[str, ...]]:
    """The endpoint's average, or the median where it is not defined for all of these values.

    It looks at all values of both arms together, so that exchanging two arms changes nothing and
    the sign-flip test stays exact.
    """
    own = list(data)
    how = "mean" if endpoint.average == FRACTION_BELOW else endpoint.average
    chosen = AVERAGES[how]
    lost = sum(one.not_finite for one in own)
    total = sum(one.values.size for one in own)
    values = np.concatenate([one.values.ravel() for one in own])
    unfit = ~np.isfinite(values)
    counted = [f"{int(unfit.sum())} NaN or infinite"] if unfit.any() else []
    if chosen.defined is not None:
        undefined = ~unfit & ~chosen.defined(values)
        counted += [f"{int(undefined.sum())} zero or negative"] if undefined.any() else []
    if endpoint.average == FRACTION_BELOW and lost:
        return how, (f"{lost} values are NaN or infinite, and count as not below the level.",)
    if not counted:
        return how, ()
    note = f"Of {total} values {' and '.join(counted)}"
    if chosen.defined is None:
        return how, (f"{note}: ranked with the others, NaN as the worst.",)
    return "median", (f"{note}: the median stands for the {chosen.words}, in both arms.",)


def _decided(rows: Sequence[_Compared]) -> tuple[Verdict, ...]:
    """The words, after Holm's correction over the claims."""
    claims: dict[str, list[_Compared]] = {}
    for made in rows:
        if made.row.primary:
            claims.setdefault(made.row.claim, []).append(made)
    family = np.array([_joint(members) for members in claims.values()])
    equivalences = np.array([np.max([m.row.p_equivalence for m in c]) for c in claims.values()])
    places = {claim: at for at, claim in enumerate(claims)}
    verdicts = []
    for made in rows:
        row, alpha = made.row, ALPHA
        decisive = row.p
        if row.primary:
            at, alpha = places[row.claim], ALPHA / len(claims)
            own = decisive if _right(made) else _any_of(decisive, len(claims[row.claim]))
            decisive = _corrected(family, at, own)
            p_equivalence = _corrected(equivalences, at, row.p_equivalence)
            row = replace(row, p_holm=decisive, p_equivalence=p_equivalence)
        word = _word(made.endpoint, row, decisive)
        if made.lost and word not in ("undecided", "unclear"):
            note = (
                f"{made.lost} of {made.lost + row.seeds} pairs of seeds are missing. The others "
                f"alone would say {word!r}, but seeds may be lost for a reason: only all decide."
            )
            row = replace(row, notes=(*row.notes, note))
            word = "undecided" if row.primary else "unclear"
        elif word in ("undecided", "unclear") and row.row != "halves":
            row = _with_needed(made, row, alpha)
        verdicts.append(replace(row, verdict=word))
    return tuple(verdicts)


def _joint(members: Sequence[_Compared]) -> float:
    """The p of a claim of whose primary endpoints all must hold.

    Where all effects lie on the side that is predicted, the largest: the claim is wrong if one is
    (an intersection-union test). Otherwise the smallest of those that do not, times their number.

    Source: Berger 1982, Technometrics 24, 295-300.
    """
    wrong = [made.row.p for made in members if not _right(made) and made.row.p == made.row.p]
    if wrong:
        return _any_of(min(wrong), len(members))
    return float(np.max([made.row.p for made in members]))  # NaN, if one is


def _any_of(p: float, count: int) -> float:
    """Bonferroni's p of the smallest of `count`."""
    return min(1.0, p * count) if count > 1 else p


def _corrected(family: Floats, at: int, p: float) -> float:
    """Holm's p of one endpoint: that of a claim that had it alone, among the others."""
    own = family.copy()
    own[at] = p
    return float(holm(own)[at])


def _right(made: _Compared) -> bool:
    """Whether the effect lies where the endpoint predicts it."""
    endpoint, effect = made.endpoint, made.row.effect
    if endpoint.predicts == "within":
        return abs(effect) < endpoint.margin
    beyond = effect > endpoint.null
    return beyond == (endpoint.predicts in ("higher", "above"))


def _word(endpoint: Endpoint, row: Verdict, p: float) -> Word:
    margin = endpoint.margin
    if endpoint.predicts not in ("lower", "higher"):
        return _predicted(endpoint, row, p)
    apart = p <= ALPHA and (row.low > 0 or row.high < 0)
    if not row.primary:
        return "unclear" if not apart else "higher" if row.effect > 0 else "lower"
    if row.p_equivalence <= ALPHA and -margin < row.low and row.high < margin:
        return "no relevant difference"
    if apart:
        higher = row.effect > 0
        return "supported" if higher == (endpoint.predicts == "higher") else "contradicted"
    return "undecided"


def _predicted(endpoint: Endpoint, row: Verdict, p: float) -> Word:
    """The word for an effect that is predicted above or below a margin, or within it."""
    margin = endpoint.margin
    ends = (-margin, margin) if endpoint.predicts == "within" else (margin,)
    # On one side of every end of what is predicted, as the interval has it.
    sure = p <= ALPHA and all(row.high < end or row.low > end for end in ends)
    right = _right(_Compared(endpoint, row))
    if row.primary:
        return "undecided" if not sure else "supported" if right else "contradicted"
    return "unclear" if not sure else "as predicted" if right else "not as predicted"


def _with_needed(made: _Compared, row: Verdict, alpha: float) -> Verdict:
    """With what the seeds could not do, and how many could."""
    least = fewest_pairs(alpha) if made.endpoint.test == "sign_flip" else 2
    after = "after Holm's correction, unless other claims are, " if row.primary else ""
    notes = list(row.notes)
    if row.seeds < least:
        count = f"{row.seeds or 'no'} pair{'s' * (row.seeds != 1)}"
        notes.append(
            f"With {count} of seeds no difference, however large, can be shown {after}"
            f"at {ALPHA:g}: it takes {least}."
        )
    if not made.spread > 0:  # unknown, or none
        few = row.seeds < least
        return replace(row, notes=tuple(notes), seeds_needed=least if few else None)
    margin, apart = made.endpoint.margin, row.effect - made.endpoint.null
    if made.endpoint.predicts in ("above", "below"):
        margin = 0.0
    elif made.endpoint.predicts == "within":
        apart = max(abs(row.effect) - margin, 0.0)
    needed = pairs_needed(
        row.effect,
        made.spread,
        margin=margin,
        apart=apart,
        alpha=alpha,
        wanted=WANTED_POWER,
        floor=made.over_samples,
        test=made.endpoint.test,
    )
    if needed is None:
        enough = (
            ": more samples are needed too" if made.over_samples > made.spread**2 / MOST else ""
        )
        notes.append(f"Not even {MOST} pairs of seeds would decide{enough}.")
        return replace(row, notes=tuple(notes))
    return replace(row, notes=tuple(notes), seeds_needed=max(needed, row.seeds + 1))
