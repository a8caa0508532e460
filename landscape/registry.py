"""The probes by name: one line per probe."""

from __future__ import annotations

from pkgutil import resolve_name

from landscape.core.plan import Probe

PLACES = {
    "attention": "landscape.attention:PROBE",
    "hessian": "landscape.hessian:PROBE",
    "interpolate": "landscape.interpolate:PROBE",
    "sensitivity": "landscape.sensitivity:PROBE",
    "sharpness": "landscape.sharpness:PROBE",
    "surface": "landscape.surface:PROBE",
    "terms": "landscape.terms:PROBE",
    "trajectory": "landscape.trajectory:PROBE",
}

PROBES: dict[str, Probe] = {name: resolve_name(place) for name, place in PLACES.items()}


def probe_named(name: str) -> Probe:
    """The probe called `name`.

    Raises:
        ValueError: there is no such probe.
    """
    if name not in PROBES:
        raise ValueError(f"there is no probe {name!r}. Known: {', '.join(PROBES)}.")
    return PROBES[name]
