"""Statistics of a network's outputs along one path."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from landscape.core.variables import Floats


def grid(points: int, beyond: float = 0.0) -> Floats:
    """`points` equally spaced positions t from 0 to 1, and further ones outside.

    0 and 1 are included exactly. Beyond either end the same spacing continues until `beyond` is
    reached or exceeded.

    Args:
        points: from 0 to 1, both ends included; at least 2.
        beyond: how far to continue, as a fraction of the distance from 0 to 1.
    """
    steps = points - 1
    extra = int(np.ceil(beyond * steps - 1e-9))
    return np.arange(-extra, points + extra) / steps


def line(t: Floats) -> Floats:
    """The coefficients (T, 2) of two samples along the straight line from the first to the second.

    At t = 0 and t = 1 they are exactly 0 and 1, and 1 - t swaps them.
    """
    return np.stack([1 - t, t], axis=1)


def circle(squares: tuple[float, float, float], t: Floats) -> tuple[Floats, float]:
    """The circle through three points, as coefficients of these points, and its radius.

    It starts at the first point, passes the second before the third, and returns exactly to the
    first at t = 1; t is the fraction of the full angle. Collinear or coincident points have no
    circle: everything is then inf or NaN.

    Args:
        squares: squared distances between the first and second, first and third, second and third.
        t: (T,).

    Returns:
        (T, 3) with rows that sum to 1, and the radius in the unit of the distances.
    """
    ab, ac, bc = map(np.float64, squares)
    with np.errstate(all="ignore"):
        # In the plane of the three: a = (0, 0), b = (base, 0), c = (x, y) with y > 0.
        base = np.sqrt(ab)
        x = (ab + ac - bc) / (2 * base)
        y = np.sqrt(ac - x * x)
        middle = np.array([base / 2, (ac - base * x) / (2 * y)])
        angle = 2 * np.pi * (t % 1.0)
        cos, sin = np.cos(angle), np.sin(angle)
        across = middle[0] - (cos * middle[0] - sin * middle[1])
        up = middle[1] - (sin * middle[0] + cos * middle[1])
        third = up / y
        second = (across - third * x) / base
        return np.stack([1 - second - third, second, third], axis=1), float(np.hypot(*middle))


def flips(values: Floats) -> float:
    """How often the largest of the outputs (T, classes) changes from one point to the next.

    NaN if an output is NaN: there is no decision then.
    """
    decisions = values.argmax(axis=1)
    return _unless_nan(values, (decisions[1:] != decisions[:-1]).sum())


def miss_rate(values: Floats, labels: Any) -> float:
    """The fraction of points, both ends included, whose largest output is none of `labels`.

    NaN where an output is NaN.

    Args:
        values: (T, classes).
        labels: the classes of the samples that the path connects.

    Source: Zhang et al. 2018, figure 2a, arXiv:1710.09412.
    """
    return _unless_nan(values, (~np.isin(values.argmax(axis=1), labels)).mean())


def tortuosity(values: Floats) -> float:
    """Length of the path of outputs, a polygon through `values`, over the distance of its ends.

    sum_k |f_{k+1} - f_k| / |f_K - f_0|: at least 1, and 1 if outputs move along a straight line;
    inf if they return to their start, NaN if they never move. With more points it increases to the
    ratio for the arc length, with an error of order 1 / K^2.

    Args:
        values: (K + 1, classes), at equally spaced positions from 0 to 1.
    """
    steps = np.linalg.norm(np.diff(values, axis=0), axis=1)
    return ratio(steps.sum(), np.linalg.norm(values[-1] - values[0]))


def roughness(values: Floats) -> float:
    """The integral over t of |f''(t)|^2, from second differences: in squares of the outputs' unit.

    K^3 sum_{k=1}^{K-1} |f_{k+1} - 2 f_k + f_{k-1}|^2 with K steps from 0 to 1. A second difference
    is f'' / K^2 and the sum has K terms, so for a smooth f this converges, with an error of order
    1 / K. A kink, as in a ReLU network, adds its squared jump of the slope times K (at least half
    of that if it lies between two points), which diverges with K: compare such networks only at
    the same number of points. Along straight lines of inputs it is 0 for a linear model.

    Args:
        values: (K + 1, classes), at equally spaced positions from 0 to 1.
    """
    steps = len(values) - 1
    return float(steps**3 * (np.diff(values, n=2, axis=0) ** 2).sum())


def chord_deviation(values: Floats) -> float:
    """Largest distance of the outputs from the straight line between those at the ends.

    max_k |f_k - (1 - t_k) f_0 - t_k f_K| / |f_K - f_0|: 0 for a linear model, inf if the ends'
    outputs are equal and others differ, NaN if they never move.

    Args:
        values: (K + 1, classes), at equally spaced positions from 0 to 1.
    """
    t = np.linspace(0, 1, len(values))[:, None]
    # Exactly 0, without rounding error, if outputs never move.
    away = np.linalg.norm(values - values[0] - t * (values[-1] - values[0]), axis=1)
    return ratio(away.max(), np.linalg.norm(values[-1] - values[0]))


def monotonicity_violation(values: Floats) -> float:
    """Total increase of a curve that should decrease: sum_k max(0, p_{k+1} - p_k).

    Args:
        values: (K + 1,), such as the probability of the first sample's class along the path to a
            sample of another class. 0 if it never increases.
    """
    return float(np.maximum(np.diff(values), 0).sum())


def average(values: Floats) -> float:
    """The mean over t from 0 to 1 of values (K + 1,) at equally spaced positions, by trapezoids."""
    return float((values.sum() - (values[0] + values[-1]) / 2) / (len(values) - 1))


def margin(values: Floats, label: int) -> float:
    """The output of `label` minus the largest of the others; values (classes,)."""
    return float(values[label] - np.delete(values, label).max())


def entropy(log_probabilities: Floats) -> Floats:
    """-sum_c p_c ln p_c in nat, over the last axis."""
    # A class of probability 0 contributes 0, though its logarithm is -inf.
    finite = np.where(np.isneginf(log_probabilities), 0, log_probabilities)
    return cast(Floats, -(np.exp(log_probabilities) * finite).sum(axis=-1))


def excess(losses: Floats, t: Floats) -> Floats:
    """Each example's loss above the straight line between its losses at t = 0 and t = 1.

    l_n(t) - (1 - t) l_n(0) - t l_n(1), exactly 0 at both ends, if these are finite.

    Args:
        losses: (T, N).
        t: (T,), 0 and 1 among them.
    """
    first, last = losses[t == 0], losses[t == 1]
    with np.errstate(invalid="ignore"):
        return np.asarray(losses - ((1 - t[:, None]) * first + t[:, None] * last))


def ratio(part: Any, whole: Any) -> float:
    """`part` / `whole` by IEEE 754: inf or NaN where `whole` is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(part) / np.float64(whole))


def _unless_nan(values: Floats, answer: Any) -> float:
    return float("nan") if np.isnan(values).any() else float(answer)
