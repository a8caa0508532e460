"""The contents of a result file: arrays and their coordinates, in one notation for all probes."""

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
    """A measured array, float64, NaN until it is measured.

    Args:
        dims: names of its axes; each has a coordinate of that name.
        label: as on an axis of a figure.
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
    """Numbers or texts along an axis, known before anything is measured.

    Args:
        values: one for each entry of its dims.
        label: as on an axis of a figure.
        unit: `1` where there is none.
        dims: its axes; by default the one of its own name.
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
    """The coordinate of an axis whose entries are only numbered."""
    return Coordinate(np.arange(count), label)


def of_examples(problem: Problem) -> Coordinates:
    """The axis `example`, and the origin of each example.

    Returns:
        `example`, its position in this measurement; `index`, its position in the data set; and
        `label`, its class, if targets are classes.
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
