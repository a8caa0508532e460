"""The inner values of a network, by name: read, watched or replaced while it runs.

A value is a tensor that some module returns, under that module's name: `layer1.0.conv1`. Where a
module returns several, each has an index: `attention[0]`, `attention[0][1]`, `encoder[hidden]`. A
module that is called several times in one pass gives `act`, `act#2`, `act#3` …, in that order. What
is no module's output has no name until the network's author passes it through an `Exposed`.

A pattern is a name in which `*` stands for anything and `?` for one character; brackets stand for
themselves. Without a `#` it means every call of the module; `act#1` is the first alone. A pattern
that matches nothing is refused: where the context opens, if no module is called so, else at the end
of the network's pass, if no tensor was.

Contexts nest. One that is opened later sees what the earlier ones have made of a value, so that a
reading inside a replacing reads the replaced value. All of it is torch's forward hooks, on modules:
they act in whatever form the network is called (`functional_call`, under `torch.func`, while
`make_fx` traces it), in every thread, and nothing is left of them when no context is open. A switch
that forward methods would ask, in a context variable, would do the same for `Exposed` alone.
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

# (name of a value, the value, the patterns that it matches) to what the network goes on with
Change: TypeAlias = Callable[[str, Tensor, list[str]], Tensor]


class Exposed(nn.Module):
    """Hands a value through, and so gives it a name: that of this module.

    For a network's author: `self.logits = Exposed()` in `__init__`, and in `forward`
    `logits = self.logits(query @ key.mT)`. Go on with what it returns, which is what a replacement
    changes, and give each value its own: a later one can then depend on an earlier one's
    replacement. It has no parameters, and no entry in a state dict.

    Cost: a call of a Python function, about a microsecond.
    """

    def forward(self, value: Tensor) -> Tensor:
        """The same tensor."""
        return value


@contextmanager
def reading(network: nn.Module, patterns: str | Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep the inner values that match a pattern.

    The network goes on with a copy of each: a layer that writes in place changes no value that was
    read, and outputs depend on the values, so that they can be differentiated in them any number
    of times. Where nothing before a value requires a gradient, neither does the value; to start
    at it, replace it first by `value.detach().requires_grad_()`. Inside a transformation of
    `torch.func`, or a trace, values live in there only: return them from the function that is
    transformed.

    Args:
        network: whose modules are read; it may run in whatever form.
        patterns: one or several, see above.

    Yields:
        {name: value} of the last pass, in the order of computation; empty before the first.

    Raises:
        ValueError: a pattern that matches nothing.

    Cost: the memory of the values, twice until the pass is over.
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
    """Call a function with every inner value that matches its pattern; nothing is kept.

    Args:
        network: see `reading`.
        functions: {pattern: function of a value's name and the value, which it must not change}.

    Raises:
        ValueError: a pattern that matches nothing.
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
    """Let the network go on with a function of an inner value in the value's place.

    Derivatives go through the function; a replacement that does not depend on the value, such as
    `torch.zeros_like`, lets none through. The function sees the examples of one batch, the first
    axis nearly always, and must not let one of them depend on another: probes rely on that. A
    network with activation checkpointing computes values again in the backward pass, as further
    calls: stay inside until then, and give patterns no `#`.

    Args:
        network: see `reading`.
        functions: {pattern: function of the value}. Where several match, one after another, in
            this order.

    Raises:
        ValueError: a pattern that matches nothing; in the network's pass, a replacement that has
            not the shape, dtype and device of its value.
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
    """Which inner values there are, in the order of computation, with their shapes.

    Args:
        network: stays as it is, and in the mode it is in; it runs in eval mode.
        inputs: what it is called with, one example: a tensor, or several by their names.

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
        network: the one whose call is a pass; its own outputs are no inner values.
        patterns: see above.
        change: see `Change`.
        at_start: called where a pass begins.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    for pattern in patterns:
        if not any(_is_like(name, _of_module(pattern)) for name in modules):
            raise ValueError(_unknown(pattern, modules))
    calls: Counter[str] = Counter()
    met: set[str] = set()  # patterns, in this pass
    passed: dict[str, None] = {}  # names, in this pass
    is_open = True  # a copy of the network that is made in here keeps the hooks

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
                return None  # the very object that the module returned
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
    """A pattern of values without its index and number of a call: a pattern of modules."""
    return re.sub(r"(\[[^]]*\])*(#.*)?$", "", pattern)


def _index(path: Sequence[Any]) -> str:
    """Where a tensor stands in what a module returns."""
    keys = (getattr(key, "idx", getattr(key, "key", getattr(key, "name", key))) for key in path)
    return "".join(f"[{key}]" for key in keys)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"


def _unknown(pattern: str, known: Collection[str]) -> str:
    # without repetition, and without a module that was not called
    others = [name for name in dict.fromkeys(known) if name != pattern]
    close = ", ".join(difflib.get_close_matches(pattern, others, cutoff=0)) or "none"
    return (
        f"{pattern}: the network has no inner value of this name; close names: {close}. "
        "hooks.names(network, inputs) lists all."
    )
