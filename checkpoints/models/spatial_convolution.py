"""Regular, deformable and dynamic convolution as spatial aggregation, for sequences and images."""

from __future__ import annotations

import functools
import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints.declared import Count, enforced
from checkpoints.hooks import Exposed
from checkpoints.models.aggregation import Aggregation, grid, tokens


class Sampling(Aggregation):
    """Convolutions: head m samples the features at one position, W_m is the weight of that tap.

    A_m(q, k) = G(k, s q + p_m + offset_m(q)), with the stride s, the tap's place p_m and the
    bilinear kernel G(a, b) = max(0, 1 - |a - b|), multiplied over axes; W'_m is the identity.
    Outside there are zeros.

    Args:
        inputs: number of channels.
        outputs: C'.
        kernel: odd number of taps along each axis.
        stride: positions between two results, along each axis.
        axes: 1 for sequences, 2 for images.
        bias: add a trained bias.

    Raises:
        ValueError: the kernel is even.

    Source: Zhu et al. 2019, arXiv:1904.05873, section 3.2.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        axes: int = 2,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.axes = _odd(kernel), stride, axes
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *(kernel,) * axes))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @abstractmethod
    def positions(self, features: Tensor) -> Tensor:
        """Where each tap samples, (N or 1, M, Q, axes), in positions of `features`."""

    def sizes(self, queries: Tensor) -> Sequence[int]:
        """See `Aggregation.sizes`."""
        return [(size - 1) // self.stride + 1 for size in queries.shape[2:]]

    def weights_of(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See `Aggregation.weights_of`."""
        at, places = self.positions(queries), grid(keys.shape[2:], self.weight)
        near = (1 - (at[..., None, :] - places).abs()).clamp(min=0)
        return functools.reduce(torch.mul, near.unbind(dim=-1))

    def values_of(self, keys: Tensor) -> Tensor:
        """See `Aggregation.values_of`."""
        return tokens(keys)[:, None]

    def combined(self, heads: Tensor) -> Tensor:
        """See `Aggregation.combined`."""
        return self._projected(heads.transpose(1, 2).flatten(2))

    def _projected(self, sampled: Tensor) -> Tensor:
        """(N, Q, M C), the taps of each result one after another, to (N, Q, C')."""
        weight = self.weight.flatten(2).transpose(1, 2).flatten(1)
        return functional.linear(sampled, weight, self.bias)

    def _places(self, features: Tensor) -> Tensor:
        """The undeformed positions s q + p_m, (1, M, Q, axes)."""
        taps = grid((self.kernel,) * self.axes, self.weight) - self.kernel // 2
        queries = grid(self.sizes(features), self.weight, self.stride)
        return (taps[:, None] + queries)[None]


class RegularConvolution(Sampling):
    """Convolution: each tap samples at its own place."""

    def positions(self, features: Tensor) -> Tensor:
        """See `Sampling.positions`."""
        return self._places(features)

    def forward(self, queries: Tensor, keys: Tensor | None = None) -> Tensor:
        """Torch's convolution, with zero padding that keeps the size at stride 1.

        Args:
            queries: (N, C, *sizes).
            keys: None; a convolution has one set of features.
        """
        return _convolved(queries, self.weight, self.bias, self.stride)


class DeformableConvolution(Sampling):
    """Convolution whose taps are moved by offsets that the content of the query decides.

    Bilinear sampling is written with gathers, which can be differentiated twice; `grid_sample` has
    no second derivative. G has kinks at whole positions, where the derivative is that to the right.

    Args:
        inputs: see `Sampling`, as for all others.
        outputs: C'.
        kernel: taps along each axis.
        stride: see `Sampling`.
        axes: 1 or 2.
        offset_kernel: taps along each axis of the convolution that computes the offsets: 1 is the
            paper's formula w_m . x_q, 3 the code of Dai et al. 2017 (arXiv:1703.06211).
        bias: add a trained bias.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        axes: int = 2,
        offset_kernel: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, kernel=kernel, stride=stride, axes=axes, bias=bias)
        self.offsets = Offsets(inputs, kernel**axes, offset_kernel, stride, axes)

    def positions(self, features: Tensor) -> Tensor:
        """See `Sampling.positions`."""
        return self._places(features) + self._moved(features)

    def _moved(self, features: Tensor) -> Tensor:
        """The offsets, (N, M, Q, axes)."""
        offsets: Tensor = self.offsets(features)
        return offsets.flatten(3).movedim(2, -1)

    def forward(self, queries: Tensor, keys: Tensor | None = None) -> Tensor:
        """The formula, with the keys where G is not zero only: two along each axis.

        Args:
            queries: (N, C, *sizes).
            keys: None; a convolution has one set of features.

        Cost: N Q M C (2^axes + C') multiplications, and memory for 2^axes N Q M C numbers.
        """
        sampled = _sampled(queries, self._places(queries), self._moved(queries))
        result = self._projected(sampled.transpose(1, 2).flatten(2)).mT
        return result.reshape(*result.shape[:2], *self.sizes(queries))


class Offsets(nn.Module):
    """The offsets of each tap, a convolution that begins at 0, so at a regular convolution."""

    rate_factor = 0.1  # of the learning rate, read by checkpoints.train; Zhu et al. 2019

    def __init__(self, channels: int, taps: int, kernel: int, stride: int, axes: int) -> None:
        super().__init__()
        self.taps, self.axes, self.stride = taps, axes, stride
        sides = (_odd(kernel, "offset_kernel"),) * axes
        self.weight = nn.Parameter(torch.zeros(taps * axes, channels, *sides))
        self.bias = nn.Parameter(torch.zeros(taps * axes))

    def forward(self, features: Tensor) -> Tensor:
        """(N, taps, axes, *sizes of the result), in positions."""
        moved = _convolved(features, self.weight, self.bias, self.stride)
        return moved.reshape(len(moved), self.taps, self.axes, *moved.shape[2:])


class DynamicConvolution(Aggregation):
    """Depth-wise convolution whose kernel is a softmax that the content of the query decides.

    A_m(q, q + p) = softmax over p of (W x_q)_{m, p}: one kernel for the channels of a group, of
    which there are M. A gated linear unit stands before it and a projection after it, as in its
    source; outside there are zeros. The kernels (N, *sizes, taps, M) are an inner value, `kernels`.

    Args:
        channels: C, divisible by `groups`.
        groups: M.
        kernel: odd number of taps along each axis.
        axes: 1 for sequences, 2 for images.

    Raises:
        ValueError: the kernel is even, or C not divisible by `groups`.

    Source: Wu et al. 2019, arXiv:1901.10430, section 3; for images, Zhu et al. 2019, section 3.2.
    """

    @enforced()
    def __init__(
        self, channels: Count, *, groups: Count = 16, kernel: Count = 3, axes: int = 2
    ) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(
                f"DynamicConvolution: groups={groups}; expected a divisor of {channels} channels."
            )
        self.groups, self.kernel, self.axes = groups, _odd(kernel), axes
        self.gated = nn.Linear(channels, 2 * channels)
        self.predicted = nn.Linear(channels, groups * kernel**axes, bias=False)
        self.output = nn.Linear(channels, channels)
        self.kernels = Exposed()

    def weights_of(self, queries: Tensor, keys: Tensor) -> Tensor:
        """See `Aggregation.weights_of`."""
        kernels = self._kernels(self._values(queries)).flatten(1, self.axes)
        places = grid(queries.shape[2:], kernels)
        taps = grid((self.kernel,) * self.axes, kernels) - self.kernel // 2
        hits = (taps[:, None, None] + places[:, None] == places).all(dim=-1)
        return torch.einsum("nqtm,tqk->nmqk", kernels, hits.to(kernels))

    def values_of(self, keys: Tensor) -> Tensor:
        """See `Aggregation.values_of`."""
        return self._by_group(self._values(keys).flatten(1, self.axes)).transpose(1, 2)

    def combined(self, heads: Tensor) -> Tensor:
        """See `Aggregation.combined`."""
        result: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return result

    def forward(self, queries: Tensor, keys: Tensor | None = None) -> Tensor:
        """The formula, one tap after another, of (N, C, *sizes).

        Args:
            queries: (N, C, *sizes).
            keys: None; a convolution has one set of features.

        Cost: N Q C taps multiplications for the sum, N Q C (3 C + M taps) for the projections.
        """
        values = self._values(queries)
        kernels = self._kernels(values)
        sizes, margin = values.shape[1:-1], self.kernel // 2
        padded = functional.pad(values, (0, 0, *(margin, margin) * self.axes))
        total: Tensor | None = None
        starts = itertools.product(range(self.kernel), repeat=self.axes)
        for start, weight in zip(starts, kernels.unbind(dim=-2), strict=True):
            part = [slice(a, a + size) for a, size in zip(start, sizes, strict=True)]
            term = self._by_group(padded[(slice(None), *part)]) * weight[..., None]
            total = term if total is None else total + term
        assert total is not None  # a kernel has at least one tap
        result: Tensor = self.output(total.flatten(-2))
        return result.movedim(-1, 1)

    def _values(self, features: Tensor) -> Tensor:
        """(N, *sizes, C), after the gated linear unit."""
        return functional.glu(self.gated(features.movedim(1, -1)), dim=-1)

    def _kernels(self, values: Tensor) -> Tensor:
        """(N, *sizes, taps, M)."""
        logits = self.predicted(values)
        logits = logits.reshape(*logits.shape[:-1], -1, self.groups)
        result: Tensor = self.kernels(logits.softmax(dim=-2))
        return result

    def _by_group(self, values: Tensor) -> Tensor:
        """(..., M D) to (..., M, D)."""
        return values.reshape(*values.shape[:-1], self.groups, -1)


def _convolved(features: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    convolution = functional.conv1d if weight.ndim == 3 else functional.conv2d
    return convolution(features, weight, bias, stride, weight.shape[-1] // 2)


def _sampled(features: Tensor, places: Tensor, offsets: Tensor) -> Tensor:
    """Interpolate features (N, C, *sizes) at whole places and offsets from them; (N, M, Q, C).

    Both are (N or 1, M, Q, axes). Each of the 2^axes corners around a position is gathered, and
    weighted by G; those outside have weight 0. Places and offsets are not added: near the kink at
    an offset of 0, where training begins, the sum would round to the other side of it.
    """
    sizes = features.shape[2:]
    rows = tokens(features)
    examples, count, channels = rows.shape
    rows = rows.reshape(examples * count, channels)
    first = torch.arange(examples, device=rows.device)[:, None, None] * count
    along = [
        _neighbors(places[..., axis], offsets[..., axis], size, stride=math.prod(sizes[axis + 1 :]))
        for axis, size in enumerate(sizes)
    ]
    total: Tensor | None = None
    for corner in itertools.product(*along):
        index = sum((index for index, _ in corner), first)
        weight = functools.reduce(torch.mul, [weight for _, weight in corner])
        part = weight[..., None] * rows[index]
        total = part if total is None else total + part
    assert total is not None  # there are at least two corners
    return total


def _neighbors(
    places: Tensor, offsets: Tensor, size: int, *, stride: int
) -> list[tuple[Tensor, Tensor]]:
    """The two whole positions around each along one axis: their part of the index, and of G."""
    below = offsets.detach().floor()
    beyond = offsets - below  # from 0 to 1
    first = places + below
    pairs = []
    for place, weight in ((first, 1 - beyond), (first + 1, beyond)):
        inside = ((place >= 0) & (place < size)).to(weight)
        pairs.append((place.clamp(0, size - 1).long() * stride, weight * inside))
    return pairs


def _odd(kernel: int, name: str = "kernel") -> int:
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"{name}={kernel}; expected an odd number, so that it has a middle.")
    return kernel
