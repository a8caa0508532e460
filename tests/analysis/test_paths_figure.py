from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.figures import draw, fitting
from analysis.figures.barrier import treatments
from analysis.figures.paths import along

KINDS = "same_class cross_class random circle"


def attributes(probe: str, file: str, **spec: Any) -> dict[str, Any]:
    told = {"checkpoint": {"file": file, "sha256": file}, "data": {"name": "sample"}}
    return {
        "probe": probe,
        "schema_version": 2,
        "spec": json.dumps({"to": None, "seed": 0} | spec),
        "provenance": json.dumps(told),
    }


def between(file: str = "resnet18.pt", seed: int = 0, jacobian: float = 1.0) -> xr.Dataset:
    """Five paths of each kind, as `landscape.interpolate` stores them, with a gallery of two."""
    generator = np.random.default_rng(seed)
    kind, t = np.repeat(np.array(KINDS.split(), dtype=object), 5), np.linspace(0, 1, 9)
    probability = np.full((20, 9, 3), np.nan)
    probability[..., 0] = (1 - t) ** generator.uniform(0.5, 2, (20, 1))
    probability[..., 1] = t
    label = np.tile([2.0, 4.0, np.nan], (20, 1))
    label[:5, 1] = 2
    images = np.random.default_rng(7).random((2, 3, 1, 4, 4))
    return xr.Dataset(
        {
            "loss": (("pair", "t", "path_sample"), -np.log(probability + 1e-9)),
            "probability": (
                ("pair", "t", "path_sample"),
                probability,
                {"long_name": "probability", "units": "1"},
            ),
            "jacobian_norm": (
                ("pair", "t"),
                jacobian * generator.uniform(1, 2, (20, 9)),
                {"long_name": "Jacobian norm", "units": "per distance"},
            ),
            "logits": (("pair", "t", "class"), generator.normal(size=(20, 9, 6))),
            "label": (("pair", "path_sample"), label),
            "image": (("gallery", "gallery_t", "channel", "height", "width"), images),
            "gallery_pair": ("gallery", [0.0, 5.0]),
            "measured": ("pair", np.ones(20, "u1")),
        },
        {
            "pair": ("pair", np.arange(20), {"long_name": "path", "units": "1"}),
            "t": t,
            "gallery_t": [0.0, 0.5, 1.0],
            "kind": ("pair", kind),
            "path_kind": np.array(KINDS.split(), dtype=object),
        },
        attributes("interpolate", file),
    )


def on_a_line(statistics: tuple[str, ...] = ("interpolated", "recomputed")) -> xr.Dataset:
    """A barrier of 2 in the middle with the first treatment, and none with the others."""
    t = np.linspace(0, 1, 5)
    heights = np.array([2.0, *[0.0] * (len(statistics) - 1)])
    loss = 1 + t[:, None] + 4 * (t * (1 - t))[:, None] * heights
    about = {"long_name": "loss", "units": "nat"}
    dims = ("t", "batch_norm_statistics")
    return xr.Dataset(
        {
            "loss": (dims, loss, about),
            "loss_stderr": (dims, np.full(loss.shape, 0.01), about),
            "accuracy": (dims, 1 / loss, {"long_name": "accuracy", "units": "1"}),
            "accuracy_stderr": (dims, np.full(loss.shape, 0.01)),
            "example_loss": ((*dims, "example"), loss[..., None] * np.ones(3)),
            "barrier": ("batch_norm_statistics", heights, {"units": "nat"}),
            "barrier_stderr": ("batch_norm_statistics", np.full(len(heights), 0.125)),
            "barrier_at": ("batch_norm_statistics", np.where(heights > 0, 0.5, 0.0)),
            "measured": ("t", np.ones(5, "u1")),
        },
        {
            "t": ("t", t, {"long_name": "on the way", "units": "1"}),
            "batch_norm_statistics": np.array(statistics, dtype=object),
        },
        attributes("interpolate", "a.pt", to="b.pt", statistics=list(statistics)),
    )


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_result_has_the_figures_of_its_kind() -> None:
    assert fitting([between()]) == ["paths", "gallery"]
    assert fitting([between().drop_vars(["image", "gallery_pair"])]) == ["paths"]
    assert fitting([on_a_line()]) == ["barrier"]


@pytest.mark.parametrize("kind", KINDS.split())
def test_curves_are_the_median_and_the_middle_half_of_the_paths(kind: str) -> None:
    result, ax = between(), Figure().add_subplot()
    along(result, ax, kind=kind, variable="probability", label="net")
    chosen = result["kind"].values == kind
    wanted = np.sort(result["probability"].values[chosen], axis=0)
    # Of five values the third, and the second and the fourth.
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), wanted[2, :, 0])
    band = ax.collections[0].get_paths()[0].vertices
    for place, low, high in zip(result["t"].values, wanted[1, :, 0], wanted[3, :, 0], strict=True):
        edge = band[band[:, 0] == place, 1]
        assert {edge.min(), edge.max()} == {low, high}
    second = kind in ("cross_class", "random")
    assert len(ax.lines) == 1 + second
    if second:
        np.testing.assert_array_equal(ax.lines[1].get_ydata(), wanted[2, :, 1])


def test_a_path_that_diverges_keeps_its_place_and_one_not_measured_is_left_out() -> None:
    result = between()
    result["jacobian_norm"].values[4] = np.inf
    result["jacobian_norm"].values[0] = np.nan
    result["measured"].values[0] = 0
    ax = Figure().add_subplot()
    along(result, ax, kind="same_class", variable="jacobian_norm")
    wanted = np.sort(result["jacobian_norm"].values[1:5], axis=0)[1]  # the lower median of four
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), wanted)
    assert not ax.texts
    result["jacobian_norm"].values[3, 4] = np.nan
    along(result, ax, kind="same_class", variable="jacobian_norm")
    wanted = np.sort(result["jacobian_norm"].values[[1, 2, 4]], axis=0)[1]
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), wanted)
    assert [text.get_text() for text in ax.texts] == ["1 of 4 not finite"]


@pytest.mark.parametrize(("columns", "shape"), [(1, (4, 2)), (2, (2, 4))])
def test_panels_are_kinds_and_variables_and_share_their_scale(
    columns: int, shape: tuple[int, int]
) -> None:
    figure = draw([between(), between("fmmnet18.pt", 1)], columns=columns)
    axes = np.array(figure.axes).reshape(shape)
    by_variable = axes.T if columns == 1 else axes
    for panels in by_variable:
        assert len({ax.get_ylim() for ax in panels}) == 1
    for ax in figure.axes:
        drawn = {to_hex(line.get_color()) for line in ax.lines if len(line.get_xdata())}
        assert len(drawn - {to_hex("0.4")}) == 2
    names = (
        [ax.get_ylabel() for ax in axes[:, 0]]
        if columns == 1
        else [ax.get_title() for ax in axes[0]]
    )
    assert names == ["same class", "cross class", "shuffled", "circle"]
    assert legend(figure)[:2] == ["resnet18", "fmmnet18"]


def test_jacobians_that_span_decades_are_logarithmic_and_probabilities_never() -> None:
    figure = draw([between(), between("fmmnet18.pt", 1, jacobian=1e3)], columns=2)
    scales = [ax.get_yscale() for ax in figure.axes]
    assert scales == ["linear"] * 4 + ["log"] * 4
    assert "log scale" in figure.axes[4].get_ylabel().replace("\n", " ")
    without = between().drop_vars("jacobian_norm")
    assert len(draw([without, between()], kind="paths").axes) == 4


def test_another_variable_of_the_paths_is_drawn_without_the_words_for_two_classes() -> None:
    result = between()
    result["entropy"] = result["jacobian_norm"].assign_attrs(long_name="entropy", units="nat")
    figure = draw(result, variable="entropy")
    assert figure.axes[0].get_title() == "entropy (nat)"
    assert legend(figure) == ["resnet18", "middle half"]
    assert "first sample's class" in legend(draw(result, variable="loss"))


def test_a_gallery_shows_the_stored_images_above_their_places() -> None:
    result = between()
    figure = draw(result, kind="gallery")
    strips, curves = figure.axes[::2], figure.axes[1::2]
    assert [ax.get_title() for ax in strips] == ["class 2 to class 2", "class 2 to class 4"]
    for draw_, strip in enumerate(strips):
        for step, shown in enumerate(strip.images):
            wanted = result["image"].values[draw_, step, 0]
            np.testing.assert_array_equal(shown.get_array(), wanted)
            left, right, _, _ = shown.get_extent()
            assert (left + right) / 2 == pytest.approx(result["gallery_t"].values[step])
        assert strip.get_xlim() == curves[draw_].get_xlim()
    np.testing.assert_array_equal(
        curves[1].lines[0].get_ydata(), result["probability"].values[5, :, 0]
    )
    powers = np.exp(result["logits"].values[5])
    others = np.delete(powers / powers.sum(axis=1, keepdims=True), [2, 4], axis=1).max(axis=1)
    np.testing.assert_allclose(curves[1].lines[2].get_ydata(), others, rtol=1e-12)


def test_galleries_of_other_images_are_not_drawn_together() -> None:
    other = between("fmmnet18.pt", 1)
    assert len(draw([between(), other], kind="gallery").axes) == 4
    other["image"].values[0] += 0.1
    with pytest.raises(ValueError, match="show different images. Measure both with the same"):
        draw([between(), other], kind="gallery")
    unfinished = between()
    unfinished["gallery_pair"].values[1] = np.nan
    assert len(draw(unfinished, kind="gallery").axes) == 2
    unfinished["gallery_pair"].values[0] = np.nan
    with pytest.raises(ValueError, match="none of the gallery's paths is measured yet"):
        draw(unfinished, kind="gallery")


def test_a_barrier_is_an_arrow_from_the_chord_to_the_line() -> None:
    figure = draw(on_a_line())
    loss, accuracy = figure.axes
    (arrow,) = [text for text in loss.texts if getattr(text, "arrow_patch", None)]
    assert arrow.xyann == (0.5, 3.5)
    assert arrow.xy == (0.5, 1.5)
    assert not any(getattr(text, "arrow_patch", None) for text in accuracy.texts)
    assert figure.legends[0].get_title().get_text() == "a → b"
    first, second = legend(figure)[:2]
    assert first == "statistics interpolated (barrier 2 ± 0.12 nat)"
    assert second == "statistics recomputed"


def test_barriers_at_the_same_place_stand_side_by_side() -> None:
    figure = draw([on_a_line(), on_a_line()])
    figure.draw_without_rendering()
    one, other = [text for text in figure.axes[0].texts if getattr(text, "arrow_patch", None)]
    assert one.xy == other.xy
    left, right = (arrow.arrow_patch.get_window_extent() for arrow in (one, other))
    assert left.x1 < (right.x0 + right.x1) / 2
    assert left.y0 == right.y0
    assert sum("barrier 2 ± 0.12 nat" in " ".join(label.split()) for label in legend(figure)) == 2


def test_what_lies_above_the_scale_takes_no_height_from_the_rest() -> None:
    result = on_a_line()
    result["loss"].values[4, 0] = 1e20
    low, high = draw(result).axes[0].get_ylim()
    assert 0.5 < low < 1
    assert high == 1000


def test_treatments_of_batch_norm_become_results_of_their_own() -> None:
    parts = treatments(on_a_line(("kept", "interpolated", "recomputed")))
    assert [json.loads(part.attrs["spec"])["statistics"] for part in parts] == [
        "kept",
        "interpolated",
        "recomputed",
    ]
    (ax, _) = draw(on_a_line(("kept",))).axes
    assert ax.get_title() == "a → b"
