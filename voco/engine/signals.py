"""Clean stops: a signal asks for a checkpoint, also when only the launcher was signalled."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its launcher dies (Linux; elsewhere nothing happens).

    ``accelerate launch`` does not forward SIGTERM or SIGUSR1 and ``torchrun`` not SIGUSR1: without this a cancelled
    job would leave its workers running.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class StopRequest:
    """Remembers that SIGTERM or SIGUSR1 arrived; the loop asks at the end of each step. A context manager."""

    signals = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self.received: str | None = None
        self._previous: dict = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def __enter__(self) -> StopRequest:
        parent = os.getppid()
        self._previous = {s: signal.signal(s, self._handle) for s in self.signals}
        die_with_parent()
        if os.getppid() != parent:  # the launcher went away between the two lines above
            self.received = "SIGTERM"
        return self

    def __exit__(self, *_exc) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
