"""Who may import whom, and what is never done, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources import (
    DYNAMIC,
    FUNCTIONS,
    ROOT,
    SOURCES,
    calls,
    circles,
    graph,
    imports,
    inside_functions,
    is_literal,
    mentions,
    parsed,
    within,
)

COMPUTED_IMPORTS = (
    "checkpoints/imported.py",
    # These resolve the entries of a registry, texts in the same file.
    "analysis/figures/registry.py",
    "checkpoints/models/resnet.py",
    "checkpoints/registry.py",
    "landscape/registry.py",
)
ONE_SYSTEM = ("fcntl", "resource", "pwd", "grp", "termios", "msvcrt", "winreg")


def files(*patterns: str) -> list[Path]:
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    assert found, f"no file matches {patterns}: the test checks nothing"
    return found


def room(module: str) -> str:
    """The probe, or the engine's part, that a module of `landscape` belongs to."""
    return module.split(".")[1] if "." in module else module


def of_one_room(edges: dict[str, set[str]]) -> list[str]:
    """Modules of `landscape.core` that a single probe uses, and the engine does not."""
    core = [name for name in edges if name.startswith("landscape.core.")]
    users = {
        module: {room(name) for name, targets in edges.items() if module in targets}
        for module in core
    }
    return [module for module, rooms in users.items() if len(rooms) < 2 and rooms != {"core"}]


def test_nothing_imports_in_a_circle() -> None:
    edges = graph()
    assert len(edges) > 100
    assert circles(edges) == []


def test_what_one_probe_alone_uses_is_in_its_room() -> None:
    assert of_one_room(graph()) == []


def test_only_a_file_of_the_users_is_imported_by_a_name_that_the_source_does_not_say() -> None:
    for path in SOURCES:
        if path.relative_to(ROOT).as_posix() not in COMPUTED_IMPORTS:
            for call in calls(parsed(path), *DYNAMIC):
                assert is_literal(call), f"{path}: {ast.unparse(call)}"


def planted(root: Path, sources: dict[str, str]) -> dict[str, set[str]]:
    for name, text in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return graph(root)


CIRCLE = ["landscape.core.plan", "landscape.core.store"]


@pytest.mark.parametrize(
    "back",
    [
        "from landscape.core import store",
        "from landscape.core.store import save",
        "import landscape.core.store as kept",
        "def f():\n    from landscape.core.store import save",
        "from . import store",
        "from .store import save",
        "from ..core.store import save",
        "import importlib\nimportlib.import_module('landscape.core.store')",
        "from importlib import import_module as get\nget('.store', __package__)",
        "from importlib import import_module\nimport_module('.store', 'landscape.core')",
        "__import__('landscape.core.store')",
        "import pkgutil\npkgutil.resolve_name('landscape.core.store:save')",
        "ENTRIES = {'store': 'landscape.core.store:save'}",
    ],
)
def test_a_circle_would_be_seen_however_it_is_written(tmp_path: Path, back: str) -> None:
    edges = planted(
        tmp_path,
        {
            "landscape/core/plan.py": back,
            "landscape/core/store.py": "from landscape.core import plan",
        },
    )
    assert circles(edges) == [CIRCLE]


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        # a name that the package's own __init__ defines
        (
            {"a/__init__.py": "from landscape.a import b", "a/b.py": "from landscape.a import f"},
            ["landscape.a", "landscape.a.b"],
        ),
        ({"a/__init__.py": "from . import b", "a/b.py": "from . import f"}, ["landscape.a.b"]),
        # the __init__ of another package, which runs before the module that is asked for
        (
            {
                "a/__init__.py": "from landscape.a import b",
                "a/b.py": "from landscape.core import plan",
                "a/c.py": "",
                "core/plan.py": "from landscape.a import c",
            },
            ["landscape.a", "landscape.a.b", "landscape.core.plan"],
        ),
        # a package whose __init__ collects its modules, which use each other one way
        ({"a/__init__.py": "from . import b, c", "a/b.py": "", "a/c.py": "from . import b"}, []),
    ],
)
def test_a_circle_through_a_package_would_be_seen(
    tmp_path: Path, sources: dict[str, str], found: list[str]
) -> None:
    edges = planted(tmp_path, {f"landscape/{name}": text for name, text in sources.items()})
    assert set(found) <= {name for circle in circles(edges) for name in circle}
    assert bool(circles(edges)) == bool(found)


def test_what_serves_one_probe_would_be_seen(tmp_path: Path) -> None:
    edges = planted(
        tmp_path,
        {
            "landscape/a/__init__.py": "from ..core import lodger, shared, store",
            "landscape/b.py": "from landscape.core import shared, store",
            "landscape/core/lodger.py": "",
            "landscape/core/shared.py": "",
            "landscape/core/store.py": "from landscape.core.plan import g",
            "landscape/core/plan.py": "",
        },
    )
    assert of_one_room(edges) == ["landscape.core.lodger"]


# All of checkpoints but what writes a file whole.
WITH_TORCH = [
    f"checkpoints.{path.stem}"
    for path in (ROOT / "checkpoints").iterdir()
    if path.stem not in ("__init__", "whole_file", "files")
]


@pytest.mark.parametrize(
    ("where", "banned", "but"),
    [
        (("analysis/**/*.py",), ("torch", "landscape", "checkpoints"), ()),
        (("checkpoints/**/*.py",), ("landscape", "analysis"), ()),
        (
            ("landscape/**/*.py",),
            ("analysis.figures", "analysis.report", "analysis.claims", "analysis.samples"),
            ("landscape/core/cli.py",),
        ),
        (("landscape/core/plan.py",), ("torch", "checkpoints"), ()),
        (("landscape/core/store.py",), ("torch", *WITH_TORCH), ()),
        (
            ("landscape/core/spaces.py", "landscape/core/directions.py"),
            ("landscape.core.plan", "landscape.core.cli", "landscape.registry"),
            (),
        ),
        (("checkpoints/data/*.py",), ("torch",), ()),
    ],
)
def test_imports_go_one_way(
    where: tuple[str, ...], banned: tuple[str, ...], but: tuple[str, ...]
) -> None:
    for path in files(*where):
        if str(path.relative_to(ROOT)) in but:
            continue
        for name in imports(path):
            assert not any(within(name, package) for package in banned), f"{path}: {name}"


def test_probes_never_import_probes() -> None:
    for name, targets in graph().items():
        for other in targets:
            if not name.startswith("landscape.") or not other.startswith("landscape."):
                continue
            rooms = {room(name), room(other)}
            allowed = (
                len(rooms) == 1
                or "core" in rooms
                or room(name) in ("registry", "study", "__main__")
            )
            assert allowed and room(other) != "study" or len(rooms) == 1, f"{name} imports {other}"


def test_optional_packages_are_imported_late_or_not_at_all() -> None:
    for path in SOURCES:
        for name in imports(path, at_top=True):
            assert not any(within(name, p) for p in ("torchvision", "timm", "PIL")), f"{path}"


def test_an_import_at_the_top_differs_from_a_late_one(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "import PIL.Image\n__import__('timm')\nif TYPE_CHECKING:\n    import pandas\n"
        "def f():\n    import torchvision\n    __import__('fcntl')\n"
    )
    assert set(imports(path, root=tmp_path, at_top=True)) == {"PIL.Image", "timm"}
    late = {"torchvision", "fcntl"}
    assert set(imports(path, root=tmp_path)) == {"PIL.Image", "timm"} | late


def test_importing_the_package_is_light() -> None:
    """Else `python -m landscape.surface` would find its own module imported already and warn."""
    code = "import sys, landscape, analysis, checkpoints; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_never_done(path: Path) -> None:
    tree = parsed(path)
    for call in calls(tree, "torch.load"):
        chosen = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert chosen.get("weights_only") == "True"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "a bare except"
        if isinstance(node, FUNCTIONS):
            for default in node.args.defaults:
                constant = default.value if isinstance(default, ast.Constant) else None
                assert not isinstance(constant, bool), (
                    f"{ast.unparse(node.args)}: a positional boolean"
                )
    for call in calls(tree, "builtins.zip"):
        assert any(word.arg == "strict" for word in call.keywords), ast.unparse(call)
    assert path.stem not in ("utils", "helpers", "common", "misc")


# What writes to the terminal, and what sets a seed for the whole process.
PRINTS = (
    *("builtins.print", "pprint.pprint", "pprint.pp", "tqdm.tqdm.write", "os.write"),
    *(f"sys.{under}{name}{under}" for name in ("stdout", "stderr") for under in ("", "__")),
)
GLOBAL_SEEDS = (
    *("torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.random.seed"),
    *("torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "numpy.random.seed", "random.seed"),
)


def test_below_the_command_line_nothing_prints_or_sets_global_seeds() -> None:
    for path in files("landscape/**/*.py"):
        if path.stem not in ("cli", "__main__") and path.parent.name != "study":
            found = [ast.unparse(node) for node in mentions(parsed(path), *PRINTS, *GLOBAL_SEEDS)]
            assert not found, f"{path}: {found}"


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "say = print",
        "import sys\nsys.stdout.write('1')",
        "from sys import stderr as out\nout.write('1')",
        "import sys as system\nwrite = system.__stdout__.write",
        "import builtins\nbuiltins.print(1)",
        "from tqdm import tqdm\ntqdm.write('1')",
        "import numpy as np\nnp.random.seed(1)",
        "import numpy.random as draws\ndraws.seed(1)",
        "from torch import manual_seed\nmanual_seed(1)",
        "def f():\n    import random\n    random.seed(1)",
    ],
)
def test_printing_and_global_seeds_would_be_seen(source: str) -> None:
    assert list(mentions(ast.parse(source), *PRINTS, *GLOBAL_SEEDS))


def test_no_import_changes_how_memory_is_kept() -> None:
    """Only commands do: the call is inside a function, not in a module's own body."""
    callers = []
    for path in SOURCES:
        tree = parsed(path)
        for call in calls(tree, "checkpoints.device.keep_freed_memory"):
            assert id(call) in inside_functions(tree), path
            callers.append(path.relative_to(ROOT).as_posix())
    commands = [
        "checkpoints/train/__main__.py",
        "landscape/core/cli.py",
        "landscape/study/__main__.py",
        "landscape/study/measure.py",
    ]
    assert sorted(set(callers)) == commands


def test_nothing_shuts_out_an_operating_system() -> None:
    """Modules that Python has on some systems only are imported nowhere at the top of a module."""
    for path in SOURCES:
        for name in imports(path, at_top=True):
            assert name.partition(".")[0] not in ONE_SYSTEM, f"{path}: {name}"
