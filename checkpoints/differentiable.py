"""Layers in a form that can be differentiated twice, while a network runs.

Torch's fused attention kernels and its Hardsigmoid have no second derivative, and that of its fused
weight norm is wrong (the Hessian is not symmetric); the same functions of elementary operations
have the right one. The values agree to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_HARDSIGMOIDS = (functional.hardsigmoid, torch._C._nn.hardsigmoid)


class _Elementary(TorchFunctionMode):
    """Replaces what has no second derivative by the same function of operations that have."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _HARDSIGMOIDS:
            return functional.relu6(args[0] + 3) / 6
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """G v / |v|, the norm over all axes but `dim`; over all where that is -1."""
    axes = [axis for axis in range(v.ndim) if axis != dim or dim == -1]
    return v * (g / v.square().sum(axes, keepdim=True).sqrt())


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Stand in it while a network's outputs are computed that will be differentiated.

    Where gradients are off it does nothing: values alone may use the fast kernels.
    """
    if not torch.is_grad_enabled():
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), _Elementary():
        yield
