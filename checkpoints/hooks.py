"""Read, watch or replace inner values of a network, by name, while it runs.

An inner value is a tensor that a module returns, under that module's name: `layer1.0.conv1`. If a
module returns several, each has an index: `attention[0]`, `attention[0][1]`, `encoder[hidden]`. A
module that is called several times in one pass gives `act`, `act#2`, `act#3` …, in that order. A
tensor that no module returns has no name, unless the network's author passes it through `Exposed`.
Outputs are searched through tuples, lists, dictionaries, dataclasses and the types registered with
torch's pytrees.

A pattern is a name in which `*` matches anything and `?` one character; brackets are literal.
Without a `#` it matches every call of the module; `act#1` matches only the first. A pattern that
matches nothing raises an error: when the context opens if no module has such a name, else at the
end of the forward pass if no tensor had it.

Contexts nest. A later one sees the values as changed by the earlier ones, so `reading` inside
`replacing` reads the replaced value. All of this uses torch's forward hooks on modules. They act
however the network is called (`functional_call`, under `torch.func`, traced by `make_fx`) and in
every thread, and are removed when the context closes. The alternative, a context variable that
forward methods check, would work for `Exposed` only.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# (name of a value, the value, the patterns that it matches) -> the value that the network uses
Change: TypeAlias = Callable[[str, Tensor, list[str]], Tensor]


class Exposed(nn.Module):
    """Returns its input unchanged, which makes it an inner value with this module's name.

    For authors of networks: write `self.logits = Exposed()` in `__init__`, and in `forward`
    `logits = self.logits(query @ key.mT)`. Continue with the returned tensor, because a replacement
    changes that one. Use one `Exposed` per value, before the next value is computed, so that later
    values depend on the replacements of earlier ones. It adds nothing to the state dict.

    Cost: one Python function call, about a microsecond.
    """

    def forward(self, value: Tensor) -> Tensor:
        """The same tensor."""
        return value


@contextmanager
def reading(network: nn.Module, patterns: str | Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep the inner values that match a pattern.

    The network continues with a copy of each value, so layers that write in place do not change it.
    The outputs depend on the values and can be differentiated with respect to them any number of
    times. A value requires a gradient only if something before it does; to start the graph at a
    value, replace it first by `value.detach().requires_grad_()`. Inside a `torch.func`
    transformation or a trace, values are valid only there: return them from the transformed
    function.

    Args:
        network: the network to read, however it is called.
        patterns: one or several, see the module's docstring.

    Yields:
        {name: value} of the last forward pass, in the order of computation; empty before the first.

    Raises:
        TypeError: an argument of another type.
        ValueError: a pattern matches nothing.

    Cost: the memory of the values, twice during the forward pass.
    """
    values: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor, _: list[str]) -> Tensor:
        values[name] = value
        return value.clone()

    with _hooked(network, _patterns(patterns), keep, values.clear):
        yield values


@contextmanager
def watching(
    network: nn.Module, functions: Mapping[str, Callable[[str, Tensor], None]]
) -> Iterator[None]:
    """Call a function with every inner value that matches its pattern, without keeping the value.

    Args:
        network: see `reading`.
        functions: {pattern: function of a value's name and the value, which it must not change}.

    Raises:
        TypeError: an argument of another type.
        ValueError: a pattern matches nothing.
    """

    def look(name: str, value: Tensor, matched: list[str]) -> Tensor:
        for pattern in matched:
            functions[pattern](name, value)
        return value

    with _hooked(network, _functions(functions), look):
        yield


@contextmanager
def replacing(
    network: nn.Module, functions: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Replace every inner value that matches a pattern by a function of it.

    Derivatives pass through the function; a replacement that does not depend on the value, such as
    `torch.zeros_like`, blocks them. The function receives one batch, usually along the first axis,
    and must treat examples independently: probes rely on that. With activation checkpointing, a
    network computes values again in the backward pass, as further calls: keep the context open
    until then, and use patterns without `#`.

    Args:
        network: see `reading`.
        functions: {pattern: function of the value}. If several match, they are applied one after
            another, in this order.

    Raises:
        TypeError: an argument of another type.
        ValueError: a pattern matches nothing, or, during the forward pass, a replacement differs
            from its value in shape, dtype or device.
    """

    def replace(name: str, value: Tensor, matched: list[str]) -> Tensor:
        for pattern in matched:
            new = functions[pattern](value)
            if _described(new) != _described(value):
                raise ValueError(
                    f"{name}: its replacement is {_described(new)}, expected "
                    f"{_described(value)}, like the value itself."
                )
            value = new
        return value

    with _hooked(network, _functions(functions), replace):
        yield


def names(network: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all inner values, in the order of computation.

    Args:
        network: runs in eval mode, and is returned to the mode it was in.
        inputs: one example, a tensor or {name: tensor}. A single one is passed by position if the
            network has no argument of its name.

    Raises:
        TypeError: inputs that the network does not take.

    Cost: one forward pass.
    """
    _check_network(network)
    args, kwargs = _arguments(network, inputs)
    return names_during(network, lambda: network(*args, **kwargs))


def names_during(network: nn.Module, call: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """See `names`, for a function that calls the network."""
    if not any(True for _ in network.children()):
        return {}
    found: dict[str, tuple[int, ...]] = {}
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        with (
            torch.inference_mode(),
            watching(network, {"*": lambda name, value: found.update({name: tuple(value.shape)})}),
        ):
            call()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return found


@contextmanager
def _hooked(
    network: nn.Module,
    patterns: Collection[str],
    change: Change,
    at_start: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Pass every inner value that matches a pattern through `change`.

    Args:
        network: each of its calls is a pass; its own outputs are not inner values.
        patterns: see the module's docstring.
        change: see `Change`.
        at_start: called at the beginning of a pass.
    """
    _check_network(network)
    modules = {name: module for name, module in network.named_modules() if name}
    for pattern in patterns:
        if not any(_is_like(name, _of_module(pattern)) for name in modules):
            raise ValueError(_unknown(pattern, modules))
    calls: Counter[str] = Counter()
    met: set[str] = set()  # patterns matched in this pass
    passed: dict[str, None] = {}  # names of values seen in this pass
    is_open = True  # copies of the network made inside the context keep their hooks

    def begin(*_: Any) -> None:
        if is_open:
            for seen in (calls, met, passed):
                seen.clear()
            at_start()

    def end(*_: Any) -> None:
        for pattern in patterns:
            if is_open and pattern not in met:
                like = [name for name in modules if _is_like(name, _of_module(pattern))]
                called = any(calls[name] for name in like)
                others = modules if called else [name for name in modules if name not in like]
                raise ValueError(_unknown(pattern, [*passed, *others], called=called))

    def changed(name: str, call: int, value: Tensor) -> Tensor:
        full = name if call == 1 else f"{name}#{call}"
        passed[full] = None
        matched = [
            pattern
            for pattern in patterns
            if _is_like(f"{name}#{call}" if "#" in pattern else name, pattern)
        ]
        met.update(matched)
        return change(full, value, matched) if matched else value

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            if not is_open:
                return None
            calls[name] += 1
            return _mapped(output, name, lambda index, value: changed(index, calls[name], value))

        return hook

    with ExitStack() as hooks:
        hooks.enter_context(network.register_forward_pre_hook(begin))
        for name, module in modules.items():
            if any(_is_like(name, _of_module(pattern)) for pattern in patterns):
                hooks.enter_context(module.register_forward_hook(hook_of(name)))
        hooks.enter_context(network.register_forward_hook(end))
        try:
            yield
        finally:
            is_open = False


def _is_like(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def _of_module(pattern: str) -> str:
    """A pattern without index and call number, which matches names of modules."""
    return re.sub(r"(\[[^]]*\])*(#.*)?$", "", pattern)


def _mapped(output: Any, name: str, change: Callable[[str, Tensor], Tensor]) -> Any:
    """`output` with `change(name with index, tensor)` for each of its tensors.

    What holds no tensor that changes is returned itself, else a copy.
    """
    if isinstance(output, Tensor):
        return change(name, output)
    parts = _parts(output)
    new = {key: _mapped(part, f"{name}[{key}]", change) for key, part in parts.items()}
    if all(new[key] is part for key, part in parts.items()):
        return output
    return _rebuilt(output, new)


def _parts(output: Any) -> dict[Any, Any]:
    """{key: part} of what a module returned, one level deep; nothing if it is not a container."""
    parts = {name: getattr(output, name) for name in _fields(output)}
    if isinstance(output, MutableMapping):
        parts |= output
    if parts:
        return parts
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    leaves = pytree.tree_leaves(output, is_leaf=lambda part: part is not output)
    return {} if any(leaf is output for leaf in leaves) else dict(enumerate(leaves))


def _rebuilt(output: Any, new: dict[Any, Any]) -> Any:
    """A copy of `output` with other `_parts`; neither `__init__` nor `__post_init__` runs."""
    fields, is_mapping = _fields(output), isinstance(output, MutableMapping)
    if fields or is_mapping:
        twin = copy.copy(output) if not (fields and is_mapping) else _copied(output)
        for key, part in new.items():
            if key in fields:
                object.__setattr__(twin, key, part)  # frozen ones as well
            if is_mapping and key in output:
                twin[key] = part
        return twin
    if isinstance(output, tuple) and hasattr(output, "_make"):
        return output._make(new.values())
    if isinstance(output, tuple | list):
        return type(output)(new.values())
    form = pytree.tree_structure(output, is_leaf=lambda part: part is not output)
    return pytree.tree_unflatten(new.values(), form)


def _fields(output: Any) -> list[str]:
    """The fields that a dataclass has values for; none of anything else."""
    if isinstance(output, type) or not dataclasses.is_dataclass(output):
        return []
    return [field.name for field in dataclasses.fields(output) if hasattr(output, field.name)]


def _copied(output: Any) -> Any:
    """A copy of a dataclass that is a dictionary too, such as the ModelOutput of Hugging Face.

    Only its items are left to be set: `copy.copy` would call it without its required fields.
    """
    kind: Any = type(output)
    twin = kind.__new__(kind)
    vars(twin).update(vars(output))
    return twin


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"an object of type {type(value).__name__}"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"


def _unknown(pattern: str, known: Collection[str], *, called: bool = True) -> str:
    # without duplicates, and without the module of this name, which has no such value
    others = [name for name in dict.fromkeys(known) if name != pattern]
    close = ", ".join(difflib.get_close_matches(pattern, others, cutoff=0)) or "none"
    what = (
        "the network has no inner value of this name"
        if called
        else "the forward pass did not call this module, so it has no value"
    )
    return f"{pattern}: {what}; close names: {close}. hooks.names(network, inputs) lists all."


def _check_network(network: nn.Module) -> None:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network is {_described(network)}; expected a torch.nn.Module.")


def _patterns(patterns: Any) -> list[str]:
    given = patterns if isinstance(patterns, Collection) else [patterns]
    chosen = [patterns] if isinstance(patterns, str) else list(given)
    for pattern in chosen:
        if not isinstance(pattern, str):
            raise TypeError(
                f"a pattern is {_described(pattern)}; expected a name such as 'layer1.*', or a "
                "list of names."
            )
    return chosen


_Functions = TypeVar("_Functions", bound=Mapping[str, Callable[..., Any]])


def _functions(functions: _Functions) -> _Functions:
    if not isinstance(functions, Mapping):
        raise TypeError(
            f"functions is {_described(functions)}; expected {{pattern: function}}, such as "
            "{'layer1.*': torch.zeros_like}."
        )
    for pattern, function in zip(_patterns(functions), functions.values(), strict=True):
        if not callable(function):
            raise TypeError(f"{pattern}: {_described(function)}; expected a function.")
    return functions


def _arguments(network: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How to pass `inputs` to the network: (args, kwargs)."""
    ways: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    if isinstance(inputs, Tensor):
        ways = [((inputs,), {})]
    elif isinstance(inputs, Mapping):
        ways = [((), dict(inputs)), (tuple(inputs.values()), {})][: 2 if len(inputs) == 1 else 1]
    signature = inspect.signature(network.forward)
    for args, kwargs in ways:
        with suppress(TypeError):
            signature.bind(*args, **kwargs)
            return args, kwargs
    given = f"{{{', '.join(inputs)}}}" if isinstance(inputs, Mapping) else _described(inputs)
    taken = ", ".join(signature.parameters)
    raise TypeError(
        f"inputs is {given}; expected one example for forward({taken}): a tensor, or "
        "{name: tensor} where it takes arguments by name."
    )
