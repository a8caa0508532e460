"""Channel and spatial gates against their formulas in numpy, and their published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from checkpoints import hooks, loading
from checkpoints.batch_norm import recompute_statistics
from checkpoints.checkpoint import build
from checkpoints.models.cbam import CBAM, ChannelGate, SpatialGate
from checkpoints.models.eca import EfficientChannelAttention, kernel_size
from checkpoints.models.gate import Applied
from checkpoints.models.nam import NormalizationAttention
from checkpoints.models.resnet import ATTENTIONS, Block
from checkpoints.models.se import SqueezeExcitation
from checkpoints.models.sk import SelectiveKernel
from checkpoints.registry import MODELS

Array = NDArray[np.float64]
C, ROWS, COLUMNS = 12, 5, 4
EPS = 1e-5  # of batch norm
GATES = ("se", "eca", "cbam", "nam", "sk")
# Bottleneck blocks of ResNet-50, by their output channels, for published sizes.
RESNET50 = {256: 3, 512: 4, 1024: 6, 2048: 3}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uneven(module: Any, seed: int = 1) -> Any:
    """In double precision and eval mode, with no parameter or statistic at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0, 0.7, generator=generator)
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            mean, std = (1.5, 0.2) if name.endswith("var") else (0.0, 0.5)
            nn.init.normal_(buffer, mean, std, generator=generator)
    return module


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def values_of(module: nn.Module) -> dict[str, Array]:
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def normalized(x: Array, state: dict[str, Array], norm: str) -> Array:
    """Batch norm of (N, C, ...) in eval mode."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var, weight, bias = (
        state[f"{norm}.{part}"].reshape(shape)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return np.asarray((x - mean) / np.sqrt(var + EPS) * weight + bias)


def convolved(x: Array, weight: Array, dilation: int = 1, stride: int = 1) -> Array:
    """A convolution with zeros beyond the borders, tap by tap."""
    side = weight.shape[-1]
    pad = dilation * (side // 2)
    wide = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    total = 0.0
    for i in range(side):
        for j in range(side):
            down, right = i * dilation, j * dilation
            tap = wide[:, :, down : down + x.shape[2], right : right + x.shape[3]]
            total = total + np.einsum("oc,nchw->nohw", weight[:, :, i, j], tap)
    return np.asarray(total)[:, :, ::stride, ::stride]


def se(x: Array, w: dict[str, Array]) -> Array:
    pooled = x.mean(axis=(2, 3))
    hidden = np.maximum(np.einsum("hc,nc->nh", w["squeeze.weight"], pooled), 0)
    return sigmoid(np.einsum("ch,nh->nc", w["excite.weight"], hidden))


def eca(x: Array, w: dict[str, Array]) -> Array:
    pooled, taps = x.mean(axis=(2, 3)), w["mix.weight"][0, 0]
    logits = np.zeros_like(pooled)
    for c in range(x.shape[1]):
        for at, tap in enumerate(taps):
            neighbour = c + at - len(taps) // 2
            if 0 <= neighbour < x.shape[1]:
                logits[:, c] += tap * pooled[:, neighbour]
    return sigmoid(logits)


def channel(x: Array, w: dict[str, Array]) -> Array:
    def mlp(v: Array) -> Array:
        hidden = np.maximum(v @ w["squeeze.weight"].T + w["squeeze.bias"], 0)
        return np.asarray(hidden @ w["excite.weight"].T + w["excite.bias"])

    return sigmoid(mlp(x.mean(axis=(2, 3))) + mlp(x.max(axis=(2, 3))))


def spatial(x: Array, w: dict[str, Array]) -> Array:
    pooled = np.stack([x.mean(axis=1), x.max(axis=1)], axis=1)
    return sigmoid(normalized(convolved(pooled, w["conv.weight"]), w, "norm"))


def nam(x: Array, w: dict[str, Array]) -> Array:
    gamma = np.abs(w["norm.weight"])
    return sigmoid(np.einsum("c,nchw->nchw", gamma / gamma.sum(), normalized(x, w, "norm")))


FORMULAS: dict[str, tuple[Any, Any]] = {
    "se": (SqueezeExcitation, se),
    "eca": (EfficientChannelAttention, eca),
    "channel": (ChannelGate, channel),
    "spatial": (SpatialGate, spatial),
    "nam": (NormalizationAttention, nam),
}


def joined(x: Array, g: Array, w: dict[str, Array]) -> Array:
    weight = w["joined.weight"][:, :, 0, 0]
    wide = np.broadcast_to(g, (*g.shape[:2], *x.shape[2:]))
    mixed = np.einsum("oc,nchw->nohw", weight[:, :C], x)
    return np.asarray(mixed + np.einsum("oc,nchw->nohw", weight[:, C:], wide))


APPLIED: dict[str, Any] = {
    "multiply": lambda x, g, w: x * g,
    "add": lambda x, g, w: x + g,
    "concat": joined,
    "mean": lambda x, g, w: x * g.mean(axis=(0, 2, 3))[:, None, None],
}


@pytest.mark.parametrize("apply", get_args(Applied))
@pytest.mark.parametrize("name", FORMULAS)
def test_a_gate_is_its_formula_and_is_applied_as_it_says(name: str, apply: str) -> None:
    """By default as a product. A mean is here that of the batch, as in training."""
    kind, formula = FORMULAS[name]
    module, features = uneven(kind(C, apply=apply)), rand(3, C, ROWS, COLUMNS)
    if apply == "mean":
        module.statistics.train()
    x, w = features.numpy(), values_of(module)
    gate = formula(x, w)
    wide = gate.reshape(*gate.shape, *(1,) * (4 - gate.ndim))
    with hooks.reading(module, ["gate", "before"]) as values:
        found = module(features)
    if apply == "mean":
        gate = np.broadcast_to(wide.mean(axis=(0, 2, 3), keepdims=True), wide.shape)
        gate = gate.reshape(values["gate"].shape)
    np.testing.assert_allclose(values["gate"].detach(), gate, rtol=1e-12)
    torch.testing.assert_close(values["before"], features, rtol=0, atol=0)
    np.testing.assert_allclose(found.detach(), APPLIED[apply](x, wide, w), rtol=1e-11, atol=1e-14)
    if apply == "multiply":
        torch.testing.assert_close(uneven(kind(C))(features), found, rtol=0, atol=0)


def test_cbam_gates_the_channels_and_then_the_positions_of_what_is_left() -> None:
    module, features = uneven(CBAM(C)), rand(3, C, ROWS, COLUMNS)
    x, state = features.numpy(), values_of(module)
    parts: dict[str, dict[str, Array]] = {"channel": {}, "spatial": {}}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        parts[part][rest] = value
    first = x * channel(x, parts["channel"])[:, :, None, None]
    wanted = first * spatial(first, parts["spatial"])
    np.testing.assert_allclose(module(features).detach(), wanted, rtol=1e-12)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_selective_kernels_are_a_mixture_of_two_convolutions(stride: int, groups: int) -> None:
    module = uneven(SelectiveKernel(4, 6, stride, groups))
    features, w = rand(3, 4, ROWS, COLUMNS), values_of(module)
    maps = []
    for branch, dilation in ((0, 1), (1, 2)):
        kernel = w[f"branches.{branch}.0.weight"]
        whole = np.zeros((6, 4, 3, 3))  # groups are blocks of a whole kernel, zero elsewhere
        for o in range(6):
            first = (o * groups // 6) * (4 // groups)
            whole[o, first : first + 4 // groups] = kernel[o]
        found = convolved(features.numpy(), whole, dilation, stride)
        maps.append(np.maximum(normalized(found, w, f"branches.{branch}.1"), 0))
    pooled = (maps[0] + maps[1]).mean(axis=(2, 3))
    hidden = normalized(pooled @ w["select.squeeze.weight"].T, w, "select.norm")
    logits = np.maximum(hidden, 0) @ w["select.excite.weight"].T
    share = sigmoid(logits[:, :6] - logits[:, 6:])  # a softmax over two
    wanted = np.einsum("nc,nchw->nchw", share, maps[0])
    wanted += np.einsum("nc,nchw->nchw", 1 - share, maps[1])
    with hooks.reading(module, ["select", "select.gate", "select.before"]) as values:
        result = module(features).detach()
    np.testing.assert_allclose(result, wanted, rtol=1e-11, atol=1e-14)
    gate = values["select.gate"].detach()
    np.testing.assert_allclose(gate, np.concatenate([share, 1 - share], axis=1), rtol=1e-11)
    np.testing.assert_allclose(gate[:, :6] + gate[:, 6:], np.ones((3, 6)), rtol=1e-12)
    np.testing.assert_allclose(values["select.before"].detach(), np.concatenate(maps, axis=1))
    halves = values["select"].detach().chunk(2, dim=1)
    torch.testing.assert_close(halves[0] + halves[1], result)


@pytest.mark.parametrize(
    ("channels", "kernel"),
    [(4, 1), (8, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_the_kernel_of_eca_grows_with_the_logarithm_of_the_channels(
    channels: int, kernel: int
) -> None:
    assert kernel_size(channels) == kernel
    assert EfficientChannelAttention(channels).mix.weight.shape == (1, 1, kernel)


def test_eca_sees_a_channel_and_its_neighbours_alone() -> None:
    module, features = uneven(EfficientChannelAttention(16)), rand(1, 16, 3, 3)
    moved = features.clone()
    moved[:, 7] += 1
    changed = (module.weights(moved) != module.weights(features))[0].nonzero().flatten()
    assert changed.tolist() == [6, 7, 8]


def test_the_weights_of_nam_sum_to_one_whatever_the_signs() -> None:
    """Where the norm returns one everywhere, the gate is the sigmoid of a channel's weight."""
    module, features = uneven(NormalizationAttention(C)), rand(2, C, ROWS, COLUMNS)
    gamma = module.norm.weight.detach().abs()
    assert float(module.norm.weight.detach().min()) < 0
    with hooks.replacing(module, {"norm": torch.ones_like}):
        weights = module.weights(features).detach().logit()[0, :, 0, 0]
    torch.testing.assert_close(weights, gamma / gamma.sum())
    assert float(weights.sum()) == pytest.approx(1)


def test_gates_have_their_published_sizes() -> None:
    """Of ResNet-50: Hu et al. 2018, section 5.1 (2.5 million); Woo et al. 2018, table 4 (28.09)."""
    base = 25_557_032
    with torch.device("meta"):
        added = {
            kind: sum(count * size(ATTENTIONS[kind](width)) for width, count in RESNET50.items())
            for kind in ("se", "cbam", "nam")
        }
    assert added["se"] == 2 / 16 * sum(n * c**2 for c, n in RESNET50.items()) == 2_514_944
    assert round((base + added["cbam"]) / 1e6, 2) == 28.09
    assert added["nam"] == 2 * sum(n * c for c, n in RESNET50.items())


def test_sknet50_has_its_published_size() -> None:
    """27.5 million (Li et al. 2019, table 2): ResNeXt-50 with other 3x3 convolutions."""
    total = 25_028_904
    with torch.device("meta"):
        for width, count in {c // 2: n for c, n in RESNET50.items()}.items():
            plain = nn.Conv2d(width, width, 3, groups=32, bias=False), nn.BatchNorm2d(width)
            unit = SelectiveKernel(width, width, groups=32)
            total += count * (size(unit) - sum(map(size, plain)))
    assert round(total / 1e6, 1) == 27.5


@pytest.mark.parametrize(
    ("name", "of_block"),
    [
        ("se", lambda c: 2 * c * max(4, c // 16)),
        ("eca", lambda c: kernel_size(c)),
        ("cbam", lambda c: (2 * c + 1) * max(4, c // 16) + c + 2 * 49 + 2),
        ("nam", lambda c: 2 * c),
    ],
)
def test_a_gated_network_has_its_gates_parameters_more(name: str, of_block: Any) -> None:
    with torch.device("meta"):
        gated, plain = (
            size(build(n, {"width": 16, "channels": 1})) for n in (f"{name}_resnet18", "resnet18")
        )
    assert gated - plain == sum(2 * of_block(c) for c in (16, 32, 64, 128))


def network(name: str, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(name, {"width": 4, "channels": 1, **options})


@pytest.mark.parametrize("name", GATES)
def test_every_resnet_has_a_variant_of_the_same_width_with_every_gate(name: str) -> None:
    assert {n.removeprefix(f"{name}_") for n in MODELS if n.startswith(f"{name}_")} == {
        n for n in MODELS if n.startswith("resnet")
    }
    with torch.device("meta"):
        wide = build(f"{name}_resnet18", {})
    assert wide.get_submodule("fc").weight.shape == (10, 512)


@pytest.mark.parametrize("name", GATES)
def test_a_foreign_state_dict_is_recognised(name: str, tmp_path: Path) -> None:
    torch.save(network(f"{name}_resnet14").state_dict(), tmp_path / "net.pth")
    loaded = loading.load(tmp_path / "net.pth", say=lambda line: None)
    assert (loaded.model, loaded.options["width"]) == (f"{name}_resnet14", 4)
    assert loaded.network()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("name", [n for n in GATES if n != "sk"])
def test_a_gate_of_one_gives_the_plain_network(name: str) -> None:
    gated, plain = network(f"{name}_resnet8").eval(), network("resnet8").eval()
    assert plain.load_state_dict(gated.state_dict(), strict=False).missing_keys == []
    images = rand(2, 1, 8, 8).float()
    assert not gated(images).allclose(plain(images))
    with hooks.replacing(gated, {"*.attention*.gate": torch.ones_like}):
        torch.testing.assert_close(gated(images), plain(images), rtol=0, atol=0)


def test_all_of_one_branch_gives_the_network_of_its_convolutions() -> None:
    selecting, plain = network("sk_resnet8").eval(), network("resnet8").eval()
    with torch.no_grad():
        for name, block in selecting.named_modules():
            if isinstance(block, Block):
                other: Any = plain.get_submodule(name)
                unit: Any = block.conv1
                other.conv1, other.bn1 = unit.branches[0][0], unit.branches[0][1]
                for rest in ("conv2", "bn2", "downsample"):
                    setattr(other, rest, getattr(block, rest))
        for rest in ("conv1", "bn1", "fc"):
            setattr(plain, rest, selecting.get_submodule(rest))

    def only_first(gate: Tensor) -> Tensor:
        half = gate.shape[1] // 2
        return torch.arange(gate.shape[1]).lt(half).to(gate).expand_as(gate)

    images = rand(2, 1, 8, 8).float()
    assert not selecting(images).allclose(plain(images))
    with hooks.replacing(selecting, {"*.select.gate": only_first}):
        torch.testing.assert_close(selecting(images), plain(images))


def test_two_groups_give_two_branches_the_weights_of_one_convolution() -> None:
    unit = SelectiveKernel(8, 16, groups=2)
    weights = sum(size(branch[0]) for branch in unit.branches)
    assert weights == size(nn.Conv2d(8, 16, 3, bias=False))
    with pytest.raises(ValueError, match="groups=3; expected a divisor of 4 channels, the width"):
        network("sk_resnet8", groups=3)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_mean_gate_is_the_same_for_every_image(name: str) -> None:
    """It runs with momentum 0.1 from 0 in training, and multiplies as it stands in evaluation."""
    module = uneven(FORMULAS[name][0](C, apply="mean"))
    statistics: nn.BatchNorm2d = module.statistics
    statistics.reset_running_stats()
    features, other = rand(3, C, ROWS, COLUMNS), rand(2, C, ROWS, COLUMNS, seed=4)
    statistics.train()
    gate = module.weights(features).detach()
    module(features)
    wide = gate if gate.ndim == 4 else gate[:, :, None, None]
    running = 0.1 * wide.mean(dim=(0, 2, 3))
    torch.testing.assert_close(statistics.running_mean, running)
    module.eval()
    with hooks.reading(module, "gate") as values:
        found = module(other)
    assert values["gate"].shape == module.weights(other).shape
    torch.testing.assert_close(found, other * running[:, None, None])
    torch.testing.assert_close(module(other[:1]), found[:1], rtol=0, atol=0)


def test_recomputed_statistics_are_those_of_the_gate_too() -> None:
    module = uneven(SqueezeExcitation(C, apply="mean"))
    features = rand(7, C, ROWS, COLUMNS)
    gate = module.weights(features).detach()
    recompute_statistics(module, lambda m, batch: m(batch["input"]), {"input": features})
    torch.testing.assert_close(module.statistics.running_mean, gate.mean(dim=0))


def test_shares_that_are_added_are_one_for_every_channel() -> None:
    """What the selection adds does not depend on the image, as its shares sum to 1."""
    unit, features = uneven(SelectiveKernel(4, 6, apply="add")), rand(3, 4, ROWS, COLUMNS)
    branches = sum(branch(features) for branch in unit.branches)
    torch.testing.assert_close(unit(features), branches + 1)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize(
    ("apply", "more"),
    [
        ("multiply", lambda c, w: 0),
        ("add", lambda c, w: 0),
        ("concat", lambda c, w: c * (c + w)),
        ("mean", lambda c, w: 0),
    ],
)
def test_a_control_has_the_parameters_of_its_1x1_convolutions_more(
    name: str, apply: str, more: Any
) -> None:
    with torch.device("meta"):
        control, gated = (
            size(build(f"{name}_resnet8", {"width": 16, **options}))
            for options in ({"apply": apply}, {})
        )
    places = {"cbam": [(1, 1), (1, 0)], "sk": [(2, 2)]}.get(name, [(1, 1)])
    wide = [more(of_map * c, of_gate * c or 1) for c in (16, 32, 64) for of_map, of_gate in places]
    assert control - gated == sum(wide)


@pytest.mark.parametrize("apply", get_args(Applied))
def test_every_control_trains_every_parameter(apply: str) -> None:
    model = network("cbam_resnet8", apply=apply)
    images, labels = rand(6, 1, 8, 8).float().sigmoid(), torch.arange(6)
    torch.autograd.backward(nn.functional.cross_entropy(model(images), labels))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert float(model.get_parameter("layer1.0.attention.channel.squeeze.weight").grad.norm()) > 0


def test_an_application_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="apply=x; expected 'multiply', 'add', 'concat' or 'mean'"):
        network("se_resnet8", apply="x")
    with pytest.raises(ValueError, match="apply=add has no effect with attention=none"):
        network("resnet8", apply="add")
