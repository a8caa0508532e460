"""Read, watch or replace inner values of a network, by name, while it runs.

An inner value is a tensor that a module returns, under that module's name: `layer1.0.conv1`. If a
module returns several, each has an index: `attention[0]`, `attention[0][1]`, `encoder[hidden]`. A
module that is called several times in one pass gives `act`, `act#2`, `act#3` …, in that order. A
tensor that no module returns has no name, unless the network's author passes it through `Exposed`.

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

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

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
        ValueError: a pattern matches nothing.

    Cost: the memory of the values, twice during the forward pass.
    """
    values: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor, _: list[str]) -> Tensor:
        values[name] = value
        return value.clone()

    chosen = [patterns] if isinstance(patterns, str) else patterns
    with _hooked(network, chosen, keep, values.clear):
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
        ValueError: a pattern matches nothing.
    """

    def look(name: str, value: Tensor, matched: list[str]) -> Tensor:
        for pattern in matched:
            functions[pattern](name, value)
        return value

    with _hooked(network, functions, look):
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

    with _hooked(network, functions, replace):
        yield


def names(network: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all inner values, in the order of computation.

    Args:
        network: runs in eval mode, and is returned to the mode it was in.
        inputs: one example, a tensor or {name: tensor}.

    Cost: one forward pass.
    """
    if not any(True for _ in network.children()):
        return {}
    found: dict[str, tuple[int, ...]] = {}
    modes = {module: module.training for module in network.modules()}
    given = inputs if isinstance(inputs, Mapping) else {"": inputs}
    try:
        network.eval()
        with (
            torch.inference_mode(),
            watching(network, {"*": lambda name, value: found.update({name: tuple(value.shape)})}),
        ):
            network(**given) if len(given) > 1 else network(*given.values())
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
                raise ValueError(_unknown(pattern, [*passed, *modules]))

    def changed(name: str, call: int, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
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
            leaves, form = pytree.tree_flatten_with_path(output)
            new = [changed(name + _index(path), calls[name], value) for path, value in leaves]
            if all(a is b for a, (_, b) in zip(new, leaves, strict=True)):
                return None  # keep the object that the module returned
            return pytree.tree_unflatten(new, form)

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


def _index(path: Sequence[Any]) -> str:
    """The index of a tensor in a module's output."""
    keys = (getattr(key, "idx", getattr(key, "key", getattr(key, "name", key))) for key in path)
    return "".join(f"[{key}]" for key in keys)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"


def _unknown(pattern: str, known: Collection[str]) -> str:
    # without duplicates, and without the name of a module that was not called
    others = [name for name in dict.fromkeys(known) if name != pattern]
    close = ", ".join(difflib.get_close_matches(pattern, others, cutoff=0)) or "none"
    return (
        f"{pattern}: the network has no inner value of this name; close names: {close}. "
        "hooks.names(network, inputs) lists all."
    )
