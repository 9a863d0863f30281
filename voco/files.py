"""The one way to write a file: beside its place under a name of its own, synced, then renamed, whole or not at all.

A reader, another job of an array, and the next start after a kill see the old file or the new one. What a killed
process leaves beside is removed by ``sweep`` at the next start, unless the process that writes it may still live.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPORARY = ".writing-"
# A writer on another machine cannot be asked whether it lives; nothing takes longer to write than this.
_STALE_SECONDS = 6 * 3600


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Where to write a file that takes its name when the block ends, and does not where it fails.

    Args:
        path: the file; its folder is made if missing.

    Yields:
        A path in the same folder, of a name that no search for files of its kind finds.

    Raises:
        OSError: the folder cannot be written, or has no space left.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
        sync(path.parent)


def write_together(files: Mapping[Path, bytes], before: Callable[[], None] = lambda: None) -> None:
    """Write files that belong together: all are on disk before the first one takes its name, in the order given.

    Args:
        files: contents by path.
        before: called between the two.
    """
    places = [(_beside(path), path, data) for path, data in files.items()]
    try:
        for temporary, _, data in places:
            temporary.write_bytes(data)
            sync(temporary)
        before()
        for temporary, path, _ in places:
            os.replace(temporary, path)
    finally:
        for temporary, _, _ in places:
            _remove(temporary)


def write_bytes(path: str | Path, *parts: bytes) -> Path:
    """Write a file, whole or not at all."""
    with whole(path) as place, open(place, "xb") as file:
        file.writelines(parts)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write a file of text, whole or not at all."""
    return write_bytes(path, encoded(text))


def write_json(path: str | Path, value: object, *, indent: int | None = None, default=None, nan: bool = True) -> Path:
    """Write JSON, whole or not at all.

    Args:
        path: the file.
        value: what JSON can hold.
        indent: spaces a level; one line without.
        default: for what JSON cannot hold, see ``json.dumps``.
        nan: whether NaN and infinities are allowed.
    """
    return write_text(path, json.dumps(value, indent=indent, default=default, allow_nan=nan) + ("\n" if indent else ""))


def write_rows(path: str | Path, rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV, whole or not at all; the first row holds the names of the columns."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return write_text(path, text.getvalue())


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or one that was cut off."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def encoded(text: str) -> bytes:
    """Text as it is written: UTF-8; names of files, which need not be text, keep their bytes as backslashes."""
    return text.encode("utf-8", errors="backslashreplace")


def sync(path: str | Path) -> None:
    """Have what was written of a file, or which files a folder holds, on the disk.

    Raises:
        OSError: as of ``os.fsync``; some network file systems cannot sync a folder.
    """
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def sweep(folder: str | Path) -> None:
    """Remove what processes that were killed left beside the files of a folder, at any depth."""
    for inside, _, names in os.walk(folder):
        for path in (Path(inside) / name for name in names if name.startswith(TEMPORARY)):
            with contextlib.suppress(OSError):
                if not _may_be_written(path):
                    path.unlink()


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{TEMPORARY}{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink()


def _may_be_written(path: Path) -> bool:
    host, _, pid = path.name.removeprefix(TEMPORARY).rpartition("-")[0].rpartition("-")
    if host == _host() and pid.isdigit():
        return _lives(int(pid))
    return time.time() - path.stat().st_mtime < _STALE_SECONDS


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _host() -> str:
    """Short, and fit for a file name; containers on one machine have names of their own."""
    return "".join(c for c in socket.gethostname() if c.isalnum())[:24] or "host"
