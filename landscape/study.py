"""Every probe of a study over every network of it: python -m landscape.study STUDY."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import FrameType

import h5py
import torch

from checkpoints import allocator, checkpoint
from checkpoints.checkpoint import Checkpoint
from checkpoints.device import device_named
from checkpoints.problem import Problem, load_problem
from landscape.core import spaces, store, study_file
from landscape.core.cli import DTYPES, guarded, interrupt, say
from landscape.core.plan import Plan, run
from landscape.core.study_file import Study
from landscape.core.study_folder import MANIFEST, Manifest, Network, Run, finished
from landscape.registry import probe_named

_ended = threading.Event()  # in a process of several: it was told to end


def measured(
    task: Run, network: Network, labels: Sequence[str], *, show_progress: bool
) -> Iterator[tuple[str, str]]:
    """Measure some probes of one network, one result file each.

    What a file holds already is kept where it belongs to this measurement; a damaged file is
    measured anew.

    Args:
        task: the study.
        network: one of its networks.
        labels: of the probes.
        show_progress: a bar on stderr.

    Yields:
        Each label when it is done, and why there is no result, empty where there is one.
    """
    problem: Problem | None = None
    for label in labels:
        path = task.out / network.result(label)
        try:
            problem = problem or _problem(network, task.device)
            _discard_damaged(path)
            entry = probe_named(task.study.probes[label][0])
            spec = entry.spec(**task.spec(network, label))
            plan = entry.plan(spaces.prepared(problem, spec.derivatives, path), spec)
            _check_endpoints(task.study, label, plan)
            run(plan, path, show_progress=show_progress)
        except Exception as error:  # whatever it is, the other results do not depend on it
            known = isinstance(error, ValueError | OSError)
            reason = " ".join(str(error).split())
            yield label, reason if known else f"{type(error).__name__}: {reason}"
        else:
            yield label, ""


def _problem(network: Network, device: torch.device) -> Problem:
    options = dict(network.options)
    dtype = DTYPES[options.pop("dtype", "float32")]
    return load_problem(network.file, **options).to(device, dtype)


def _discard_damaged(path: Path) -> None:
    """Remove a result that cannot be read. A file of something else stays, and is refused later."""
    if not path.is_file():
        return
    try:
        with h5py.File(path) as file:
            if file.attrs.get("schema_version") != store.SCHEMA_VERSION:
                return
            for array in file.values():
                array[...]
    except (OSError, KeyError, ValueError):
        say(f"{path} is damaged, and is measured again.")
        path.unlink()


def _check_endpoints(study: Study, label: str, plan: Plan) -> None:
    for endpoint in study.endpoints:
        if endpoint.probe != label:
            continue
        if endpoint.variable not in plan.variables:
            raise ValueError(
                f"endpoint {endpoint.name!r}: {label} measures no {endpoint.variable!r}. It "
                f"measures {', '.join(plan.variables)}."
            )
        dims = plan.variables[endpoint.variable][0]
        along = [name for name, (own, _) in plan.variables.items() if own in [(d,) for d in dims]]
        other = [name for name in endpoint.select if name not in (*dims, *along)]
        if other:
            raise ValueError(
                f"endpoint {endpoint.name!r}: {endpoint.variable} cannot be selected by "
                f"{other[0]!r}; it has {', '.join(dims) or 'no dims'}."
            )


def _make_untrained(task: Run, network: Network) -> None:
    """Save the network that training would start from with this seed, unless it is there."""
    arm, path = network.arm, Path(network.file)
    told = checkpoint.load(task.study.checkpoint(arm.reference, network.seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(network.seed)
        state = checkpoint.build(arm.model, arm.options).state_dict()
    made = Checkpoint(
        state, arm.model, arm.options, told.classes, told.input_shape, told.mean, told.std,
        told.data, seed=network.seed,
    )  # fmt: skip
    if path.is_file():
        try:
            old = checkpoint.load(path)
        except ValueError:  # damaged
            old = Checkpoint({}, "")
        if _same(old, made):
            return
    with tempfile.TemporaryDirectory(dir=task.out) as folder:  # others may be making it too
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
    """The results of `measured`; none where the process is told to end, which saves its own."""
    if _ended.is_set():
        return []
    signal.signal(signal.SIGTERM, interrupt)
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
    """The results of `measured`, network by network, from several processes."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when a process starts
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker) as pool:
        futures = {pool.submit(_whole, task, network, labels): network for network in networks}
        try:
            for future in as_completed(futures):
                try:
                    rows = future.result()
                except BrokenProcessPool:
                    rows = [(label, "its process was killed") for label in labels]
                yield from ((futures[future], *row) for row in rows)
        except BaseException:  # the others must not go on alone
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin_worker() -> None:
    allocator.keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, and tells
    signal.signal(signal.SIGTERM, _end)


def _end(signal_number: int, frame: FrameType | None) -> None:
    """Between two networks nothing is to be interrupted: the next is not begun."""
    _ended.set()


def main(arguments: list[str] | None = None) -> int:
    """Measure a study as the command line says.

    Returns:
        0 all that was asked for is there, 1 refused, or something is missing, with a line each on
        stderr, 130 stopped with what was measured saved; argparse exits with 2 itself.
    """
    chosen = _parser().parse_args(arguments)
    allocator.keep_freed_memory()
    return guarded(lambda: _measure(chosen))


def _measure(chosen: argparse.Namespace) -> int:
    study = study_file.read(chosen.study)
    task = Run(study, chosen.out or Path(f"{study.name}.study"), device_named(chosen.device))
    networks = task.networks()
    asked = [
        network
        for network in networks
        if (not chosen.arms or network.arm.name in chosen.arms)
        and (not chosen.seeds or network.seed in chosen.seeds)
    ]
    for flag, given, known in (
        ("--only", chosen.only, list(study.probes)),
        ("--arms", chosen.arms, [arm.name for arm in study.arms]),
        ("--seeds", chosen.seeds, sorted({network.seed for network in networks})),
    ):
        unknown = [value for value in given or () if value not in known]
        if unknown:
            raise ValueError(f"{flag} {unknown[0]}: needed: some of {', '.join(map(str, known))}.")
    labels = [label for label in study.probes if not chosen.only or label in chosen.only]
    if chosen.jobs < 1:
        raise ValueError(f"--jobs {chosen.jobs}; needed: at least 1.")
    if chosen.dry_run:
        return _list(task, asked, labels)
    store.check_writable(task.out / MANIFEST)
    manifest = Manifest(task)
    manifest.begin(amend=chosen.amend)
    unusable = {}
    for network in networks:
        try:
            if network.arm.model:
                _make_untrained(task, network)
            manifest.describe(network)
        except ValueError as error:
            unusable[str(network)] = " ".join(str(error).split())
            # Of the others, a process beside this one may know better.
            for label in study.probes if network in asked else ():
                manifest.tell(network, label, unusable[str(network)])
    manifest.write()
    failed, total = 0, len(asked) * len(labels)
    results = _results(task, asked, labels, unusable, chosen.jobs)
    for done, (network, label, reason) in enumerate(results, 1):
        failed += bool(reason)
        say(f"{done}/{total} {network}, {label}: {reason or 'done'}")
        if store.BUSY not in reason:  # else it is for that process to tell
            manifest.tell(network, label, reason)
        manifest.write()
    print(task.out)
    if failed:
        say(f"{failed} of {total} results are missing; {manifest.path} has the commands.")
    return int(failed > 0)


def _results(
    task: Run, asked: Sequence[Network], labels: Sequence[str], unusable: dict[str, str], jobs: int
) -> Iterator[tuple[Network, str, str]]:
    """Each result that was asked for, with the reason where there is none."""
    usable = [network for network in asked if str(network) not in unusable]
    for network in asked:
        if str(network) in unusable:
            yield from ((network, label, unusable[str(network)]) for label in labels)
    if jobs > 1:
        yield from _spread(task, usable, labels, jobs)
        return
    for network in usable:
        rows = measured(task, network, labels, show_progress=sys.stderr.isatty())
        yield from ((network, *row) for row in rows)


def _list(task: Run, networks: Sequence[Network], labels: Sequence[str]) -> int:
    count = 0
    for network in networks:
        for label in labels:
            there = finished(task.out / network.result(label))
            count += not there
            print("there     " if there else "to measure", task.command(network, label))
    say(f"{count} of {len(networks) * len(labels)} results to measure.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m landscape.study",
        description="Measure every probe of a study on every network of it. The same command again "
        "continues a study that was stopped.",
    )
    parser.add_argument(
        "study", metavar="STUDY",
        help="a study file, or the name of one that ships: demo, fashion-mnist, cifar10",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of results (default: STUDY.study)"
    )
    part = parser.add_argument_group("a part of it")
    part.add_argument("--only", nargs="+", metavar="LABEL", help="these probes")
    part.add_argument("--arms", nargs="+", metavar="NAME", help="these arms")
    part.add_argument("--seeds", nargs="+", type=int, metavar="N", help="these seeds")
    part.add_argument(
        "--dry-run", action="store_true", help="list the results and their commands, and stop"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU where there is one)")
    how.add_argument(
        "--jobs", type=int, default=1, metavar="N",
        help="networks that are measured at once, each by a process with its share of the cores "
        "(default: 1)",
    )  # fmt: skip
    how.add_argument(
        "--amend", action="store_true",
        help="go on although the study file has changed since the folder was begun; the change is "
        "recorded",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
