"""First derivatives of a network in its inputs: gradients, Jacobians and their norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from checkpoints.problem import Tensors
from landscape.core.spaces import Inputs


def flattened(tensors: Iterable[Tensor]) -> Tensor:
    """One row per example: tensors (n, ...) concatenated to (n, d)."""
    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)


def shaped(rows: Tensor, like: Tensors) -> Tensors:
    """The inverse of `flattened`: rows (n, d) with the names, shapes and dtypes of `like`."""
    sizes = [math.prod(value.shape[1:]) for value in like.values()]
    parts = zip(like.items(), torch.split(rows, sizes, dim=1), strict=True)
    return {
        name: part.reshape(len(rows), *value.shape[1:]).to(value) for (name, value), part in parts
    }


def gradient(
    space: Inputs, inputs: Tensors, scalar: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The gradient of a function of each example's logits in that example.

    One backward pass of the sum gives the exact gradients of all examples: in eval mode no
    example's logits depend on another example.

    Args:
        space: the only caller of the network.
        inputs: {name: (n, ...)}, the raw inputs; images are in [0, 1]. Not written to.
        scalar: from logits (n, classes) float64 to (n,).

    Returns:
        logits (n, classes), detached, and the gradients (n, d) float64, all inputs of an example
        concatenated. inf and NaN are kept.

    Cost: one forward and one backward pass.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    with space.exact():
        logits = space.outputs(leaves)
        wide = logits.detach().double().requires_grad_()
        (seeds,) = torch.autograd.grad(scalar(wide).sum(), [wide], materialize_grads=True)
        # The loss of a confident example has slopes that float32 does not hold; their ratios it
        # does, and the network passes them on linearly.
        size = seeds.abs().flatten(1).amax(dim=1)
        size = size.where(size.isfinite() & (size > 0), 1.0)
        parts = torch.autograd.grad(
            logits,
            list(leaves.values()),
            (seeds / size.view(-1, *[1] * (seeds.ndim - 1))).to(logits),
            materialize_grads=True,
        )
    return logits.detach(), size[:, None] * flattened(parts).double()


def jacobian(space: Inputs, inputs: Tensors) -> tuple[Tensor, Tensor]:
    """Every logit's gradient in the inputs, exact.

    Logits of sequences (n, classes, T) are taken in one row, as classes x T of them.

    Args:
        space: the only caller of the network.
        inputs: {name: (n, ...)}, the raw inputs. Not written to.

    Returns:
        logits (n, classes) float64, and the Jacobians (n, classes, d) in the dtype of `inputs`.

    Cost: one forward and `classes` backward passes of all examples; one graph's activations, kept.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    with space.exact():
        logits = space.outputs(leaves).flatten(1)
        rows = list(_pulled_back(logits, leaves, torch.eye(logits.shape[1]).to(logits)))
    return logits.detach().double(), torch.stack(rows, dim=1)


def gram(jacobian: Tensor) -> Tensor:
    """J J^T of each example in float64, (n, classes, classes): enough for every norm of J."""
    wide = jacobian.double()
    return wide @ wide.mT


def norms(gram: Tensor, outer: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Frobenius and spectral norm of J, or of `outer` J, from the Gram matrices of J.

    Args:
        gram: (n, classes, classes), J J^T in float64.
        outer: (n, classes, classes), the Jacobian of a following function, such as
            `softmax_jacobian`.

    Returns:
        Two (n,) float64; NaN where a Gram matrix is not finite.
    """
    product = gram if outer is None else outer @ gram @ outer.mT
    frobenius = product.diagonal(dim1=1, dim2=2).sum(dim=1).sqrt()
    return frobenius, _top(product)[0].sqrt()


def softmax_jacobian(probabilities: Tensor) -> Tensor:
    """The matrix diag p - p p^T, (n, classes, classes), accurate where one p is nearly 1.

    It is also the Hessian of the cross-entropy in the logits.

    Args:
        probabilities: (n, classes) float64.
    """
    matrix = -probabilities[:, :, None] * probabilities[:, None, :]
    matrix.diagonal(dim1=1, dim2=2).copy_(probabilities * _others(probabilities))
    return matrix


def hutchinson(
    space: Inputs, inputs: Tensors, signs: Tensor, outer: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The Frobenius norm of the Jacobian of `outer`(logits), estimated with a standard error.

    The mean of |J^T v|^2 over random signs v is an unbiased estimate of |J|_F^2; the norm is its
    root.

    Args:
        space: the only caller of the network.
        inputs: {name: (n, ...)}.
        signs: (draws, n, classes), entries 1 or -1.
        outer: from logits (n, classes) float64 to (n, classes), such as a softmax.

    Returns:
        The norm (n,) and its standard error over the draws (n,), to first order; NaN for one draw.

    Cost: one forward pass, and one backward pass per draw.
    Source: Novak et al. 2018, arXiv:1802.08760 (the norm); Hutchinson 1990 (the estimate).
    """
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    with space.exact():
        outputs = outer(space.outputs(leaves).flatten(1).double())
        rows = _pulled_back(outputs, leaves, signs.to(outputs))
        squares = torch.stack([row.double().square().sum(dim=1) for row in rows])
    norm = squares.mean(dim=0).sqrt()
    if len(squares) < 2:
        return norm, torch.full_like(norm, math.nan)
    return norm, squares.std(dim=0) / math.sqrt(len(squares)) / (2 * norm)


def gauss_newton_top(
    jacobian: Tensor, probabilities: Tensor, curvature: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The top eigenpair of J^T C J of each example, the Gauss-Newton matrix of the loss.

    With a factor C = L L^T, its eigenvalues other than zero are those of L^T (J J^T) L, a matrix
    of classes x classes; v = J^T L w is the eigenvector for w. If the network is piecewise linear
    (ReLU, pooling, batch norm in eval mode), J^T C J is the Hessian of the loss in the inputs,
    wherever that exists; otherwise it omits the network's own curvature.

    Args:
        jacobian: (n, classes, d), of the logits.
        probabilities: (n, classes) float64, the softmax of the logits.
        curvature: (n, classes, classes), the Hessian of another loss in the logits, symmetric and
            without negative eigenvalues. By default that of the cross-entropy, diag p - p p^T.

    Returns:
        eigenvalues (n,) float64, nat / pixel range^2, and eigenvectors (n, d) of norm 1 in the
        dtype of `jacobian`, up to their sign. NaN where J or p is not finite; the eigenvector is
        NaN also for an eigenvalue of 0.

    Cost: per example a product of classes^2 d and one eigenproblem of classes x classes.
    Source: Schraudolph 2002, Neural Computation 14, section 3.
    """
    if curvature is None:
        # L = diag sqrt(p) - p sqrt(p)^T gives diag p - p p^T, since p sums to 1.
        root = probabilities.sqrt()
        factor = -probabilities[:, :, None] * root[:, None, :]
        factor.diagonal(dim1=1, dim2=2).copy_(root * _others(probabilities))
    else:
        values, basis = _eigh(curvature.double())
        factor = basis * values.clamp(min=0).sqrt()[:, None, :]  # rounding may leave -1e-17
    eigenvalues, small = _top(factor.mT @ gram(jacobian) @ factor)
    weights = (factor @ small[:, :, None]).mT
    vectors = (weights @ jacobian.double())[:, 0]
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    return eigenvalues, unit.to(jacobian.dtype)


def _pulled_back(outputs: Tensor, leaves: Tensors, vectors: Tensor) -> Iterator[Tensor]:
    """J^T v of each example, (n, d), for each v, (classes) or (n, classes); the graph is freed."""
    for left, vector in zip(range(len(vectors))[::-1], vectors, strict=True):
        yield flattened(
            torch.autograd.grad(
                outputs,
                list(leaves.values()),
                vector.expand_as(outputs),
                retain_graph=left > 0,
                materialize_grads=True,
            )
        )


def _others(probabilities: Tensor) -> Tensor:
    """1 - p as the sum of the other probabilities, which does not cancel."""
    classes = probabilities.shape[1]
    apart = 1 - torch.eye(classes, dtype=probabilities.dtype, device=probabilities.device)
    return probabilities @ apart


def _top(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue (n,) and its eigenvector (n, size); rounding below 0 becomes 0."""
    values, vectors = _eigh(matrices)
    return values[:, -1].clamp(min=0), vectors[:, :, -1]


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh`; NaN where a matrix is not finite, which LAPACK refuses."""
    finite = matrices.isfinite().all(dim=2).all(dim=1)
    values, vectors = torch.linalg.eigh(matrices.where(finite[:, None, None], 0.0))
    return (
        values.where(finite[:, None], math.nan),
        vectors.where(finite[:, None, None], math.nan),
    )
