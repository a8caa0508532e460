"""Norms of gradients and Jacobians at each example."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from checkpoints.problem import Problem, Tensors
from landscape.core import jacobian as jacobians
from landscape.sensitivity.examples import Examples

ORDERS = {"l2": 2.0, "l1": 1.0, "linf": float("inf")}


def classified(problem: Problem) -> bool:
    """Whether outputs are the logits of classes, and targets class indices."""
    targets = problem.targets
    return problem.correct is not None and targets.ndim == 1 and not targets.is_floating_point()


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """The true logit minus the largest other one, (n,) float64; negative if misclassified.

    Args:
        logits: (n, classes).
        targets: (n,), the indices of the true classes.
    """
    wide = logits.double()
    others = wide.scatter(1, targets[:, None], -torch.inf)
    return wide.gather(1, targets[:, None])[:, 0] - others.max(dim=1).values


def itself(examples: Examples) -> Tensors:
    """Loss of each example, correctness where it is defined and, for classification, the margin.

    Returns:
        {name: (n,)} float64: `loss`; `correct`, 0 or 1, of sequences the share; and `margin`.

    Cost: no evaluation of the network.
    """
    values = {"loss": examples.losses}
    for accuracy in examples.hits(examples.logits).values():
        values["correct"] = accuracy
    if classified(examples.space.problem):
        values["margin"] = margin(examples.logits, examples.targets)
    return values


def gradient_norms(examples: Examples) -> Tensors:
    """L2, L1 and L-infinity norms of the input gradients of the loss and of the margin.

    Returns:
        {name: (n,)} float64: `gradient_l2` and so on; for classification also `margin_gradient_l2`,
        and both divided by |margin|, `relative_gradient_l2`; for the margin's gradient this ratio
        does not change when all logits are scaled by a factor.

    Cost: one forward and one backward pass, for the margin; the loss's gradients are known.
    """
    gradients = {"gradient": examples.gradients}
    is_classified = classified(examples.space.problem)
    if is_classified:
        distance = partial(margin, targets=examples.targets)
        _, gradients["margin_gradient"] = jacobians.gradient(
            examples.space, examples.inputs, distance
        )
    values = {}
    for name, rows in gradients.items():
        for norm, order in ORDERS.items():
            size = torch.linalg.vector_norm(rows, order, dim=1)
            values[f"{name}_{norm}"] = size
            if is_classified:
                gap = margin(examples.logits, examples.targets).abs()
                values[f"relative_{name}_{norm}"] = size / gap
    return values


def jacobian_norms(examples: Examples) -> Tensors:
    """Exact norms of the Jacobian in the inputs, of the logits and of their softmax.

    Returns:
        {name: (n,)} float64: `jacobian_frobenius`, `jacobian_spectral`; for classification also
        `softmax_jacobian_frobenius`, `softmax_jacobian_spectral`, `gauss_newton_eigenvalue`, the
        top one for the cross-entropy, and the norms of the logits' Jacobian over |margin|,
        `relative_jacobian_frobenius` and `relative_jacobian_spectral`.

    Cost: a forward pass and a backward pass per class.
    Source: Novak et al. 2018, section 3.1, arXiv:1802.08760.
    """
    logits, rows = jacobians.jacobian(examples.space, examples.inputs)
    gram = jacobians.gram(rows)
    values = {}
    values["jacobian_frobenius"], values["jacobian_spectral"] = jacobians.norms(gram)
    if classified(examples.space.problem):
        p = logits.softmax(dim=1)
        values["softmax_jacobian_frobenius"], values["softmax_jacobian_spectral"] = jacobians.norms(
            gram, jacobians.softmax_jacobian(p)
        )
        values["gauss_newton_eigenvalue"] = jacobians.gauss_newton_top(rows, p)[0]
        size = margin(logits, examples.targets).abs()
        for name in ("jacobian_frobenius", "jacobian_spectral"):
            values[f"relative_{name}"] = values[name] / size
    return values


def estimated_jacobian_norms(examples: Examples, signs: Tensor) -> Tensors:
    """Frobenius norms of the Jacobians by Hutchinson's estimate, for many classes.

    Args:
        examples: n of them.
        signs: (draws, n, classes), entries 1 or -1.

    Returns:
        {name: (n,)} float64: `jacobian_frobenius` and its `_stderr`, and for classification those
        of `softmax_jacobian_frobenius`.

    Cost: one forward pass and one backward pass per draw; twice that with the softmax.
    """
    outer: dict[str, Callable[[Tensor], Tensor]] = {"jacobian_frobenius": torch.clone}
    if classified(examples.space.problem):
        outer["softmax_jacobian_frobenius"] = partial(torch.softmax, dim=1)
    values: Tensors = {}
    for name, function in outer.items():
        norm, stderr = jacobians.hutchinson(examples.space, examples.inputs, signs, function)
        values |= {name: norm, f"{name}_stderr": stderr}
    if classified(examples.space.problem):
        size = margin(examples.logits, examples.targets).abs()
        for name in ("jacobian_frobenius", "jacobian_frobenius_stderr"):
            values[f"relative_{name}"] = values[name] / size
    return values
