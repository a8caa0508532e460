"""What a forward pass of a network costs: parameters, operations, memory and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from checkpoints.models.aggregation import Aggregation

_BATCH, _REPEATS = 32, 7


def cost(network: nn.Module, input_shape: Sequence[int], device: torch.device) -> dict[str, float]:
    """The cost of one example.

    Args:
        network: of one input.
        input_shape: of an example.
        device: where it is timed.

    Returns:
        `parameters`; `flops` of convolutions and matrix products, two a multiplication and addition
        (sampling by gathers, softmax, norms and sums count nothing); `memory` in bytes that a
        training step keeps for the backward pass; `seconds` of a forward pass, in batches of 32;
        `module_seconds`, those within its attention, deformable and dynamic convolutions. Times are
        medians, and hang on the machine and on what else it does.

    Cost: one forward pass of one example, two of a batch with a graph, seven of a batch.
    """
    from torch.utils.flop_counter import FlopCounterMode  # late: it takes a while

    network = network.to(device).eval()
    images = torch.rand(
        _BATCH, *input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32
    ).to(device)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(images[:1])
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(images)  # alive until the end of this block: no address is used twice
        memory = sum(size for address, size in kept.items() if address not in own)
    del output
    seconds, inside = _timed(network, images)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "flops": counted.get_total_flops(),
        "memory": memory / _BATCH,
        "seconds": seconds / _BATCH,
        "module_seconds": inside / _BATCH,
    }


def _timed(network: nn.Module, images: Tensor) -> tuple[float, float]:
    """Median seconds of a forward pass, and of what its aggregations take of it."""
    spent: list[float] = []

    def now() -> float:
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter()

    hooks = []
    for module in network.modules():
        if isinstance(module, Aggregation):
            hooks.append(module.register_forward_pre_hook(lambda *_: spent.append(-now())))
            hooks.append(module.register_forward_hook(lambda *_: spent.append(now())))
    whole, inside = [], []
    try:
        with torch.no_grad():
            for _ in range(_REPEATS):
                spent.clear()
                start = now()
                network(images)
                whole.append(now() - start)
                inside.append(sum(spent))
    finally:
        for hook in hooks:
            hook.remove()
    return statistics.median(whole), statistics.median(inside)
