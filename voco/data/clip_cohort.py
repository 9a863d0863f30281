"""From a folder or list of videos to labeled clips for training and held-out clips: looked at, split by group."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voco.data.layouts import Clip, ClipManifest, build_clip_manifest
from voco.data.manifest import Rejection, check_rejected, write_rejected
from voco.data.manifest_formats import HELDOUT, TRAIN
from voco.data.pool import Crashed, run_isolated
from voco.data.progress import Progress
from voco.data.synthetic import is_synthetic
from voco.data.video import VideoInfo, probe
from voco.errors import InputError, ScanError
from voco.files import read_json, write_json

_LISTED = 5
_WAIT_SECONDS = 1.0
_PATIENCE = 300  # waits between two messages
_FORMAT = 2  # of the files in the cache


@dataclass(frozen=True)
class ClipCohort:
    """Labeled clips of one run.

    Attributes:
        root: paths of the clips are relative to it.
        train, heldout: clips, sorted by id.
        classes: names in the order of the labels; classes without a usable training clip are not among them.
        rejected: files that cannot be used, with the reason.
        missing: files that a list names and that are not there.
        fingerprint: hash of clips, labels and split; the same data give the same one, wherever they lie.
        counts: numbers for the console and ``run.json``.
    """

    root: Path
    train: list[Clip]
    heldout: list[Clip]
    classes: tuple[str, ...]
    rejected: list[Rejection]
    missing: list[str]
    fingerprint: str
    counts: dict[str, int]

    def write(self, out: Path) -> None:
        """Leave ``rejected.csv`` in a run folder, and ``missing.csv`` where a list names files that are not there."""
        out.mkdir(parents=True, exist_ok=True)
        write_rejected(out / "rejected.csv", self.rejected)
        if self.missing:
            write_rejected(out / "missing.csv", [Rejection(name, "listed, but not there") for name in self.missing])

    def check(self, max_rejected: float) -> None:
        """Stop before training on too little of what was given.

        Raises:
            InputError: more than ``max_rejected`` of the clips unusable, nothing to train on, or a single class.
        """
        check_rejected(self.counts["clips"], self.rejected, max_rejected)
        if not self.train:
            raise InputError(f"no clip is left to train on: {self.counts}; see rejected.csv")
        if len(self.classes) < 2:
            raise InputError(f"all clips are of the class {self.classes[0]!r}; expected at least two classes")


def load_clips(
    root: str,
    cache: Path,
    *,
    heldout: float,
    seed: int,
    workers: int,
    split: int | None = None,
    label_regex: str | None = None,
    group_regex: str | None = None,
    classes: Sequence[str] | None = None,
    min_frames: int = 1,
    rank: int = 0,
    world: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> ClipCohort:
    """List the clips, look into files that were not looked into before, and split by group.

    With several processes only the first one looks; the others wait for its result on disk.

    Args:
        root, split, label_regex, group_regex, classes: see ``build_clip_manifest``.
        cache: folder for what was found in the files.
        heldout, seed: see ``split_groups``.
        workers: processes that look, apart from this one, since a damaged file may end its decoder; 0 = in this one.
        min_frames: shorter clips are rejected (ViPTT-Net drops those below its 70 frames); 1 repeats last frames.
        say: called with sentences for the user.
    """
    manifest = build_clip_manifest(root, split=split, label_regex=label_regex, group_regex=group_regex, classes=classes)
    say(f"found {len(manifest.clips)} clips of {len(manifest.classes)} classes in {root}")
    found = look_into(manifest, Path(cache), workers, rank == 0, say)
    say_notes(found, say)
    usable, rejected = [], list(manifest.rejected)
    for clip in manifest.clips:
        reason = _unusable(clip, found[clip.path], min_frames)
        if reason:
            rejected.append(Rejection(clip.path, reason))
        else:
            usable.append(clip)
    train, held, notes = split_groups(usable, heldout, seed)
    names = tuple(name for name in manifest.classes if name in {clip.label for clip in train})
    lost = [clip for clip in held if clip.label not in names]
    if lost:
        notes.append(f"{len(lost)} held-out clips are of classes without a training clip and were left out")
        held = [clip for clip in held if clip.label in names]
    for note in (*manifest.notes, *notes):
        say(note)
    drawn = sum(found[clip.path].synthetic for clip in (*train, *held))
    return ClipCohort(
        manifest.root, train, held, names, rejected, manifest.missing, _fingerprint(train, held, found),
        counts={
            "clips": len(manifest.clips) + len(manifest.rejected), "classes": len(names),
            "train_clips": len(train), "train_groups": len({c.group for c in train}),
            "heldout_clips": len(held), "heldout_groups": len({c.group for c in held}),
            "rejected_clips": len(rejected), "missing_clips": len(manifest.missing),
        } | ({"synthetic_clips": drawn} if drawn else {}),
    )  # fmt: skip


def split_groups(clips: Sequence[Clip], heldout: float, seed: int) -> tuple[list[Clip], list[Clip], list[str]]:
    """Part clips into training and held-out so that no group is on both sides.

    An official split wins. Otherwise groups are taken in the order of a hash of (seed, group), each if that brings
    every class's held-out share nearer to the wanted one, and never the last training group of a class.

    Args:
        clips: labeled clips.
        heldout: share of each class's clips in [0, 1).
        seed: another seed, another choice.

    Returns:
        (training clips, held-out clips, sentences for the user).

    Raises:
        InputError: ``heldout`` out of range, or a list that puts a group on both sides.
    """
    if not 0 <= heldout < 1:
        raise InputError(f"the held-out share is {heldout}; expected a number from 0 to below 1, such as 0.2")
    listed = {clip.group for clip in clips if clip.split == HELDOUT}
    if listed:
        both = sorted(listed & {clip.group for clip in clips if clip.split in (TRAIN, None)})
        if both:
            raise InputError(
                f"{len(both)} groups are both in the training and in the held-out part of the list "
                f"({', '.join(both[:_LISTED])}); clips of a group belong to one side"
            )
        return *_part(clips, listed), []
    if heldout == 0:
        return list(clips), [], []
    chosen, alone = _choose(clips, heldout, seed)
    notes = []
    if alone:
        shown = ", ".join(alone[:_LISTED]) + (" …" if len(alone) > _LISTED else "")
        notes.append(f"{len(alone)} classes have a single group and cannot be held out: {shown}")
    return *_part(clips, chosen), notes


def _part(clips: Sequence[Clip], held: set[str]) -> tuple[list[Clip], list[Clip]]:
    return [c for c in clips if c.group not in held], [c for c in clips if c.group in held]


def _choose(clips: Sequence[Clip], share: float, seed: int) -> tuple[set[str], list[str]]:
    """(groups to hold out, classes that have one group)."""
    inside: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        inside[clip.group][clip.label] += 1
    total = Counter(clip.label for clip in clips)
    left = Counter(label for labels in inside.values() for label in labels)  # training groups of a class
    alone = sorted(label for label, groups in left.items() if groups == 1)
    held: Counter[str] = Counter()
    chosen: set[str] = set()

    def take(group: str) -> None:
        chosen.add(group)
        held.update(inside[group])
        left.subtract(list(inside[group]))

    def free(group: str) -> bool:
        return group not in chosen and all(left[label] > 1 for label in inside[group])

    def far(label: str, count: int) -> float:
        return (count / total[label] - share) ** 2

    ranked = sorted(inside, key=lambda g: hashlib.sha256(f"{seed}\n{g}".encode(errors="surrogateescape")).digest())
    for group in ranked:
        change = sum(far(label, held[label] + n) - far(label, held[label]) for label, n in inside[group].items())
        if change < 0 and free(group):
            take(group)
    # A class with few groups may have been passed over because each is more than its share.
    for label in sorted(total):
        if not held[label]:
            fitting = [group for group in ranked if label in inside[group] and free(group)]
            if fitting:
                take(fitting[0])
    return chosen, alone


def look_into(
    manifest: ClipManifest,
    cache: Path,
    workers: int,
    first: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, VideoInfo | str]:
    """What every file holds, or why it cannot be used; remembered in the cache by path, size and time of change.

    Args:
        first: False waits for the process that looks.
    """
    keys = {path: _key(manifest.root / path) for path in sorted({clip.path for clip in manifest.clips})}
    name = hashlib.sha256(os.path.abspath(manifest.root).encode(errors="surrogateescape")).hexdigest()[:16]
    table = cache / "clips" / f"{name}.json"
    waited = 0
    while True:
        known = _read_table(table)
        todo = [path for path, key in keys.items() if key is not None and known.get(path, {}).get("key") != key]
        if first or not todo:
            break
        time.sleep(_WAIT_SECONDS)
        waited += 1
        if waited % _PATIENCE == 0:
            say(f"waiting for the first process to look into the videos; it writes {table}, which must be shared")
    if todo:
        known |= {path: {"key": keys[path], **row} for path, row in _look(manifest.root, todo, workers)}
        write_json(table, {"format": _FORMAT, "files": known})
    return {path: _info(known[path]) if key is not None else "no such file" for path, key in keys.items()}


def say_notes(found: Mapping[str, VideoInfo | str], say: Callable[[str], None]) -> None:
    """Say how files are read that could be read in more than one way, the first of each sort by name."""
    noted: dict[str, list[str]] = defaultdict(list)
    for path, info in sorted(found.items()):
        for note in [] if isinstance(info, str) or not info.note else info.note.split("; "):
            noted["no times" if note.startswith("no times") else "several video streams"].append(f"{path}: {note}")
    for what, notes in noted.items():
        say(f"{len(notes)} files have {what} (first: {notes[0]})")


def _look(root: Path, paths: list[str], workers: int) -> list[tuple[str, dict]]:
    bar = Progress("look into videos", len(paths), unit="files")
    done = []
    try:
        if workers < 1:
            outcomes = ((i, look_at(str(root / path))) for i, path in enumerate(paths))
        else:
            outcomes = run_isolated(look_at, [str(root / path) for path in paths], workers)
        for number, outcome in outcomes:
            done.append((paths[number], {"reason": outcome.reason} if isinstance(outcome, Crashed) else outcome))
            bar.step()
    finally:
        bar.close()
    return done


def look_at(path: str) -> dict:
    """A file's ``VideoInfo`` as a dictionary, or its ``reason``; raises nothing."""
    try:
        return vars(probe(path)) | {"synthetic": is_synthetic(path)}
    except ScanError as error:
        return {"reason": str(error)}
    except Exception as error:  # whatever a decoder does to a damaged file, the other files go on
        return {"reason": f"cannot be decoded: {type(error).__name__}: {error}"}


def _info(row: dict) -> VideoInfo | str:
    if "reason" in row:
        return row["reason"]
    values = {name: row[name] for name in VideoInfo.__dataclass_fields__ if name in row}
    return VideoInfo(**{**values, "size": tuple(values["size"])})


def _read_table(path: Path) -> dict:
    table = read_json(path)
    return table["files"] if table.get("format") == _FORMAT else {}


def _key(path: Path) -> str | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _unusable(clip: Clip, info: VideoInfo | str, min_frames: int) -> str | None:
    if isinstance(info, str):
        return info
    if clip.start_s is not None and clip.start_s >= info.duration_s:
        return f"the clip starts at {clip.start_s:g} s, the file ends at {info.duration_s:g} s"
    end = info.duration_s if clip.end_s is None else min(clip.end_s, info.duration_s)
    share = (end - (clip.start_s or 0)) / info.duration_s if info.duration_s else 1
    if round(info.frames * share) < min_frames:
        return f"{round(info.frames * share)} frames, fewer than the wanted {min_frames}"
    return None


def _fingerprint(train: Sequence[Clip], held: Sequence[Clip], found: dict) -> str:
    digest = hashlib.sha256()
    for name, clips in (("train", train), ("heldout", held)):
        for clip in clips:
            # what is seen, not file times: a copy of the data must count as the same data
            info = found[clip.path]
            row = f"{name}\t{clip}\t{info.frames}\t{info.size}\t{info.duration_s:.3f}\n"
            digest.update(row.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
