"""A model family: its builders, and how to recognise checkpoints of it from other code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def same_name(key: str) -> str:
    """Return the key: for a family whose parameters have the same names everywhere."""
    return key


def no_options(shapes: Shapes) -> dict[str, Any] | None:
    """Return None: for a family whose options do not follow from its parameters' shapes."""
    return None


@dataclass(frozen=True)
class Family:
    """What the loader needs from a family. Register it in `checkpoints/registry.py`.

    Args:
        builders: {name: builder}; a builder returns a network.
        canonical_key: maps a parameter's name in another code base to its name here.
        options_from: maps {name: shape} to the builder's keyword arguments, or to None if they do
            not follow from the shapes.
        candidates: maps a state dict's keys to the names in `builders` that may fit; None tries
            all of them.
    """

    builders: Mapping[str, Callable[..., nn.Module]]
    canonical_key: Callable[[str], str] = same_name
    options_from: Callable[[Shapes], dict[str, Any] | None] = no_options
    candidates: Callable[[Iterable[str]], Sequence[str]] | None = None
