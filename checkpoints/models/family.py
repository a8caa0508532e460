"""A model family: its builders, and how files that other code saved are recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def same_name(key: str) -> str:
    """The key itself: for a family whose parameters have one name only."""
    return key


def no_options(shapes: Shapes) -> dict[str, Any] | None:
    """None: for a family whose options do not follow from the shapes of its parameters."""
    return None


@dataclass(frozen=True)
class Family:
    """What the loader asks of a family; one line in `checkpoints.registry.FAMILIES` registers it.

    Args:
        builders: {name: builder}; a builder returns a network.
        canonical_key: from a parameter's name in another code base to its name here.
        options_from: from {name: shape} to the builder's keyword arguments; None where the shapes
            do not tell.
        candidates: from a state dict's keys to the names in `builders` that may fit; None tries
            all of them.
    """

    builders: Mapping[str, Callable[..., nn.Module]]
    canonical_key: Callable[[str], str] = same_name
    options_from: Callable[[Shapes], dict[str, Any] | None] = no_options
    candidates: Callable[[Iterable[str]], Sequence[str]] | None = None
