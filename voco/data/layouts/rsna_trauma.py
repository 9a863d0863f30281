"""RSNA 2023 abdominal trauma: ``train_images/<patient>/<series>/<instance>.dcm`` and one row of labels a patient."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from voco.data.layouts.labeled import LabeledCase, LabeledManifest, finish, numbers, read_table
from voco.data.manifest import Case, Rejection
from voco.errors import InputError

PATIENT, SERIES, ANY = "patient_id", "series_id", "any_injury"
ORGANS = {
    "bowel": ("healthy", "injury"),
    "extravasation": ("healthy", "injury"),
    "kidney": ("healthy", "low", "high"),
    "liver": ("healthy", "low", "high"),
    "spleen": ("healthy", "low", "high"),
}
COLUMNS = tuple(f"{organ}_{grade}" for organ, grades in ORGANS.items() for grade in grades)
# The second name is that of RSNA's later release.
TABLES = ("train.csv", "train_2024.csv")
META = "train_series_meta*.csv"
TRAIN_IMAGES, TEST_IMAGES = "train_images", "test_images"
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read_rsna_trauma(root: str | Path, *, table: str = "") -> LabeledManifest:
    """The labeled series: every series folder of every patient of the table.

    No image is opened: files are listed and sorted by number. A patient's series are cases of one unit.

    Args:
        root: folder with ``train.csv`` or ``train_2024.csv``, ``train_images`` and, if there,
            ``train_series_meta.csv``.
        table: another path of the table, relative to the root.

    Returns:
        Cases ``<patient_id>-<series_id>`` with one label per organ, the number of its grade (0 healthy), and
        ``incomplete_organ`` and ``aortic_hu`` as attributes.

    Raises:
        InputError: no table, missing columns, patients twice, values that are not 0 or 1, no series at all.
    """
    root = Path(root)
    path = _find_table(root, table)
    rows = read_table(path, (PATIENT, *COLUMNS), keys=(PATIENT,), what="table of injuries")
    labels, wrong = _grades(rows, path)
    manifest = LabeledManifest(root)
    series = _series_folders(root / TRAIN_IMAGES, manifest)
    attributes = _attributes(root, series, manifest)
    for patient in sorted(series.keys() | labels.keys() | wrong.keys()):
        place = f"{TRAIN_IMAGES}/{patient}"
        if patient in wrong:
            manifest.rejected.append(Rejection(place, f"{path.name}: {wrong[patient]}"))
        elif patient not in labels:
            manifest.rejected.append(Rejection(place, f"{path.name} has no row for this patient"))
        elif not series.get(patient):
            manifest.rejected.append(Rejection(place, f"{path.name} has its labels, but there is no series of images"))
        else:
            for case in _cases(root, place, patient, series[patient], manifest):
                found = attributes.get(case.id, {})
                manifest.cases.append(LabeledCase(case, labels[patient], unit=patient, attributes=found))
    patients = len({case.unit for case in manifest.cases})
    manifest.notes.append(
        f"{len(manifest.cases)} series of {patients} patients; labels and scores are those of patients"
    )
    return finish(manifest)


def read_rsna_trauma_test(root: str | Path) -> LabeledManifest:
    """The series below ``test_images``, without labels.

    Raises:
        InputError: there are none.
    """
    root = Path(root)
    manifest = LabeledManifest(root)
    for patient, series in sorted(_series_folders(root / TEST_IMAGES, manifest).items()):
        cases = _cases(root, f"{TEST_IMAGES}/{patient}", patient, series, manifest)
        manifest.cases += [LabeledCase(case, unit=patient) for case in cases]
    return finish(manifest)


def _find_table(root: Path, table: str) -> Path:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; expected the one with {TABLES[0]} and {TRAIN_IMAGES}")
    if table:
        return root / table
    found = [name for name in TABLES if (root / name).is_file()]
    if len(found) != 1:
        what = "both " + " and ".join(found) if found else "neither " + " nor ".join(TABLES)
        raise InputError(f"{root} holds {what}; expected one table of injuries, or name it with task.table")
    return root / found[0]


def _grades(rows, path: Path) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Grade of each organ by patient, and what is wrong with the rows that contradict themselves."""
    names = [*COLUMNS, ANY] if ANY in rows.columns else COLUMNS
    values = {name: numbers(rows, name, path, among=(0, 1)).to_numpy() for name in names}
    labels, wrong = {}, {}
    for i, patient in enumerate(rows[PATIENT]):
        row = {}
        for organ, grades in ORGANS.items():
            marked = [g for g, grade in enumerate(grades) if values[f"{organ}_{grade}"][i]]
            if len(marked) != 1:
                wrong.setdefault(patient, f"{len(marked)} grades of {organ} are marked; expected one of {len(grades)}")
            else:
                row[organ] = float(marked[0])
        if not _SAFE.fullmatch(patient):
            wrong[patient] = f"{PATIENT} {patient!r} may hold letters, digits, '.', '_' and '-' only"
        elif ANY in values and patient not in wrong and bool(values[ANY][i]) != any(row.values()):
            wrong[patient] = f"{ANY} is {values[ANY][i]:g}, but the organs say {float(any(row.values())):g}"
        labels[patient] = row
    return {patient: row for patient, row in labels.items() if patient not in wrong}, wrong


def _series_folders(images: Path, manifest: LabeledManifest) -> dict[str, list[str]]:
    """Series folders of each patient folder."""
    if not images.is_dir():
        raise InputError(f"{images} is not there; expected {images.name}/<{PATIENT}>/<{SERIES}>/<instance_number>.dcm")
    found: dict[str, list[str]] = {}
    for patient in _folders(images):
        try:
            found[patient] = sorted(_folders(images / patient), key=_by_number)
        except OSError as error:
            manifest.rejected.append(Rejection(f"{images.name}/{patient}", f"cannot be searched: {error.strerror}"))
    return found


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _cases(root: Path, place: str, patient: str, series: list[str], manifest: LabeledManifest) -> list[Case]:
    cases = []
    for name in series:
        folder = f"{place}/{name}"
        try:
            with os.scandir(root / folder) as entries:
                files = [e.name for e in entries if e.name.lower().endswith(".dcm") and not e.name.startswith(".")]
        except OSError as error:
            manifest.rejected.append(Rejection(folder, f"cannot be searched: {error.strerror}"))
            continue
        if not files:
            manifest.rejected.append(Rejection(folder, "holds no DICOM file (<instance_number>.dcm)"))
        elif not _SAFE.fullmatch(f"{patient}-{name}"):
            manifest.rejected.append(Rejection(folder, "names may hold letters, digits, '.', '_' and '-' only"))
        else:
            paths = tuple(f"{folder}/{file}" for file in sorted(files, key=_by_number))
            cases.append(Case(f"{patient}-{name}", folder, patient, files=paths))
    return cases


def _by_number(name: str) -> tuple[int, int, str]:
    """``2.dcm`` before ``10.dcm``; names without a number come last."""
    number = name.split(".")[0]
    return (0, int(number), name) if number.isdecimal() else (1, 0, name)


def _attributes(root: Path, series: Mapping[str, list[str]], manifest: LabeledManifest) -> dict[str, dict[str, str]]:
    """Columns of the table of series by case id; series that it names and that are not there are rejected."""
    tables = sorted(root.glob(META))
    if not tables:
        manifest.notes.append(f"no {META.replace('*', '')}: incomplete_organ and aortic_hu are not known")
        return {}
    rows = read_table(tables[0], (PATIENT, SERIES), keys=(PATIENT, SERIES), what="table of series")
    extra = [name for name in ("incomplete_organ", "aortic_hu") if name in rows.columns]
    there = {f"{patient}-{name}" for patient, names in series.items() for name in names}
    found = {}
    for row in rows.to_dict("records"):
        case = f"{row[PATIENT]}-{row[SERIES]}"
        found[case] = {name: row[name] for name in extra}
        if case not in there and series.get(row[PATIENT]):
            place = f"{TRAIN_IMAGES}/{row[PATIENT]}/{row[SERIES]}"
            manifest.rejected.append(
                Rejection(place, f"{tables[0].name} names this series, but there is no such folder")
            )
    if unnamed := len(there - found.keys()):
        manifest.notes.append(f"{unnamed} series are not in {tables[0].name}")
    return found
