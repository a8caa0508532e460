"""The options of the interpolation probe."""

from __future__ import annotations

from checkpoints import options
from checkpoints.options import option, seed_option
from checkpoints.problem import Problem
from landscape.interpolate import networks
from landscape.interpolate.pairs import KINDS

PAIRS, GALLERY = 64, 4
MOST_BEYOND = 100  # of the distance between the ends, on either side


@options.spec
class Spec:
    """Every number that changes an interpolation. `None`: `resolved` picks the default."""

    to: str | None = option(
        None, "a second checkpoint: the line between the two networks' weights", "FILE"
    )
    statistics: tuple[networks.Statistics, ...] | None = option(
        None,
        "with --to, batch norm's statistics on the way: kept (the first network's), interpolated, "
        "recomputed, or several of these (default: interpolated, and with --batch-norm recompute "
        "recomputed as well)",
        "NAME",
    )
    points: int = option(
        33, "points from one end to the other, both included", least=3, most=1_000_000
    )
    beyond: float = option(
        0.0, "go on beyond both ends by this fraction of the way", least=0, most=MOST_BEYOND
    )
    pairs: int | None = option(None, f"paths of each kind (default: {PAIRS})", least=1)
    same_class: bool | None = option(
        None, "lines between two samples of one class (default: measured)"
    )
    cross_class: bool | None = option(
        None, "lines between samples of different classes (default: measured)"
    )
    controls: bool | None = option(
        None,
        "lines between images with their pixels shuffled, and circles through three samples "
        "(default: measured)",
    )
    correct_only: bool | None = option(
        None, "draw only from samples that the network classifies correctly (default: from all)"
    )
    jacobian: bool | None = option(
        None, "the Jacobian at every point, most of the cost (default: measured)"
    )
    gallery: int | None = option(
        None,
        f"store the images of this many paths (default: {GALLERY} where inputs are images)",
        least=0,
    )
    seed: int = seed_option("of the pairs, and of the shuffling")

    def __post_init__(self) -> None:
        if self.to is None:
            if self.statistics:
                raise ValueError(
                    "--statistics is for a line between two networks; pass --to as well."
                )
            if self.same_class is self.cross_class is self.controls is False:
                raise ValueError("no kind of path is left. Leave out one of the --no- options.")
            return
        between = ("pairs", "same_class", "cross_class", "controls", "correct_only", "jacobian")
        for name in (*between, "gallery"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} is for paths between samples; --to is a line "
                    "between networks. Pass one of them."
                )

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {"inputs": int(self.jacobian is not False)} if self.to is None else {"weights": 0}

    @options.in_callers_words
    def resolved(self, problem: Problem) -> BetweenSamples | BetweenNetworks:
        """This spec with every default decided, for paths between samples or between networks.

        Raises:
            ValueError: the problem has no such examples or statistics.
        """
        if self.to is not None:
            return self._between_networks(problem)
        images = [value for value in problem.inputs.values() if value.ndim == 4]
        drawable = len(problem.inputs) == len(images) == 1
        if self.gallery and not drawable:
            raise ValueError(f"--gallery {self.gallery} needs one batch of images (N, C, H, W).")
        decided = {
            "pairs": PAIRS if self.pairs is None else self.pairs,
            "correct_only": bool(self.correct_only),
            "gallery": GALLERY * drawable if self.gallery is None else self.gallery,
            "same_class": self.same_class is not False,
            "cross_class": self.cross_class is not False,
            "controls": self.controls is not False,
            "jacobian": self.jacobian is not False,
        }
        return BetweenSamples(**vars(self) | decided)

    def _between_networks(self, problem: Problem) -> BetweenNetworks:
        usual = ("interpolated", *(["recomputed"] if problem.calibration else []))
        statistics = networks.checked(self.statistics or usual, problem)
        return BetweenNetworks(**vars(self) | {"statistics": statistics})


@options.spec
class BetweenSamples(Spec):
    """A spec of paths between samples, with every default decided."""

    pairs: int
    same_class: bool
    cross_class: bool
    controls: bool
    correct_only: bool
    jacobian: bool
    gallery: int

    def kinds(self) -> list[str]:
        """The kinds of path that are measured, in the order of `pairs.KINDS`."""
        wanted = (self.same_class, self.cross_class, self.controls, self.controls)
        return [kind for kind, wants in zip(KINDS, wanted, strict=True) if wants]


@options.spec
class BetweenNetworks(Spec):
    """A spec of a line between two networks, with every default decided."""

    to: str
    statistics: tuple[networks.Statistics, ...]
