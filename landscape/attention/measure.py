"""The measurement of a batch of examples, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
import xarray as xr

from checkpoints.problem import Tensors
from landscape.attention import agreement, interventions
from landscape.attention.importance import Importance
from landscape.attention.interventions import Gates
from landscape.attention.sites import Site
from landscape.attention.spec import Spec
from landscape.core.jacobian import shaped
from landscape.core.plan import Cell, Values
from landscape.core.spaces import Inputs
from landscape.core.summary import summarized, summarized_where_defined
from landscape.core.variables import Floats

PARTNERS, NULLS, ORDERS, DIRECTIONS, CHANNELS, SHAPLEY = range(6)  # streams of random numbers
SIDES = ("before", "after")
# The attention itself, and what stands in its place: its own entries in random order, the gate of
# another image, and the mean gate of the other images of its class.
ATTENTIONS = ("own", "permuted", "other_image", "class_mean")
ERASED = ("attention", "importance", "random")  # by what falling order units are erased
INTERVENED = ("loss", "accuracy", "second_difference", "loss_rise", "log_second_difference")


class Measurement:
    """What is measured of a few examples at a time."""

    def __init__(self, space: Inputs, spec: Spec, sites: Sequence[Site]) -> None:
        self.space, self.spec, self.sites = space, spec, sites
        ends = np.cumsum([site.units for site in sites])
        self.places = [slice(int(e) - s.units, int(e)) for e, s in zip(ends, sites, strict=True)]

    @cached_property
    def gates(self) -> Gates:
        """The gates of all examples, computed when they are first asked for."""
        return Gates.of(self.space, self.sites, (self.spec.seed, PARTNERS))

    @cached_property
    def attention(self) -> Floats:
        """The attention of all examples, (N, units)."""
        values = self.gates.values
        return torch.cat([s.attention(values[s.gate]) for s in self.sites], dim=1).numpy()

    def measure(self, cells: Sequence[Cell]) -> Values:
        """Every part of these examples."""
        spec, problem = self.spec, self.space.problem
        numbers = [cell["example"] for cell in cells]
        inputs = {name: value[numbers] for name, value in problem.inputs.items()}
        targets = problem.targets[numbers]
        seed = (spec.seed, SHAPLEY)  # the same orders for all examples, in whatever batches
        measured = Importance(self.space, inputs, targets, self.gates.means, spec, seed)
        values: Values = {"attention": self.attention[numbers]}
        if "agreement" in spec.parts:
            sides = [measured.table(self.sites, side, spec.importance).numpy() for side in SIDES]
            values["importance"] = np.stack(sides, axis=1)
            values |= self._agreement(numbers, values["importance"])
        if "erasure" in spec.parts:
            values |= self._erasure(numbers, measured)
        if "interventions" in spec.parts:
            values |= self._interventions(numbers, inputs, targets)
        return values

    def finish(self, result: xr.Dataset) -> Values:
        """Means and quantiles over the examples."""
        values: Values = {}
        for name in summed(self.spec):
            if name in agreement.STATISTICS and name in result:
                values |= summarized_where_defined(name, result[name].values)
            elif name in result:
                values |= summarized(name, result[name].values[:, None])
        return values

    def _agreement(self, numbers: Sequence[int], importance: Floats) -> Values:
        """Statistics (n, site, side, kind, attention kind)."""
        shape = (len(numbers), len(self.sites), *importance.shape[1:3], len(ATTENTIONS))
        found = {name: np.full(shape, np.nan) for name in agreement.STATISTICS}
        for row, number in enumerate(numbers):
            for at, place in enumerate(self.places):
                weights = self._attentions(number, at, place)
                for index in np.ndindex(*shape[2:]):
                    side, kind, which = index
                    statistics = agreement.statistics(
                        weights[which], importance[row, side, kind, place], self.spec.top
                    )
                    for name, value in statistics.items():
                        found[name][row, at, side, kind, which] = value
        return dict(found)

    def _attentions(self, number: int, at: int, place: slice) -> list[Floats]:
        """One attention vector for each of `ATTENTIONS`."""
        own = self.attention[number, place]
        random = np.random.default_rng((self.spec.seed, NULLS, number, at))
        labels = self.space.problem.targets.cpu().numpy()
        others = np.flatnonzero(labels == labels[number])
        others = others[others != number]
        of_class = self.attention[others, place].mean(axis=0) if len(others) else own * np.nan
        partner = self.attention[self.gates.partner[number], place]
        return [own, random.permutation(own), partner, of_class]

    def _erasure(self, numbers: Sequence[int], measured: Importance) -> Values:
        """How the probability of the network's decision falls as units are erased, in order."""
        fractions = self.spec.fractions
        shape = (len(numbers), len(self.sites), len(ERASED), len(fractions))
        kept = np.full(shape, np.nan)
        flips = np.full(shape[:3], np.nan)
        whole = self._logits(measured)
        decision = whole.argmax(dim=1, keepdim=True)
        for at, (site, place) in enumerate(zip(self.sites, self.places, strict=True)):
            slopes = measured.of(site, site.after, "gradient").cpu().numpy()
            random = [
                np.random.default_rng((self.spec.seed, ORDERS, number, at)).random(site.units)
                for number in numbers
            ]
            for which, scores in enumerate(
                (self.attention[list(numbers), place], slopes, np.array(random))
            ):
                ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
                for step, fraction in enumerate(fractions):
                    count = max(1, round(fraction * site.units))
                    gone = torch.from_numpy(ranks < count).to(whole.device)
                    logits = self._erased(measured, site, gone)
                    share = logits.softmax(dim=1).gather(1, decision)[:, 0]
                    kept[:, at, which, step] = share.cpu().numpy()
                    other = (logits.argmax(dim=1, keepdim=True) != decision)[:, 0].cpu().numpy()
                    first = np.isnan(flips[:, at, which]) & other
                    flips[first, at, which] = count / site.units
        return {"erased_probability": kept, "flip_fraction": np.where(np.isnan(flips), 1.0, flips)}

    def _erased(self, measured: Importance, site: Site, units: torch.Tensor) -> torch.Tensor:
        with self.space.replacing({site.after: lambda v: site.erased(v, units, 0.0)}):
            return self._logits(measured)

    def _logits(self, measured: Importance) -> torch.Tensor:
        with torch.no_grad(), self.space.exact():
            return self.space.outputs(measured.inputs).double()  # type: ignore[no-any-return]

    def _interventions(
        self, numbers: Sequence[int], inputs: Tensors, targets: torch.Tensor
    ) -> Values:
        steps = self._steps(numbers, inputs)
        rows = []
        for name in interventions.NAMES:
            seed = (self.spec.seed, CHANNELS)
            with interventions.intervention(
                self.space, self.sites, self.gates, name, numbers, seed
            ):
                rows.append(
                    interventions.effects(self.space, inputs, targets, steps, self.spec.radius)
                )
        found = {
            f"intervention_{name}": torch.stack([row[name] for row in rows], dim=1).cpu().numpy()
            for name in rows[0]
        }
        loss, bend = (found[f"intervention_{n}"] for n in ("loss", "second_difference"))
        none = [interventions.NAMES.index("none")]
        with np.errstate(divide="ignore", invalid="ignore"):
            log_ratio = np.log(bend / bend[:, none])
        return found | {
            "intervention_loss_rise": loss - loss[:, none],
            "intervention_log_second_difference": log_ratio,
        }

    def _steps(self, numbers: Sequence[int], inputs: Tensors) -> list[Tensors]:
        """Random directions, `radius` long, each example its own."""
        size = sum(value[0].numel() for value in inputs.values())
        steps = []
        for draw in range(self.spec.directions):
            rows = np.stack(
                [
                    np.random.default_rng((self.spec.seed, DIRECTIONS, draw, n)).normal(size=size)
                    for n in numbers
                ]
            )
            rows *= self.spec.radius / np.linalg.norm(rows, axis=1, keepdims=True)
            steps.append(shaped(torch.from_numpy(rows), inputs))
        return steps


def summed(spec: Spec) -> list[str]:
    """The variables of which means over the examples are stored."""
    names = {
        "agreement": list(agreement.STATISTICS),
        "erasure": ["erased_probability", "flip_fraction"],
        "interventions": [f"intervention_{name}" for name in INTERVENED],
    }
    return [name for part in spec.parts for name in names[part]]
