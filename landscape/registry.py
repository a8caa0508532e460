"""What can be measured, by name: one line per probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from checkpoints.problem import Problem
from landscape import hessian, interpolate, sensitivity, surface
from landscape.core.plan import Plan


@dataclass(frozen=True)
class Probe:
    """A probe's Spec and the function that turns a problem and a Spec into a Plan."""

    spec: type[Any]
    plan: Callable[[Problem, Any], Plan]


PROBES: dict[str, Probe] = {
    "hessian": Probe(hessian.Spec, hessian.hessian),
    "interpolate": Probe(interpolate.Spec, interpolate.interpolate),
    "sensitivity": Probe(sensitivity.Spec, sensitivity.sensitivity),
    "surface": Probe(surface.Spec, surface.surface),
}


def probe_named(name: str) -> Probe:
    """The probe called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PROBES:
        raise ValueError(f"there is no probe {name!r}. Known: {', '.join(PROBES)}.")
    return PROBES[name]
