"""How strongly a network reacts to small changes of each example: at it, and at a distance."""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

from checkpoints.problem import Problem
from landscape.core.plan import Plan, Probe
from landscape.core.spaces import Inputs
from landscape.core.summary import declared, in_words
from landscape.core.variables import Coordinate, Variable, of_examples
from landscape.sensitivity.measure import ATTACK, Measurement
from landscape.sensitivity.spec import Spec


def sensitivity(problem: Problem, spec: Spec) -> Plan:
    """Norms of each example's input gradient and Jacobian, and changes at finite radii around it.

    Derivatives in the inputs say little about finite distances: a ReLU network's own curvature is
    zero almost everywhere, a multiplicative network's is not. So differences at finite radii, in
    the same units for every network, are measured as well. Distances and gradients are in units of
    the [0, 1] pixel range, L2 unless named otherwise, whatever normalisation the network contains.
    Points outside [0, 1] are not clipped.

    Args:
        problem: with its batch size decided; outputs (n, classes). Where `correct` is None,
            margins and quantities based on a softmax are left out, and likewise of sequences, whose
            outputs (n, classes, T) are taken as classes x T logits, of all positions.
        spec: see `Spec`.

    Returns:
        A plan with the dim `example`: one value per example, no means; and over the examples of
        each `direction_kind`, `radius` and `sigma`, means with `_stderr` and quantiles.
        inf and NaN are stored as they are: a direction along a zero gradient is NaN.

    Raises:
        ValueError: outputs without an axis of classes, fewer examples than requested neighbours, or
            coincident examples, whose distance of 0 cannot be the unit of the radii.

    Cost: with the defaults about 100 gradients and 150 further forward passes of all examples, a
    quarter of the gradients in float64; two gradients with `--parts norms`.
    Source: Novak et al. 2018, arXiv:1802.08760 (Jacobian norms); Moosavi-Dezfooli et al. 2019,
    arXiv:1811.09716 (change of the gradient); Santurkar et al. 2018, arXiv:1805.11604 (bands).
    """
    space = Inputs(problem)
    with torch.no_grad():
        outputs = space.outputs(problem.inputs, slice(0, 1))
    positions = problem.targets.shape[1:] if not problem.targets.is_floating_point() else ()
    shape = outputs.shape[2:] if isinstance(outputs, Tensor) and outputs.ndim > 1 else None
    if shape not in ((), positions):
        raise ValueError("sensitivity needs a network whose outputs are (n, classes).")
    spec = spec.resolved(outputs[0].numel())
    probe = Measurement(space, spec, outputs[0].numel())
    kinds = spec.directions_by_kind()
    directions = [name for names in kinds.values() for name in names]
    length, multiple = "pixel range", "multiple of the median nearest-neighbour distance"
    coords = of_examples(problem) | {
        "direction": Coordinate(directions, "direction"),
        "direction_kind": Coordinate(list(kinds), "kind of direction"),
        "radius": Coordinate(spec.radii, "radius", multiple),
        "sigma": Coordinate(spec.sigmas, "standard deviation of the noise", length),
    }
    becomes = {"direction": "direction_kind", "example": ""}
    summary = declared(probe.variables, probe.summed, becomes)
    variables = probe.variables | summary
    if probe.near:
        label = "median nearest-neighbour distance"
        variables["median_distance"] = Variable((), label, length)
    used = {dim for each in variables.values() for dim in each.dims}
    return Plan(
        probe="sensitivity",
        spec=spec,
        provenance=problem.fingerprints() | (problem.described_reference() if probe.near else {}),
        coords={n: each for n, each in coords.items() if used.issuperset(each.dims or (n,))},
        variables=variables,
        walk=("example",),
        measure=probe.measure,
        block=problem.batch_size or len(problem),
        watch="loss",
        finish=probe.finish,
        tell=_tell,
    )


def _tell(result: xr.Dataset) -> list[str]:
    """A few lines of medians: the mean of a heavy-tailed variable depends on its largest values."""
    names = ("gradient_l2", "margin_gradient_l2", "jacobian_frobenius")
    lines = [in_words(result, name) for name in names if name in result]
    if "second_difference" in result:
        near = result.sel(radius=ATTACK, method="nearest")
        kinds, medians = near["direction_kind"].values, near["second_difference_median"].values
        lines.append(
            f"second difference at {float(near['radius']):g} of the neighbours' distance "
            f"{float(near['median_distance']):.3g} ({near['second_difference'].attrs['units']}): "
            "medians "
            + ", ".join(f"{kind} {value:.3g}" for kind, value in zip(kinds, medians, strict=True))
            + f"; rounding {float(near['second_difference_floor'].median()):.1g}"
        )
    if "noise_accuracy" in result:
        values = zip(result["sigma"].values, result["noise_accuracy_mean"].values, strict=True)
        shown = ", ".join(f"{accuracy:.3f} at {sigma:g}" for sigma, accuracy in values)
        lines.append(f"accuracy under noise: {shown}")
    return lines


PROBE = Probe("sensitivity", Spec, sensitivity)
