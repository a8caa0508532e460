from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.core import direction_files, directions

SHAPES = {"conv": (4, 3, 3, 3), "stem": (5, 1, 1, 1), "bias": (4,), "fc": (6, 8)}


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    origin = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    return directions.gaussian(origin, generator)


def dot(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)


def test_every_filter_gets_the_norm_of_the_same_filter_of_the_origin() -> None:
    origin = tensors(0)
    scaled = directions.normalize(tensors(1), origin, "filter")
    for name in ("conv", "stem", "fc"):
        torch.testing.assert_close(
            scaled[name].flatten(1).norm(dim=1), origin[name].flatten(1).norm(dim=1)
        )
    assert not scaled["bias"].any()


def test_layer_normalisation_gives_every_tensor_the_norm_of_the_origin() -> None:
    origin = tensors(0)
    scaled = directions.normalize(tensors(1), origin, "layer")
    for name in ("conv", "stem", "fc"):
        torch.testing.assert_close(scaled[name].norm(), origin[name].norm())
    assert not scaled["bias"].any()


def test_unit_normalisation_gives_every_slice_norm_one() -> None:
    scaled = directions.normalize(tensors(1), tensors(0), "unit")
    for name in ("conv", "stem", "fc"):
        norms = scaled[name].flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_no_normalisation_changes_nothing() -> None:
    drawn = tensors(1)
    scaled = directions.normalize(drawn, tensors(0), "none")
    assert all(torch.equal(scaled[name], drawn[name]) for name in SHAPES)


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 1e6), st.sampled_from(["filter", "layer", "unit"]))
def test_the_scale_of_the_draw_does_not_matter(scale: float, how: str) -> None:
    drawn, origin = tensors(1), tensors(0)
    larger = {name: value * scale for name, value in drawn.items()}
    once = directions.normalize(drawn, origin, how)
    for name, value in directions.normalize(larger, origin, how).items():
        torch.testing.assert_close(value, once[name])


def test_a_zero_filter_stays_zero_on_either_side() -> None:
    origin, drawn = tensors(0), tensors(1)
    drawn["conv"][1] = 0
    origin["conv"][2] = 0
    scaled = directions.normalize(drawn, origin, "filter")
    assert not scaled["conv"][1:3].any()
    assert all(torch.isfinite(value).all() for value in scaled.values())


@pytest.mark.parametrize("how", ["filter", "layer", "unit", "none"])
def test_orthogonalised_directions_stay_orthogonal_when_they_are_scaled(how: str) -> None:
    origin = tensors(0)
    first = directions.normalize(tensors(1), origin, how)
    second = directions.orthogonalize(tensors(2), first, how)
    second = directions.normalize(second, origin, how)
    cosine = dot(first, second) / (dot(first, first) * dot(second, second)) ** 0.5
    assert abs(cosine) < 1e-14
    if how == "filter":  # A filter of one weight has no orthogonal direction.
        assert not second["stem"].any()
        torch.testing.assert_close(
            second["conv"].flatten(1).norm(dim=1), origin["conv"].flatten(1).norm(dim=1)
        )


@pytest.mark.parametrize("how", ["filter", "layer", "unit", "none"])
def test_each_part_that_is_scaled_alone_is_orthogonal_alone_and_loses_nothing_else(
    how: str,
) -> None:
    first, drawn = tensors(1), tensors(2)
    first["conv"][1] = 0
    drawn["conv"][2] = 1e-4 * drawn["conv"][2] + first["conv"][2]  # nearly parallel
    second = directions.orthogonalize(drawn, first, how)
    assert dot(first, second) == pytest.approx(0, abs=1e-12)
    for name in ("conv", "fc"):
        product = (first[name] * second[name]).flatten(1).sum(1)
        gone, parts = (drawn[name] - second[name]).flatten(1), first[name].flatten(1)
        if how in ("filter", "unit"):
            assert product.abs().max() < 1e-13
            # what is taken away is a multiple of the same filter
            cosine = (gone * parts).sum(1).abs() / (gone.norm(dim=1) * parts.norm(dim=1))
            assert cosine[parts.any(1)].tolist() == pytest.approx([1.0] * int(parts.any(1).sum()))
            assert second[name].flatten(1).norm(dim=1).min() > 0
        else:
            assert product.abs().max() > 0.01
            assert (abs(product.sum()) < 1e-12) == (how == "layer")
    if how == "filter":
        assert torch.equal(second["conv"][1], drawn["conv"][1])  # nothing to be orthogonal to


def test_nothing_is_orthogonal_to_a_direction_of_zeros_but_all() -> None:
    zero, drawn = {name: torch.zeros(shape) for name, shape in SHAPES.items()}, tensors(2)
    for how in ("filter", "layer", "unit", "none"):
        rest = directions.orthogonalize(drawn, zero, how)
        assert all(torch.equal(rest[name], drawn[name]) for name in ("conv", "stem", "fc")), how


@pytest.mark.parametrize("how", ["filter", "layer", "unit"])
def test_a_scaled_direction_points_the_same_way_and_tensors_of_fewer_axes_do_not_move(
    how: str,
) -> None:
    origin, drawn = tensors(0), tensors(1)
    origin |= {"scalar": torch.ones(()).double(), "table": torch.ones(2, 3).double()}
    drawn |= {"scalar": torch.ones(()).double(), "table": torch.full((2, 3), 7.0).double()}
    scaled = directions.normalize(drawn, origin, how)
    assert not scaled["scalar"] and not scaled["bias"].any()
    for name in ("conv", "stem", "fc", "table"):
        ratio = (scaled[name] / drawn[name]).flatten(1)
        assert (ratio > 0).all()
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    # one norm for a layer, one for each filter
    assert (len((scaled["fc"] / drawn["fc"]).round(decimals=9).unique()) == 1) == (how == "layer")


def test_layers_are_chosen_by_patterns_in_the_order_of_the_network() -> None:
    names = ["conv.weight", "conv.bias", "fc.weight", "fc.bias"]
    assert directions.matching(names, []) == names
    assert directions.matching(names, ["fc.*", "*.weight"]) == [names[0], names[2], names[3]]
    with pytest.raises(
        ValueError, match=r"--layers FC\.\*: no parameter matches.* 4: .*fc\.bias\.$"
    ):
        directions.matching(names, ["fc.*", "FC.*"])
    with pytest.raises(ValueError, match=r"There are 8: 0, 1, 2, 3, 4, 5, …\.$"):
        directions.matching([str(number) for number in range(8)], ["x"])
    with pytest.raises(ValueError, match=r"There are 6: 0, 1, 2, 3, 4, 5\.$"):
        directions.matching([str(number) for number in range(6)], ["x"])


def test_names_that_only_one_side_has_are_told_apart() -> None:
    short = {name: value for name, value in tensors(1).items() if name != "fc"}
    for call in (directions.difference, lambda a, b: directions.normalize(a, b, "unit")):
        with pytest.raises(ValueError, match="fc is only in the origin"):
            call(short, tensors(0))
        with pytest.raises(ValueError, match="fc is only in the direction"):
            call(tensors(0), short)
    with pytest.raises(ValueError, match="fc is only in the origin"):
        directions.orthogonalize(short, tensors(0), "filter")


def test_one_seed_is_one_direction_in_every_precision() -> None:
    wide = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    narrow = {name: value.float() for name, value in wide.items()}
    a = directions.gaussian(wide, torch.Generator().manual_seed(5))
    b = directions.gaussian(narrow, torch.Generator().manual_seed(5))
    c = directions.gaussian(wide, torch.Generator().manual_seed(6))
    assert all(torch.equal(a[name].float(), b[name]) for name in SHAPES)
    assert not torch.equal(a["fc"], c["fc"])


def test_entries_are_standard_normal() -> None:
    origin = {"w": torch.zeros(200, 500)}
    drawn = directions.gaussian(origin, torch.Generator().manual_seed(0))["w"].double()
    # Four standard errors of the mean, variance and third moment of 100,000 standard normals.
    assert abs(drawn.mean()) < 4 / 100_000**0.5
    assert abs(drawn.var() - 1) < 4 * (2 / 100_000) ** 0.5
    assert abs((drawn**3).mean()) < 4 * (15 / 100_000) ** 0.5


def test_a_step_of_zero_is_the_origin_exactly_and_nothing_is_written_to() -> None:
    origin, first, second = tensors(0), tensors(1), tensors(2)
    before = {name: value.clone() for name, value in origin.items()}
    point = directions.displaced(origin, [first, second], [0.0, 0.0])
    moved = directions.displaced(origin, [first, second], [0.5, -2.0])
    for name in SHAPES:
        assert torch.equal(point[name], origin[name])
        torch.testing.assert_close(moved[name], origin[name] + 0.5 * first[name] - 2 * second[name])
        assert torch.equal(origin[name], before[name])


def test_the_difference_leads_from_the_origin_to_the_end() -> None:
    origin, end = tensors(0), tensors(1)
    arrived = directions.displaced(origin, [directions.difference(end, origin)], [1.0])
    for name in SHAPES:
        torch.testing.assert_close(arrived[name], end[name])


def test_directions_are_saved_and_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    kept = [tensors(1), tensors(2)]
    direction_files.save(kept, path)
    for was, read in zip(kept, direction_files.load(path, tensors(0)), strict=True):
        assert all(torch.equal(was[name], read[name]) for name in SHAPES)


def test_directions_of_another_architecture_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    direction_files.save([tensors(1)], path)
    other = tensors(0)
    other["fc"] = torch.zeros(6, 9)
    with pytest.raises(ValueError, match=r"fc: direction is \(6, 8\), origin is \(6, 9\)"):
        direction_files.load(path, other)
    del other["fc"]
    with pytest.raises(ValueError, match="fc is only in the direction"):
        direction_files.load(path, other)


def test_a_file_without_directions_is_refused_in_one_line(tmp_path: Path) -> None:
    import h5py

    with pytest.raises(ValueError, match="no such file"):
        direction_files.load(tmp_path / "none.h5", tensors(0))
    (tmp_path / "text.h5").write_text("nothing")
    with pytest.raises(ValueError, match="is no HDF5 file, or damaged"):
        direction_files.load(tmp_path / "text.h5", tensors(0))
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(ValueError, match="holds no directions"):
        direction_files.load(tmp_path / "empty.h5", tensors(0))
