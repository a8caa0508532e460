"""What is asked of the convergence of attention to drift-diffusion."""

from __future__ import annotations

from typing import Literal, get_args

from checkpoints import options
from checkpoints.options import option, seed_option

Name = Literal["circle", "sphere", "sphere3", "torus", "ellipse", "arc", "swiss-roll", "metric"]
NAMES: tuple[str, ...] = get_args(Name)


@options.spec
class Spec:
    """Every number that changes the answer."""

    manifold: Name = option("circle", "where the points lie; arc and swiss-roll have edges")
    kappa: float = option(
        0.7, "concentration of the density; 0: uniform in arc length or area", "X", least=0, most=50
    )
    epsilons: tuple[float, ...] = option(
        (0.64, 0.32, 0.16, 0.08, 0.04, 0.02, 0.01, 0.005),
        "bandwidths of the kernel",
        "E,...",
        above=0,
    )
    counts: tuple[int, ...] = option((500, 1000, 2000, 4000), "numbers of points", "N,...", least=3)
    repeats: int = option(100, "independent sets of points for each number of them", "N", least=20)
    queries: int = option(16, "points at which the operators are compared", "N", least=1)
    seed: int = seed_option("of points and queries")
