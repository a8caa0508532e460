"""Spectral densities from Lanczos nodes, on an axis that is logarithmic on both sides of zero."""

from __future__ import annotations

import numpy as np

from analysis.stats.arrays import Floats

WIDTH = 0.15  # decades, the standard deviation of the kernel


def place(values: Floats, linear: float) -> Floats:
    """Where eigenvalues of both signs stand on an axis of decades: asinh(value / linear) / ln 10.

    Linear around zero; beyond a few times `linear`, on either side, a factor of ten is a step of 1.

    Args:
        values: of any shape.
        linear: positive; the half width of the part around zero that is about linear.
    """
    return np.asarray(np.arcsinh(values / linear) / np.log(10))


def values_at(places: Floats, linear: float) -> Floats:
    """The inverse of `place`."""
    return np.asarray(linear * np.sinh(places * np.log(10)))


def density(
    nodes: Floats, weights: Floats, at: Floats, *, linear: float, width: float = WIDTH
) -> Floats:
    """The share of eigenvalues per decade, for each draw.

    Each node is a Gaussian in `place`, so that an eigenvalue of 100 is blurred by the same factor
    as one of 0.1, and a large one does not become a needle next to a wide bulk. The area over an
    interval of places is the share of eigenvalues there; the whole is 1.

    Args:
        nodes: (draws, steps), of the spectral measure.
        weights: (draws, steps), not negative; those of a draw sum to 1.
        at: (points,), places.
        linear: see `place`.
        width: the standard deviation, in decades.

    Returns:
        (draws, points). Their mean estimates the density; their spread is its error over draws.

    Cost: draws * steps * points exponentials.
    Source: Ghorbani et al. 2019, arXiv:1901.10159, equation 6 with a Gaussian of one width in the
    eigenvalue itself.
    """
    apart = (at[None, :, None] - place(nodes, linear)[:, None, :]) / width
    kernel = np.exp(-0.5 * apart**2) / (width * np.sqrt(2 * np.pi))
    return np.asarray((kernel * weights[:, None, :]).sum(axis=2))


def negative_square(nodes: Floats, weights: Floats) -> Floats:
    """The mean of min(eigenvalue, 0)^2 over all eigenvalues, (draws,): an estimate from each draw.

    Times the rows of the matrix, the squared Frobenius norm of its negative part. The number of
    negative eigenvalues, or their sum, would hang on where among thousands of eigenvalues around
    zero a few nodes happen to lie; their squares do not.

    Args:
        nodes: (draws, steps), of the spectral measure.
        weights: (draws, steps), not negative; those of a draw sum to 1.
    """
    return np.asarray((weights * np.minimum(nodes, 0) ** 2).sum(axis=1))


def mean_and_stderr(draws: Floats) -> tuple[float, float]:
    """The mean over draws and its standard error, NaN for a single draw."""
    count = len(draws)
    stderr = float(draws.std(ddof=1)) / count**0.5 if count > 1 else float("nan")
    return float(draws.mean()), stderr
