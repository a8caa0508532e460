"""The network with its gates changed, without training it again.

What survives a change was not due to what the change took away: `mean` and `other_image` take away
that the gate depends on this image, `permuted` which channel it favours, `uniform` all of the gate
but its size, and `sum` the multiplication, of which it leaves the part that is linear in gate and
features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checkpoints.problem import Tensors
from landscape.attention.sites import Site
from landscape.core.partners import partners
from landscape.core.spaces import Inputs

NAMES = ("none", "mean", "other_image", "permuted", "uniform", "sum")


@dataclass(frozen=True, eq=False)
class Gates:
    """The gates of all examples, and what they come to.

    Args:
        values: {name of a gate: (N, ...)}, on the CPU.
        means: {name of a gate or map: its mean over the examples}.
        partner: (N,) another example for each, see `partners`.
    """

    values: Tensors
    means: Tensors
    partner: NDArray[np.int64]

    @classmethod
    def of(cls, space: Inputs, sites: Sequence[Site], seed: Sequence[int]) -> Gates:
        """Cost: one forward pass of all examples of the problem."""
        gates = [site.gate for site in sites]
        maps = [name for site in sites for name in (site.before, site.after)]
        rows: dict[str, list[Tensor]] = {name: [] for name in gates}
        sums: Tensors = {}
        with torch.no_grad(), space.exact(), space.reading([*gates, *maps]) as values:
            for part in space.parts():
                space.outputs({name: value[part] for name, value in space.origin.items()})
                for name in (*gates, *maps):
                    total = values[name].double().sum(dim=0)
                    sums[name] = sums[name] + total if name in sums else total
                for name in gates:
                    rows[name].append(values[name].cpu())
        count = len(space.problem)
        return cls(
            {name: torch.cat(parts) for name, parts in rows.items()},
            {name: total / count for name, total in sums.items()},
            partners(count, seed),
        )


@contextmanager
def intervention(
    space: Inputs,
    sites: Sequence[Site],
    gates: Gates,
    name: str,
    numbers: Sequence[int],
    seed: Sequence[int],
) -> Iterator[None]:
    """A context in which every gate of the network is changed.

    Args:
        space: of the network.
        sites: whose gates.
        gates: of all examples.
        name: one of `NAMES`.
        numbers: the examples that are passed through the network inside, in this order.
        seed: of the permutation of the channels, the same one for every example.
    """
    if name == "none":
        yield
    elif name == "sum":
        with _summed(space, sites, gates):
            yield
    else:
        others = torch.from_numpy(gates.partner[list(numbers)])
        changes = {
            site.gate: _change(name, gates, site, others, [*seed, row])
            for row, site in enumerate(sites)
        }
        with space.replacing(changes):
            yield


def _change(
    name: str, gates: Gates, site: Site, others: Tensor, seed: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    mean = gates.means[site.gate]
    if name == "mean":
        return lambda gate: mean.to(gate).expand_as(gate)
    if name == "uniform":
        return lambda gate: torch.full_like(gate, float(mean.mean()))
    if name == "other_image":
        return lambda gate: gates.values[site.gate][others].to(gate)
    random = np.random.default_rng(seed)
    if site.side:  # a gate per position: its positions change places
        order = torch.from_numpy(random.permutation(mean.numel()))
        return lambda gate: gate.flatten(1)[:, order.to(gate.device)].view_as(gate)
    order = torch.from_numpy(random.permutation(len(mean)))
    return lambda gate: gate[:, order.to(gate.device)]


@contextmanager
def _summed(space: Inputs, sites: Sequence[Site], gates: Gates) -> Iterator[None]:
    """The product g x replaced by E[g] x + (g - E[g]) E[x], means over examples and positions.

    It has the product's mean wherever gate and features are uncorrelated.
    """
    with space.reading([name for site in sites for name in (site.gate, site.before)]) as values:

        def additive(site: Site) -> Callable[[Tensor], Tensor]:
            of_gate = _per_channel(gates.means[site.gate])
            of_map = _per_channel(gates.means[site.before])

            def change(product: Tensor) -> Tensor:
                gate, features = values[site.gate], values[site.before]
                gate = gate if gate.ndim == 4 else gate[:, :, None, None]
                g, x = of_gate.to(gate), of_map.to(features)
                return (g * features + (gate - g) * x).expand_as(product)

            return change

        with space.replacing({site.after: additive(site) for site in sites}):
            yield


def _per_channel(mean: Tensor) -> Tensor:
    """(C, 1, 1) from the mean of a gate or map, (C,) or (C, H, W)."""
    return mean.flatten(1).mean(dim=1)[:, None, None] if mean.ndim > 1 else mean[:, None, None]


def effects(
    space: Inputs,
    inputs: Tensors,
    targets: Tensor,
    steps: Sequence[Tensors],
    radius: float,
) -> Mapping[str, Tensor]:
    """Loss, accuracy and the second difference of the logits, under whatever is replaced now.

    Args:
        space: the only caller of the network.
        inputs: {name: (n, ...)}.
        targets: (n,).
        steps: steps of the inputs, `radius` long each.
        radius: their length.

    Returns:
        {name: (n,) float64}; the second difference is ‖f(x+u) - 2f(x) + f(x-u)‖ / radius², its
        mean over the steps.

    Cost: 1 + 2 len(steps) forward passes.
    """
    problem = space.problem

    def logits(step: Tensors, sign: float) -> Tensor:
        moved = {name: value + sign * step[name] for name, value in inputs.items()}
        return space.outputs(moved).double()  # type: ignore[no-any-return]

    with torch.no_grad(), space.exact():
        outputs = space.outputs(inputs)
        middle = outputs.double()
        bends = [
            (logits(step, 1) - 2 * middle + logits(step, -1)).norm(dim=1) / radius**2
            for step in steps
        ]
        found = {
            "loss": problem.losses(outputs, targets),
            "second_difference": torch.stack(bends).mean(dim=0),
        }
        if problem.correct is not None:
            found["accuracy"] = problem.correct(outputs, targets).double()
    return found
