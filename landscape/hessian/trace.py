"""Trace and Frobenius norm of a symmetric matrix: a subspace exactly, the rest by random signs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.core.summary import mean_and_stderr
from landscape.hessian.lanczos import Basis, Multiply


@dataclass(frozen=True)
class Traces:
    """Estimates for one matrix, each with its standard error over the probe vectors.

    The error is NaN for a single probe vector, and 0 if the subspace is the whole space: the trace
    is then exact.
    """

    trace: float
    trace_stderr: float
    squared_norm: float
    squared_norm_stderr: float


def traces(
    multiply: Multiply,
    start: Tensor,
    products: int,
    generator: torch.Generator,
    *,
    krylov: bool = False,
) -> Traces:
    """The trace of one matrix, and of its square, by Hutch++ or with a Krylov space.

    By Hutch++ a third of the products finds a subspace that holds most of the matrix, a third gives
    its part of the trace exactly, and a third estimates the rest with random signs. In a Krylov
    space, the products that find the subspace also give its part, so that with as many products it
    has twice the dimension. The products that do not only find the subspace give the squared
    Frobenius norm as well.

    Args:
        multiply: from (1, size) to the matrix times this vector.
        start: (1, size), random; the first vector of the Krylov space, and for device and dtype.
        products: in total; at least 6.
        generator: on the CPU.
        krylov: whether the subspace is a Krylov space.

    Raises:
        ValueError: fewer than 6 products.

    Cost: `products` products; two thirds as many vectors in memory, twice that with `krylov`.
    Source: Meyer, Musco, Musco & Woodruff 2021, algorithm 1, arXiv:2010.09649.
    """
    size = start.shape[1]
    if products < 6:
        raise ValueError(f"trace: {products} products; expected at least 6.")
    third = products // 3
    rank = min(products - third if krylov else third, size)
    spanned = _krylov if krylov else _sketched
    subspace, images = spanned(multiply, start, rank, generator)
    exact = float((subspace.double() * images.double()).sum())
    exact_square = float(images.double().square().sum())
    if rank == size:
        return Traces(exact, 0.0, exact_square, 0.0)
    guesses, squares = [], []
    for _ in range(products - (1 if krylov else 2) * rank):
        probe = _signs(start, generator).double()
        probe = (probe - (probe @ subspace.double().T) @ subspace.double()).to(start)
        image = multiply(probe).double()
        guesses.append(float((probe.double() * image).sum()))
        squares.append(float(image.square().sum()))
    (rest, rest_square), stderr = mean_and_stderr(np.array([guesses, squares]))
    return Traces(
        exact + float(rest), float(stderr[0]), exact_square + float(rest_square), float(stderr[1])
    )


def _sketched(
    multiply: Multiply, start: Tensor, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (rank, size) of products with random signs, and its products."""
    sketch = torch.cat([multiply(_signs(start, generator)) for _ in range(rank)])
    subspace = torch.linalg.qr(sketch.double().T)[0].T.to(start)
    return subspace, torch.cat([multiply(vector[None]) for vector in subspace])


def _krylov(
    multiply: Multiply, start: Tensor, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (rank, size) of the Krylov space of `start`, and its products."""
    basis = Basis(start, rank, generator)
    while basis.filled < rank:
        basis.extend(multiply)
    return basis.vectors[0, :rank], basis.images[0]


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(like)
