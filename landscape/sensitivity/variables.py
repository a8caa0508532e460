"""The variables of a sensitivity, by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from landscape.core.summary import Variables
from landscape.sensitivity.gradients import ORDERS

Table: TypeAlias = dict[str, tuple[tuple[str, ...], str, str]]
SLOPE, BEND, INVERSE = "nat / pixel range", "nat / pixel range²", "1 / pixel range"
NORMS = {"l2": "L2", "l1": "L1", "linf": "L-infinity"}
AROUND, OVER_NOISE = ("direction", "radius"), ("noise",)
# {part: {name: (dims besides the example, words, units)}}
ITSELF: Table = {
    "loss": ((), "loss", "nat"),
    "correct": ((), "1 where classified correctly", "1"),
    "margin": ((), "true logit minus the best other", "nat"),
}
DISTANCES: Table = {
    "nearest_distance": ((), "L2 distance to the nearest other example", "pixel range"),
}
JACOBIAN: Table = {
    "jacobian_frobenius": ((), "Frobenius norm of the Jacobian of the logits", SLOPE),
    "relative_jacobian_frobenius": (
        (),
        "Frobenius norm of the Jacobian of the logits / |margin|",
        INVERSE,
    ),
    "softmax_jacobian_frobenius": ((), "Frobenius norm of the Jacobian of the softmax", INVERSE),
}
SPECTRAL: Table = {
    "jacobian_spectral": ((), "spectral norm of the Jacobian of the logits", SLOPE),
    "relative_jacobian_spectral": (
        (),
        "spectral norm of the Jacobian of the logits / |margin|",
        INVERSE,
    ),
    "softmax_jacobian_spectral": ((), "spectral norm of the Jacobian of the softmax", INVERSE),
    "gauss_newton_eigenvalue": ((), "top eigenvalue of the input Gauss-Newton matrix", BEND),
}
RADII: Table = {
    "difference": (AROUND, "change of the logits over r", SLOPE),
    "second_difference": (AROUND, "second difference of the logits over r²", BEND),
    "second_difference_floor": (("radius",), "rounding error of the second difference", BEND),
    "curvature": (AROUND, "second difference of the loss over r²", BEND),
    "curvature_floor": (("radius",), "rounding error of the loss's second difference", BEND),
    "gradient_change": (AROUND, "change of the gradient over r", BEND),
    "gradient_change_floor": (("radius",), "rounding error of the gradient's change", BEND),
    "moved_loss": (AROUND, "loss at distance r", "nat"),
    "moved_accuracy": (AROUND, "accuracy at distance r", "1"),
}
NOISE: Table = {
    "noise_loss": (OVER_NOISE, "loss under noise", "nat"),
    "noise_loss_stderr": (OVER_NOISE, "standard error of the loss under noise", "nat"),
    "noise_accuracy": (OVER_NOISE, "accuracy under noise", "1"),
    "noise_accuracy_stderr": (OVER_NOISE, "standard error of the accuracy under noise", "1"),
}
BANDS: Table = {
    "band_loss_min": ((), "smallest loss down the gradient", "nat"),
    "band_loss_max": ((), "largest loss down the gradient", "nat"),
    "band_gradient_min": ((), "smallest change of the gradient down it", SLOPE),
    "band_gradient_max": ((), "largest change of the gradient down it", SLOPE),
    "band_smoothness": ((), "effective smoothness down the gradient", BEND),
}
# What there is only where outputs are the logits of classes; accuracies wherever they are defined.
OF_CLASSES = ("correct", "margin", "relative", "softmax", "gauss_newton")


def variables(parts: Sequence[str], *, classified: bool, accurate: bool, exact: bool) -> Variables:
    """{name: (dims, attributes)} of the values that some parts measure of each example.

    Args:
        parts: `itself`, `distances`, or names that `--parts` takes.
        classified: whether outputs are the logits of classes.
        accurate: whether accuracy is defined.
        exact: whether the Jacobian is exact, not estimated.
    """
    tables = {
        "itself": ITSELF,
        "distances": DISTANCES,
        "norms": _gradient_norms(),
        "jacobian": JACOBIAN | SPECTRAL if exact else _with_stderr(JACOBIAN),
        "radii": RADII,
        "noise": NOISE,
        "bands": BANDS,
    }
    return {
        name: (("example", *dims), {"long_name": words, "units": units})
        for part in parts
        for name, (dims, words, units) in tables[part].items()
        if (classified or not name.startswith(OF_CLASSES)) and (accurate or "accuracy" not in name)
    }


def _gradient_norms() -> Table:
    table: Table = {}
    for name, words in {"gradient": "loss gradient", "margin_gradient": "margin gradient"}.items():
        for norm in ORDERS:
            said = f"{NORMS[norm]} norm of the {words}"
            table[f"{name}_{norm}"] = ((), said, SLOPE)
            table[f"relative_{name}_{norm}"] = ((), f"{said} / |margin|", INVERSE)
    return table


def _with_stderr(
    table: Table,
) -> Table:
    errors = {
        f"{name}_stderr": (dims, f"standard error of the {words}", units)
        for name, (dims, words, units) in table.items()
    }
    return table | errors
