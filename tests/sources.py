"""What a module imports and calls, read from its source whatever it calls things itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("checkpoints", "landscape", "analysis")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
ENTRY = re.compile(r"[\w.]+:\w+")  # of a registry
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
DYNAMIC = ("importlib.import_module", "builtins.__import__", "pkgutil.resolve_name")


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def ancestors(module: str) -> set[str]:
    """The packages that a module lies in, whose `__init__` runs before it."""
    parts = module.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes(tree: ast.AST) -> list[ast.AST]:
    return list(ast.walk(tree))


def inside_functions(tree: ast.AST) -> set[int]:
    """The ids of all nodes in a function's body."""
    return {
        id(node)
        for function in nodes(tree)
        if isinstance(function, FUNCTIONS)
        for node in ast.walk(function)
        if node is not function
    }


def _for_type_checkers(tree: ast.AST) -> set[int]:
    return {
        id(node)
        for block in nodes(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }


def imports(path: Path, *, root: Path = ROOT, at_top: bool = False) -> Iterator[str]:
    """The absolute dotted names that a file imports.

    `from a import b` gives `a.b`, whatever b is. A relative import, `import_module("a.b")` and an
    entry of a registry, the text "a.b:c", count as well; imports for type checkers do not.

    Args:
        path: of the file.
        root: the folder that its packages lie in.
        at_top: leave out the imports inside functions.
    """
    tree, package = parsed(path), ".".join(path.relative_to(root).parent.parts)
    left_out = _for_type_checkers(tree) | (inside_functions(tree) if at_top else set())
    for node in nodes(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif ENTRY.fullmatch(text_of(node)):
            yield text_of(node).replace(":", ".")
    for call in calls(tree, *DYNAMIC):
        if id(call) not in left_out and is_literal(call):
            texts = [*filter(None, map(text_of, call.args)), package]
            yield resolve_name(texts[0], texts[1]).replace(":", ".")


def text_of(node: ast.AST) -> str:
    """The text that a constant is; empty for all else."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) else ""


def is_literal(call: ast.Call) -> bool:
    """Whether the source says what a call imports."""
    return bool(call.args) and bool(text_of(call.args[0]))


def full_names(tree: ast.AST) -> dict[str, str]:
    """{name in this file: what it is called where it comes from}, of all that is imported."""
    found = {name: f"builtins.{name}" for name in ("print", "zip", "__import__")}
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def mentions(tree: ast.AST, *names: str) -> Iterator[ast.expr]:
    """Every expression that is one of these full names, however the file abbreviates it."""
    known = full_names(tree)
    for node in nodes(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, *rest = _dotted(node)
            if ".".join([known.get(first, first), *rest]) in names:
                yield node


def _dotted(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*_dotted(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else ""]


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    """Every call of what has one of these full names."""
    functions = {id(node) for node in mentions(tree, *names)}
    for node in nodes(tree):
        if isinstance(node, ast.Call) and id(node.func) in functions:
            yield node


@cache
def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """{module: modules of the three packages that it imports}, early or late, under `root`.

    An import from another package runs that package's `__init__` first, so it counts as an import
    of it. A module's own packages count only where it imports something that they define.
    """
    paths = {
        module_name(path, root): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    edges: dict[str, set[str]] = {}
    for name, path in paths.items():
        own = ancestors(name)
        targets: set[str] = set()
        for imported in imports(path, root=root):
            # The longest beginning that is a module; the rest is defined in it.
            for module in sorted({imported} | ancestors(imported), key=len, reverse=True):
                if module in paths:
                    targets |= {module} | (ancestors(module) & set(paths)) - own
                    break
        edges[name] = targets - {name}
    return edges


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
