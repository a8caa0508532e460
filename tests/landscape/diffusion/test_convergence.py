from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from landscape.core import store
from landscape.core.plan import run
from landscape.diffusion.__main__ import main
from landscape.diffusion.convergence import SELF, convergence, theory
from landscape.diffusion.spec import Spec

SMALL = {"epsilons": (0.9, 0.3, 0.08, 0.04, 0.02, 0.01), "counts": (400, 800, 1600), "repeats": 40}


@pytest.fixture(scope="module")
def circle():  # type: ignore[no-untyped-def]
    return run(convergence(Spec(queries=8, **SMALL)))  # type: ignore[arg-type]


def test_slopes_have_those_of_the_theory_in_their_intervals(circle) -> None:  # type: ignore[no-untyped-def]
    for name, expected in theory(1).items():
        at = circle.sel(self_token="masked")
        low, high = (float(at[f"{name}_slope_{end}"]) for end in ("low", "high"))
        assert low - 1e-3 < expected < high + 1e-3, name
        assert high - low < 0.3


def test_the_error_has_a_minimum_between_the_ends(circle) -> None:  # type: ignore[no-untyped-def]
    best = circle["best_epsilon"].sel(self_token="new").values
    assert all(0.01 < b < 0.9 for b in best)
    squares = circle["error"] ** 2
    bias = ((circle["mean"] - circle["limit"]) ** 2).mean("query")
    noise = circle["deviation"] ** 2 * (39 / 40)
    np.testing.assert_allclose(squares, bias + noise, rtol=1e-9)


def test_the_query_itself_shrinks_what_is_left(circle) -> None:  # type: ignore[no-untyped-def]
    masked, included = (circle["mean"].sel(self_token=s) for s in ("masked", "included"))
    cells = {"epsilon": 0.01, "count": 400}
    ratio = np.abs(included.sel(cells)).sum() / np.abs(masked.sel(cells)).sum()
    assert 0.8 < float(ratio) < 0.99
    assert list(circle["self_token"].values) == list(SELF)


def test_the_drift_counts_twice(circle) -> None:  # type: ignore[no-untyped-def]
    small = circle.sel(epsilon=0.01)
    assert float(small["bias"]) < 0.1 * float(small["bias_drift_once"])
    assert float(small["bias_drift_once"]) < 0.6 * float(small["bias_no_drift"])


def test_the_command_writes_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "k.h5"
    flags = ["--epsilons", "0.1,0.05", "--counts", "50", "--repeats", "20", "--no-figure"]
    assert main([*flags, "--manifold", "arc", "--kappa", "0", "--out", str(out)]) == 0
    first = store.load(out)
    assert first.attrs["probe"] == "diffusion"
    assert main([*flags, "--manifold", "arc", "--kappa", "0", "--out", str(out)]) == 0
    assert store.load(out).identical(first)
    assert main([*flags, "--manifold", "circle", "--out", str(out)]) == 1
    assert "manifold" in capsys.readouterr().err
