"""A two-dimensional result as drawn: faces where values are known, gaps where they are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.stats.arrays import Floats

Mask = NDArray[np.bool_]

_CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))  # (row, column) around one cell, in turn


@dataclass(frozen=True, eq=False)
class Grid:
    """One variable on its grid, rows along y, as matplotlib draws it.

    Args:
        x: (X,) positions along `alpha`.
        y: (Y,) positions along `beta`.
        values: (Y, X), as stored.
        measured: (Y, X), True where the point was measured.
    """

    x: Floats
    y: Floats
    values: Floats
    measured: Mask

    @classmethod
    def of(cls, result: xr.Dataset, variable: str) -> Grid:
        """The grid of `variable`, whatever the order of its dimensions in the file."""
        across, up = result["measured"].dims
        return cls(
            result[across].values.astype(float),
            result[up].values.astype(float),
            result[variable].transpose(up, across).values.astype(float),
            result["measured"].transpose(up, across).values == 1,
        )

    @property
    def known(self) -> Mask:
        """(Y, X), True where the point was measured and its value is finite."""
        return self.measured & np.isfinite(self.values)

    @property
    def diverged(self) -> Mask:
        """(Y, X), True where the point was measured and its value is not finite."""
        return self.measured & ~np.isfinite(self.values)

    def faces(self, heights: Floats) -> list[Floats]:
        """Pieces of the surface: four corners, or three where the fourth is not known.

        Args:
            heights: (Y, X), read at known points only.

        Returns:
            Each (4, 3) or (3, 3): x, y, height of each corner.
        """
        x, y = np.meshgrid(self.x, self.y)
        points = np.stack([x, y, heights], axis=-1)
        pieces = np.stack([_shifted(points, *corner) for corner in _CORNERS], axis=2)
        known = np.stack([_shifted(self.known, *corner) for corner in _CORNERS], axis=2)
        whole = known.sum(axis=2) >= 3
        return [piece[corners] for piece, corners in zip(pieces[whole], known[whole], strict=True)]

    def gaps(self, mask: Mask) -> Floats:
        """(G, 4, 2) outlines of the cells that touch a point of `mask`."""
        x, y = np.meshgrid(self.x, self.y)
        points = np.stack([x, y], axis=-1)
        pieces = np.stack([_shifted(points, *corner) for corner in _CORNERS], axis=2)
        touched = np.any([_shifted(mask, *corner) for corner in _CORNERS], axis=0)
        return np.asarray(pieces[touched], dtype=float)

    def lone(self) -> Mask:
        """(Y, X), True at known points that no face of the surface touches."""
        touched = np.zeros_like(self.known)
        known = [_shifted(self.known, *corner) for corner in _CORNERS]
        whole = np.sum(known, axis=0) >= 3
        for corner in _CORNERS:
            _shifted(touched, *corner)[whole] = True  # a view: writes into `touched`
        return self.known & ~touched


def limits(positions: Floats) -> tuple[float, float]:
    """From the first to the last position; around a single position, one unit."""
    low, high = float(positions.min()), float(positions.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _shifted(points: NDArray[np.generic], row: int, column: int) -> NDArray[np.generic]:
    """(Y - 1, X - 1, ...) view of the chosen corner of every cell."""
    rows, columns = points.shape[:2]
    return points[row : rows - 1 + row, column : columns - 1 + column]
