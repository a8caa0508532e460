"""Which of the terms of spatial attention matters in a trained network."""

from __future__ import annotations

import xarray as xr

from checkpoints.models.spatial_attention import TERMS
from checkpoints.problem import Problem
from landscape.core.plan import Plan, Probe
from landscape.core.spaces import Weights
from landscape.core.summary import declared
from landscape.core.variables import Coordinate, of_examples
from landscape.terms.measure import Measurement, calls
from landscape.terms.spec import Spec


def terms(problem: Problem, spec: Spec) -> Plan:
    """What each term of spatial attention contributes to the maps, and to loss and accuracy.

    The terms add up to the logits E1 + E2 + E3 + E4 (see `SpatialAttention`). The softmax sees
    differences between keys only, so a term's size is its variance over them. Means over heads
    and queries, for each example and layer:

    - `variance_share`: Var_k(E_j) / sum_i Var_k(E_i); terms may cancel, so a large share is no
      proof of influence.
    - `removal_divergence`: KL(A || A without E_j), which is.
    - `gradient_norm`: of the loss in E_j, over all heads, queries and keys; NaN where the network
      records no gradient (no_grad, detach).
    - `entropy`; `query_dependence`, the Jensen-Shannon divergence of a query's map from the mean
      map of all queries, 0 for 0010; `image_dependence`, of its map from the same query's in
      another image, 0 for 0001; `distance` to what is attended to, in positions of the layer.

    And `setting_loss`, `setting_accuracy` with the terms of each setting left and the others
    masked, in all layers at once and without training anew. A network adapts to the terms it is
    trained with, so this is not what it would lose if trained without them.

    Args:
        problem: with its batch size decided; its network contains `SpatialAttention`.
        spec: see `Spec`.

    Returns:
        A plan with the dim `example`, and over the examples means with `_stderr` and quantiles. A
        term that a layer does not have is NaN. A module that is called twice is two layers.

    Raises:
        ValueError: the network has no spatial attention.

    Cost: 18 forward passes and one backward pass with four terms, fewer with fewer; the memory of
    four maps per layer.
    Source: Zhu et al. 2019, arXiv:1904.05873, section 4 (terms removed by training anew).
    """
    space = Weights(problem)
    layers = calls(space)
    if not layers:
        raise ValueError(
            "the network has no spatial attention, so no terms. One that ships has: "
            "spatial_resnet18.pt."
        )
    probe = Measurement(space, layers, spec)
    coords = of_examples(problem) | {
        "layer": Coordinate(list(layers), "layer"),
        "term": Coordinate(list(TERMS), "term"),
        "setting": Coordinate(probe.settings, "terms left"),
    }
    return Plan(
        probe="terms",
        spec=spec,
        provenance=problem.fingerprints(),
        coords=coords,
        variables=probe.variables | declared(probe.variables, probe.variables, {"example": ""}),
        walk=("example",),
        measure=probe.measure,
        block=problem.batch_size or len(problem),
        watch="setting_loss",
        finish=probe.finish,
        tell=_tell,
    )


def _tell(result: xr.Dataset) -> list[str]:
    """The share and the divergence of each term, and the loss without some of them."""
    lines = []
    for name in ("variance_share", "removal_divergence"):
        means = result[f"{name}_mean"].mean("layer").dropna("term")
        shown = ", ".join(f"{t} {float(means.sel(term=t)):.3g}" for t in means["term"].values)
        if shown:  # else no term: the setting 0000
            lines.append(f"{result[name].attrs['long_name']}, mean over layers: {shown}")
    for name in ("setting_loss", "setting_accuracy"):
        if name in result:
            pairs = zip(result["setting"].values, result[f"{name}_mean"].values, strict=True)
            lines.append(
                f"{result[name].attrs['long_name']}: " + ", ".join(f"{s} {v:.3g}" for s, v in pairs)
            )
    return lines


PROBE = Probe("terms", Spec, terms, ckpt="spatial_resnet18.pt")
