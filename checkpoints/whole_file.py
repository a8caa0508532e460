"""Files that are written whole or not at all, and names that leave room for others beside them."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Bytes of a file's name. File systems take 255; locks, training states and figures take the name of
# a file with up to 35 bytes more.
LONGEST = 220
DIGITS = 12  # hexadecimal, that stand for what was cut out of a name


def check_name(path: Path, flag: str = "--out") -> None:
    """Refuse a name that leaves no room for the files that are written beside it.

    Raises:
        ValueError: it has more than `LONGEST` bytes.
    """
    size = len(os.fsencode(path.name))
    if size > LONGEST:
        raise ValueError(
            f"{path.name[:40]}… is a name of {size} bytes; expected at most {LONGEST}, since files "
            f"beside it are named after it. Pass another {flag}."
        )


def shortened(name: str) -> str:
    """A file's name, cut to `LONGEST` bytes where it is longer, and still its own.

    The first digits of its SHA-256 stand for what is left out before the last part, its ending.
    """
    whole_name = os.fsencode(name)
    if len(whole_name) <= LONGEST:
        return name
    ending = "".join(Path(name).suffixes[-2:])[-LONGEST // 4 :]
    tail = f"-{hashlib.sha256(whole_name).hexdigest()[:DIGITS]}{ending}"
    head = whole_name[: LONGEST - len(os.fsencode(tail))].decode(errors="ignore")
    return head + tail


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
