"""LIDC-IDRI as published: ``LIDC-IDRI/<patient>/<study>/<series>/*.dcm`` and an annotation file per CT series."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from voco.data.dicom_scan import OTHER_KINDS, quiet_pydicom
from voco.data.layouts.labeled import SPLITS, LabeledCase, LabeledManifest, finish, numbers, read_table
from voco.data.layouts.lidc_xml import NoduleSlices, Reading, read_reading
from voco.data.manifest import Case, Rejection
from voco.data.privacy import hash_patient_id
from voco.data.walk import walk_files
from voco.errors import InputError

FOLDER = "LIDC-IDRI"
IMAGE = "nodule_present_on_image"
_CSV_KEYS = ("SeriesInstanceUID", "SOPInstanceUID")
_PATIENT = re.compile(r"LIDC-IDRI-\d+")
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_KINDS = ("CR", "DX")


@dataclass(frozen=True)
class _Series:
    patient: str
    uid: str
    modality: str
    path: str
    files: tuple[str, ...]


def read_lidc(root: str | Path, *, agreement: int = 3, table: str | Path | None = None) -> LabeledManifest:
    """CT series of LIDC-IDRI with the labels of their slices; one header per folder is opened.

    Args:
        root: the folder ``LIDC-IDRI``, or the one above it. Annotation files may lie anywhere below, beside the images
            or in a folder of their own; they are assigned by their SeriesInstanceUid.
        agreement: annotations that make a slice positive, see ``NoduleSlices``.
        table: CSV with ``SeriesInstanceUID``, ``SOPInstanceUID``, ``nodule_present_on_image`` and optionally ``Split``,
            as Ke et al. (2023) made it, in place of the annotation files.

    Returns:
        A case per CT series. ``labels`` has ``nodule``: 1 if any slice is positive. Its id is the PatientID where the
        patient has one CT series, else with 8 digits of a hash of the SeriesInstanceUID.

    Raises:
        InputError: no CT series, no annotation file, or a table that cannot be used.
    """
    root = Path(root)
    if root.resolve().name == FOLDER:
        # What describes a cohort as a whole lies above, and a path means the same whichever folder is named.
        root = root.resolve().parent
    if not root.is_dir():
        raise InputError(f"{root} does not exist; expected the folder {FOLDER} as downloaded, or the one above it")
    manifest = LabeledManifest(root)
    folders, notes = _list_files(root, manifest)
    series = [found for found in (_series(root, *item, manifest) for item in sorted(folders.items())) if found]
    scans = [item for item in series if item.modality == "CT"]
    if not scans:
        raise InputError(
            f"{root} holds no CT series; expected {FOLDER}/<patient>/<study>/<series>/*.dcm, found "
            f"{len(series)} other series in {len(folders)} folders with DICOM files"
        )
    splits: Mapping[str, str | None] = {}
    if table is not None:
        labels, splits = _read_labels(Path(table))
        source = str(Path(table).name)
    else:
        readings = _readings(root, notes, manifest)
        labels = {uid: NoduleSlices(reading.nodules, agreement) for uid, reading in readings.items()}
        source = "its annotation file"
        short = sum(reading.readers < 4 for reading in readings.values())
        if short:
            manifest.notes.append(f"{short} annotation files have fewer than four readers")
    _add_cases(manifest, scans, labels, splits, source)
    if table is not None:  # published splits go by its order
        place = {uid: number for number, uid in enumerate(labels)}
        manifest.cases.sort(key=lambda case: place[case.case.series])
    others = Counter(item.modality for item in series if item.modality != "CT")
    radiographs = sum(others.pop(kind, 0) for kind in _KINDS)
    if radiographs:
        manifest.notes.append(f"{radiographs} radiographs (CR, DX) were left out")
    if others:
        manifest.notes.append(
            f"{sum(others.values())} series that are no CT ({', '.join(sorted(others))}) were left out"
        )
    return finish(manifest)


def _add_cases(
    manifest: LabeledManifest,
    scans: list[_Series],
    labels: Mapping[str, Mapping[str, float]],
    splits: Mapping[str, str | None],
    source: str,
) -> None:
    per_patient = Counter(item.patient for item in scans)
    seen: dict[str, str] = {}
    for item in scans:
        if item.uid in seen:
            reason = f"the same series as {seen[item.uid]}, which is used"
            manifest.rejected.append(Rejection(item.path, reason))
            continue
        seen[item.uid] = item.path
        if item.uid not in labels:
            manifest.rejected.append(Rejection(item.path, f"a CT series without labels: {source} is not there"))
            continue
        name = item.patient
        if per_patient[item.patient] > 1:
            name += "-" + hashlib.blake2b(item.uid.encode(), digest_size=4).hexdigest()
        slices = labels[item.uid]
        case = Case(name, item.path, item.patient, item.uid, item.files, splits.get(item.uid))
        label = {"nodule": float(any(slices.values()))}
        manifest.cases.append(LabeledCase(case, label, slices=slices))
    for uid in sorted(set(labels) - set(seen)):
        manifest.rejected.append(Rejection(uid, "labels of a series that is not there (not downloaded?)"))


def _list_files(root: Path, manifest: LabeledManifest) -> tuple[dict[str, list[str]], list[str]]:
    """Files that may be DICOM by folder, and annotation files; both relative to the root."""
    folders: dict[str, list[str]] = {}
    notes: list[str] = []

    def unreadable(error: OSError) -> None:
        folder = os.path.relpath(error.filename or root, root)
        manifest.rejected.append(Rejection(folder, f"this folder cannot be searched: {error.strerror}"))

    for name in walk_files(root, unreadable):
        kind = os.path.splitext(name)[1].lower().lstrip(".")
        if kind == "xml":
            notes.append(name)
        elif kind not in OTHER_KINDS and os.path.basename(name).upper() != "LICENSE":
            folders.setdefault(os.path.dirname(name), []).append(name)
    return folders, notes


def _series(root: Path, folder: str, files: list[str], manifest: LabeledManifest) -> _Series | None:
    """What the first header of a folder says; each folder holds one series."""
    import pydicom

    named = [name for name in files if name.lower().endswith(".dcm")]
    first = (named or files)[0]
    tags = ["PatientID", "Modality", "SeriesInstanceUID"]
    why = "a DICOM file without SeriesInstanceUID"
    try:
        with quiet_pydicom():
            header = pydicom.dcmread(root / first, stop_before_pixels=True, specific_tags=tags)
            patient, modality, uid = (str(header.get(tag) or "").strip() for tag in tags)
        if uid:
            return _Series(_patient(patient, folder), uid, modality.upper(), folder, tuple(named or files))
    except OSError as error:
        why = f"cannot be opened ({error.strerror})"
    except Exception as error:
        # Not DICOM, or damaged. What pydicom says may quote the header, so only the kind is told.
        why = f"no readable DICOM header ({type(error).__name__})" if named else ""
    if why:
        manifest.rejected.append(Rejection(first, why))
    return None


def _patient(patient: str, folder: str) -> str:
    """The published pseudonym; any other PatientID could be a person's, and is hashed."""
    if _PATIENT.fullmatch(patient):
        return patient
    named = [part for part in folder.split("/") if _PATIENT.fullmatch(part)]
    return named[-1] if named else hash_patient_id(patient or folder)


def _readings(root: Path, files: list[str], manifest: LabeledManifest) -> dict[str, Reading]:
    """Readings by SeriesInstanceUID; the same one may lie both beside the images and in the separate download."""
    found: dict[str, Reading] = {}
    clash: dict[str, str] = {}
    others = 0
    for name in files:
        try:
            reading = read_reading(root / name)
        except (InputError, OSError) as error:
            manifest.rejected.append(Rejection(name, f"annotation file: {error}"))
            continue
        if reading is None:
            others += 1
        elif found.setdefault(reading.series, reading) != reading:
            clash[reading.series] = name
    for uid, name in clash.items():
        del found[uid]
        manifest.rejected.append(Rejection(name, f"differs from another annotation file of series {uid}: none is used"))
    if not found:
        raise InputError(
            f"{root} holds no annotation file of a CT series (found {len(files)} XML files): download the annotations "
            f"of {FOLDER} beside the images, or name a CSV with the labels of slices (task.labels_csv)"
        )
    if others:
        manifest.notes.append(f"{others} XML files are not readings of CT (radiographs, or others) and were left out")
    return found


def _read_labels(path: Path) -> tuple[dict[str, dict[str, float]], dict[str, str | None]]:
    """Labels of slices by series, and the part each series belongs to, from a CSV."""
    table = read_table(path, (*_CSV_KEYS, IMAGE), keys=_CSV_KEYS, what="table of slices")
    table[IMAGE] = table[IMAGE].replace({"True": "1", "False": "0"})
    table[IMAGE] = numbers(table, IMAGE, path, among=(0, 1))
    labels: dict[str, dict[str, float]] = {}
    splits: dict[str, str | None] = {}
    for uid, rows in table.groupby("SeriesInstanceUID", sort=False):
        labels[uid] = dict(zip(rows["SOPInstanceUID"], rows[IMAGE].tolist()))
        if "Split" in table:
            words = sorted({word.lower() for word in rows["Split"]})
            if len(words) > 1 or words[0] not in (*_SPLITS, ""):
                raise InputError(
                    f"{path}: Split of series {uid} is {', '.join(map(repr, words))}; expected one of "
                    f"{', '.join(SPLITS)} for all slices of a series"
                )
            splits[uid] = _SPLITS.get(words[0])
    return labels, splits
