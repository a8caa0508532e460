"""Curvature of the loss: top eigenpairs, spectral density, trace; in the weights or the inputs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from checkpoints.options import option
from checkpoints.problem import Problem
from landscape.core import directions, krylov
from landscape.core.curvature import Curvature, filter_scale, matching
from landscape.core.plan import Cell, Plan, Probe, Values
from landscape.core.sample_curvature import sample_curvature
from landscape.core.spaces import Inputs, Weights

log = logging.getLogger(__name__)

PARTS = ("eigenpairs", "density", "trace")
ENDS = ("magnitude", "largest", "smallest")
# With fewer products than this, counted in batches, tracing costs more than it saves.
WORTH_TRACING = 50


@dataclass(frozen=True)
class Spec:
    """Every number that changes the answer. What is None is decided by `resolved`."""

    space: Literal["weights", "inputs"] = option(
        "weights", "the curvature in the network's weights, or in each example's own pixels"
    )
    matrix: Literal["hessian", "gauss_newton", "difference"] = option(
        "hessian",
        "the Hessian, the generalised Gauss-Newton matrix, or their difference: the part that "
        "carries the network's own curvature",
    )
    layers: tuple[str, ...] = option(
        (),
        "only the parameters whose names match one of these patterns, such as 'layer3.*'",
        "PATTERN",
    )
    scale: Literal["none", "filter"] = option(
        "none",
        "filter: in coordinates in which a step of 1 moves each filter by its own norm, so that "
        "rescalings that cancel change nothing",
    )
    parts: tuple[str, ...] | None = option(
        None, f"which of {', '.join(PARTS)} (default: all; in the inputs eigenpairs)", "PART"
    )
    which: tuple[str, ...] = option(
        ("magnitude",), "eigenpairs from which ends: magnitude, largest, smallest", "END"
    )
    top: int | None = option(
        None, "eigenpairs an end (default: 5, or all that there are; 1 in the inputs)"
    )
    tol: float = option(1e-3, "residual |Hv - λv| / |λ| at which an eigenpair has converged")
    max_products: int = option(200, "products after which an end's eigenpairs are left as they are")
    multiple: bool | None = option(
        None,
        "look again beside the eigenpairs found, for further vectors of repeated eigenvalues, "
        "which one Lanczos run cannot see",
    )
    draws: int = option(4, "random vectors of the density; its error is that over them")
    steps: int | None = option(
        None, "Lanczos steps of the density, from each random vector (default: 30, or all rows)"
    )
    trace_products: int = option(30, "products for the trace")
    activations: Literal["auto", "keep", "recompute"] = option(
        "auto",
        "keep activations in memory, for products at half the price; auto keeps them where many "
        "products are asked for, as far as half of the free memory goes",
    )
    save_directions: str | None = option(
        None,
        "write the eigenvectors to this HDF5 file, which landscape.surface --directions takes",
        "FILE",
    )
    seed: int = option(0, "of the random vectors")

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {self.space: 2}

    def resolved(self, rows: int) -> Spec:
        """This spec with every default decided, for a matrix of so many rows.

        Raises:
            ValueError: options that contradict each other, or that are none.
        """
        in_inputs = self.space == "inputs"
        parts = self.parts or (("eigenpairs",) if in_inputs else PARTS)
        for name, given, known in (("parts", parts, PARTS), ("which", self.which, ENDS)):
            if not given or not set(given) <= set(known) or len(set(given)) < len(given):
                raise ValueError(
                    f"--{name} {' '.join(given)}: needed: some of {', '.join(known)}, each once."
                )
        if in_inputs:
            beyond = [
                flag
                for flag, given in (
                    ("--layers", self.layers),
                    ("--scale filter", self.scale != "none"),
                    (f"--matrix {self.matrix}", self.matrix != "hessian"),
                    (f"--parts {' '.join(parts)}", parts != ("eigenpairs",)),
                    ("--save-directions", self.save_directions),
                    ("--multiple", self.multiple),
                )
                if given
            ]
            if beyond:
                raise ValueError(f"{beyond[0]} is for --space weights.")
            if len(self.which) > 1:
                raise ValueError("--space inputs takes one --which at a time.")
        if self.save_directions and "eigenpairs" not in parts:
            raise ValueError("--save-directions needs --parts eigenpairs.")
        top = self.top if self.top is not None else min(1 if in_inputs else 5, rows)
        steps = self.steps if self.steps is not None else min(30, rows)
        for name, value, least in (
            ("top", top, 1), ("max-products", self.max_products, 1), ("draws", self.draws, 1),
            ("steps", steps, 1), ("trace-products", self.trace_products, 6),
            ("seed", self.seed, 0),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"--{name} {value}; needed: at least {least}.")
        if not 0 < self.tol < 1:
            raise ValueError(f"--tol {self.tol}; needed: above 0 and below 1.")
        what, more = "parameters selected", ", or select more --layers"
        if in_inputs:
            what, more = "pixels of an example", ""
        for flag, asked, part in (("top", top, "eigenpairs"), ("steps", steps, "density")):
            if part in parts and asked > rows:
                raise ValueError(
                    f"--{flag} {asked} exceeds the {rows} {what}. Ask for at most {rows}{more}."
                )
        return replace(self, parts=tuple(p for p in PARTS if p in parts), top=top, steps=steps)


def hessian(problem: Problem, spec: Spec) -> Plan:
    """Top eigenvalues, spectral density and trace of the Hessian of the loss.

    In the weights, of the mean loss over the examples. In the inputs, the top eigenvalues of each
    example's own Hessian, in nat / pixel range^2. Every product is exact, by automatic
    differentiation, weighted by examples whatever the batches; each eigenpair comes with the
    residual that the product itself gives, and `converged` says whether it is what was asked for.

    Args:
        problem: with its batch size decided.
        spec: see `Spec`.

    Returns:
        In the weights a plan with a cell for every part: `eigenvalue`, `residual`, `converged` over
        (end, rank), `products` over (end); `node` and `weight`, over (draw, step), of the spectral
        measure: a function of the eigenvalues, averaged over them, is about sum(weight * f(node));
        `trace` and `frobenius_norm` with their standard errors. In the inputs a cell for every
        example: `eigenvalue`, `residual`, `converged` over (example, rank), the top eigenvalue
        `gauss_newton_eigenvalue`, `beyond_gauss_newton`, and whether the eigenpair is
        `from_jacobian`, which it is where the network is piecewise linear; see
        `core.sample_curvature`.

    Raises:
        ValueError: options that contradict each other; more than the matrix has rows.

    Cost: about 30 products for 5 eigenpairs, draws * steps and `trace_products` more; a product is
    2 gradients of all examples with kept activations, else 4.
    Source: see `core.krylov`; Ghorbani et al. 2019, arXiv:1901.10159 (the density of networks).
    """
    if spec.space == "inputs":
        space = Inputs(problem)
        rows = sum(value[0].numel() for value in space.origin.values())
        return _of_inputs(space, spec.resolved(rows), rows)
    weights = Weights(problem)
    names = matching(list(weights.origin), spec.layers)
    rows = sum(weights.origin[name].numel() for name in names)
    return _of_weights(_Measured(weights, names, spec.resolved(rows), rows))


class _Measured:
    """The matrix in the weights, and its parts one after another; made when first needed."""

    def __init__(self, space: Weights, names: list[str], spec: Spec, size: int) -> None:
        self.space, self.names, self.spec, self.size = space, names, spec, size
        self.top, self.steps = cast(int, spec.top), cast(int, spec.steps)
        assert spec.parts is not None  # resolved() has decided
        kinds = {
            "eigenpairs": [f"eigenpairs {end}" for end in spec.which],
            "density": [f"density {draw}" for draw in range(spec.draws)],
            "trace": ["trace"],
        }
        self.cells = [cell for part in spec.parts for cell in kinds[part]]

    @cached_property
    def operator(self) -> Curvature:
        spec, space = self.spec, self.space
        keep = spec.activations == "keep"
        if spec.activations == "auto":
            products = {
                "eigenpairs": len(spec.which) * (20 + 2 * self.top),
                "density": spec.draws * self.steps,
                "trace": spec.trace_products,
            }
            asked = sum(products[part] for part in spec.parts or ())
            keep = asked * len(list(space.parts())) >= WORTH_TRACING
        scale = filter_scale(space.origin) if spec.scale == "filter" else None
        return Curvature(space, spec.matrix, names=self.names, scale=scale, keep=keep)

    def measure(self, cells: Sequence[Cell]) -> Values:
        (cell,) = cells
        kind, _, which = self.cells[cell["part"]].partition(" ")
        # One stream a cell, so that no cell depends on another having been measured.
        generator = torch.Generator().manual_seed(_mixed(self.spec.seed, kind, which))
        start = krylov.gaussian(torch.empty(1, self.size), generator)
        start = start.to(self.operator.device, self.operator.dtype)
        if kind == "eigenpairs":
            return self._eigenpairs(start, which, generator)
        if kind == "density":
            shape = (self.spec.draws, self.steps)
            values = {name: np.full(shape, np.nan) for name in ("node", "weight")}
            found = krylov.quadrature(self._multiply, start, self.steps, generator)
            for name, rows in zip(values, found, strict=True):
                values[name][int(which)] = rows[0].cpu().numpy()
            return values
        told = krylov.traces(self._multiply, start, self.spec.trace_products, generator)
        norm = told.squared_norm**0.5
        estimates = {
            "trace": told.trace,
            "trace_stderr": told.trace_stderr,
            "frobenius_norm": norm,
            # to first order
            "frobenius_norm_stderr": told.squared_norm_stderr / (2 * norm) if norm else 0.0,
        }
        return {name: np.array(value) for name, value in estimates.items()}

    def _eigenpairs(self, start: Tensor, which: str, generator: torch.Generator) -> Values:
        spec, top = self.spec, self.top
        found = krylov.eigenpairs(
            self._multiply, start, top, which=cast(krylov.Which, which), tol=spec.tol,
            max_products=spec.max_products, generator=generator,
        )  # fmt: skip
        if spec.multiple:
            found = krylov.multiples(
                self._multiply, found, which=cast(krylov.Which, which), tol=spec.tol,
                max_products=spec.max_products, generator=generator,
            )  # fmt: skip
        row = spec.which.index(which)
        values = {n: np.full((len(spec.which), top), np.nan) for n in _PAIRS}
        for name, rows in zip(
            _PAIRS, (found.values, found.residuals, found.converged), strict=True
        ):
            values[name][row] = rows[0].double().cpu().numpy()
        products = np.full(len(spec.which), np.nan)
        products[row] = found.products
        if spec.save_directions and row == 0:
            self._save(found)
        return values | {"products": products}

    def _save(self, found: krylov.Eigenpairs) -> None:
        blank = {name: torch.zeros_like(value) for name, value in self.space.origin.items()}
        there = found.values[0].isfinite()
        vectors = [
            blank | self.operator.tensors(self.operator.displacement(vector))
            for vector in found.vectors[0][there]
        ]
        about = {
            name: rows[0][there].double().cpu().numpy()
            for name, rows in zip(
                _PAIRS, (found.values, found.residuals, found.converged), strict=True
            )
        }
        directions.save(vectors, Path(str(self.spec.save_directions)), about)

    def finish(self, result: xr.Dataset) -> Values:
        """Write the eigenvectors of eigenpairs that an earlier run has measured, if asked for."""
        if not self.spec.save_directions:
            return {}
        values = result["eigenvalue"].values[0]
        held = directions.attributes(Path(self.spec.save_directions)).get("eigenvalue")
        if held is None or not np.array_equal(held, values[np.isfinite(values)]):
            end = self.spec.which[0]
            log.info("finding the eigenvectors again: the result holds their eigenvalues alone.")
            self.measure([{"part": self.cells.index(f"eigenpairs {end}")}])
        return {}

    def _multiply(self, vectors: Tensor) -> Tensor:
        return self.operator.matvec(vectors[0])[None]


_PAIRS = ("eigenvalue", "residual", "converged")


def _of_weights(measured: _Measured) -> Plan:
    problem, spec = measured.space.problem, measured.spec
    if spec.save_directions:
        directions.check_writable(Path(spec.save_directions))
    parts, top, steps = spec.parts or (), measured.top, measured.steps
    units = "nat" if spec.scale == "filter" else "nat / weight^2"
    variables: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}
    coords: dict[str, tuple[Any, dict[str, str]]] = {
        "part": (measured.cells, {"long_name": "part of the measurement", "units": "1"})
    }
    if "eigenpairs" in parts:
        variables |= _pairs("end", units)
        about = {"long_name": "products with the matrix", "units": "1"}
        variables["products"] = (("end",), about)
        coords["end"] = (list(spec.which), {"long_name": "end of the spectrum", "units": "1"})
        coords["rank"] = _count(top, "rank")
    if "density" in parts:
        dims = ("draw", "step")
        variables["node"] = (dims, {"long_name": "node of the spectral measure", "units": units})
        variables["weight"] = (dims, {"long_name": "weight of a node", "units": "1"})
        coords |= {"draw": _count(spec.draws, "draw"), "step": _count(steps, "Lanczos step")}
    if "trace" in parts:
        for name in ("trace", "frobenius_norm"):
            label = name.replace("_", " ").replace("frobenius", "Frobenius")
            variables[name] = ((), {"long_name": label, "units": units})
            about = {"long_name": f"standard error of the {label}", "units": units}
            variables[f"{name}_stderr"] = ((), about)
    provenance = problem.fingerprints() | {
        "files": {},
        "parameters": measured.size,
    }
    return Plan(
        probe="hessian",
        spec=replace(spec, save_directions=None),
        provenance=provenance,
        coords=coords,
        variables=variables,
        beside=(Path(spec.save_directions),) if spec.save_directions else (),
        walk=("part",),
        measure=measured.measure,
        finish=measured.finish,
        tell=_tell,
    )


def _of_inputs(space: Inputs, spec: Spec, size: int) -> Plan:
    problem, top = space.problem, cast(int, spec.top)

    def measure(cells: Sequence[Cell]) -> Values:
        part = slice(cells[0]["example"], cells[-1]["example"] + 1)
        # An example's start depends on the example alone, not on who shares its batch.
        streams = [
            torch.Generator().manual_seed(_mixed(spec.seed, "example", str(cell["example"])))
            for cell in cells
        ]
        like = torch.empty(size)
        start = torch.stack([krylov.gaussian(like, stream) for stream in streams])
        found = sample_curvature(
            space, part, top, which=cast(krylov.Which, spec.which[0]), tol=spec.tol,
            max_products=spec.max_products, start=start.to(problem.device, problem.dtype),
            generator=streams[0],
        )  # fmt: skip
        pairs = found.pairs
        values = {
            "eigenvalue": pairs.values,
            "residual": pairs.residuals,
            "converged": pairs.converged.double(),
            "gauss_newton_eigenvalue": found.gauss_newton,
            "beyond_gauss_newton": found.beyond,
        }
        return {name: value.cpu().numpy() for name, value in values.items()} | {
            "from_jacobian": found.from_jacobian.double().cpu().numpy(),
            "products": np.where(found.from_jacobian.cpu().numpy(), 2.0, pairs.products),
        }

    units = "nat / pixel range^2"
    variables = _pairs("example", units)
    for name, label, unit in (
        ("products", "products with the matrix", "1"),
        ("gauss_newton_eigenvalue", "top eigenvalue of the Gauss-Newton matrix", units),
        ("beyond_gauss_newton", "share of the Hessian beyond the Gauss-Newton matrix", "1"),
        ("from_jacobian", "1 where the eigenpair is that of the Gauss-Newton matrix", "1"),
    ):
        variables[name] = (("example",), {"long_name": label, "units": unit})
    return Plan(
        probe="hessian",
        spec=spec,
        provenance=problem.fingerprints() | {"files": {}},
        coords={"example": _count(len(problem), "example"), "rank": _count(top, "rank")},
        variables=variables,
        walk=("example",),
        measure=measure,
        block=problem.batch_size,
        tell=_tell,
    )


def _pairs(dim: str, units: str) -> dict[str, tuple[tuple[str, ...], dict[str, str]]]:
    dims = (dim, "rank")
    return {
        "eigenvalue": (dims, {"long_name": "eigenvalue", "units": units}),
        "residual": (dims, {"long_name": "residual relative to the eigenvalue", "units": "1"}),
        "converged": (dims, {"long_name": "1 where the residual is as asked for", "units": "1"}),
    }


def _count(count: int, label: str) -> tuple[Any, dict[str, str]]:
    return np.arange(count), {"long_name": label, "units": "1"}


def _mixed(seed: int, *words: str) -> int:
    """A seed for every part, far from those of other parts and seeds."""
    state = np.random.SeedSequence([seed, *"\0".join(words).encode()]).generate_state(2)
    return int(state[0]) << 32 | int(state[1])


def _tell(result: xr.Dataset) -> list[str]:
    lines = []
    if "end" in result.dims:
        most = json.loads(result.attrs["spec"])["max_products"]
        narrow = json.loads(result.attrs["provenance"])["dtype"] != "float64"
        for end in result["end"].values:
            rows = result.sel(end=end)
            values = ", ".join(f"{value:.5g}" for value in rows["eigenvalue"].values)
            done, asked = int(rows["converged"].sum()), rows.sizes["rank"]
            why = (
                "" if done == asked
                else ", --max-products" if rows["products"] >= most
                else ": rounding allows no more" + (", --dtype float64 does" if narrow else "")
            )  # fmt: skip
            lines.append(
                f"eigenvalues, {end}: {values}; {done} of {asked} converged, largest residual "
                f"{float(rows['residual'].max()):.1e}, {int(rows['products'])} products{why}"
            )
    elif "eigenvalue" in result:
        top = result["eigenvalue"].values[:, 0]
        low, middle, high = np.quantile(top, (0.1, 0.5, 0.9), method="inverted_cdf")
        lines.append(
            f"top eigenvalue of an example: median {middle:.4g}, 10-90 % {low:.4g} to {high:.4g}; "
            f"{int(result['converged'].sum())} of {result['converged'].size} converged"
        )
    for name in ("trace", "frobenius_norm"):
        if name in result:
            value, stderr = float(result[name]), float(result[f"{name}_stderr"])
            lines.append(f"{result[name].attrs['long_name']}: {value:.5g} ± {stderr:.2g}")
    return lines


PROBE = Probe("hessian", Spec, hessian)


if __name__ == "__main__":
    from landscape.core.cli import main

    raise SystemExit(main(PROBE))
