"""A 2^k factorial with paired seeds: main effects, interactions, and contrasts of one's own.

Every seed has one network a setting, so a seed is a block: a contrast is computed within each seed,
and its interval comes from how it differs over seeds. That needs no common variance of all settings
and no sphericity, as the pooled error of an analysis of variance does; it costs degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from types import MappingProxyType

import numpy as np

from analysis.stats.arrays import Floats
from analysis.stats.multiplicity import holm
from analysis.stats.student import t_equivalence, t_reach, t_test

TIMES = ":"  # between the factors of an interaction


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of settings over seeds, and what it is compared with.

    Args:
        name: as it was called.
        seeds: (seeds,), its value in each.
        effect: their mean.
        low: lower end of its interval, Student's over seeds; NaN for one seed.
        high: upper end.
        low_all: lower end of an interval that holds together with all others of its family.
        high_all: upper end.
        p: two-sided, that the mean is 0.
        p_holm: corrected over the family.
        p_equivalence: that it is as large as the margin or larger; not corrected, NaN without one.
    """

    name: str
    seeds: tuple[float, ...]
    effect: float
    low: float
    high: float
    low_all: float
    high_all: float
    p: float
    p_holm: float
    p_equivalence: float = float("nan")


def settings(factors: Sequence[str]) -> tuple[str, ...]:
    """All 2^k settings, `00`, `01`, `10`, `11` for two factors: a digit a factor, in order."""
    return tuple("".join(digits) for digits in product("01", repeat=len(factors)))


def effects(factors: Sequence[str]) -> dict[str, dict[str, float]]:
    """{effect: {setting: weight}} of all main effects and interactions, by rising order.

    A main effect `A` is the mean of the settings with A less that of those without. The interaction
    `A:B` is half the difference between A's effect where B is on and where it is off, and so on:
    each is a contrast of ±1 over 2^(k-1), so that all have the same variance where the settings
    have. They are orthogonal, and with the grand mean they hold all that the settings do.

    Source: Yates 1937, The Design and Analysis of Factorial Experiments; Box, Hunter and Hunter
        2005, Statistics for Experimenters, chapter 5.
    """
    found = {}
    for order in range(1, len(factors) + 1):
        for chosen in combinations(range(len(factors)), order):
            name = TIMES.join(factors[at] for at in chosen)
            found[name] = {
                setting: float(np.prod([2 * int(setting[at]) - 1 for at in chosen]))
                / 2 ** (len(factors) - 1)
                for setting in settings(factors)
            }
    return found


def complete(values: Floats) -> tuple[Floats, tuple[int, ...]]:
    """The seeds of which every setting is there, and the rows of those that are dropped.

    Args:
        values: (seeds, settings), NaN where a network is missing.

    Returns:
        (seeds left, settings), and the places of the others. A seed without one of its settings
        is no whole block, and what is left of it would mix the seed's own effect into a contrast.
    """
    whole = ~np.isnan(values).any(axis=1)
    return values[whole], tuple(int(at) for at in np.flatnonzero(~whole))


def within_seeds(values: Floats, names: Sequence[str], weights: Mapping[str, float]) -> Floats:
    """A contrast in each seed, (..., seeds).

    Args:
        values: (..., seeds, settings).
        names: (settings,), of the last axis.
        weights: {setting: weight}; those that are not named have 0.

    Raises:
        ValueError: a weight of a setting that there is not.
    """
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise ValueError(f"no setting {unknown[0]!r}; expected some of {', '.join(names)}.")
    return np.asarray(values @ np.array([weights.get(name, 0.0) for name in names]))


def analysed(
    values: Floats,
    names: Sequence[str],
    contrasts: Mapping[str, Mapping[str, float]],
    *,
    margins: Mapping[str, float] = MappingProxyType({}),
    level: float = 0.95,
) -> tuple[Contrast, ...]:
    """Contrasts over seeds with intervals and p, each alone and corrected for their number.

    Args:
        values: (seeds, settings), without a gap.
        names: (settings,).
        contrasts: {name: {setting: weight}}, the family that is corrected for: `effects` gives that
            of a factorial; any other will do, such as {"gain": {"0011": 1, "0000": -1}}.
        margins: {name: the smallest that matters}, of those that are tested for equivalence.
        level: of the intervals. Those that hold together are Bonferroni's.

    Returns:
        One a contrast, in their order.

    Raises:
        ValueError: a gap: drop its seed by `complete`; values of another shape; no seeds.
    """
    if values.ndim != 2 or values.shape[1] != len(names) or not len(values):
        raise ValueError(
            f"values are {values.shape}; expected (seeds, {len(names)}): seeds and settings."
        )
    if np.isnan(values).any():
        seed, setting = np.argwhere(np.isnan(values))[0]
        raise ValueError(
            f"setting {names[setting]!r} of seed {seed} is missing; expected every setting in "
            "every seed. Leave that seed out with complete()."
        )
    rows = np.array([within_seeds(values, names, weights) for weights in contrasts.values()])
    p = t_test(rows)
    alone, together = t_reach(rows, level), t_reach(rows, 1 - (1 - level) / max(len(rows), 1))
    return tuple(
        Contrast(
            name,
            tuple(map(float, row)),
            mean := float(row.mean()),
            mean - float(near),
            mean + float(near),
            mean - float(far),
            mean + float(far),
            float(one),
            float(corrected),
            float(t_equivalence(row, margins[name])) if name in margins else float("nan"),
        )
        for name, row, near, far, one, corrected in zip(
            contrasts, rows, alone, together, p, holm(p), strict=True
        )
    )
