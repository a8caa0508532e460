"""What a network does between two real samples, or between two networks."""

from __future__ import annotations

from checkpoints.problem import Problem
from landscape.core.plan import Plan, Probe
from landscape.interpolate import networks, path_statistics, samples
from landscape.interpolate.spec import BetweenNetworks, Spec


def interpolate(problem: Problem, spec: Spec) -> Plan:
    """Outputs between real samples in pixel space, or the loss between two networks.

    Kinds of path: `same_class`, `cross_class`; as controls `random`, a line between two images
    whose pixels have been shuffled, each by a permutation of its own, and `circle`, through three
    samples. A shuffled image has no class: the network's own decision for it stands in its place.

    What is measured of each path is in `landscape.interpolate.between.measure`. All pairs are drawn
    before anything is measured, so that neither order nor interruption changes them.

    Args:
        problem: with its batch size decided.
        spec: see `Spec`.

    Returns:
        Between samples a plan with cells (pair): outputs (pair, t), statistics (pair), and by kind
        (part) their means over pairs, `_stderr` as of independent pairs. Between networks, see
        `landscape.interpolate.networks.plan`.

    Raises:
        ValueError: options that contradict each other; more pairs than there are; no labels; a
            second network of another architecture.

    Cost: a path takes one forward pass of its points, and with the Jacobian another and a
        backward pass a class.
    Source: Novak et al. 2018, arXiv:1802.08760 (Jacobian, transitions, circles); Zhang et al.
        2018, arXiv:1710.09412 (misses).
    """
    decided = spec.resolved(problem)
    t = path_statistics.grid(spec.points, spec.beyond)
    if isinstance(decided, BetweenNetworks):
        return networks.plan(problem, decided.to, decided.statistics, t, decided)
    return samples.plan(problem, t, decided)


PROBE = Probe("interpolate", Spec, interpolate)
