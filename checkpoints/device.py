"""Where a network runs, and the arithmetic that makes its numbers repeatable there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def device_named(name: str | None, rank: int = 0) -> torch.device:
    """The device called `name`; without a name the GPU of this rank, or the CPU where none is.

    Args:
        name: `cpu`, `cuda`, `cuda:1` …
        rank: of this process among those on its machine.

    Raises:
        ValueError: there is no such device, or it cannot be used.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", rank % torch.cuda.device_count())
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used: {reason}") from error
    return device


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """On a GPU: algorithms that give the same bits again, and float32 that is float32, not TF32."""
    if not torch.cuda.is_available():
        yield
        return
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul


def channels_last(value: Tensor) -> Tensor:
    """A batch of images (N, C, H, W) in the order that convolutions are fast in; else `value`."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def memory_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory was not to be had, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
