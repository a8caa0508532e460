"""A curvature matrix times a vector, for one batch, by automatic differentiation.

Both functions take the network as `outputs_at`, from a point to outputs, and the loss as `loss_of`,
from outputs to a scalar. They return the products with the matrices named in `parts`, the Hessian's
first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, func

from checkpoints.problem import Tensors

NO_SECOND = (
    "a layer has no second derivative: {}. Replace it by the same function of elementary "
    "operations."
)
Part: TypeAlias = Literal["hessian", "gauss_newton"]


def doubly_backward(
    parts: Sequence[Part],
    outputs_at: Callable[[Tensors], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    point: Tensors,
    vector: Tensors,
) -> list[Tensors]:
    """The products by reverse mode alone, which every trainable layer supports.

    Raises:
        ValueError: a layer has no second derivative.

    Cost: about four gradients for the Hessian; the memory of two passes.
    Source: Pearlmutter 1994; for the Gauss-Newton matrix, Schraudolph 2002.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in point.items()}
    at, along = list(leaves.values()), list(vector.values())
    products = []
    try:
        with torch.enable_grad():
            outputs = outputs_at(leaves)
            if "hessian" in parts:
                gradient = _pullback([loss_of(outputs)], at, create_graph=True)
                _check_twice_differentiable(gradient)
                products.append(_pullback(gradient, at, along))
            if "gauss_newton" in parts:
                # J v is the derivative, in the direction v, of u -> J^T u, which is linear.
                seed = torch.zeros_like(outputs, requires_grad=True)
                transposed = _pullback([outputs], at, [seed], create_graph=True)
                (forward,) = _pullback(transposed, [seed], along)
                leaf = outputs.detach().requires_grad_()
                slope = _pullback([loss_of(leaf)], [leaf], create_graph=True)
                (bent,) = _pullback(slope, [leaf], [forward.detach()])
                products.append(_pullback([outputs], at, [bent.detach()]))
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if "derivative" not in reason and "not implemented" not in reason:
            raise
        raise ValueError(NO_SECOND.format(reason)) from error
    return [dict(zip(point, product, strict=True)) for product in products]


def forward_over_reverse(
    parts: Sequence[Part],
    outputs_at: Callable[[Tensors], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    point: Tensors,
    vector: Tensors,
) -> list[Tensors]:
    """The same products by forward over reverse mode: the form that `split_graph` can split."""
    products: list[Tensors] = []
    if "hessian" in parts:
        slope = func.grad(lambda point: loss_of(outputs_at(point)))
        products.append(_tangent(slope, point, vector))
    if "gauss_newton" in parts:
        outputs, transposed = func.vjp(outputs_at, point)  # type: ignore[misc]
        forward = _tangent(outputs_at, point, vector)
        products.append(transposed(_tangent(func.grad(loss_of), outputs, forward))[0])
    return products


def _check_twice_differentiable(gradient: Sequence[Tensor]) -> None:
    """Refuse layers marked once_differentiable: autograd would treat their part as constant."""
    nodes = [value.grad_fn for value in gradient if value.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name().endswith("Error"):
            raise ValueError(NO_SECOND.format("its backward pass is marked once_differentiable"))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)


def _tangent(function: Callable[[Any], Any], at: Any, direction: Any) -> Any:
    """The derivative of `function` in a direction, in forward mode."""
    _, derivative = func.jvp(function, (at,), (direction,))  # type: ignore[misc]
    return derivative


def _pullback(
    values: Sequence[Tensor],
    at: Sequence[Tensor],
    seeds: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    """The gradient of sum(values * seeds) in `at`; zero for tensors that nothing depends on."""
    weights = [torch.ones_like(v) for v in values] if seeds is None else seeds
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(at)
    if pairs:
        found = torch.autograd.grad(
            [v for v, _ in pairs],
            at,
            [w for _, w in pairs],
            create_graph=create_graph,
            retain_graph=True,
            allow_unused=True,
        )
    return [torch.zeros_like(a) if g is None else g for g, a in zip(found, at, strict=True)]
