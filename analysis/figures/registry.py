"""FIGURES: one line per figure."""

from __future__ import annotations

from analysis.figures.arrange import Kind, overlay, panels
from analysis.figures.contour import contour
from analysis.figures.profile import profile
from analysis.figures.surface3d import surface3d

FIGURES: dict[str, Kind] = {
    "contour": Kind(contour, probe="surface", dimensions=2, arrange=panels),
    "surface3d": Kind(surface3d, probe="surface", dimensions=2, arrange=panels, projection="3d"),
    "profile": Kind(
        profile, probe="surface", dimensions=1, arrange=overlay, variables=("loss", "accuracy")
    ),
}
