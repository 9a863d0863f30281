"""Files of a folder, and what their names alone say about them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

# A file that is named like this is a segmentation that lies beside a scan.
_LABEL_NAME = re.compile(r"(^|[_\-. ])(seg|segs|segmentation|labels?|masks?|roi|gt)([_\-. ]?\d+)?$", re.IGNORECASE)
_LABEL_FOLDERS = {
    "labelstr",
    "labelsts",
    "labelsva",
    "labels",
    "label",
    "masks",
    "mask",
    "segmentations",
    "segmentation",
}
# Scans that cannot be read as they lie there, so that nobody wonders where they are.
_FOREIGN = (
    ".hdr",
    ".zip",
    ".tar",
    ".tgz",
    ".tar.gz",
    ".7z",
    ".rar",
    ".mnc",
    ".mgz",
    ".mgh",
    ".nii.bz2",
    ".nii.xz",
    ".npz",
)


def walk_files(root: Path, onerror: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """Relative posix paths of all files that are not hidden, sorted; links are followed, each folder once."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=onerror):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.upper() != "DICOMDIR":
                yield Path(os.path.relpath(os.path.join(folder, name), root)).as_posix()


def looks_like_labels(name: str) -> bool:
    """Whether a file is a segmentation, judged by its own name and the folders that hold it."""
    *folders, file = name.split("/")
    return bool(_LABEL_NAME.search(stem(file))) or any(folder.lower() in _LABEL_FOLDERS for folder in folders)


def stem(name: str) -> str:
    """File name without the suffix of a volume file."""
    return re.sub(r"\.(nii\.gz|nii|mha|mhd|nrrd|nhdr)$", "", name, flags=re.IGNORECASE)


def is_foreign(name: str) -> bool:
    """Whether a file may hold scans in a form that is not read: an archive, or another volume format."""
    return name.lower().endswith(_FOREIGN)
