"""One writer per run folder: a second run on it would mix two curves and delete the other's checkpoints."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from voco.errors import InputError
from voco.files import sweep

_NAME = ".lock"


class FolderLock:
    """Holds a run folder for this process. A context manager.

    The lock goes when the process ends, however it ends, and is not inherited by the loader's processes. The file
    stays: removing it would let two runs lock two files of one name.

    What a killed run left half written in the folder is removed.

    Args:
        folder: is created.

    Raises:
        InputError: another process holds it, on entering.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / _NAME
        self._file = None

    def __enter__(self) -> FolderLock:
        try:
            import fcntl
        except ImportError:  # Windows: two runs on one folder stay the user's care
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            self._file = None
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(
                    f"{self.path.parent} is in use by another run (process {holder}); wait for it, stop it, or choose "
                    "another --out"
                ) from None
            return self  # some network file systems have no locks
        self._file.truncate(0)
        self._file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        sweep(self.path.parent)
        return self

    def __exit__(self, *_exc) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
