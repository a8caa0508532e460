"""The commands that there are: python -m analysis."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

COMMANDS = {
    "analysis.figures": "Draw result files: python -m analysis.figures resnet18.surface.h5",
    "analysis.report": "The page of a study: python -m analysis.report results/fashion-mnist",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """List the commands; returns the exit status."""
    rows = "\n".join(f"  python -m {name:<17} {about}" for name, about in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        usage="python -m COMMAND [options]",
        description=f"Result files, understood. Commands:\n\n{rows}\n\nEach says more with --help; "
        "python -m landscape lists the commands that measure.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    parser.print_help()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
