"""Curvature matrices of a problem's loss, as operators that multiply vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from hessian_eigenthings import CurvatureOperator
from torch import Tensor
from torch.utils import _pytree as pytree

from checkpoints.device import memory_exhausted
from checkpoints.problem import Tensors
from landscape.core.fingerprint import fingerprint
from landscape.core.spaces import EVERYTHING, Inputs, Space, Weights
from landscape.hessian import products, split_graph

log = logging.getLogger(__name__)
Matrix: TypeAlias = Literal["hessian", "gauss_newton", "difference"]
PARTS: dict[str, tuple[products.Part, ...]] = {
    "hessian": ("hessian",),
    "gauss_newton": ("gauss_newton",),
    "difference": ("hessian", "gauss_newton"),
}
# The share of the memory free at the first product that kept activations may take.
MEMORY_SHARE = 0.5
# An asymmetry above this is more than rounding error.
ASYMMETRY = {torch.float32: 1e-2, torch.float64: 1e-6}
# A traced product that differs from the plain one by more than this, relatively, is not used.
TRACE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


class Curvature(CurvatureOperator):  # type: ignore[misc]
    """A curvature matrix of the loss at a space's origin, given by its matrix-vector product.

    In the weights it is that of the mean loss over the examples, whatever the batches. In the
    inputs it is that of the sum of the losses: no example's loss depends on another example's
    input, so the matrix is block-diagonal, with one block per example, and one product with it
    gives the products of all blocks.

    `hessian` is the second derivative. `gauss_newton` is J^T L J, with J the derivative of the
    outputs and L the second derivative of the loss in the outputs: the curvature if the network
    were linear around the origin. `difference` is the first minus the second: the part that
    carries the network's own curvature, zero almost everywhere in the inputs of a piecewise linear
    network.

    Batch norm is in eval mode; if the problem recomputes its statistics, they are those at the
    origin, held fixed under the derivative.

    Args:
        space: its origin is the point at which the matrix is taken.
        matrix: see above.
        names: the parameters, or inputs, whose rows and columns are taken; all by default.
        part: in the inputs, which examples: a slice, or their indices.
        scale: {name: tensor that broadcasts to it}: D, in the matrix D M D, which is the
            curvature in coordinates in which a step of 1 moves each entry by D.
        keep: trace the product and keep the tensors that do not depend on the vector, for as many
            batches as fit half of the free memory: a product then costs about 2 gradients instead
            of 4. Other batches, and networks that cannot be traced, use a double backward pass.
            The memory needed is logged before it is allocated.

    Attributes:
        blocks: number of independent blocks of the matrix: examples in the inputs, else 1.

    Raises:
        ValueError: a name that is not in the space.

    Cost: one pass over the parameters; a product is one double backward pass of all examples, or
    less with `keep`.
    """

    def __init__(
        self,
        space: Space,
        matrix: Matrix = "hessian",
        *,
        names: Sequence[str] | None = None,
        part: slice | Tensor = EVERYTHING,
        scale: Tensors | None = None,
        keep: bool = False,
    ) -> None:
        unknown = [name for name in names or () if name not in space.origin]
        if unknown:
            raise ValueError(f"{unknown[0]} is not in the space; it has {', '.join(space.origin)}.")
        chosen = list(names or space.origin)
        self.space, self.matrix = space, matrix
        in_inputs = isinstance(space, Inputs)
        # contiguous: the channels-last layout of convolution weights has no views of a flat vector
        self._point = {
            name: (space.origin[name][part] if in_inputs else space.origin[name])
            .detach()
            .contiguous()
            for name in chosen
        }
        self._fixed = {n: v for n, v in space.origin.items() if n not in self._point}
        self._state = space.tensors if in_inputs else space.tensors | self._fixed
        if in_inputs:
            self._fixed = _at(self._fixed, part)
        self._targets = space.problem.targets[part if in_inputs else EVERYTHING]
        self.blocks = len(self._targets) if in_inputs else 1
        self._scale = self.flat(self._expanded(scale)) if scale else None
        self._keep = keep
        self._kept: dict[int, list[Any]] | None = None
        self._kept_with = space.replacements
        self._split: split_graph.Split | None = None

    def check_symmetry(self, generator: torch.Generator) -> float:
        """How far the matrix is from a symmetric one: |u'Av - v'Au| for random u and v.

        In units of its rounding-free size |Av| |u| / sqrt(rows): about |A - A'| / |A|, in
        Frobenius norms.

        Raises:
            ValueError: it is far: some layer's second derivative is wrong.

        Cost: two products.
        """
        like = torch.empty(self.size, dtype=torch.float64)
        u, v = (
            torch.randn(like.shape, generator=generator, dtype=torch.float64).to(
                self.device, self.dtype
            )
            for _ in range(2)
        )
        of_u, of_v = self.matvec(u).double(), self.matvec(v).double()
        apart = float((u.double() @ of_v - v.double() @ of_u).abs())
        size = float(of_u.norm() * v.double().norm() + of_v.norm() * u.double().norm()) / 2
        found = apart / (size / self.size**0.5) if size > 0 else 0.0
        if found > ASYMMETRY.get(self.dtype, 1e-2):
            raise ValueError(
                f"the {self.matrix.replace('_', '-')} matrix is not symmetric (u'Av and v'Au "
                f"differ by {found:.1g} of its size): the second derivative of some layer is "
                "wrong. Replace custom or fused layers by elementary operations."
            )
        return found

    @property
    def size(self) -> int:
        """Number of rows of the matrix."""
        return sum(value.numel() for value in self._point.values())

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""
        return next(iter(self._point.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vectors."""
        return next(iter(self._point.values())).dtype

    def matvec(self, v: Tensor) -> Tensor:
        """The matrix times a flat vector.

        Args:
            v: (size,).

        Raises:
            ValueError: `v` has another shape; a layer without a second derivative.
        """
        if v.shape != (self.size,):
            raise ValueError(f"the vector has shape {tuple(v.shape)}; expected ({self.size},).")
        scaled = v if self._scale is None else v * self._scale
        vector = self.tensors(scaled)
        with self.space.exact():
            if isinstance(self.space, Inputs):
                rows = [self._flat_rows(self._product(p, _at(vector, p))) for p in self._parts()]
                product = torch.cat(rows).flatten()
            else:
                product = torch.zeros_like(scaled)
                for part in self._parts():
                    product += self.flat(self._product(part, vector))
        return product if self._scale is None else product * self._scale

    def displacement(self, vector: Tensor) -> Tensor:
        """The step in the space that corresponds to a vector: D v, or v without a scale."""
        return vector if self._scale is None else vector * self._scale

    def tensors(self, vector: Tensor) -> Tensors:
        """A flat vector as named tensors, in the shapes of the origin."""
        if isinstance(self.space, Inputs):
            widths = [value[0].numel() for value in self._point.values()]
            pieces = torch.split(vector.view(self.blocks, -1), widths, dim=1)
        else:
            pieces = torch.split(vector, [value.numel() for value in self._point.values()])
        return {
            name: piece.reshape(value.shape)
            for (name, value), piece in zip(self._point.items(), pieces, strict=True)
        }

    def flat(self, tensors: Tensors) -> Tensor:
        """The inverse of `tensors`. In the inputs, example after example."""
        if isinstance(self.space, Inputs):
            return self._flat_rows(tensors).flatten()
        return torch.cat([tensors[name].reshape(-1) for name in self._point])

    def _flat_rows(self, tensors: Tensors) -> Tensor:
        return torch.cat([tensors[name].flatten(1) for name in self._point], dim=1)

    def _expanded(self, scale: Tensors) -> Tensors:
        return {name: scale[name].expand_as(value) for name, value in self._point.items()}

    def _parts(self) -> list[slice]:
        size = self.space.problem.batch_size or len(self._targets)
        count = len(self._targets)
        return [slice(i, min(i + size, count)) for i in range(0, count, size)]

    def _product(self, part: slice, vector: Tensors) -> Tensors:
        """The product with the curvature of one batch; in the inputs, `vector` is the batch's."""
        replacements = self.space.replacements
        if self._keep and (self._kept is None or self._kept_with != replacements):
            self._kept_with = replacements
            self._prepare(vector)
        kept = (self._kept or {}).get(part.start)
        if kept is None or self._split is None:
            found = self._plain(part, vector)
        else:
            found = self._split.linear(kept, vector)
        if len(found) == 1:
            return found[0]
        return {name: found[0][name] - found[1][name] for name in vector}

    def _plain(self, part: slice, vector: Tensors) -> list[Tensors]:
        """With nothing kept; in smaller batches if out of memory."""
        try:
            return self._differentiated(products.doubly_backward, *self._given(part), vector)
        except RuntimeError as error:
            half = (part.stop - part.start) // 2
            if not half or not memory_exhausted(error):
                raise
        parts = slice(part.start, part.start + half), slice(part.start + half, part.stop)
        if isinstance(self.space, Inputs):
            first = self._plain(parts[0], _at(vector, slice(None, half)))
            second = self._plain(parts[1], _at(vector, slice(half, None)))
            return [
                {name: torch.cat([a[name], b[name]]) for name in vector}
                for a, b in zip(first, second, strict=True)
            ]
        first, second = (self._plain(part, vector) for part in parts)
        return [
            {name: a[name] + b[name] for name in vector} for a, b in zip(first, second, strict=True)
        ]

    def _given(self, part: slice) -> tuple[Tensors, Tensors, Tensors, Tensor]:
        """The arguments of a batch's product besides the vector.

        The point, the examples' other inputs, the network's other tensors, and the targets.
        """
        targets = self._targets[part]
        if isinstance(self.space, Inputs):
            return _at(self._point, part), _at(self._fixed, part), self._state, targets
        return self._point, _at(self.space.problem.inputs, part), self._state, targets

    def _differentiated(
        self,
        form: Callable[..., list[Tensors]],
        point: Tensors,
        others: Tensors,
        state: Tensors,
        targets: Tensor,
        vector: Tensors,
    ) -> list[Tensors]:
        def outputs_at(point: Tensors) -> Tensor:
            return self._outputs(point, others, state)

        def loss_of(outputs: Tensor) -> Tensor:
            total = self.space.problem.losses(outputs, targets).sum()
            return total if isinstance(self.space, Inputs) else total / len(self._targets)

        return form(PARTS[self.matrix], outputs_at, loss_of, point, vector)

    def _outputs(self, point: Tensors, others: Tensors, state: Tensors) -> Tensor:
        if isinstance(self.space, Weights):
            outputs = self.space.outputs_of(others, {**state, **point})
        else:
            both = {**others, **point}
            inputs = {name: both[name] for name in self.space.origin}
            outputs = self.space.outputs_of(inputs, state)
        if not isinstance(outputs, Tensor):
            raise ValueError(f"the model returns a {type(outputs).__name__}; expected a tensor.")
        return outputs

    def _prepare(self, vector: Tensors) -> None:
        """Trace the product, and keep what does not depend on the vector, if memory allows."""
        self._kept = {}
        parts = self._parts()
        form = partial(self._differentiated, products.forward_over_reverse)
        try:
            given = self._given(parts[0])
            key = self._fingerprint([given, vector])
            split = split_graph.shared(key, form, given, vector)
            room = int(MEMORY_SHARE * free_memory(self.device))
            alike = [part for part in parts if part.stop - part.start == parts[0].stop]
            chosen = alike[: room // max(split.bytes, 1)]
            log.info(
                f"keeping the activations of {len(chosen)} of {len(parts)} batches, "
                f"{len(chosen) * split.bytes / 1e9:.2f} GB of the {room / 1e9:.1f} GB allowed."
            )
            for part in chosen:
                self._kept[part.start] = split.prepare(*self._given(part))
            for part in chosen[:1] + chosen[1:][-1:]:
                self._check(split, part, vector)
            self._split = split
        except Exception as error:  # tracing may raise anything; the plain product always works
            self._kept = {}
            if memory_exhausted(error):
                log.info("out of memory for kept activations; recomputing them.")
                return
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.info(f"the product cannot be traced ({reason}); recomputing it every time.")

    def _fingerprint(self, arguments: Any) -> Hashable | None:
        """What the traced product depends on besides the numbers in its arguments."""
        network, tensors = self.space.fingerprint(), pytree.tree_leaves(arguments)
        shapes = fingerprint(arguments, tensors)
        is_known = network is not None and shapes is not None
        return (network, shapes, self.matrix, len(self._targets)) if is_known else None

    def _check(self, split: split_graph.Split, part: slice, vector: Tensors) -> None:
        assert self._kept is not None
        traced = pytree.tree_leaves(split.linear(self._kept[part.start], vector))
        plain = pytree.tree_leaves(self._plain(part, vector))
        error = torch.cat([(t - p).flatten() for t, p in zip(traced, plain, strict=True)]).norm()
        size = torch.cat([value.flatten() for value in plain]).norm()
        if not error <= TRACE_TOLERANCE.get(self.dtype, 1e-3) * size:
            raise ValueError(f"its relative error is {float(error / size):.1e}")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = (
        Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []
    )
    free = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    return 1024 * free[0] if free else 2**31


def _at(tensors: Tensors, part: slice | Tensor) -> Tensors:
    return {name: value[part] for name, value in tensors.items()}
