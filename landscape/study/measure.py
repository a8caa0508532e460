"""Probes of the networks of a study, in one process or several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import FrameType

import h5py
import torch

from analysis import result_file
from analysis.upgrade import SCHEMA_VERSION
from checkpoints import checkpoint, interrupts, loading
from checkpoints.checkpoint import Checkpoint
from checkpoints.device import keep_freed_memory
from checkpoints.problem import Problem
from checkpoints.source import Source
from landscape.core import batch_size, measurement
from landscape.core.cli import say
from landscape.core.plan import Plan
from landscape.registry import probe_named
from landscape.study.file import Study
from landscape.study.folder import Network, Run

_ended = threading.Event()  # set when this worker process is asked to end


def measured(
    task: Run, network: Network, labels: Sequence[str], *, show_progress: bool
) -> Iterator[tuple[str, str]]:
    """Measure some probes of one network, one result file each.

    The contents of a file of the same measurement are kept; a damaged file is measured again.

    Args:
        task: the study.
        network: one of its networks.
        labels: of the probes.
        show_progress: a bar on stderr.

    Yields:
        Each label when it is done, with the reason why there is no result, or an empty text.
    """
    problem: Problem | None = None
    for label in task.asked(network, labels):
        path = task.out / network.result(label)
        try:
            problem = problem or _problem(network, task.device)
            _discard_damaged(path)
            entry = probe_named(task.study.probes[label][0])
            spec = entry.spec(**task.spec(network, label))
            ready = batch_size.prepared(problem, spec.derivatives, path)
            check = partial(_check_endpoints, task.study, label)
            measurement.measured(
                entry, ready, spec, path, say, check=check, show_progress=show_progress
            )
        except Exception as error:  # any error; the other results do not depend on it
            known = isinstance(error, ValueError | OSError)
            reason = " ".join(str(error).split())
            yield label, reason if known else f"{type(error).__name__}: {reason}"
        else:
            yield label, ""


def _problem(network: Network, device: torch.device) -> Problem:
    return Source(network.file, device=str(device), **network.options).problem()


def _discard_damaged(path: Path) -> None:
    """Move a damaged result out of the way. Another kind of file stays, and is refused later."""
    if not path.is_file() or (path.stat().st_size and not h5py.is_hdf5(path)):
        return
    try:
        with h5py.File(path) as file:
            if file.attrs.get("schema_version") not in range(1, SCHEMA_VERSION + 1):
                return
        result_file.read(path)
    except (OSError, ValueError):
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        say(f"{path} is damaged: moved to {aside.name}, and measured again.")


def _check_endpoints(study: Study, label: str, plan: Plan) -> None:
    for endpoint in study.endpoints:
        if endpoint.probe != label:
            continue
        if endpoint.variable not in plan.variables:
            raise ValueError(
                f"endpoint {endpoint.name!r}: {label} measures no {endpoint.variable!r}. It "
                f"measures {', '.join(plan.variables)}."
            )
        dims = plan.variables[endpoint.variable].dims
        own = {name: each.dims for name, each in plan.variables.items()}
        own |= {name: each.dims for name, each in plan.coords.items()}
        along = [name for name, of in own.items() if of in [(dim,) for dim in dims]]
        other = [name for name in endpoint.select if name not in (*dims, *along)]
        if other:
            raise ValueError(
                f"endpoint {endpoint.name!r}: {endpoint.variable} cannot be selected by "
                f"{other[0]!r}; it has {', '.join(dims) or 'no dims'}."
            )


def make_untrained(task: Run, network: Network) -> None:
    """Save the network that training would start from with this seed, unless it is there."""
    arm, path = network.arm, Path(network.file)
    reference = loading.load(task.study.checkpoint(arm.reference, network.seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(network.seed)
        state = checkpoint.build(arm.model, arm.options).state_dict()
    made = Checkpoint(
        state,
        arm.model,
        arm.options,
        reference.classes,
        reference.input_shape,
        reference.mean,
        reference.std,
        reference.data,
        seed=network.seed,
    )
    if path.is_file():
        try:
            old = loading.load(path)
        except ValueError:  # damaged
            old = Checkpoint({}, "")
        if _same(old, made):
            return
    with tempfile.TemporaryDirectory(dir=task.out) as folder:  # others may create it too
        checkpoint.save(made, Path(folder) / path.name)
        (Path(folder) / path.name).replace(path)


def _same(old: Checkpoint, made: Checkpoint) -> bool:
    described = ("model", "options", "mean", "std", "data", "seed")
    return (
        all(getattr(old, name) == getattr(made, name) for name in described)
        and set(old.state_dict) == set(made.state_dict)
        and all(torch.equal(old.state_dict[name], value) for name, value in made.state_dict.items())
    )


def _whole(task: Run, network: Network, labels: Sequence[str]) -> list[tuple[str, str]]:
    """The results of `measured`; none if this process was asked to end, which saves its results."""
    if _ended.is_set():
        return []
    interrupts.raise_stopped()
    try:
        return list(measured(task, network, labels, show_progress=False))
    except KeyboardInterrupt:
        _ended.set()
        return []
    finally:
        signal.signal(signal.SIGTERM, _end)


def _spread(
    task: Run, networks: Sequence[Network], labels: Sequence[str], jobs: int
) -> Iterator[tuple[Network, str, str]]:
    """The results of `measured` for each network, from several processes."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when a process starts
    context = multiprocessing.get_context("spawn")
    lost: list[Network] = []
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker) as pool:
        futures = {pool.submit(_whole, task, network, labels): network for network in networks}
        try:
            for future in as_completed(futures):
                try:
                    rows = future.result()
                except BrokenProcessPool:  # one killed worker fails all that were waiting
                    lost.append(futures[future])
                    continue
                yield from ((futures[future], *row) for row in rows)
        except BaseException:  # the others must not continue without it
            for process in multiprocessing.active_children():
                process.terminate()
            # Wait for the pool's own thread: at the exit of Python it would be woken as it closes.
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for network in lost:  # one at a time, to find the one that kills its process
        try:
            with ProcessPoolExecutor(1, mp_context=context, initializer=_begin_worker) as pool:
                rows = pool.submit(_whole, task, network, labels).result()
        except BrokenProcessPool:
            rows = [(label, "its process was killed") for label in task.asked(network, labels)]
        yield from ((network, *row) for row in rows)


def _begin_worker() -> None:
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process receives it too
    signal.signal(signal.SIGTERM, _end)


def _end(signal_number: int, frame: FrameType | None) -> None:
    """Between two networks there is nothing to interrupt: the next one is not started."""
    _ended.set()


def results(
    task: Run, asked: Sequence[Network], labels: Sequence[str], unusable: dict[str, str], jobs: int
) -> Iterator[tuple[Network, str, str]]:
    """Each requested result, with the reason if it is missing."""
    usable = [network for network in asked if str(network) not in unusable]
    for network in asked:
        if str(network) in unusable:
            reason = unusable[str(network)]
            yield from ((network, label, reason) for label in task.asked(network, labels))
    if jobs > 1:
        yield from _spread(task, usable, labels, jobs)
        return
    for network in usable:
        rows = measured(task, network, labels, show_progress=sys.stderr.isatty())
        yield from ((network, *row) for row in rows)
