"""FIGURES: one line per figure."""

from __future__ import annotations

from pkgutil import resolve_name

from analysis.figures.arrange import Kind

# In the order in which a result's figures are drawn.
PLACES = {
    "contour": "analysis.figures.contour:KIND",
    "surface3d": "analysis.figures.surface3d:KIND",
    "profile": "analysis.figures.profile:KIND",
    "paths": "analysis.figures.paths:KIND",
    "gallery": "analysis.figures.gallery:KIND",
    "barrier": "analysis.figures.barrier:KIND",
    "norms": "analysis.figures.sensitivity:NORMS",
    "radii": "analysis.figures.sensitivity:RADII",
    "noise": "analysis.figures.noise:KIND",
    "spectrum": "analysis.figures.spectrum:SPECTRUM",
    "eigenvalues": "analysis.figures.spectrum:EIGENVALUES",
    "curvature": "analysis.figures.curvature:KIND",
    "contributions": "analysis.figures.terms:KIND",
    "attention": "analysis.figures.attention:KIND",
    "maps": "analysis.figures.maps:KIND",
    "sharpness": "analysis.figures.sharpness:KIND",
    "trajectory": "analysis.figures.trajectory:KIND",
    "convergence": "analysis.figures.diffusion:KIND",
}

FIGURES: dict[str, Kind] = {name: resolve_name(place) for name, place in PLACES.items()}
