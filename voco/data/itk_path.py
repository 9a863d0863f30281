"""Names of files for ITK: the voxels beside a header, and names that are not UTF-8, over which ITK ends the process."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from voco.errors import ScanError

# In a detached header: the line that names the files with the voxels.
_DATA_LINE = {".mhd": rb"(?im)^\s*ElementDataFile\s*=(.*)$", ".nhdr": rb"(?im)^\s*data ?file:(.*)$"}


def detached_files(path: Path) -> list[Path]:
    """Files with voxels that an MHD or NHDR header points to (one, a list, or a numbered pattern) and that exist."""
    return [file for _, file in _detached(path)]


def _detached(path: Path) -> list[tuple[str, Path]]:
    """(name as the header has it, file) of each; names are bytes of any encoding, kept as Python keeps file names."""
    line = _DATA_LINE.get(path.suffix.lower())
    if line is None or not path.is_file():
        return []
    with contextlib.suppress(OSError, ValueError, TypeError):
        with path.open("rb") as file:
            head = file.read(1 << 20)
        found = re.search(line, head)
        if found is None:
            return []
        value, rest = (part.decode("utf-8", "surrogateescape").strip() for part in (found[1], head[found.end() :]))
        names = [value]
        if value.upper().split(" ")[0] == "LIST":
            names = [name.strip() for name in rest.splitlines() if name.strip()]
        elif "%" in value:
            pattern, first, last, *step = value.split()
            numbers = range(int(first), int(last) + 1, int(step[0]) if step else 1)
            names = [pattern % number for number in numbers[: 1 << 16]]
        pairs = [(name, data_file(path, name)) for name in names]
        return [(name, file) for name, file in pairs if file is not None]
    return []


def data_file(path: Path, name: str) -> Path | None:
    """The file that a header means by a name; None where there is none.

    A name that was written on another system (cp1252) is also looked for as this system spells it.
    """
    raw = os.fsencode(name)
    for text in (name, raw.decode("cp1252", "replace")):
        if (path.parent / text).is_file():
            return path.parent / text
    return None


@contextlib.contextmanager
def itk_path(path: str | Path) -> Iterator[Path]:
    """A name of the file that ITK can open: its own, or for a name that is not UTF-8 a link in a temporary folder.

    Raises:
        ScanError: the voxels of such a header lie in a folder above it.
    """
    path = Path(path)
    beside = _detached(path)
    same = all(path.parent / name == file for name, file in beside)
    if same and os.fsencode(path).decode("utf-8", "ignore") == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, file in [(f"scan{''.join(path.suffixes[-2:])}", path), *beside]:
            if os.path.isabs(name):
                continue
            link = Path(folder, name)
            if ".." in link.parts:
                raise ScanError(f"{path}: its voxels lie in {name}; put them beside the header, or rename it in ASCII")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.absolute())
        yield Path(folder, f"scan{''.join(path.suffixes[-2:])}")
