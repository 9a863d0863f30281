from __future__ import annotations

import subprocess
import sys

import pytest

from voco.engine.lock import FolderLock
from voco.errors import InputError

HOLD = "import sys, time\nfrom pathlib import Path\nfrom voco.engine.lock import FolderLock\n"
HOLD += "with FolderLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    folder = tmp_path / "runs" / "x"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"in use by another run .process {first.pid} on "), FolderLock(folder):
            pass
    finally:
        first.kill()  # no chance to clean up
        first.wait()
    with FolderLock(folder), FolderLock(tmp_path / "other"):
        pass
