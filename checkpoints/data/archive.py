"""Find the files of a data set in local folders, or download and verify them."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

VARIABLE = "LANDSCAPE_DATA"
TIMEOUT = 30.0  # seconds without a response
LARGEST = 2**28  # bytes of a member: ten times those of the largest of CIFAR


def obtain(
    dataset: str,
    names: tuple[str, ...],
    *,
    download: str,
    check: Callable[[Path], object],
    root: Path | None = None,
    packaged: tuple[Path, ...] = (),
    remedy: str = "Put",
) -> Path:
    """The first of `names` in the data set's folders; downloaded if none of them exists.

    The folders, in this order: `root` and `root/<dataset>`, the same two for the environment
    variable LANDSCAPE_DATA, `packaged`, and `~/.cache/cnn-landscape/<dataset>`. A download goes to
    the subfolder `dataset` of the first of root, LANDSCAPE_DATA and `~/.cache/cnn-landscape`. It
    gets its final name only after it is complete and has passed `check`. So two processes may
    download at once, and a killed one leaves nothing that looks finished.

    Args:
        dataset: the name of the data set and of its subfolder.
        names: alternative files or folders, in order of preference.
        download: the URL of one of these files; its last part is the file's name.
        check: raises ValueError, with the reason, if a file is not the right one.
        root: the folder of `--data-root`.
        packaged: folders in which the system installs the data set.
        remedy: what the user can do, up to and including the `put` before `FILE in FOLDER`.

    Raises:
        ValueError: none of `names` exists, and the download failed or did not pass `check`.
    """
    cache = Path.home() / ".cache" / "cnn-landscape"
    variable = os.environ.get(VARIABLE)
    given = [base for base in (root, Path(variable) if variable else None) if base is not None]
    places = [place for base in given for place in (base, base / dataset)]
    places = list(dict.fromkeys([*places, *packaged, cache / dataset]))
    for place in places:
        for name in names:
            if (place / name).exists():
                return place / name
    folder = [*given, cache][0] / dataset
    file = folder / download.rpartition("/")[2]
    try:
        _fetch(download, file, check)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ValueError(
            f"{dataset}: {' or '.join(names)} is in none of {', '.join(map(str, places))}, and "
            f"{download} could not be downloaded ({' '.join(str(error).split())}). {remedy} "
            f"{file.name} in {folder} and pass --data-root {folder}."
        ) from error
    return file


def check_md5(file: Path, expected: str) -> None:
    """Raise ValueError unless the file has the MD5 digest that its authors published."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise ValueError(f"its MD5 is {found}; expected {expected}")


def read_members(source: Path, folder: str, names: Collection[str]) -> dict[str, bytes]:
    """The contents of those named files that exist in a folder, or in `folder` of an archive.

    Nothing is unpacked to disk, so an archive cannot write files.

    Args:
        source: a folder, or a tar.gz file.
        folder: the folder inside the archive.
        names: file names without folder.

    Raises:
        ValueError: a file or the archive cannot be read.

    Cost: one pass over the archive; the named files in memory.
    """
    found: dict[str, bytes] = {}
    try:
        if source.is_dir():
            return {
                name: (source / name).read_bytes() for name in names if (source / name).is_file()
            }
        with tarfile.open(source, "r|gz") as archive:
            for member in archive:
                parent, _, name = member.name.removeprefix("./").rpartition("/")
                if not member.isreg() or parent != folder or name not in names:
                    continue
                if member.size > LARGEST:
                    raise ValueError(
                        f"{source}: {name} says that it has {member.size} bytes; "
                        f"expected at most {LARGEST}. Get the archive again."
                    )
                stream = archive.extractfile(member)
                found[name] = stream.read() if stream is not None else b""
                if len(found) == len(names):
                    break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(
            f"{source} cannot be read ({' '.join(str(error).split())}). Delete it, and run again "
            "to download it."
        ) from error
    return found


def _fetch(address: str, file: Path, check: Callable[[Path], object]) -> None:
    partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as stream:
                shutil.copyfileobj(response, stream)
            length = response.headers["Content-Length"]
        size = partial.stat().st_size
        if length is not None and size != int(length):
            raise ValueError(f"it ended after {size} of {length} bytes")
        check(partial)
        partial.replace(file)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection open
        raise
    finally:
        partial.unlink(missing_ok=True)
