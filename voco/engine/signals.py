"""Clean stops: a signal asks for a checkpoint, also when only the launcher was signalled."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from types import FrameType

_PR_SET_PDEATHSIG = 1
# accelerate launch sets the first, whatever it starts; torchrun the second
_SET_BY_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its launcher dies (Linux; elsewhere nothing happens).

    ``accelerate launch`` does not forward SIGTERM or SIGUSR1 and ``torchrun`` not SIGUSR1: without this a cancelled
    job would leave its workers running. Without a launcher nothing is done: the parent may be a shell, and logging out
    must not stop what ``nohup`` keeps alive.
    """
    if sys.platform.startswith("linux") and any(name in os.environ for name in _SET_BY_LAUNCHERS):
        with contextlib.suppress(OSError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class StopRequest:
    """Remembers that SIGTERM, SIGUSR1 or Ctrl-C arrived; the loop asks at the end of each step. A context manager.

    A second Ctrl-C interrupts at once. A process that waits for others in a collective cannot run a Python signal
    handler: when its launcher and the others are gone it would wait for hours and hold its GPU. A thread that the
    signal itself wakes ends it in time.

    Args:
        grace_seconds: time from the signal to the end of the process, for the step in progress and its checkpoint.
    """

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, grace_seconds: float = 900.0):
        self.received: str | None = None
        self.grace_seconds = grace_seconds
        self._previous: dict = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name

    def __enter__(self) -> StopRequest:
        parent = os.getppid()
        self._previous = {s: signal.signal(s, self._handle) for s in self.signals}
        self._over = threading.Event()
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._read, self._over), daemon=True).start()
        die_with_parent()
        if os.getppid() != parent:  # the launcher went away between the two lines above
            self.received = "SIGTERM"
        return self

    def _watch(self, wakeup: socket.socket, over: threading.Event) -> None:
        numbers = {int(s) for s in self.signals}
        while not over.is_set():
            try:
                received = wakeup.recv(64)
            except OSError:  # closed by __exit__ in between
                return
            if not received:
                return
            if numbers & set(received) and not over.wait(self.grace_seconds):
                os._exit(1)

    def __exit__(self, *_exc) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._write.close()
        self._read.close()
