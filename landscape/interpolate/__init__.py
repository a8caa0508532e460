"""What a network does between two real samples, or between two networks."""

from __future__ import annotations

from checkpoints.problem import Problem
from landscape.core.plan import Plan, Probe
from landscape.interpolate import networks, path_statistics, samples
from landscape.interpolate.spec import BetweenNetworks, Spec


def interpolate(problem: Problem, spec: Spec) -> Plan:
    """Outputs between real samples in pixel space, or the loss between two networks.

    Kinds of path: `same_class`, `cross_class`; as controls `random`, a line between two images
    whose pixels have been shuffled, each with its own permutation, and `circle`, through three
    samples. A shuffled image has no class; the network's decision for it is used instead.

    `landscape.interpolate.between.measure` lists the statistics of a path. All pairs are drawn
    before anything is measured, so they depend neither on order nor on interruptions.

    Args:
        problem: with its batch size decided.
        spec: see `Spec`.

    Returns:
        Between samples a plan with cells (pair): outputs (pair, t), statistics (pair), and by kind
        (part) their means over pairs, with `_stderr` for independent pairs. Between networks, see
        `landscape.interpolate.networks.plan`.

    Raises:
        ValueError: options that contradict each other; more pairs than exist; no labels; a second
            network of another architecture.

    Cost: per path one forward pass of its points; with the Jacobian another, and one backward pass
        per class.
    Source: Novak et al. 2018, arXiv:1802.08760 (Jacobian, transitions, circles); Zhang et al.
        2018, arXiv:1710.09412 (misses).
    """
    decided = spec.resolved(problem)
    t = path_statistics.grid(spec.points, spec.beyond)
    if isinstance(decided, BetweenNetworks):
        return networks.plan(problem, decided.to, decided.statistics, t, decided)
    return samples.plan(problem, t, decided)


PROBE = Probe("interpolate", Spec, interpolate)
