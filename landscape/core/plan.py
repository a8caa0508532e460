"""A measurement as a table of blank cells, and the one loop that fills it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from tqdm import tqdm

from landscape.core import store
from landscape.core.variables import Coordinate, Variable, in_units

Cell: TypeAlias = dict[str, int]
Values: TypeAlias = dict[str, NDArray[Any]]

SAVE_SECONDS = 5.0
LARGEST = 2**35  # bytes of a result; it is held in memory, and written whole
# Saving takes at most this share of the time: slow saves are rare.
SAVE_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class Plan:
    """A probe's measurement, ready to run.

    Args:
        probe: its name in `PROBES`.
        spec: the probe's Spec, with every default decided.
        provenance: the origin of network and data.
        coords: by name: one for every dim, and others along these dims.
        variables: by name.
        walk: the dims whose cells are measured one by one; the first dims of a variable. A variable
            without all of them belongs to no cell: each cell fills in some of its entries.
        measure: from a few cells to {variable: (cells, remaining dims...)}; for a variable that
            belongs to no cell the whole array, NaN in entries that other cells fill.
        block: how many cells `measure` gets at once.
        watch: the variable whose range the progress bar shows.
        finish: from the result with every cell measured to {variable: whole array}, for what
            follows from all cells together, such as means over the examples with their errors.
        tell: from the result to a few lines of summary for the command line.
        extra_files: files that are written next to the result.
        begin: checks these files, and writes what does not depend on the cells. Called once, after
            the result file has been accepted; planning itself writes nothing.

    Raises:
        ValueError: a dim of a variable has no coordinate.
    """

    probe: str
    spec: Any
    provenance: Mapping[str, Any]
    coords: Mapping[str, Coordinate]
    variables: Mapping[str, Variable]
    walk: tuple[str, ...]
    measure: Callable[[Sequence[Cell]], Values]
    block: int = 1
    watch: str = ""
    finish: Callable[[xr.Dataset], Values] | None = None
    tell: Callable[[xr.Dataset], Sequence[str]] | None = None
    extra_files: Sequence[Path] = ()
    begin: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        dims = {name: each.dims for name, each in self.variables.items()}
        dims |= {name: each.dims for name, each in self.coords.items()}
        for name, own in dims.items():
            lacking = [dim for dim in own if dim not in self.coords]
            if lacking:
                raise ValueError(f"{self.probe}: {name} has a dim {lacking[0]} without coordinate.")

    def blank(self) -> xr.Dataset:
        """The result with nothing measured."""
        coords = {
            name: (each.dims or (name,), each.array, each.attributes)
            for name, each in self.coords.items()
        }
        sizes = {dim: len(coords[dim][1]) for dim in coords if coords[dim][0] == (dim,)}
        self._check_size(sizes)
        data: dict[str, Any] = {
            name: (each.dims, np.full([sizes[d] for d in each.dims], np.nan), each.attributes)
            for name, each in self.variables.items()
        }
        mask = np.zeros([sizes[dim] for dim in self.walk], dtype=np.uint8)
        about = {"long_name": "1 where the cell has been measured", "units": "1"}
        data["measured"] = (self.walk, mask, about)
        spec = dataclasses.asdict(self.spec)
        blank = xr.Dataset(data, coords, store.described(self.probe, spec, self.provenance))
        for variable in blank.variables.values():
            variable.attrs = in_units(variable.attrs, self.provenance.get("units", {}))
        return blank

    def _check_size(self, sizes: Mapping[str, int]) -> None:
        """Refuse a result that would not fit the memory, before it is allocated."""
        cells = sum(math.prod(sizes[dim] for dim in each.dims) for each in self.variables.values())
        if 8 * cells > LARGEST:
            shape = " x ".join(str(sizes[dim]) for dim in self.walk)
            raise ValueError(
                f"the result of {shape} points would take {8 * cells / 2**30:.3g} GiB; expected at "
                f"most {LARGEST >> 30}. Ask for fewer points, or for fewer examples."
            )


@dataclass(frozen=True)
class Probe:
    """What can be measured of a problem.

    Args:
        name: of the command and in result files.
        spec: its Spec: every number that changes the answer.
        plan: from a problem and a Spec to a Plan.
        ckpt: the checkpoint that the command measures where none is given, if not the usual one.
    """

    name: str
    spec: type[Any]
    plan: Callable[[Any, Any], Plan]
    ckpt: str = ""


class Workers(Protocol):
    """The processes that share one run; see `landscape.core.workers`."""

    rank: int
    size: int

    def share(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns on rank 0, for every rank; it must survive JSON."""

    def claim(self) -> int:
        """The number of the next unclaimed block."""

    def deliver(self, block: int, values: Values) -> None:
        """Hand a measured block to rank 0."""

    def collect(self) -> list[tuple[int, Values]]:
        """On rank 0: the blocks delivered since the last call."""


@dataclass
class Alone:
    """A single process, which does all the work."""

    rank: int = 0
    size: int = 1
    _claimed: int = -1
    _delivered: list[tuple[int, Values]] = field(default_factory=list)

    def share(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns."""
        return make()

    def claim(self) -> int:
        """The next number."""
        self._claimed += 1
        return self._claimed

    def deliver(self, block: int, values: Values) -> None:
        """Keep a block."""
        self._delivered.append((block, values))

    def collect(self) -> list[tuple[int, Values]]:
        """The blocks kept since the last call."""
        delivered, self._delivered = self._delivered, []
        return delivered


def run(
    plan: Plan,
    path: Path | None = None,
    *,
    workers: Workers | None = None,
    save_seconds: float = SAVE_SECONDS,
    show_progress: bool = False,
) -> xr.Dataset:
    """Measure the cells of a plan that are not measured yet.

    Args:
        plan: the measurement.
        path: the result file: continued if it exists, saved every `save_seconds` and at the end,
            also when the run is interrupted. None keeps the result in memory.
        workers: the processes that share the work; a cell's value does not depend on which of them
            measures it.
        save_seconds: how much work a killed run may lose. If one save takes more than a twentieth
            of that, saves are rarer.
        show_progress: a bar on stderr with rate, time left and the range measured so far.

    Returns:
        The whole result; on a rank other than 0, the blank.

    Raises:
        ValueError: `path` is the result of another run, or another process is measuring it.
    """
    workers = workers or Alone()
    result = plan.blank()
    with ExitStack() as held:

        def begin() -> list[Any]:
            nonlocal result
            if path is not None:
                if any(path.resolve() == other.resolve() for other in plan.extra_files):
                    raise ValueError(f"{path} is to hold the result and something else. Name two.")
                store.check_writable(path)
                held.enter_context(store.locked(path))
                result = store.resume(result, path)
            if plan.begin is not None:
                plan.begin()
            return list(result["measured"].values.tolist())

        mask = workers.share("measured", begin)
        mask = np.asarray(mask, dtype=np.uint8).reshape(result["measured"].shape)
        missing = np.argwhere(mask == 0)
        blocks = [missing[i : i + plan.block] for i in range(0, len(missing), plan.block)]
        if workers.rank:
            _work(plan, blocks, workers)
        else:
            _complete(result, plan, blocks, path, workers, save_seconds, show_progress)
    return result


@dataclass(frozen=True)
class Forecast:
    """What a plan will take, from some of its blocks.

    Args:
        points: cells to measure.
        blocks: in how many calls of `measure`.
        tried: how many of these were measured for this.
        seconds: of all blocks, if the others take what these took.
        size: bytes of the result.
    """

    points: int
    blocks: int
    tried: int
    seconds: float
    size: int


def forecast(plan: Plan, seconds: float = 3.0) -> Forecast:
    """Measure blocks from all over the plan for about so long; nothing is kept or written.

    The first block warms up and does not count, unless it is the only one.

    Cost: two blocks at least, where there are two.
    """
    blank = plan.blank()
    cells = np.argwhere(blank["measured"].values == 0)
    blocks = [cells[i : i + plan.block] for i in range(0, len(cells), plan.block)]
    order = np.unique(np.linspace(0, len(blocks) - 1, min(len(blocks), 20)).astype(int))
    taken: list[float] = []
    for number in order:
        start = time.monotonic()
        plan.measure([dict(zip(plan.walk, map(int, cell), strict=True)) for cell in blocks[number]])
        taken.append(time.monotonic() - start)
        if len(taken) > 1 and sum(taken) > seconds:
            break
    counted = taken[1:] or taken
    mean = sum(counted) / len(counted)
    return Forecast(len(cells), len(blocks), len(taken), mean * len(blocks), blank.nbytes)


def _complete(
    result: xr.Dataset,
    plan: Plan,
    blocks: Sequence[NDArray[np.int64]],
    path: Path | None,
    workers: Workers,
    save_seconds: float,
    show_progress: bool,
) -> None:
    """Fill `result` with the blocks that this and the other ranks measure, and save it."""
    done, all_claimed = 0, False
    saved_at, saving = time.monotonic(), 0.0
    total = result["measured"].size
    with tqdm(
        total=total,
        initial=total - sum(map(len, blocks)),
        desc=plan.probe,
        unit=" points",
        disable=not show_progress,
        dynamic_ncols=True,
        smoothing=0.1,
    ) as bar:
        try:
            while done < len(blocks):
                if all_claimed:
                    time.sleep(0.01)  # The other ranks still measure.
                else:
                    all_claimed = not _work(plan, blocks, workers, at_most=1)
                for number, values in workers.collect():
                    _fill(result, plan, blocks[number], values)
                    done += 1
                    bar.update(len(blocks[number]))
                    bar.set_postfix_str(_range(result, plan.watch), refresh=False)
                pause = max(save_seconds, saving / SAVE_SHARE)
                if path is not None and time.monotonic() - saved_at >= pause:
                    saving = _timed_save(result, path)
                    saved_at = time.monotonic()
            if plan.finish is not None:
                for name, array in plan.finish(result).items():
                    # A run that was killed right before this has every cell, and not these.
                    done += not np.array_equal(result[name].values, array, equal_nan=True)
                    result[name].values[...] = array
        finally:
            if path is not None and done:
                store.save(result, path)


def _timed_save(result: xr.Dataset, path: Path) -> float:
    start = time.monotonic()
    store.save(result, path)
    return time.monotonic() - start


def _work(
    plan: Plan, blocks: Sequence[NDArray[np.int64]], workers: Workers, at_most: int | None = None
) -> int:
    """Measure at most `at_most` unclaimed blocks; return how many there were."""
    count = 0
    while (at_most is None or count < at_most) and (number := workers.claim()) < len(blocks):
        cells = [dict(zip(plan.walk, map(int, cell), strict=True)) for cell in blocks[number]]
        workers.deliver(number, plan.measure(cells))
        count += 1
    return count


def _fill(
    result: xr.Dataset, plan: Plan, cells: NDArray[np.int64], values: Mapping[str, NDArray[Any]]
) -> None:
    where = tuple(cells.T)
    for name, array in values.items():
        whole = result[name].values
        if result[name].dims[: len(plan.walk)] == plan.walk:
            whole[where] = array
        else:
            np.copyto(whole, array, where=~np.isnan(array))
    result["measured"].values[where] = 1


def _range(result: xr.Dataset, name: str) -> str:
    if not name:
        return ""
    values = result[name].values[result["measured"].values == 1]
    low, high = (float(f(values)) for f in (np.min, np.max)) if values.size else (math.nan,) * 2
    return f"{name} {low:.4g} to {high:.4g}"
