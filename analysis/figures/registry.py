"""FIGURES: one line per figure."""

from __future__ import annotations

from analysis.figures.arrange import Kind, has_stderr, on_the_grid, overlay, panels
from analysis.figures.barrier import barrier, on_the_line
from analysis.figures.contour import contour
from analysis.figures.curvature import curvature, curvatures
from analysis.figures.gallery import gallery, probabilities
from analysis.figures.noise import noise, noises
from analysis.figures.paths import along, by_kind, on_paths
from analysis.figures.profile import profile
from analysis.figures.sensitivity import (
    distribution,
    distributions,
    not_negative,
    over_radii,
    radius_curve,
    radius_curves,
)
from analysis.figures.spectrum import ranked, ranks, spectra, spectrum
from analysis.figures.surface3d import surface3d
from analysis.figures.terms import by_layer
from analysis.figures.terms import drawable as summed_up
from analysis.figures.terms import panels as by_term

FIGURES: dict[str, Kind] = {
    "contour": Kind(
        contour,
        probe="surface",
        dimensions=2,
        arrange=panels,
        also=on_the_grid,
    ),
    "surface3d": Kind(
        surface3d,
        probe="surface",
        dimensions=2,
        arrange=panels,
        projection="3d",
        also=on_the_grid,
    ),
    "profile": Kind(
        profile,
        probe="surface",
        dimensions=1,
        arrange=overlay,
        variables=("loss", "accuracy"),
        also=has_stderr,
    ),
    "paths": Kind(
        along,
        probe="interpolate",
        dimensions=1,
        arrange=by_kind,
        needs=("probability",),
        variables=("probability", "jacobian_norm"),
        also=on_paths,
    ),
    "gallery": Kind(
        probabilities,
        probe="interpolate",
        dimensions=1,
        arrange=gallery,
        needs=("image",),
        variables=("probability",),
    ),
    "barrier": Kind(
        barrier,
        probe="interpolate",
        dimensions=1,
        arrange=on_the_line,
        needs=("barrier",),
        variables=("loss", "accuracy"),
        also=has_stderr,
    ),
    "norms": Kind(
        distribution,
        probe="sensitivity",
        dimensions=1,
        arrange=distributions,
        variables=(
            "gradient_l2",
            "margin_gradient_l2",
            "jacobian_frobenius",
            "jacobian_spectral",
            "softmax_jacobian_frobenius",
            "gauss_newton_eigenvalue",
        ),
        also=not_negative,
    ),
    "radii": Kind(
        radius_curve,
        probe="sensitivity",
        dimensions=1,
        arrange=radius_curves,
        variables=("second_difference", "gradient_change"),
        needs=("second_difference",),
        also=over_radii,
    ),
    "noise": Kind(
        noise,
        probe="sensitivity",
        dimensions=1,
        arrange=noises,
        needs=("noise_loss",),
        variables=("noise_loss", "noise_accuracy"),
    ),
    "spectrum": Kind(
        spectrum,
        probe="hessian",
        dimensions=1,
        arrange=spectra,
        needs=("node",),
        variables=("node",),
    ),
    "eigenvalues": Kind(
        ranked,
        probe="hessian",
        dimensions=1,
        arrange=ranks,
        needs=("eigenvalue", "end"),
        variables=("eigenvalue",),
    ),
    "curvature": Kind(
        curvature,
        probe="hessian",
        dimensions=1,
        arrange=curvatures,
        needs=("from_jacobian",),
        variables=("eigenvalue",),
    ),
    "contributions": Kind(
        by_layer,
        probe="terms",
        dimensions=1,
        arrange=by_term,
        variables=("variance_share", "removal_divergence", "setting_loss", "setting_accuracy"),
        also=summed_up,
    ),
}
