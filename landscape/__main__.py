"""One name for all commands: `landscape surface`, or `python -m landscape surface`.

Texts alone, so that the list is there at once: a command's own module, which imports torch, is
imported when it is run.
"""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Sequence

import landscape

# {command: (module, what it does, an example)}; of the probes, the first line of the probe itself.
COMMANDS = {
    "surface": (
        "landscape.surface",
        "Loss and accuracy over the examples, at every point of a grid through the origin.",
        "--ckpt resnet18.pt --points 11",
    ),
    "hessian": (
        "landscape.hessian",
        "Top eigenvalues, spectral density and trace of the Hessian of the loss.",
        "--ckpt resnet8.pt --top 3",
    ),
    "sharpness": (
        "landscape.sharpness",
        "How far the loss rises over a step from the weights, at worst and on average.",
        "--ckpt resnet8.pt --ball l2",
    ),
    "trajectory": (
        "landscape.trajectory",
        "The path of training in the plane through the trained network that lies closest to it.",
        "--ckpt net.pt --snapshots net.snapshots/*.pt",
    ),
    "sensitivity": (
        "landscape.sensitivity",
        "Norms of each example's input gradient and Jacobian, and changes at finite radii around "
        "it.",
        "--ckpt resnet8.pt --parts norms",
    ),
    "interpolate": (
        "landscape.interpolate",
        "Outputs between real samples in pixel space, or the loss between two networks.",
        "--ckpt resnet18.pt --to fmmnet18.pt",
    ),
    "attention": (
        "landscape.attention",
        "Attention weights against the importance of what they weigh, and the network without "
        "them.",
        "--ckpt fmmnet8.pt",
    ),
    "terms": (
        "landscape.terms",
        "What each term of spatial attention contributes to the maps, and to loss and accuracy.",
        "--ckpt spatial_resnet18.pt",
    ),
    "diffusion": (
        "landscape.diffusion",
        "Attention on a manifold against its drift-diffusion limit.",
        "--manifold circle",
    ),
    "study": (
        "landscape.study",
        "Every probe of a study over every network of it.",
        "demo --jobs 2",
    ),
    "report": (
        "analysis.report",
        "The page, tables and figures of a study.",
        "demo.study",
    ),
    "figures": (
        "analysis.figures",
        "Draw result files, side by side if there are several.",
        "resnet18.surface.h5 fmmnet18.surface.h5",
    ),
    "train": (
        "checkpoints.train",
        "Train a network and save it as one self-describing file.",
        "--model resnet8 --data fashion-mnist",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, or list them all.

    Args:
        arguments: the command's name and its own arguments; by default those of this process.

    Returns:
        The exit status: 2 for a name that is no command.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    first = given[0] if given else "--help"
    if first in ("-h", "--help"):
        print(_list())
        return 0
    if first == "--version":
        print(f"cnn-landscape {landscape.__version__}")
        return 0
    if first not in COMMANDS:
        near = difflib.get_close_matches(first, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}."
        print(f"landscape: no command {ascii(first)}; {hint}", file=sys.stderr)
        return 2
    sys.argv = [f"landscape {first}", *given[1:]]
    runpy.run_module(COMMANDS[first][0], run_name="__main__", alter_sys=True)
    return 0  # a command that ends by itself raises SystemExit


def _list() -> str:
    """Every command, what it does, and an example."""
    lines = ["usage: landscape COMMAND [options]", ""]
    lines += ["Loss-landscape probes of trained networks. Commands, each with an example:", ""]
    for name, (_, about, example) in COMMANDS.items():
        lines += [f"  {name:<12} {about}", f"{'':<15}landscape {name} {example}"]
    lines += [
        "",
        "Each says more with --help. A probe without --ckpt measures a network that ships.",
        "Without the script: python -m landscape.surface and so on; figures and report are modules",
        "of analysis, train is checkpoints.train. landscape --version names the version.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
