"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new file to write, which takes the place of `path` when the block ends without an error.

    It lies in the same folder under a random name, so nothing of the user's is overwritten and no
    planted link is followed. A link at `path` keeps pointing where it does; its target is replaced.

    Raises:
        OSError: no space, or no permission; `path` is as it was.
    """
    target = path.resolve()
    # Not made of the target's name, which may be as long as names can be.
    partial = target.with_name(f".{secrets.token_hex(8)}.partial")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
