"""The options of the sensitivity probe."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from checkpoints import options
from checkpoints.options import option

PARTS = ("norms", "jacobian", "radii", "noise", "bands")


@options.spec
class Spec:
    """Every number that changes a sensitivity. Radii and steps are in neighbour distances."""

    parts: tuple[str, ...] = option(PARTS, "what to measure", "PART")
    jacobian: Literal["auto", "exact", "hutchinson"] = option(
        "auto", "a backward pass per class, or an estimate; auto: exact up to --exact-classes"
    )
    exact_classes: int = option(32, "classes up to which auto measures the Jacobian exactly")
    draws: int = option(16, "draws of noise for each sigma, and of the Hutchinson estimate")
    radii: tuple[float, ...] = option(
        (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
        "distances, in multiples of the median distance between nearest neighbours",
    )
    directions: int = option(8, "random directions per example")
    tangents: int = option(2, "directions of a local PCA of the neighbours")
    neighbors: int = option(10, "neighbours in that PCA")
    sigmas: tuple[float, ...] = option(
        (0.02, 0.05, 0.1, 0.2), "standard deviations of the noise, in units of the pixel range"
    )
    steps: tuple[float, ...] = option(
        (0.05, 0.1, 0.2, 0.4), "distances of the bands down the gradient, in the units of --radii"
    )
    seed: int = option(0, "of directions, noise and estimates")

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"--parts {' '.join(self.parts)}; expected some of {' '.join(PARTS)}.")
        for name in ("radii", "sigmas", "steps"):
            values = getattr(self, name)
            if not values or not all(0 < x < float("inf") for x in values):
                shown = " ".join(map(str, values))
                raise ValueError(f"--{name} {shown}; expected positive finite numbers.")
        least = {
            "exact_classes": 0,
            "draws": 1,
            "directions": 1,
            "tangents": 0,
            "neighbors": 1,
            "seed": 0,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {value}; expected {smallest} or more.")
        if self.tangents > self.neighbors:
            raise ValueError(
                f"--tangents {self.tangents} exceeds the --neighbors {self.neighbors} that span "
                "them. Ask for fewer directions, or more neighbours."
            )

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {"inputs": 1}

    @options.in_callers_words
    def resolved(self, classes: int) -> Spec:
        """This spec with every default decided and its lists sorted, for `classes` classes."""
        few = self.jacobian == "auto" and classes <= self.exact_classes
        return replace(
            self,
            parts=tuple(part for part in PARTS if part in self.parts),
            jacobian="exact" if few or self.jacobian == "exact" else "hutchinson",
            radii=tuple(sorted(set(self.radii))),
            sigmas=tuple(sorted(set(self.sigmas))),
            steps=tuple(sorted(set(self.steps))),
        )

    def directions_by_kind(self) -> dict[str, list[str]]:
        """The names of an example's directions: a kind, with a number if there are several."""
        named = {
            "random": [f"random_{i}" for i in range(self.directions)],
            "gradient": ["gradient"],
            "adversarial": ["adversarial"],
            "tangent": [f"tangent_{i}" for i in range(self.tangents)],
        }
        return {kind: names for kind, names in named.items() if names}
