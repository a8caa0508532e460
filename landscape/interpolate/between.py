"""What a network does along one path between samples, and the statistics of many paths."""

from __future__ import annotations

from dataclasses import replace
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
from landscape.core.variables import Floats, Variable, Variables
from landscape.interpolate import pairs, path_statistics
from landscape.interpolate.pairs import SamplePath
from landscape.interpolate.transitions import transitions

PROBABILITY_SLOPE = "per L2 distance, pixel range 1"
SLOPE = f"logits {PROBABILITY_SLOPE}"
# One number per path.
STATISTICS = {
    "flips": Variable(("pair",), "changes of the decision"),
    "miss_rate": Variable(("pair",), "fraction of points decided for none of the samples' classes"),
    "monotonicity_violation": Variable(("pair",), "rises of the first class's probability"),
    "minimum_probability": Variable(("pair",), "smallest probability of the common class"),
    "transitions": Variable(("pair",), "ReLUs that switch"),
    "tortuosity": Variable(("pair",), "length of the logits' path over the distance of its ends"),
    "chord_deviation": Variable(
        ("pair",), "largest distance from the chord over the distance of the ends"
    ),
    "roughness": Variable(("pair",), "roughness of the logits", "logits squared"),
    "relative_roughness": Variable(
        ("pair",), "roughness of the logits over the ends' squared margin"
    ),
}
JACOBIAN_STATISTICS = {
    "path_jacobian_norm": Variable(("pair",), "mean Jacobian norm of the logits", SLOPE),
    "relative_jacobian_norm": Variable(
        ("pair",), "mean Jacobian norm of the logits over the ends' margin", PROBABILITY_SLOPE
    ),
    "path_probability_jacobian_norm": Variable(
        ("pair",), "mean Jacobian norm of the probabilities", PROBABILITY_SLOPE
    ),
}
# These span decades, so their natural logarithms are averaged.
LOGARITHMIC = (
    "tortuosity",
    "chord_deviation",
    "roughness",
    "relative_roughness",
    *JACOBIAN_STATISTICS,
)


def measure(
    space: Inputs, path: SamplePath, t: Floats, *, ranks: int, with_jacobian: bool
) -> dict[str, Any]:
    """Outputs at every point of a path, and its statistics.

    Statistics are those of `interpolate.path_statistics`, over the points from t = 0 to 1 only. NaN
    by definition: on circles tortuosity, chord deviation and both roughnesses, which compare with a
    straight line; the monotonicity violation except for `cross_class`; the smallest probability
    except for `same_class`.

    The ends' margin is the mean over the path's samples of |logit of its class - largest other|:
    values relative to it do not change when all logits are multiplied by a number. The class of a
    shuffled image is the network's decision. If logits are NaN, as when a product of feature maps
    overflows far from the data, the path's decisions and transitions are NaN too.

    Args:
        space: the inputs.
        path: which samples.
        t: (T,), with 0 and 1, equally spaced.
        ranks: columns for samples, 2 or 3; NaN if a path has fewer.
        with_jacobian: also measure Jacobian norms.

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
    found = {
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
        found["monotonicity_violation"] = path_statistics.monotonicity_violation(probability)
    if path.kind == "same_class":
        found["minimum_probability"] = probability.min()
    if "jacobian_norm" in values:
        of_logits = path_statistics.average(values["jacobian_norm"][inside])
        of_probabilities = path_statistics.average(values["probability_jacobian_norm"][inside])
        found |= {
            "path_jacobian_norm": of_logits,
            "relative_jacobian_norm": path_statistics.ratio(of_logits, margin),
            "path_probability_jacobian_norm": of_probabilities,
        }
    return found


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
    """Pad the last axis with NaN for the samples that a path does not have."""
    array = np.asarray(values, dtype=np.float64)
    missing = [(0, 0)] * (array.ndim - 1) + [(0, ranks - array.shape[-1])]
    return np.pad(array, missing, constant_values=np.nan)


def statistics(*, with_jacobian: bool) -> Variables:
    """The variables with one number per path."""
    return STATISTICS | (JACOBIAN_STATISTICS if with_jacobian else {})


def variables(*, with_jacobian: bool) -> Variables:
    """The variables that `measure` and `means` return."""
    pair, along, by_sample = ("pair",), ("pair", "t"), ("pair", "path_sample")
    found = {
        "length": Variable(
            pair, "length of the path from t = 0 to 1", "L2 distance, pixel range 1"
        ),
        "sample": Variable(by_sample, "position of the sample among the examples"),
        "label": Variable(by_sample, "class of the sample"),
        "margin": Variable(by_sample, "margin of the sample", "logits"),
        "logits": Variable((*along, "class"), "logits", "logits"),
        "entropy": Variable(along, "entropy", "nat"),
        "loss": Variable((*along, "path_sample"), "loss to the class of the sample", "nat"),
        "probability": Variable((*along, "path_sample"), "probability of the class of the sample"),
    }
    if with_jacobian:
        found["jacobian_norm"] = Variable(along, "Jacobian norm of the logits", SLOPE)
        found["probability_jacobian_norm"] = Variable(
            along, "Jacobian norm of the probabilities", PROBABILITY_SLOPE
        )
    for name, each in statistics(with_jacobian=with_jacobian).items():
        found[name] = each
        mean, about = mean_of(name, each)
        found[mean] = about
        found[f"{mean}_stderr"] = replace(about, label=f"standard error of the {about.label}")
    return found


def mean_of(name: str, each: Variable) -> tuple[str, Variable]:
    """The mean of a statistic over the paths of a kind."""
    dims = ("path_kind",)
    if name in LOGARITHMIC:
        return f"log_{name}_mean", Variable(dims, f"mean logarithm of the {each.label}")
    return f"{name}_mean", Variable(dims, f"mean of the {each.label}", each.unit)


def means(result: xr.Dataset) -> Values:
    """Means over the paths of each kind, with standard errors for independent paths."""
    found: Values = {}
    of_kind = result["kind"].values == result["path_kind"].values[:, None]
    for name, each in statistics(with_jacobian="jacobian_norm" in result).items():
        values = result[name].values
        with np.errstate(divide="ignore"):
            values = np.log(values) if name in LOGARITHMIC else values
        rows = np.array([mean_and_stderr(values[which]) for which in of_kind])
        mean, _ = mean_of(name, each)
        found |= {mean: rows[:, 0], f"{mean}_stderr": rows[:, 1]}
    return found
