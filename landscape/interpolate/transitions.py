"""How many piecewise linear units switch along a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints.problem import Tensors
from landscape.core.spaces import USUAL_BATCH, Inputs

aten = torch.ops.aten


def _above(values: Tensor, threshold: float = 0.0, *_: Any) -> Tensor:
    return values > threshold


def _between(values: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    return (values > low).to(torch.int8) + (values >= high)


# The linear piece that each unit of an activation is on; the arguments are the operation's own.
_PIECES: dict[Any, Callable[..., Tensor]] = {
    aten.relu: _above,
    aten.relu_: _above,
    aten.leaky_relu: lambda values, *_: _above(values),
    aten.leaky_relu_: lambda values, *_: _above(values),
    aten.prelu: lambda values, *_: _above(values),
    aten._prelu_kernel: lambda values, *_: _above(values),
    aten.threshold: _above,
    aten.threshold_: _above,
    aten.hardtanh: _between,
    aten.hardtanh_: _between,
    aten.relu6: lambda values: _between(values, 0.0, 6.0),
    aten.relu6_: lambda values: _between(values, 0.0, 6.0),
}


class _Switches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while the network runs, the ReLUs that differ between neighbouring examples.

    It intercepts operators: `checkpoints.hooks` sees only what modules return, and a `torch.relu`
    in a network's forward method is not a module.
    """

    def __init__(self, examples: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = torch.zeros(max(examples - 1, 0), dtype=torch.int64)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        piece_of = _PIECES.get(func.overloadpacket)
        if piece_of is not None and args[0].ndim and len(args[0]) == len(self.counts) + 1:
            piece = piece_of(*args).reshape(len(args[0]), -1)
            self.counts += (piece[1:] != piece[:-1]).sum(dim=1).cpu()
        return func(*args, **(kwargs or {}))


def transitions(space: Inputs, path: Tensors) -> tuple[Any, Tensor]:
    """The network's outputs along a path, and how many ReLUs switch at each of its steps.

    A unit is one entry of a feature map; it switches if its input is above 0 at one of two
    neighbouring points and not at the other. Every ReLU is counted, however it is called, including
    leaky ones, thresholds and those with two kinks (ReLU6, Hardtanh), unless its first axis is not
    the examples. Smooth activations have no such units. A unit that switches twice between two
    points is not counted: a finer path may count more, never fewer.

    Args:
        space: the only caller of the network.
        path: examples, {name: (n, ...)}, in the order of the path.

    Returns:
        The outputs (n, ...), and (n - 1,) counts.

    Cost: one forward pass of the path; a layer's pattern is kept only until it is compared.
    Source: Novak et al. 2018, section 3.2, arXiv:1802.08760.
    """
    count = len(next(iter(path.values())))
    size = space.problem.batch_size or USUAL_BATCH
    outputs, switched = [], []
    for start in range(0, max(count - 1, 1), size):
        # Neighbouring batches share a point, so no step between them is lost.
        part = slice(start, min(start + size + 1, count))
        with torch.inference_mode(), _Switches(part.stop - start) as switches:
            found = space.outputs(path, part)
        outputs.append(found[1:] if start else found)
        switched.append(switches.counts)
    return torch.cat(outputs), torch.cat(switched)
