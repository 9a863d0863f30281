"""What a set of labeled clips is, whatever layout it was found in."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from voco.data.manifest import Rejection
from voco.data.manifest_formats import HELDOUT, TEST, TRAIN
from voco.data.video import SUFFIXES
from voco.data.walk import walk_files
from voco.errors import InputError

# Kinetics calls its second part "validate".
SPLITS = {
    **dict.fromkeys(("train", "training", "tr", "videos_train", "train_256", "train2"), TRAIN),
    **dict.fromkeys(("heldout", "held-out", "held_out", "val", "valid", "validation", "validate", "dev"), HELDOUT),
    **dict.fromkeys(("videos_val", "val_256"), HELDOUT),
    **dict.fromkeys(("test", "testing", "ts", "videos_test"), TEST),
}


@dataclass(frozen=True)
class Clip:
    """One labeled clip.

    Attributes:
        id: unique in the set, the same whenever it is read: the path, and the times where a file holds several clips.
        path: relative to the root, posix.
        label: name of the class.
        group: clips of one group (person, scene, source video) stay on one side of a split.
        split: train, heldout or test, where a list or folder says so.
        start_s, end_s: part of the file in seconds from its first frame; None = to that end.
    """

    id: str
    path: str
    label: str
    group: str
    split: str | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclass
class ClipManifest:
    """A set of clips.

    Attributes:
        root: paths are relative to it.
        clips: sorted by id.
        classes: names in the order of the labels: by name, numbers by value.
        rejected: files and entries that cannot be used, with the reason.
        missing: files that a list names and that are not there; published lists always name some.
        notes: sentences for the user.
    """

    root: Path
    clips: list[Clip] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    rejected: list[Rejection] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def class_names(clips: Sequence[Clip]) -> tuple[str, ...]:
    """Classes of clips, in an order that depends on nothing but their names (a folder's own order is by chance)."""
    names = {clip.label for clip in clips}
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def video_files(root: Path, manifest: ClipManifest) -> list[str]:
    """Relative paths of the video files of a folder; folders that cannot be searched are rejected."""

    def unreadable(error: OSError) -> None:
        folder = os.path.relpath(error.filename or root, root)
        manifest.rejected.append(Rejection(folder, f"this folder cannot be searched: {error.strerror}"))

    return [name for name in walk_files(root, unreadable) if os.path.splitext(name)[1].lower() in SUFFIXES]


def compiled(pattern: str, name: str) -> re.Pattern:
    """A user's pattern with at least one group.

    Raises:
        InputError: no valid pattern, or one without a group.
    """
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{name} {pattern!r} is no regular expression: {error}") from None
    if not found.groups:
        raise InputError(f"{name} {pattern!r} has no group: put what is wanted in parentheses, as in '_([a-z]+)[.]'")
    return found


def finish(manifest: ClipManifest, classes: Sequence[str] | None) -> ClipManifest:
    """Keep the wanted classes, refuse repeats, sort, and name the classes.

    Raises:
        InputError: a wanted class is not there, or no clip is left.
    """
    if classes:
        known = {clip.label for clip in manifest.clips}
        unknown = [name for name in classes if name not in known]
        if unknown:
            raise InputError(f"no clip of class {', '.join(unknown)}; {manifest.root} has: {', '.join(sorted(known))}")
        kept = [clip for clip in manifest.clips if clip.label in set(classes)]
        manifest.notes.append(
            f"{len(classes)} of {len(known)} classes taken, {len(kept)} of {len(manifest.clips)} clips"
        )
        manifest.clips = kept
    count = Counter(clip.id for clip in manifest.clips)
    unique = {}
    for clip in manifest.clips:
        if clip.id in unique:
            reason = f"listed {count[clip.id]} times; the first entry (class {unique[clip.id].label}) is used"
            manifest.rejected.append(Rejection(clip.path, reason))
        else:
            unique[clip.id] = clip
    manifest.clips = sorted(unique.values(), key=lambda clip: clip.id)
    if not manifest.clips:
        hint = "".join(f" ({note})" for note in manifest.notes)
        if manifest.missing:
            hint += f"; {len(manifest.missing)} listed files are not there, the first is {manifest.missing[0]}"
        if manifest.rejected:
            hint += f"; {manifest.rejected[0].path}: {manifest.rejected[0].reason}"
        raise InputError(f"{manifest.root} has no labeled video clip{hint}")
    manifest.classes = class_names(manifest.clips)
    return manifest


def leave_out_test(manifest: ClipManifest) -> None:
    """Drop clips of a test part: it is not for training, nor for the scores that are looked at while training."""
    kept = [clip for clip in manifest.clips if clip.split != TEST]
    if len(kept) < len(manifest.clips):
        manifest.notes.append(f"{len(manifest.clips) - len(kept)} clips marked as test were left out")
    manifest.clips = kept
