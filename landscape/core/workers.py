"""Processes started by torchrun that share one run through its key-value store."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
from torch.distributed.rendezvous import rendezvous

from landscape.core.plan import Alone, Values, Workers

# How long a rank waits for what rank 0 prepares; torchrun itself ends a run in which a rank died.
PATIENCE = timedelta(hours=2)


class Ranks:
    """The ranks of one torchrun. Blocks are claimed from a common counter, so no rank is idle."""

    def __init__(self) -> None:
        self._store, self.rank, self.size = next(rendezvous("env://", timeout=PATIENCE))
        # Beside others in the agent's store, and apart from those of a restarted run.
        self._prefix = f"landscape/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._taken = 0
        self._waiting: set[int] = set()

    def share(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns on rank 0, for every rank; its errors are raised on every rank."""
        key = f"{self._prefix}/shared/{name}"
        if self.rank == 0:
            try:
                self._store.set(key, json.dumps({"value": make()}))
            except ValueError as error:
                self._store.set(key, json.dumps({"error": str(error)}))
                raise
        message = json.loads(self._store.get(key))
        if "error" in message:
            raise ValueError(message["error"])
        return message["value"]

    def claim(self) -> int:
        """The number of the next unclaimed block."""
        return int(self._store.add(f"{self._prefix}/claimed", 1)) - 1

    def deliver(self, block: int, values: Values) -> None:
        """Hand a measured block to rank 0."""
        buffer = io.BytesIO()
        np.savez(buffer, **values)  # type: ignore[arg-type]
        self._store.set(f"{self._prefix}/block/{block}", buffer.getvalue())

    def collect(self) -> list[tuple[int, Values]]:
        """On rank 0: the blocks delivered since the last call."""
        claimed = int(self._store.add(f"{self._prefix}/claimed", 0))
        self._waiting |= set(range(self._taken, claimed))
        self._taken = max(self._taken, claimed)
        ready = []
        for block in sorted(self._waiting):
            key = f"{self._prefix}/block/{block}"
            if self._store.check([key]):
                with np.load(io.BytesIO(self._store.get(key)), allow_pickle=False) as file:
                    ready.append((block, dict(file)))
                self._store.delete_key(key)
                self._waiting.remove(block)
        return ready


def workers_of_this_process() -> Workers:
    """The ranks that torchrun started, or one process alone."""
    return Ranks() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone()
