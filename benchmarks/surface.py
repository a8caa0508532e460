"""Seconds per point of a loss surface: this toolkit, a plain loop and two peers, side by side.

    python benchmarks/surface.py --loss-landscapes VENV/bin/python --landscaper VENV/bin/python

All tools measure the same small grid around the same network on the same real images, each in a
separate process, one after another in every round; every second round runs in reverse order. A
ratio is the median over the rounds of the paired ratios to the plain loop at its best batch size.
How to create the peers' environments and how to read the table: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints.models import resnet

ROOT = Path(__file__).parents[1]
PEERS = {"loss-landscapes": "3.0.6", "landscaper": "1.3.1"}
BATCHES = (25, 50, 100, 200)
# CPU time is summed over all threads; on a busy machine, use it with one thread.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ENVIRONMENTS = {
    "default": {},
    # The settings of `checkpoints.device.keep_freed_memory`.
    "keep": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
        "MALLOC_TOP_PAD_": str(256 * 2**20),
    },
}


@dataclass(frozen=True, eq=False)
class Task:
    """What all tools measure; passed to their processes as a file of tensors.

    Args:
        model: a name in `resnet.ARCHITECTURES`.
        options: the builder's keyword arguments.
        state_dict: the weights.
        mean: of the images, one value per channel.
        std: one value per channel.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        points: grid points per axis, odd.
        directions: two directions, {parameter: tensor} each, for tools that accept any.
    """

    model: str
    options: dict[str, Any]
    state_dict: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: Tensor
    labels: Tensor
    points: int
    directions: list[dict[str, Tensor]]

    def network(self) -> nn.Module:
        """A new network with these weights, in eval mode."""
        network = resnet.ARCHITECTURES[self.model](**self.options)
        network.load_state_dict(self.state_dict)
        return network.eval()

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Normalised images and labels, ready-made."""
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        images = (self.images - mean) / std
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        return [(images[part], self.labels[part]) for part in parts]


@dataclass(frozen=True)
class Job:
    """A surface, ready to be timed.

    Args:
        surface: measures the whole grid.
        center: extracts the loss at the network itself from the result of `surface`.
        batch: images per forward pass.
    """

    surface: Callable[[], Any]
    center: Callable[[Any], float]
    batch: int


def ours(task: Task, batch: int, *, keep: bool, save: bool) -> Job:
    import landscape
    from checkpoints.device import keep_freed_memory
    from checkpoints.problem import Normalization, Problem
    from landscape.core.batch_size import prepared

    if keep:
        keep_freed_memory()
    normalization = Normalization(task.mean, task.std)
    problem = Problem(
        task.network(), {"input": task.images}, task.labels, normalization=normalization
    )
    problem = prepared(problem, {"weights": 0})  # measures the batch size, once

    def surface() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "surface.h5" if save else None
            return landscape.measure("surface", problem, points=(task.points,), out=out)

    middle = {"alpha": task.points // 2, "beta": task.points // 2}
    return Job(surface, lambda result: float(result["loss"].isel(middle)), problem.batch_size)


def plain_loop(task: Task, batch: int) -> Job:
    network, batches = task.network(), task.batches(batch)
    places = dict(network.named_parameters())
    origin = {name: place.detach().clone() for name, place in places.items()}
    first, second = task.directions
    steps = [2 * i / (task.points - 1) - 1 for i in range(task.points)]

    @torch.inference_mode()
    def surface() -> dict[tuple[float, float], tuple[float, float]]:
        values = {}
        for a, b in product(steps, steps):
            for name, place in places.items():
                place.copy_(origin[name] + a * first[name] + b * second[name])
            total, hits = 0.0, 0
            for images, labels in batches:
                logits = network(images)
                total += functional.cross_entropy(logits, labels, reduction="sum").item()
                hits += int((logits.argmax(1) == labels).sum())
            values[a, b] = total / len(task.labels), hits / len(task.labels)
        return values

    return Job(surface, lambda values: values[0.0, 0.0][0], batch)


def loss_landscapes_as_documented(task: Task, batch: int) -> Job:
    peer = importlib.import_module("loss_landscapes")
    metrics = importlib.import_module("loss_landscapes.metrics")
    (everything,) = task.batches(len(task.labels))
    metric = metrics.Loss(nn.CrossEntropyLoss(), *everything)
    return _loss_landscapes(task, metric, peer, len(task.labels))


def loss_landscapes_in_batches(task: Task, batch: int) -> Job:
    peer = importlib.import_module("loss_landscapes")
    batches = task.batches(batch)

    @torch.inference_mode()
    def metric(model: Any) -> tuple[float, float]:
        total, hits = 0.0, 0
        for images, labels in batches:
            logits = model.forward(images)
            total += functional.cross_entropy(logits, labels, reduction="sum").item()
            hits += int((logits.argmax(1) == labels).sum())
        return total / len(task.labels), hits / len(task.labels)

    return _loss_landscapes(task, metric, peer, batch)


def _loss_landscapes(task: Task, metric: Callable[[Any], Any], peer: Any, batch: int) -> Job:
    network = task.network()

    def surface() -> Any:
        # Without the copy it would leave the network displaced for the next round.
        return peer.random_plane(network, metric, steps=task.points, deepcopy_model=True)

    def center(result: Any) -> float:
        value = peer.point(network, metric)  # its plane has no point at the network itself
        return float(value[0] if isinstance(value, tuple) else value)

    return Job(surface, center, batch)


def landscaper(task: Task, batch: int) -> Job:
    peer = importlib.import_module("landscaper")
    utils = importlib.import_module("landscaper.utils")
    network, batches = task.network(), task.batches(batch)

    @torch.inference_mode()
    def mean_loss(model: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> float:
        total = 0.0
        for images, labels in data:
            total += functional.cross_entropy(model(images), labels, reduction="sum").item()
        return total / len(task.labels)

    def surface() -> Any:
        directions = utils.generate_random_orthogonal_directions(network, n=2)
        return peer.LossLandscape.compute(
            network, batches, directions, mean_loss, steps=task.points, dim=2, device="cpu"
        )

    middle = task.points // 2
    return Job(surface, lambda result: float(result.loss[middle, middle]), batch)


JOBS: dict[str, Callable[[Task, int], Job]] = {
    "ours": partial(ours, keep=False, save=False),
    "ours, allocator set": partial(ours, keep=True, save=False),
    "ours, out=FILE": partial(ours, keep=False, save=True),
    "ours, allocator set, out=FILE": partial(ours, keep=True, save=True),
    "plain loop": plain_loop,
    "loss-landscapes, its Loss": loss_landscapes_as_documented,
    "loss-landscapes, in batches": loss_landscapes_in_batches,
    "landscaper": landscaper,
}
GIVES = {
    "ours": "loss, accuracy, stderr",
    "ours, allocator set": "loss, accuracy, stderr",
    "ours, out=FILE": "loss, accuracy, stderr, resume",
    "ours, allocator set, out=FILE": "loss, accuracy, stderr, resume",
    "plain loop": "loss, accuracy",
    "loss-landscapes, its Loss": "loss",
    "loss-landscapes, in batches": "loss, accuracy",
    "landscaper": "loss",
}


def work(job_name: str, file: str, batch: int, threads: int, clock: str) -> None:
    """A worker: measures a surface per line on stdin, and reports it as JSON on stdout."""
    torch.set_num_threads(threads)
    task = Task(**torch.load(file, weights_only=True))
    job = JOBS[job_name](task, batch)
    print(json.dumps({"batch": job.batch, "torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        # Peers print and show progress bars.
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            start = CLOCKS[clock]()
            result = job.surface()
            seconds = CLOCKS[clock]() - start
            loss = job.center(result)
        print(json.dumps({"seconds": seconds / task.points**2, "loss": loss}), flush=True)


@dataclass
class Worker:
    """A process that measures a surface on request."""

    job: str
    process: subprocess.Popen[str]
    batch: int = 0
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @classmethod
    def start(
        cls, job: str, python: str, environment: dict[str, str], arguments: Sequence[str]
    ) -> Worker:
        """Start a worker and wait until it is ready."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
        process = subprocess.Popen(
            [python, __file__, "--worker", job, *arguments],
            env=clean | {"PYTHONPATH": str(ROOT)} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        worker = cls(job, process)
        ready = worker._read()
        worker.batch = ready["batch"]
        if ready["torch"] != torch.__version__:
            print(f"{job}: torch {ready['torch']}, not {torch.__version__}: not a fair comparison.")
        return worker

    def go(self) -> None:
        """Measure one surface."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        measured = self._read()
        self.seconds.append(measured["seconds"])
        self.losses.append(measured["loss"])

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.job}: its process ended; the reason is above.")
        return dict(json.loads(line))


def make_task(model: str, width: int, images: int, points: int) -> Task:
    """A network trained for a few epochs on half of the sample, and images of the other half."""
    from checkpoints.registry import load_images
    from checkpoints.train.loop import train
    from checkpoints.train.recipe import Recipe
    from landscape.core import directions

    sample = load_images("fashion-mnist-sample", "test")
    measured, others = sample.take(slice(0, images)), sample.take(slice(1000, 2000))
    recipe = Recipe(epochs=3, batch=50, validation=100, precision="float32")
    trained = train(
        model, {"width": width}, others, measured, recipe, seed=0, device=torch.device("cpu")
    )
    origin = {name: p.detach() for name, p in trained.network().named_parameters()}
    generator = torch.Generator().manual_seed(0)
    drawn = [directions.gaussian(origin, generator) for _ in range(2)]
    return Task(
        model=model,
        options=dict(trained.options),
        state_dict=dict(trained.state_dict),
        mean=trained.mean,
        std=trained.std,
        images=torch.from_numpy(measured.pixels).float() / 255,
        labels=torch.from_numpy(measured.labels),
        points=points,
        directions=[directions.normalize(d, origin, "filter") for d in drawn],
    )


@torch.inference_mode()
def exact_loss(task: Task) -> float:
    """The loss at the network itself, everything in float64."""
    network, total = task.network().double(), 0.0
    for images, labels in task.batches(100):
        total += functional.cross_entropy(network(images.double()), labels, reduction="sum").item()
    return total / len(task.labels)


def side_by_side(
    jobs: Sequence[str],
    pythons: dict[str, str],
    environment: dict[str, str],
    file: Path,
    batches: Sequence[int],
    options: Sequence[str],
    rounds: int,
) -> list[Worker]:
    """Measure all `jobs` in alternating rounds; the fastest plain loop comes first."""

    def started(job: str, batch: int) -> Worker:
        python = pythons.get(job.split(",")[0], sys.executable)
        arguments = ["--task", str(file), "--batch", str(batch), *options]
        return Worker.start(job, python, environment, arguments)

    workers: list[Worker] = []
    try:
        for batch in batches:
            workers.append(started("plain loop", batch))
        for _, worker in product(range(2), workers):
            worker.go()
        # Peers that take batches get the size at which the plain loop was fastest.
        good = min(workers, key=lambda w: min(w.seconds)).batch
        for job in jobs:
            workers.append(started(job, good))
            workers[-1].go()
        for worker in workers:  # That was the warm-up.
            worker.seconds.clear()
        for repeat in range(rounds):
            for worker in workers[:: -1 if repeat % 2 else 1]:
                worker.go()
    finally:
        for worker in workers:
            worker.process.communicate()  # closes stdin, which ends the worker
    loops = sorted(workers[: len(batches)], key=lambda w: median(w.seconds))
    return loops + workers[len(batches) :]


def table(workers: Sequence[Worker], exact: float) -> str:
    """One line per worker; ratios are relative to the first."""
    lines = [
        f"{'':30} {'batch':>5}  {'s/point':>7} {'min..max':>13}  {'ratio':>5}  "
        f"{'|d loss|':>8}  gives"
    ]
    for worker in workers:
        seconds = worker.seconds
        ratio = median(a / b for a, b in zip(seconds, workers[0].seconds, strict=True))
        error = max(abs(loss - exact) for loss in worker.losses)
        lines.append(
            f"{worker.job:30} {worker.batch:5}  {median(seconds):7.3f} "
            f"{min(seconds):6.3f}..{max(seconds):.3f}  {ratio:5.2f}  {error:8.1e}  "
            f"{GIVES[worker.job]}"
        )
    return "\n".join(lines)


def cpu_name() -> str:
    """The processor as the kernel calls it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def installed(peer: str, python: str) -> str:
    """The peer's version in an environment."""
    ask = f"from importlib.metadata import version; print(version({peer!r}))"
    try:
        answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    except OSError as error:
        raise SystemExit(f"--{peer} {python}: {error.strerror}.") from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"--{peer} {python}: {error.stderr.splitlines()[-1]}") from error
    return answer.stdout.strip()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet20", choices=list(resnet.ARCHITECTURES))
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=1000, help="1 to 1000")
    parser.add_argument("--points", type=int, default=3, help="grid points per axis; odd")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--malloc",
        nargs="+",
        choices=list(ENVIRONMENTS),
        default=list(ENVIRONMENTS),
        help="glibc's defaults, and set to keep freed memory in the environment of all tools",
    )
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what is measured")
    for peer in PEERS:
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"a Python interpreter with {peer}")
    for name, kind in (("worker", str), ("task", Path), ("batch", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.points < 3 or chosen.points % 2 == 0:
        parser.error(f"--points {chosen.points}; expected 3, 5, 7 ..., so that one is the network.")
    if not 1 <= chosen.images <= 1000 or chosen.rounds < 1:
        parser.error(f"--images {chosen.images} --rounds {chosen.rounds}; expected 1 to 1000, 1.")
    return chosen


def main() -> None:
    chosen = parsed()
    if chosen.worker:
        work(chosen.worker, chosen.task, chosen.batch, chosen.threads, chosen.clock)
        return
    given = {peer: getattr(chosen, peer.replace("-", "_")) for peer in PEERS}
    pythons = {peer: python for peer, python in given.items() if python}
    versions = [f"{peer} {installed(peer, python)}" for peer, python in pythons.items()]
    peers = [job for job in JOBS if job.split(",")[0] in pythons]
    own = [job for job in JOBS if job.startswith("ours")]
    batches = [size for size in BATCHES if size <= chosen.images] or [chosen.images]
    options = ["--threads", str(chosen.threads), "--clock", chosen.clock]
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(chosen.model, chosen.width, chosen.images, chosen.points)
        file = Path(folder) / "task.pt"
        torch.save(vars(task), file)
        exact = exact_loss(task)
        shape = "x".join(map(str, task.images.shape[1:]))
        print(
            f"{task.model} width {chosen.width}, {chosen.images} images of {shape}, "
            f"{task.points}x{task.points} points, {chosen.rounds} rounds, {chosen.clock} time; "
            f"loss {exact:.6f}\n{cpu_name()}, {chosen.threads} threads, torch {torch.__version__}; "
            f"against {', '.join(['a plain loop', *versions])}",
            flush=True,
        )
        for malloc in chosen.malloc:
            environment = ENVIRONMENTS[malloc]
            print(f"\nmalloc: {' '.join(f'{k}={v}' for k, v in environment.items()) or 'default'}")
            # If the environment sets the allocator for all, setting it again changes nothing.
            mine = [job for job in own if not (environment and "allocator" in job)]
            workers = side_by_side(
                [*mine, *peers], pythons, environment, file, batches, options, chosen.rounds
            )
            print(table(workers, exact), flush=True)
    for peer in [peer for peer in PEERS if peer not in pythons]:
        print(
            f"{peer}: not measured. python3.11 -m venv VENV && VENV/bin/pip install "
            f"torch=={torch.__version__.partition('+')[0]} && VENV/bin/pip install "
            f"{peer}=={PEERS[peer]}, then --{peer} VENV/bin/python"
        )


if __name__ == "__main__":
    main()
