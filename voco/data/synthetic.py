"""Which scans and clips were drawn by ``voco phantom``: by the mark inside a file, or by the list that lies above it.

Marks travel with a file that is copied or renamed; the list covers what was converted where it lies, and tells which
scans are of one anatomy. Results on such data must say so, whatever folder or list they were reached through.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import zlib
from pathlib import Path

# In the description of NIfTI headers and the comment of videos; DICOM files name the software that wrote them.
MARK = "voco phantom"
IMPLEMENTATION_UID = "2.25.284490543713691538256410011874466741682"
PHANTOM_LIST = "phantoms.jsonl"
_MARKS = (MARK.encode(), IMPLEMENTATION_UID.encode())
_HEAD, _TAIL = 16_384, 65_536


def is_synthetic(path: str | Path) -> bool:
    """Whether a scan or clip was drawn; False for what cannot be read.

    Args:
        path: a file; of a DICOM series any slice.
    """
    return _is_marked(Path(path)) or phantom_row(path) is not None


def phantom_row(path: str | Path) -> dict | None:
    """What the list of a synthetic cohort says of a scan: its row, or an empty one where the list names no files.

    Args:
        path: a file or the folder of a DICOM series; links are followed.
    """
    given = Path(os.path.abspath(path))
    for place in dict.fromkeys((given, Path(os.path.realpath(given)))):
        for folder in place.parents:
            rows = _listed(folder)
            if rows is None:
                continue
            if not rows:
                return {}
            inside = place.relative_to(folder)
            found = (rows.get(part.as_posix()) for part in (inside, *inside.parents))
            if row := next((row for row in found if row), None):
                return row
    return None


@functools.lru_cache(maxsize=4096)
def _listed(folder: Path) -> dict[str, dict] | None:
    """Rows of the list in a folder by the files that they name; None without a list."""
    try:
        lines = (folder / PHANTOM_LIST).read_text().splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return {name: row for row in rows for name in row.get("paths", [row["path"]] if "path" in row else [])}
    except (OSError, ValueError, AttributeError):
        return None


def _is_marked(path: Path) -> bool:
    """Whether the start of a file, or the end, where some containers keep their comments, holds a mark."""
    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            ends = [file.read(_HEAD)]
            if not packed and (size := os.fstat(file.fileno()).st_size) > _HEAD:
                file.seek(max(_HEAD, size - _TAIL))
                ends.append(file.read(_TAIL))
    except (OSError, EOFError, zlib.error):
        return False
    return any(mark in end for mark in _MARKS for end in ends)
