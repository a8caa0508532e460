"""Who may import whom, and what is never done, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("checkpoints", "landscape", "analysis")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def inside_functions(tree: ast.AST) -> set[int]:
    """The ids of all nodes that stand in a function's body."""
    return {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }


def imports(path: Path, *, at_top: bool = False) -> Iterator[str]:
    """The modules that a file imports; `at_top` leaves out those inside functions.

    Those for type checkers alone are left out."""
    tree = ast.parse(path.read_text())
    inside = inside_functions(tree)
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if (at_top and id(node) in inside) or id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def files(*patterns: str) -> list[Path]:
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    assert found, f"no file matches {patterns}: the test checks nothing"
    return found


def graph(root: Path) -> dict[str, set[str]]:
    """{module: modules of the three packages that it imports}, early or late, under `root`."""
    paths = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    return {
        name: {other for other in imports(path) if other in paths and other != name}
        - {name.rpartition(".")[0]}
        for name, path in paths.items()
    }


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Every group of modules that import each other, in however many steps."""
    reach = {name: set(targets) for name, targets in edges.items()}
    for middle in edges:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in edges
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


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
    edges = graph(ROOT)
    assert len(edges) > 100
    assert circles(edges) == []


def test_what_one_probe_alone_uses_is_in_its_room() -> None:
    assert of_one_room(graph(ROOT)) == []


def planted(root: Path, sources: dict[str, str]) -> dict[str, set[str]]:
    for name, text in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return graph(root)


def test_a_circle_and_a_lodger_would_be_seen(tmp_path: Path) -> None:
    edges = planted(
        tmp_path,
        {
            "landscape/a/__init__.py": "from landscape.core import lodger, shared, store",
            "landscape/b.py": "from landscape.core import shared, store",
            "landscape/core/lodger.py": "",
            "landscape/core/shared.py": "",
            "landscape/core/store.py": "def f():\n    from landscape.core.plan import g",
            "landscape/core/plan.py": "from landscape.core import store",
        },
    )
    assert circles(edges) == [["landscape.core.plan", "landscape.core.store"]]
    assert of_one_room(edges) == ["landscape.core.lodger"]


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
        (("landscape/core/plan.py", "landscape/core/store.py"), ("torch", "checkpoints"), ()),
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
    for name, targets in graph(ROOT).items():
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


def test_importing_the_package_is_light() -> None:
    """Else `python -m landscape.surface` would find its own module imported already and warn."""
    code = "import sys, landscape, analysis, checkpoints; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_never_done(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for call in calls(tree, "torch.load"):
        chosen = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert chosen.get("weights_only") == "True"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "a bare except"
        if isinstance(node, ast.FunctionDef):
            for default in node.args.defaults:
                constant = default.value if isinstance(default, ast.Constant) else None
                assert not isinstance(constant, bool), f"{node.name} has a positional boolean"
    for call in calls(tree, "zip"):
        assert any(word.arg == "strict" for word in call.keywords), ast.unparse(call)
    assert path.stem not in ("utils", "helpers", "common", "misc")


def test_below_the_command_line_nothing_prints_or_sets_global_seeds() -> None:
    for path in files("landscape/**/*.py"):
        if path.stem == "cli" or path.parent.name == "study":
            continue
        tree = ast.parse(path.read_text())
        assert not list(calls(tree, "print")), path
        assert not list(calls(tree, "torch.manual_seed")), path
        assert not list(calls(tree, "np.random.seed")), path


def test_no_import_changes_how_memory_is_kept() -> None:
    """Only commands do: the call stands inside a function, in no module's own body."""
    callers = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        inside = inside_functions(tree)
        for call in calls(tree, "keep_freed_memory"):
            assert id(call) in inside, path
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
            assert name not in ("fcntl", "resource", "pwd", "grp", "msvcrt", "winreg"), f"{path}"
