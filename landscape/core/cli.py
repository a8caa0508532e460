"""The command line of every probe: flags from its Spec, one line for a mistake, paths on stdout."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import xarray as xr

from checkpoints import interrupts, kernels, options
from checkpoints.device import keep_freed_memory, memory_exhausted, peak_memory
from checkpoints.kernels import Derivatives
from checkpoints.problem import Problem
from checkpoints.reader import one_line
from checkpoints.source import DEFAULT, Source
from checkpoints.whole_file import check_name, shortened
from landscape.core import batch_size
from landscape.core.measurement import measured
from landscape.core.plan import Plan, Probe, Workers, forecast, run
from landscape.core.workers import workers_of_this_process


def main(probe: Probe, arguments: list[str] | None = None) -> int:
    """Measure `probe` of a checkpoint according to the command line.

    Returns:
        0 done, 1 refused with one line on stderr, 130 stopped with the results so far saved;
        argparse itself exits with 2.
    """
    chosen = _parser(probe).parse_args(arguments)
    return guarded(lambda: _measure(probe, chosen))


def guarded(action: Callable[[], int]) -> int:
    """The exit status of `action`, or of the error that ended it, reported in one line on stderr.

    SIGTERM and SIGHUP end it as Ctrl-C does.

    Returns:
        1 refused, or out of memory; 130, 143 or 129 stopped, see `checkpoints.interrupts`.
    """
    log = logging.getLogger("landscape")
    handler = logging.StreamHandler()
    handler.addFilter(_shown)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    interrupts.raise_stopped()
    try:
        with options.given_as_flags():
            return action()
    except (ValueError, OSError) as error:
        say(str(error))
        return 1
    except (RuntimeError, MemoryError) as error:
        if not memory_exhausted(error):
            raise
        say("out of memory. Pass a smaller --batch-size, or fewer --examples.")
        return 1
    except KeyboardInterrupt as stopped:
        say("Stopped. What was measured is saved; the same command continues.")
        return interrupts.status(stopped)


def _shown(record: logging.LogRecord) -> bool:
    """Whether a line of the log is shown: by the first rank alone, and then in one line."""
    record.msg, record.args = one_line(record.getMessage()), None
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Inform the user, once for all ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(one_line(line), file=sys.stderr, flush=True)


def _prepared(problem: Problem, derivatives: Derivatives, out: Path, workers: Workers) -> Problem:
    """The problem as prepared by rank 0, whose kernels must be correct on this rank too."""

    def prepare() -> dict[str, Any]:
        ready = batch_size.prepared(problem, derivatives, out, say)
        errors = ready.provenance["kernel_errors"]
        return {
            "batch_size": ready.batch_size,
            "kernels": ready.kernels,
            "errors": errors,
            "accuracy": ready.correct is not None,
        }

    shared = workers.share("problem", prepare)
    if workers.rank:
        here = kernels.chosen(problem, derivatives, first=shared["kernels"])
        if here.kernels != shared["kernels"]:
            raise ValueError(
                f"rank {workers.rank}: the {shared['kernels']} kernels that rank 0 uses are wrong "
                "on this rank's machine. Start all ranks on machines of one kind."
            )
    provenance = {**problem.provenance, "kernel_errors": shared["errors"]}
    return replace(
        problem,
        batch_size=shared["batch_size"],
        kernels=shared["kernels"],
        correct=problem.correct if shared["accuracy"] else None,
        provenance=provenance,
    )


def _measure(probe: Probe, chosen: argparse.Namespace) -> int:
    workers = workers_of_this_process()
    first = workers.rank == 0
    keep_freed_memory()
    spec = options.from_flags(probe.spec, chosen)
    if not hasattr(chosen, "ckpt"):
        chosen.ckpt = _default_network(probe)
        say(f"--ckpt was not given: {chosen.ckpt}, a network that ships.")
    source = options.from_flags(Source, chosen)
    out = chosen.out or default_name(probe, source, spec)
    check_name(out)
    problem = source.problem(say)
    problem = _prepared(problem, spec.derivatives, out, workers)
    _introduce(problem)
    if chosen.dry_run:
        _foretell(probe.plan(problem, spec), out)
        return 0
    plan, result = measured(
        probe,
        problem,
        spec,
        out,
        say,
        workers,
        save_seconds=chosen.save_seconds,
        show_progress=sys.stderr.isatty(),
    )
    if first:
        _report(plan, result, out, figure=chosen.figure)
    return 0


def _foretell(plan: Plan, out: Path) -> None:
    """What a run would take, in a few lines; nothing is written."""
    found = forecast(plan)
    calls = "" if found.blocks == found.points else f" in {found.blocks} blocks"
    say(f"{found.points} points{calls}, {_amount(found.size)} in {out}; nothing was written.")
    say(
        f"about {_duration(found.seconds)}, from {found.tried} of {found.blocks} that took "
        f"{_duration(found.seconds / found.blocks)} each."
    )
    if peak := peak_memory():
        say(f"memory so far: {_amount(peak)} at its peak.")


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def _amount(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def without_problem(plan: Plan, out: Path, *, figure: bool) -> int:
    """Run a plan that measures no network, in this process, and report it as a probe is."""
    result = run(plan, out, show_progress=sys.stderr.isatty())
    _report(plan, result, out, figure=figure)
    return 0


def _report(plan: Plan, result: xr.Dataset, out: Path, *, figure: bool) -> None:
    """A few lines about the result on stderr, and the paths of all files on stdout."""
    for line in plan.tell(result) if plan.tell else ():
        say(line)
    for path in (out, *plan.extra_files):
        print(one_line(str(path)))
    if figure:
        # The only use of `analysis.figures` in this package: to draw the file just written.
        from analysis.figures import draw_beside

        for path in draw_beside(out):
            print(one_line(str(path)))


def default_name(probe: Probe, source: Source, spec: Any) -> Path:
    """The network, what distinguishes the run, and the probe: `resnet18.to-other.line.surface.h5`.

    What else a run asks for does not change the name: with other options it is refused to continue
    the file, and a name has to be passed.
    """
    usual = probe.spec()
    given = {field.name: getattr(spec, field.name) for field in fields(spec)}
    words = [Path(source.ckpt).stem]
    if given.get("to"):
        words.append(f"to-{Path(given['to']).stem}")
    if given.get("directions") and isinstance(given["directions"], str):
        words.append(f"along-{Path(given['directions']).stem}")
    if given.get("space", "weights") != getattr(usual, "space", "weights"):
        words.append(given["space"])
    if given.get("dimensions") == 1:
        words.append("line")
    if "parts" in given and given["parts"] not in (None, usual.parts):
        words.append("-".join(given["parts"]))
    return Path(shortened(".".join([*words, probe.name, "h5"])))


def _introduce(problem: Problem) -> None:
    provenance = problem.provenance
    data, network = provenance["data"], provenance["checkpoint"]
    say(
        f"{network['file']}: {network['model']} on {data['examples']} examples of {data['name']} "
        f"({data['split']}), {problem.device.type} {str(problem.dtype).removeprefix('torch.')}, "
        f"batches of {problem.batch_size}"
    )


def _default_network(probe: Probe) -> str:
    return probe.ckpt or DEFAULT


def _file(name: str) -> Path:
    if not name:
        raise argparse.ArgumentTypeError("the name is empty; expected that of a file")
    return Path(name)


def _parser(probe: Probe) -> argparse.ArgumentParser:
    summary = (probe.plan.__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(
        prog=f"python -m landscape.{probe.name}",
        usage=f"python -m landscape.{probe.name} [--ckpt FILE] [options]",
        description=f"{summary} The same command again continues a run that was stopped; "
        f"torchrun --nproc-per-node N -m landscape.{probe.name} ... shares it among N processes.",
    )
    parser.add_argument(
        "--out",
        type=_file,
        metavar="FILE",
        help=f"result to write (default: CKPT.{probe.name}.h5, with what distinguishes the run)",
    )
    parser.add_argument(
        "--figure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw the figures next to the result",
    )
    options.add_flags(parser.add_argument_group("what is measured"), probe.spec)
    options.add_flags(parser, Source, {"ckpt": _default_network(probe)})
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say how many points there are and about how long they take, from a few of them",
    )
    parser.add_argument(
        "--save-seconds",
        type=float,
        default=5.0,
        metavar="X",
        help="a killed run loses at most this much work (default: 5)",
    )
    return parser
