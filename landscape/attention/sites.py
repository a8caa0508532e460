"""Where a network multiplies features by attention, and the units that are compared there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.core.directions import matching
from landscape.core.spaces import Inputs

# (the gate, what it multiplies, the product), as names within one module, in order of preference: a
# product of two branches says by the first which of them is the gate, if either is.
FORMS = (
    ("{}.gate", "{}.before", "{}"),
    ("{}.factors.residual", "{}.factors.shortcut", "{}"),
)


@dataclass(frozen=True)
class Site:
    """A place where features are multiplied by a gate: after = gate * before.

    A gate with one value per channel, (N, C) or (N, C, 1, 1), is compared channel by channel, and
    so is one with a value per channel and position, by its mean over the positions. One with a
    value per position, (N, 1, H, W), is compared patch by patch.

    Args:
        name: of the module that multiplies.
        gate: name of its gate among the inner values.
        before: name of the features that the gate multiplies, (N, C, H, W).
        after: name of the product.
        units: how many channels or patches there are.
        side: patches per side of a spatial gate; 0 where units are channels.
    """

    name: str
    gate: str
    before: str
    after: str
    units: int
    side: int

    def attention(self, gate: Tensor) -> Tensor:
        """The gate's weight of each unit: (N, units) float64."""
        wide = gate.double()
        if self.side:
            return self.pooled(wide)
        return wide.flatten(2).mean(dim=2) if wide.ndim > 2 else wide

    def pooled(self, features: Tensor) -> Tensor:
        """Per unit the mean of a map (N, C, H, W): (N, units)."""
        sizes = self.summed(torch.ones_like(features[:1]))
        return self.summed(features) / sizes

    def summed(self, features: Tensor) -> Tensor:
        """Per unit the sum of a map (N, C, H, W): (N, units) float64."""
        wide = features.double()
        if not self.side:
            return wide.flatten(2).sum(dim=2)
        flat = torch.zeros(len(wide), self.units, dtype=wide.dtype, device=wide.device)
        return flat.index_add_(1, self._patches(wide).flatten(), wide.sum(dim=1).flatten(1))

    def erased(self, features: Tensor, units: Tensor, filling: Tensor | float) -> Tensor:
        """The map with some units of each example replaced.

        Args:
            features: (N, C, H, W).
            units: (N, units) bool, which of them.
            filling: 0, or (C, H, W).
        """
        where = units[:, None, self._patches(features)] if self.side else units[:, :, None, None]
        if isinstance(filling, float):
            return features.masked_fill(where, filling)
        return torch.where(where, filling.to(features), features)

    def _patches(self, features: Tensor) -> Tensor:
        """The patch of each position of a map (N, C, H, W): (H, W), of equal sizes if possible."""
        rows, columns = (
            torch.arange(size, device=features.device) * self.side // size
            for size in features.shape[2:]
        )
        return rows[:, None] * self.side + columns


def found(space: Inputs, patterns: Sequence[str], patches: int) -> list[Site]:
    """The places where the network multiplies features by a gate, in the order of computation.

    Args:
        space: of the network.
        patterns: names of modules; empty for all.
        patches: of a spatial gate, at most, per side.

    Raises:
        ValueError: there is none, or none matches a pattern.
    """
    values = space.inner_values()
    sites: list[Site] = []
    for name in _modules(values):
        for form in FORMS:
            gate, before, after = (part.format(name) for part in form)
            if gate not in values or before not in values or after not in values:
                continue
            shape, maps = values[gate], values[before]
            if any(f"{each}#2" in values for each in (gate, before, after)):
                continue  # called several times in a pass, so that one name stands for several
            if len(maps) != 4 or values[after] != maps or not _fits(shape, maps):
                continue
            spatial = len(shape) == 4 and shape[1] == 1 != maps[1]
            side = min(patches, *maps[2:]) if spatial else 0
            sites.append(Site(name, gate, before, after, side**2 if side else maps[1], side))
    sites = _multiplying(space, sites)
    if not sites:
        raise ValueError(
            "the network multiplies no features by a gate that it hands out. Expected a module, "
            "called once, with inner values `gate` and `before`, as in se_resnet18, or a product "
            "of two branches, as in fmmnet18; see docs/attention.md."
        )
    chosen = matching([site.name for site in sites], patterns, "--sites", "gate")
    return [site for site in sites if site.name in chosen]


def _multiplying(space: Inputs, sites: Sequence[Site]) -> list[Site]:
    """Those at which the features after are the gate times the features before, and not a sum.

    Of a module that is one in several forms, the first.
    """
    if not sites:
        return []
    names = [name for site in sites for name in (site.gate, site.before, site.after)]
    with torch.no_grad(), space.exact(), space.reading(names) as values:
        space.outputs({name: value[:2] for name, value in space.origin.items()})
    kept: dict[str, Site] = {}
    for site in sites:
        gate, before, after = (values[n] for n in (site.gate, site.before, site.after))
        if len(gate) != len(before) or not bool(gate.isfinite().all()):
            continue  # the same for every image, or no gate at all
        product = before * (gate if gate.ndim == 4 else gate[:, :, None, None])
        if torch.allclose(product, after, rtol=1e-3, atol=1e-6 * float(after.abs().max())):
            kept.setdefault(site.name, site)
    return list(kept.values())


def _modules(values: dict[str, tuple[int, ...]]) -> list[str]:
    endings = [gate.removeprefix("{}") for gate, _, _ in FORMS]
    return list(
        dict.fromkeys(name.removesuffix(e) for name in values for e in endings if name.endswith(e))
    )


def _fits(gate: tuple[int, ...], maps: tuple[int, ...]) -> bool:
    """Whether a gate multiplies maps: one value per channel, per position, or for each entry."""
    if len(gate) == 2:
        return gate[1] == maps[1]
    return len(gate) == 4 and all(g in (1, m) for g, m in zip(gate, maps, strict=True))
