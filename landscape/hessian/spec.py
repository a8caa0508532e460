"""The options of the Hessian probe."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from analysis import upgrade
from checkpoints import options
from checkpoints.options import option, seed_option

Part: TypeAlias = Literal["eigenpairs", "density", "trace"]
End: TypeAlias = Literal["magnitude", "largest", "smallest"]
PARTS: tuple[Part, ...] = get_args(Part)


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
    scale: Literal["none", "relative"] = option(
        "none",
        "relative: in coordinates in which a step of 1 moves each filter by its own norm, and each "
        "bias and norm parameter by its own size, so that rescalings that cancel change nothing",
        earlier=upgrade.VALUES["hessian"]["scale"],
    )
    parts: tuple[Part, ...] | None = option(
        None, f"which of {', '.join(PARTS)} (default: all; in the inputs eigenpairs)", "PART"
    )
    which: tuple[End, ...] = option(
        ("magnitude",), "eigenpairs from which ends: magnitude, largest, smallest", "END"
    )
    top: int | None = option(
        None, "eigenpairs per end (default: 5, or as many as there are; 1 in the inputs)", least=1
    )
    tol: float = option(
        1e-3, "residual |Hv - λv| / |λ| at which an eigenpair has converged", above=0, below=1
    )
    max_products: int = option(200, "most products for the eigenpairs of one end", least=1)
    multiple: bool | None = option(
        None,
        "search the orthogonal complement of the eigenpairs found for further vectors of repeated "
        "eigenvalues, which one Lanczos run cannot find",
    )
    draws: int = option(
        4, "random vectors of the density; its error is that over them", least=1, most=10_000
    )
    steps: int | None = option(
        None,
        "Lanczos steps of the density, from each random vector (default: 30, or all rows)",
        least=1,
    )
    trace_products: int = option(30, "products for the trace", least=6, most=1_000_000)
    krylov_trace: bool = option(
        False,
        "take the trace's subspace from Lanczos steps instead of a random sketch: with as many "
        "products it has twice the dimension",
    )
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
    seed: int = seed_option("of the random vectors")

    def __post_init__(self) -> None:
        in_inputs, parts = self.space == "inputs", self._parts()
        if in_inputs:
            beyond = [
                flag
                for flag, given in (
                    ("--layers", self.layers),
                    (f"--scale {self.scale}", self.scale != "none"),
                    (f"--matrix {self.matrix}", self.matrix != "hessian"),
                    (f"--parts {' '.join(parts)}", parts != ("eigenpairs",)),
                    ("--save-directions", self.save_directions),
                    ("--multiple", self.multiple),
                    ("--krylov-trace", self.krylov_trace),
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
        if self.krylov_trace and "trace" not in parts:
            raise ValueError("--krylov-trace needs --parts trace.")
        if self.verify and set(parts) == {"density"}:
            raise ValueError("--verify needs --parts eigenpairs or trace.")

    @property
    def derivatives(self) -> dict[str, int]:
        """The highest derivative in each space; see `checkpoints.kernels`."""
        return {self.space: 2}

    def _parts(self) -> tuple[Part, ...]:
        """The parts that are measured, in order."""
        usual: tuple[Part, ...] = ("eigenpairs",) if self.space == "inputs" else PARTS
        return tuple(part for part in PARTS if part in (self.parts or usual))

    @options.in_callers_words
    def resolved(self, rows: int) -> Decided:
        """This spec with every default decided, for a matrix of so many rows.

        Raises:
            ValueError: more is asked for than the matrix has rows.
        """
        in_inputs, parts = self.space == "inputs", self._parts()
        top = self.top if self.top is not None else min(1 if in_inputs else 5, rows)
        steps = self.steps if self.steps is not None else min(30, rows)
        what, more = "parameters selected", ", or select more --layers"
        if in_inputs:
            what, more = "pixels of an example", ""
        for flag, asked, part in (("top", top, "eigenpairs"), ("steps", steps, "density")):
            if part in parts and asked > rows:
                raise ValueError(
                    f"--{flag} {asked} exceeds the {rows} {what}. Ask for at most {rows}{more}."
                )
        decided = {"parts": parts, "top": top, "steps": steps}
        return Decided(**vars(self) | decided)


@options.spec
class Decided(Spec):
    """A spec with every default decided."""

    parts: tuple[Part, ...]
    top: int
    steps: int
