"""The command line of every probe: flags from its Spec, one line for a mistake, paths on stdout."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from checkpoints import kernels, options
from checkpoints.device import device_named, keep_freed_memory, memory_exhausted
from checkpoints.kernels import Derivatives
from checkpoints.problem import Problem
from checkpoints.source import load_problem
from landscape.core import batch_size
from landscape.core.plan import Probe, Workers, run
from landscape.core.workers import workers_of_this_process

EXAMPLES = 300
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def main(probe: Probe, arguments: list[str] | None = None) -> int:
    """Measure `probe` of a checkpoint as the command line says.

    Returns:
        0 done, 1 refused with one line on stderr, 130 stopped with what was measured saved;
        argparse exits with 2 itself.
    """
    chosen = _parser(probe).parse_args(arguments)
    return guarded(lambda: _measure(probe, chosen))


def guarded(action: Callable[[], int]) -> int:
    """The exit status of `action`, or of what ended it, told in one line on stderr.

    SIGTERM ends it as Ctrl-C does.

    Returns:
        1 refused, or out of memory, 130 stopped.
    """
    log = logging.getLogger("landscape")
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: os.environ.get("RANK", "0") == "0")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with options.given_as_flags():
            return action()
    except (ValueError, OSError) as error:
        say(" ".join(str(error).split("\n")))
        return 1
    except RuntimeError as error:
        if not memory_exhausted(error):
            raise
        say("the memory does not suffice. Pass a smaller --batch-size, or fewer --examples.")
        return 1
    except KeyboardInterrupt:
        say("Stopped. What was measured is saved; the same command continues.")
        return 130


def say(line: str) -> None:
    """Tell the user, once however many ranks there are."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def interrupt(signal_number: int, frame: FrameType | None) -> None:
    """A signal handler: end as Ctrl-C does."""
    raise KeyboardInterrupt


def _numbers(text: str) -> tuple[float, ...]:
    """`0.485,0.456,0.406`, or one number."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _temperature(text: str) -> float | Literal["fit"]:
    if text == "fit":
        return "fit"
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor fit") from None


def _prepared(problem: Problem, derivatives: Derivatives, out: Path, workers: Workers) -> Problem:
    """The problem as rank 0 prepares it; the kernels must be right where this rank runs too."""

    def prepare() -> dict[str, Any]:
        told = batch_size.prepared(problem, derivatives, out, say)
        errors = told.provenance["kernel_errors"]
        return {"batch_size": told.batch_size, "kernels": told.kernels, "errors": errors}

    told = workers.share("problem", prepare)
    if workers.rank:
        here = kernels.chosen(problem, derivatives, first=told["kernels"])
        if here.kernels != told["kernels"]:
            raise ValueError(
                f"rank {workers.rank}: the {told['kernels']} kernels that rank 0 uses are wrong "
                "on this rank's machine. Start all ranks on machines of one kind."
            )
    provenance = {**problem.provenance, "kernel_errors": told["errors"]}
    return replace(
        problem,
        batch_size=told["batch_size"],
        kernels=told["kernels"],
        provenance=provenance,
    )


def _measure(probe: Probe, chosen: argparse.Namespace) -> int:
    workers = workers_of_this_process()
    first = workers.rank == 0
    keep_freed_memory()
    spec = options.from_flags(probe.spec, chosen)
    out = chosen.out or Path(f"{Path(chosen.ckpt).stem}.{probe.name}.h5")
    problem = load_problem(
        chosen.ckpt,
        data=chosen.data,
        root=chosen.data_root,
        size=chosen.size and tuple(chosen.size),
        split=chosen.split,
        examples=chosen.examples,
        model=chosen.model,
        options=dict(chosen.option),
        mean=sum(chosen.mean, ()),
        std=sum(chosen.std, ()),
        batch_norm=chosen.batch_norm,
        calibration=chosen.calibration,
        batch_size=chosen.batch_size,
        temperature=chosen.temperature,
        say=say,
    ).to(device_named(chosen.device, int(os.environ.get("LOCAL_RANK", "0"))), DTYPES[chosen.dtype])
    problem = _prepared(problem, spec.derivatives, out, workers)
    plan = probe.plan(problem, spec)
    _introduce(problem)
    result = run(
        plan,
        out,
        workers=workers,
        save_seconds=chosen.save_seconds,
        show_progress=sys.stderr.isatty(),
    )
    if first:
        for line in plan.tell(result) if plan.tell else ():
            say(line)
        for path in (out, *plan.beside):
            print(path)
        if chosen.figure:
            # Only here does the package know of the other: to draw the file that it has written.
            from analysis.figures import draw_beside

            for path in draw_beside(out):
                print(path)
    return 0


def _introduce(problem: Problem) -> None:
    told = problem.provenance
    data, network = told["data"], told["checkpoint"]
    say(
        f"{network['file']}: {network['model']} on {data['examples']} images of {data['name']} "
        f"({data['split']}), {problem.device.type} {str(problem.dtype).removeprefix('torch.')}, "
        f"batches of {problem.batch_size}"
    )


def _parser(probe: Probe) -> argparse.ArgumentParser:
    summary = (probe.plan.__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(
        prog=f"python -m landscape.{probe.name}",
        usage=f"python -m landscape.{probe.name} --ckpt FILE [options]",
        description=f"{summary} The same command again continues a run that was stopped; "
        f"torchrun --nproc-per-node N -m landscape.{probe.name} ... shares it among N processes.",
    )
    parser.add_argument(
        "--ckpt", required=True, metavar="FILE",
        help="the checkpoint: a path, or one that ships, such as resnet18.pt",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"result to write (default: CKPT.{probe.name}.h5)"
    )
    parser.add_argument(
        "--figure", action=argparse.BooleanOptionalAction, default=True,
        help="draw the figures beside the result",
    )  # fmt: skip
    options.add_flags(parser.add_argument_group("what is measured"), probe.spec)
    data = parser.add_argument_group("on which examples")
    data.add_argument(
        "--data", metavar="NAME",
        help="fashion-mnist, cifar10, cifar100, npz:FILE, folder:DIR, or package.module:function "
        "(default: what the checkpoint was trained on, or the sample of it that ships)",
    )  # fmt: skip
    data.add_argument("--data-root", type=Path, metavar="DIR", help="folder that holds its files")
    data.add_argument(
        "--split", choices=("train", "test"), default="test", help="of the data (default: test)"
    )
    data.add_argument(
        "--examples", type=int, default=EXAMPLES, metavar="N",
        help=f"how many, balanced over the classes; 0 for all (default: {EXAMPLES})",
    )  # fmt: skip
    data.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="resize the images of folder:DIR"
    )
    foreign = parser.add_argument_group("for a checkpoint that does not say")
    foreign.add_argument(
        "--model", metavar="NAME",
        help="its architecture: resnet20, path/to/file.py:build or package.module:build",
    )  # fmt: skip
    foreign.add_argument(
        "--option", action="append", default=[], type=options.key_value, metavar="NAME=VALUE",
        help="a keyword argument of the architecture, such as num_classes=10",
    )  # fmt: skip
    foreign.add_argument(
        "--mean", type=_numbers, nargs="+", default=[], metavar="X",
        help="of its normalisation, one value a channel or one for all, for inputs in [0, 1]",
    )  # fmt: skip
    foreign.add_argument(
        "--std", type=_numbers, nargs="+", default=[], metavar="X", help="likewise"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--batch-norm", choices=("running", "recompute"), default="running",
        help="use the running statistics, or recompute them at every point (default: running)",
    )  # fmt: skip
    how.add_argument(
        "--calibration", type=int, default=500, metavar="N",
        help="examples that statistics are recomputed from (default: 500)",
    )  # fmt: skip
    how.add_argument(
        "--temperature", type=_temperature, default=1.0, metavar="X|fit",
        help="divide the logits by it; fit: by what suits held-out images best, so that networks "
        "are compared at equal confidence (default: 1)",
    )  # fmt: skip
    how.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU where there is one)")
    how.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of weights and inputs (default: float32)",
    )
    how.add_argument(
        "--batch-size",
        type=int,
        default=0,
        metavar="N",
        help="in a forward pass (default: measured)",
    )
    how.add_argument(
        "--save-seconds", type=float, default=5.0, metavar="X",
        help="a killed run loses at most this much work (default: 5)",
    )  # fmt: skip
    return parser
