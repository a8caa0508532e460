from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import landscape
from checkpoints.device import memory_exhausted
from checkpoints.problem import Problem
from checkpoints.whole_file import whole
from landscape.core import store
from landscape.core.batch_size import prepared
from landscape.core.measurement import measured
from landscape.core.spaces import Space
from landscape.registry import PROBES
from tests.test_contracts import SMALL


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory for five examples at once; what was asked for beyond that."""
    plain, refused = Space.outputs_of, []

    def outputs_of(self: Space, inputs: Any, *others: Any) -> Any:
        count = len(next(iter(inputs.values())))
        if count > 5:
            refused.append(count)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(self, inputs, *others)

    monkeypatch.setattr(Space, "outputs_of", outputs_of)
    return refused


@pytest.mark.second_derivative
@pytest.mark.parametrize("probe", ["surface", "sensitivity"])
def test_out_of_memory_halves_the_batch_and_goes_on(
    probe: str, problem: Problem, tmp_path: Path, little_memory: list[int]
) -> None:
    entry, said = PROBES[probe], list[str]()
    spec = entry.spec(**SMALL[probe])
    path = tmp_path / "net.h5"
    ready = replace(problem, batch_size=16, kernels="native")
    _, result = measured(entry, ready, spec, path, said.append)
    assert little_memory
    lines = [f"out of memory: continuing with batches of {n} examples." for n in (8, 4)]
    assert said == lines
    assert json.loads(store.load(path).attrs["provenance"])["batch_size"] == 4
    expected = landscape.measure(probe, replace(ready, batch_size=4), **SMALL[probe])
    for name in result.data_vars:
        np.testing.assert_array_equal(result[name], expected[name])


@pytest.mark.second_derivative
def test_the_hessian_halves_its_own_batches(problem: Problem, little_memory: list[int]) -> None:
    expected = landscape.measure("hessian", replace(problem, batch_size=4), **SMALL["hessian"])
    found = landscape.measure("hessian", replace(problem, batch_size=16), **SMALL["hessian"])
    assert max(little_memory) == 16
    np.testing.assert_allclose(found["eigenvalue"], expected["eigenvalue"], rtol=1e-9)


def test_a_file_that_was_begun_in_larger_batches_is_continued(
    problem: Problem, tmp_path: Path, little_memory: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = PROBES["surface"]
    spec, path = entry.spec(**SMALL["surface"]), tmp_path / "net.h5"
    ready = replace(problem, batch_size=8, kernels="native")
    blank = entry.plan(ready, spec).blank()
    blank["loss"][0, 0], blank["measured"][0, 0] = 7.0, 1
    store.save(blank, path)
    _, result = measured(entry, ready, spec, path, lambda line: None)
    assert float(result["loss"][0, 0]) == 7.0
    provenance = json.loads(store.load(path).attrs["provenance"])
    assert (provenance["batch_size"], provenance["larger_batches"]) == (4, [8])


def test_memory_that_shrinks_between_two_saves_halves_the_batch_again(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 examples the first pass fits 8 and the later ones 4, after cells were saved."""
    plain, passes = Space.outputs_of, []

    def outputs_of(self: Space, inputs: Any, *others: Any) -> Any:
        count = len(next(iter(inputs.values())))
        if count > (8 if len(passes) < 9 else 4):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        passes.append(count)
        return plain(self, inputs, *others)

    monkeypatch.setattr(Space, "outputs_of", outputs_of)
    entry, said = PROBES["surface"], list[str]()
    spec, path = entry.spec(**SMALL["surface"]), tmp_path / "net.h5"
    ready = replace(problem, batch_size=16, kernels="native")
    _, result = measured(entry, ready, spec, path, said.append, save_seconds=0)
    assert len(said) == 2
    assert {4, 8} <= set(passes)
    assert (result["measured"] == 1).all()
    provenance = json.loads(store.load(path).attrs["provenance"])
    assert (provenance["batch_size"], provenance["larger_batches"]) == (4, [8])
    monkeypatch.undo()
    # The same command again continues in the size that fitted, though it asks for the first one.
    again = prepared(replace(problem, batch_size=8, kernels="native"), spec.derivatives, path)
    assert again.batch_size == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("could not create a primitive"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_these_mean_out_of_memory(error: BaseException) -> None:
    assert memory_exhausted(error)
    assert not memory_exhausted(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not memory_exhausted(ValueError("out of memory"))


def test_writing_follows_no_planted_link_and_replaces_no_other_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    result = tmp_path / "k.h5"
    (tmp_path / "k.h5.partial").write_text("mine too")
    lock = tmp_path / ".k.h5.lock"
    lock.symlink_to(mine)
    with (
        pytest.raises(ValueError, match="not a regular file, and serves as the lock"),
        store.locked(result),
    ):
        pass
    lock.unlink()
    with whole(result) as file:
        file.write_bytes(b"whole")
    assert result.read_bytes() == b"whole"
    assert mine.read_text() == "mine"
    assert (tmp_path / "k.h5.partial").read_text() == "mine too"
    link = tmp_path / "link.h5"
    link.symlink_to(result)
    with whole(link) as file:
        file.write_bytes(b"through the link")
    assert link.is_symlink()
    assert result.read_bytes() == b"through the link"
    with pytest.raises(KeyboardInterrupt), whole(result) as file:
        raise KeyboardInterrupt
    assert result.read_bytes() == b"through the link"
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == [
        "k.h5",
        "k.h5.partial",
        "link.h5",
        "mine.txt",
    ]


def test_the_end_of_a_line_is_known_by_its_content(tmp_path: Path) -> None:
    from checkpoints.checkpoint import find
    from checkpoints.source import load_problem

    first, second = (tmp_path / name for name in ("a.pt", "b.pt"))
    for file in (first, second):
        file.write_bytes(find("resnet8.pt").read_bytes())
    problem = load_problem("resnet8.pt", examples=10, batch_size=10)
    path = tmp_path / "net.h5"
    grid = {"points": 3, "dimensions": 1, "out": path}
    one = landscape.measure("surface", problem, to=str(first), **grid)
    other = landscape.measure("surface", problem, to=str(second), **grid)  # the same file, renamed
    np.testing.assert_array_equal(one["loss"], other["loss"])
    second.write_bytes(find("resnet8.pt").read_bytes() + b"\0")
    with pytest.raises(ValueError, match="was measured with files="):
        landscape.measure("surface", problem, to=str(second), **grid)
