"""Eigenpairs, spectral density and trace of the curvature in the weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from checkpoints.problem import Problem
from landscape.core import direction_files, store
from landscape.core.directions import matching, relative_scale
from landscape.core.plan import Cell, Plan, Values
from landscape.core.spaces import Weights
from landscape.core.variables import Coordinate, Variable, Variables, numbered
from landscape.hessian import lanczos, quadrature, trace, verify
from landscape.hessian.operator import Curvature
from landscape.hessian.spec import Decided, Spec
from landscape.hessian.variables import eigenpair_variables, stream_seed, tell

log = logging.getLogger(__name__)
# With fewer products than this, counted per batch, tracing costs more than it saves.
WORTH_TRACING = 50


class _Measurement:
    """Measures the parts of the curvature in the weights; the operator is built on first use."""

    def __init__(
        self, space: Weights, names: list[str], spec: Decided, size: int, run: str
    ) -> None:
        self.space, self.names, self.spec, self.size, self.run = space, names, spec, size, run
        kinds = {
            "eigenpairs": [f"eigenpairs {end}" for end in spec.which],
            "density": [f"density {draw}" for draw in range(spec.draws)],
            "trace": ["trace"],
        }
        self.cells = [cell for part in spec.parts for cell in kinds[part]]
        if spec.verify:
            ends: list[str] = list(spec.which) if "eigenpairs" in spec.parts else []
            ends += ["trace"] if "trace" in spec.parts else []
            self.cells += [f"verification {what}" for what in ends]

    @cached_property
    def operator(self) -> Curvature:
        spec, space = self.spec, self.space
        keep = spec.activations == "keep"
        if spec.activations == "auto":
            products = {
                "eigenpairs": len(spec.which) * (20 + 2 * spec.top),
                "density": spec.draws * spec.steps,
                "trace": spec.trace_products,
            }
            asked = sum(products[part] for part in spec.parts)
            keep = asked * len(list(space.parts())) >= WORTH_TRACING
        scale = relative_scale(space.origin) if spec.scale == "relative" else None
        return Curvature(space, spec.matrix, names=self.names, scale=scale, keep=keep)

    @cached_property
    def asymmetry(self) -> float:
        """See `Curvature.check_symmetry`."""
        seed = stream_seed(self.spec.seed, "symmetry")
        return self.operator.check_symmetry(torch.Generator().manual_seed(seed))

    def measure(self, cells: Sequence[Cell]) -> Values:
        (cell,) = cells
        _ = self.asymmetry  # refused before anything is measured
        kind, _, which = self.cells[cell["measurement"]].partition(" ")
        # One random stream per cell, so that no cell depends on which others have been measured.
        generator = torch.Generator().manual_seed(stream_seed(self.spec.seed, kind, which))
        start = lanczos.gaussian(torch.empty(1, self.size), generator)
        start = start.to(self.operator.device, self.operator.dtype)
        if kind == "eigenpairs":
            return self._eigenpairs(start, which, generator)
        if kind == "density":
            shape = (self.spec.draws, self.spec.steps)
            values = {name: np.full(shape, np.nan) for name in ("node", "weight")}
            measure = quadrature.quadrature(self._multiply, start, self.spec.steps, generator)
            for name, rows in zip(values, measure, strict=True):
                values[name][int(which)] = rows[0].cpu().numpy()
            return values
        if kind == "verification":
            return self._verification(start[0], which)
        estimated = trace.traces(
            self._multiply,
            start,
            self.spec.trace_products,
            generator,
            krylov=self.spec.krylov_trace,
        )
        norm = estimated.squared_norm**0.5
        estimates = {
            "trace": estimated.trace,
            "trace_stderr": estimated.trace_stderr,
            "frobenius_norm": norm,
            # to first order
            "frobenius_norm_stderr": estimated.squared_norm_stderr / (2 * norm) if norm else 0.0,
        }
        return {name: np.array(value) for name, value in estimates.items()}

    def _eigenpairs(self, start: Tensor, which: str, generator: torch.Generator) -> Values:
        spec, top = self.spec, self.spec.top
        found = lanczos.eigenpairs(
            self._multiply,
            start,
            top,
            which=cast(lanczos.Which, which),
            tol=spec.tol,
            max_products=spec.max_products,
            generator=generator,
        )
        if spec.multiple:
            found = lanczos.multiples(
                self._multiply,
                found,
                which=cast(lanczos.Which, which),
                tol=spec.tol,
                max_products=spec.max_products,
                generator=generator,
            )
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

    def _verification(self, like: Tensor, what: str) -> Values:
        spec, seed = self.spec, stream_seed(self.spec.seed, "verification", what)
        if what == "trace":
            return dict(verify.trace(self.operator.matvec, like, spec.trace_products, seed))
        found = verify.eigenvalues(
            self.operator.matvec, like, spec.top, which=cast(lanczos.Which, what), seed=seed
        )
        values: Values = {}
        for name, row in found.items():
            values[name] = np.full((len(spec.which), *row.shape), np.nan)
            values[name][spec.which.index(what)] = row
        return values

    def _save(self, found: lanczos.Eigenpairs) -> None:
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
        direction_files.save(vectors, Path(str(self.spec.save_directions)), about, run=self.run)

    def begin(self) -> None:
        """Refuse to overwrite another file with the eigenvectors."""
        if self.spec.save_directions:
            direction_files.check_place(Path(self.spec.save_directions), self.run)

    def finish(self, result: xr.Dataset) -> Values:
        """The differences of `--verify`, if requested; and see `_save_measured`."""
        if self.spec.save_directions:
            self._save_measured(result)
        known = float(result["asymmetry"])
        asymmetry = self.asymmetry if np.isnan(known) else known
        return {"asymmetry": np.array(asymmetry), **verify.differences(result)}

    def _save_measured(self, result: xr.Dataset) -> None:
        """Write the eigenvectors of eigenpairs that were measured by an earlier run."""
        values = result["eigenvalue"].values[0]
        held = direction_files.attributes(Path(str(self.spec.save_directions))).get("eigenvalue")
        if held is None or not np.array_equal(held, values[np.isfinite(values)]):
            end = self.spec.which[0]
            log.info("computing the eigenvectors again: the result holds only their eigenvalues.")
            self.measure([{"measurement": self.cells.index(f"eigenpairs {end}")}])

    def _multiply(self, vectors: Tensor) -> Tensor:
        return self.operator.matvec(vectors[0])[None]


_PAIRS = ("eigenvalue", "residual", "converged")


def plan(problem: Problem, spec: Spec) -> Plan:
    """A cell for every part of the measurement; see `landscape.hessian.hessian`."""
    space = Weights(problem)
    names = matching(list(space.origin), spec.layers)
    rows = sum(space.origin[name].numel() for name in names)
    spec = spec.resolved(rows)
    stored = replace(spec, save_directions=None)
    provenance = problem.fingerprints() | {"files": {}, "parameters": rows}
    run = store.identity("hessian", asdict(stored), provenance)
    measured = _Measurement(space, names, spec, rows, run)
    parts, top, steps = spec.parts, spec.top, spec.steps
    unit = "nat" if spec.scale == "relative" else "nat / weight^2"
    variables: Variables = {}
    coords = {"measurement": Coordinate(measured.cells, "part of the measurement")}
    if "eigenpairs" in parts:
        variables |= eigenpair_variables("end", unit)
        coords["end"] = Coordinate(list(spec.which), "end of the spectrum")
        coords["rank"] = numbered(top, "rank")
    if "density" in parts:
        dims = ("draw", "lanczos_step")
        variables["node"] = Variable(dims, "node of the spectral measure", unit)
        variables["weight"] = Variable(dims, "weight of a node")
        coords["draw"] = numbered(spec.draws, "random vector")
        coords["lanczos_step"] = numbered(steps, "Lanczos step")
    if "trace" in parts:
        for name in ("trace", "frobenius_norm"):
            label = name.replace("_", " ").replace("frobenius", "Frobenius")
            variables[name] = Variable((), label, unit)
            variables[f"{name}_stderr"] = Variable((), f"standard error of the {label}", unit)
    variables["asymmetry"] = Variable((), "|u'Av - v'Au| of the matrix, relative to its size")
    if spec.verify:
        asked = {"eigenvalues": "eigenpairs" in parts, "trace": "trace" in parts}
        variables |= verify.variables(("end", "rank"), unit, **asked)
    return Plan(
        probe="hessian",
        spec=stored,
        provenance=provenance,
        coords=coords,
        variables=variables,
        extra_files=(Path(spec.save_directions),) if spec.save_directions else (),
        begin=measured.begin,
        walk=("measurement",),
        measure=measured.measure,
        finish=measured.finish,
        tell=lambda result: [*tell(result), *verify.tell(result)],
    )
