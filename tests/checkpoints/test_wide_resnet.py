"""Pre-activation wide ResNets against the same written out from formulas, and published counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints import hooks
from checkpoints.checkpoint import Checkpoint, build, load, save
from checkpoints.models.wide_resnet import ARCHITECTURES, WideResNet
from checkpoints.registry import MODELS

AUTHORS = ("bn_add", "bn_sigmoid_residual", "bn_sigmoid_shortcut", "bn_product_clamped_unit")


def uneven(**options: Any) -> WideResNet:
    """A tiny network in float64, in eval mode, in which no weight, bias or statistic is usual."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = WideResNet(**{"depth": 10, "width": 1, "channels": 1, "classes": 3, **options})
    clamped = {name for name, _ in network.named_buffers() if name.endswith("bias")}
    for name, value in network.state_dict().items():
        if name.endswith("running_var") or ("bn" in name or "norm" in name) and "weight" in name:
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim == 1 and name not in clamped:
            value.normal_(0, 0.3, generator=generator)
    return network.double().eval()


def images(count: int = 3, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 1, size, size, generator=generator, dtype=torch.float64)


def written_out(state: dict[str, Tensor], images: Tensor, merge: str, blocks: int = 1) -> Tensor:
    """The logits from the state dict alone: batch norms, sigmoids and convolutions by hand."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5) ** 0.5 * weight + bias

    def convolved(name: str, x: Tensor, stride: int = 1) -> Tensor:
        """The sum over the taps of shifted images."""
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        size = weight.shape[2]
        padded = functional.pad(x, (size // 2,) * 4)
        height, width = x.shape[2:]
        total = torch.zeros(len(x), len(weight), height, width, dtype=x.dtype)
        for row in range(size):
            for column in range(size):
                shifted = padded[:, :, row : row + height, column : column + width]
                total += torch.einsum("oc,nchw->nohw", weight[:, :, row, column], shifted)
        return (total + bias[:, None, None])[:, :, ::stride, ::stride]

    def sigmoid(x: Tensor) -> Tensor:
        return 1 / (1 + (-x).exp())

    x = convolved("conv1", images)
    for stage in (1, 2, 3):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            hidden = norm(f"{at}.bn2", convolved(f"{at}.conv1", norm(f"{at}.bn1", x).clamp(min=0)))
            r = convolved(f"{at}.conv2", hidden.clamp(min=0), stride)
            projected = f"{at}.downsample.weight" in state
            s = convolved(f"{at}.downsample", x, stride) if projected else x
            first, second = f"{at}.merge.norm_residual", f"{at}.merge.norm_shortcut"
            if merge == "add":
                x = r + s
            elif merge == "inner_gate":
                x = r * sigmoid(convolved(f"{at}.merge.gate", hidden, stride)) + s
            elif merge == "bn_add":
                x = norm(first, r) + s
            elif merge == "bn_sigmoid_residual":
                x = (sigmoid(r) + 1) * norm(second, s)
            elif merge == "bn_sigmoid_shortcut":
                assert (state[f"{first}.bias"] == 1).all()
                x = (sigmoid(norm(second, s)) + 0.5) * norm(first, r)
            else:
                for name in (first, second):
                    assert (state[f"{name}.bias"] == 1).all()
                x = norm(first, r) * norm(second, s)
    pooled = norm("bn1", x).clamp(min=0).mean(dim=(2, 3))
    return pooled @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("merge", [*AUTHORS, "add", "inner_gate"])
@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2)])
def test_the_network_is_its_formula(merge: str, depth: int, width: int) -> None:
    network = uneven(depth=depth, width=width, merge=merge)
    found = network(images())
    wanted = written_out(network.state_dict(), images(), merge, (depth - 4) // 6)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "known"), [("wrn16_2", 691_674), ("wrn16_10", 17_116_634)])
def test_the_published_network_lies_within(name: str, known: int) -> None:
    """Zagoruyko and Komodakis have no biases in convolutions, and no norm in the merge."""
    with torch.device("meta"):
        network = build(name, {"merge": "add"})
        control = build(name, {})
    biases = [m.bias for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert size(network) - sum(bias.numel() for bias in biases if bias is not None) == known
    norms = [m for n, m in control.named_modules() if n.endswith("merge.norm_residual")]
    assert len(norms) == 6
    assert size(control) - size(network) == sum(map(size, norms))


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_names_say_depth_and_width_and_options_override_them() -> None:
    assert set(ARCHITECTURES) <= set(MODELS)
    for name in ("wrn10_1", "fmm_wrn28_10", "wrn40_4"):
        depth, width = map(int, name.rpartition("wrn")[2].split("_"))
        with torch.device("meta"):
            network = build(name, {})
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        # The stem, two in every block, and three projections; with width 1 the first has none.
        projections = 2 if width == 1 else 3
        assert len(layers) == depth - 3 + projections
        assert network.fc.in_features == 64 * width  # type: ignore[union-attr]
    chosen = build("wrn16_2", {"depth": 10, "width": 1, "dropout": 0.3, "merge": "product"})
    assert sum(isinstance(m, nn.Dropout) and m.p == 0.3 for m in chosen.modules()) == 3
    assert chosen.fc.in_features == 64  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"depth": 18}, "depth=18; expected 6n+4 such as 10, 16, 22, 28, 40"),
        ({"depth": 4}, "depth=4; expected 6n"),
        ({"width": 0}, "width=0; expected a whole number, at least 1"),
        ({"width": 1.5}, "width=1.5; expected a whole number"),
        ({"dropout": 1}, "dropout=1; expected a number, at least 0 and below 1"),
        ({"merge": "sum"}, "merge='sum'; expected add, bn_add, bn_sigmoid_shortcut or another"),
    ],
)
def test_an_option_that_is_not_allowed_is_refused_in_a_line(
    options: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        build("wrn16_2", options)
    assert line in str(refusal.value)
    assert len(str(refusal.value)) <= 200


@pytest.mark.parametrize("merge", [*AUTHORS, "add", "inner_gate"])
def test_activations_neither_vanish_nor_explode_at_initialisation(merge: str) -> None:
    """Over six blocks, in train mode as at the first step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WideResNet(16, width=2, channels=1, merge=merge)
        batch = torch.randn(16, 1, 16, 16)
        with hooks.reading(network, "*.merge") as values:
            loss = functional.cross_entropy(network(batch), torch.arange(16) % 10)
        torch.autograd.backward(loss)
    sizes = [float(value.detach().square().mean().sqrt()) for value in values.values()]
    assert len(sizes) == 6
    assert all(0.5 < each < 5 for each in sizes), sizes  # the sum of six branches grows by sqrt(6)
    slopes = [m.weight.grad for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [float(slope.norm()) for slope in slopes if slope is not None]
    assert max(norms) < 30 * min(norms), norms


def test_dropout_acts_in_training_alone_and_is_no_part_of_the_file() -> None:
    plain, dropping = uneven(), uneven(dropout=0.5)
    assert list(plain.state_dict()) == list(dropping.state_dict())
    assert torch.equal(plain(images()), dropping(images()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = (dropping.train()(images()) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("merge", AUTHORS)
def test_a_file_holds_the_clamped_biases_and_loads_without_a_name(
    merge: str, tmp_path: Path
) -> None:
    """As one of ours, and as a state dict in the names of the author's code."""
    network = uneven(merge=merge).float()
    options = {"merge": merge, "channels": 1, "classes": 3}
    save(Checkpoint(network.state_dict(), "wrn10_1", options, 3, (1, 8, 8)), tmp_path / "own.pt")
    theirs = {
        name.replace("fc.", "linear.")
        .replace(".downsample.", ".shortcut.0.")
        .replace(".merge.norm_residual.", ".bn.")
        .replace(".merge.norm_shortcut.", ".bn_s."): value
        for name, value in network.state_dict().items()
    }
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pt")
    wanted = network(images().float())
    both = merge in ("bn_sigmoid_shortcut", "bn_product_clamped_unit")
    name = {"bn_sigmoid_residual": "fmm_wrn10_1", "bn_add": "wrn10_1"}.get(merge, "")
    for file, told in (("own.pt", {}), ("theirs.pt", {"model": "wrn10_1", "options": options})):
        loaded = load(tmp_path / file, **told)  # type: ignore[arg-type]
        assert torch.equal(loaded.network()(images().float()), wanted)
    if both:  # which product it is does not follow from the parameters
        with pytest.raises(ValueError, match="no registered model fits. Pass --model NAME"):
            load(tmp_path / "theirs.pt")
    else:
        recognised = load(tmp_path / "theirs.pt")
        assert recognised.model == name
        assert torch.equal(recognised.network()(images().float()), wanted)
