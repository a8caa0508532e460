"""What is asked of the terms of spatial attention."""

from __future__ import annotations

from checkpoints import options
from checkpoints.options import option


@options.spec
class Spec:
    """Every number that changes the answer."""

    seed: int = option(0, "of the other image that each image's maps are compared with")

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}; expected 0 or more.")

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {"weights": 1}
