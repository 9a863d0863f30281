"""Processes of cells: started, watched, stopped; they never outlive the grid that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

_PR_SET_PDEATHSIG = 1
_TAIL = 15


class Handle(Protocol):
    """A cell at work."""

    def poll(self) -> int | None:
        """Exit status, None while it works; negative: ended by that signal."""

    def stop(self) -> None:
        """Ask it to stop after a checkpoint."""


class Runner(Protocol):
    """Starts the process of a cell; its output goes to the end of ``log``."""

    def __call__(self, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> Handle: ...


class Process:
    """A process whose output goes to a file.

    When the grid dies, however it dies, the kernel sends it SIGTERM (Linux), and it ends with a checkpoint. It is in a
    process group of its own, so that Ctrl-C reaches the grid alone, which then asks its cells to stop.
    """

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str]):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {' '.join(argv)}\n".encode(errors="surrogateescape"))
            file.flush()
            self._process = subprocess.Popen(
                argv, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **env},
                preexec_fn=_die_with_grid if sys.platform.startswith("linux") else None, process_group=0,
            )  # fmt: skip

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)


def _die_with_grid() -> None:
    with contextlib.suppress(OSError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def wait_until_free(folder: Path, seconds: float = 120.0) -> bool:
    """Wait for a run that outlived its grid (it is writing its last checkpoint); False if it still holds the folder."""
    from voco.engine.lock import FolderLock
    from voco.errors import InputError

    end = time.monotonic() + seconds
    while True:
        try:
            with FolderLock(folder):
                return True
        except InputError:
            if time.monotonic() > end:
                return False
            time.sleep(0.5)


def last_lines(log: Path, count: int = _TAIL) -> list[str]:
    """The end of a log without progress bars, for the record of a crash."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    # a progress bar writes over itself: what it said last stands
    lines = [line.rstrip().rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line[:300] for line in lines if line.strip()][-count:]


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, for CUDA_VISIBLE_DEVICES; torch is not loaded for it."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip() and name != "-1"]
    devices = [path.name for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [str(i) for i in range(len(devices))]


def slot_environment(slot: int, jobs: int, processes: int, threads: int) -> dict[str, str]:
    """Environment of the cells in one of several slots: its own GPUs where there are any, and few CPU threads."""
    env = {"PYTHONUNBUFFERED": "1"}
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    gpus = visible_gpus()
    if jobs > 1 and gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[(slot * processes + i) % len(gpus)] for i in range(processes))
    return env
