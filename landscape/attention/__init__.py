"""Do attention weights mean importance, and what is lost without them?"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from checkpoints.problem import Problem
from landscape.attention import agreement, interventions, sites
from landscape.attention.measure import ATTENTIONS, ERASED, SIDES, Measurement, summed
from landscape.attention.spec import PARTS, Spec
from landscape.core.plan import Plan, Probe
from landscape.core.spaces import Inputs
from landscape.core.summary import declared
from landscape.core.variables import Coordinate, Variable, Variables, numbered, of_examples


def attention(problem: Problem, spec: Spec) -> Plan:
    """Attention weights against the importance of what they weigh, and the network without them.

    A gate that multiplies a feature map weighs its channels, or its positions. For each example
    and gate this compares the weights with the importance of the same units for the logit of the
    example's class, of the features before and after the gate. Weights of other images and
    permuted weights say what agreement there is by chance.

    Args:
        problem: with its batch size decided; labels, and outputs (n, classes).
        spec: see `Spec`.

    Returns:
        A plan with the dim `example`: `attention` and `importance` of every unit; rank statistics
        per site, side, importance and attention kind; erasure curves; loss, accuracy and second
        difference under interventions; and their means over the examples with `_stderr`.

    Raises:
        ValueError: the network hands out no gate; targets that are no labels.

    Cost: with the defaults, in forward passes of all examples: twice the number of units for the
        occlusions, 60 per site for integrated gradients, 20 per site for erasure, 54 for the
        interventions. Memory: two feature maps of a batch, and (examples, 6, units) results.
    Source: Jain and Wallace 2019, arXiv:1902.10186 (rank statistics, nulls); Serrano and Smith
        2019, arXiv:1906.03731 (erasure); Ye et al. 2021, arXiv:2106.15067 (in CNNs).
    """
    space = Inputs(problem)
    with torch.no_grad():
        outputs = space.outputs(problem.inputs, slice(0, 1))
    labels = problem.targets.ndim == 1 and not problem.targets.is_floating_point()
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or not labels:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            "attention needs a network with outputs (n, classes), and class labels; of one example "
            f"the outputs are {found}."
        )
    classes, targets = outputs.shape[1], problem.targets
    if not 0 <= int(targets.min()) <= int(targets.max()) < classes or len(problem) < 2:
        raise ValueError(
            f"attention needs two images or more, with labels from 0 to {classes - 1}: it compares "
            "logits of their classes, and gates of other images."
        )
    places = sites.found(space, spec.sites, spec.patches)
    probe = Measurement(space, spec, places)
    variables = _variables(spec, accurate=problem.correct is not None)
    names = [name for name in summed(spec) if name in variables]
    variables |= declared(variables, names, {"example": ""})
    for name in names:
        if name in agreement.STATISTICS:
            dims = variables[f"{name}_mean"].dims
            label = f"number of examples with a {variables[name].label}"
            variables[f"{name}_defined"] = Variable(dims, label)
    coords = _coords(problem, spec, places)
    used = {dim for each in variables.values() for dim in each.dims}
    return Plan(
        probe="attention",
        spec=spec,
        provenance=problem.fingerprints(),
        coords={n: each for n, each in coords.items() if used.issuperset(each.dims or (n,))}
        | _gallery(problem, spec, places),
        variables=variables,
        walk=("example",),
        measure=probe.measure,
        block=problem.batch_size or len(problem),
        finish=probe.finish,
        tell=_tell,
    )


def _variables(spec: Spec, *, accurate: bool) -> Variables:
    ranked = ("example", "site", "side", "importance_kind", "attention_kind")
    tables: dict[str, Variables] = {
        "agreement": {
            "importance": Variable(
                ("example", "side", "importance_kind", "unit"),
                "importance of a unit for the logit of the class",
                "nat",
            ),
            **{
                name: Variable(ranked, label, "sqrt(nat)" if "shannon" in name else "1")
                for name, label in agreement.STATISTICS.items()
            },
        },
        "erasure": {
            "erased_probability": Variable(
                ("example", "site", "order", "fraction"),
                "probability of the network's decision after erasing units",
            ),
            "flip_fraction": Variable(
                ("example", "site", "order"),
                "smallest fraction of units whose erasure changes the decision; 1 where none does",
            ),
        },
        "interventions": {
            "intervention_loss": Variable(("example", "intervention"), "loss", "nat"),
            "intervention_accuracy": Variable(("example", "intervention"), "accuracy"),
            "intervention_second_difference": Variable(
                ("example", "intervention"),
                f"second difference of the logits at {spec.radius:g}, over its square",
                "nat / pixel range²",
            ),
            "intervention_loss_rise": Variable(
                ("example", "intervention"), "rise of the loss", "nat"
            ),
            "intervention_log_second_difference": Variable(
                ("example", "intervention"),
                "log of the second difference, over that of the network itself",
            ),
        },
    }
    if not accurate:
        del tables["interventions"]["intervention_accuracy"]
    weights = Variable(("example", "unit"), "attention: the gate's weight of a unit")
    chosen = {name: each for part in spec.parts for name, each in tables[part].items()}
    return {"attention": weights, **chosen}


def _coords(problem: Problem, spec: Spec, places: list[sites.Site]) -> dict[str, Coordinate]:
    own = [name for site in places for name in [site.name] * site.units]
    within = np.concatenate([np.arange(site.units) for site in places])
    patches = [site.side for site in places]
    return of_examples(problem) | {
        "site": Coordinate([site.name for site in places], "where features meet a gate"),
        "patches": Coordinate(
            patches,
            "patches per side of a spatial gate; 0 for channels",
            dims=("site",),
        ),
        "unit": numbered(len(own), "channel or patch, of all sites in turn"),
        "unit_site": Coordinate(own, "the site of a unit", dims=("unit",)),
        "unit_number": Coordinate(within, "number of a unit within its site", dims=("unit",)),
        "side": Coordinate(SIDES, "features before or after the gate"),
        "importance_kind": Coordinate(spec.importance, "measure of importance"),
        "attention_kind": Coordinate(ATTENTIONS, "the attention, or a null in its place"),
        "order": Coordinate(ERASED, "by what falling order units are erased"),
        "fraction": Coordinate(spec.fractions, "fraction of the units that is erased"),
        "intervention": Coordinate(interventions.NAMES, "what replaces the gates"),
    }


def _gallery(problem: Problem, spec: Spec, places: list[sites.Site]) -> dict[str, Coordinate]:
    """The first images, where gates with a value per position can be drawn over them."""
    images = next(iter(problem.inputs.values()))
    drawable = len(problem.inputs) == 1 and images.ndim == 4 and images.shape[1] in (1, 3)
    count = min(spec.gallery, len(images))
    if not (drawable and count and any(site.side for site in places)):
        return {}
    dims = ("gallery", "channel", "height", "width")
    shown = images[:count].double().cpu().numpy()
    axes = {name: numbered(n, name) for name, n in zip(dims[1:], shown.shape[1:], strict=True)}
    return {
        "gallery": numbered(count, "image in the gallery"),
        **axes,
        "image": Coordinate(shown, "pixel value", dims=dims),
    }


def _tell(result: xr.Dataset) -> list[str]:
    """The agreement beside its nulls, and what the interventions cost."""
    lines = []
    if "kendall_tau_mean" in result:
        for side in SIDES:
            for kind in map(str, result["importance_kind"].values):
                rows = result["kendall_tau_mean"].sel(side=side, importance_kind=kind)
                means = zip(ATTENTIONS, rows.mean("site").values, strict=True)
                shown = ", ".join(f"{w.replace('_', ' ')} {mean:+.2f}" for w, mean in means)
                lines.append(
                    f"Kendall's tau with {kind.replace('_', ' ')} {side} the gate, mean of "
                    f"{result.sizes['site']} sites: {shown}"
                )
    if "intervention_loss_mean" in result:
        for name in map(str, result["intervention"].values):
            row = result.sel(intervention=name)
            accuracy = (
                f", accuracy {float(row['intervention_accuracy_mean']):.3f}"
                if "intervention_accuracy_mean" in row
                else ""
            )
            lines.append(
                f"gates {name.replace('_', ' ')}: loss {float(row['intervention_loss_mean']):.3g}"
                f"{accuracy}, second difference "
                f"{float(row['intervention_second_difference_median']):.3g} (median)"
            )
    return lines


PROBE = Probe("attention", Spec, attention, ckpt="fmmnet8.pt")

__all__ = ["PARTS", "PROBE", "Spec", "attention"]
