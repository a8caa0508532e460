"""The measurement of a batch of examples: their attention maps, and the loss without some terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from checkpoints.models.aggregation import grid
from checkpoints.models.spatial_attention import TERMS, SpatialAttention
from checkpoints.problem import Tensors
from landscape.core.partners import partners
from landscape.core.plan import Cell, Values
from landscape.core.spaces import Space
from landscape.core.summary import over_kinds
from landscape.core.variables import Variable, Variables
from landscape.terms import statistics
from landscape.terms.spec import Spec

BY_TERM, BY_LAYER, BY_SETTING = ("example", "layer", "term"), ("example", "layer"), ("setting",)
VARIABLES: Variables = {
    "variance_share": Variable(BY_TERM, "share of the variance over keys"),
    "removal_divergence": Variable(BY_TERM, "KL divergence of the map without the term", "nat"),
    "gradient_norm": Variable(BY_TERM, "L2 norm of the loss gradient in the term", "nat"),
    "entropy": Variable(BY_LAYER, "entropy of the attention", "nat"),
    "query_dependence": Variable(BY_LAYER, "divergence from the mean map of all queries", "nat"),
    "image_dependence": Variable(BY_LAYER, "divergence from the map of another image", "nat"),
    "distance": Variable(BY_LAYER, "mean distance to what is attended to", "positions"),
    "setting_loss": Variable(("example", *BY_SETTING), "loss with these terms", "nat"),
    "setting_accuracy": Variable(("example", *BY_SETTING), "accuracy with these terms"),
}


class Measurement:
    """What is measured of a few examples at a time.

    Args:
        space: the only caller of the network.
        layers: see `calls`.
        spec: see `Spec`.
    """

    def __init__(self, space: Space, layers: Mapping[str, SpatialAttention], spec: Spec) -> None:
        self.space, self.layers = space, layers
        problem = space.problem
        self.settings = _settings(layers)
        self.variables = {
            name: each
            for name, each in VARIABLES.items()
            if problem.correct is not None or "accuracy" not in name
        }
        self.other = partners(len(problem), spec.seed)

    def measure(self, cells: Sequence[Cell]) -> Values:
        """Every number of these examples."""
        numbers = [cell["example"] for cell in cells]
        values = self._with_terms_removed(numbers) | self._of_maps(numbers)
        return {name: value.cpu().numpy() for name, value in values.items()}

    def finish(self, result: xr.Dataset) -> Values:
        """Means and quantiles over the examples."""
        return over_kinds(result, self.variables, [])

    def _with_terms_removed(self, numbers: list[int]) -> Tensors:
        """Loss and accuracy with each setting of the terms, in all layers together."""
        problem, rows = self.space.problem, []
        for setting in self.settings:
            gone = {
                _pattern(layer, f"energies.{term}"): torch.zeros_like
                for layer, module in self.layers.items()
                for term, switch in zip(TERMS, setting, strict=True)
                if switch == "0" and term in module.terms
            }
            with torch.no_grad(), self.space.replacing(gone):
                outputs = self.space.outputs_of(self._inputs(numbers))
            targets = problem.targets[numbers]
            row = {"loss": problem.losses(outputs, targets)}
            if problem.correct is not None:
                row["accuracy"] = problem.correct(outputs, targets).double()
            rows.append(row)
        return {f"setting_{n}": torch.stack([row[n] for row in rows], dim=1) for n in rows[0]}

    def _of_maps(self, numbers: list[int]) -> Tensors:
        """What the maps and the terms themselves say."""
        problem, space = self.space.problem, self.space
        patterns = [
            _pattern(layer, name)
            for layer, module in self.layers.items()
            for name in (*(f"energies.{term}" for term in module.terms), "logits", "weights")
        ]
        outer = [_pattern(layer) for layer in self.layers if layer]
        with self._leaves() as leaves, space.reading([*patterns, *outer]) as seen, space.exact():
            outputs = space.outputs_of(self._inputs(numbers))
            loss = problem.losses(outputs, problem.targets[numbers]).sum()
            gradients = _gradients(loss, leaves)
        with torch.no_grad(), space.reading(patterns) as others:
            space.outputs_of(self._inputs(self.other[numbers].tolist()))
        rows = []
        for layer, module in self.layers.items():
            logits, weights = _name(layer, "logits"), _name(layer, "weights")
            maps, others_maps = (
                statistics.log_weights(at[logits], at[weights]).detach() for at in (seen, others)
            )
            names = {term: _name(layer, f"energies.{term}") for term in module.terms}
            row = _of_terms(maps, {term: seen[name].detach() for term, name in names.items()})
            norms = {
                term: gradients[name].double().flatten(1).norm(dim=1)
                for term, name in names.items()
                if name in gradients
            }
            row["gradient_norm"] = _by_term(norms, maps)
            row["entropy"] = statistics.entropy(maps)
            row["query_dependence"] = statistics.query_dependence(maps)
            row["image_dependence"] = statistics.jensen_shannon(maps, others_maps).mean(dim=(1, 2))
            if len(self.other) == 1:  # itself
                row["image_dependence"].fill_(torch.nan)
            row["distance"] = _distance(maps, module, seen[layer] if layer else outputs)
            rows.append(row)
        return {name: torch.stack([row[name] for row in rows], dim=1) for name in rows[0]}

    @contextmanager
    def _leaves(self) -> Iterator[Tensors]:
        """Add zeros to every term, in which the loss can be differentiated."""
        leaves: Tensors = {}

        def adding(name: str) -> object:
            def add(energy: Tensor) -> Tensor:
                leaves[name] = torch.zeros_like(energy).requires_grad_()
                return energy + leaves[name]

            return add

        names = [
            (layer, f"energies.{term}")
            for layer, module in self.layers.items()
            for term in module.terms
        ]
        functions = {_pattern(*each): adding(_name(*each)) for each in names}
        with self.space.replacing(functions):  # type: ignore[arg-type]
            yield leaves

    def _inputs(self, numbers: list[int]) -> Tensors:
        return {name: value[numbers] for name, value in self.space.problem.inputs.items()}


def calls(space: Space) -> dict[str, SpatialAttention]:
    """The spatial attention of a network, {name: module}, each call of a module on its own.

    Cost: one forward pass of one example.
    """
    values = space.inner_values()
    found = {}
    for name, module in space.problem.model.named_modules():
        if isinstance(module, SpatialAttention):
            call = 1
            while _name(layer := name if call == 1 else f"{name}#{call}", "logits") in values:
                found[layer] = module
                call += 1
    return found


def _name(layer: str, value: str = "") -> str:
    """The name of an inner value of a layer: `attention.logits#2` of the call `attention#2`."""
    module, mark, call = layer.partition("#")
    return ".".join(filter(None, (module, value))) + mark + call


def _pattern(layer: str, value: str = "") -> str:
    """What that name alone matches: without a number it would match every call."""
    name = _name(layer, value)
    return name if "#" in name else f"{name}#1"


def _gradients(loss: Tensor, leaves: Tensors) -> Tensors:
    """The gradient in each of the leaves that reach the loss: not past no_grad or detach."""
    if not leaves or not loss.requires_grad:
        return {}
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves, slopes, strict=True)
    return {name: slope for name, slope in pairs if slope is not None}


def _settings(layers: Mapping[str, SpatialAttention]) -> list[str]:
    """All switches of the terms that some layer has, from all on to all off."""
    there = {term for module in layers.values() for term in module.terms}
    settings = [""]
    for term in TERMS:
        settings = [s + bit for s in settings for bit in ("10" if term in there else "0")]
    return settings


def _of_terms(maps: Tensor, energies: Tensors) -> Tensors:
    """Shares of the variance, and divergences without each term, (N, terms).

    A query whose terms have no variance, such as the first of a causal map, has no shares.
    """
    variances = {term: statistics.variance(energy, maps) for term, energy in energies.items()}
    total = sum(variances.values(), torch.zeros_like(maps[..., 0]))
    return {
        "variance_share": _by_term(
            {term: (value / total).nanmean(dim=(1, 2)) for term, value in variances.items()}, maps
        ),
        "removal_divergence": _by_term(
            {term: statistics.removal(maps, energy) for term, energy in energies.items()}, maps
        ),
    }


def _by_term(values: Tensors, like: Tensor) -> Tensor:
    """Values (N,) of some terms as columns (N, all terms), NaN for the others."""
    absent = like.new_full((len(like),), torch.nan)
    return torch.stack([values.get(term, absent) for term in TERMS], dim=1)


def _distance(maps: Tensor, module: SpatialAttention, features: Tensor) -> Tensor:
    """See `statistics.mean_distance`; NaN if the keys are not positions of the same features."""
    sizes = features.shape[2:]
    kept = [(size - 1) // module.key_stride + 1 for size in sizes]
    if int(np.prod(kept)) != maps.shape[-1]:
        return maps.new_full((len(maps),), torch.nan)
    places = grid(sizes, maps), grid(kept, maps, module.key_stride)
    return statistics.mean_distance(maps, torch.cdist(*places))
