"""Lists of clips: a plain CSV, the CSVs of Kinetics, and the ``path label`` lists of SlowFast and mmaction2."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from voco.data.cells import is_unknown, name_or_none
from voco.data.layouts.clip import SPLITS, Clip, ClipManifest, video_files
from voco.data.manifest import Rejection
from voco.data.manifest_formats import beside
from voco.data.text_tables import delimiter_of, read_text
from voco.errors import InputError

CSV_COLUMNS = ("path", "label", "group", "split", "start_s", "end_s")
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


def read_csv(path: Path, manifest: ClipManifest) -> None:
    """Read a list of clips by its columns; paths are relative to the list.

    Raises:
        InputError: no text, or columns of none of the known lists.
    """
    try:
        text = read_text(path)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter_of(text)))
    except csv.Error as error:
        raise InputError(f"{path} is no valid CSV: {error}") from None
    names = {name.strip().lower(): name for name in (rows[0] if rows else {}) if name}
    rows = [{k: (row.get(name) or "").strip() for k, name in names.items()} for row in rows]
    if "youtube_id" in names:
        _read_kinetics(path, rows, manifest)
    elif {"path", "label"} <= set(names):
        _read_plain(path, rows, manifest)
    elif not _read_pairs(path, text, manifest):
        raise InputError(
            f"{path} has the columns {', '.join(names) or 'none'}; expected {','.join(CSV_COLUMNS[:2])} and, if known, "
            f"{','.join(CSV_COLUMNS[2:])}; or those of Kinetics, {','.join(KINETICS_COLUMNS)}; or lines of a path and "
            "a class number"
        )


def _read_plain(path: Path, rows: list[dict], manifest: ClipManifest) -> None:
    for row in rows:
        row |= {key: name_or_none(row[key]) or "" for key in ("group", "split") if key in row}
    unknown = sorted({row["split"] for row in rows if row.get("split") and row["split"].lower() not in SPLITS})
    if unknown:
        raise InputError(f"{path} has the split {unknown[0]!r}; known: {', '.join(sorted(SPLITS))}")
    for number, row in enumerate(rows, 2):
        name, label = row["path"], row["label"]
        if not name or is_unknown(label):
            reason = (
                "path or label is empty in the list" if not name or not label else f"the label {label!r} is unknown"
            )
            manifest.rejected.append(Rejection(name or f"line {number}", reason))
            continue
        relative = _relative(path, name)
        try:
            start, end = (float(row[key]) if row.get(key) else None for key in ("start_s", "end_s"))
        except ValueError:
            manifest.rejected.append(Rejection(relative, f"start_s or end_s is no number in line {number}"))
            continue
        _add(manifest, path, relative, label, row.get("group") or relative, row.get("split", ""), start, end)
    manifest.notes.append(f"clips and labels are those of {path.name}")


def _add(manifest, path, relative, label, group, split, start=None, end=None) -> None:
    if not (path.parent / relative).is_file():
        manifest.rejected.append(Rejection(relative, "no such file"))
    elif start is not None and end is not None and not 0 <= start < end:
        manifest.rejected.append(Rejection(relative, f"start_s {start:g} is not before end_s {end:g}"))
    else:
        ident = (
            relative if start is None and end is None else f"{relative}@{start or 0:g}-{'' if end is None else end:g}"
        )
        manifest.clips.append(Clip(ident, relative, label, group, SPLITS.get(split.lower()), start, end))


def _read_pairs(path: Path, text: str, manifest: ClipManifest) -> bool:
    """Lines ``path number``, without a header; false where that is not what they are."""
    lines = [line.replace(",", " ").rsplit(maxsplit=1) for line in text.splitlines() if line.strip()]
    if not lines or not all(len(line) == 2 and line[1].isdecimal() for line in lines):
        return False
    for name, label in lines:
        relative = _relative(path, name)
        _add(manifest, path, relative, label, relative, "")
    manifest.notes.append(f"{path.name} holds lines of a path and a class number; the numbers are the class names")
    return True


def _read_kinetics(path: Path, rows: list[dict], manifest: ClipManifest) -> None:
    """Files are named ``<id>_<start>_<end>``, six digits each, at any depth below the list's folder."""
    required = {"label", "youtube_id", "time_start", "time_end"}
    if rows and not required <= set(rows[0]):
        missing = ", ".join(sorted(required - set(rows[0])))
        raise InputError(
            f"{path} is a Kinetics list without the column {missing} (Kinetics' test lists have no labels)"
        )
    where: dict[str, str] = {}
    for name in video_files(path.parent, manifest):
        where.setdefault(os.path.splitext(name.rsplit("/", 1)[-1])[0], name)
    # Official lists come one per part; where the column is absent, the list's own name says which part it is.
    default = next((part for part in SPLITS if path.stem.lower().endswith(f"_{part}") or path.stem.lower() == part), "")
    for number, row in enumerate(rows, 2):
        ident = row["youtube_id"]
        try:
            start, end = int(float(row["time_start"])), int(float(row["time_end"]))
        except ValueError:
            manifest.rejected.append(Rejection(ident, f"time_start or time_end is no number in line {number}"))
            continue
        split = SPLITS.get((row.get("split") or default).lower())
        trimmed = f"{ident}_{start:06d}_{end:06d}"
        if trimmed in where:
            manifest.clips.append(Clip(trimmed, where[trimmed], row["label"], ident, split))
        elif ident in where:
            manifest.clips.append(Clip(trimmed, where[ident], row["label"], ident, split, float(start), float(end)))
        else:
            manifest.missing.append(trimmed)
    manifest.notes.append(
        f"{path.name} is a Kinetics list: {len(manifest.clips)} of its {len(rows)} clips are there, "
        f"{len(manifest.missing)} are missing"
    )


def _relative(path: Path, name: str) -> str:
    return Path(os.path.relpath(beside(path, name), path.parent)).as_posix()
