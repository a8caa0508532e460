"""Nearest neighbours and their principal directions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checkpoints.problem import Tensors
from landscape.core.jacobian import flattened

CHUNK = 500  # examples whose distances to all others are in memory at once


def neighbors(inputs: Tensors, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The nearest other examples of each example.

    Args:
        inputs: {name: (N, ...)}.
        count: number of neighbours.

    Returns:
        L2 distances to the nearest one, (N,), and the positions (N, count), nearest first.

    Raises:
        ValueError: fewer other examples than `count`.

    Cost: a matrix product of N x N x d in float64, on the device of `inputs`.
    """
    rows = flattened(inputs.values()).double()
    if len(rows) <= count:
        raise ValueError(
            f"{count} neighbours of each example need {count + 1} examples, and there are "
            f"{len(rows)}. Measure more of them"
            + (
                ", or pass smaller --neighbors and --tangents."
                if len(rows) > 2
                else ", or what needs no neighbours: --parts norms jacobian noise."
            )
        )
    squares = rows.square().sum(dim=1)
    nearest, distances = [], []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        # up to the part's own squares, which do not change the ranking
        apart = squares - 2 * part @ rows.T
        own = torch.arange(len(part), device=rows.device)
        apart[own, start + own] = torch.inf
        found = apart.topk(count, dim=1, largest=False).indices
        # A distance from these products would cancel for near duplicates.
        distances.append((rows[found[:, 0]] - part).norm(dim=1))
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
