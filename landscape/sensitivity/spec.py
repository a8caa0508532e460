"""The options of the sensitivity probe."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from checkpoints import options
from checkpoints.options import option, seed_option

Part: TypeAlias = Literal["norms", "jacobian", "radii", "noise", "bands"]
PARTS: tuple[Part, ...] = get_args(Part)


@options.spec
class Spec:
    """Every number that changes a sensitivity. Radii and steps are in neighbour distances."""

    parts: tuple[Part, ...] = option(PARTS, "what to measure", "PART")
    jacobian: Literal["auto", "exact", "hutchinson"] = option(
        "auto", "a backward pass per class, or an estimate; auto: exact up to --exact-classes"
    )
    exact_classes: int = option(
        32, "classes up to which auto measures the Jacobian exactly", least=0
    )
    draws: int = option(
        16, "draws of noise for each sigma, and of the Hutchinson estimate", least=1, most=100_000
    )
    radii: tuple[float, ...] = option(
        (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
        "distances, in multiples of the median distance between nearest neighbours",
        above=0,
        most=1e30,
    )
    directions: int = option(8, "random directions per example", least=1, most=10_000)
    tangents: int = option(2, "directions of a local PCA of the neighbours", least=0)
    neighbors: int = option(10, "neighbours in that PCA", least=1)
    sigmas: tuple[float, ...] = option(
        (0.02, 0.05, 0.1, 0.2),
        "standard deviations of the noise, in units of the pixel range",
        above=0,
        most=1e30,
    )
    steps: tuple[float, ...] = option(
        (0.05, 0.1, 0.2, 0.4),
        "distances of the bands down the gradient, in the units of --radii",
        above=0,
        most=1e30,
    )
    seed: int = seed_option("of directions, noise and estimates")

    def __post_init__(self) -> None:
        for name in ("radii", "sigmas", "steps"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is empty; expected one number or more.")
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
