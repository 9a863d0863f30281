"""Whose scan is it: the rules that give each case its patient, and those that leave patients out."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from voco.data.privacy import hash_patient_id
from voco.data.text_tables import delimiter_of, read_text
from voco.errors import InputError

if TYPE_CHECKING:
    from voco.data.manifest import Case

MAX_SCANS_OF_A_PATIENT = 8
# Folders that sort scans by purpose, not by person.
_NOT_A_PERSON = frozenset(
    {"imagestr", "imagests", "imagesva", "images", "image", "imgs", "volumes", "scans", "data", "raw", "dataset"}
    | {"train", "training", "test", "testing", "val", "valid", "validation", "export", "exports"}
    | {"ct", "cts", "nifti", "nii", "dicom", "dcm", "site", "sites", "center", "centre"}
)
_HEADINGS = {"patient", "patient_id", "patientid", "case", "case_id", "id", "path", "subject"}


def assign_patients(cases: list[Case], patient_regex: str | None) -> tuple[list[Case], list[str]]:
    """Fill in the patient where the list or the DICOM header did not say.

    With a pattern, its first group (or the whole match) in the relative path is the patient, also where a DICOM
    header says otherwise. Without, a file that lies directly in the root is a patient of its own; else the top-most
    folder that holds at most eight scans, but not all of them, is the patient; else the file is. A folder with scans
    beside folders with scans, or with scans of two known patients, is nobody's.

    Args:
        cases: patient ``""`` where open.
        patient_regex: pattern, or None.

    Returns:
        The cases, and sentences for the user.

    Raises:
        InputError: a pattern that is none, or that matches no path.
    """
    notes: list[str] = []
    if patient_regex is not None:
        cases, notes = _by_pattern(cases, patient_regex)
    inside: Counter[str] = Counter(folder for case in cases for folder in _folders(case))
    for folder in _of_several(cases):
        inside[folder] = MAX_SCANS_OF_A_PATIENT + 1
    open_ones = [not case.patient for case in cases]
    cases = [case if case.patient else replace(case, patient=_by_folder(case, inside, len(cases))) for case in cases]
    guessed = Counter(case.patient for case, was_open in zip(cases, open_ones) if was_open)
    together = sum(n for n in guessed.values() if n > 1)
    if together:
        notes.append(
            f"{together} scans share a folder with others and are kept together as one patient a folder; if they are "
            "of different people, say so with a pattern (patient_regex) or a CSV with a patient column"
        )
    patients = {case.patient for case in cases}
    if len(patients) == 1 and len(cases) > 1:
        notes.append(
            f"all {len(cases)} scans seem to be of one patient, so none can be held out; if they are not, say so with "
            "a pattern (patient_regex) or a CSV with a patient column"
        )
    return cases, notes


def _by_pattern(cases: list[Case], pattern: str) -> tuple[list[Case], list[str]]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"patient_regex {pattern!r} is no regular expression: {error}") from None
    out, missed = [], []
    for case in cases:
        match = compiled.search(case.path)
        found = (match.group(1) if compiled.groups else match.group(0)) if match else None
        if not found:
            missed.append(case.path)
        out.append(replace(case, patient=found) if found else case)
    if len(missed) == len(cases):
        raise InputError(
            f"patient_regex {pattern!r} matches none of the {len(cases)} paths; the first is {missed[0]!r}"
        )
    note = f"patient_regex does not match {len(missed)} of {len(cases)} paths (first: {missed[0]})" if missed else ""
    return out, [note] if note else []


def _folders(case: Case) -> list[str]:
    """Folders between the root and the scan, top-most first; a DICOM series lies in its own folder."""
    parts = [part for part in case.path.split("/") if part != "."]
    if not case.files:
        parts = parts[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _of_several(cases: list[Case]) -> set[str]:
    """Folders that cannot be one patient's: scans beside folders with scans, or scans of several known patients."""
    direct, deeper = set(), set()
    known: dict[str, set[str]] = {}
    for case in cases:
        folders = _folders(case)
        above = folders[:-1] if case.files else folders
        if above and not case.files:
            direct.add(above[-1])
            above = above[:-1]
        deeper.update(above)
        for folder in folders if case.patient else ():
            known.setdefault(folder, set()).add(case.patient)
    return (direct & deeper) | {folder for folder, patients in known.items() if len(patients) > 1}


def _by_folder(case: Case, inside: Counter[str], total: int) -> str:
    for folder in _folders(case):
        person = folder.rsplit("/", 1)[-1].lower() not in _NOT_A_PERSON
        if person and inside[folder] <= MAX_SCANS_OF_A_PATIENT and inside[folder] < total:
            return folder
    return case.path if case.series is None else f"{case.path}/{case.series}"


def exclude_patients(cases: list[Case], file: Path) -> tuple[list[Case], list[str]]:
    """Leave out every case of the patients that a file names.

    A line may hold a PatientID as in the DICOM header, its digest, a patient of a CSV, a folder or file name of the
    path, or a case id. In a CSV the column ``patient`` counts, else the first one.

    Returns:
        The cases that stay, and a sentence about what was left out and about lines that name nobody here.

    Raises:
        InputError: the file cannot be read, is empty, or not one line names a patient here.
    """
    wanted = _read_names(file)
    patients_of: dict[str, set[str]] = {}
    for case in cases:
        parts = case.path.split("/")
        names = {case.id, case.patient, case.path, *parts, *_folders(case), _stem(parts[-1])}
        for name in names:
            patients_of.setdefault(name, set()).add(case.patient)
    out: set[str] = set()
    unknown = []
    for name in wanted:
        found = patients_of.get(name, set()) | patients_of.get(hash_patient_id(name), set())
        out |= found
        if not found:
            unknown.append(name)
    if len(unknown) == len(wanted):
        raise InputError(
            f"none of the {len(wanted)} lines of {file} names a patient here; a line is a PatientID, its digest, a "
            f"folder, a file or a case id, such as {cases[0].patient!r}"
        )
    stay = [case for case in cases if case.patient not in out]
    # The lines themselves may be PatientIDs, so they are counted and not repeated.
    lines = f"; {len(unknown)} of {len(wanted)} lines name nobody here" if unknown else ""
    return stay, [f"{file.name} leaves out {len(out)} patients with {len(cases) - len(stay)} scans{lines}"]


def _stem(name: str) -> str:
    return re.sub(r"\.(nii\.gz|nii|mha|mhd|nrrd|nhdr)$", "", name, flags=re.IGNORECASE)


def _read_names(file: Path) -> list[str]:
    try:
        text = read_text(file, "the list of excluded patients")
    except OSError as error:
        raise InputError(f"the list of excluded patients {file} cannot be read: {error}") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise InputError(f"the list of excluded patients {file} is empty")
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter_of(lines[0]))]
    heading = [cell.lower() for cell in rows[0]]
    column = heading.index("patient") if "patient" in heading else 0
    if heading[column] in _HEADINGS:
        rows = rows[1:]
    return list(dict.fromkeys(row[column] for row in rows if len(row) > column and row[column]))
