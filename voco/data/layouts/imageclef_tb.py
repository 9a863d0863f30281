"""ImageCLEF Tuberculosis 2021 (TBT): scans by file name anywhere below the root, lung masks, table of types."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from voco.data.layouts.labeled import LabeledCase, LabeledManifest, finish, numbers, read_table
from voco.data.manifest import Case, Rejection
from voco.data.walk import looks_like_labels, stem, walk_files
from voco.errors import InputError

FILE, TYPE = "FileName", "TypeOfTB"
TYPES = {1: "infiltrative", 2: "focal", 3: "tuberculoma", 4: "miliary", 5: "fibro_cavernous"}
MASK_SETS = ("masks1", "masks2")
SUFFIX = ".nii.gz"
_SCAN = re.compile(r"(TRN|TST)_\d+\.nii(\.gz)?", re.IGNORECASE)
_MASK_FOLDER = re.compile(r"(?:^|[_\-. ])masks?[_\-. ]?([12])$", re.IGNORECASE)
_TABLE, _MORE = "trainset_metadata.csv", "add_metadata.csv"


def read_imageclef_tb(root: str | Path, *, table: str = "") -> LabeledManifest:
    """The labeled scans: every row of the table with its file.

    Args:
        root: folder with ``TRN_*.nii.gz`` at any depth, mask files of the same names in folders ``masks1`` and
            ``masks2``, and ``<uuid>_TrainSet_metaData.csv`` (FileName, TypeOfTB).
        table: another path of that table, relative to the root.

    Returns:
        Cases with the label ``TypeOfTB`` (1 to 5), masks, and the columns of ``*_add_metaData.csv`` as attributes.
        The set names no patients: every scan counts as one.

    Raises:
        InputError: no table or more than one, columns or class ids that are not as published, no scan at all.
    """
    root, files = _files(root)
    manifest = LabeledManifest(root, patient_level=False)
    path = _find_table(root, files, table)
    labels = _labels(path)
    scans, masks = _scans(files, manifest)
    more = _more(root, files, manifest)
    for name in sorted(scans.keys() | labels.keys()):
        if scans.get(name) == "":
            continue  # rejected already
        if name not in scans:
            manifest.rejected.append(Rejection(name + SUFFIX, f"{path.name} has its type, but there is no such file"))
        elif name in labels:
            found = {kind: masks[kind][name] for kind in MASK_SETS if name in masks[kind]}
            case = Case(name, scans[name], name)
            manifest.cases.append(LabeledCase(case, {TYPE: labels[name]}, attributes=more.get(name, {}), masks=found))
        elif name.upper().startswith("TRN"):
            manifest.rejected.append(Rejection(scans[name], f"{path.name} has no row for this scan"))
    if left := sum(name.upper().startswith("TST") and name not in labels for name in scans):
        manifest.notes.append(f"{left} official test scans (TST) were left out: their types were never published")
    for kind in MASK_SETS:
        missing = sum(kind not in case.masks for case in manifest.cases)
        if masks[kind] and missing:
            manifest.notes.append(f"{missing} scans have no file in {kind}")
    manifest.notes.append("the set names no patients: splits keep scans apart, each counts as a patient of its own")
    return finish(manifest)


def read_imageclef_tb_test(root: str | Path) -> LabeledManifest:
    """The official test scans, ``TST_*``, without labels.

    Raises:
        InputError: there are none.
    """
    root, files = _files(root)
    manifest = LabeledManifest(root, patient_level=False)
    scans, masks = _scans(files, manifest)
    for name, path in sorted(scans.items()):
        if path and name.upper().startswith("TST"):
            found = {kind: masks[kind][name] for kind in MASK_SETS if name in masks[kind]}
            manifest.cases.append(LabeledCase(Case(name, path, name), masks=found))
    if not manifest.cases:
        raise InputError(f"{root} holds no test scan; expected files TST_0001{SUFFIX} … at any depth")
    return finish(manifest)


def _files(root: str | Path) -> tuple[Path, list[str]]:
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"{root} is not a folder; expected the one that holds the scans TRN_0001{SUFFIX} … and the table"
        )
    return root, list(walk_files(root))


def _scans(files: Sequence[str], manifest: LabeledManifest) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Path of each scan by its name, and of each mask by mask set and name.

    A name found twice is rejected, and its path is empty.
    """
    scans: dict[str, list[str]] = {}
    masks: dict[str, dict[str, str]] = {kind: {} for kind in MASK_SETS}
    for path in files:
        *folders, file = path.split("/")
        if not _SCAN.fullmatch(file):
            continue
        sets = [found.group(1) for folder in folders if (found := _MASK_FOLDER.search(folder))]
        if sets:
            masks[f"masks{sets[-1]}"].setdefault(stem(file), path)
        elif not looks_like_labels(path):
            scans.setdefault(stem(file), []).append(path)
    for paths in scans.values():
        if len(paths) > 1:
            reason = f"{len(paths)} files have this name ({', '.join(paths[:3])}); keep the one to use below the root"
            manifest.rejected.append(Rejection(paths[0], reason))
    return {name: paths[0] if len(paths) == 1 else "" for name, paths in scans.items()}, masks


def _find_table(root: Path, files: Sequence[str], table: str) -> Path:
    if table:
        return root / table
    named = [name for name in files if name.lower().endswith(_TABLE)]
    if not named:
        named = [
            name
            for name in files
            if name.lower().endswith(".csv") and not name.lower().endswith(_MORE) and FILE in _heading(root / name)
        ]
    if len(named) == 1:
        return root / named[0]
    if named:
        raise InputError(
            f"{root} holds {len(named)} tables of types ({', '.join(named[:5])}); say which with task.table"
        )
    raise InputError(
        f"{root} holds no table of types; expected <uuid>_TrainSet_metaData.csv with the columns {FILE},{TYPE}"
    )


def _heading(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        return [name.strip() for name in next(csv.reader(file), [])]


def _labels(path: Path) -> dict[str, float]:
    rows = read_table(path, (FILE,), keys=(FILE,), what="table of types")
    if TYPE not in rows.columns:
        near = [name for name in rows.columns if "type" in name.lower()]
        found = f"found {near[0]}; rename it" if near else f"found {', '.join(rows.columns)}"
        raise InputError(f"table of types {path} has no column {TYPE}, which is the published name ({found})")
    kinds = numbers(rows, TYPE, path, among=tuple(TYPES))
    names = [stem(name) for name in rows[FILE]]
    if wrong := [name for name in names if not _SCAN.fullmatch(name + SUFFIX)]:
        raise InputError(f"{path}: {len(wrong)} names are not like TRN_0001{SUFFIX} (first: {wrong[0]!r})")
    if len(set(names)) < len(names):
        raise InputError(f"{path} names {len(names) - len(set(names))} scans more than once; each must have one row")
    return dict(zip(names, map(float, kinds)))


def _more(root: Path, files: Sequence[str], manifest: LabeledManifest) -> dict[str, Mapping[str, str]]:
    """Columns of the second published table, which covers a part of the scans; nothing depends on it."""
    found: dict[str, Mapping[str, str]] = {}
    for name in files:
        if not name.lower().endswith(_MORE):
            continue
        try:
            rows = read_table(root / name, (FILE,), keys=(FILE,), what="second table")
        except InputError as error:
            manifest.notes.append(f"{name} is not used: {error}")
            continue
        extra = [column for column in rows.columns if column not in (FILE, TYPE)]
        for row in rows.to_dict("records"):
            found[stem(row[FILE])] = {column: row[column] for column in extra}
    return found
