"""A small result for every kind of figure, for tests that go over all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr

import landscape
from analysis.figures import FIGURES
from landscape.core.plan import run
from landscape.diffusion.convergence import convergence
from landscape.diffusion.spec import Spec
from tests.analysis.conftest import _surface
from tests.analysis.test_paths_figure import between, on_a_line
from tests.analysis.test_sensitivity_figure import sensitivity
from tests.analysis.test_spectrum_figure import inputs_result, weights_result
from tests.oracles import LinearRegression, walked

LONG = "-".join(["Multiplicative-MLP-with-gates"] * 6)
UNBROKEN = "W" * 150
MATHS = r"_a$x_1^2$_b\frac{$"  # what matplotlib would read as mathematics


def renamed(result: xr.Dataset, file: str) -> xr.Dataset:
    """The result of a network of another name."""
    provenance = json.loads(result.attrs["provenance"])
    provenance.setdefault("checkpoint", {})["file"] = f"{file}.pt"
    found = result.assign_attrs(provenance=json.dumps(provenance))
    found.encoding = {"source": f"{file}.h5"}
    return found


def plane() -> xr.Dataset:
    """A bowl whose contours run into the frame, not square."""
    return _surface(
        lambda a, b: 0.5 + 3 * (a - 0.3 * b) ** 2 + b**2,
        alpha=np.linspace(-1, 1, 9),
        beta=np.linspace(-0.5, 0.5, 7),
    )


def line() -> xr.Dataset:
    """A line that explodes."""
    return _surface([1.0, 2.0, 500.0], alpha=[0, 0.5, 1])


def _attributes(probe: str) -> dict[str, object]:
    provenance = json.dumps({"checkpoint": {"file": "a.pt", "sha256": "0" * 64}})
    return {"probe": probe, "schema_version": 2, "spec": "{}", "provenance": provenance}


def _means(data: dict[str, object], name: str, dims: tuple[str, ...], *shape: int) -> None:
    values = np.linspace(0.1, 0.9, int(np.prod(shape))).reshape(shape)
    about = {"long_name": name.replace("_", " "), "units": "1"}
    data[name] = (("example", *dims), np.stack([values, values]), about)
    for ending in ("mean", "mean_stderr", "q10", "median", "q90"):
        scale = {"mean_stderr": 0.1, "q10": 0.5, "q90": 2.0}.get(ending, 1.0)
        data[f"{name}_{ending}"] = (dims, scale * values, about)


def terms() -> xr.Dataset:
    """As `landscape.terms` stores it, of two layers."""
    data: dict[str, object] = {"measured": ("example", np.ones(2, "u1"))}
    for name in ("variance_share", "removal_divergence"):
        _means(data, name, ("layer", "term"), 2, 4)
    for name in ("setting_loss", "setting_accuracy"):
        _means(data, name, ("setting",), 16)
    coords = {
        "layer": ["layer1.0.attention.branch", "layer2.0.attention.branch"],
        "term": ["query_key", "query_position", "key", "position"],
        "setting": [f"{15 - n:04b}" for n in range(16)],
    }
    return xr.Dataset(data, coords | {"example": [0, 1]}, _attributes("terms"))


def attention() -> xr.Dataset:
    """As `landscape.attention` stores it, of six sites."""
    data: dict[str, object] = {"measured": ("example", np.ones(2, "u1"))}
    dims = ("site", "side", "importance_kind", "attention_kind")
    for name in ("kendall_tau", "spearman"):
        _means(data, name, dims, 6, 2, 1, 4)
    _means(data, "erased_probability", ("site", "order", "fraction"), 6, 3, 4)
    for name in (
        "intervention_loss_rise",
        "intervention_accuracy",
        "intervention_second_difference",
    ):
        _means(data, name, ("intervention",), 5)
    coords = {
        "site": [f"layer{n}.0.attention" for n in range(6)],
        "side": ["before", "after"],
        "importance_kind": ["gradient_times_input"],
        "attention_kind": ["own", "permuted", "other_image", "class_mean"],
        "order": ["attention", "importance", "random"],
        "fraction": [0.0, 0.1, 0.5, 1.0],
        "intervention": ["own", "uniform", "permuted", "other_image", "class_mean"],
        "example": [0, 1],
    }
    return xr.Dataset(data, coords, _attributes("attention"))


def gated() -> xr.Dataset:
    """As `landscape.attention` stores it, of two spatial gates and one of channels."""
    side, channels = 3, 4
    sites = ["layer1.0.attention.channel", "layer1.0.attention.spatial", "layer2.0.attention"]
    units = [channels, side**2, side**2]
    about = {"long_name": "attention", "units": "1"}
    weights = np.linspace(0.1, 0.9, 2 * sum(units)).reshape(2, -1)
    data = {"measured": ("example", np.ones(2, "u1"))}
    pixels = np.linspace(0, 1, 2 * 7 * 5).reshape(2, 1, 7, 5)
    coords = {
        "site": sites,
        "patches": ("site", [0, side, side]),
        "unit": np.arange(sum(units)),
        "unit_site": ("unit", np.repeat(np.array(sites, object), units)),
        "image": (("gallery", "channel", "height", "width"), pixels),
        "example": [0, 1],
    }
    for name, size in zip(("gallery", "channel", "height", "width"), pixels.shape, strict=True):
        coords[name] = np.arange(size)
    data["attention"] = (("example", "unit"), weights, about)
    return xr.Dataset(data, coords, _attributes("attention"))


def sharp() -> xr.Dataset:
    """Of a quadratic, in two groups."""
    problem = LinearRegression.random().problem()
    return landscape.measure("sharpness", problem, radii=[0.1, 0.2, 0.5], group=9, draws=2)


def trained() -> xr.Dataset:
    """The plane of a quadratic with a path to its network."""
    problem = LinearRegression.random().problem()
    return landscape.measure("trajectory", problem, snapshots=walked(problem, 4), points=5)


def converging() -> xr.Dataset:
    """As `landscape.diffusion` stores it, measured."""
    spec = Spec(epsilons=(0.2, 0.1, 0.05), counts=(30, 60), repeats=20, queries=3)
    return run(convergence(spec))


def curved() -> xr.Dataset:
    """Curvature in the inputs of a network that is not piecewise linear."""
    return inputs_result([3.0, -1, 2], [2.0, 1, 1], jacobian=False)


RESULTS: dict[str, Callable[[], xr.Dataset]] = {
    "contour": plane,
    "surface3d": plane,
    "profile": line,
    "paths": between,
    "gallery": between,
    "barrier": on_a_line,
    "norms": sensitivity,
    "radii": sensitivity,
    "noise": sensitivity,
    "spectrum": weights_result,
    "eigenvalues": weights_result,
    "curvature": curved,
    "contributions": terms,
    "attention": attention,
    "maps": gated,
    "sharpness": sharp,
    "trajectory": trained,
    "convergence": converging,
}
assert set(RESULTS) == set(FIGURES), "a figure without a result to test it with"


def parts(kind: str) -> Iterator[tuple[str, xr.Dataset]]:
    """The result of a kind without each thing that the kind draws: variables, halves of dims."""
    whole, figure = RESULTS[kind](), FIGURES[kind]
    for name in sorted({*figure.variables, *figure.needs} & set(map(str, whole.data_vars))):
        yield f"without {name}", whole.drop_vars([name])
    for dim in figure.compared:
        yield f"half of {dim}", whole.isel({dim: slice(0, 1)})
        yield f"other half of {dim}", whole.isel({dim: slice(1, None)})
