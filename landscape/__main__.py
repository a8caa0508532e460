"""The list of commands: python -m landscape."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from landscape.registry import PROBES

OTHERS = {
    "landscape.diffusion": "Attention on a manifold against its drift-diffusion limit.",
    "landscape.study": "Every probe of a study over every network of it.",
    "analysis.figures": "Draw result files, side by side if there are several.",
    "analysis.report": "The page, tables and figures of a study.",
    "checkpoints.train": "Train a network and save it as one self-describing file.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """List the commands; returns the exit status."""
    commands = {
        f"landscape.{name}": (probe.plan.__doc__ or "").splitlines()[0]
        for name, probe in PROBES.items()
    } | OTHERS
    width = max(map(len, commands))
    rows = "\n".join(f"  python -m {name:{width}}  {about}" for name, about in commands.items())
    parser = argparse.ArgumentParser(
        prog="python -m landscape",
        usage="python -m COMMAND [options]",
        description=f"Loss-landscape probes of trained networks. Commands:\n\n{rows}\n\nEach runs "
        "without options (a study and a figure need a name), and says more with --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    parser.print_help()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
