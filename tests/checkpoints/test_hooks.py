"""Inner values against the same network written out by hand, in float64."""

from __future__ import annotations

import copy
import io
import re
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, func, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from checkpoints import hooks
from checkpoints.hooks import Exposed
from checkpoints.models.resnet import ResNet
from tests.attention import Attention, Change, by_hand, made, sharper, tokens, uniform

exactly = partial(torch.testing.assert_close, rtol=0, atol=0)


def silent(network: nn.Module) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_values_are_those_computed_by_hand_in_any_batch(count: int) -> None:
    network, batch = made(), tokens(count)
    with hooks.reading(network, "*") as values:
        assert values == {}
        outputs = network(batch)
    wanted = by_hand(network, batch)
    assert list(values) == list(wanted)
    for name, value in values.items():
        torch.testing.assert_close(value, wanted[name])  # the same operations, but for in place
    exactly(outputs, network(batch))
    assert silent(network)


def test_values_are_of_the_last_pass_and_stay_when_the_context_closes() -> None:
    network = made()
    with hooks.reading(network, ["head"]) as values:
        network(tokens(5))
        last = network(tokens(2))
    network(tokens(3))
    exactly(values, {"head": last})


def test_a_value_replaced_by_itself_changes_nothing_bit_for_bit() -> None:
    network, batch = made(), tokens()
    objects: list[Any] = []
    network.attention.register_forward_hook(lambda _, __, output: objects.append(output))
    plain = network(batch)
    with hooks.replacing(network, {"*": lambda value: value}):
        exactly(network(batch), plain)
        network.attention.register_forward_hook(lambda _, __, output: objects.append(output))
        network(batch)
    assert objects[-1] is objects[-2], "what a module returned was taken apart for nothing"
    with hooks.replacing(network, {"*": torch.clone}):
        exactly(network(batch), plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": uniform},
        {"logits": lambda logits: logits.masked_fill(torch.ones(6, 6).triu(1) > 0, -torch.inf)},
        {"logits": sharper, "weights": lambda weights: weights * torch.arange(6.0).double()},
    ],
    ids=["uniform", "causal mask", "both"],
)
@pytest.mark.parametrize("batch", [tokens(1), tokens(4)], ids=["one", "four"])
def test_replaced_values_reach_all_that_follows(changes: dict[str, Change], batch: Tensor) -> None:
    network = made()
    wanted = by_hand(network, batch, **changes)
    named = {f"attention.{name}": function for name, function in changes.items()}
    with hooks.replacing(network, named), hooks.reading(network, ["attention*", "head"]) as values:
        outputs = network(batch)
    exactly(outputs, values["head"])
    for name, value in values.items():
        torch.testing.assert_close(value, wanted[name])
    assert not outputs.allclose(network(batch))


def test_one_of_several_outputs_can_be_replaced_wherever_it_stands() -> None:
    network, batch = made(), tokens()
    wanted = network.head(network.act(network.norm(batch).relu()).mean(dim=1))
    with hooks.replacing(network, {"attention[0]": torch.zeros_like}):
        exactly(network(batch), wanted)
    with (
        hooks.replacing(network, {"attention[1][weights]": torch.zeros_like}),
        hooks.reading(network, "attention*") as values,
    ):
        exactly(network(batch), made()(batch))
    assert not values["attention[1][weights]"].any()
    assert values["attention.weights"].all()


@pytest.mark.parametrize(
    ("pattern", "which"),
    [("act", (1, 2)), ("a?t", (1, 2)), ("act#1", (1,)), ("act#2", (2,)), ("act#*", (1, 2))],
)
def test_a_module_called_twice_has_two_values(pattern: str, which: tuple[int, ...]) -> None:
    network, batch = made(), tokens()
    names = [{1: "act", 2: "act#2"}[call] for call in which]
    for _ in range(2):  # each pass counts anew
        with hooks.reading(network, pattern) as values:
            network(batch)
            network(batch)
        assert list(values) == names
    calls: list[str] = []
    with hooks.watching(network, {pattern: lambda name, _: calls.append(name)}):
        network(batch)
    assert calls == names
    with (
        hooks.replacing(network, {pattern: torch.zeros_like}),
        hooks.reading(network, "act") as values,
    ):
        network(batch)
    assert [not values[name].any() for name in ("act", "act#2")] == [c in which for c in (1, 2)]


def test_contexts_nest_and_later_ones_see_what_earlier_ones_made() -> None:
    network, batch = made(), tokens()
    logits = by_hand(network, batch)["attention.logits"]
    name = "attention.logits"
    with hooks.reading(network, name) as outside:
        with (
            hooks.replacing(network, {"attention.l*": lambda x: x + 1, name: lambda x: 2 * x}),
            hooks.replacing(network, {name: lambda x: x - 3}),
            hooks.reading(network, name) as inside,
        ):
            network(batch)
        torch.testing.assert_close(outside[name], logits)
        torch.testing.assert_close(inside[name], 2 * (logits + 1) - 3)
        network(batch)
        torch.testing.assert_close(outside[name], logits)
        torch.testing.assert_close(inside[name], 2 * (logits + 1) - 3)
    assert silent(network)


def test_nothing_is_left_of_a_context_that_ends_in_an_error() -> None:
    network, batch = made(), tokens()
    plain = network(batch)

    def fails(value: Tensor) -> Tensor:
        raise KeyError("mine")

    with (
        pytest.raises(KeyError, match="mine"),
        hooks.replacing(network, {"act": fails}),
        hooks.reading(network, "head"),
    ):
        network(batch)
    assert silent(network)
    with pytest.raises(ValueError, match="no inner value"), hooks.reading(network, ["*", "none"]):
        pass
    assert silent(network)
    exactly(network(batch), plain)


def test_a_pass_that_failed_is_not_counted() -> None:
    network = made()
    with hooks.reading(network, "act") as values:
        with pytest.raises(RuntimeError):
            network(tokens()[..., :2])
        network(tokens())
    assert list(values) == ["act", "act#2"]


@pytest.mark.parametrize(
    ("pattern", "close"),
    [
        ("attention.logit", "attention.logits"),
        ("attentoin.*", "attention"),
        ("Act", "act"),
        ("act[12].logits", "act"),
        # modules of this name there are, but no tensors
        ("attention", r"attention\[0\]"),
        ("attention[2]", r"attention\[0\]"),
        ("act#3", "act#2"),
        ("head[0]", "head"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_close_names(
    pattern: str, close: str
) -> None:
    network = made()
    line = rf"^{re.escape(pattern)}: the network has no inner value.*close names: .*{close}.*all\.$"
    for context in (
        lambda: hooks.reading(network, ["head", pattern]),
        lambda: hooks.watching(network, {"head": lambda *_: None, pattern: lambda *_: None}),
        lambda: hooks.replacing(network, {pattern: torch.zeros_like}),
    ):
        with pytest.raises(ValueError, match=line) as refusal, context():
            network(tokens())
        assert "\n" not in str(refusal.value)
        assert silent(network)


def test_a_module_that_the_forward_pass_does_not_call_is_named_as_such() -> None:
    network = made()
    for pattern in ("unused", "unu*", "unused#2", "unused[0]"):
        line = rf"^{re.escape(pattern)}: the forward pass did not call this module"
        refused = pytest.raises(ValueError, match=line)
        with refused as refusal, hooks.reading(network, ["*", pattern]):
            network(tokens())
        assert "unused" not in str(refusal.value).partition(": ")[2]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (lambda net: hooks.reading("net", "fc"), "network is an object of type str; expected"),
        (lambda net: hooks.watching(None, {"act": print}), "network is .*NoneType; expected"),
        (lambda net: hooks.reading(net, 3), "a pattern is .*int; expected a name"),
        (lambda net: hooks.reading(net, None), "a pattern is .*NoneType; expected a name"),
        (lambda net: hooks.reading(net, ["act", 3]), "a pattern is .*int; expected a name"),
        (lambda net: hooks.reading(net, tokens(1)[0]), r"a pattern is \(3,\) float64 on cpu"),
        (lambda net: hooks.replacing(net, "act"), "functions is .*str; expected {pattern: func"),
        (lambda net: hooks.replacing(net, ["act"]), "functions is .*list; expected {pattern: func"),
        (lambda net: hooks.replacing(net, torch.zeros_like), "functions is .*; expected {pattern"),
        (lambda net: hooks.replacing(net, {"act": 0}), "act: .*int; expected a function"),
        (lambda net: hooks.replacing(net, {"act": tokens(1)}), "act: .*float64.*expected a func"),
        (lambda net: hooks.watching(net, "act"), "functions is .*str; expected {pattern: func"),
        (lambda net: hooks.watching(net, {3: print}), "a pattern is .*int; expected a name"),
        (lambda net: hooks.names("net", tokens(1)), "network is .*str; expected"),
        (lambda net: hooks.names(net, 3), r"inputs is .*int; expected one .* forward\(tokens\)"),
        (lambda net: hooks.names(net, [tokens(1)]), "inputs is .*list; expected one example"),
        (lambda net: hooks.names(net, {"a": tokens(1), "b": 0}), "inputs is {a, b}; expected one"),
        (lambda net: hooks.names(net, {}), "inputs is {}; expected one example"),
    ],
)
def test_arguments_of_another_type_are_refused_in_one_line(
    wrong: Callable[[nn.Module], Any], line: str
) -> None:
    with pytest.raises(TypeError, match=line) as refusal, wrong(made()):
        pass
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda value: value[:1], r"\(1, 6, 6\) float64 on cpu"),
        (lambda value: value.mean(dim=0), r"\(6, 6\) float64 on cpu"),
        (lambda value: value.float(), r"\(5, 6, 6\) float32 on cpu"),
        (lambda value: value.to("meta"), r"\(5, 6, 6\) float64 on meta"),
        (lambda value: None, "an object of type NoneType"),
    ],
)
def test_a_replacement_of_another_kind_is_refused_by_name(
    function: Callable[[Tensor], Any], found: str
) -> None:
    network = made()
    line = rf"^attention.logits: its replacement is {found}, expected \(5, 6, 6\) float64 on cpu"
    with (
        pytest.raises(ValueError, match=line),
        hooks.replacing(network, {"*.logits": function}),
    ):
        network(tokens())


def test_names_lists_every_value_with_its_shape_and_changes_nothing() -> None:
    network = made()
    network.train()
    network.norm.eval()
    found = hooks.names(network, tokens(1))
    wanted = {name: tuple(value.shape) for name, value in by_hand(network, tokens(1)).items()}
    assert found == wanted
    assert network.training
    assert network.attention.logits.training
    assert not network.norm.training
    assert silent(network)
    assert hooks.names(nn.Linear(3, 2), tokens(1).float()) == {}
    resnet = ResNet(8, width=4, channels=1, attention="se", merge="inner_gate")
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    found = hooks.names(resnet, torch.rand(1, 1, 8, 8))
    assert found["layer2.0.attention.gate"] == (1, 8)
    assert found["layer2.0.merge.factors.gate"] == (1, 8, 4, 4)
    exactly(resnet.state_dict(), before)


def test_inputs_may_have_names() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = Exposed()

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.both(left - right)

    assert hooks.names(Two(), {"right": torch.ones(1, 2), "left": torch.ones(1, 2)}) == {
        "both": (1, 2)
    }


class ByName(nn.Module):
    """Takes its one input by name only."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Exposed()

    def forward(self, *, images: Tensor) -> Tensor:
        return self.both(2 * images)


def test_a_single_input_is_passed_as_the_network_takes_it() -> None:
    one = torch.ones(1, 2)
    assert hooks.names(ByName(), {"images": one}) == {"both": (1, 2)}
    assert hooks.names(nn.Sequential(Exposed()), {"images": one}) == {"0": (1, 2)}
    with pytest.raises(TypeError, match=r"expected one example for forward\(images\)"):
        hooks.names(ByName(), one)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Frozen:
    a: Tensor
    b: Tensor
    more: Any = None


@dataclass
class Slotted:
    __slots__ = ("a", "b")
    a: Tensor
    b: Tensor


@dataclass
class Items(OrderedDict[str, Any]):
    """Fields are items too, but for those that are None, as in Hugging Face's ModelOutput."""

    a: Tensor
    b: Tensor
    hidden: Any = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})


class Own:
    """Registered with torch's pytrees, without names."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b


pytree.register_pytree_node(Own, lambda own: ([own.a, own.b], None), lambda new, _: Own(*new))

CONTAINERS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "tuple": (lambda a, b: (a, b), "[1]"),
    "list": (lambda a, b: [a, 3, "text", b], "[3]"),
    "dictionary": (lambda a, b: {"a": a, "b": b, "none": None}, "[b]"),
    "default dictionary": (lambda a, b: defaultdict(list, {"a": [a], "b": [b]}), "[b][0]"),
    "named tuple": (Pair, "[b]"),
    "frozen dataclass": (Frozen, "[b]"),
    "dataclass with slots": (Slotted, "[b]"),
    "dataclass of items": (Items, "[b]"),
    "registered": (Own, "[1]"),
    "nested": (lambda a, b: Frozen(a, a, (3, Items(a, b))), "[more][1][b]"),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_values_in_any_container_are_read_and_replaced(container: str) -> None:
    make, index = CONTAINERS[container]

    class Many(nn.Module):
        def forward(self, value: Tensor) -> Any:
            return make(value, 2 * value)

    network = nn.Sequential(Many())
    value = torch.arange(3.0)
    plain = network(value)
    with hooks.replacing(network, {f"0{index}": lambda b: b + 1}):
        with hooks.reading(network, "0*") as values:
            changed = network(value)
        assert type(changed) is type(plain)
        exactly(values[f"0{index}"], 2 * value + 1)
    kept: list[Any] = []
    network[0].register_forward_hook(lambda _, __, output: kept.append(output))
    with hooks.watching(network, {"0*": lambda name, _: None}):
        assert network(value) is kept[0], "what does not change is passed on itself"


def test_a_replaced_item_of_a_dataclass_is_replaced_as_its_field_too() -> None:
    class Model(nn.Module):
        def forward(self, value: Tensor) -> Items:
            return Items(value, 2 * value)

    network = nn.Sequential(Model())
    with hooks.replacing(network, {"0[b]": torch.zeros_like}):
        output = network(torch.ones(2))
    for value in (output.b, output["b"], list(output.values())[1]):
        exactly(value, torch.zeros(2))
    exactly(output.a, torch.ones(2))
    assert list(output) == ["a", "b"]
    assert output.hidden is None


def test_functional_calls_have_the_values_of_other_weights() -> None:
    network, other, batch = made(), made(), tokens()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    with hooks.replacing(network, {"attention.weights": uniform}), hooks.reading(network, "*") as v:
        found = func.functional_call(network, dict(other.named_parameters()), (batch,))
    wanted = by_hand(other, batch, weights=uniform)
    torch.testing.assert_close(found, wanted["head"])
    torch.testing.assert_close(v["attention.query"], wanted["attention.query"])


@pytest.mark.second_derivative
def test_gradients_and_second_derivatives_in_a_value_that_was_read() -> None:
    network, batch = made().requires_grad_(requires_grad=False), tokens(2)
    names = ["attention.logits", "norm"]  # the second is overwritten by a ReLU in place

    def loss_at(value: Tensor, name: str) -> Tensor:
        if name == "norm":
            return network.head(nn.functional.gelu(value.relu()).mean(dim=1)).square().sum()
        return by_hand(network, batch, logits=lambda _: value)["head"].square().sum()

    for name in names:
        start = {name: lambda value: value.detach().requires_grad_()}
        with hooks.replacing(network, start), hooks.reading(network, name) as values:
            loss = network(batch).square().sum()
        value = values[name]
        (gradient,) = torch.autograd.grad(loss, value, create_graph=True)
        at = value.detach().requires_grad_()
        (wanted,) = torch.autograd.grad(loss_at(at, name), at)
        torch.testing.assert_close(gradient, wanted)
        direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(3)).double()
        (product,) = torch.autograd.grad(gradient, value, direction)
        dense = torch.autograd.functional.hessian(partial(loss_at, name=name), at.detach())
        wanted = torch.tensordot(dense, direction, dims=value.ndim)
        assert wanted.norm() > 1e-3
        torch.testing.assert_close(product, wanted)


def test_a_value_that_was_read_leads_back_to_what_it_came_from() -> None:
    network, batch = made(), tokens()
    with hooks.reading(network, ["attention.logits", "clip"]) as values:
        network(batch)
    for name, value in values.items():
        key = network.attention.key.weight
        (found,) = torch.autograd.grad(value.square().sum(), key, retain_graph=True)
        plain = by_hand(network, batch)[name]
        (wanted,) = torch.autograd.grad(plain.square().sum(), key)
        torch.testing.assert_close(found, wanted)


def test_inference_mode_reads_and_replaces() -> None:
    network, batch = made(), tokens()
    with (
        torch.inference_mode(),
        hooks.replacing(network, {"attention.weights": uniform}),
        hooks.reading(network, "norm") as values,
    ):
        outputs = network(batch)
    wanted = by_hand(network, batch, weights=uniform)
    assert outputs.is_inference()
    torch.testing.assert_close(values["norm"], wanted["norm"])
    torch.testing.assert_close(outputs, wanted["head"])


@pytest.mark.second_derivative
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own forward mode
def test_transformations_of_torch_func_see_replacements_and_can_return_values() -> None:
    network, batch = made().requires_grad_(requires_grad=False), tokens(3)

    def loss(batch: Tensor) -> tuple[Tensor, Tensor]:
        with hooks.reading(network, "attention.logits") as values:
            outputs = network(batch)
        return outputs.square().sum(), values["attention.logits"]

    def wanted(batch: Tensor) -> Tensor:
        return by_hand(network, batch, logits=sharper)["head"].square().sum()

    with hooks.replacing(network, {"attention.logits": sharper}):
        slope, logits = func.grad(loss, has_aux=True)(batch)
        traced = make_fx(func.grad(lambda batch: loss(batch)[0]))(batch)
        curved = func.hessian(lambda batch: loss(batch)[0])(batch)
        single = func.vmap(lambda one: loss(one[None])[1][0])(batch)
    torch.testing.assert_close(slope, func.grad(wanted)(batch))
    # outside of the context: the trace holds the replacement
    torch.testing.assert_close(traced(2 * batch), func.grad(wanted)(2 * batch))
    torch.testing.assert_close(curved, func.hessian(wanted)(batch))
    expected = by_hand(network, batch, logits=sharper)["attention.logits"]
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(single, expected)


def test_activation_checkpointing_recomputes_the_replaced_value() -> None:
    network, batch = made(), tokens().requires_grad_()

    def slope(outputs: Tensor) -> Tensor:
        return torch.autograd.grad(outputs.square().sum(), batch)[0]

    with hooks.replacing(network, {"attention.logits": sharper}):
        found = slope(checkpoint(network, batch, use_reentrant=False))
    torch.testing.assert_close(found, slope(by_hand(network, batch, logits=sharper)["head"]))


def test_other_threads_are_reached() -> None:
    network, batch = made(), tokens()
    found: list[Tensor] = []
    with hooks.replacing(network, {"attention.weights": uniform}):
        thread = threading.Thread(target=lambda: found.append(network(batch)))
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], by_hand(network, batch, weights=uniform)["head"])


class Bare(Attention):
    """The same with nothing exposed."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.query(tokens) @ self.key(tokens).mT / tokens.shape[-1] ** 0.5
        return logits.softmax(dim=-1) @ self.value(tokens), {}


def test_what_is_exposed_leaves_no_trace_in_states_graphs_and_exports() -> None:
    torch.manual_seed(0)
    shown, bare = Attention(3).double(), Bare(3).double()
    assert list(shown.state_dict()) == [
        f"{layer}.{kind}" for layer in ("query", "key", "value") for kind in ("weight", "bias")
    ]
    file = io.BytesIO()
    torch.save(shown.state_dict(), file)
    file.seek(0)
    bare.load_state_dict(torch.load(file, weights_only=True))
    traces = [make_fx(lambda x: shown(x)[0])(tokens()), make_fx(lambda x: bare(x)[0])(tokens())]
    targets = [[node.target for node in trace.graph.nodes] for trace in traces]
    assert targets[0] == targets[1]
    exported = torch.export.export(shown, (tokens(),), strict=False)
    exactly(exported.module()(tokens())[0], bare(tokens())[0])


def test_a_copy_has_the_names_of_its_own_and_hooks_only_as_long_as_the_context() -> None:
    network, batch = made(), tokens()
    with hooks.replacing(network, {"attention.weights": uniform}), hooks.reading(network, "*") as v:
        network(batch)
        values = dict(v)
        twin = copy.deepcopy(network)
    exactly(twin(2 * batch), network(2 * batch))
    exactly(v, values)
    with hooks.reading(twin, "attention.weights") as found:
        network(batch)
        assert found == {}
        twin(batch)
    assert list(found) == ["attention.weights"]


def test_watching_keeps_nothing_and_passes_on_the_tensor_itself() -> None:
    network, batch = made(), tokens()
    means: dict[str, float] = {}
    seen: list[int] = []

    def look(name: str, value: Tensor) -> None:
        means[name] = value.mean().item()
        seen.append(value.data_ptr())

    with hooks.watching(network, {"norm": look, "clip": look}):
        network(batch)
    assert means == pytest.approx(
        {name: by_hand(network, batch)[name].mean().item() for name in ("norm", "clip")}
    )
    assert seen[0] == seen[1], "the ReLU in place works on the very tensor"


@pytest.mark.second_derivative
def test_the_examples_of_the_page_run_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    found: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in blocks:
            exec(block, found)
    assert "'layer1.0.merge.factors.shortcut': (1, 8, 28, 28)" in capsys.readouterr().out
    assert found["product"].norm() < 1e-5 < found["gradient"].norm()
