"""The measurement of a prepared problem, in batches that fit the memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from checkpoints.device import memory_exhausted
from checkpoints.problem import Problem
from landscape.core import store
from landscape.core.plan import Plan, Probe, Workers, run


def measured(
    probe: Probe,
    problem: Problem,
    spec: Any,
    path: Path | None,
    say: Callable[[str], None],
    workers: Workers | None = None,
    *,
    check: Callable[[Plan], None] = lambda plan: None,
    **how: Any,
) -> tuple[Plan, xr.Dataset]:
    """Plan and run a probe; where memory runs out, with half the batch, as often as it takes.

    Batches change results by rounding error alone. A result file that was begun with larger ones
    is continued, and records the smaller size.

    Args:
        probe: what is measured.
        problem: with kernels and batch size, see `batch_size.prepared`.
        spec: the probe's.
        path: the result file, if any.
        say: called with one line where a batch is halved.
        workers: the processes that share the work; several do not change their batch.
        check: called with the plan before anything is measured; raises to refuse it.
        **how: further arguments of `plan.run`.

    Returns:
        The plan and the whole result.
    """
    alone = workers is None or workers.size == 1
    tried: list[int] = []
    while True:
        try:
            plan = probe.plan(problem, spec)
            check(plan)
            if tried and path is not None:
                store.record_smaller_batch(path, plan.blank(), tried)
            return plan, run(plan, path, workers=workers, **how)
        except (RuntimeError, MemoryError) as error:
            if not memory_exhausted(error) or not alone or problem.batch_size < 2:
                raise
        # Out of the except clause, where the error's traceback would keep the memory.
        tried.append(problem.batch_size)
        problem = replace(problem, batch_size=problem.batch_size // 2)
        say(f"out of memory: continuing with batches of {problem.batch_size} examples.")
