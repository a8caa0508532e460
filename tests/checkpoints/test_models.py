from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints.checkpoint import build
from checkpoints.declared import Count, options_of
from checkpoints.models.merge import MERGES, NormalizedProduct
from checkpoints.models.resnet import (
    ARCHITECTURES,
    ATTENTIONS,
    Block,
    PaddingShortcut,
    ResNet,
    candidates,
    canonical_key,
    options_from,
)
from checkpoints.models.se import SqueezeExcitation
from checkpoints.registry import MODELS

EPS = 1e-5  # of nn.BatchNorm2d


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name: str, **options: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(name, options)


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def three_stage_size(depth: int, width: int, channels: int, classes: int, shortcut: str) -> int:
    """The parameters of a network of He et al. 2016, section 4.2, layer by layer."""
    total = 9 * channels * width + 2 * width
    before = width
    for stage in range(3):
        now = width * 2**stage
        for _ in range((depth - 2) // 6):
            total += 9 * before * now + 2 * now + 9 * now * now + 2 * now
            if before != now and shortcut == "B":
                total += before * now + 2 * now
            before = now
    return total + before * classes + classes


@pytest.mark.parametrize(("shortcut", "known"), [("A", 269_722), ("B", 272_474)])
def test_resnet20_has_its_published_number_of_parameters(shortcut: str, known: int) -> None:
    assert size(made("resnet20", shortcut=shortcut)) == known
    assert three_stage_size(20, 16, 3, 10, shortcut) == known


@pytest.mark.parametrize("depth", [8, 32, 56, 110])
def test_three_stage_networks_have_the_parameters_of_their_depth(depth: int) -> None:
    network = made(f"resnet{depth}", width=4, channels=1, classes=7, shortcut="A")
    assert size(network) == three_stage_size(depth, 4, 1, 7, "A")


@pytest.mark.parametrize(("name", "known"), [("resnet18", 11_173_962), ("resnet34", 21_282_122)])
def test_four_stage_networks_have_their_well_known_number_of_parameters(
    name: str, known: int
) -> None:
    assert size(made(name)) == known


@pytest.mark.parametrize("family", ["resnet", "fmmnet", "se_resnet"])
@pytest.mark.parametrize(("depth", "channels", "pixels"), [(20, 1, 28), (20, 3, 32), (18, 3, 32)])
def test_networks_take_small_images_of_both_usual_sizes(
    family: str, depth: int, channels: int, pixels: int
) -> None:
    network = made(f"{family}{depth}", width=4, channels=channels, classes=7).eval()
    with torch.no_grad():
        assert network(torch.rand(2, channels, pixels, pixels)).shape == (2, 7)


def test_every_name_is_a_registered_model_of_its_depth() -> None:
    assert set(ARCHITECTURES) <= set(MODELS)
    for family in ("resnet", "fmmnet", "se_resnet"):
        for depth in (20, 32, 56, 18, 34):
            network = made(f"{family}{depth}", width=1)
            layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
            assert sum(c.kernel_size == (3, 3) for c in layers) + 1 == depth


@pytest.mark.parametrize("depth", [0, 2, 7, 19, 21, -4])
def test_a_depth_that_no_network_has_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth={depth}; expected 18, 34, or 6n\+2"):
        ResNet(depth)


@pytest.mark.parametrize("name", ["resnet8", "sk_resnet8", "dynamic_resnet8", "wrn16_2", "seq2seq"])
def test_every_whole_number_among_the_options_is_checked(name: str) -> None:
    declared, _ = options_of(MODELS[name])
    counts = [option for option, kind in declared.items() if kind == Count]
    assert {"width", "classes", "channels"} <= set(counts)
    assert [option for option, kind in declared.items() if kind is int] in ([], ["depth"])
    for option, value in itertools.product(counts, (0, -1, 2.5, "x")):
        line = f"{option}={value}; expected a whole number, at least 1"
        with pytest.raises(ValueError, match=line):
            MODELS[name](**{option: value})


def test_a_whole_number_may_be_written_as_another_of_the_same_value() -> None:
    assert made("resnet8", width=2.0).get_submodule("fc").in_features == 8
    assert made("spatial_resnet8", width=4, heads=2.0, channels=1)(
        torch.zeros(1, 1, 8, 8)
    ).shape == (1, 10)
    attending = made("spatial_resnet8", width=4, heads=2, reach="none", scaled="yes")  # d = 4
    attention = attending.get_submodule("layer2.0.attention.branch")
    assert attention.reach is None
    assert attention.scale == 0.5


@pytest.mark.parametrize("option", ["shortcut", "merge", "attention"])
def test_an_unknown_option_is_refused_with_the_known_ones(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}='?x'?; expected "):
        made("resnet8", **{option: "x"})


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("merge", MERGES)
def test_every_merge_trains_one_step_with_finite_gradients(merge: str, attention: str) -> None:
    network = made("resnet8", width=4, merge=merge, attention=attention)
    images, labels = rand(6, 3, 8, 8).float(), torch.tensor([0, 1, 2, 3, 4, 5])
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    torch.autograd.backward(functional.cross_entropy(network(images), labels))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    optimizer.step()
    assert functional.cross_entropy(network(images), labels).isfinite()
    assert any(not p.equal(before[n]) for n, p in network.named_parameters())


CLAMPED = {
    "bn_product_clamped": ("residual", "shortcut"),
    "bn_product_clamped_unit": ("residual", "shortcut"),
    "bn_sigmoid_shortcut": ("residual",),
}


@pytest.mark.parametrize("merge", MERGES)
def test_clamped_biases_are_one_and_stay_so_and_no_other_is_frozen(merge: str) -> None:
    """They are buffers: in the file, and no coordinate of the space of weights."""
    network = made("resnet8", width=4, merge=merge)
    known = {
        f"layer{stage}.0.merge.norm_{factor}.bias"
        for stage in (1, 2, 3)
        for factor in CLAMPED.get(merge, ())
    }
    buffers = dict(network.named_buffers())
    assert {name for name in buffers if name.endswith("bias")} == known
    assert known <= set(network.state_dict())
    assert all(p.requires_grad for p in network.parameters())
    optimizer = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1)
    torch.autograd.backward(network(rand(6, 3, 8, 8).float()).square().sum())
    optimizer.step()
    for name in known:
        assert (network.state_dict()[name] == 1).all()
    other = made("resnet8", width=4, merge=merge)
    for name in known:
        other.state_dict()[name].fill_(0.5)
    other.load_state_dict(network.state_dict())
    images = rand(2, 3, 8, 8).float()
    assert torch.equal(other.eval()(images), network.eval()(images))


def normalized(features: Tensor) -> Tensor:
    """Batch norm in train mode, with weight 1 and bias 0, from its definition."""
    mean = features.mean(dim=(0, 2, 3), keepdim=True)
    variance = features.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    return (features - mean) / (variance + EPS).sqrt()


CLOSED_FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda r, s: r + s,
    "product": lambda r, s: r * s,
    "bn_product": lambda r, s: normalized(r) * normalized(s),
    "bn_product_mean1": lambda r, s: (0.2 * normalized(r) + 1) * (normalized(s) + 1),
    "bn_product_mean1_unit": lambda r, s: (normalized(r) + 1) * (normalized(s) + 1),
    "bn_product_clamped": lambda r, s: (0.2 * normalized(r) + 1) * (normalized(s) + 1),
    "bn_product_clamped_unit": lambda r, s: (normalized(r) + 1) * (normalized(s) + 1),
    "bn_add": lambda r, s: normalized(r) + s,
    "bn_sigmoid_shortcut": lambda r, s: (
        (1 / (1 + (-normalized(s)).exp()) + 0.5) * (normalized(r) + 1)
    ),
    "bn_sigmoid_residual": lambda r, s: (1 / (1 + (-r).exp()) + 1) * normalized(s),
    "sigmoid_shortcut": lambda r, s: (1 / (1 + (-s).exp()) + 0.5) * r,
    "sigmoid_residual": lambda r, s: (1 / (1 + (-r).exp()) + 0.5) * s,
    "sigmoid_both": lambda r, s: 1 / (1 + (-normalized(r)).exp()) / (1 + (-normalized(s)).exp()),
    "tanh_residual": lambda r, s: (1 + r.tanh()) * s,
}


@pytest.mark.parametrize("merge", CLOSED_FORMS)
def test_a_merge_is_its_closed_form(merge: str) -> None:
    residual, shortcut = rand(5, 3, 4, 4, seed=1) * 2 + 0.3, rand(5, 3, 4, 4, seed=2) - 0.7
    found = MERGES[merge](3).double()(residual, shortcut)
    torch.testing.assert_close(found, CLOSED_FORMS[merge](residual, shortcut))


def test_the_inner_gate_multiplies_the_branch_by_a_mask_of_its_own_hidden_features() -> None:
    residual, shortcut, hidden = (rand(5, 3, 4, 4, seed=seed) for seed in (1, 2, 3))
    merge: Any = MERGES["inner_gate"](3).double()
    weight, bias = merge.gate.weight[:, :, 0, 0], merge.gate.bias[:, None, None]
    logits = torch.einsum("oc,nchw->nohw", weight, hidden) + bias
    wanted = residual / (1 + (-logits).exp()) + shortcut
    torch.testing.assert_close(merge(residual, shortcut, hidden), wanted)


def test_all_merges_are_covered_by_a_closed_form() -> None:
    assert set(CLOSED_FORMS) | {"inner_gate"} == set(MERGES)


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_a_factor_without_variation_leaves_the_other_as_it_is(scale: float) -> None:
    """Mean 1 makes 1 the neutral value of both factors."""
    merge = NormalizedProduct(3, mean=1, residual_scale=scale).double()
    features = rand(5, 3, 4, 4)
    constant = torch.full_like(features, 7.0)
    torch.testing.assert_close(merge(constant, features), normalized(features) + 1)
    torch.testing.assert_close(merge(features, constant), scale * normalized(features) + 1)


def test_the_masks_have_their_neutral_elements() -> None:
    features, zero = rand(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    for name in ("tanh_residual", "sigmoid_residual", "add"):
        torch.testing.assert_close(MERGES[name](3)(zero, features), features, rtol=0, atol=0)
    torch.testing.assert_close(MERGES["sigmoid_shortcut"](3)(features, zero), features)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_block_merges_branch_and_shortcut_and_cuts_below_zero(merge: str, shortcut: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        block: Any = Block(3, 6, 2, shortcut, merge, "none")
    block.to(torch.float64).eval()
    seen: list[Tensor] = []
    block.merge.register_forward_hook(lambda module, factors, merged: seen.extend(factors))
    features = rand(2, 3, 8, 8)
    result = block(features)

    hidden = functional.conv2d(features, block.conv1.weight, stride=2, padding=1) / (1 + EPS) ** 0.5
    inner = functional.conv2d(hidden.relu(), block.conv2.weight, padding=1) / (1 + EPS) ** 0.5
    torch.testing.assert_close(seen[0], inner)
    thinned = features[:, :, ::2, ::2]
    if shortcut == "A":
        wanted = torch.zeros(2, 6, 4, 4, dtype=torch.float64)
        wanted[:, 1:4] = thinned  # three new channels: one before, two after
    else:
        weight = block.downsample[0].weight[:, :, 0, 0]
        wanted = torch.einsum("oc,nchw->nohw", weight, thinned) / (1 + EPS) ** 0.5
    torch.testing.assert_close(seen[1], wanted)
    if merge == "inner_gate":
        torch.testing.assert_close(seen[2], hidden)
    torch.testing.assert_close(result, block.merge(*seen).clamp(min=0))


def test_padding_puts_the_old_channels_in_the_middle_and_has_no_parameters() -> None:
    features = rand(2, 16, 5, 5)
    padding = PaddingShortcut(16, 32, 2)
    wanted = torch.zeros(2, 32, 3, 3, dtype=torch.float64)
    wanted[:, 8:24] = features[:, :, ::2, ::2]
    torch.testing.assert_close(padding(features), wanted, rtol=0, atol=0)
    assert not list(padding.parameters())


@pytest.mark.parametrize(("channels", "squeezed"), [(16, 4), (64, 4), (128, 8), (512, 32)])
def test_the_squeeze_is_sixteenfold_but_not_below_four(channels: int, squeezed: int) -> None:
    assert SqueezeExcitation(channels).squeeze.weight.shape == (squeezed, channels)


def test_names_of_other_codes_are_translated() -> None:
    assert canonical_key("linear.weight") == "fc.weight"
    assert canonical_key("layer2.0.shortcut.1.bias") == "layer2.0.downsample.1.bias"
    assert canonical_key("layer2.0.linear.weight") == "layer2.0.linear.weight"
    assert canonical_key("layer2.0.merge.norm_shortcut.bias") == "layer2.0.merge.norm_shortcut.bias"


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_shapes_tell_the_options_that_built_them(shortcut: str) -> None:
    options = {"width": 6, "channels": 1, "classes": 7, "shortcut": shortcut}
    for name in ("resnet14", "fmmnet18", "se_resnet34"):
        state = made(name, **options).state_dict()
        assert options_from({k: tuple(v.shape) for k, v in state.items()}) == options
        assert name in candidates(state)
        assert len(candidates(state)) == 2 + len(ATTENTIONS) - 1  # of the same depth


def test_shapes_of_another_network_tell_nothing() -> None:
    assert options_from({"weight": (3, 4), "bias": (3,)}) is None
    assert options_from({"conv1.weight": (3, 4), "fc.weight": (3, 4)}) is None
    assert candidates(["weight", "bias"]) == []
