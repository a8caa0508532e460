"""What a probe of a study measures and what a figure draws, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.figures import FIGURES

# Of each kind of figure, what is on the page; another kind has the first line of its documentation.
_DRAWN = {
    "contour": "Contours of the loss; nothing was moved at the mark",
    "surface3d": "The loss as a height over the plane; nothing was moved at the mark",
    "profile": "The loss along the line, with a band of one standard error",
    "paths": "The median over the lines of a kind, with a band of the middle half of them",
    "gallery": "Single lines: the probability of each end's class, and the largest of the others",
    "barrier": "Loss and accuracy on the line from one network to another",
    "norms": "The share of samples at or below a value, and the median",
    "radii": "The median over samples against the distance moved, with a band of most of them",
    "noise": "Loss and accuracy against the strength of random noise",
    "spectrum": "The density of the eigenvalues",
    "eigenvalues": "The sizes of the largest eigenvalues, by rank",
    "curvature": "The share of samples whose largest eigenvalue is at or below a value",
}


def drawn(kind: str) -> str:
    """What a kind of figure draws, without a full stop."""
    first = (FIGURES[kind].marks.__doc__ or kind).splitlines()[0].removeprefix("Draw ").rstrip(".")
    return _DRAWN.get(kind, first[0].upper() + first[1:])


def measured(probe: Mapping[str, Any]) -> str:
    """What a probe measures.

    Args:
        probe: its table in the study, `probe` and the options that are not its defaults.
    """
    name, place = probe.get("probe"), probe.get("space", "weights")
    way = "line" if probe.get("dimensions") == 1 else "plane"
    if name == "surface" and place == "inputs":
        return f"Loss around real samples, on a random {way} through each"
    if name == "surface" and (probe.get("to") or probe.get("directions")):
        return f"Loss around the trained weights, on a chosen {way}"
    if name == "surface":
        return f"Loss around the trained weights, on a random {way}"
    if name == "interpolate" and probe.get("to"):
        return "Loss on the line from one seed's network to the next"
    if name == "interpolate":
        return "Predictions on lines between two real samples"
    if name == "sensitivity":
        return "Sensitivity around each real sample"
    if name == "hessian" and place == "inputs":
        return "Curvature of the loss in the pixels of each sample"
    if name == "hessian":
        scaled = probe.get("scale", "none") != "none"
        return f"Curvature of the loss in the weights{', relative to their size' * scaled}"
    return f"Measurements of {name}"
