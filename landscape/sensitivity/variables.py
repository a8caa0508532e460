"""The variables of a sensitivity, by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from landscape.core.variables import Variable, Variables
from landscape.sensitivity.gradients import ORDERS

SLOPE, BEND, INVERSE = "nat / pixel range", "nat / pixel range²", "1 / pixel range"
NORMS = {"l2": "L2", "l1": "L1", "linf": "L-infinity"}
AROUND, OVER_NOISE = ("direction", "radius"), ("sigma",)
# By part; each also has the dim `example`.
ITSELF: Variables = {
    "loss": Variable((), "loss", "nat"),
    "correct": Variable((), "1 where classified correctly", "1"),
    "margin": Variable((), "true logit minus the best other", "nat"),
}
DISTANCES: Variables = {
    "nearest_distance": Variable((), "L2 distance to the nearest other example", "pixel range"),
}
JACOBIAN: Variables = {
    "jacobian_frobenius": Variable((), "Frobenius norm of the Jacobian of the logits", SLOPE),
    "relative_jacobian_frobenius": Variable(
        (),
        "Frobenius norm of the Jacobian of the logits / |margin|",
        INVERSE,
    ),
    "softmax_jacobian_frobenius": Variable(
        (), "Frobenius norm of the Jacobian of the softmax", INVERSE
    ),
}
SPECTRAL: Variables = {
    "jacobian_spectral": Variable((), "spectral norm of the Jacobian of the logits", SLOPE),
    "relative_jacobian_spectral": Variable(
        (),
        "spectral norm of the Jacobian of the logits / |margin|",
        INVERSE,
    ),
    "softmax_jacobian_spectral": Variable(
        (), "spectral norm of the Jacobian of the softmax", INVERSE
    ),
    "gauss_newton_eigenvalue": Variable(
        (), "top eigenvalue of the input Gauss-Newton matrix", BEND
    ),
}
RADII: Variables = {
    "difference": Variable(AROUND, "change of the logits over r", SLOPE),
    "second_difference": Variable(AROUND, "second difference of the logits over r²", BEND),
    "second_difference_floor": Variable(
        ("radius",), "rounding error of the second difference", BEND
    ),
    "curvature": Variable(AROUND, "second difference of the loss over r²", BEND),
    "curvature_floor": Variable(
        ("radius",), "rounding error of the loss's second difference", BEND
    ),
    "gradient_change": Variable(AROUND, "change of the gradient over r", BEND),
    "gradient_change_floor": Variable(("radius",), "rounding error of the gradient's change", BEND),
    "moved_loss": Variable(AROUND, "loss at distance r", "nat"),
    "moved_accuracy": Variable(AROUND, "accuracy at distance r", "1"),
}
NOISE: Variables = {
    "noise_loss": Variable(OVER_NOISE, "loss under noise", "nat"),
    "noise_loss_stderr": Variable(OVER_NOISE, "standard error of the loss under noise", "nat"),
    "noise_accuracy": Variable(OVER_NOISE, "accuracy under noise", "1"),
    "noise_accuracy_stderr": Variable(
        OVER_NOISE, "standard error of the accuracy under noise", "1"
    ),
}
BANDS: Variables = {
    "band_loss_min": Variable((), "smallest loss down the gradient", "nat"),
    "band_loss_max": Variable((), "largest loss down the gradient", "nat"),
    "band_gradient_min": Variable((), "smallest change of the gradient down it", SLOPE),
    "band_gradient_max": Variable((), "largest change of the gradient down it", SLOPE),
    "band_smoothness": Variable((), "effective smoothness down the gradient", BEND),
}
# Only if outputs are the logits of classes; accuracies whenever they are defined.
OF_CLASSES = ("margin", "relative", "softmax", "gauss_newton")


def variables(parts: Sequence[str], *, classified: bool, accurate: bool, exact: bool) -> Variables:
    """The variables that some parts measure for each example, by name.

    Args:
        parts: `itself`, `distances`, or values of `--parts`.
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
        name: replace(each, dims=("example", *each.dims))
        for part in parts
        for name, each in tables[part].items()
        if (classified or not name.startswith(OF_CLASSES))
        and (accurate or not (name == "correct" or "accuracy" in name))
    }


def _gradient_norms() -> Variables:
    table = {}
    for name, words in {"gradient": "loss gradient", "margin_gradient": "margin gradient"}.items():
        for norm in ORDERS:
            said = f"{NORMS[norm]} norm of the {words}"
            table[f"{name}_{norm}"] = Variable((), said, SLOPE)
            table[f"relative_{name}_{norm}"] = Variable((), f"{said} / |margin|", INVERSE)
    return table


def _with_stderr(table: Variables) -> Variables:
    return table | {
        f"{name}_stderr": replace(each, label=f"standard error of the {each.label}")
        for name, each in table.items()
    }
