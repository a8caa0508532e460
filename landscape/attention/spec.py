"""What is asked of the attention."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from checkpoints import options
from checkpoints.options import option, seed_option

Kind: TypeAlias = Literal[
    "gradient", "integrated_gradients", "occlusion_zero", "occlusion_mean", "shapley"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Part: TypeAlias = Literal["agreement", "erasure", "interventions"]
PARTS: tuple[Part, ...] = get_args(Part)


@options.spec
class Spec:
    """Every number that changes the answer."""

    parts: tuple[Part, ...] = option(
        PARTS, "agreement of attention and importance, erasure curves, gate interventions", "PART"
    )
    sites: tuple[str, ...] = option(
        (), "only the gates whose names match one of these patterns, such as 'layer3.*'", "PATTERN"
    )
    importance: tuple[Kind, ...] = option(
        ("gradient", "integrated_gradients", "occlusion_zero"),
        f"measures of importance: {', '.join(KINDS)}",
        "KIND",
    )
    steps: int = option(16, "points on the path of integrated gradients", least=1, most=10_000)
    permutations: int = option(8, "random orders of the Shapley values", least=1, most=10_000)
    patches: int = option(
        7, "a spatial gate is compared in at most this many patches per side", least=1
    )
    top: int = option(5, "units in the top-k overlap and distance", least=1)
    fractions: tuple[float, ...] = option(
        (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
        "fractions of the units that are erased",
        above=0,
        most=1,
    )
    gallery: int = option(
        6, "images that are stored with the result, for the figure of spatial gates", least=0
    )
    radius: float = option(
        0.4,
        "distance of the second difference under interventions, L2, pixel range 1",
        least=0.01,
        most=1000,
    )
    directions: int = option(4, "random directions of that second difference", least=1, most=10_000)
    seed: int = seed_option("of permutations, pairings and directions")

    def __post_init__(self) -> None:
        if not self.fractions:
            raise ValueError("--fractions is empty; expected one number or more.")
        object.__setattr__(self, "fractions", tuple(sorted(set(self.fractions))))

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {"inputs": 1}
