"""Losses of each example."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # the label whose loss torch, too, takes for 0


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood of each example in nat: (N,) from (N, classes) and (N,).

    As ln(1 + sum of exp(z_c - z_target) over the other classes c), so that nothing cancels where
    the network is certain: the loss, its gradient and its curvature there are as exact, relative
    to their size, as anywhere else. Targets of another form, such as probabilities, are left to
    torch's own.

    Raises:
        ValueError: outputs of a single class, whose likelihood is always 1.
    """
    if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        return functional.cross_entropy(outputs, targets, reduction="none")
    classes = outputs.shape[1]
    if classes < 2:
        raise ValueError(
            f"the network has {classes} output and the loss is the cross-entropy of classes; "
            "expected an output a class, or a loss of your own."
        )
    ignored = targets == IGNORED
    target = targets.long().where(~ignored, 0)[:, None]
    rank = torch.arange(classes - 1, device=targets.device)
    others = outputs.gather(1, rank + (rank >= target))
    true = outputs.gather(1, target)[:, 0]
    # Where all others are masked out nothing depends on them, and their logsumexp has no slope.
    alone = torch.isneginf(others).all(dim=1) & (true > -torch.inf)
    gap = others.where(~alone[:, None], 0.0).logsumexp(dim=1) - true
    # ln(1 + e^gap), from the side on which neither it nor its derivatives cancel.
    loss = torch.where(gap > 0, gap + functional.softplus(-gap), functional.softplus(gap))
    return loss.where(~(alone | ignored), 0.0)


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest output is the target's: (N,) bool from (N, classes) and (N,)."""
    return outputs.argmax(dim=1) == targets
