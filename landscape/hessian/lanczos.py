"""The Lanczos method with thick restart, for symmetric matrices given as matrix-vector products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Multiply: TypeAlias = Callable[[Tensor], Tensor]
Which: TypeAlias = Literal["magnitude", "largest", "smallest"]
# A remainder below this share of the largest product is rounding: the Krylov space is exhausted.
EXHAUSTED = {torch.float32: 1e-6, torch.float64: 1e-13}
# After so many products without a better residual, the residual counts as rounding.
PATIENCE = 10


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Approximate eigenpairs of every block, the most wanted first.

    Attributes:
        values: (blocks, count) float64; NaN for those that `max_products` did not allow.
        vectors: (blocks, count, size), norm 1; zero where the value is NaN.
        residuals: (blocks, count) float64, |A v - value v| / |value|, with A v combined from the
            products computed: the true residual, not the recurrence's estimate.
        converged: (blocks, count) bool: the residual is at most `tol`.
        products: used in total.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    products: int


class Basis:
    """An orthonormal Krylov basis of every block, and the matrix in that basis.

    Every product is made orthogonal to the whole basis, twice: otherwise rounding produces copies
    of eigenvalues that have converged. When the space is exhausted (a matrix of low rank), the next
    vector is random, orthogonal, and not coupled to the others.

    Args:
        start: (blocks, size), not zero. Its dtype is that of the basis; the projected matrix is
            float64.
        steps: largest number of vectors, at most `size`.
        generator: of the random vectors.

    Attributes:
        filled: number of vectors that have been multiplied.
        images: (blocks, steps, size), the products with the vectors.
        matrix: (blocks, steps, steps) float64, the matrix in the basis; its first `filled` rows
            and columns are valid.
        remainder: (blocks,) float64, the norm of the last product's part outside the basis.
        length: (blocks,) products since the space was last exhausted; 0 if it has just been.
        longest: (blocks,) the most products that exhausted a space; 0 if none ever was.
    """

    def __init__(self, start: Tensor, steps: int, generator: torch.Generator) -> None:
        blocks, size = start.shape
        self.vectors = start.new_zeros(blocks, steps + 1, size)
        self.vectors[:, 0] = start / start.double().norm(dim=1, keepdim=True).to(start)
        self.images = start.new_zeros(blocks, steps, size)
        shape = (blocks, steps, steps)
        self.matrix = torch.zeros(shape, dtype=torch.float64, device=start.device)
        self.remainder = torch.zeros(blocks, dtype=torch.float64, device=start.device)
        self.length = torch.zeros(blocks, dtype=torch.int64, device=start.device)
        self.longest = torch.zeros_like(self.length)
        self.filled = 0
        self._generator = generator
        self._size = torch.zeros_like(self.remainder)

    def extend(self, multiply: Multiply) -> None:
        """Multiply the last vector; the product's part outside the basis gives the next one."""
        at = self.filled
        known = self.vectors[:, : at + 1]
        product = multiply(self.vectors[:, at])
        self.images[:, at] = product
        self._size = torch.fmax(self._size, product.double().norm(dim=1))
        rest, coupling = _orthogonal(product, known)
        self.matrix[:, : at + 1, at] = coupling
        self.matrix[:, at, : at + 1] = coupling
        self.filled = at + 1
        norms = rest.double().norm(dim=1)
        exhausted = norms <= EXHAUSTED.get(rest.dtype, 1e-6) * self._size
        self.remainder = torch.where(exhausted, 0.0, norms)
        self.length += 1
        self.longest = torch.where(exhausted, self.longest.maximum(self.length), self.longest)
        self.length = torch.where(exhausted, 0, self.length)
        if exhausted.any():
            drawn, _ = _orthogonal(gaussian(rest, self._generator), known)
            rest = torch.where(exhausted[:, None], drawn, rest)
            rest, _ = _orthogonal(rest, known)
            norms = rest.double().norm(dim=1)
        # A basis of the whole space leaves no remainder; the next vector is then 0, and not used.
        self.vectors[:, at + 1] = rest / norms.clamp_min(torch.finfo(rest.dtype).tiny)[:, None].to(
            rest
        )

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (blocks, filled), ascending, and eigenvectors of the projected matrix."""
        known = self.matrix[:, : self.filled, : self.filled]
        # Products of a network that overflows are not finite, and LAPACK refuses them.
        finite = known.isfinite().all(dim=2).all(dim=1)
        values, vectors = torch.linalg.eigh(known.where(finite[:, None, None], 0.0))
        return values.where(finite[:, None], math.nan), vectors

    def combined(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (blocks, count, size) from coefficients (blocks, filled, count), and products."""
        mixed = coefficients.mT.to(self.vectors)
        return mixed @ self.vectors[:, : self.filled], mixed @ self.images[:, : self.filled]

    def restart(self, values: Tensor, coefficients: Tensor) -> None:
        """Restart from these Ritz pairs, (blocks, count) and (blocks, filled, count)."""
        count = values.shape[1]
        following = self.vectors[:, self.filled].clone()
        self.vectors[:, :count], self.images[:, :count] = self.combined(coefficients)
        self.vectors[:, count] = following
        self.matrix.zero_()
        self.matrix[:, range(count), range(count)] = values
        self.filled = count


def eigenpairs(
    multiply: Multiply,
    start: Tensor,
    count: int,
    *,
    which: Which = "magnitude",
    tol: float = 1e-3,
    max_products: int = 200,
    generator: torch.Generator,
) -> Eigenpairs:
    """The `count` most wanted eigenpairs of every block, by Lanczos with thick restart.

    It stops when every block's residuals are at most `tol`, at `max_products`, or when rounding
    prevents smaller residuals. One start vector finds one vector of a multiple eigenvalue (see
    `multiples`). Only when its Krylov space is exhausted, as for a matrix of low rank, do random
    vectors follow, until one changes nothing. A matrix with no more rows than the basis has vectors
    is computed in full.

    The stop rules, by the numbers at which the code applies them:

    1. No further product is allowed or possible: `max_products` are used, or the basis spans the
       whole space.
    2. The recurrence bounds every wanted residual by the remainder times the last entry of the
       Ritz vector (Parlett 1998, section 13.2), without a product. Checked once there are `count`
       Ritz pairs, and not for a small matrix, which rule 1 ends.
    3. No eigenvalue may be missed when the Krylov space is exhausted. An exhausted space bounds
       every residual by 0 and holds one vector of each eigenvalue. So a random vector follows,
       whose own space is no larger than the longest so far; when one such space has changed
       nothing beyond rounding, the values are accepted.
    4. The true residuals, from the products, are at most `tol`. For an eigenvalue within 10
       rounding errors of 0 the absolute error must be rounding, as the relative one stays large.
    5. Rounding prevents a smaller worst residual: `PATIENCE` products without one below 0.9 of the
       best so far. (Measured: float32 residuals of a trained ResNet-14 stay above 1e-4, and would
       use up `max_products`.)

    Args:
        multiply: from (blocks, size) to the matrix times these vectors, block by block.
        start: (blocks, size), random.
        count: at most `size`.
        which: `magnitude` for the largest |value|, `largest`, or `smallest` for the most negative.
        tol: of the residual, relative to |value|.
        max_products: in total, at least 1.
        generator: of the random vectors drawn when a Krylov space is exhausted.

    Raises:
        ValueError: more eigenpairs than rows; no product allowed.

    Cost: the products and their orthogonalisation; twice max(20, 2 count + 10) vectors in memory.
    Source: Wu & Simon 2000, doi 10.1137/S0895479898334605 (thick restart); full
    reorthogonalisation twice, after Parlett 1998, section 6.9.
    """
    size = start.shape[1]
    if not 1 <= count <= size or max_products < 1:
        raise ValueError(
            f"lanczos: {count} eigenpairs of {size} rows in {max_products} products; expected 1 "
            f"to {size} eigenpairs, and at least 1 product."
        )
    capacity = min(max(20, 2 * count + 10), size)
    basis = Basis(start, capacity, generator)
    rounding = EXHAUSTED.get(start.dtype, 1e-6)
    before = torch.full_like(basis.remainder, math.nan)[:, None].repeat(1, count)
    settled = torch.zeros_like(basis.length, dtype=torch.bool)
    best, waited = math.inf, 0
    for used in range(1, max_products + 1):
        basis.extend(multiply)
        found = min(count, basis.filled)
        values, coefficients = basis.ritz()
        order = _order(values, which)
        chosen = values.gather(1, order[:, :found])
        mixed = coefficients.take_along_dim(order[:, None, :found], 2)
        floor = rounding * values.abs().amax(dim=1, keepdim=True)
        bound = basis.remainder[:, None] * mixed[:, -1].abs()
        nothing = chosen.abs() <= 10 * floor
        last = used == max_products or basis.filled == size  # rule 1
        if found == count and (capacity < size or max_products < size):
            now = basis.length == 0  # rule 3
            settled |= now & ((chosen - before).abs() <= floor).all(dim=1)
            before = torch.where(now[:, None], chosen, before)
            sure = settled | (basis.length > basis.longest) | (basis.longest == 0)
            enough = (bound <= torch.where(nothing, floor, tol * chosen.abs())).all(dim=1)  # rule 2
        else:
            enough = sure = torch.zeros_like(settled)
        if last or bool((enough & sure | chosen.isnan().any(dim=1)).all()):
            vectors, images = basis.combined(mixed)
            result = with_residuals(vectors, images, chosen, count, tol, used)
            short = result.residuals[:, :found]
            absolute = short * chosen.abs()
            fine = result.converged[:, :found] | (nothing & (absolute <= 10 * floor))  # rule 4
            if last or bool((fine | chosen.isnan()).all()):
                break
            worst = float(short.where(~fine, 0.0).nan_to_num(0.0).max())
            best, waited = (worst, 0) if worst < 0.9 * best else (best, waited + 1)
            if waited == PATIENCE:  # rule 5
                break
        if basis.filled == capacity:
            keep = min((count + capacity) // 2, capacity - 1)
            basis.restart(
                values.gather(1, order[:, :keep]),
                coefficients.take_along_dim(order[:, None, :keep], 2),
            )
    return result


def multiples(
    multiply: Multiply,
    found: Eigenpairs,
    *,
    which: Which,
    tol: float,
    max_products: int,
    generator: torch.Generator,
) -> Eigenpairs:
    """Add the further vectors of repeated eigenvalues, from the orthogonal complement.

    Lanczos from one start vector finds one vector of each eigenvalue. So it runs again, from a
    random vector in the orthogonal complement of the eigenvectors found: insert the eigenpair
    found there and drop the last, until none is more wanted than the last.

    Args:
        multiply: as in `eigenpairs`.
        found: from `eigenpairs`.
        which: as in `eigenpairs`.
        tol: as in `eigenpairs`; a value must exceed the last by more than this, relatively.
        max_products: in total, including those used already.
        generator: of the random vectors.

    Cost: the products of one eigenpair, and again for each that is found; none beyond
    `max_products`, so that the last search may be cut short.
    """
    count, size = found.vectors.shape[1:]
    worst = {"magnitude": 0.0, "largest": -1.0, "smallest": 1.0}[which]

    def outside(vectors: Tensor) -> Tensor:
        return _orthogonal(vectors, found.vectors)[0]

    def deflated(vectors: Tensor) -> Tensor:
        """The matrix in the complement, with the eigenvectors found shifted to the unwanted end."""
        rest = outside(vectors)
        shift = worst * found.values.abs().nan_to_num().amax(dim=1, keepdim=True)
        return outside(multiply(rest)) + shift.to(vectors) * (vectors - rest)

    while count < size and found.products + 2 <= max_products:
        more = eigenpairs(
            deflated,
            outside(gaussian(found.vectors[:, 0], generator)),
            1,
            which=which,
            tol=tol,
            max_products=max_products - found.products - 1,
            generator=generator,
        )
        vector = outside(more.vectors[:, 0])
        length = vector.double().norm(dim=1, keepdim=True)
        vector = vector / length.to(vector)
        image = multiply(vector)
        value = (vector.double() * image.double()).sum(dim=1, keepdim=True)
        products = found.products + more.products + 1
        new = with_residuals(vector[:, None], image[:, None], value, 1, tol, products)
        last = found.values[:, -1:]
        gain = _wanted(value, which) - _wanted(last, which)
        floor = EXHAUSTED.get(vector.dtype, 1e-6) * found.values.abs().amax(dim=1, keepdim=True)
        # A short vector lies in the span of those found: the complement holds no further one.
        if not bool(((gain > tol * last.abs() + floor) & (length > 0.5)).any()):
            return replace(found, products=products)
        both = [
            torch.cat([getattr(part, name) for part in (found, new)], dim=1)
            for name in ("values", "vectors", "residuals", "converged")
        ]
        order = _order(both[0], which)[:, :count]
        values, vectors, residuals, converged = (
            rows.take_along_dim(order if rows.ndim == 2 else order[:, :, None], 1) for rows in both
        )
        found = Eigenpairs(values, vectors, residuals, converged, products)
    return found


def with_residuals(
    vectors: Tensor, images: Tensor, values: Tensor, count: int, tol: float, products: int
) -> Eigenpairs:
    """Eigenpairs with their true residuals, from the products with their vectors.

    Args:
        vectors: (blocks, found, size), not zero.
        images: (blocks, found, size), the matrix times them.
        values: (blocks, found) float64.
        count: the result is padded with NaN from `found` to this.
        tol: for `converged`.
        products: number of products used.
    """
    blocks, found, size = vectors.shape
    norms = vectors.double().norm(dim=2)
    # Vector by vector: a float64 copy of all of them may not fit.
    errors = [
        (images[:, i].double() - values[:, i, None] * vectors[:, i].double()).norm(dim=1)
        for i in range(found)
    ]
    residuals = relative(torch.stack(errors, dim=1) / norms, values)
    missing = (blocks, count - found)
    blank = torch.full(missing, math.nan, dtype=torch.float64, device=values.device)
    residuals = torch.cat([residuals, blank], dim=1)
    vectors = vectors / norms[:, :, None].to(vectors)
    return Eigenpairs(
        values=torch.cat([values, blank], dim=1),
        vectors=torch.cat([vectors, vectors.new_zeros(*missing, size)], dim=1),
        residuals=residuals,
        converged=residuals <= tol,
        products=products,
    )


def relative(errors: Tensor, values: Tensor) -> Tensor:
    """Errors / |values|; zero where the error is zero, whatever the value."""
    return torch.where(errors == 0, 0.0, errors / values.abs())


def gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal entries in the shape of `like`, drawn on the CPU in float64."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _orthogonal(vectors: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, size) minus the projection on `basis`, and the projection's float64 coefficients."""
    total = torch.zeros(basis.shape[:2], dtype=torch.float64, device=vectors.device)
    for _ in range(2):
        inside = (basis @ vectors[:, :, None])[:, :, 0]
        vectors = vectors - (inside[:, None] @ basis)[:, 0]
        total += inside.double()
    return vectors, total


def _wanted(values: Tensor, which: Which) -> Tensor:
    return {"magnitude": values.abs(), "largest": values, "smallest": -values}[which]


def _order(values: Tensor, which: Which) -> Tensor:
    return (-_wanted(values, which)).argsort(dim=1, stable=True)
