"""All probes of a study on all of its networks: python -m landscape.study STUDY."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.study import MANIFEST
from checkpoints.device import device_named, keep_freed_memory
from checkpoints.reader import one_line
from landscape.core import store
from landscape.core.cli import guarded, say
from landscape.study import file
from landscape.study.folder import Manifest, Network, Run, finished
from landscape.study.measure import make_untrained, results


def main(arguments: list[str] | None = None) -> int:
    """Measure a study according to the command line.

    Returns:
        0 all requested results exist, 1 refused or some are missing, with one line each on stderr,
        130 stopped, with the results so far saved; argparse itself exits with 2.
    """
    chosen = _parser().parse_args(arguments)
    keep_freed_memory()
    return guarded(lambda: _measure(chosen))


def _measure(chosen: argparse.Namespace) -> int:
    study = file.read(chosen.study)
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
            raise ValueError(f"{flag} {unknown[0]}; expected some of {', '.join(map(str, known))}.")
    labels = [label for label in study.probes if not chosen.only or label in chosen.only]
    if chosen.jobs < 1:
        raise ValueError(f"--jobs {chosen.jobs}; expected at least 1.")
    if chosen.dry_run:
        return _list(task, asked, labels)
    store.check_writable(task.out / MANIFEST)
    manifest = Manifest(task)
    manifest.begin(amend=chosen.amend)
    unusable = {}
    for network in networks:
        try:
            if network.arm.model:
                make_untrained(task, network)
            manifest.describe(network)
        except ValueError as error:
            unusable[str(network)] = " ".join(str(error).split())
            # Another process may know more about the others.
            for label in study.labels(network.arm) if network in asked else ():
                manifest.tell(network, label, unusable[str(network)])
    manifest.write()
    failed, total = 0, sum(len(task.asked(network, labels)) for network in asked)
    rows = results(task, asked, labels, unusable, chosen.jobs)
    for done, (network, label, reason) in enumerate(rows, 1):
        failed += bool(reason)
        say(f"{done}/{total} {network}, {label}: {reason or 'done'}")
        if store.BUSY not in reason:  # else that process reports it
            manifest.tell(network, label, reason)
        manifest.write()
    print(one_line(str(task.out)))
    if failed:
        say(f"{failed} of {total} results are missing; {manifest.path} has the commands.")
    return int(failed > 0)


def _list(task: Run, networks: Sequence[Network], labels: Sequence[str]) -> int:
    count = total = 0
    for network in networks:
        for label in task.asked(network, labels):
            there = finished(task.out / network.result(label))
            total += 1
            count += not there
            state = "there     " if there else "to measure"
            print(state, one_line(task.command(network, label)))
    say(f"{count} of {total} results to measure.")
    missing = [network for network in networks if not network.is_there()]
    if missing:
        say(
            f"{len(missing)} of {len(networks)} networks are missing, such as {missing[0].file}. "
            "Train them, or run the study from the folder that its file expects."
        )
    return int(bool(missing))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m landscape.study",
        description="Measure every probe of a study on every network of it. The same command again "
        "continues a study that was stopped.",
    )
    parser.add_argument(
        "study",
        metavar="STUDY",
        help="a study file, or the name of one that ships: demo, fashion-mnist, cifar10, "
        "spatial-attention, cross-attention",
    )
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
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="networks that are measured at once, each by a process with its share of the cores "
        "(default: 1)",
    )
    how.add_argument(
        "--amend",
        action="store_true",
        help="go on although the study file has changed since the folder was begun; the change is "
        "recorded",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
