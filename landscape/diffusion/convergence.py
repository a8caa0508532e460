"""Does attention converge to drift-diffusion: bias and variance, apart, against the theory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from analysis.stats.student import t_reach
from landscape.core.plan import Cell, Plan, Values
from landscape.core.variables import Coordinate, Floats, Variable, numbered
from landscape.diffusion import dynamics
from landscape.diffusion.manifolds import DOUBLE, MANIFOLDS
from landscape.diffusion.operators import generator, squared_distance
from landscape.diffusion.spec import Spec

# How a query that is one of the points takes part: not at all (a new point), hidden from itself, or
# as one of its own keys, whose weight 1 shrinks S H - H.
SELF = ("new", "masked", "included")
SPHERES = ("sphere", "sphere3")
ENOUGH = 30  # keys within reach of a query, below which a slope is not that of the theory
BATCHES = 10  # groups of repeats, over which slopes have an interval
SMALL = 0.1  # slopes are fitted over the bandwidths up to this
NEXT_ORDER = (
    4  # bandwidths from which a fit contains the term of next order, proportional to epsilon
)
SPACING = 8.0  # quadrature nodes per 2 pi are this over the square root of epsilon
SLOPES = {
    "bias": "slope of the bias in epsilon",
    "epsilon": "slope of the deviation in epsilon",
    "count": "slope of the deviation in N",
}
MODES, STEPS = 7, 200  # eigenvalues, and repetitions of attention, that are stored
ENDS = {"": "", "_low": ", 95% interval from", "_high": ", 95% interval to"}


def convergence(spec: Spec) -> Plan:
    """(2 / epsilon) (S H - H) of attention against its limit, Delta H + 2 <grad log p, grad H>.

    At N = infinity, by quadrature, what remains is the bias, of order epsilon. For N points drawn
    from p there is a deviation as well, of order N^(-1/2) epsilon^(-1/2 - d/4). So the error has a
    minimum in epsilon, and attention with a fixed epsilon does not converge.

    Args:
        spec: see `Spec`.

    Returns:
        A plan with the dims `epsilon` and `count`.

    Cost: repeats x queries x N exponentials a cell, and one quadrature per epsilon, of
        (8 / sqrt(epsilon))^d nodes.
    Source: Ruan and Zhang 2024, arXiv:2412.18288, theorem 3; Singer 2006 for the deviation, Appl.
        Comput. Harmon. Anal. 21, 128-134.
    """
    study = _Study(spec)
    return Plan(
        probe="diffusion",
        spec=spec,
        provenance={},
        coords={
            "epsilon": Coordinate(list(spec.epsilons), "bandwidth ε"),
            "count": Coordinate(list(spec.counts), "number of points N"),
            "self_token": Coordinate(list(SELF), "a query among the points"),
            "query": numbered(spec.queries, "query"),
            "batch": numbered(BATCHES, "group of sets of points"),
            "mode": numbered(MODES, "mode"),
            "step": numbered(STEPS, "repetitions of attention"),
        },
        variables=_variables(),
        walk=("epsilon", "count"),
        measure=study.measure,
        watch="error",
        finish=study.finish,
        tell=_tell,
    )


def _variables() -> dict[str, Variable]:
    both = ("epsilon", "count", "self_token")
    variables = {
        "limit": Variable(("query",), "drift-diffusion of H"),
        "quadrature": Variable(("epsilon", "query"), "generator of attention at N = ∞"),
        "edges": Variable(("epsilon", "query"), "leading term of the edges"),
        "mean": Variable((*both, "query"), "mean generator over sets of points"),
        "variance": Variable((*both, "batch"), "variance of the generator, mean over queries"),
        "neighbors": Variable(("epsilon", "count"), "keys within reach: sum of exp(-f / 2ε)"),
        "deviation": Variable(both, "standard deviation of the generator"),
        "error": Variable(both, "root mean square error of the generator"),
        "bias": Variable(("epsilon",), "largest bias at N = ∞"),
        "bias_drift_once": Variable(("epsilon",), "largest bias of a limit with the drift once"),
        "bias_no_drift": Variable(("epsilon",), "largest bias of a limit without drift"),
        "best_epsilon": Variable(("count", "self_token"), "bandwidth of the smallest error"),
    }
    variables |= {
        "rate": Variable(("epsilon", "mode"), "2 (1 - eigenvalue of S) / ε"),
        "rate_limit": Variable(("mode",), "eigenvalue of the limit, sign reversed"),
        "stationary_error": Variable(
            ("epsilon",), "total variation between stationary density and p²"
        ),
        "collapse": Variable(("epsilon", "step"), "spread of H, over that at the start"),
        "query_key_zeroth": Variable(("epsilon",), "largest error of H(y*), query-key score"),
        "query_key_first": Variable(("epsilon",), "largest error with its local time"),
    }
    for name, label in SLOPES.items():
        for end, words in ENDS.items():
            dims = () if name == "bias" else ("self_token",)
            variables[f"{name}_slope{end}"] = Variable(dims, label + words)
    return variables


class _Study:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.manifold = MANIFOLDS[spec.manifold](spec.kappa)
        self.queries = self.manifold.draw(spec.queries, np.random.default_rng([spec.seed, 0]))
        self.at = self.manifold.points(self.queries)
        self.value = self.manifold.value(self.queries)
        self.limit = self.manifold.limit(self.queries).numpy()

    def measure(self, cells: Sequence[Cell]) -> Values:
        rows = [self._cell(cell) for cell in cells]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _cell(self, cell: Mapping[str, int]) -> dict[str, Floats]:
        epsilon = self.spec.epsilons[cell["epsilon"]]
        count = self.spec.counts[cell["count"]]
        sets = [self._once(epsilon, count, repeat) for repeat in range(self.spec.repeats)]
        drawn = np.stack([each for each, _ in sets], axis=-1)  # (self_token, query, repeat)
        groups = np.array_split(drawn, BATCHES, axis=-1)
        variance = np.stack([g.var(axis=-1, ddof=1).mean(axis=-1) for g in groups], axis=-1)
        difference = drawn - self.limit[:, None]
        return {
            "mean": drawn.mean(axis=-1),
            "variance": variance,
            "deviation": np.sqrt(drawn.var(axis=-1, ddof=1).mean(axis=-1)),
            "error": np.sqrt((difference**2).mean(axis=(-2, -1))),
            "neighbors": np.mean([mass for _, mass in sets]),
        }

    def _once(self, epsilon: float, count: int, repeat: int) -> tuple[Floats, float]:
        """The generator of one set of points, (self_token, query), and the keys within reach.

        The set is the same for every epsilon.

        A query that is one of the points takes the place of the last of them.
        """
        draws = np.random.default_rng([self.spec.seed, 1, count, repeat])
        u = self.manifold.draw(count, draws)
        keys, values = self.manifold.points(u), self.manifold.value(u)
        logits = squared_distance(self.at, keys).mul_(-1 / (2 * epsilon))
        others = logits[:, :-1]
        new = torch.softmax(logits, dim=1) @ values - self.value
        masked = torch.softmax(others, dim=1) @ values[:-1] - self.value
        # One key more, of weight exp(0) = 1 among weights that sum to `mass`.
        mass = torch.logsumexp(others, dim=1).exp()
        included = masked * mass / (1 + mass)
        drawn = 2 / epsilon * torch.stack([new, masked, included])
        return drawn.numpy(), float(mass.mean())

    def finish(self, result: xr.Dataset) -> Values:
        spec = self.spec
        rows = [self._at_infinity(epsilon) for epsilon in spec.epsilons]
        found: Values = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        found |= {"limit": self.limit, "rate_limit": self._rate_limit()}
        for name, factor in (("bias", 2.0), ("bias_drift_once", 1.0), ("bias_no_drift", 0.0)):
            limit = self.manifold.limit(self.queries, factor).numpy()
            found[name] = np.abs(found["quadrature"] - limit).max(axis=1)
        best = result["error"].values.argmin(axis=0)
        found["best_epsilon"] = np.asarray(spec.epsilons)[best]
        found |= self._bias_slope(found["quadrature"] - self.limit)
        found |= self._deviation_slopes(
            result["variance"].values, result["neighbors"].values >= ENOUGH
        )
        return found

    def _at_infinity(self, epsilon: float) -> Values:
        """By quadrature, N = infinity; the dynamics where the nodes are few enough, else NaN."""
        manifold = self.manifold
        rule = manifold.quadrature(math.ceil(SPACING / math.sqrt(epsilon)))
        u, weights = rule
        keys, values = manifold.points(u), manifold.value(u)
        exact = generator(self.at, self.value, keys, values, epsilon, log_weights=weights.log())
        found: Values = {
            "quadrature": exact.numpy(),
            "edges": manifold.at_edges(self.queries, epsilon).numpy(),
            "rate": np.full(MODES, np.nan),
            "stationary_error": np.array(np.nan),
            "collapse": np.full(STEPS, np.nan),
            "query_key_zeroth": np.array(np.nan),
            "query_key_first": np.array(np.nan),
        }
        if self.spec.manifold in SPHERES:
            new, *orders = dynamics.query_key(manifold, self.at, rule, self._matrix, 1 / epsilon)
            for name, predicted in zip(("zeroth", "first"), orders, strict=True):
                found[f"query_key_{name}"] = (new - predicted).abs().max().numpy()
        if len(weights) <= dynamics.LARGEST:
            walk = dynamics.Walk(manifold, rule, epsilon)
            found["rate"] = walk.rates(MODES)
            found["stationary_error"] = np.array(walk.stationary_error())
            found["collapse"] = walk.collapse(STEPS)
        return found

    @property
    def _matrix(self) -> Tensor:
        """A of the query-key score beta x^T A y: the identity and three tenths of noise."""
        size = self.at.shape[1]
        noise = np.random.default_rng([self.spec.seed, 2]).normal(size=(size, size))
        return torch.eye(size, dtype=DOUBLE) + 0.3 * torch.as_tensor(noise)

    def _rate_limit(self) -> Floats:
        spec = self.spec
        if spec.manifold == "circle":
            return dynamics.limit_rates(spec.kappa, MODES)
        if spec.manifold in SPHERES and not spec.kappa:
            return dynamics.sphere_rates(self.manifold.dimension, MODES)
        return np.full(MODES, np.nan)

    def _bias_slope(self, bias: Floats) -> Values:
        """The slope of log root mean square bias in log epsilon, by groups of queries.

        The squared bias is averaged over the queries, with one group left out in turn (jackknife).
        """
        some = np.asarray(self.spec.epsilons)[:, None] <= SMALL
        design, bias = self._design(some, self.spec.counts[:1]), bias[some[:, 0]]
        count = min(BATCHES, bias.shape[1])
        if design is None or count < 2:
            return _ends("bias", np.full(3, np.nan))
        groups = np.array_split(np.arange(bias.shape[1]), count)
        sides = [np.delete(bias, group, axis=1) for group in groups]
        slopes = np.array([_fit(design, _log_rms(side))[0] for side in [bias, *sides]])
        whole, without = slopes[0], slopes[1:]
        stderr = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
        half = stats.t.ppf(0.975, count - 1) * stderr
        return _ends("bias", np.array([whole, whole - half, whole + half]))

    def _design(self, some: NDArray[np.bool_], counts: Sequence[int]) -> Floats | None:
        """Regressors log epsilon, log N, 1 and, with enough bandwidths, epsilon; None: too few.

        Args:
            some: (epsilons, counts), the cells that are fitted.
            counts: N along the second axis.
        """
        grid = np.meshgrid(self.spec.epsilons, counts, indexing="ij")
        e, n = (g[some] for g in grid)
        columns = [np.log(e), *([np.log(n)] if len(counts) > 1 else []), np.ones(len(e))]
        if len(np.unique(e)) >= NEXT_ORDER:
            columns.append(e)
        design = np.stack(columns, axis=1)
        enough = len(design) > 1 and np.linalg.matrix_rank(design) == design.shape[1]
        return design if enough else None

    def _deviation_slopes(self, variance: Floats, reached: NDArray[np.bool_]) -> Values:
        """Slopes of log deviation in log epsilon and log N together, by groups of repeats."""
        some = reached & (np.asarray(self.spec.epsilons)[:, None] <= SMALL)
        design = self._design(some, self.spec.counts)
        found: Values = {}
        if design is None or design.shape[1] < 3 or len(self.spec.counts) < 2:
            for name in ("epsilon", "count"):
                found |= _ends(name, np.full((3, len(SELF)), np.nan))
            return found
        slopes = _fit(design, 0.5 * np.log(variance[some]).reshape(len(design), -1))[:2]
        slopes = slopes.reshape(2, len(SELF), BATCHES)
        mean, half = slopes.mean(axis=-1), t_reach(slopes)
        for name, at, within in zip(("epsilon", "count"), mean, half, strict=True):
            found |= _ends(name, np.stack([at, at - within, at + within]))
        return found


def _fit(design: Floats, sides: Floats) -> Floats:
    return np.asarray(np.linalg.lstsq(design, sides, rcond=None)[0])


def _log_rms(values: Floats) -> Floats:
    return np.asarray(0.5 * np.log((values**2).mean(axis=1)))


def _ends(name: str, three: Floats) -> Values:
    return {f"{name}_slope{end}": value for end, value in zip(ENDS, three, strict=True)}


def theory(dimension: int) -> dict[str, float]:
    """The slopes that the theorem gives: of the bias, and of the deviation."""
    return {"bias": 1.0, "epsilon": -0.5 - dimension / 4, "count": -0.5}


def _tell(result: xr.Dataset) -> list[str]:
    name = json.loads(result.attrs["spec"])["manifold"]
    expected = theory(MANIFOLDS[name](0.0).dimension)
    lines = []
    for name, label in SLOPES.items():
        at = result.sel(self_token="masked") if name != "bias" else result
        value, low, high = (float(at[f"{name}_slope{end}"]) for end in ENDS)
        lines.append(f"{label}: {value:.3f} [{low:.3f}, {high:.3f}], theory {expected[name]:g}")
    return lines
