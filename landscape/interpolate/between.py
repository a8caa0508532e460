"""What a network does along one path between samples, and the statistics of many paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from checkpoints.problem import Tensors
from landscape.core.jacobian import gram, jacobian, norms, softmax_jacobian
from landscape.core.plan import Values
from landscape.core.spaces import USUAL_BATCH, Inputs
from landscape.core.summary import mean_and_stderr
from landscape.interpolate import pairs, path_statistics
from landscape.interpolate.pairs import KINDS, SamplePath
from landscape.interpolate.path_statistics import Floats
from landscape.interpolate.transitions import transitions

PROBABILITY_SLOPE = "per L2 distance, pixel range 1"
SLOPE = f"logits {PROBABILITY_SLOPE}"
# One number a path: {name: (what it is, unit)}.
STATISTICS = {
    "flips": ("changes of the decision", "1"),
    "miss_rate": ("fraction of points decided for none of the samples' classes", "1"),
    "monotonicity_violation": ("rises of the first class's probability", "1"),
    "minimum_probability": ("smallest probability of the common class", "1"),
    "transitions": ("ReLUs that switch", "1"),
    "tortuosity": ("length of the logits' path over the distance of its ends", "1"),
    "chord_deviation": ("largest distance from the chord over the distance of the ends", "1"),
    "roughness": ("roughness of the logits", "logits squared"),
    "relative_roughness": ("roughness of the logits over the ends' squared margin", "1"),
}
JACOBIAN_STATISTICS = {
    "path_jacobian_norm": ("mean Jacobian norm of the logits", SLOPE),
    "relative_jacobian_norm": (
        "mean Jacobian norm of the logits over the ends' margin", PROBABILITY_SLOPE,
    ),
    "path_probability_jacobian_norm": (
        "mean Jacobian norm of the probabilities", PROBABILITY_SLOPE,
    ),
}  # fmt: skip
# Spread over decades: their means are taken of natural logarithms.
LOGARITHMIC = (
    "tortuosity", "chord_deviation", "roughness", "relative_roughness", *JACOBIAN_STATISTICS
)  # fmt: skip


def measure(
    space: Inputs, path: SamplePath, t: Floats, *, ranks: int, with_jacobian: bool
) -> dict[str, Any]:
    """Outputs at every point of a path, and its statistics.

    Statistics are those of `landscape.core.paths`, of the points from t = 0 to 1 only. NaN by
    definition: on circles tortuosity, chord deviation and both roughnesses, which compare with a
    straight line; the monotonicity violation but for `cross_class`; the smallest probability but
    for `same_class`.

    The ends' margin is the mean over the path's samples of |logit of its class - largest other|:
    what is relative to it stays when all logits are multiplied by a number. The class of a shuffled
    image is the network's own decision. Where logits are NaN, as those of a product of feature maps
    that overflows far from the data, a path's decisions and transitions are NaN too.

    Args:
        space: the inputs.
        path: which samples.
        t: (T,), with 0 and 1, equally spaced.
        ranks: columns for samples, 2 or 3; NaN where a path has not so many.
        with_jacobian: Jacobian norms too.

    Returns:
        {name: number, (T,), (T, classes), (ranks,) or (T, ranks)}.
    """
    samples = pairs.ends(path, space.origin)
    points, length = pairs.along(path, samples, t)
    with torch.inference_mode():
        ends = space.outputs(samples).double()
    outputs, switched = transitions(space, points)
    log_p = torch.log_softmax(outputs.double(), dim=1)
    shuffled = path.kind == "random"
    labels = ends.argmax(dim=1) if shuffled else space.problem.targets[list(path.samples)]
    losses = [space.problem.losses(outputs, label.expand(len(t))) for label in labels]
    names = labels.cpu().numpy()
    margins = [path_statistics.margin(*end) for end in zip(ends.cpu().numpy(), names, strict=True)]
    values: dict[str, Any] = {
        "kind": KINDS.index(path.kind),
        "length": length,
        "logits": outputs.double().cpu().numpy(),
        "entropy": path_statistics.entropy(log_p.cpu().numpy()),
        "sample": _padded(path.samples, ranks),
        "label": _padded(names, ranks),
        "margin": _padded(margins, ranks),
        "loss": _padded(torch.stack(losses, dim=1).cpu().numpy(), ranks),
        "probability": _padded(log_p[:, labels].exp().cpu().numpy(), ranks),
    }
    if with_jacobian:
        values |= _jacobian_norms(space, points)
    inside = (t >= 0) & (t <= 1)
    switches = switched.numpy()[inside[1:] & inside[:-1]].sum()
    # Outputs that overflow give inf and NaN, which are kept.
    with np.errstate(over="ignore", invalid="ignore"):
        return (
            values
            | _statistics(path, values, inside)
            | {
                # A unit that has overflowed is neither on nor off.
                "transitions": np.where(np.isnan(values["logits"][inside]).any(), np.nan, switches)
            }
        )


def _statistics(
    path: SamplePath, values: dict[str, Any], inside: NDArray[np.bool_]
) -> dict[str, Any]:
    logits, probability = values["logits"][inside], values["probability"][inside, 0]
    labels, margins = (values[name][: len(path.samples)] for name in ("label", "margin"))
    margin = float(np.abs(margins).mean())
    straight = path.kind != "circle"
    roughness = path_statistics.roughness(logits) if straight else np.nan
    told = {
        "flips": path_statistics.flips(logits),
        "miss_rate": path_statistics.miss_rate(logits, labels),
        "monotonicity_violation": np.nan,
        "minimum_probability": np.nan,
        "tortuosity": path_statistics.tortuosity(logits) if straight else np.nan,
        "chord_deviation": path_statistics.chord_deviation(logits) if straight else np.nan,
        "roughness": roughness,
        "relative_roughness": path_statistics.ratio(roughness, margin**2),
    }
    if path.kind == "cross_class":
        told["monotonicity_violation"] = path_statistics.monotonicity_violation(probability)
    if path.kind == "same_class":
        told["minimum_probability"] = probability.min()
    if "jacobian_norm" in values:
        of_logits = path_statistics.average(values["jacobian_norm"][inside])
        of_probabilities = path_statistics.average(values["probability_jacobian_norm"][inside])
        told |= {
            "path_jacobian_norm": of_logits,
            "relative_jacobian_norm": path_statistics.ratio(of_logits, margin),
            "path_probability_jacobian_norm": of_probabilities,
        }
    return told


def _jacobian_norms(space: Inputs, points: Tensors) -> dict[str, Any]:
    size = space.problem.batch_size or USUAL_BATCH
    count = len(next(iter(points.values())))
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, count, size):
        part = {name: value[start : start + size] for name, value in points.items()}
        logits, jacobians = jacobian(space, part)
        products = gram(jacobians)
        outer = softmax_jacobian(torch.softmax(logits, dim=1))
        found.append((norms(products)[0], norms(products, outer)[0]))
    of_logits, of_probabilities = (torch.cat(part) for part in zip(*found, strict=True))
    return {
        "jacobian_norm": of_logits.cpu().numpy(),
        "probability_jacobian_norm": of_probabilities.cpu().numpy(),
    }


def _padded(values: Any, ranks: int) -> Floats:
    """NaN for samples that a path has not, along the last axis."""
    array = np.asarray(values, dtype=np.float64)
    missing = [(0, 0)] * (array.ndim - 1) + [(0, ranks - array.shape[-1])]
    return np.pad(array, missing, constant_values=np.nan)


def statistics(*, with_jacobian: bool) -> dict[str, tuple[str, str]]:
    """{name: (what it is, unit)} of the numbers that each path has."""
    return STATISTICS | (JACOBIAN_STATISTICS if with_jacobian else {})


def variables(*, with_jacobian: bool) -> dict[str, tuple[tuple[str, ...], dict[str, Any]]]:
    """{name: (dims, attributes)} of all that `measure` and `means` give."""
    pair, along, by_sample = ("pair",), ("pair", "t"), ("pair", "rank")
    told: dict[str, tuple[tuple[str, ...], str, str]] = {
        "kind": (pair, "kind of path", "1"),
        "length": (pair, "length of the path from t = 0 to 1", "L2 distance, pixel range 1"),
        "sample": (by_sample, "position of the sample among the examples", "1"),
        "label": (by_sample, "class of the sample", "1"),
        "margin": (by_sample, "margin of the sample", "logits"),
        "logits": ((*along, "class"), "logits", "logits"),
        "entropy": (along, "entropy", "nat"),
        "loss": ((*along, "rank"), "loss to the class of the sample", "nat"),
        "probability": ((*along, "rank"), "probability of the class of the sample", "1"),
    }
    if with_jacobian:
        told["jacobian_norm"] = (along, "Jacobian norm of the logits", SLOPE)
        told["probability_jacobian_norm"] = (
            along, "Jacobian norm of the probabilities", PROBABILITY_SLOPE,
        )  # fmt: skip
    for name, (label, units) in statistics(with_jacobian=with_jacobian).items():
        told[name] = (pair, label, units)
        mean, label, units = mean_of(name, label, units)
        told[mean] = (("part",), label, units)
        told[f"{mean}_stderr"] = (("part",), f"standard error of the {label}", units)
    return {n: (dims, described(n, label, units)) for n, (dims, label, units) in told.items()}


def described(name: str, label: str, units: str) -> dict[str, Any]:
    """Attributes of a variable or dim; `kind` and `part` also tell what their numbers mean."""
    attributes: dict[str, Any] = {"long_name": label, "units": units}
    if name in ("kind", "part"):
        flags = {"flag_values": np.arange(len(KINDS)), "flag_meanings": " ".join(KINDS)}
        return attributes | flags
    return attributes


def mean_of(name: str, label: str, units: str) -> tuple[str, str, str]:
    """Name, label and unit of a statistic's mean over the paths of a kind."""
    if name in LOGARITHMIC:
        return f"log_{name}_mean", f"mean logarithm of the {label}", "1"
    return f"{name}_mean", f"mean of the {label}", units


def means(result: xr.Dataset) -> Values:
    """Means over the paths of each kind, and their standard errors as of independent paths."""
    found: Values = {}
    of_kind = result["kind"].values == result["part"].values[:, None]
    for name, about in statistics(with_jacobian="jacobian_norm" in result).items():
        values = result[name].values
        with np.errstate(divide="ignore"):
            values = np.log(values) if name in LOGARITHMIC else values
        rows = np.array([mean_and_stderr(values[which]) for which in of_kind])
        mean, _, _ = mean_of(name, *about)
        found |= {mean: rows[:, 0], f"{mean}_stderr": rows[:, 1]}
    return found
