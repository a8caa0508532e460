"""Split a traced Hessian-vector product into a per-batch and a per-vector part."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten
MOST_SHARED = 8  # graphs that are kept for other networks


@dataclass(frozen=True, eq=False)
class Split:
    """`function(*arguments, vector)` as `linear(prepare(*arguments), vector)`.

    Everything that does not depend on the vector is computed once and kept. For a Hessian-vector
    product that is the activations, their gradients and masks. A product then costs about two
    gradients; a double backward pass repeats the forward and the backward pass and costs about
    four.

    Attributes:
        prepare: (*arguments) -> kept tensors. Cost: about a forward and a backward pass.
        linear: (kept, vector) -> the return value of `function`; keeps nothing.
        bytes: memory of the kept tensors, not counting storage shared with the arguments.
        by_form: whether it holds for all arguments of these shapes, whatever their values.
    """

    prepare: Callable[..., list[Any]]
    linear: Callable[[Sequence[Any], Any], Any]
    bytes: int
    by_form: bool


_SHARED: OrderedDict[Hashable, Split] = OrderedDict()  # the last used at the end


def shared(
    key: Hashable | None, function: Callable[..., Any], arguments: Sequence[Any], vector: Any
) -> Split:
    """`split`, taken over from an earlier call in this process with the same key.

    Args:
        key: all that the graph depends on; with None nothing is shared.
        function: see `split`.
        arguments: see `split`.
        vector: see `split`.
    """
    found = _SHARED.pop(key, None) or split(function, arguments, vector)
    if key is not None and found.by_form:
        _SHARED[key] = found
    while len(_SHARED) > MOST_SHARED:
        _SHARED.popitem(last=False)
    return found


def split(function: Callable[..., Any], arguments: Sequence[Any], vector: Any) -> Split:
    """Trace `function` at example arguments and cut its graph in two.

    The trace is valid for arguments of the same shapes. It uses fake tensors, so that a function
    whose control flow depends on its arguments' values is refused, not traced for one of them. Only
    if torch needs values is it traced with the example arguments: so compare the result with
    `function`.

    Args:
        function: (*arguments, vector) -> tensors, linear in `vector`. Every argument is a tensor
            or a pytree of tensors.
        arguments: example arguments.
        vector: an example vector.

    Raises:
        Exception: whatever tracing raises, for a function that cannot be traced.

    Cost: about six seconds for a ResNet-18, whatever the batch size.
    Source: the idea of `jax.linearize` and `torch.func.linearize`; these trace again for every
    argument, while this reuses one graph for all batches.
    """
    # Without in-place writes: the cut must not separate two writes to one tensor.
    traced, shape, by_form = _traced(functionalize(function), [*arguments, vector])
    nodes = list(traced.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    (output,) = (node for node in nodes if node.op == "output")
    given = inputs[: len(pytree.tree_leaves(list(arguments)))]
    moving = set(inputs[len(given) :])
    for node in nodes:
        if node.op not in ("placeholder", "output") and moving & set(node.all_input_nodes):
            moving.add(node)
    later = [node for node in nodes if node in moving and node.op != "placeholder"]
    kept = list(
        dict.fromkeys(a for n in [*later, output] for a in n.all_input_nodes if a not in moving)
    )

    first = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in moving and node is not output:
            made[node] = first.node_copy(node, made.__getitem__)
    first.output([made[node] for node in kept])
    first.eliminate_dead_code()

    second = fx.Graph()
    made = {node: second.placeholder(f"kept_{i}") for i, node in enumerate(kept)}
    made |= {node: second.placeholder(node.name) for node in inputs if node in moving}
    for node, place in made.items():
        place.meta = dict(node.meta)
    for node in later:
        made[node] = second.node_copy(node, made.__getitem__)
    second.output(fx.map_arg(output.args[0], made.__getitem__))
    _simplify(second)

    prepare, linear = fx.GraphModule(traced, first), fx.GraphModule(traced, second)

    @torch.no_grad()
    def run_prepare(*arguments: Any) -> list[Any]:
        return list(prepare(*pytree.tree_leaves(list(arguments))))

    @torch.no_grad()
    def run_linear(kept: Sequence[Any], vector: Any) -> Any:
        return pytree.tree_unflatten(linear(*kept, *pytree.tree_leaves(vector)), shape)

    known = {None, *map(_storage, inputs)}
    fresh = {_storage(node): node for node in kept if _storage(node) not in known}
    size = sum(node.meta["val"].untyped_storage().nbytes() for node in fresh.values())
    return Split(run_prepare, run_linear, size, by_form)


def _traced(
    function: Callable[..., Any], arguments: Sequence[Any]
) -> tuple[fx.GraphModule, pytree.TreeSpec, bool]:
    """The graph of `function` with flattened outputs, their tree structure, and `Split.by_form`."""
    forms: list[pytree.TreeSpec] = []

    def pure(*everything: Any) -> Any:  # make_fx counts arguments, and miscounts a bound method's
        leaves, form = pytree.tree_flatten(function(*everything))
        forms.append(form)
        return leaves

    with warnings.catch_warnings():  # torch's own forward mode is written with torch.jit
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        by_form = True
        try:
            # Without values; but tensors in the closure, such as a loss's weights, are real.
            traced = make_fx(pure, tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)
        except RuntimeError as error:
            # A limitation of torch's forward mode for a batch norm whose weights are constant.
            if "on the same device" not in str(error):
                raise
            traced = make_fx(pure)(*arguments)
            by_form = False
    return traced, forms[-1], by_form


def _simplify(graph: fx.Graph) -> None:
    """Drop additions of zero and copies, and fuse each product with the addition that follows it.

    Without this the graph is a tenth slower: apart from the convolutions, its speed depends on how
    often memory is read. The graph has no in-place writes, so a copy can be replaced by its
    original. Results change only by rounding.
    """
    zeros = (aten.zeros_like.default, aten._new_zeros_with_same_feature_meta.default)
    for node in list(graph.nodes):
        if node.target is aten._to_copy.default and _alike(node, node.args[0], strides=True):
            node.replace_all_uses_with(node.args[0])
        if node.target is not aten.add.Tensor or node.kwargs:  # alpha
            continue
        for one, other in (node.args, node.args[::-1]):
            if not (isinstance(one, fx.Node) and isinstance(other, fx.Node)):
                continue
            if other.target in zeros and _alike(node, one):
                node.replace_all_uses_with(one)
                break
            product = other.target is aten.mul.Tensor and len(other.users) == 1
            if product and all(_same_type(node, a) for a in (one, other, *other.args)):
                with graph.inserting_before(node):
                    both = graph.call_function(aten.addcmul.default, (one, *other.args))
                both.meta = dict(node.meta)
                node.replace_all_uses_with(both)
                break
    graph.eliminate_dead_code()


def _same_type(node: Any, other: Any) -> bool:
    """Whether both are known to be floating-point tensors of the same dtype and device."""
    one, two = (n.meta.get("val") if isinstance(n, fx.Node) else None for n in (node, other))
    if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
        return False
    return one.is_floating_point() and (one.dtype, one.device) == (two.dtype, two.device)


def _alike(node: Any, other: Any, *, strides: bool = False) -> bool:
    """Whether both are tensors of the same type and shape; with `strides`, of the same layout."""
    if not _same_type(node, other):
        return False
    one, two = node.meta["val"], other.meta["val"]
    return one.shape == two.shape and (not strides or one.stride() == two.stride())


def _storage(node: fx.Node) -> int | None:
    """The storage of a node's value, according to the trace; None if it is not a tensor."""
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None
