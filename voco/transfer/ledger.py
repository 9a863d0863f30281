"""Every look at a test set is written down beside its split: the more looks, the less a test figure is worth."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from voco.errors import InputError

LEDGER = "test_ledger.jsonl"


def ledger_path(split_file: str | Path) -> Path:
    """``test_ledger.jsonl`` in the folder of a split file."""
    return Path(split_file).resolve().parent / LEDGER


def test_set_hash(cases: Iterable[str]) -> str:
    """Which test set it is: a digest of the sorted case ids, so that looks can be told apart by set."""
    text = "\n".join(sorted(set(cases)))
    return sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


test_set_hash.__test__ = False  # its name looks like a test to pytest


def open_test(
    split_file: str | Path,
    *,
    config_hash: str,
    commit: str,
    test_set: str = "",
    shared: Path | None = None,
    **facts: str | int | float,
) -> int:
    """Write down that a test set is opened, before it is.

    The line is appended under a lock and in one write, so that runs that look at the same moment all count, on one
    machine and on file systems that lock over a network.

    Args:
        split_file: whose test part is opened; the ledger lies beside it.
        config_hash: of the settings of the run.
        commit: of the code.
        test_set: ``test_set_hash`` of the cases.
        shared: folder of a second ledger that gets the same line, so that runs with splits of their own know of each
            other; one that cannot be written is left alone.
        facts: more for the line, e.g. ``out`` and ``task``.

    Returns:
        Looks so far, this one counted: those at the same test set, where the lines say which; see ``looks``.

    Raises:
        InputError: the ledger cannot be written or read.
    """
    path = ledger_path(split_file)
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "config_hash": config_hash,
        "test_set": test_set,
        **facts,
    }
    line = json.dumps(entry, ensure_ascii=True) + "\n"
    try:
        _append(path, line)
    except OSError as error:
        raise InputError(
            f"the test set cannot be opened: its ledger {path} cannot be written ({error.strerror}); give the split "
            "file from a folder that can be written to"
        ) from None
    if shared is not None and (other := shared.resolve() / LEDGER) != path:
        with contextlib.suppress(OSError):
            _append(other, line)
    return looks(split_file, test_set, shared)


def looks(split_file: str | Path, test_set: str = "", shared: Path | None = None) -> int:
    """How often a test set was opened so far; 0 without a ledger.

    Args:
        split_file: whose ledger counts.
        test_set: ``test_set_hash``; "" counts every line.
        shared: folder of a second ledger, of which the lines about this test set count. A line that stands in both is
            one look.
    """
    path = ledger_path(split_file)
    found = _count(_read(path), test_set)
    if shared is not None and (other := shared.resolve() / LEDGER) != path:
        elsewhere = Counter(line for line in _read(other).splitlines() if test_set and _test_set(line) == test_set)
        found += (elsewhere - Counter(_read(path).splitlines())).total()
    return found


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        _lock(descriptor)
        size = os.fstat(descriptor).st_size
        # a writer that died half-way leaves no end of line; its look counts all the same
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (("\n" if torn else "") + line).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _lock(descriptor: int) -> None:
    # on a file system without locks O_APPEND alone keeps lines whole
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _count(text: str, test_set: str) -> int:
    """Lines about this test set; those that cannot be read or do not say which set count too."""
    found = 0
    for line in text.splitlines():
        if line.strip():
            other = _test_set(line)
            found += not (test_set and other and other != test_set)
    return found


def _test_set(line: str) -> str:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError:
        return ""
    return str(entry.get("test_set", "")) if isinstance(entry, dict) else ""
