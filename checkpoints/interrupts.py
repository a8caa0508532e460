"""Signals that end a command: one line on stderr, what was measured saved, and a known status.

While a command imports its packages there is nothing to save, and it ends at once. Afterwards the
first signal raises `Stopped`, and any further ones are ignored, so that they do not interrupt the
save that it leads to.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

# SIGHUP, where there is one, is what a closed terminal sends.
ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Stopped(KeyboardInterrupt):
    """A signal has ended the command.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def raise_stopped() -> None:
    """From now on, let the first signal that ends a command raise `Stopped`."""
    for each in ENDING:
        if signal.getsignal(each) != signal.SIG_IGN:  # nohup and shells ignore some for a command
            signal.signal(each, _stop)


def quiet_while_importing() -> None:
    """For `python -m`: end in one line where a signal comes before the command has begun."""
    if sys.argv[:1] == ["-m"]:  # so Python calls it until the module itself is found
        for each in ENDING:
            if signal.getsignal(each) != signal.SIG_IGN:
                signal.signal(each, _end)


def status(stopped: KeyboardInterrupt) -> int:
    """The exit status: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return stopped.status if isinstance(stopped, Stopped) else 128 + signal.SIGINT


def _stop(number: int, frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"Stopped before anything was begun.\n")
    os._exit(128 + number)
