"""Loss-landscape probes: how a trained network is measured.

`python -m landscape.<probe> --ckpt FILE` measures from the command line; in Python,
`landscape.measure("surface", problem)` gives the same result as an `xarray.Dataset`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints import interrupts

if TYPE_CHECKING:
    import xarray as xr

    from checkpoints.problem import Problem

__all__ = ["__version__", "measure"]

__version__ = "0.1.0"

interrupts.quiet_while_importing()


def measure(
    probe: str, problem: Problem, *, out: Path | str | None = None, **spec: Any
) -> xr.Dataset:
    """Measure one probe of one problem.

    Args:
        probe: a name in `landscape.registry.PROBES`, such as `surface`.
        problem: from `checkpoints.problem`: `Problem.of(model, batches, loss)` or `load_problem`.
        out: a result file to save to and to continue from; None keeps the result in memory.
        **spec: fields of the probe's `Spec`; `to` may also be a module, a Problem or a state dict,
            and `directions` a list of {name: tensor}.

    Returns:
        The result, as `xarray.open_dataset(out, engine="h5netcdf")` would give it.

    Raises:
        ValueError: an unknown probe, a spec that cannot be measured, a file of another run.
    """
    # Imported late, so that `python -m landscape.surface` finds its own module not yet imported.
    from checkpoints.options import in_callers_words
    from checkpoints.problem import Problem
    from landscape.core.batch_size import prepared
    from landscape.core.ends import taken
    from landscape.core.measurement import measured as measure_in_batches
    from landscape.core.spaces import log
    from landscape.registry import probe_named

    if not isinstance(problem, Problem):
        raise ValueError(
            f"the problem is a {type(problem).__name__}; expected a Problem, such as load_problem "
            "or Problem.of returns."
        )
    entry = probe_named(probe)
    problem, spec = taken(problem, spec)
    known = [field.name for field in fields(entry.spec)]
    unknown = [name for name in spec if name not in known]
    if unknown:
        raise ValueError(f"{probe} has no option {unknown[0]}. Known: {', '.join(known)}.")
    path = Path(out) if out is not None else None

    @in_callers_words
    def measured() -> xr.Dataset:
        chosen = entry.spec(**spec)
        ready = prepared(problem, chosen.derivatives, path, log.warning)
        return measure_in_batches(entry, ready, chosen, path, log.warning)[1]

    return measured()
