"""Clips in class folders, and clips of one folder whose names hold the class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from voco.data.layouts.clip import SPLITS, Clip, ClipManifest, compiled
from voco.errors import InputError


def read_class_folders(root: Path, files: list[str], manifest: ClipManifest, group_regex: str | None) -> None:
    """``[train/]CLASS/clip.mp4`` and ``CLASS/GROUP/clip.mp4``; one folder around all of it is ignored."""
    parts = [name.split("/") for name in files]
    while len(parts) > 1 and all(len(p) > 2 for p in parts) and len({p[0] for p in parts}) == 1:
        if parts[0][0].lower() in SPLITS:
            break
        parts = [p[1:] for p in parts]
    splits = [SPLITS.get(p[0].lower()) if len(p) > 2 else None for p in parts]
    if not all(splits):
        # A class may be called "test": only where every top folder is a part of a split are they parts.
        splits = [None] * len(parts)
    else:
        parts = [p[1:] for p in parts]
    loose = [name for name, p in zip(files, parts) if len(p) == 1]
    if len(loose) == len(files):
        raise InputError(
            f"{len(files)} videos lie directly in {root} ({loose[0]}), so no folder says their class: sort them into a "
            "folder per class, give a pattern whose first group in the file name is the class (label_regex), or a "
            "clips.csv with the columns path,label"
        )
    if loose:
        manifest.notes.append(f"{len(loose)} videos beside the class folders were left out (first: {loose[0]})")
    pattern = compiled(group_regex, "group_regex") if group_regex else None
    unmatched = 0
    for name, p, split in zip(files, parts, splits):
        if len(p) == 1:
            continue
        group = p[1] if len(p) > 2 else name
        if pattern:
            match = pattern.search(name)
            unmatched += match is None
            group = match.group(1) if match and match.group(1) else name
        manifest.clips.append(Clip(name, name, p[0], group, split))
    manifest.notes.append(f"classes are the folders of {root}" + (", parts of the split as well" if splits[0] else ""))
    _say_groups(manifest, unmatched)


def read_flat(root: Path, files: list[str], manifest: ClipManifest, label_regex: str, group_regex: str | None) -> None:
    """Files at any depth whose name holds the class.

    Raises:
        InputError: the pattern matches no file.
    """
    label = compiled(label_regex, "label_regex")
    group = compiled(group_regex, "group_regex") if group_regex else None
    left, unmatched = [], 0
    for name in files:
        found = label.search(name.rsplit("/", 1)[-1])
        if not found or not found.group(1):
            left.append(name)
            continue
        match = group.search(name) if group else None
        unmatched += group is not None and match is None
        manifest.clips.append(Clip(name, name, found.group(1), match.group(1) if match and match.group(1) else name))
    if not manifest.clips:
        raise InputError(f"label_regex {label_regex!r} matches none of {len(files)} video names, such as {files[0]}")
    manifest.notes.append(f"classes are the first group of {label_regex!r} in the file names")
    if left:
        manifest.notes.append(f"{len(left)} videos do not match it and were left out (first: {left[0]})")
    _say_groups(manifest, unmatched)


def _say_groups(manifest: ClipManifest, unmatched: int) -> None:
    if unmatched:
        manifest.notes.append(f"group_regex does not match {unmatched} clips; each of them is a group of its own")
    groups = Counter(clip.group for clip in manifest.clips)
    if len(groups) == len(manifest.clips) > 1:
        manifest.notes.append(
            "every clip counts as a group of its own; where clips share a person or a source video, say so with a "
            "pattern (group_regex) or a clips.csv with a group column, or held-out scores will be too good"
        )
