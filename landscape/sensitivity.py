"""How strongly a network reacts to small changes of each example: at it, and at a distance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from checkpoints.options import option
from checkpoints.problem import Problem, Tensors
from landscape.core import measures, norms, radii
from landscape.core.examples import Examples
from landscape.core.neighbors import neighbors, tangents
from landscape.core.plan import Cell, Plan, Probe, Values
from landscape.core.spaces import Inputs
from landscape.core.summary import declared, in_words, over_kinds

PARTS = ("norms", "jacobian", "radii", "noise", "bands")
DIRECTIONS, SIGNS, NOISE = range(3)  # streams of random numbers
ATTACK = 0.1  # the radius at which the adversarial direction is sought
FINE = 0.01  # below this radius rounding in float32 is not small beside what is measured


@dataclass(frozen=True)
class Spec:
    """Every number that changes a sensitivity. Radii and steps are in neighbour distances."""

    parts: tuple[str, ...] = option(PARTS, "what to measure", "PART")
    jacobian: Literal["auto", "exact", "hutchinson"] = option(
        "auto", "a backward pass a class, or an estimate; auto: exact up to --exact-classes"
    )
    exact_classes: int = option(32, "classes up to which auto measures the Jacobian exactly")
    draws: int = option(16, "draws of noise for each sigma, and of the Hutchinson estimate")
    radii: tuple[float, ...] = option(
        (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
        "distances, in multiples of the median distance between nearest neighbours",
    )
    directions: int = option(8, "random directions an example")
    tangents: int = option(2, "directions of a local PCA of the neighbours")
    neighbors: int = option(10, "neighbours in that PCA")
    sigmas: tuple[float, ...] = option(
        (0.02, 0.05, 0.1, 0.2), "standard deviations of the noise, in units of the pixel range"
    )
    steps: tuple[float, ...] = option(
        (0.05, 0.1, 0.2, 0.4), "distances of the bands down the gradient, in the units of --radii"
    )
    seed: int = option(0, "of directions, noise and estimates")

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"--parts {' '.join(self.parts)}: needed: some of {' '.join(PARTS)}.")
        for name in ("radii", "sigmas", "steps"):
            values = getattr(self, name)
            if not values or not all(0 < x < float("inf") for x in values):
                shown = " ".join(map(str, values))
                raise ValueError(f"--{name} {shown}: needed: positive finite numbers.")
        least = {
            "exact_classes": 0,
            "draws": 1,
            "directions": 1,
            "tangents": 0,
            "neighbors": 1,
            "seed": 0,
        }
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: needed: {smallest} or more."
                )
        if self.tangents > self.neighbors:
            raise ValueError(
                f"--tangents {self.tangents} exceeds the --neighbors {self.neighbors} that span "
                "them. Ask for fewer directions, or more neighbours."
            )

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {"inputs": 1}

    def resolved(self, classes: int) -> Spec:
        """This spec with every default decided, its lists in order, for so many classes."""
        few = self.jacobian == "auto" and classes <= self.exact_classes
        return replace(
            self,
            parts=tuple(part for part in PARTS if part in self.parts),
            jacobian="exact" if few or self.jacobian == "exact" else "hutchinson",
            radii=tuple(sorted(set(self.radii))),
            sigmas=tuple(sorted(set(self.sigmas))),
            steps=tuple(sorted(set(self.steps))),
        )

    def directions_by_kind(self) -> dict[str, list[str]]:
        """The names of an example's directions: a kind, and a number where there are several."""
        named = {
            "random": [f"random_{i}" for i in range(self.directions)],
            "gradient": ["gradient"],
            "adversarial": ["adversarial"],
            "tangent": [f"tangent_{i}" for i in range(self.tangents)],
        }
        return {kind: names for kind, names in named.items() if names}


def sensitivity(problem: Problem, spec: Spec) -> Plan:
    """Norms of each example's input gradient and Jacobian, and changes at finite radii around it.

    Derivatives in the inputs say nothing of a finite distance: a ReLU network's own curvature is
    zero almost everywhere, a multiplicative network's is not. So differences at finite radii, in
    the same units for every network, are measured beside them. Distances and gradients are in
    units of the [0, 1] pixel range, L2 unless named otherwise, whatever normalisation the network
    has inside. Points outside [0, 1] are evaluated as they are.

    Args:
        problem: with its batch size decided; outputs (n, classes). Where `correct` is None,
            margins and what stands on a softmax are left out.
        spec: see `Spec`.

    Returns:
        A plan with the dim `example`: one value an example, no means; and over the examples of
        each kind of direction (`part`), radius and sigma, means with `_stderr` and quantiles.
        What is inf or NaN stays so: a direction along a zero gradient is NaN.

    Raises:
        ValueError: outputs that are not (n, classes), fewer examples than neighbours asked for,
            or examples that coincide, which have no distance to measure radii by.

    Cost: with the defaults about 100 gradients and 150 further forward passes of all examples, a
    quarter of the gradients in float64; `--parts norms` takes two gradients.
    Source: Novak et al. 2018, arXiv:1802.08760 (Jacobian norms); Moosavi-Dezfooli et al. 2019,
    arXiv:1811.09716 (change of the gradient); Santurkar et al. 2018, arXiv:1805.11604 (bands).
    """
    space = Inputs(problem)
    with torch.no_grad():
        outputs = space.outputs(problem.inputs, slice(0, 1))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise ValueError("sensitivity needs a network whose outputs are (n, classes).")
    spec = spec.resolved(outputs.shape[1])
    probe = _Probe(space, spec, outputs.shape[1])
    kinds = spec.directions_by_kind()
    directions = [name for names in kinds.values() for name in names]
    length, multiple = "pixel range", "multiple of the median nearest-neighbour distance"
    coords: dict[str, tuple[Any, dict[str, str]]] = {
        "example": (np.arange(len(problem)), _about("example", "1")),
        "direction": (np.array(directions, dtype=object), _about("direction", "1")),
        "part": (np.array(list(kinds), dtype=object), _about("kind of direction", "1")),
        "radius": (np.array(spec.radii), _about("radius", multiple)),
        "noise": (np.array(spec.sigmas), _about("standard deviation of the noise", length)),
    }
    summary = declared(probe.variables, probe.summed, {"direction": "part", "example": ""})
    variables = probe.variables | summary
    if probe.near:
        variables["median_distance"] = ((), _about("median nearest-neighbour distance", length))
    used = {dim for dims, _ in variables.values() for dim in dims}
    return Plan(
        probe="sensitivity",
        spec=spec,
        provenance=problem.fingerprints(),
        coords={dim: value for dim, value in coords.items() if dim in used},
        variables=variables,
        walk=("example",),
        measure=probe.measure,
        block=problem.batch_size or len(problem),
        watch="loss",
        finish=probe.finish,
        tell=_tell,
    )


class _Probe:
    """What is measured of a few examples at a time, part by part."""

    def __init__(self, space: Inputs, spec: Spec, classes: int) -> None:
        self.space, self.spec, self.classes = space, spec, classes
        problem = space.problem
        self.near = bool({"radii", "bands"} & set(spec.parts))
        self.variables = measures.variables(
            ["itself", *(["distances"] if self.near else []), *spec.parts],
            classified=norms.classified(problem),
            accurate=problem.correct is not None,
            exact=spec.jacobian == "exact",
        )
        self.summed = [
            name
            for name, (dims, _) in self.variables.items()
            if len(dims) > 1 and not name.endswith(("_stderr", "_floor"))
        ]
        if self.near:
            count = spec.neighbors if spec.tangents and "radii" in spec.parts else 1
            self.nearest, self.around = neighbors(problem.inputs, count)
            self.distance = float(np.median(self.nearest))
            if not self.distance > 0:
                raise ValueError(
                    "the median distance between nearest neighbours is "
                    f"{self.distance}, and radii are multiples of it. Measure examples that "
                    "differ, or --parts norms jacobian noise."
                )
        if "radii" in spec.parts:
            other = torch.float32 if problem.dtype == torch.float64 else torch.float64
            self.other = Inputs(problem.to(problem.device, other))

    def measure(self, cells: Sequence[Cell]) -> Values:
        """Every part of these examples."""
        spec, numbers = self.spec, [cell["example"] for cell in cells]
        examples = Examples.numbered(self.space, numbers)
        values = norms.itself(examples)
        if self.near:
            values["nearest_distance"] = torch.from_numpy(self.nearest[numbers])
        if "norms" in spec.parts:
            values |= norms.gradient_norms(examples)
        if "jacobian" in spec.parts and spec.jacobian == "exact":
            values |= norms.jacobian_norms(examples)
        elif "jacobian" in spec.parts:
            signs = [draw.sign() for draw in self._draws(SIGNS, spec.draws, numbers, self.classes)]
            values |= norms.estimated_jacobian_norms(examples, torch.stack(signs))
        if "radii" in spec.parts:
            values |= self._at_radii(examples, numbers)
        if "noise" in spec.parts:
            noise = self._draws(NOISE, spec.draws, numbers, examples.gradients.shape[1])
            values |= radii.noisy(examples, noise, spec.sigmas)
        if "bands" in spec.parts:
            values |= radii.bands(examples, [step * self.distance for step in spec.steps])
        return {name: value.cpu().numpy() for name, value in values.items()}

    def finish(self, result: xr.Dataset) -> Values:
        """Means and quantiles over the examples, of all directions of a kind together."""
        values = over_kinds(result, self.summed, list(self.spec.directions_by_kind().values()))
        return values | ({"median_distance": np.array(self.distance)} if self.near else {})

    def _at_radii(self, own: Examples, numbers: list[int]) -> Tensors:
        other = Examples.numbered(self.other, numbers)
        wide = own if own.dtype == torch.float64 else other
        directions = self._directions(own, wide, numbers)
        distances = [radius * self.distance for radius in self.spec.radii]
        places = [wide if radius < FINE else own for radius in self.spec.radii]
        return radii.floors(own, other, places, distances) | radii.around(
            places, directions, distances
        )

    def _directions(self, own: Examples, wide: Examples, numbers: list[int]) -> list[Tensor]:
        """Unit directions (n, d), in the order of `Spec.directions_by_kind`."""
        spec = self.spec
        drawn = self._draws(DIRECTIONS, spec.directions, numbers, wide.gradients.shape[1])
        directions = [*(draw.to(wide.gradients) for draw in drawn), wide.gradients]
        directions.append(radii.adversarial(own, ATTACK * self.distance))
        if spec.tangents:
            inputs = self.space.problem.inputs.values()
            rows = torch.from_numpy(np.column_stack([numbers, self.around[numbers]]))
            points = torch.cat([value[rows].flatten(2) for value in inputs], dim=2)
            directions += tangents(points, spec.tangents).unbind(dim=1)
        return [radii.unit(direction) for direction in directions]

    def _draws(self, stream: int, draws: int, numbers: list[int], size: int) -> Iterator[Tensor]:
        return (radii.normal(self.spec.seed, stream, i, numbers, size) for i in range(draws))


def _about(long_name: str, units: str) -> dict[str, str]:
    return {"long_name": long_name, "units": units}


def _tell(result: xr.Dataset) -> list[str]:
    """A few lines of medians: the mean of a heavy tail tells of its largest values."""
    names = ("gradient_l2", "margin_gradient_l2", "jacobian_frobenius")
    lines = [in_words(result, name) for name in names if name in result]
    if "second_difference" in result:
        near = result.sel(radius=ATTACK, method="nearest")
        pairs = zip(near["part"].values, near["second_difference_median"].values, strict=True)
        lines.append(
            f"second difference at {float(near['radius']):g} of the neighbours' distance "
            f"{float(near['median_distance']):.3g} (nat / pixel range²): medians "
            + ", ".join(f"{kind} {value:.3g}" for kind, value in pairs)
            + f"; rounding {float(near['second_difference_floor'].median()):.1g}"
        )
    if "noise_accuracy" in result:
        values = zip(result["noise"].values, result["noise_accuracy_mean"].values, strict=True)
        shown = ", ".join(f"{accuracy:.3f} at {sigma:g}" for sigma, accuracy in values)
        lines.append(f"accuracy under noise: {shown}")
    return lines


PROBE = Probe("sensitivity", Spec, sensitivity)


if __name__ == "__main__":
    from landscape.core.cli import main

    raise SystemExit(main(PROBE))
