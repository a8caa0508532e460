"""Code outside this package, imported because the user named it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def module_at(source: str) -> ModuleType:
    """The module called `package.module`, or at `path/to/file.py`. Its code runs.

    Whatever importing it raises is passed on.
    """
    if not source.endswith(".py"):
        return importlib.import_module(source)
    name = f"file {Path(source).resolve()}"  # no importable name, so that it hides no other module
    spec = importlib.util.spec_from_file_location(name, source)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
