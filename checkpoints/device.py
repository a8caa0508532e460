"""The device a network runs on, and the arithmetic settings that make results reproducible."""

from __future__ import annotations

import ctypes.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor, nn

# The memory format of images and feature maps, and which kernels compute with them, fastest first.
# `native` is contiguous, without oneDNN and cuDNN.
Kernels: TypeAlias = Literal["channels_last", "contiguous", "native"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)
Movable = TypeVar("Movable", Tensor, nn.Module)


def device_named(name: str | None, rank: int = 0) -> torch.device:
    """The device called `name`; by default the GPU of this rank, or the CPU if there is no GPU.

    Args:
        name: `cpu`, `cuda`, `cuda:1` …
        rank: local rank of this process.

    Raises:
        ValueError: the device does not exist or cannot be used.
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
def exact_arithmetic(kernels: Kernels = "channels_last") -> Iterator[None]:
    """Compute in true float32 with these kernels, deterministically on a GPU.

    Without it, the user's settings may replace float32 by TF32 or bfloat16. A backward pass selects
    its kernels again, so it must run inside this context as well.
    """
    native = kernels == "native"
    settings: list[tuple[Any, str, Any]] = [
        (backend, "fp32_precision", "ieee")
        for backend in _MULTIPLYING
        if hasattr(backend, "fp32_precision")
    ] or [
        (torch.backends.cuda.matmul, "allow_tf32", False),
        (torch.backends.cudnn, "allow_tf32", False),
    ]
    if torch.cuda.is_available():
        settings += [(torch.backends.cudnn, "benchmark", False)]
        settings += [(torch.backends.cudnn, "deterministic", True)]
    if native:
        settings += [(torch.backends.mkldnn, "enabled", False)]
        settings += [(torch.backends.cudnn, "enabled", False)]
    with ExitStack() as held:
        for backend, name, value in settings:
            held.enter_context(_set(backend, name, value))
        yield


# Backends with their own float32 precision setting, from torch 2.9 on. Each is set separately:
# torch refuses to read the older, common settings while these differ.
_MULTIPLYING = (
    torch.backends.cuda.matmul,
    *(getattr(torch.backends.mkldnn, operation, None) for operation in ("matmul", "conv", "rnn")),
    *(getattr(torch.backends.cudnn, operation, None) for operation in ("conv", "rnn")),
)


@contextmanager
def _set(backend: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(backend, name)
    if before == value:
        yield
        return
    setattr(backend, name, value)
    try:
        yield
    finally:
        setattr(backend, name, before)


def in_order(value: Movable, kernels: Kernels) -> Movable:
    """A network or a batch in the memory format of these kernels; a network is changed in place.

    Convolutions of images (N, C, H, W) are fastest in channels-last format. It applies to tensors
    with four axes only: other batches, and networks without such a parameter, stay as they are.
    """
    if isinstance(value, Tensor):
        if kernels == "channels_last":
            images = value.ndim == 4
            return value.contiguous(memory_format=torch.channels_last) if images else value
        if in_default_order(value):
            return value
        return value.clone(memory_format=torch.contiguous_format)
    if kernels == "channels_last":
        if any(parameter.ndim == 4 for parameter in value.parameters()):
            value.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return value
    with torch.no_grad():
        for tensor in (*value.parameters(), *value.buffers()):
            tensor.data = in_order(tensor.data, kernels)
    return value


def in_default_order(value: Tensor) -> bool:
    """Whether a tensor has the strides of a newly allocated one.

    `is_contiguous` is not enough: it ignores the strides of axes of length 1, but they decide
    whether torch treats the weight of a 1x1 convolution as channels-last.
    """
    expected, step = [], 1
    for size in reversed(value.shape):
        expected.append(step)
        step *= max(size, 1)
    return value.stride() == tuple(reversed(expected))


def channels_come_last(value: Tensor) -> bool:
    """Whether torch treats a tensor as channels-last, and so convolves it in that format.

    `is_contiguous` is not enough: it ignores the strides of axes of length 1, which count here. A
    view, such as a crop of contiguous images, is neither contiguous nor channels-last; torch copies
    it before convolving. A sequence (N, C, L) counts as an image of one row. A tensor with another
    number of axes counts as channels-last unless it is in the default order.
    """
    if value.ndim == 3:
        value = value.unsqueeze(2)
    if value.ndim != 4:
        return not in_default_order(value)
    least, strides = 0, value.stride()
    if strides[1] == 0:
        return False
    for axis in (1, 3, 2, 0):
        size, step = value.shape[axis], strides[axis]
        if size == 0 or step < least or (axis == 0 and least == strides[1]):
            return False
        least = step * max(size, 1)
    return True


# From torch's allocator on the CPU, oneDNN, whose primitives need memory, and CUDA's libraries.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",
    "out of memory",
    "ALLOC_FAILED",
)


def memory_exhausted(error: BaseException) -> bool:
    """Whether an error means out of memory, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Configure glibc's malloc to keep freed memory instead of returning it to the kernel.

    Every forward pass allocates and frees the same large blocks. By default each is unmapped when
    freed and its pages are faulted in again, which takes up to half of the time on a CPU.

    Returns:
        Whether it succeeded; False if the C library is not glibc.
    """
    name = ctypes.util.find_library("c")
    if not name:
        return False
    mallopt = getattr(ctypes.CDLL(name), "mallopt", None)
    if mallopt is None:
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 256 * 2**20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def peak_memory() -> int:
    """Bytes that this process has held at most, on the GPU where it used one; 0 where unknown."""
    if torch.cuda.is_available() and (held := torch.cuda.max_memory_allocated()):
        return held
    try:
        import resource  # of Unix alone
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
