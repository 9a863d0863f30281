"""Layouts of published data sets: their columns, names and paths are written down here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voco.data.layouts.clip import Clip, ClipManifest, class_names, finish, leave_out_test, video_files
from voco.data.layouts.kinetics import read_csv
from voco.data.layouts.ucf import is_ucf, read_ucf
from voco.data.layouts.video_folders import read_class_folders, read_flat
from voco.errors import InputError

CLIP_LIST = "clips.csv"
__all__ = ["CLIP_LIST", "Clip", "ClipManifest", "build_clip_manifest", "class_names"]


def build_clip_manifest(
    root: str | Path,
    *,
    split: int | None = None,
    label_regex: str | None = None,
    group_regex: str | None = None,
    classes: Sequence[str] | None = None,
) -> ClipManifest:
    """List the labeled clips of a data set; the layout is recognised and said in the notes.

    Args:
        root: a list (``path,label[,group][,split][,start_s][,end_s]``, a Kinetics CSV, or lines ``path number``); or a
            folder: with a ``clips.csv``, that list; with names like those of UCF, UCF50 or UCF101; else class folders,
            which may lie in train and val folders. With ``label_regex``, files in any folders.
        split: official split of UCF101 (1, 2 or 3).
        label_regex: its first group in the file name is the class.
        group_regex: its first group in the relative path is the group, for class folders and ``label_regex``.
        classes: take only these.

    Returns:
        Clips sorted by id.

    Raises:
        InputError: nothing usable is there, or a setting or list that cannot be used.
    """
    root = Path(root)
    if not root.exists():
        raise InputError(f"{root} does not exist; expected a folder with video clips, or a CSV that lists them")
    manifest = ClipManifest(root if root.is_dir() else root.parent)
    taken = _read(root, manifest, split, label_regex, group_regex)
    for name, value in (("split", split), ("label_regex", label_regex), ("group_regex", group_regex)):
        if value is not None and name not in taken:
            raise InputError(f"{name} has no meaning for {root}: {'; '.join(manifest.notes) or 'another layout'}")
    leave_out_test(manifest)
    return finish(manifest, classes)


def _read(root: Path, manifest: ClipManifest, split, label_regex, group_regex) -> tuple[str, ...]:
    """Fill the manifest; returns the settings that this layout understands."""
    if root.is_file() or (label_regex is None and (root / CLIP_LIST).is_file()):
        read_csv(root if root.is_file() else root / CLIP_LIST, manifest)
        return ()
    files = video_files(root, manifest)
    if not files:
        raise InputError(f"{root} holds no video file: expected folders of clips (mp4, avi, mkv, webm …), or a CSV")
    if label_regex is not None:
        read_flat(root, files, manifest, label_regex, group_regex)
        return "label_regex", "group_regex"
    if is_ucf(files) and group_regex is None:
        read_ucf(root, files, manifest, split)
        return ("split",)
    read_class_folders(root, files, manifest, group_regex)
    return ("group_regex",)
