"""What is asked of the terms of spatial attention."""

from __future__ import annotations

from checkpoints import options
from checkpoints.options import seed_option


@options.spec
class Spec:
    """Every number that changes the answer."""

    seed: int = seed_option("of the other image that each image's maps are compared with")

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {"weights": 1}
