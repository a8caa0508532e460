"""What a result file holds: its arrays and their coordinates, in one notation for all probes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from checkpoints.problem import Problem

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Variable:
    """An array that is measured, float64, NaN until it is.

    Args:
        dims: names of its axes; each has a coordinate of that name.
        label: what it is, as on an axis of a figure.
        unit: `1` where there is none.
    """

    dims: tuple[str, ...]
    label: str
    unit: str = "1"

    @property
    def attributes(self) -> dict[str, Any]:
        """As the file has them, after the CF conventions."""
        return {"long_name": self.label, "units": self.unit}


@dataclass(frozen=True, eq=False)
class Coordinate:
    """What is known along an axis before anything is measured: numbers, or texts.

    Args:
        values: one for each entry of its dims.
        label: what it is.
        unit: `1` where there is none.
        dims: the axes that it runs along; by default the one called by its own name.
        more: further attributes.
    """

    values: Any
    label: str
    unit: str = "1"
    dims: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def attributes(self) -> dict[str, Any]:
        """As the file has them, after the CF conventions."""
        return {"long_name": self.label, "units": self.unit, **self.more}

    @property
    def array(self) -> NDArray[Any]:
        """The values; texts as objects, which HDF5 stores as UTF-8 of any length."""
        values = np.asarray(self.values)
        return values.astype(object) if values.dtype.kind == "U" else values


def in_units(attributes: Mapping[str, Any], units: Mapping[str, str]) -> dict[str, Any]:
    """Attributes with the units of a problem whose loss is not in nat, or inputs no images.

    Args:
        attributes: of a variable, with units made of `nat` and `pixel range`.
        units: `Problem.loss_unit` and `input_unit`, as `loss` and `input`; empty: as they are.
    """
    if not units:
        return dict(attributes)
    found = re.sub(r"\bnat\b", units["loss"], attributes["units"])
    return {**attributes, "units": found.replace("pixel range", units["input"])}


Variables: TypeAlias = dict[str, Variable]
Coordinates: TypeAlias = dict[str, Coordinate]


def numbered(count: int, label: str) -> Coordinate:
    """The coordinate of an axis whose entries have a number only."""
    return Coordinate(np.arange(count), label)


def of_examples(problem: Problem) -> Coordinates:
    """The axis `example`, and where each example comes from.

    Returns:
        `example`, its position in this measurement; `index`, its position in the data set; and
        `label`, its class, where targets are classes.
    """
    dims = ("example",)
    coordinates = {
        "example": numbered(len(problem), "example"),
        "index": Coordinate(problem.indices, problem.index_label, dims=dims),
    }
    targets = problem.targets
    if targets.ndim == 1 and not targets.is_floating_point():
        coordinates["label"] = Coordinate(targets.cpu().numpy(), "class", dims=dims)
    return coordinates
