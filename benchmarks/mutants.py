"""Plant one fault at a time in a module and run the tests that reach it: which go unnoticed?

    python -m benchmarks.mutants analysis/stats/sign_flip.py tests/analysis/test_stats.py

Of many faults a sample is drawn, the same every time. mutmut and cosmic-ray start Python for each,
seconds with torch, or copy the repository; here each has a fork of a process that has torch. No
file changes. Faults in what a test starts as a program of its own are not seen there.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import pickle
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

TAKEN_FOR = """Lt:LtE,Gt LtE:Lt,GtE Gt:GtE,Lt GtE:Gt,LtE Eq:NotEq NotEq:Eq Is:IsNot IsNot:Is
    In:NotIn NotIn:In Add:Sub Sub:Add Mult:Div Div:Mult FloorDiv:Mult Mod:Mult Pow:Mult And:Or
    BitAnd:BitOr BitOr:BitAnd USub:UAdd Or:And min:max max:min any:all all:any minimum:maximum
    maximum:minimum floor:ceil ceil:floor sum:mean mean:sum std:var sf:cdf cdf:sf isf:ppf
    ppf:isf isnan:isinf isfinite:isnan log:log1p exp:expm1 zeros:ones zeros_like:ones_like"""
SWAPS = dict(pair.split(":") for pair in TAKEN_FOR.split())
IMPORTED = "torch scipy.stats xarray h5netcdf matplotlib.pyplot hypothesis.extra.numpy"
OPTIONS = ["-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
DROPPED = (ast.Raise, ast.AugAssign, ast.Continue, ast.Break)
Fault = tuple[Any, str, Callable[[], None]]  # the statement, what is changed, and what changes it


def changes(node: Any, words: list[str]) -> Iterator[tuple[str, Any]]:
    """Field and new value."""
    for field in ("op", "ops", "id", "attr"):
        first, *rest = old if isinstance(old := getattr(node, field, None), list) else [old]
        name = first if isinstance(first, str) else type(first).__name__
        for new in filter(None, SWAPS.get(name, "").split(",")):
            put = new if isinstance(first, str) else getattr(ast, new)()
            yield field, [put, *rest] if isinstance(old, list) else put
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, int | float):
        yield "value", not value if isinstance(value, bool) else value + 1 if value < 10 else 9
    elif value in words[1:]:
        yield "value", words[words.index(value) - 1]
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "test", ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.comprehension) and node.ifs:
        yield "ifs", []
    for one in getattr(node, "keywords", []):
        yield "keywords", [other for other in node.keywords if other is not one]


def faults(node: Any, within: Any, words: list[str]) -> Iterator[Fault]:
    """Each that may be planted, in the order of the file."""
    for field, new in changes(node, words):
        before, old = ast.unparse(node).split("\n")[0], getattr(node, field)
        setattr(node, field, new)
        what = f"{before} → " + ast.unparse(ast.fix_missing_locations(node)).split("\n")[0]
        setattr(node, field, old)
        yield within, what, partial(setattr, node, field, new)
    for field, value in ast.iter_fields(node):
        for at, one in enumerate(block := value if isinstance(value, list) else [value]):
            called = isinstance(one, ast.Expr) and isinstance(one.value, ast.Call)
            if called or isinstance(one, DROPPED):
                put = partial(block.__setitem__, at, ast.copy_location(ast.Pass(), one))
                yield one, f"without {ast.unparse(one)}", put
            text = isinstance(one, ast.JoinedStr | ast.Raise) or field in ("annotation", "returns")
            if isinstance(one, ast.AST) and not text and ast.unparse(one)[:8] != "Literal[":
                yield from faults(one, one if isinstance(one, ast.stmt) else within, words)


class Tests:
    """A pytest plugin: runs the tests of `order`, or all and notes which reach which line."""

    def __init__(self, path: str, order: list[str] | None) -> None:
        self.path, self.order, self.now = path, order, "import"
        self.reached: dict[str, set[int]] = {self.now: set()}
        self.seconds: dict[str, float] = {}

    def trace(self, frame: Any, *_: Any) -> Any:
        """Note the line."""
        if frame.f_code.co_filename == self.path:
            self.reached[self.now].add(frame.f_lineno)
            return self.trace
        return None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave those of `order`."""
        if self.order is not None:
            named = {item.nodeid: item for item in items}
            items[:] = [named[name] for name in self.order]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """The test is the one that lines are noted for."""
        self.now, self.reached[nodeid] = nodeid, set()
        self.seconds[nodeid] = -time.perf_counter()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note its seconds."""
        self.seconds[nodeid] += time.perf_counter()


def run(tests: Tests, files: list[str], tree: ast.Module, limit: float) -> tuple[int, Any]:
    """Pytest's exit status in a fork where `tree` stands for the module; lines reached, seconds."""
    with tempfile.TemporaryFile() as noted:
        if not (child := os.fork()):
            os.setpgrp()
            signal.alarm(int(limit))
            code, read = compile(tree, tests.path, "exec"), SourceFileLoader.get_code
            SourceFileLoader.get_code = lambda module, name: (  # type: ignore[method-assign]
                code if module.path == tests.path else read(module, name)
            )
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            if tests.order is None:
                sys.settrace(tests.trace)
            status = pytest.main([*OPTIONS, *files], [tests])
            pickle.dump((tests.reached, tests.seconds), noted)
            noted.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        noted.seek(0)
        return status, None if status else pickle.load(noted)


def main() -> None:  # noqa: D103
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+", help="files, or other arguments of pytest")
    parser.add_argument("--most", type=int, default=60, help="faults")
    args = parser.parse_args()
    for name in IMPORTED.split():
        importlib.import_module(name)

    def planted(tree: ast.Module) -> list[Fault]:
        texts = [str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        words = sorted({text for text in texts if re.fullmatch("[a-z_]+", text)})
        return list(faults(tree, None, words))

    path, source = str(args.module.resolve()), args.module.read_text()
    status, noted = run(Tests(path, None), args.tests, ast.parse(source), 550)
    if status:
        sys.exit(f"{args.module}: the tests end with status {status} without a fault.")
    reached, seconds = noted
    count, left = len(planted(ast.parse(source))), 0
    drawn = sorted(random.Random(0).sample(range(count), min(count, args.most)))
    for number in drawn:
        tree = ast.parse(source)
        where, what, plant = planted(tree)[number]
        plant()
        inner = getattr(where, "body", None)
        lines = set(range(where.lineno, inner[0].lineno if inner else where.end_lineno + 1))
        names = [name for name in seconds if lines & (reached[name] | reached["import"])]
        order = sorted(names, key=seconds.__getitem__)
        limit = 20 + 3 * sum(map(seconds.__getitem__, order))
        if not order or not run(Tests(path, order), args.tests, tree, limit)[0]:
            left += 1
            print(f"{args.module}:{where.lineno}: {what} ({len(order)} tests)", flush=True)
    print(f"{args.module}: {count} faults, {len(drawn)} tried, {left} left", flush=True)


if __name__ == "__main__":
    main()
