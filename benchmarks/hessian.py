"""Seconds for the top eigenpairs of the Hessian: this toolkit and three peers, side by side.

    python benchmarks/hessian.py

All tools work on the same network, the same real images and the same batches, in one process, one
after another in every round; every second round runs in reverse order. All must reach the same
residual, which is verified with a separate float64 product. How to install the peers and how to
read the tables: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from hessian_eigenthings import HessianOperator, lanczos
from hessian_eigenthings.algorithms.lanczos import lanczos_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from surface import CLOCKS, Task, cpu_name, make_task
from torch import Tensor
from torch.nn import CrossEntropyLoss, functional

from checkpoints.problem import Normalization, Problem
from landscape.core.spaces import Weights
from landscape.hessian.lanczos import eigenpairs, gaussian
from landscape.hessian.operator import Curvature

PEERS = {"curvlinops": "curvlinops-for-pytorch", "pyhessian": "PyHessian"}
INSTALL = (
    "pip install --no-deps pyhessian==0.1 curvlinops-for-pytorch==3.0.1 backpack-for-pytorch "
    "einconv einops jaxtyping linear_operator opt_einsum unfoldNd wadler_lindig"
)
Product = Callable[[Tensor], Tensor]


@dataclass
class Clocked:
    """A matrix-vector product that counts and times its calls.

    Args:
        product: maps a flat vector to a flat vector.
        clock: returns seconds.
    """

    product: Product
    clock: Callable[[], float]
    seconds: list[float] = field(default_factory=list)

    def __call__(self, vector: Tensor) -> Tensor:
        """The product."""
        start = self.clock()
        image = self.product(vector)
        self.seconds.append(self.clock() - start)
        return image


@dataclass(frozen=True, eq=False)
class Found:
    """Eigenpairs, and the cost of the products that led to them.

    Args:
        values: (k,).
        vectors: (k, parameters), norm 1, in the order of the network's parameters.
        seconds: one value per product.
    """

    values: Tensor
    vectors: Tensor
    seconds: list[float]


@dataclass(frozen=True, eq=False)
class Setting:
    """The input of all tools.

    Args:
        task: network and images.
        batch: images per batch.
        tol: the residual |Hv - λv| / |λ| to reach.
        cap: maximum number of products of power iteration.
        clock: returns seconds.
    """

    task: Task
    batch: int
    tol: float
    cap: int
    clock: Callable[[], float]

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Normalised images and labels, ready-made."""
        return self.task.batches(self.batch)


class Exact:
    """Float64 Hessian-vector products, for several vectors at a time.

    Batches are processed one after another: the graph of a batch's gradient serves all vectors, and
    the graphs of all batches together would not fit into a laptop's memory.
    """

    def __init__(self, setting: Setting) -> None:
        self.network = setting.task.network().double()
        self.batches, self.count = setting.batches(), len(setting.task.labels)

    def __call__(self, vectors: Tensor) -> Tensor:
        """The products with vectors (n, parameters), float64."""
        parameters = list(self.network.parameters())
        total = torch.zeros_like(vectors, dtype=torch.float64)
        for images, labels in self.batches:
            logits = self.network(images.double())
            loss = functional.cross_entropy(logits, labels, reduction="sum") / self.count
            gradient = torch.autograd.grad(loss, parameters, create_graph=True)
            for row, vector in zip(total, vectors.double(), strict=True):
                pieces = torch.split(vector, [p.numel() for p in parameters])
                along = [v.view_as(p) for v, p in zip(pieces, parameters, strict=True)]
                row += _flat(torch.autograd.grad(gradient, parameters, along, retain_graph=True))
        return total

    def residuals(self, found: Sequence[Found]) -> list[float]:
        """The largest |Hv - λv| / |λ| of each tool's pairs, with its reported values."""
        units = [f.vectors.double() / f.vectors.double().norm(dim=1, keepdim=True) for f in found]
        images = self(torch.cat(units)).split([len(unit) for unit in units])
        return [
            float(((image - f.values.double()[:, None] * unit).norm(dim=1) / f.values.abs()).max())
            for f, unit, image in zip(found, units, images, strict=True)
        ]


# Products: each function returns one, which maps a flat vector to a flat vector.


def ours(setting: Setting, *, keep: bool) -> Curvature:
    task = setting.task
    problem = Problem(
        task.network(),
        {"input": task.images},
        task.labels,
        normalization=Normalization(task.mean, task.std),
        batch_size=setting.batch,
    )
    operator = Curvature(Weights(problem), keep=keep)
    names = [name for name, _ in problem.model.named_parameters()]
    assert list(operator.tensors(torch.empty(operator.size))) == names, "vectors are compared"
    return operator


def eigenthings(setting: Setting, method: Any = "autograd") -> HessianOperator:
    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    return HessianOperator(setting.task.network(), setting.batches(), loss, method=method)


def curvlinops(setting: Setting) -> Product:
    peer = importlib.import_module("curvlinops")
    network = setting.task.network()
    operator = peer.HessianLinearOperator(
        network,
        CrossEntropyLoss(),
        list(network.parameters()),
        setting.batches(),
        check_deterministic=False,  # it would cost further passes
    ).to_scipy()
    return lambda vector: torch.from_numpy(operator @ vector.numpy())


def pyhessian(setting: Setting) -> Any:
    peer = importlib.import_module("pyhessian")
    return peer.hessian(
        setting.task.network(), CrossEntropyLoss(), dataloader=setting.batches(), cuda=False
    )


def pyhessian_product(setting: Setting) -> Product:
    peer = pyhessian(setting)

    def product(vector: Tensor) -> Tensor:
        pieces = torch.split(vector, [p.numel() for p in peer.params])
        along = [v.view_as(p) for v, p in zip(pieces, peer.params, strict=True)]
        return _flat(peer.dataloader_hv_product(along)[1])

    return product


def gradient(setting: Setting) -> Product:
    """Not a product: the gradient, which is the unit of the products' cost."""
    network, batches = setting.task.network(), setting.batches()
    parameters = list(network.parameters())

    def once(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for images, labels in batches:
            loss = functional.cross_entropy(network(images), labels, reduction="sum")
            total += _flat(torch.autograd.grad(loss, parameters))
        return total / len(setting.task.labels)

    return once


# Eigenpairs: each function takes a setting and k.


def ours_top(setting: Setting, k: int, *, keep: bool) -> Found:
    product = Clocked(ours(setting, keep=keep).matvec, setting.clock)
    generator = torch.Generator().manual_seed(k)
    start = gaussian(torch.empty(1, _size(setting)), generator)

    def multiply(vectors: Tensor) -> Tensor:
        return product(vectors[0])[None]

    found = eigenpairs(multiply, start, k, tol=setting.tol, max_products=1000, generator=generator)
    return Found(found.values[0], found.vectors[0], product.seconds)


def eigenthings_top(setting: Setting, k: int, *, steps: dict[int, int]) -> Found:
    operator = eigenthings(setting)
    product = Clocked(operator.matvec, setting.clock)
    operator.matvec = product
    found = lanczos(operator, k=k, max_iter=steps[k], reorthogonalize=True, seed=0)
    return Found(found.eigenvalues, found.eigenvectors, product.seconds)


def curvlinops_top(setting: Setting, k: int) -> Found:
    product = Clocked(curvlinops(setting), setting.clock)
    size = _size(setting)
    operator = LinearOperator(
        (size, size),
        matvec=lambda v: product(torch.from_numpy(v.ravel()).float()).numpy(),
        dtype="float32",
    )
    start = torch.randn(size, generator=torch.Generator().manual_seed(k)).numpy()
    values, vectors = eigsh(operator, k=k, which="LM", tol=setting.tol, v0=start)
    return Found(torch.from_numpy(values), torch.from_numpy(vectors.T), product.seconds)


def pyhessian_top(setting: Setting, k: int) -> Found:
    """Stopped from outside at the requested residual, which it does not compute itself."""
    peer = pyhessian(setting)
    plain, seconds, last = peer.dataloader_hv_product, [], [math.nan]

    def product(vector: list[Tensor]) -> tuple[float, list[Tensor]]:
        start = setting.clock()
        value, image = plain(vector)
        seconds.append(setting.clock() - start)
        error = (_flat(image) - value * _flat(vector)).norm() / abs(value)
        if error <= setting.tol and not math.isnan(last[0]):
            value = last[0]  # It stops when the value no longer changes.
        last[0] = value
        return value, image

    peer.dataloader_hv_product = product
    torch.manual_seed(k)
    values, vectors = peer.eigenvalues(maxIter=setting.cap // k, tol=1e-15, top_n=k)
    return Found(torch.tensor(values), torch.stack([_flat(v) for v in vectors]), seconds)


def steps_needed(setting: Setting, counts: Sequence[int], most: int = 40) -> dict[int, int]:
    """{k: fewest Lanczos steps of hessian-eigenthings whose error estimates reach the residual}.

    Taken from one long run, whose first steps are those of every shorter run. It is not timed. It
    uses our products, for speed: they differ from the peer's by rounding.
    """
    operator = ours(setting, keep=True)
    start = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
    run = lanczos_tridiagonal(operator, start, most, reorthogonalize=True)
    alphas, betas = run.alphas.double(), run.betas.double()
    found = dict.fromkeys(counts, most)
    for m in range(most - 1, 1, -1):
        matrix = torch.diag(alphas[:m])
        matrix += torch.diag(betas[: m - 1], 1) + torch.diag(betas[: m - 1], -1)
        values, vectors = torch.linalg.eigh(matrix)
        order = values.abs().argsort(descending=True)
        errors = (vectors[-1].abs() * betas[m - 1] / values.abs())[order]
        for k in counts:
            if k <= m and bool((errors[:k] <= setting.tol).all()):
                found[k] = m
    return found


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _size(setting: Setting) -> int:
    return sum(p.numel() for p in setting.task.network().parameters())


def products_table(setting: Setting, exact: Exact, peers: Sequence[str], rounds: int) -> str:
    """Seconds of one product with a random vector of norm 1, and its error."""
    makers: dict[str, Callable[[], Product]] = {
        "gradient": partial(gradient, setting),
        "ours, activations kept": lambda: ours(setting, keep=True).matvec,
        "ours, recomputed": lambda: ours(setting, keep=False).matvec,
        "hessian-eigenthings": lambda: eigenthings(setting).matvec,
        "hessian-eigenthings, differences": lambda: (
            eigenthings(setting, "finite_difference").matvec
        ),
    }
    makers |= {"curvlinops": partial(curvlinops, setting)} if "curvlinops" in peers else {}
    makers |= {"pyhessian": partial(pyhessian_product, setting)} if "pyhessian" in peers else {}
    vector = torch.randn(_size(setting), generator=torch.Generator().manual_seed(1))
    vector /= vector.norm()
    (truth,) = exact(vector[None])
    products = {name: Clocked(make(), setting.clock) for name, make in makers.items()}
    errors = {name: product(vector) for name, product in products.items()}  # and a warm-up
    first = {name: product.seconds.pop() for name, product in products.items()}
    for repeat in range(rounds):
        for product in list(products.values())[:: -1 if repeat % 2 else 1]:
            product(vector)
    unit = products["gradient"].seconds
    lines = [f"{'one product':34} {'s':>7}  {'gradients':>9}  {'first, s':>8}  {'error':>7}"]
    for name, product in products.items():
        ratio = median(a / b for a, b in zip(product.seconds, unit, strict=True))
        error = float((errors[name].double() - truth).norm() / truth.norm())
        last = "" if name == "gradient" else f"{error:7.1e}"
        lines.append(
            f"{name:34} {median(product.seconds):7.3f}  {ratio:9.2f}  {first[name]:8.2f}  {last:>7}"
        )
    return "\n".join(lines)


def eigenpairs_table(
    setting: Setting, exact: Exact, k: int, jobs: dict[str, Callable[..., Found]], rounds: int
) -> str:
    """Seconds for the k largest eigenpairs in magnitude, one line per job."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    found: dict[str, Found] = {}
    for repeat in range(rounds):
        for name in list(jobs)[:: -1 if repeat % 2 else 1]:
            start = setting.clock()
            found[name] = jobs[name](setting, k)
            seconds[name].append(setting.clock() - start)
    residuals = dict(zip(found, exact.residuals(list(found.values())), strict=True))
    peers = [name for name in jobs if not name.startswith("ours")]
    good = [name for name in peers if residuals[name] <= setting.tol]
    best = min(good, key=lambda name: median(seconds[name])) if good else None
    lines = [
        f"{f'k = {k}':33} {'s':>7} {'/best':>6}  {'products':>8}  {'s/product':>9}  "
        f"{'trace, s':>8}  {'residual':>8}"
    ]
    for name, pairs in found.items():
        each = pairs.seconds
        usual = median(each[1:] or each)
        trace = f"{each[0] - usual:8.2f}" if "kept" in name else ""
        ratio = "" if best is None else f"{median(seconds[name]) / median(seconds[best]):6.2f}"
        lines.append(
            f"{name:33} {median(seconds[name]):7.1f} {ratio:>6}  {len(each):8}  {usual:9.3f}  "
            f"{trace:>8}  {residuals[name]:8.1e}"
        )
    return "\n".join([*lines, f"the best peer at {setting.tol:g}: {best or 'none'}"])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=1000, help="1 to 1000")
    parser.add_argument("--batch", type=int, default=50, help="images per batch, for all tools")
    parser.add_argument("--top", type=int, nargs="+", default=[1, 5, 10], metavar="K")
    parser.add_argument("--tol", type=float, default=1e-3, help="the residual to reach")
    parser.add_argument(
        "--cap",
        type=int,
        default=300,
        help="maximum number of products of power iteration (PyHessian)",
    )
    parser.add_argument(
        "--skip", nargs="*", default=[], help="rows to leave out, by part of their names"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what is measured")
    chosen = parser.parse_args()
    if not 1 <= chosen.images <= 1000 or chosen.images % chosen.batch or chosen.rounds < 1:
        # hessian-eigenthings averages over batches, which is wrong for unequal sizes
        parser.error("expected --images a multiple of --batch, at most 1000, and --rounds >= 1")
    return chosen


def main() -> None:
    chosen = parsed()
    torch.set_num_threads(chosen.threads)
    warnings.filterwarnings("ignore", message=".*create_graph=True")  # of PyHessian's backward
    found = {"hessian-eigenthings": importlib.metadata.version("hessian-eigenthings")}
    missing = []
    for module, package in PEERS.items():
        try:
            importlib.import_module(module)
            found[module] = importlib.metadata.version(package)
        except ImportError:
            missing.append(module)
    task = make_task(chosen.model, chosen.width, chosen.images, 3)
    setting = Setting(task, chosen.batch, chosen.tol, chosen.cap, CLOCKS[chosen.clock])
    exact = Exact(setting)
    print(
        f"{task.model} width {chosen.width}, {_size(setting)} parameters, {chosen.images} images "
        f"in batches of {chosen.batch}, residual {chosen.tol:g}, {chosen.rounds} rounds, "
        f"{chosen.clock} time\n{cpu_name()}, {chosen.threads} threads, torch {torch.__version__}; "
        f"against {', '.join(f'{name} {version}' for name, version in found.items())}\n\n"
        f"{products_table(setting, exact, list(found), max(chosen.rounds, 3))}",
        flush=True,
    )
    steps = steps_needed(setting, chosen.top)
    jobs: dict[str, Callable[..., Found]] = {
        "ours, activations kept": partial(ours_top, keep=True),
        "ours, recomputed": partial(ours_top, keep=False),
        "hessian-eigenthings, steps given": partial(eigenthings_top, steps=steps),
    }
    jobs |= {"curvlinops + eigsh": curvlinops_top} if "curvlinops" in found else {}
    jobs |= {"pyhessian, stopped": pyhessian_top} if "pyhessian" in found else {}
    jobs = {n: job for n, job in jobs.items() if not any(part in n for part in chosen.skip)}
    for k in chosen.top:
        print("\n" + eigenpairs_table(setting, exact, k, jobs, chosen.rounds), flush=True)
    if missing:
        print(f"\n{', '.join(missing)}: not measured. {INSTALL}")


if __name__ == "__main__":
    main()
