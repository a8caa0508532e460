"""The factorial of a study: main effects and interactions of what its endpoints ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from analysis.samples import Samples
from analysis.stats import factorial
from analysis.stats.arrays import Floats
from analysis.stats.bootstrap import AVERAGES, average
from analysis.stats.factorial import Contrast
from analysis.study import COST, FRACTION_BELOW, Endpoint, Study


@dataclass(frozen=True, eq=False)
class Factorial:
    """One variable over all settings and arms.

    Args:
        endpoint: the first that asks for it.
        arms: all of the study that have it, those of the design first.
        seeds: of each arm; `values` has their numbers.
        values: {arm: (seeds,)}, in the variable's unit.
        effects: of the design, in `values`, or in their logarithms where the endpoint compares
            ratios; none where no seed is whole.
        whole: the seeds that every setting has, which the effects are of.
        notes: what must be said with it.
    """

    endpoint: Endpoint
    arms: tuple[str, ...]
    seeds: Mapping[str, tuple[int, ...]]
    values: Mapping[str, Floats]
    effects: tuple[Contrast, ...]
    whole: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """In words."""
        chosen = [f"{key} {value}" for key, value in self.endpoint.select.items()]
        return ", ".join([self.endpoint.variable.replace("_", " "), *chosen])


def factorials(study: Study, found: Mapping[tuple[str, str, int], Samples]) -> Iterator[Factorial]:
    """A factorial for every variable that endpoints ask for, but costs, which have no error.

    Args:
        study: with a design; without one there is none.
        found: {(endpoint, arm, seed): samples}, as `samples.gather` gives them.
    """
    if study.design is None:
        return
    seen = []
    for endpoint in study.endpoints:
        asked = (endpoint.probe, endpoint.variable, dict(endpoint.select), endpoint.average)
        there = all(study.measures(endpoint.probe, name) for name in study.design.settings)
        if endpoint.probe == COST or asked in seen or not there:
            continue
        seen.append(asked)
        yield _factorial(study, endpoint, found)


def _factorial(
    study: Study, endpoint: Endpoint, found: Mapping[tuple[str, str, int], Samples]
) -> Factorial:
    assert study.design
    values: dict[str, dict[int, float]] = {}
    for arm in study.arms:
        own = {seed: found.get((endpoint.name, arm.name, seed)) for seed in arm.seeds}
        values[arm.name] = {seed: _mean(one, endpoint) for seed, one in own.items() if one}
    settings = study.design.settings
    seeds = sorted({seed for name in settings for seed in values[name]})
    table = np.array([[values[name].get(seed, np.nan) for name in settings] for seed in seeds])
    table = table.reshape(len(seeds), len(settings))
    if endpoint.compare == "log_ratio":
        with np.errstate(divide="ignore", invalid="ignore"):
            table = np.log(table)
    table[~np.isfinite(table)] = np.nan
    whole, lost = factorial.complete(table)
    notes = []
    dropped = sorted({*(seeds[at] for at in lost), *(set(study.design.seeds) - set(seeds))})
    if dropped:
        named = ", ".join(map(str, dropped))
        notes.append(f"Left out, since a setting of it is missing or not finite: seed {named}.")
    effects = study.design.effects
    return Factorial(
        endpoint,
        tuple(name for name, own in values.items() if own),
        {name: tuple(own) for name, own in values.items()},
        {name: np.array(list(own.values())) for name, own in values.items()},
        factorial.analysed(whole, settings, effects) if len(whole) else (),
        tuple(seed for at, seed in enumerate(seeds) if at not in lost),
        tuple(notes),
    )


def _mean(one: Samples, endpoint: Endpoint) -> float:
    """A network's number; NaN where the average is not defined for its samples."""
    how = "mean" if endpoint.average == FRACTION_BELOW else endpoint.average
    defined = AVERAGES[how].defined
    if defined is not None and not (np.isfinite(one.values) & defined(one.values)).all():
        return float("nan")
    return float(average(average(one.values, how), how))
