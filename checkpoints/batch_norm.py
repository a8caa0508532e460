"""Recompute batch-norm statistics from a calibration set at a network's current weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.device import Kernels, exact_arithmetic, in_order

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.inference_mode()
def recompute_statistics(
    network: nn.Module,
    outputs: Callable[[nn.Module, dict[str, Tensor]], Any],
    calibration: Mapping[str, Tensor],
    kernels: Kernels = "contiguous",
) -> None:
    """Set every batch norm of `network` to its exact statistics over the calibration set.

    The set passes through as one batch: averaging over batches would not give the variance.

    Args:
        network: modified in place.
        outputs: calls the network on raw inputs, such as `Problem.outputs`.
        calibration: {name: (M, ...)}.
        kernels: which kernels to use; see `checkpoints.device`.
    """
    norms = [module for module in network.modules() if isinstance(module, NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    batch = {name: in_order(value, kernels) for name, value in calibration.items()}
    with exact_arithmetic(kernels):
        outputs(network, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
