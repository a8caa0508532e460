"""Contrasts, which are weighted sums of a study's arms by name, and factorial designs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.stats import factorial

SETTING = "{setting}"  # in a design's texts: `0000`, `0001` and so on
MOST_FACTORS = 8  # 256 networks a seed
_SUM_ERROR = 1e-9
_MINUS, _TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Design:
    """A 2^k factorial: an arm for every setting of its factors, named like it.

    Args:
        factors: what is switched on or off; a setting has a digit for each, in this order.
        checkpoints: the networks' files, with `{setting}` and `{seed}` in the name.
        seeds: one network each in every arm.
        reference: the arm that overheads of cost are over; empty: that of setting `0000`.
        problem: see an arm's.

    Raises:
        ValueError: no factors, too many, two of one name, a name that is none; a name of files
            without `{setting}`.
    """

    factors: tuple[str, ...]
    checkpoints: str
    seeds: tuple[int, ...]
    reference: str = ""
    problem: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unfit = [name for name in self.factors if not re.fullmatch(r"[A-Za-z][\w -]*", name)]
        count = len(self.factors)
        if unfit or not 0 < count <= MOST_FACTORS or len(set(self.factors)) < count:
            raise ValueError(
                f"factors = {list(self.factors)}; expected 1 to {MOST_FACTORS} names, each once, "
                "that begin with a letter."
            )
        if SETTING not in self.checkpoints:
            raise ValueError(f"checkpoints = {self.checkpoints!r}; expected {SETTING} in it.")

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of its arms."""
        return factorial.settings(self.factors)

    @property
    def effects(self) -> dict[str, dict[str, float]]:
        """Its main effects and interactions as contrasts, such as `E1` and `E1:E2`."""
        return factorial.effects(self.factors)

    @property
    def base(self) -> str:
        """The arm that overheads are over."""
        return self.reference or self.settings[0]

    def arms(self) -> list[dict[str, Any]]:
        """The tables of its arms, as `[[arms]]` would have them."""
        problem = {"problem": dict(self.problem)} if self.problem else {}
        return [
            {
                "name": setting,
                "checkpoints": self.checkpoints.replace(SETTING, setting),
                "seeds": list(self.seeds),
            }
            | problem
            for setting in self.settings
        ]


def resolved(weights: Weights, named: Mapping[str, Weights], arms: Collection[str]) -> Weights:
    """A contrast as weights of arms alone, those that cancel left out.

    Args:
        weights: {arm or name of another contrast: weight}.
        named: {name: contrast}, which may name others in turn; a name of both is the arm.
        arms: of the study.

    Raises:
        ValueError: an unknown name, one that leads back to itself, or weights that do not sum to 0.
            One arm alone stands for its own value, such as a correlation, which is compared with 0.
    """
    total = {
        arm: weight
        for arm, weight in _spread(weights, named, arms, ()).items()
        if abs(weight) > _SUM_ERROR
    }
    if (
        not total
        or len(total) > 1
        and abs(sum(total.values())) > _SUM_ERROR * sum(map(abs, total.values()))
    ):
        raise ValueError(
            f"contrast = {dict(weights)}: its arms' weights are {total or 'all 0'}; expected ones "
            "that sum to 0, so that what a seed does to all arms cancels, or one arm alone."
        )
    return total


def _spread(
    weights: Weights, named: Mapping[str, Weights], arms: Collection[str], above: tuple[str, ...]
) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, weight in weights.items():
        if name in arms:
            total[name] = total.get(name, 0.0) + weight
            continue
        if name not in named or name in above:
            fault = "leads back to itself" if name in above else "is no arm and no contrast"
            raise ValueError(f"contrast: {name!r} {fault}.")
        for arm, part in _spread(named[name], named, arms, (*above, name)).items():
            total[arm] = total.get(arm, 0.0) + weight * part
    return total


def words(weights: Weights) -> str:
    """A contrast as a line: `gain of 0011 − 2 × gain of 1111`."""
    text = ""
    for name, weight in weights.items():
        factor = "" if abs(weight) == 1 else f"{abs(weight):g} {_TIMES} "
        sign = f" {_MINUS} " if weight < 0 else " + "
        text += (sign if text else _MINUS * (weight < 0)) + factor + name
    return text
