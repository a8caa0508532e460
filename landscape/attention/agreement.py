"""How well two rankings of the same units agree."""

from __future__ import annotations

import numpy as np
from scipy import stats

from landscape.core.variables import Floats

# {name: what it is}; each is of one example, between its attention and its importances.
STATISTICS = {
    "kendall_tau": "Kendall's tau-b between attention and importance",
    "kendall_p": "p-value of Kendall's tau-b, two-sided",
    "spearman": "Spearman's rank correlation between attention and importance",
    "top_overlap": "share of the top units that attention and importance have in common",
    "top_distance": "Fagin's distance of the top units of attention and importance",
    "jensen_shannon": "Jensen-Shannon distance of normalised attention and importance",
}


def statistics(attention: Floats, importance: Floats, top: int) -> dict[str, float]:
    """Every statistic of `STATISTICS` of one example.

    Args:
        attention: (units,), a weight each; not negative, for the Jensen-Shannon distance.
        importance: (units,), not negative.
        top: k; at most the number of units.

    Returns:
        NaN where a vector is constant or not finite, which has no ranking.
    """
    if not np.isfinite(attention).all() or not np.isfinite(importance).all():
        return dict.fromkeys(STATISTICS, np.nan)
    if np.ptp(attention) == 0 or np.ptp(importance) == 0:
        return dict.fromkeys(STATISTICS, np.nan) | {
            "jensen_shannon": jensen_shannon(attention, importance)
        }
    tau, p = stats.kendalltau(attention, importance)
    return {
        "kendall_tau": float(tau),
        "kendall_p": float(p),
        "spearman": float(stats.spearmanr(attention, importance).statistic),
        "top_overlap": top_overlap(attention, importance, top),
        "top_distance": top_distance(attention, importance, top),
        "jensen_shannon": jensen_shannon(attention, importance),
    }


def top_overlap(a: Floats, b: Floats, top: int) -> float:
    """|top k of a and of b| / k; ties are broken by position."""
    k = min(top, len(a))
    return len(set(_ranked(a)[:k]) & set(_ranked(b)[:k])) / k


def top_distance(a: Floats, b: Floats, top: int) -> float:
    """Fagin's Kendall distance of two top-k lists with penalty 1/2, divided by its largest value.

    A pair counts 1 where the lists order it differently, as far as they say, and 1/2 where both
    of its units are in one list only, and neither in the other.

    Source: Fagin, Kumar and Sivakumar 2003, Comparing top k lists, section 3.1, p = 1/2.
    """
    k = min(top, len(a))
    first, second = ({int(u): place for place, u in enumerate(_ranked(v)[:k])} for v in (a, b))
    units = sorted({*first, *second})
    distance = 0.0
    for at, i in enumerate(units):
        for j in units[at + 1 :]:
            here = [i in first, j in first]
            there = [i in second, j in second]
            if (all(here) and not any(there)) or (all(there) and not any(here)):
                distance += 0.5
                continue
            # A unit that is not in a list ranks below all that are.
            orders = [table.get(i, k) - table.get(j, k) for table in (first, second)]
            distance += orders[0] * orders[1] < 0
    # The largest: disjoint lists, k^2 pairs across and k (k - 1) pairs within, at 1/2 each.
    return distance / (k**2 + k * (k - 1) / 2)


def jensen_shannon(a: Floats, b: Floats) -> float:
    """The square root of the Jensen-Shannon divergence in nat of two vectors divided by their sums.

    NaN where an entry is negative or all are 0.
    """
    if min(a.min(), b.min()) < 0 or not a.sum() > 0 or not b.sum() > 0:
        return float("nan")
    p, q = a / a.sum(), b / b.sum()
    middle = (p + q) / 2
    divergence = sum(float(np.sum(v[v > 0] * np.log(v[v > 0] / middle[v > 0]))) for v in (p, q))
    return float(np.sqrt(max(divergence, 0.0) / 2))


def _ranked(values: Floats) -> list[int]:
    """Units by falling value; of equal ones the first comes first."""
    return [int(unit) for unit in np.argsort(-values, kind="stable")]
