"""The options of the Hessian probe."""

from __future__ import annotations

from typing import Literal

from checkpoints import options
from checkpoints.options import option

PARTS = ("eigenpairs", "density", "trace")
ENDS = ("magnitude", "largest", "smallest")


@options.spec
class Spec:
    """Every number that changes the answer. `None`: `resolved` picks the default."""

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
        None, "eigenpairs per end (default: 5, or as many as there are; 1 in the inputs)"
    )
    tol: float = option(1e-3, "residual |Hv - λv| / |λ| at which an eigenpair has converged")
    max_products: int = option(200, "most products for the eigenpairs of one end")
    multiple: bool | None = option(
        None,
        "search the orthogonal complement of the eigenpairs found for further vectors of repeated "
        "eigenvalues, which one Lanczos run cannot find",
    )
    draws: int = option(4, "random vectors of the density; its error is that over them")
    steps: int | None = option(
        None, "Lanczos steps of the density, from each random vector (default: 30, or all rows)"
    )
    trace_products: int = option(30, "products for the trace")
    verify: bool = option(
        False,
        "compute the eigenvalues and the trace with hessian-eigenthings as well, and store its "
        "results and the differences; about twice the products",
    )
    activations: Literal["auto", "keep", "recompute"] = option(
        "auto",
        "keep activations in memory, for products at half the cost; auto keeps them if many "
        "products are requested, in up to half of the free memory",
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

    @options.in_callers_words
    def resolved(self, rows: int) -> Decided:
        """This spec with every default decided, for a matrix of `rows` rows.

        Raises:
            ValueError: options that contradict each other, or that are invalid.
        """
        in_inputs = self.space == "inputs"
        parts = self.parts or (("eigenpairs",) if in_inputs else PARTS)
        for name, given, known in (("parts", parts, PARTS), ("which", self.which, ENDS)):
            if not given or not set(given) <= set(known) or len(set(given)) < len(given):
                raise ValueError(
                    f"--{name} {' '.join(given)}; expected some of {', '.join(known)}, each once."
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
                    ("--verify", self.verify),
                )
                if given
            ]
            if beyond:
                raise ValueError(f"{beyond[0]} is for --space weights.")
            if len(self.which) > 1:
                raise ValueError("--space inputs takes one --which at a time.")
        if self.save_directions and "eigenpairs" not in parts:
            raise ValueError("--save-directions needs --parts eigenpairs.")
        if self.verify and set(parts) == {"density"}:
            raise ValueError("--verify needs --parts eigenpairs or trace.")
        top = self.top if self.top is not None else min(1 if in_inputs else 5, rows)
        steps = self.steps if self.steps is not None else min(30, rows)
        at_least = {
            "top": (top, 1),
            "max-products": (self.max_products, 1),
            "draws": (self.draws, 1),
            "steps": (steps, 1),
            "trace-products": (self.trace_products, 6),
            "seed": (self.seed, 0),
        }
        for name, (value, least) in at_least.items():
            if value < least:
                raise ValueError(f"--{name} {value}; expected at least {least}.")
        if not 0 < self.tol < 1:
            raise ValueError(f"--tol {self.tol}; expected above 0 and below 1.")
        what, more = "parameters selected", ", or select more --layers"
        if in_inputs:
            what, more = "pixels of an example", ""
        for flag, asked, part in (("top", top, "eigenpairs"), ("steps", steps, "density")):
            if part in parts and asked > rows:
                raise ValueError(
                    f"--{flag} {asked} exceeds the {rows} {what}. Ask for at most {rows}{more}."
                )
        decided = {"parts": tuple(p for p in PARTS if p in parts), "top": top, "steps": steps}
        return Decided(**vars(self) | decided)


@options.spec
class Decided(Spec):
    """A spec with every default decided."""

    parts: tuple[str, ...]
    top: int
    steps: int
