"""Where the files of a data set lie: looked for in folders, else downloaded and verified."""

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
TIMEOUT = 30.0  # seconds without an answer


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
    """The first of `names` in the folders of the data set; downloaded where none is there.

    Looked for in `root`, in the folder that the environment variable LANDSCAPE_DATA names (in
    each also in its subfolder `dataset`), in `packaged`, in `~/.cache/cnn-landscape/<dataset>`.
    A download goes to the subfolder `dataset` of the first of root, LANDSCAPE_DATA and
    `~/.cache/cnn-landscape`. It gets its name only when it is whole and `check` let it pass, so
    two processes may download at once and a killed one leaves nothing that looks finished.

    Args:
        dataset: the name of the data set and of its subfolder.
        names: files or folders, any of which will do; the first ones are preferred.
        download: the address of a file that will do; its last part is the file's name.
        check: raises ValueError, with the reason, for a file that is not the right one.
        root: the folder of `--data-root`.
        packaged: folders in which the system installs the data set.
        remedy: what to do, up to and with the `put` before `FILE in FOLDER`.

    Raises:
        ValueError: none of `names` is there and the download failed or was refused.
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
            f"{download} could not be fetched ({' '.join(str(error).split())}). {remedy} "
            f"{file.name} in {folder} and pass --data-root {folder}."
        ) from error
    return file


def check_md5(file: Path, expected: str) -> None:
    """Raise ValueError unless the file's MD5, the digest that its authors published, is this."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise ValueError(f"its MD5 is {found}; expected {expected}")


def read_members(source: Path, folder: str, names: Collection[str]) -> dict[str, bytes]:
    """Those of the named files that exist in a folder, or in `folder` of a packed archive.

    Nothing is unpacked to disk, so no member can be written anywhere.

    Args:
        source: a folder, which is read itself, or a tar.gz file.
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
                name: (source / name).read_bytes() for name in names if (source / name).exists()
            }
        with tarfile.open(source, "r|gz") as archive:
            for member in archive:
                parent, _, name = member.name.removeprefix("./").rpartition("/")
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is not None and parent == folder and name in names:
                    found[name] = stream.read()
                if len(found) == len(names):
                    break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(
            f"{source} cannot be read ({' '.join(str(error).split())}). Delete it and run again to "
            "fetch it anew."
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
        error.close()  # it holds the connection
        raise
    finally:
        partial.unlink(missing_ok=True)
