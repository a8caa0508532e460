"""The measurement of a batch of examples, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from checkpoints.problem import Tensors
from landscape.core.plan import Cell, Values
from landscape.core.spaces import Inputs
from landscape.core.summary import over_kinds
from landscape.sensitivity import finite_differences, gradients, variables
from landscape.sensitivity.examples import Examples
from landscape.sensitivity.neighbors import neighbors, tangents
from landscape.sensitivity.spec import Spec

DIRECTIONS, SIGNS, NOISE = range(3)  # streams of random numbers
ATTACK = 0.1  # the radius at which the adversarial direction is sought
FINE = 0.01  # below this radius float32 rounding is not small compared with the differences


class Measurement:
    """Measures a few examples at a time, part by part."""

    def __init__(self, space: Inputs, spec: Spec, classes: int) -> None:
        self.space, self.spec, self.classes = space, spec, classes
        problem = space.problem
        self.near = bool({"radii", "bands"} & set(spec.parts))
        self.variables = variables.variables(
            ["itself", *(["distances"] if self.near else []), *spec.parts],
            classified=gradients.classified(problem),
            accurate=problem.correct is not None,
            exact=spec.jacobian == "exact",
        )
        self.summed = [
            name
            for name, each in self.variables.items()
            if len(each.dims) > 1 and not name.endswith(("_stderr", "_floor"))
        ]
        if self.near:
            count = spec.neighbors if spec.tangents and "radii" in spec.parts else 1
            reference, own = problem.neighbourhood()
            self.reference = reference
            self.nearest, self.around = neighbors(problem.inputs, reference, own, count)
            every = np.arange(len(next(iter(reference.values()))))
            self.distance = float(np.median(neighbors(reference, reference, every, 1)[0]))
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
        """All parts, for these examples."""
        spec, numbers = self.spec, [cell["example"] for cell in cells]
        examples = Examples.numbered(self.space, numbers)
        values = gradients.itself(examples)
        if self.near:
            values["nearest_distance"] = torch.from_numpy(self.nearest[numbers])
        if "norms" in spec.parts:
            values |= gradients.gradient_norms(examples)
        if "jacobian" in spec.parts and spec.jacobian == "exact":
            values |= gradients.jacobian_norms(examples)
        elif "jacobian" in spec.parts:
            signs = [draw.sign() for draw in self._draws(SIGNS, spec.draws, numbers, self.classes)]
            values |= gradients.estimated_jacobian_norms(examples, torch.stack(signs))
        if "radii" in spec.parts:
            values |= self._at_radii(examples, numbers)
        if "noise" in spec.parts:
            noise = self._draws(NOISE, spec.draws, numbers, examples.gradients.shape[1])
            values |= finite_differences.noisy(examples, noise, spec.sigmas)
        if "bands" in spec.parts:
            values |= finite_differences.bands(
                examples, [step * self.distance for step in spec.steps]
            )
        return {name: value.cpu().numpy() for name, value in values.items()}

    def finish(self, result: xr.Dataset) -> Values:
        """Means and quantiles over the examples, with all directions of a kind combined."""
        values = over_kinds(result, self.summed, list(self.spec.directions_by_kind().values()))
        return values | ({"median_distance": np.array(self.distance)} if self.near else {})

    def _at_radii(self, own: Examples, numbers: list[int]) -> Tensors:
        other = Examples.numbered(self.other, numbers)
        wide = own if own.dtype == torch.float64 else other
        directions = self._directions(own, wide, numbers)
        distances = [radius * self.distance for radius in self.spec.radii]
        places = [wide if radius < FINE else own for radius in self.spec.radii]
        return finite_differences.floors(own, other, places, distances) | finite_differences.around(
            places, directions, distances
        )

    def _directions(self, own: Examples, wide: Examples, numbers: list[int]) -> list[Tensor]:
        """Unit directions (n, d), in the order of `Spec.directions_by_kind`."""
        spec = self.spec
        drawn = self._draws(DIRECTIONS, spec.directions, numbers, wide.gradients.shape[1])
        directions = [*(draw.to(wide.gradients) for draw in drawn), wide.gradients]
        directions.append(finite_differences.adversarial(own, ATTACK * self.distance))
        if spec.tangents:
            around = torch.from_numpy(self.around[numbers])
            points = torch.cat(
                [
                    torch.cat(
                        [value[numbers][:, None], self.reference[name][around]], dim=1
                    ).flatten(2)
                    for name, value in self.space.problem.inputs.items()
                ],
                dim=2,
            )
            directions += tangents(points, spec.tangents).unbind(dim=1)
        return [finite_differences.unit(direction) for direction in directions]

    def _draws(self, stream: int, draws: int, numbers: list[int], size: int) -> Iterator[Tensor]:
        return (
            finite_differences.normal(self.spec.seed, stream, i, numbers, size)
            for i in range(draws)
        )
