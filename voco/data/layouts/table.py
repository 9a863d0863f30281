"""A user's own table of labels: one row a scan, ``path`` and label columns, and what else is known about it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from voco.data.cells import known_labels, name_or_none, number, plain, say_look_alikes
from voco.data.layouts.labeled import LabeledCase, LabeledManifest, finish, numbers, read_table
from voco.data.manifest import Case, Rejection, name_cases
from voco.data.manifest_formats import beside, say_windows
from voco.data.manifest_patients import assign_patients
from voco.data.privacy import hash_patient_id
from voco.data.text_tables import did_you_mean
from voco.data.walk import walk_files
from voco.errors import InputError

PATH, PATIENT, SERIES, CASE, SPLIT, FOLD = "path", "patient", "series", "case", "split", "fold"
RESERVED = (PATH, PATIENT, SERIES, CASE, SPLIT, FOLD)
DEFAULT_LABEL = "label"
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "heldout", "held-out", "held_out"), "validation"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
}
_RENAME_PATH = f"the first line must name the columns, and the column with the files must be called {PATH!r}: rename it"
# Other words for a patient. Taken for an attribute, such a column would let splits part a patient.
_PATIENT_WORDS = ("subject", "mrn", "person", "participant", "pat", "pid", "patienten", "paciente", "paziente")
# Names that columns of predictions have for themselves.
_TAKEN = re.compile(r"unit|(label|score)_.*")
_HEADERS_TRIED = 5
_SHOWN = 5


def read_label_table(
    table: str | Path,
    *,
    root: str | Path | None = None,
    labels: Sequence[str] = (),
    labeled: bool = True,
    unknown: Sequence[str] | None = None,
    kind: str = "auto",
    classes: Mapping[str, Sequence[str]] | None = None,
) -> tuple[LabeledManifest, list[str]]:
    """The scans of a table with their labels as text.

    Args:
        table: CSV with ``path`` (a volume file or the folder of a DICOM study, relative to the CSV or to ``root``),
            label columns and, if wanted, ``patient``, ``series`` (SeriesInstanceUID), ``case`` (id), ``split`` and
            ``fold``. Other columns become attributes.
        root: second folder that paths may start from, and the root of the manifest; the folder of the CSV if not given.
        labels: label columns; without any, the column ``label``.
        labeled: whether rows without any label are rejected.
        unknown, kind, classes: which cells are unknown labels, see ``voco.data.cells.known_labels``; classes by column.

    Returns:
        Cases whose ``labels`` hold the cells that are known, and the names of the label columns. Where the table does
        not say whose a scan is, the PatientID of the DICOM header (as a digest) does, then the folder.

    Raises:
        InputError: missing or misspelt columns, scans or ids listed twice, unknown words for a split, a fold that is no
            number, a patient in two parts or folds, no scan that can be used; as ``known_labels``.
    """
    table = Path(table)
    rows = read_table(table, (PATH,), what="table of labels", advice=_RENAME_PATH)
    for name in set(rows.columns) & set(RESERVED) - {PATH}:
        rows[name] = [name_or_none(cell) or "" for cell in rows[name]]
    names = _label_columns(rows.columns, labels, table) if labeled or labels else []
    _refuse_misspelt(rows.columns, names, table)
    _refuse_twice(rows, CASE, table)
    root = table.parent if root is None else Path(root)
    manifest = LabeledManifest(root)
    before = rows[names]
    for name in names:
        rows[name], note = known_labels(
            name, rows[name], option="--task.unknown", unknown=unknown, kind=kind, classes=(classes or {}).get(name, ())
        )
        manifest.notes += [note] if note else []
    manifest.notes += _say_absent_words(unknown, before, names)
    if labeled and names and not (rows[names] != "").any(axis=None):
        raise InputError(
            f"{table}: no row has a label in {', '.join(names)}; fill the column, or name another with task.labels"
        )
    manifest.notes += say_windows(rows[PATH])
    manifest.notes += say_look_alikes(rows[PATIENT][rows[PATIENT] != ""] if PATIENT in rows else ())
    folds = _folds(rows, table)
    extra = [name for name in rows.columns if name not in (*RESERVED, *names)]
    if clash := [name for name in extra if _TAKEN.fullmatch(name)]:
        manifest.notes.append(
            f"columns of {table.name} that predictions name otherwise are not kept: {', '.join(clash)}"
        )
    records = rows.to_dict("records")
    cases, index, seen = [], [], {}
    for i, row in enumerate(records):
        place = _locate(row[PATH], table.parent, root)
        name = Path(os.path.relpath(place, root)).as_posix() if row[PATH] else f"line {i + 2}"
        known = [column for column in names if row[column]]
        split = _split(row.get(SPLIT, ""), f"{table}, line {i + 2}")
        if row[PATH]:
            key = (name, row.get(SERIES, ""))
            if key in seen:
                raise InputError(
                    f"{table} lists {row[PATH]!r} twice, in lines {seen[key]} and {i + 2}; keep one of them"
                )
            seen[key] = i + 2
        if reason := _unusable(row, place, labeled and not known, split, i in folds):
            manifest.rejected.append(Rejection(row[PATH] if name.startswith("..") else name, reason))
            continue
        cases.append(Case(row.get(CASE, ""), name, row.get(PATIENT, ""), row.get(SERIES) or None, split=split))
        index.append(i)
    for case, i in zip(_named(cases, manifest), index):
        row = records[i]
        manifest.cases.append(
            LabeledCase(
                case,
                {column: row[column] for column in names if row[column]},
                fold=folds.get(i),
                attributes={column: row[column] for column in extra if column not in clash},
            )
        )
    _refuse_patients_in_two_folds(manifest, table)
    return finish(manifest), names


def _label_columns(columns: Sequence[str], labels: Sequence[str], table: Path) -> list[str]:
    names = list(labels) or ([DEFAULT_LABEL] if DEFAULT_LABEL in columns else [])
    others = [name for name in columns if name not in RESERVED]
    if not names:
        raise InputError(
            f"{table} has no column {DEFAULT_LABEL}; name the columns to learn with task.labels, out of "
            f"{', '.join(others) or 'none: there is only ' + ', '.join(columns)}" + did_you_mean(DEFAULT_LABEL, others)
        )
    if missing := [name for name in names if name not in others]:
        raise InputError(
            f"{table} has no label column {', '.join(missing)}; there is {', '.join(others) or 'no such column at all'}"
            + did_you_mean(missing[0], others)
        )
    if len(set(names)) < len(names):
        raise InputError(f"task.labels names a column twice: {', '.join(names)}")
    return names


def _say_absent_words(unknown: Sequence[str] | None, cells, names: Sequence[str]) -> list[str]:
    """A sentence on words for unknown that no cell holds: they may be misspelt."""
    held = {plain(cell) for name in names for cell in cells[name]}
    folded = {word.casefold() for word in held} | {number(word) for word in held}
    absent = [w for w in unknown or () if plain(w).casefold() not in folded and (number(plain(w)) or 0.5) not in folded]
    return [
        f"--task.unknown names {word!r}, which no cell of {', '.join(names)} holds" + did_you_mean(word, held)
        for word in absent[:_SHOWN]
    ]


def _refuse_misspelt(columns: Sequence[str], labels: Sequence[str], table: Path) -> None:
    """``Patient_ID`` is meant as ``patient``: an error, since a split that parts patients would not be noticed."""
    for name in columns:
        if name in RESERVED or name in labels:
            continue
        plain = re.sub(r"[^a-z]", "", name.lower())
        short = re.sub(r"(id|uid|name|number|nummer|num|no|nr|key|code)$", "", plain) or plain
        for word in (plain, short, short.removesuffix("s")):
            meant = PATIENT if word in _PATIENT_WORDS else word if word in RESERVED else None
            if meant is not None and meant not in columns:
                raise InputError(f"{table}: column {name!r} looks like {meant!r}; rename it so that it is used")


def _refuse_twice(rows, column: str, table: Path) -> None:
    if column in rows.columns:
        named = rows[column][rows[column] != ""]
        if len(twice := sorted(set(named[named.str.lower().duplicated(keep=False)]))):
            raise InputError(f"{table} has {len(twice)} values of {column} more than once ({', '.join(twice[:5])})")


def _folds(rows, table: Path) -> dict[int, int]:
    """Fold by row, for the rows that have one."""
    if FOLD not in rows.columns:
        return {}
    given = rows[rows[FOLD] != ""]
    values = numbers(rows.assign(**{FOLD: rows[FOLD].where(rows[FOLD] != "", "0")}), FOLD, table).loc[given.index]
    if wrong := [value for value in values if value < 0 or value != int(value)]:
        raise InputError(f"{table}: folds are whole numbers from 0, found {wrong[0]:g}")
    return {int(i): int(value) for i, value in values.items()}


def _split(word: str, where: str) -> str | None:
    if not word:
        return None
    if word.lower() not in SPLIT_WORDS:
        raise InputError(f"{where}: split {word!r} is not one of train, validation, test")
    return SPLIT_WORDS[word.lower()]


def _locate(name: str, *folders: Path) -> Path:
    """A path of the table below the first folder that has it."""
    places = [beside(folder / "table", name) for folder in folders]
    return next((place for place in places if place.exists()), places[0])


def _unusable(row: dict, place: Path, unlabeled: bool, split: str | None, has_fold: bool) -> str:
    """Why a row cannot be used, or nothing."""
    from voco.data.read import is_volume_file

    if not row[PATH]:
        return "this row has no path"
    if not place.exists():
        return "no such file or folder"
    if place.is_file() and not is_volume_file(place):
        return "neither NIfTI, MetaImage nor NRRD by its name; of a DICOM study, give the folder"
    if unlabeled:
        return "no label is known of this scan"
    if row.get(SPLIT) is not None and split is None:
        return "the table has a split column, and this row says nothing in it"
    if row.get(FOLD) is not None and not has_fold and split != "test":
        return "the table has a fold column, and this row says nothing in it"
    return ""


def _named(cases: list[Case], manifest: LabeledManifest) -> list[Case]:
    """Cases with patient and id; the patients that nobody named are read from DICOM headers or guessed by folder."""
    cases = [
        case if case.patient else replace(case, patient=_dicom_patient(manifest.root / case.path)) for case in cases
    ]
    if unknown := sum(not case.patient for case in cases):
        manifest.patient_level = False
        cases, notes = assign_patients(cases, None)
        manifest.notes.append(
            f"{unknown} of {len(cases)} scans have no patient in the table, so splits go by folder or scan; add a "
            f"column {PATIENT} where a patient may have several"
        )
        manifest.notes += notes
    return name_cases(cases)


def _dicom_patient(path: Path) -> str:
    """Digest of the PatientID of a DICOM folder, from the first header that can be read; empty where there is none."""
    if not path.is_dir():
        return ""
    import pydicom

    for name, _ in zip(walk_files(path), range(_HEADERS_TRIED)):
        try:
            header = pydicom.dcmread(path / name, stop_before_pixels=True, specific_tags=["PatientID"])
        except (pydicom.errors.InvalidDicomError, OSError, ValueError, AttributeError, NotImplementedError):
            continue
        if patient := str(header.get("PatientID") or "").strip():
            return hash_patient_id(patient)
    return ""


def _refuse_patients_in_two_folds(manifest: LabeledManifest, table: Path) -> None:
    folds: dict[str, set[int]] = {}
    for case in manifest.cases:
        if case.fold is not None:
            folds.setdefault(case.patient, set()).add(case.fold)
    if both := sorted(patient for patient, found in folds.items() if len(found) > 1):
        raise InputError(
            f"{table}: {len(both)} patients are in more than one fold ({', '.join(both[:5])}); each has one"
        )
