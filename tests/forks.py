"""Commands in a fork of the test process: whatever they change stays there, and its imports are reused."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence


def forked(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> subprocess.CompletedProcess:
    """``main(arguments)`` as a command: its exit status, and what it said on stdout and stderr together as ``stderr``.

    A new process would spend several seconds on imports alone.
    """
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if "torch" in sys.modules:  # threads of the parent are not here, and would be waited for
                    sys.modules["torch"].set_num_threads(1)
                sys.stderr = sys.stdout = said
                status = main(arguments)
            except SystemExit as leave:
                status = leave.code
            except BaseException:
                traceback.print_exc(file=said)
            finally:
                said.flush()
                os._exit(status if isinstance(status, int) else 1)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return subprocess.CompletedProcess(list(arguments), os.waitstatus_to_exitcode(status), "", said.read())
