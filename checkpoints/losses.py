"""Per-example losses and accuracy."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100  # label with loss 0, torch's default `ignore_index`


# Losses that are negative log-likelihoods, in nat; of any other loss the unit is unknown.
_LIKELIHOODS = (
    nn.CrossEntropyLoss,
    nn.NLLLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.KLDivLoss,
    nn.PoissonNLLLoss,
    nn.GaussianNLLLoss,
)


def bare(loss: object) -> object:
    """What a partial function is made of, such as `partial(nll_loss, reduction="none")`."""
    return bare(loss.func) if isinstance(loss, partial) else loss


def unit_of(loss: object) -> str:
    """The unit of a loss: `nat` of a negative log-likelihood, otherwise `1`."""
    loss = bare(loss)
    known = (cross_entropy, functional.cross_entropy, functional.nll_loss)
    return "nat" if loss in known or isinstance(loss, _LIKELIHOODS) else "1"


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood of each example in nat: (N,) from (N, classes) and (N,).

    With a label for each position, (N, ...) for outputs (N, classes, ...), it is the mean over the
    example's own positions, those not `IGNORED`; 0 if it has none.

    Computed as ln(1 + sum of exp(z_c - z_target) over the other classes c), which does not cancel
    where the network is confident: loss, gradient and curvature keep their relative precision
    there. For other targets, such as probabilities, torch's own cross-entropy is used.

    Raises:
        ValueError: the outputs have a single class, whose likelihood is always 1.
    """
    if targets.is_floating_point() or not 1 <= targets.ndim == outputs.ndim - 1:
        return functional.cross_entropy(outputs, targets, reduction="none")
    if targets.ndim > 1:
        every = outputs.movedim(1, -1).flatten(0, -2)
        each = cross_entropy(every, targets.flatten())
        return mean_over_positions(each.view(targets.shape), targets)
    classes = outputs.shape[1]
    if classes < 2:
        raise ValueError(
            f"the network has {classes} output, but the loss is a cross-entropy over classes; "
            "expected at least 2. Return one output per class, or pass another loss."
        )
    ignored = targets == IGNORED
    target = targets.long().where(~ignored, 0)[:, None]
    rank = torch.arange(classes - 1, device=targets.device)
    others = outputs.gather(1, rank + (rank >= target))
    true = outputs.gather(1, target)[:, 0]
    # If all other classes are masked out, the loss is 0 and their logsumexp has no gradient.
    alone = torch.isneginf(others).all(dim=1) & (true > -torch.inf)
    gap = others.where(~alone[:, None], 0.0).logsumexp(dim=1) - true
    # ln(1 + e^gap), in whichever of two forms neither it nor its derivatives cancel.
    loss = torch.where(gap > 0, gap + functional.softplus(-gap), functional.softplus(gap))
    return loss.where(~(alone | ignored), 0.0)


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest output is that of the target: (N,) bool from (N, classes) and (N,).

    With a label for each position, (N, ...), it is the share of the example's own positions at
    which that is so, (N,) float64.
    """
    right = outputs.argmax(dim=1) == targets
    return right if targets.ndim == 1 else mean_over_positions(right.double(), targets)


def all_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest output is that of the target at every position: (N,) bool."""
    right = (outputs.argmax(dim=1) == targets) | (targets == IGNORED)
    return right.flatten(1).all(dim=1)


def mean_over_positions(values: Tensor, targets: Tensor) -> Tensor:
    """The mean of values (N, ...) over each example's own positions, (N,); 0 if it has none."""
    own = targets != IGNORED
    sums = values.where(own, 0.0).flatten(1).sum(dim=1)
    return sums / own.flatten(1).sum(dim=1).clamp(min=1)
