"""Generalised spatial attention: a softmax over the sum of up to four terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from checkpoints.declared import Count, enforced
from checkpoints.hooks import Exposed
from checkpoints.models.aggregation import Aggregation, grid, tokens

# In the order of the switches: "0010" is the third alone.
TERMS = ("query_key", "query_position", "key", "position")
Encoding = Literal["concatenated", "added"]


class SpatialAttention(Aggregation):
    """Attention of M heads with the logits E1 + E2 + E3 + E4, each term switched on or off.

    With z_q and x_k the contents, U, V^C and V^R projections to d = C / M channels per head that
    the terms share, R a sine encoding of the relative position, and u, v trained vectors:

    | switch | term | formula | depends on |
    |---|---|---|---|
    | 1000 | `query_key` | (U z_q) . (V^C x_k) | both contents |
    | 0100 | `query_position` | (U z_q) . (V^R R_{k-q}) | content of the query, position |
    | 0010 | `key` | u . (V^C x_k) | content of the key: one map for all queries |
    | 0001 | `position` | v . (V^R R_{k-q}) | position: one map for all inputs |

    0000 is a control: uniform weights, so the mean over the keys. Only what the chosen terms use
    becomes a parameter. Inner values (`checkpoints.hooks`): `energies.NAME` for each term,
    `logits`, their sum, and `weights`, after the softmax, (N, M, Q, K) each; Q is 1 where a value
    is the same for all queries. So 0010 computes one map and broadcasts it.

    Deviations from mmcv's GeneralizedAttention, where it deviates from the paper: R concatenates
    the encodings of both axes. `encoding="added"` follows mmcv, which adds two energies, divided by
    sqrt(2). Since energies are linear in R, both are the same functions, with the same distribution
    at initialisation; SGD moves the product at half the rate with `added`.

    Args:
        channels: C, of queries, keys and result; divisible by `heads` and, for terms with a
            position, by twice the number of axes.
        terms: four switches, such as "1111" or "0010".
        heads: M.
        axes: axes of positions: 1 for sequences, 2 for images.
        key_stride: keys and values are taken at every so many positions along each axis.
        reach: a query sees keys up to this far along each axis; None: all keys.
        scaled: divide the energies by sqrt(d). Paper and mmcv do not.
        encoding: see above.
        wave_length: base of the frequencies, see `sine_encoding`; 1000 as in mmcv.

    Raises:
        ValueError: an option has a value that is not allowed.

    Source: Zhu et al. 2019, arXiv:1904.05873, section 3.1; mmcv 1.x, cnn/bricks.
    """

    @enforced()
    def __init__(
        self,
        channels: Count,
        *,
        terms: str | int = "1111",
        heads: Count = 8,
        axes: Literal[1, 2] = 2,
        key_stride: Count = 1,
        reach: int | None = None,
        scaled: bool = False,
        encoding: Encoding = "concatenated",
        wave_length: Annotated[float, ("above", 0)] = 1000.0,
    ) -> None:
        super().__init__()
        self.terms = terms_of(terms)
        self.heads, self.axes, self.key_stride, self.reach = heads, axes, key_stride, reach
        self.wave_length = wave_length
        near = f"None, or at least key_stride - 1 = {key_stride - 1}: some query has no key so near"
        for name, value, fits, expected in (
            ("heads", heads, channels % heads == 0, f"a divisor of {channels}"),
            ("reach", reach, reach is None or reach >= key_stride - 1, near),
        ):
            if not fits:
                raise ValueError(f"SpatialAttention: {name}={value!r}; expected {expected}.")
        positions = self._has("query_position", "position")
        if positions and channels % (2 * axes):
            raise ValueError(
                f"SpatialAttention: channels={channels}; expected a multiple of {2 * axes}, for a "
                f"sine and a cosine on each of {axes} axes."
            )
        width = channels // heads
        self.scale = width**-0.5 if scaled else 1.0
        self.position_scale = axes**-0.5 if encoding == "added" else 1.0
        if self._has("query_key", "query_position"):
            self.query = _projection(channels, channels)
        if self._has("query_key", "key"):
            self.key = _projection(channels, channels)
        if positions:
            self.position = _projection(channels, channels)
            if self.position_scale != 1:
                with torch.no_grad():  # mmcv's two projections have fewer inputs: larger weights
                    self.position.weight /= self.position_scale
        # u and v; vectors, so that weight decay does not pull at them
        limit = (2 * width) ** -0.5
        if self._has("key"):
            self.key_bias = nn.Parameter(torch.empty(channels).uniform_(-limit, limit))
        if self._has("position"):
            self.position_bias = nn.Parameter(torch.empty(channels).uniform_(-limit, limit))
        self.value = _projection(channels, channels)
        self.output = _projection(channels, channels, bias=True)
        self.energies = nn.ModuleDict({name: Exposed() for name in self.terms})
        self.logits, self.weights = Exposed(), Exposed()

    def forward(
        self, queries: Tensor, keys: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """Attend from each query to the keys.

        Args:
            queries: (N, C, *sizes).
            keys: (N, C, *sizes) of another set, for cross-attention; by default the queries.
                Positions of both sets are counted from 0.
            allowed: bool, broadcasts to (N, M, Q, K), K after `key_stride`: which keys a query may
                attend to, such as those before it. Each query needs one.

        Returns:
            The shape of `queries`.

        Cost: N M Q K multiplications for each of softmax and `query_position`, N M Q K d for
        `query_key` and for the sum; without Q if no term, `reach` or `allowed` depends on q.
        """
        keys = queries if keys is None else keys
        return self.aggregated(self.weights_of(queries, keys, allowed), keys, queries.shape[2:])

    def weights_of(self, queries: Tensor, keys: Tensor, allowed: Tensor | None = None) -> Tensor:
        """See `Aggregation.weights_of`."""
        kept = self._kept(keys)
        sizes, kept_sizes = queries.shape[2:], kept.shape[2:]
        energies = self._energies(queries, kept)
        nothing = queries.new_zeros(len(queries), 1, 1, math.prod(kept_sizes))
        logits = self.logits(sum(energies[1:], energies[0]) if energies else nothing)
        if self.reach is not None:
            offsets = grid(kept_sizes, logits, self.key_stride) - grid(sizes, logits)[:, None]
            near = (offsets.abs() <= self.reach).all(dim=-1)
            allowed = near if allowed is None else allowed & near
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        result: Tensor = self.weights(logits.softmax(dim=-1))
        return result

    def _energies(self, queries: Tensor, kept: Tensor) -> list[Tensor]:
        """The terms that are switched on, (N, M, Q or 1, K) each."""
        sizes, kept_sizes = queries.shape[2:], kept.shape[2:]
        asking: dict[str, Tensor] = {}  # what a term multiplies with, (N or 1, M, Q or 1, d)
        if self._has("query_key", "query_position"):
            query = self._by_head(self.query(tokens(queries)))
            asking = {"query_key": query, "query_position": query}
        if self._has("key"):
            asking["key"] = self._by_head(self.key_bias[None, None])
        if self._has("position"):
            asking["position"] = self._by_head(self.position_bias[None, None])
        if self._has("query_key", "key"):
            content = self._by_head(self.key(tokens(kept))).mT
        if self._has("query_position", "position"):
            encoded = self._encoded(sizes, kept_sizes)
        found = []
        for name, expose in self.energies.items():
            vectors = asking[name] * self.scale
            of_content = name in ("query_key", "key")
            energy = vectors @ content if of_content else _of_positions(vectors, encoded)
            found.append(expose(energy.expand(len(queries), -1, -1, -1)))
        return found

    def _has(self, *names: str) -> bool:
        return not set(names).isdisjoint(self.terms)

    def values_of(self, keys: Tensor) -> Tensor:
        """See `Aggregation.values_of`."""
        return self._by_head(self.value(tokens(self._kept(keys))))

    def combined(self, heads: Tensor) -> Tensor:
        """See `Aggregation.combined`."""
        result: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return result

    def _kept(self, keys: Tensor) -> Tensor:
        step = self.key_stride
        return keys[:, :, ::step] if self.axes == 1 else keys[:, :, ::step, ::step]

    def _by_head(self, rows: Tensor) -> Tensor:
        """(N, positions, C) to (N, M, positions, d)."""
        return rows.reshape(*rows.shape[:2], self.heads, -1).transpose(1, 2)

    def _encoded(self, sizes: Sequence[int], kept: Sequence[int]) -> list[Tensor]:
        """V^R R for each axis, (M, queries, d, keys) along it."""
        weight = self.position.weight * self.position_scale
        tables = []
        for axis, columns in enumerate(weight.chunk(self.axes, dim=1)):
            places = [
                grid((sizes[axis],), weight),
                grid((kept[axis],), weight, self.key_stride)[:, 0],
            ]
            rows = sine_encoding(places[1] - places[0], columns.shape[1], self.wave_length)
            table = (rows @ columns.T).reshape(sizes[axis], kept[axis], self.heads, -1)
            tables.append(table.permute(2, 0, 3, 1))
        return tables


def terms_of(switches: str | int) -> tuple[str, ...]:
    """The names in `TERMS` that four switches select.

    Args:
        switches: such as "0010". The command line takes 1111 for a number, so it may be one.

    Raises:
        ValueError: other than four digits 0 or 1.
    """
    text = str(switches)
    if len(text) != len(TERMS) or set(text) - {"0", "1"}:
        raise ValueError(
            f"terms={switches!r}; expected four switches 0 or 1 for {', '.join(TERMS)}: 0010."
        )
    return tuple(name for name, switch in zip(TERMS, text, strict=True) if switch == "1")


def sine_encoding(offsets: Tensor, width: int, wave_length: float) -> Tensor:
    """Sines, then cosines, of offsets (...) at `width / 2` frequencies, as (..., width).

    Frequency j is wave_length^(-2j / width).

    Source: Vaswani et al. 2017, section 3.5, with 10000 instead of 1000; mmcv.
    """
    exponents = torch.arange(0, width, 2, dtype=offsets.dtype, device=offsets.device) / width
    angles = offsets[..., None] * wave_length**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _of_positions(vectors: Tensor, encoded: Sequence[Tensor]) -> Tensor:
    """The products of vectors with V^R R_{k-q}, summed over axes: R concatenates their encodings.

    Args:
        vectors: (N, M, Q or 1, d).
        encoded: for each axis, (M, queries, d, keys).

    Returns:
        (N, M, Q, K).

    Cost: N M Q d (sum of the axes' keys) multiplications, not their product.
    """
    examples, heads, _, width = vectors.shape
    sizes = [table.shape[1] for table in encoded]
    every = vectors.expand(-1, -1, math.prod(sizes), -1)
    every = every.reshape(examples, heads, *sizes, width)
    along = []
    for axis, table in enumerate(encoded):
        part = torch.einsum("nm...qd,mqdk->nm...qk", every.movedim(2 + axis, -2), table)
        along.append(part.movedim(-2, 2 + axis).flatten(2, -2))
    if len(along) == 1:
        return along[0]
    # Row i of `spread` is 1 at the keys that have the coordinate of entry i. The sum over axes as a
    # matrix product takes half the time of a broadcast one, forwards and backwards.
    places = grid([part.shape[-1] for part in along], vectors)
    spread = [
        (torch.arange(part.shape[-1], device=vectors.device)[:, None] == places[:, axis])
        for axis, part in enumerate(along)
    ]
    return torch.cat(along, dim=-1) @ torch.cat(spread).to(vectors)


def _projection(inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
    """A 1x1 convolution's weights, uniform with variance 1 / inputs, as in mmcv."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.kaiming_uniform_(linear.weight, a=1)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
