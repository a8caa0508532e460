"""Nearest neighbours and their principal directions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checkpoints.problem import Tensors
from landscape.core.jacobian import flattened

CHUNK = 500  # examples whose distances to all others are in memory at once


def neighbors(
    inputs: Tensors,
    reference: Tensors,
    own: NDArray[np.int64],
    count: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The nearest reference inputs of each example, itself excepted.

    Args:
        inputs: {name: (N, ...)}.
        reference: {name: (M, ...)}.
        own: (N,) where each example itself is in `reference`; -1 where it is not.
        count: how many.

    Returns:
        L2 distances to the nearest one, (N,), and the positions in `reference` (N, count),
        nearest first.

    Raises:
        ValueError: there are not so many others.

    Cost: a matrix product of N x M x d in float64, on the device of `inputs`.
    """
    rows, others = (flattened(each.values()).double() for each in (inputs, reference))
    if len(others) <= count:
        raise ValueError(
            f"{count} neighbours of each example need {count + 1} examples, and there are "
            f"{len(others)}. Measure more of them"
            + (
                ", or pass smaller --neighbors and --tangents."
                if len(others) > 2
                else ", or what needs no neighbours: --parts norms jacobian noise."
            )
        )
    squares = others.square().sum(dim=1)
    itself = torch.from_numpy(own).to(rows.device)
    nearest, distances = [], []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        apart = squares - 2 * part @ others.T  # up to the part's own squares, which rank nothing
        column = itself[start : start + CHUNK]
        (there,) = torch.where(column >= 0)
        apart[there, column[there]] = torch.inf
        found = apart.topk(count, dim=1, largest=False).indices
        # A distance from these products would cancel for near duplicates.
        distances.append((others[found[:, 0]] - part).norm(dim=1))
        nearest.append(found)
    return torch.cat(distances).cpu().numpy(), torch.cat(nearest).cpu().numpy()


def tangents(points: Tensor, count: int) -> Tensor:
    """Directions in which an example and its neighbours spread most: local PCA.

    Args:
        points: (n, neighbours + 1, d), the example and its neighbours.
        count: of directions, at most the number of neighbours.

    Returns:
        (n, count, d) float64 of norm 1, by decreasing variance of these points about their mean;
        the sign makes the largest entry positive.

    Cost: per example one singular value decomposition of (neighbours + 1) x d.
    """
    centered = points.double() - points.double().mean(dim=1, keepdim=True)
    axes = torch.linalg.svd(centered, full_matrices=False).Vh[:, :count]
    largest = axes.gather(2, axes.abs().argmax(dim=2, keepdim=True))
    signed: Tensor = axes * largest.sign()
    return signed
