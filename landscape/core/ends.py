"""Further networks and directions: from files, or handed over in Python."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from checkpoints import checkpoint, loading, reader
from checkpoints.problem import Problem, Tensors, digest
from landscape.core import direction_files, directions
from landscape.core.spaces import Space, log

LENGTH = 12  # hexadecimal digits that name what was handed over


def taken(problem: Problem, spec: Mapping[str, Any]) -> tuple[Problem, dict[str, Any]]:
    """A problem that carries the networks and directions given as objects in a spec's arguments.

    Args:
        problem: any.
        spec: arguments of a Spec. `to`, and each of `snapshots`, may be a module, a Problem or a
            state dict, `directions` a direction, {name: tensor}, or a list of them. A text that
            names each by its content takes its place, and is what the result records.

    Raises:
        ValueError: an object of another kind.
    """
    named = dict(spec)
    handed = dict(problem.handed)
    given = named.get("directions")

    def name_of(what: str, network: Any) -> Any:
        if isinstance(network, Problem):
            network = network.model
        if isinstance(network, nn.Module):
            network = network.state_dict()
        if not isinstance(network, Mapping):
            return network
        state = _tensors(what, network)
        name = f"network {digest(state)[:LENGTH]}"
        handed[name] = state
        return name

    if "to" in named:
        named["to"] = name_of("to", named["to"])
    if isinstance(snapshots := named.get("snapshots"), Sequence) and not isinstance(snapshots, str):
        named["snapshots"] = [name_of("snapshots", each) for each in snapshots]
    if isinstance(given, Mapping):
        given = [given]
    if isinstance(given, Sequence) and not isinstance(given, str):
        drawn = [_tensors("directions", each) for each in given]
        named["directions"] = f"directions {_digest_of_all(drawn)[:LENGTH]}"
        handed[named["directions"]] = drawn
    return replace(problem, handed=handed), named


def network(space: Space, name: str) -> tuple[Tensors, str, str]:
    """Another network of the same architecture, such as the second of a line.

    Args:
        space: whose origin is the network that it is compared with.
        name: of a checkpoint, or of what was handed over.

    Returns:
        Its tensors as those of `space.origin`, the name for labels, and the SHA-256 of its content.

    Raises:
        ValueError: there is none, or it is of another architecture or normalisation.
    """
    problem = space.problem
    if name in problem.handed:
        state = problem.handed[name]
        end = loading.end_of(state, f"to ({name})", space.origin, space.tensors)
        found, sha256 = name, digest(state)
    else:
        known = problem.provenance.get("checkpoint", {})
        weights = problem.provenance.get("source", {}).get("weights")
        end = loading.load_end(
            name,
            space.origin,
            known,
            space.tensors,
            weights=weights,
            network=problem.model,
            say=log.warning,
        )
        path = checkpoint.find(name)
        found, sha256 = path.name, reader.sha256(path)
    directions.check(end, space.origin)
    return {n: end[n].to(v) for n, v in space.origin.items()}, found, sha256


def stored(space: Space, name: str) -> tuple[list[Tensors], str]:
    """The directions of a file, or those handed over, and the SHA-256 of their content."""
    if name not in space.problem.handed:
        path = Path(name)
        return direction_files.load(path, space.origin), reader.sha256(path)
    drawn = space.problem.handed[name]
    for each in drawn:
        directions.check(each, space.origin)
    fitted = [{n: each[n].to(v) for n, v in space.origin.items()} for each in drawn]
    return fitted, _digest_of_all(drawn)


def _digest_of_all(handed: Sequence[Tensors]) -> str:
    return hashlib.sha256("".join(map(digest, handed)).encode()).hexdigest()


def _tensors(what: str, given: Any) -> Tensors:
    if not isinstance(given, Mapping) or not all(isinstance(v, Tensor) for v in given.values()):
        raise ValueError(
            f"{what}: found a {type(given).__name__}; expected tensors by name, such as a state "
            "dict, or the name of a file."
        )
    return {str(name): value.detach() for name, value in given.items()}
