"""Signals, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

START = "import os, signal, sys; from checkpoints import interrupts; "


def ended(code: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_during_import_ends_in_one_line(name: str) -> None:
    code = "sys.argv = ['-m']; interrupts.quiet_while_importing(); "
    status, said, told = ended(code + f"os.kill(os.getpid(), signal.{name}); print('went on')")
    assert (status, said) == (128 + getattr(signal, name), "")
    assert told == "Stopped before anything was begun.\n"


def test_a_package_that_is_imported_leaves_the_signals_alone() -> None:
    status, said, _ = ended(
        "before = signal.getsignal(signal.SIGTERM); import landscape; "
        "print(signal.getsignal(signal.SIGTERM) == before == signal.SIG_DFL)"
    )
    assert (status, said) == (0, "True\n")


def test_only_the_first_of_many_signals_interrupts() -> None:
    code = """
interrupts.raise_stopped()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt as stopped:
    for each in 2 * interrupts.ENDING:
        os.kill(os.getpid(), each)
    print("saved", interrupts.status(stopped))
"""
    assert ended("pass\n" + code) == (0, "saved 130\n", "")


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    """As nohup does."""
    code = "signal.signal(signal.SIGHUP, signal.SIG_IGN); interrupts.raise_stopped(); "
    status, said, _ = ended(code + "os.kill(os.getpid(), signal.SIGHUP); print('went on')")
    assert (status, said) == (0, "went on\n")
