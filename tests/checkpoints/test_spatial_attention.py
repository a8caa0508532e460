"""Generalised spatial attention against its formulas, and the networks that contain it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints import hooks, loading, network_file
from checkpoints.checkpoint import build
from checkpoints.models.aggregation import ScaledResidual
from checkpoints.models.spatial_attention import TERMS, SpatialAttention, sine_encoding, terms_of
from checkpoints.registry import MODELS

SETTINGS = ["".join(bits) for bits in itertools.product("01", repeat=4)]
WIDE = torch.float64


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def made(channels: int = 8, *, seed: int = 0, **options: Any) -> SpatialAttention:
    """Double precision, two heads, and a bias of the output that is not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attention = SpatialAttention(channels, **{"heads": 2, **options}).double()
        nn.init.normal_(attention.output.bias)
        return attention


def network(name: str, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(name, {"width": 4, "channels": 1, **options})


def encoding(offset: int, width: int) -> list[float]:
    """One axis of R, number by number: the sines, then the cosines."""
    angles = [offset / 1000 ** (2 * j / width) for j in range(width // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def by_hand(
    attention: SpatialAttention, queries: Tensor, keys: Tensor, stride: int = 1
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The result, the four terms and the weights, pair by pair, from the formula."""
    axes, heads, channels = queries.ndim - 2, attention.heads, queries.shape[1]
    keys = keys[(..., *[slice(None, None, stride)] * axes)]
    at = list(itertools.product(*map(range, queries.shape[2:])))
    to = list(itertools.product(*map(range, keys.shape[2:])))
    z, x = queries.flatten(2), keys.flatten(2)
    offsets = torch.tensor(
        [
            [
                [v for a, b in zip(q, k, strict=True) for v in encoding(b * stride - a, r)]
                for k in to
            ]
            for q in at
            for r in [channels // axes]
        ],
        dtype=WIDE,
    )

    def split(weight: Tensor) -> Tensor:
        return weight.reshape(heads, channels // heads, -1)

    state = dict(attention.named_parameters())
    none = torch.zeros(len(z), heads, len(at), len(to), dtype=WIDE)
    terms = dict.fromkeys(TERMS, none)
    asked = {name: name in attention.terms for name in TERMS}
    if asked["query_key"] or asked["query_position"]:
        u_z = torch.einsum("mdc,ncq->nmdq", split(state["query.weight"]), z)
    if asked["query_key"] or asked["key"]:
        v_x = torch.einsum("mdc,nck->nmdk", split(state["key.weight"]), x)
    if asked["query_position"] or asked["position"]:
        v_r = torch.einsum("mdr,qkr->mdqk", split(state["position.weight"]), offsets)
    if asked["query_key"]:
        terms["query_key"] = torch.einsum("nmdq,nmdk->nmqk", u_z, v_x)
    if asked["query_position"]:
        terms["query_position"] = torch.einsum("nmdq,mdqk->nmqk", u_z, v_r)
    if asked["key"]:
        u = state["key_bias"].reshape(heads, -1)
        terms["key"] = none + torch.einsum("md,nmdk->nmk", u, v_x)[:, :, None]
    if asked["position"]:
        v = state["position_bias"].reshape(heads, -1)
        terms["position"] = none + torch.einsum("md,mdqk->mqk", v, v_r)[None]
    energy = terms["query_key"] + terms["query_position"] + terms["key"] + terms["position"]
    weights = energy.exp() / energy.exp().sum(dim=-1, keepdim=True)
    value = torch.einsum("mdc,nck->nmdk", split(state["value.weight"]), x)
    gathered = torch.einsum("nmqk,nmdk->nmdq", weights, value)
    output = state["output.weight"].reshape(channels, heads, -1)
    result = torch.einsum("cmd,nmdq->ncq", output, gathered) + state["output.bias"][:, None]
    return result.reshape(len(z), channels, *queries.shape[2:]), terms, weights


@pytest.mark.parametrize("terms", SETTINGS)
def test_every_setting_is_its_formula(terms: str) -> None:
    """On images with keys at every second position, and from one sequence to another."""
    image = made(terms=terms, key_stride=2), rand(2, 8, 4, 3), None
    sequences = made(terms=terms, axes=1), rand(2, 8, 5), rand(2, 8, 7, seed=1)
    for attention, queries, keys in (image, sequences):
        patterns = ["weights", *(f"energies.{name}" for name in attention.terms)]
        with hooks.reading(attention, patterns) as values:
            found = attention(queries) if keys is None else attention(queries, keys)
        stride = attention.key_stride
        wanted, energies, weights = by_hand(
            attention, queries, queries if keys is None else keys, stride
        )
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(values["weights"].expand_as(weights), weights)
        for name in attention.terms:
            energy = values[f"energies.{name}"]
            torch.testing.assert_close(energy.expand_as(weights), energies[name])


@pytest.mark.parametrize("axes", [1, 2])
def test_the_map_of_0010_is_computed_once_and_equals_the_general_way(axes: int) -> None:
    """The other terms of a full attention masked give the same, query by query."""
    features = rand(3, 8, *(6, 5)[:axes])
    whole, fast = made(axes=axes), made(axes=axes, terms="0010")
    fast.load_state_dict({k: whole.state_dict()[k] for k in fast.state_dict()})
    others = {f"energies.{name}": torch.zeros_like for name in TERMS if name != "key"}
    with hooks.replacing(whole, others), hooks.reading(whole, "weights") as slow:
        wanted = whole(features)
    with hooks.reading(fast, "weights") as quick:
        torch.testing.assert_close(fast(features), wanted)
    positions = math.prod(features.shape[2:])
    assert slow["weights"].shape == (3, 2, positions, positions)
    assert quick["weights"].shape == (3, 2, 1, positions)


@pytest.mark.parametrize("masked", SETTINGS)
def test_masking_terms_leaves_the_others(masked: str) -> None:
    """The terms add up: with a 0 for a 1 the setting is that with fewer terms."""
    features = rand(2, 8, 3, 4)
    whole, fewer = made(), made(terms=masked)
    fewer.load_state_dict({k: whole.state_dict()[k] for k in fewer.state_dict()})
    gone = {f"energies.{name}": torch.zeros_like for name in set(TERMS) - set(fewer.terms)}
    with hooks.replacing(whole, gone):
        torch.testing.assert_close(whole(features), fewer(features))


def test_without_terms_it_is_the_mean_over_the_keys() -> None:
    attention, features = made(terms="0000"), rand(2, 8, 4, 4)
    mean = features.mean(dim=(2, 3)) @ attention.value.weight.T
    wanted = mean @ attention.output.weight.T + attention.output.bias
    torch.testing.assert_close(attention(features), wanted[..., None, None].expand_as(features))
    assert {n for n, _ in attention.named_parameters()} == {
        "value.weight",
        "output.weight",
        "output.bias",
    }


@pytest.mark.parametrize("encoding", ["concatenated", "added"])
def test_terms_of_position_move_with_the_image(encoding: Any) -> None:
    """Away from the borders, where a shifted image has lost what it had."""
    attention = made(encoding=encoding)
    features = rand(1, 8, 6, 5)
    patterns = ["energies.query_position", "energies.position"]
    found = []
    for image in (features, features.roll((2, 1), dims=(2, 3))):
        with hooks.reading(attention, patterns) as values:
            attention(image)
        found.append([values[p].reshape(2, 6, 5, 6, 5) for p in patterns])
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(after[:, 2:, 1:, 2:, 1:], before[:, :-2, :-1, :-2, :-1])
    assert not found[0][0].allclose(found[1][0]), "else this tests nothing"


def test_the_term_of_position_alone_is_toeplitz_and_knows_no_input() -> None:
    attention = made(axes=1)
    energies = []
    for seed in (0, 1):
        with hooks.reading(attention, "energies.position") as values:
            attention(rand(2, 8, 6, seed=seed))
        energies.append(values["energies.position"])
    torch.testing.assert_close(energies[0], energies[1], rtol=0, atol=0)
    assert energies[0].shape == (2, 2, 6, 6)
    torch.testing.assert_close(energies[0][..., 1:, 1:], energies[0][..., :-1, :-1])


def test_without_positions_it_moves_with_any_permutation() -> None:
    attention, features = made(terms="1010", axes=1), rand(2, 8, 6)
    order = [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(attention(features[..., order]), attention(features)[..., order])
    whole = made(axes=1)
    assert not whole(features[..., order]).allclose(whole(features)[..., order])


class TestMmcv:
    """Facts of mmcv's GeneralizedAttention, from its published code."""

    def test_only_the_output_has_a_bias_and_a_head_has_c_over_m_channels(self) -> None:
        shapes = {n: tuple(p.shape) for n, p in SpatialAttention(64).named_parameters()}
        assert shapes == {
            **{f"{name}.weight": (64, 64) for name in ("query", "key", "position", "value")},
            "output.weight": (64, 64),
            "output.bias": (64,),
            "key_bias": (64,),
            "position_bias": (64,),
        }

    def test_logits_are_not_divided_by_the_root_of_d_unless_asked(self) -> None:
        features, found = rand(1, 8, 3, 3), []
        for scaled in (False, True):
            attention = made(scaled=scaled)
            with hooks.reading(attention, "logits") as values:
                attention(features)
            found.append(values["logits"])
        torch.testing.assert_close(found[0] / 4**0.5, found[1])

    @pytest.mark.parametrize("size", [6, 7])
    def test_a_key_stride_is_its_average_pooling_over_one_pixel(self, size: int) -> None:
        features = rand(2, 8, size, size)
        pooled = functional.avg_pool2d(features, kernel_size=1, stride=2)
        attention, dense = made(terms="1010", key_stride=2), made(terms="1010")
        torch.testing.assert_close(attention(features), dense(features, pooled))

    def test_the_encoding_of_an_axis_is_its_sines_and_cosines(self) -> None:
        found = sine_encoding(torch.tensor([0.0, -3.0], dtype=WIDE), 4, 1000.0)
        rows = [[0, 0, 1, 1]]
        rows += [[math.sin(-3), math.sin(-3 / 1000**0.5), math.cos(-3), math.cos(-3 / 1000**0.5)]]
        torch.testing.assert_close(found, torch.tensor(rows, dtype=WIDE))

    def test_added_energies_are_concatenated_encodings_over_root_two(self) -> None:
        features = rand(2, 8, 4, 3)
        added, joined = made(encoding="added"), made()
        state = added.state_dict()
        torch.testing.assert_close(added(features), joined(features))  # the same at the same seed
        torch.testing.assert_close(state["position.weight"], 2**0.5 * joined.position.weight)

    def test_weights_begin_uniform_with_their_limits(self) -> None:
        attention = SpatialAttention(64)
        limits = {name: (3 / 64) ** 0.5 for name in ("query", "key", "position", "value")}
        for name, limit in (limits | {"output": (3 / 64) ** 0.5}).items():
            largest = float(getattr(attention, name).weight.detach().abs().max())
            assert 0.99 * limit < largest <= limit
        for bias in (attention.key_bias, attention.position_bias):
            assert 0.8 * (1 / 16) ** 0.5 < float(bias.detach().abs().max()) <= (1 / 16) ** 0.5
        assert (attention.output.bias == 0).all()

    def test_a_residual_begins_as_the_identity_and_one_number_scales_it(self) -> None:
        block, features = ScaledResidual(made()), rand(2, 8, 3, 3)
        torch.testing.assert_close(block(features), features, rtol=0, atol=0)
        nn.init.constant_(block.scale, 0.5)
        torch.testing.assert_close(block(features), features + block.branch(features) / 2)
        assert block.scale.shape == (1,)


def test_a_query_sees_nothing_beyond_its_reach_and_all_within() -> None:
    attention, features = made(reach=1, key_stride=2), rand(1, 8, 5, 5)
    with hooks.reading(attention, "weights") as values:
        attention(features)
    weights = values["weights"].reshape(2, 5, 5, 3, 3)
    row = torch.arange(5)[:, None] - 2 * torch.arange(3)
    near = (row.abs() <= 1)[:, None, :, None] & (row.abs() <= 1)[None, :, None, :]
    assert torch.equal(weights > 0, near.expand_as(weights))
    torch.testing.assert_close(weights.sum(dim=(-1, -2)), torch.ones(2, 5, 5, dtype=WIDE))


def test_with_a_reach_of_everything_nothing_changes() -> None:
    features = rand(1, 8, 4, 3)
    torch.testing.assert_close(made(reach=9)(features), made()(features))


def test_a_causal_attention_does_not_see_the_future() -> None:
    attention, sequence = made(axes=1), rand(2, 8, 6)
    before = torch.ones(6, 6, dtype=torch.bool).tril()
    changed = torch.cat([sequence[..., :4], rand(2, 8, 2, seed=5)], dim=-1)
    found = [attention(each, allowed=before) for each in (sequence, changed)]
    torch.testing.assert_close(found[0][..., :4], found[1][..., :4], rtol=0, atol=0)
    assert not found[0][..., 4:].allclose(found[1][..., 4:])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"terms": "101"}, "terms='101'; expected four switches"),
        ({"terms": "1211"}, "terms='1211'; expected four switches"),
        ({"terms": 11}, "terms=11; expected four switches"),
        ({"heads": 3}, "heads=3; expected a divisor of 8"),
        ({"heads": 0}, "heads=0; expected a whole number, at least 1"),
        ({"axes": 3}, "axes=3; expected 1 or 2"),
        ({"key_stride": 0}, "key_stride=0; expected a whole number, at least 1"),
        ({"reach": 1, "key_stride": 3}, r"reach=1; expected None, or at least .* = 2"),
        ({"encoding": "x"}, "encoding=x; expected 'concatenated' or 'added'"),
        ({"wave_length": 0.0}, "wave_length=0.0; expected a number, above 0"),
    ],
)
def test_an_option_that_is_not_allowed_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        SpatialAttention(8, **{"heads": 2, **options})


def test_channels_that_an_encoding_does_not_fill_matter_only_with_positions() -> None:
    with pytest.raises(ValueError, match="channels=6; expected a multiple of 4"):
        SpatialAttention(6, heads=2)
    assert SpatialAttention(6, heads=2, terms="1010").terms == ("query_key", "key")
    assert SpatialAttention(6, heads=2, axes=1).terms == TERMS


def test_the_command_line_s_numbers_are_switches_too() -> None:
    assert terms_of(1000) == ("query_key",)
    assert terms_of("0010") == ("key",)


MECHANISMS: list[tuple[str, dict[str, Any]]] = [
    ("spatial_resnet8", {}),
    ("spatial_resnet8", {"terms": "0010", "deformable": True}),
    ("deformable_resnet8", {}),
    ("dynamic_resnet8", {"groups": 4}),
    ("spatial_resnet8", {"attention": "none"}),
]


@pytest.mark.parametrize(("name", "options"), MECHANISMS)
def test_before_training_a_network_is_the_resnet_of_its_seed(
    name: str, options: dict[str, Any]
) -> None:
    plain, other = network("resnet8"), network(name, **options)
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert other.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    for key, value in network(name, **options).state_dict().items():
        if key in plain.state_dict():
            assert torch.equal(value, plain.state_dict()[key]), key
    torch.testing.assert_close(other.eval()(images), plain.eval()(images))


@pytest.mark.parametrize(
    ("depth", "stages"), [(8, ("layer2", "layer3")), (18, ("layer3", "layer4"))]
)
def test_a_mechanism_stands_in_the_last_two_stages(depth: int, stages: tuple[str, ...]) -> None:
    attending = network(f"spatial_resnet{depth}")
    found = [n for n, m in attending.named_modules() if isinstance(m, SpatialAttention)]
    blocks = 1 if depth == 8 else 2
    assert found == [f"{stage}.{i}.attention.branch" for stage in stages for i in range(blocks)]
    moved = network(f"deformable_resnet{depth}")
    found = [n for n, _ in moved.named_modules() if n.endswith(".offsets")]
    assert found == [f"{stage}.{i}.conv2.offsets" for stage in stages for i in range(blocks)]


def test_every_resnet_has_its_three_variants_of_the_same_width() -> None:
    for prefix in ("spatial", "deformable", "dynamic"):
        assert {n.removeprefix(f"{prefix}_") for n in MODELS if n.startswith(prefix)} == {
            n for n in MODELS if n.startswith("resnet")
        }
        with torch.device("meta"):
            wide = build(f"{prefix}_resnet18", {})
        assert wide.get_submodule("fc").weight.shape == (10, 512)


def test_an_unknown_mechanism_is_refused() -> None:
    with pytest.raises(ValueError, match="attention=se; expected 'spatial', 'dynamic' or 'none'"):
        network("spatial_resnet8", attention="se")


def test_a_state_dict_loads_by_name_and_is_not_guessed(tmp_path: Path) -> None:
    """0111 and 1111 have the same parameters, so what a file means must be said."""
    path = tmp_path / "net.pth"
    torch.save(network("spatial_resnet8", terms="0111").state_dict(), path)
    loaded = loading.load(path, model="spatial_resnet8", options={"terms": "0111"})
    assert loaded.options["width"] == 4
    assert loaded.network()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    with pytest.raises(ValueError, match="no registered model fits"):
        loading.load(path)


def test_copying_needs_query_and_key_content_in_cross_attention() -> None:
    """The decoder's query is a place, and the key at that place holds the symbol.

    One query-independent map gives all places the same answer, which is right by chance only.
    """
    symbols, length, width = 5, 4, 16

    def accuracy(terms: str) -> float:
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            attention = SpatialAttention(width, terms=terms, heads=2, axes=1)
            embedding, head = nn.Embedding(symbols, width), nn.Linear(width, symbols)
        places = sine_encoding(torch.arange(length).float(), width, 100.0)
        trained = nn.ModuleList([attention, embedding, head])
        optimizer = torch.optim.Adam(trained.parameters(), 0.02)
        for _ in range(80):
            source = torch.randint(symbols, (32, length), generator=generator)
            keys = (embedding(source) + places).mT
            logits = head(attention(places.mT.expand(32, -1, -1), keys).mT)
            loss = functional.cross_entropy(logits.flatten(0, 1), source.flatten())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return float((logits.argmax(dim=-1) == source).double().mean())

    assert accuracy("1000") > 0.95
    # the most frequent symbol of four drawn from five is right in less than half of the places
    assert accuracy("0010") < 0.6


@pytest.mark.parametrize(
    ("model", "options", "line"),
    [
        ("dynamic_resnet8", {"terms": "2222"}, "terms=2222 has no effect with attention=dynamic"),
        ("dynamic_resnet8", {"terms": "1111"}, "no effect with .*; it needs attention=spatial"),
        ("deformable_resnet8", {"reach": 3}, "reach=3 has no effect with attention=none"),
        ("deformable_resnet8", {"groups": 4}, "groups=4 has no .*; it needs attention=dynamic"),
        ("spatial_resnet8", {"offset_kernel": 3}, "no effect with deformable=False"),
    ],
)
def test_an_option_of_a_part_that_is_not_there_is_refused(
    model: str, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        build(model, options)
    with pytest.raises(ValueError, match=line):
        network_file.outline(model, options)
