"""What can be measured, by name: one line per probe."""

from __future__ import annotations

from landscape import hessian, interpolate, sensitivity, surface, terms
from landscape.core.plan import Probe

PROBES: dict[str, Probe] = {
    "hessian": hessian.PROBE,
    "interpolate": interpolate.PROBE,
    "sensitivity": sensitivity.PROBE,
    "surface": surface.PROBE,
    "terms": terms.PROBE,
}


def probe_named(name: str) -> Probe:
    """The probe called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PROBES:
        raise ValueError(f"there is no probe {name!r}. Known: {', '.join(PROBES)}.")
    return PROBES[name]
