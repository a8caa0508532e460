"""What a unit of a feature map contributes to a logit, by several definitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from checkpoints.problem import Tensors
from landscape.attention.sites import Site
from landscape.attention.spec import Kind, Spec
from landscape.core.spaces import Inputs


class Importance:
    """Importances of the units of feature maps, for a few examples.

    The score is the logit of the example's own class. An importance is the size of a unit's
    contribution, so it is not negative. All with the baseline 0 agree exactly where the score is
    linear in the map. Each is computed once, of the network as it was then.

    Args:
        space: the only caller of the network.
        inputs: {name: (n, ...)}.
        targets: (n,) classes.
        means: {name of a map: (C, H, W)}, its mean over the data.
        spec: see `Spec`.
        seed: of the random orders of the Shapley values.
    """

    def __init__(
        self,
        space: Inputs,
        inputs: Tensors,
        targets: Tensor,
        means: Tensors,
        spec: Spec,
        seed: Sequence[int],
    ) -> None:
        self.space, self.inputs, self.targets = space, inputs, targets
        self.means, self.spec, self.seed = means, spec, seed
        self._known: dict[tuple[str, Kind], Tensor] = {}

    def score(self) -> Tensor:
        """The logit of each example's class, (n,) float64, under whatever is replaced now."""
        with torch.no_grad(), self.space.exact():
            return self._scores(self.space.outputs(self.inputs)).double()

    def of(self, site: Site, name: str, kind: Kind) -> Tensor:
        """The importance of every unit, (n, units) float64.

        Args:
            site: whose units.
            name: of the map, `site.before` or `site.after`.
            kind: by which definition.

        Cost: of `gradient` one forward and backward pass, of `integrated_gradients` `steps` of
        them; of an occlusion a forward pass per unit, of `shapley` one per unit and permutation.
        """
        if (name, kind) not in self._known:
            self._known[name, kind] = self._computed(site, name, kind)
        return self._known[name, kind]

    def _computed(self, site: Site, name: str, kind: Kind) -> Tensor:
        if kind == "gradient":
            return self._path(site, name, [1.0]).abs()
        if kind == "integrated_gradients":
            middles = (np.arange(self.spec.steps) + 0.5) / self.spec.steps
            return self._path(site, name, [float(at) for at in middles]).abs()
        if kind == "shapley":
            return self._shapley(site, name).abs()
        filling = self.means[name] if kind == "occlusion_mean" else 0.0
        whole = self.score()
        return torch.stack(
            [
                (whole - self.erased(site, name, self._only(site, unit), filling)).abs()
                for unit in range(site.units)
            ],
            dim=1,
        )

    def table(self, sites: Sequence[Site], side: str, kinds: Sequence[Kind]) -> Tensor:
        """All importances of one side, `before` or `after`, of all sites: (n, kinds, units)."""
        return torch.stack(
            [
                torch.cat([self.of(site, getattr(site, side), k).cpu() for site in sites], dim=1)
                for k in kinds
            ],
            dim=1,
        )

    def erased(self, site: Site, name: str, units: Tensor, filling: Tensor | float = 0.0) -> Tensor:
        """The score with some units of each example's map replaced, (n,).

        Args:
            site: whose units.
            name: of the map.
            units: (n, units) bool.
            filling: 0, or (C, H, W).
        """
        with self.space.replacing({name: lambda v: site.erased(v, units, filling)}):
            return self.score()

    def _scores(self, logits: Tensor) -> Tensor:
        return logits.gather(1, self.targets[:, None])[:, 0]

    def _only(self, site: Site, unit: int) -> Tensor:
        units = torch.zeros(len(self.targets), site.units, dtype=torch.bool)
        units[:, unit] = True
        return units.to(self.targets.device)

    def _path(self, site: Site, name: str, at: Sequence[float]) -> Tensor:
        """The map times the mean of the score's gradient along the way from 0, summed per unit.

        Source: Sundararajan et al. 2017, arXiv:1703.01365; at 1 alone it is gradient times
        activation.
        """
        pairs = [self._slope(name, share) for share in at]
        slope = torch.stack([slope for _, slope in pairs]).mean(dim=0)
        return site.summed(pairs[0][0] * slope)

    def _slope(self, name: str, share: float) -> tuple[Tensor, Tensor]:
        """A map, and the score's gradient in it where the map is multiplied by `share`."""
        leaves: list[Tensor] = []

        def scaled(value: Tensor) -> Tensor:
            leaves.append((share * value).detach().requires_grad_())
            return leaves[-1].clone()  # which layers may write to

        # Read first: the map itself, not what replaces it.
        with self.space.reading(name) as values, self.space.replacing({name: scaled}):
            with self.space.exact():
                total = self._scores(self.space.outputs(self.inputs)).sum()
                found = (
                    torch.autograd.grad(total, leaves, allow_unused=True)
                    if total.requires_grad
                    else [None]
                )
            if (slope := found[0]) is None:
                raise ValueError(
                    f"no gradient reaches {name}, whose importance is asked for. Look for no_grad "
                    "or detach in the network's forward, or choose other --sites."
                )
            return values[name].detach().double(), slope.double()

    def _shapley(self, site: Site, name: str) -> Tensor:
        """Mean change of the score where a unit is erased after a random set of others.

        Source: Castro et al. 2009, Computers & Operations Research 36 (5), 1726-1730.
        """
        generator = np.random.default_rng(self.seed)
        total = torch.zeros(len(self.targets), site.units, dtype=torch.float64)
        for _ in range(self.spec.permutations):
            gone = torch.zeros(len(self.targets), site.units, dtype=torch.bool)
            before = self.score().cpu()
            for unit in generator.permutation(site.units):
                gone[:, unit] = True
                after = self.erased(site, name, gone.to(self.targets.device)).cpu()
                total[:, unit] += before - after
                before = after
        return total / self.spec.permutations
