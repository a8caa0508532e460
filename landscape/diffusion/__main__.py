"""The command: python -m landscape.diffusion --manifold sphere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from checkpoints import options
from landscape.core.cli import guarded, without_problem
from landscape.diffusion.convergence import convergence
from landscape.diffusion.spec import Spec


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m landscape.diffusion",
        description="Does attention converge to drift-diffusion? Bias and deviation of attention "
        "on a manifold of known limit, against the theory of Ruan and Zhang 2024. No network is "
        "measured. See docs/diffusion.md.",
    )
    options.add_flags(parser, Spec)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the result (default: MANIFOLD.diffusion.h5)"
    )
    parser.add_argument(
        "--figure", action=argparse.BooleanOptionalAction, default=True, help="draw the result"
    )
    chosen = parser.parse_args(arguments)
    return guarded(lambda: _measure(chosen))


def _measure(chosen: argparse.Namespace) -> int:
    spec = options.from_flags(Spec, chosen)
    out = chosen.out or Path(f"{spec.manifold}.diffusion.h5")
    return without_problem(convergence(spec), out, figure=chosen.figure)


if __name__ == "__main__":
    raise SystemExit(main())
