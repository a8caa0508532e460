"""Checkpoints: `save`, `find` and `load` a trained network as one self-describing file."""

from __future__ import annotations

from checkpoints.loading import load
from checkpoints.network_file import (
    Checkpoint,
    build,
    complete_options,
    declared_options,
    find,
    save,
)

__all__ = ["Checkpoint", "build", "complete_options", "declared_options", "find", "load", "save"]
