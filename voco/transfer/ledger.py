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


def content_hash(voxels: Iterable[bytes]) -> str:
    """Which scans a test set holds, whatever they are called: a digest of the sorted hashes of their voxels."""
    return sha256(b"".join(sorted(set(voxels)))).hexdigest()[:16]


def open_test(
    split_file: str | Path,
    *,
    config_hash: str,
    commit: str,
    test_set: str = "",
    content: str = "",
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
        content: ``content_hash`` of their scans, by which a test set is known under other names.
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
        **({"content": content} if content else {}),
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
    return looks(split_file, test_set, shared, content)


def looks(split_file: str | Path, test_set: str = "", shared: Path | None = None, content: str = "") -> int:
    """How often a test set was opened so far; 0 without a ledger.

    Args:
        split_file: whose ledger counts.
        test_set: ``test_set_hash``; "" counts every line.
        shared: folder of a second ledger, of which the lines about this test set count. A line that stands in both is
            one look.
        content: ``content_hash``. Lines that have one are told apart by it and not by names; without it, those of the
            lines about ``test_set`` count for it.
    """
    path = ledger_path(split_file)
    own = [line for line in _read(path).splitlines() if line.strip()]
    more: list[str] = []
    if shared is not None and (other := shared.resolve() / LEDGER) != path:
        more = list((Counter(_read(other).splitlines()) - Counter(own)).elements())
    about = {content} if content else {c for name, c in map(_about, [*own, *more]) if c and name == test_set}

    def same(line: str) -> bool | None:  # None: it does not say
        name, scans = _about(line)
        if scans and about:
            return scans in about
        return name == test_set if name else None

    # a line that cannot be read, or does not say, is taken for a look, but only beside the split
    return sum(not test_set or same(line) is not False for line in own) + sum(
        bool(test_set) and same(line) is True for line in more
    )


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


def _about(line: str) -> tuple[str, str]:
    """Hashes of the names and of the scans of the test set that a line is about, as far as it says."""
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError:
        return "", ""
    if not isinstance(entry, dict):
        return "", ""
    return str(entry.get("test_set", "")), str(entry.get("content", ""))
