"""UCF50 and UCF101: ``CLASS/v_CLASS_gNN_cNN.avi``, and the three official splits of UCF101.

Clips of one group are cut from one source video: a split by clip (as in ViPTT-Net's code) puts nearly the same pictures
on both sides. Source: spec of the data sets, crcv.ucf.edu.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from voco.data.layouts.clip import Clip, ClipManifest
from voco.data.manifest_formats import HELDOUT, TRAIN
from voco.errors import InputError

_NAME = re.compile(r"^v_(?P<label>.+)_g(?P<group>\d+)_c\d+$")
_LIST = "{part}list0{split}.txt"


def is_ucf(files: list[str]) -> bool:
    """Whether nearly all files are named like clips of UCF50 or UCF101."""
    return sum(_NAME.match(_stem(name)) is not None for name in files) >= 0.9 * len(files) > 0


def read_ucf(root: Path, files: list[str], manifest: ClipManifest, split: int | None) -> None:
    """Clips with their groups; with a split, the official one.

    Args:
        split: 1, 2 or 3; None parts by group without a list.

    Raises:
        InputError: a split is wanted and its lists are not there, or it is none of the three.
    """
    lists = _read_lists(root, split) if split is not None else None
    unlisted = 0
    for name in files:
        match = _NAME.match(_stem(name))
        if not match:
            manifest.notes.append(f"{name} is not named like a clip of UCF and was left out")
            continue
        # The folder, not the name: UCF101 has v_HandStandPushups_* in HandstandPushups.
        label = name.split("/")[-2] if "/" in name else match["label"]
        part = lists.get(_stem(name).lower()) if lists is not None else None
        if lists is not None and part is None:
            unlisted += 1
            continue
        manifest.clips.append(Clip(name, name, label, f"{label}/g{match['group']}", part))
    if lists is None:
        manifest.notes.append("named like UCF50 or UCF101: the groups gNN stay together when clips are held out")
        return
    manifest.notes.append(f"official split {split} of UCF101; its test list is held out")
    if unlisted:
        manifest.notes.append(f"{unlisted} clips are in neither list of split {split} and were left out")
    there = {_stem(name).lower() for name in files}
    manifest.missing += sorted(name for name in lists if name not in there)


def _read_lists(root: Path, split: int) -> dict[str, str]:
    if split not in (1, 2, 3):
        raise InputError(f"UCF101 has the official splits 1, 2 and 3; found {split}")
    folder = _list_folder(root, split)
    if folder is None:
        raise InputError(
            f"{_LIST.format(part='train', split=split)} is not in {root}, nor in a folder of it or beside it: unpack "
            "UCF101TrainTestSplits-RecognitionTask.zip there, or leave the split out to part the clips by group"
        )
    found = {}
    for part, meaning in (("train", TRAIN), ("test", HELDOUT)):
        path = folder / _LIST.format(part=part, split=split)
        if not path.is_file():
            raise InputError(f"{path} is missing beside its other half")
        for line in path.read_text().splitlines():
            if line.strip():
                # A line of a training list ends with the number of its class; names hold no spaces.
                found[_stem(line.split()[0]).lower()] = meaning
    return found


def _list_folder(root: Path, split: int) -> Path | None:
    name = _LIST.format(part="train", split=split)
    for top in (root, root.parent):
        for folder in (top, top / "ucfTrainTestlist", top / "annotations"):
            if (folder / name).is_file():
                return folder
    return next((path.parent for path in sorted(root.glob(f"*/{name}"))), None)


def _stem(name: str) -> str:
    return os.path.splitext(name.rsplit("/", 1)[-1])[0]
