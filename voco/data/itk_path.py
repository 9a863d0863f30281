"""Names of files for ITK: the voxels beside a header, and names that are not UTF-8, over which ITK ends the process."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

# In a detached header: the line that names the files with the voxels.
_DATA_LINE = {".mhd": rb"(?im)^\s*ElementDataFile\s*=(.*)$", ".nhdr": rb"(?im)^\s*data ?file:(.*)$"}
_VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")


def detached_files(path: Path) -> list[Path]:
    """Files with voxels that an MHD or NHDR header points to (one, a list, or a numbered pattern) and that exist."""
    found = _detached(path)
    return [] if found is None else found.files


class _Detached(NamedTuple):
    """Where a header names its voxels: the header around that line, the word LIST where it has a list, and the files.

    ``plain`` tells whether ITK finds them by the names as they are.
    """

    before: bytes
    after: bytes
    word: str
    files: list[Path]
    plain: bool


def _detached(path: Path) -> _Detached | None:
    """What a header says of its files; names are bytes of any encoding, kept as Python keeps file names."""
    line = _DATA_LINE.get(path.suffix.lower())
    if line is None or not path.is_file():
        return None
    with contextlib.suppress(OSError, ValueError, TypeError):
        with path.open("rb") as file:
            head = file.read(1 << 20)
        found = re.search(line, head)
        if found is None:
            return None
        before, after = head[: found.start(1)], head[found.end() :]
        value = found[1].decode("utf-8", "surrogateescape").strip()
        word, names = "", [value]
        if value.upper().split(" ")[0] == "LIST":
            word, names = value, [name.strip() for name in after.decode("utf-8", "surrogateescape").splitlines()]
            names, after = [name for name in names if name], b""
        elif _is_pattern(path, value):
            pattern, first, last, *step = value.split()
            numbers = range(int(first), int(last) + 1, int(step[0]) if step else 1)
            word, names = "LIST", [pattern % number for number in numbers[: 1 << 16]]
        files = [(name, file) for name in names if (file := data_file(path, name)) is not None]
        # A single name with a percent sign is taken for a pattern.
        plain = all(path.parent / name == file for name, file in files) and ("%" not in value or word == "LIST")
        return _Detached(before, after, word, [file for _, file in files], plain)
    return None


def _is_pattern(path: Path, value: str) -> bool:
    return "%" in value and len(value.split()) >= 3 and data_file(path, value) is None


def data_file(path: Path, name: str) -> Path | None:
    """The file that a header means by a name; None where there is none.

    A name that was written on another system (cp1252, backslashes) is also looked for as this system spells it, and one
    with a folder that is not here by its end, beside the header.
    """
    raw = os.fsencode(name)
    for text in (name, raw.decode("cp1252", "replace")):
        parts = PureWindowsPath(text).parts
        for place in (text, "/".join(parts), parts[-1] if PureWindowsPath(text).anchor else ""):
            if place and (path.parent / place).is_file():
                return path.parent / place
    return None


@contextlib.contextmanager
def itk_path(path: str | Path) -> Iterator[Path]:
    """A name of the file that ITK can open: its own, or one in a temporary folder.

    There lies a link for a name that is not UTF-8 or has a suffix in capitals, and for a header that names its voxels
    in a way that ITK does not follow a copy of it with other names.
    """
    path = Path(path)
    beside = _detached(path)
    suffix = re.search(r"(\.nii\.gz|\.[^.]*)?$", path.name.lower())[0]
    plain = os.fsencode(path).decode("utf-8", "ignore") == str(path)
    if suffix in _VOLUMES:
        plain = plain and path.name.endswith(suffix)
    if plain and (beside is None or beside.plain):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f"scan{suffix}")
        if beside is None or not beside.files:
            copy.symlink_to(path.absolute())
        else:
            names = [f"{number}{file.suffix}" for number, file in enumerate(beside.files)]
            for name, file in zip(names, beside.files):
                Path(folder, name).symlink_to(file.absolute())
            lines = "\n".join([beside.word, *names] if beside.word else names).encode()
            fields = beside.after.strip(b"\r\n")
            if beside.word and fields:  # a list ends the header
                at = beside.before.rindex(b"\n") + 1
                copy.write_bytes(beside.before[:at] + fields + b"\n" + beside.before[at:] + b" " + lines + b"\n")
            else:
                copy.write_bytes(beside.before + b" " + lines + b"\n" + (fields + b"\n\n" if fields else b""))
        yield copy
