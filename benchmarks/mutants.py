"""Plant one fault at a time in a module and run the tests that reach it: which go unnoticed?

    python -m benchmarks.mutants analysis/stats/sign_flip.py tests/analysis/test_stats.py

Of many faults a sample is drawn, always the same. Each runs in a fork of a process that has torch,
which takes seconds to import, and no file changes. Faults in what a test starts as a program of its
own are not seen there.
"""

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
from functools import partial
from importlib.machinery import SourceFileLoader
from itertools import accumulate
from pathlib import Path

import pytest

TAKEN_FOR = """Lt:LtE,Gt LtE:Lt,GtE Gt:GtE,Lt GtE:Gt,LtE Eq:NotEq NotEq:Eq Is:IsNot IsNot:Is
    In:NotIn NotIn:In Add:Sub Sub:Add Mult:Div Div:Mult FloorDiv:Mult Mod:Mult Pow:Mult And:Or
    BitAnd:BitOr BitOr:BitAnd USub:UAdd Or:And min:max max:min any:all all:any minimum:maximum
    maximum:minimum floor:ceil ceil:floor sum:mean mean:sum std:var sf:cdf cdf:sf isf:ppf ppf:isf
    isnan:isinf isfinite:isnan log:log1p exp:expm1 zeros:ones zeros_like:ones_like"""
SWAPS = dict(pair.split(":") for pair in TAKEN_FOR.split())
DROPPED = (ast.Raise, ast.AugAssign, ast.Continue, ast.Break)
IMPORTED = "torch scipy.stats xarray h5netcdf matplotlib.pyplot hypothesis.extra.numpy"
OPTIONS = ["-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def changes(node, words):
    """Field and new value, each a fault of one syntax node."""
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
    for field in ("keywords", "ifs"):
        for one in getattr(node, field, []):
            yield field, [other for other in getattr(node, field) if other is not one]


def faults(node, within, words):
    """Statement, what is changed in it, and a call that changes it; in the order of the file."""
    for field, new in changes(node, words):
        before, old = ast.unparse(node).split("\n")[0], getattr(node, field)
        setattr(node, field, new)
        after = ast.unparse(ast.fix_missing_locations(node)).split("\n")[0]
        setattr(node, field, old)
        yield within, f"{before} → {after}", partial(setattr, node, field, new)
    for field, value in ast.iter_fields(node):
        for at, one in enumerate(block := value if isinstance(value, list) else [value]):
            if (
                isinstance(one, DROPPED)
                or isinstance(one, ast.Expr)
                and type(one.value) is ast.Call
            ):
                put = partial(block.__setitem__, at, ast.copy_location(ast.Pass(), one))
                yield one, f"without {ast.unparse(one)}", put
            text = isinstance(one, ast.JoinedStr | ast.Raise) or field in ("annotation", "returns")
            if isinstance(one, ast.AST) and not text and ast.unparse(one)[:8] != "Literal[":
                yield from faults(one, one if isinstance(one, ast.stmt) else within, words)


class _Tests:
    """A pytest plugin: runs the tests of `order`, or all and notes which reach which line."""

    def __init__(self, path, order):
        self.path, self.order, self.now = path, order, "import"
        self.reached, self.seconds = {self.now: set()}, {}

    def trace(self, frame, *_):
        if frame.f_code.co_filename == self.path:
            self.reached[self.now].add(frame.f_lineno)
            return self.trace
        return None

    def pytest_collection_modifyitems(self, items):
        if self.order is not None:
            named = {item.nodeid: item for item in items}
            items[:] = [named[name] for name in self.order]

    def pytest_runtest_logstart(self, nodeid):
        self.now, self.reached[nodeid], self.seconds[nodeid] = nodeid, set(), -time.perf_counter()

    def pytest_runtest_logfinish(self, nodeid):
        self.seconds[nodeid] += time.perf_counter()


def run(tests, files, tree, limit):
    """Pytest's status in a fork where `tree` stands for the module; seconds, lines reached."""
    with tempfile.TemporaryFile() as noted:
        if not (child := os.fork()):
            signal.alarm(int(limit))
            code, plain = compile(tree, tests.path, "exec"), SourceFileLoader.get_code
            SourceFileLoader.get_code = lambda module, name: (
                code if module.path == tests.path else plain(module, name)
            )
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            sys.settrace(tests.trace if tests.order is None else None)
            status = pytest.main([*OPTIONS, *files], [tests])
            noted.write(pickle.dumps((tests.seconds, tests.reached)))
            noted.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        noted.seek(0)
        return status, None if status else pickle.load(noted)


def main():
    """Print the faults that are left, and how many there are."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+", help="their files")
    parser.add_argument("--most", type=int, default=60, help="faults")
    parser.add_argument("--seconds", type=float, default=30, help="of tests a fault")
    args = parser.parse_args()
    for name in IMPORTED.split():
        importlib.import_module(name)
    path, source = str(args.module.resolve()), args.module.read_text()
    texts = [str(node.value) for node in ast.walk(ast.parse(source)) if hasattr(node, "value")]
    words = sorted({text for text in texts if re.fullmatch("[a-z_]+", text)})
    status, noted = run(_Tests(path, None), args.tests, ast.parse(source), 550)
    if status:
        sys.exit(f"{args.module}: the tests end with status {status} without a fault.")
    seconds, reached = noted
    count, left = len(list(faults(ast.parse(source), None, words))), 0
    drawn = sorted(random.Random(0).sample(range(count), min(count, args.most)))
    for number in drawn:
        tree = ast.parse(source)
        where, what, plant = list(faults(tree, None, words))[number]
        plant()
        inner = getattr(where, "body", None)
        lines = set(range(where.lineno, inner[0].lineno if inner else where.end_lineno + 1))
        names = [name for name in seconds if lines & (reached[name] | reached["import"])]
        order = sorted(names, key=seconds.__getitem__)  # the fastest first
        within = [sum_ <= args.seconds for sum_ in accumulate(map(seconds.__getitem__, order))]
        order = order[: sum(within)]
        if not order or not run(_Tests(path, order), args.tests, tree, 20 + 5 * args.seconds)[0]:
            left += 1
            print(f"{args.module}:{where.lineno}: {what} ({len(order)} tests)", flush=True)
    print(f"{args.module}: {count} faults, {len(drawn)} tried, {left} left", flush=True)


if __name__ == "__main__":
    main()
