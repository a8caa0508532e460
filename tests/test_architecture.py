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
    """The modules that a file imports; `at_top` leaves out those inside functions."""
    tree = ast.parse(path.read_text())
    inside = inside_functions(tree)
    for node in ast.walk(tree):
        if at_top and id(node) in inside:
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


@pytest.mark.parametrize(
    ("where", "banned", "but"),
    [
        (("analysis/**/*.py",), ("torch", "landscape", "checkpoints"), ()),
        (("checkpoints/**/*.py",), ("landscape", "analysis"), ()),
        (("landscape/**/*.py",), ("analysis",), ("landscape/core/cli.py",)),
        (("landscape/core/plan.py", "landscape/core/store.py"), ("torch", "checkpoints"), ()),
        (("landscape/core/spaces.py", "landscape/core/directions.py"),
         ("landscape.core.plan", "landscape.core.cli", "landscape.registry"), ()),
        (("checkpoints/data/*.py",), ("torch",), ()),
    ],
)  # fmt: skip
def test_imports_go_one_way(
    where: tuple[str, ...], banned: tuple[str, ...], but: tuple[str, ...]
) -> None:
    for path in files(*where):
        if str(path.relative_to(ROOT)) in but:
            continue
        for name in imports(path):
            assert not any(within(name, package) for package in banned), f"{path}: {name}"


def test_probes_never_import_probes() -> None:
    probes = [p for p in files("landscape/*.py") if p.stem not in ("__init__", "registry", "study")]
    for path in probes:
        for name in imports(path):
            for other in probes:
                assert not within(name, f"landscape.{other.stem}"), f"{path} imports {name}"


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
    for path in files("landscape/core/*.py", "landscape/*.py"):
        if path.stem in ("cli", "study"):
            continue
        tree = ast.parse(path.read_text())
        assert not list(calls(tree, "print")), path
        assert not list(calls(tree, "torch.manual_seed")), path
        assert not list(calls(tree, "np.random.seed")), path


def test_every_dim_of_a_probe_is_in_the_one_list() -> None:
    from landscape.core.plan import DIMS

    assert len(set(DIMS)) == len(DIMS)
    assert {"alpha", "beta", "example"} <= set(DIMS)


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
