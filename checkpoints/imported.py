"""Import user-defined functions by name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from checkpoints.reader import listed, one_line, reason


def module_at(source: str) -> ModuleType:
    """The module `package.module`, or the one at `path/to/file.py`. Runs its code.

    Exceptions of the import are passed on.
    """
    if not source.endswith(".py"):
        return importlib.import_module(source)
    name = f"file {Path(source).resolve()}"  # not importable, so it shadows no other module
    spec = importlib.util.spec_from_file_location(name, source)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def imported(name: str, what: str, known: Mapping[str, Any]) -> Callable[..., Any]:
    """The function named `path/to/file.py:function` or `package.module:function`.

    Raises:
        ValueError: `name` does not have this form, or there is no such function.
    """
    source, colon, function = name.rpartition(":")
    if not colon:
        raise ValueError(
            f"{what} {one_line(name, 40)!r} is not known. Known: {listed(known, 60)}; "
            "or pass path/to/file.py:function or package.module:function."
        )
    try:
        module = module_at(source)
    except Exception as error:  # the module is the user's own and may raise anything
        raise ValueError(f"{what} {name} cannot be imported: {reason(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"{what} {name}: {source} has no function {function!r}.")
    return found  # type: ignore[no-any-return]
