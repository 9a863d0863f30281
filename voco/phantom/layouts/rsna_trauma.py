"""The ``rsna_trauma`` layout: injured abdomens and their uninjured twins, laid out and tabled as RSNA 2023 is."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.labels import GROUPS, LABELS
from voco.phantom.anatomy.patient import Painted, Patient
from voco.phantom.anatomy.scanner import Scanner
from voco.phantom.anatomy.tissue import draw_tissue
from voco.phantom.disease import Job, Lesion
from voco.phantom.layouts.writers import oriented, write_dicom
from voco.phantom.lesions.mimics_trauma import paint_abdomen_mimics
from voco.phantom.lesions.trauma import PARTS, Injuries, Organ, injured_slices, plant_trauma

GROUP = 2
COLUMNS = (
    "patient_id", "bowel_healthy", "bowel_injury", "extravasation_healthy", "extravasation_injury", "kidney_healthy",
    "kidney_low", "kidney_high", "liver_healthy", "liver_low", "liver_high", "spleen_healthy", "spleen_low",
    "spleen_high", "any_injury",
)  # fmt: skip
"""Columns of ``train.csv`` in their published order."""
RATES = {"low": 0.2, "high": 0.2, "bowel": 0.2, "extravasation": 0.25}
"""Among the injured, before patients without any injury are drawn again: far more than in emergency rooms."""
SEGMENTS = {"liver": 1, "spleen": 2, "kidney_left": 3, "kidney_right": 4, "bowel": 5}
"""Values in ``segmentations/``."""

_TWO_SERIES, _INCOMPLETE, _SEGMENTED = 0.35, 0.07, 0.15
_UID_ROOT = "1.2.123.12345.1.2.3"
_FIRST_ID, _IDS = 10001, 55001  # a prime, so that multiples of any step run through all of it
_IMAGE_LABELS = {"active_extravasation": "Active_Extravasation", "bowel": "Bowel"}


def draw(anatomy: Anatomy, scanner: Scanner, rng: np.random.Generator) -> tuple[Anatomy, Scanner]:
    """A scan of the abdomen in the portal phase; a few do not hold all organs."""
    anatomy = in_phase(anatomy, "portal", rng.uniform(0, 40) if rng.random() < 0.35 else 0.0)
    top, bottom = rng.uniform(-84, -58), rng.uniform(-372, -338)
    if rng.random() < _INCOMPLETE:
        top, bottom = (rng.uniform(-150, -135), bottom) if rng.random() < 0.5 else (top, rng.uniform(-285, -265))
    return anatomy, replace(scanner, top_mm=float(top), bottom_mm=float(bottom))


def in_phase(anatomy: Anatomy, phase: str, liver_fat_hu: float | None = None) -> Anatomy:
    """The same patient at another time after the injection; fat makes a liver darker by ``liver_fat_hu``."""
    from voco.rng import derive_seed

    hu = draw_tissue(np.random.default_rng(derive_seed(anatomy.seed, "tissue")), phase)
    if liver_fat_hu is None:
        liver_fat_hu = anatomy.hu.get("liver_fat", 0.0)
    hu["liver"] -= liver_fat_hu
    return replace(anatomy, phase=phase, hu={**hu, "liver_fat": float(liver_fat_hu)})


def paint_mimics(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Cysts, clefts, thin fluid, streaks: the same in both patients of a pair and in each of their series."""
    paint_abdomen_mimics(canvas, anatomy, rng)


def draw_injuries(rng: np.random.Generator) -> Injuries:
    """What an injured patient has: each organ on its own, drawn again until there is something."""
    while True:
        grades = rng.choice(
            ["healthy", "low", "high"], 3, p=[1 - RATES["low"] - RATES["high"], RATES["low"], RATES["high"]]
        )
        bowel, extravasation = rng.random(2) < (RATES["bowel"], RATES["extravasation"])
        injuries = Injuries(*(str(grade) for grade in grades), bool(bowel), bool(extravasation))
        if injuries.any:
            return injuries


def identifiers(seed: int, index: int) -> tuple[int, list[int]]:
    """patient_id and two series_ids of a case: they look random, never repeat, and do not depend on the cohort."""
    from voco.rng import derive_seed

    def number(name: str, place: int) -> int:
        rng = np.random.default_rng(derive_seed(seed, "rsna_trauma", name))
        start, step = int(rng.integers(_IDS)), int(rng.integers(1, _IDS))
        rounds, place = divmod(place, _IDS)
        return _FIRST_ID + (start + step * place) % _IDS + rounds * _IDS

    return number("patients", index), [number("series", 2 * index + k) for k in range(2)]


def write_case(job: Job) -> tuple[list[Path], dict]:
    """Write the series of one patient."""
    subject = job.subject
    shared = subject.rng("series")
    two, segmented = shared.random() < _TWO_SERIES, shared.random() < _SEGMENTED
    injured = int(subject.rng("twin").integers(GROUP)) == job.member
    injuries = draw_injuries(subject.rng("injuries")) if injured else Injuries()
    patient_id, series_ids = identifiers(job.seed, job.index)
    paths, meta, marks, tags, lesions = [], [], [], [], []
    # The second run of the scanner has its own noise; its grid is that of the first.
    settings = [(subject.anatomy, subject.scanner)]
    if two:
        other = replace(subject.scanner, seed=int(shared.integers(2**31)))
        settings.append((in_phase(subject.anatomy, "arterial"), other))
    for number, ((anatomy, scanner), series_id) in enumerate(zip(settings, series_ids)):
        found: list[Lesion] = []

        def edit(canvas: Canvas, anatomy: Anatomy, found=found) -> None:
            found.extend(plant_trauma(injuries, canvas, anatomy, job.rng("lesion"), job.severity or 1.0))

        scan = job.scan(edit, anatomy=anatomy, scanner=scanner)
        painted = subject.painted(anatomy, scanner)
        folder = job.out / "train_images" / str(patient_id) / str(series_id)
        _write_series(folder, scan, patient_id, series_id, number, job)
        paths.append(folder)
        meta.append([patient_id, series_id, *_meta(painted, subject.scanner)])
        marks += _image_labels(found, painted, patient_id, series_id)
        tags += _tags(folder, job.out)
        lesions += [{"series_id": series_id, **lesion.row(painted)} for lesion in found]
        if number == 0:
            patient = scan
            if segmented:
                _write_segmentation(job.out / "segmentations" / f"{series_id}.nii", painted)
    label = {
        "bowel": "injury" if injuries.bowel else "healthy",
        "extravasation": "injury" if injuries.extravasation else "healthy",
        **{organ: getattr(injuries, organ) for organ in ("kidney", "liver", "spleen")},
        "any_injury": int(injuries.any),
    }
    return paths, job.row(
        patient,
        ids=[f"{patient_id}-{series_id}" for series_id in series_ids[: len(settings)]],
        label=label,
        lesions=lesions,
        paths=paths,
        _label_row=_label_row(patient_id, label),
        _meta=meta,
        _marks=marks,
        _tags=tags,
    )


def _label_row(patient_id: int, label: dict) -> list[int]:
    row = [patient_id]
    for column in COLUMNS[1:-1]:
        organ, state = column.split("_")
        row.append(int(label[organ] == state))
    return [*row, label["any_injury"]]


def _write_series(folder: Path, scan: Patient, patient_id: int, series_id: int, number: int, job: Job) -> None:
    """Slices are named by their InstanceNumber, which counts from the head."""
    count = len(scan.scan)
    names = [f"{count - k}.dcm" for k in range(count)]
    base = f"{_UID_ROOT}.{patient_id}"
    sops = [f"{base}.1.{series_id}.{count - k}" for k in range(count)]
    write_dicom(
        folder,
        scan.scan,
        scan.spacing_mm,
        scan.origin_mm,
        patient=str(patient_id),
        key=("rsna_trauma", job.seed, patient_id),
        number=number + 1,
        description="",
        study_description="",
        padding=scan.scanner.padding,
        files=names,
        sex=scan.anatomy.sex,
        uids=(base, f"{base}.{series_id}", sops),
    )


def _meta(painted: Painted, scanner: Scanner) -> tuple[float, int]:
    """aortic_hu and incomplete_organ of a series, both from the uninjured anatomy."""
    aorta = painted.canvas.hu[painted.canvas.labels == LABELS["aorta"]]
    hu = float(np.median(aorta)) if len(aorta) else painted.anatomy.hu["aorta"]
    incomplete = scanner.top_mm < -130 or scanner.bottom_mm > -300
    return round(hu, 1), int(incomplete)


def _image_labels(found: list[Lesion], painted: Painted, patient_id: int, series_id: int) -> list[list]:
    rows = set()
    for lesion in found:
        if lesion.kind in _IMAGE_LABELS:
            slices = injured_slices(lesion, painted)
            rows |= {(painted.grid.size[0] - int(k), _IMAGE_LABELS[lesion.kind]) for k in slices}
    return [[patient_id, series_id, instance, name] for instance, name in sorted(rows)]


def _tags(folder: Path, out: Path) -> list[dict]:
    """Header fields of every image, as the published table of tags has them."""
    import pydicom

    rows = []
    for path in sorted(folder.iterdir(), key=lambda path: int(path.stem)):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        row = {name: _plain(header.get(name)) for name in _TAGS}
        rows.append({**row, "path": path.relative_to(out).as_posix()})
    return rows


_TAGS = (
    "BitsAllocated", "BitsStored", "Columns", "FrameOfReferenceUID", "HighBit", "ImageOrientationPatient",
    "ImagePositionPatient", "InstanceNumber", "KVP", "PatientID", "PatientPosition", "PhotometricInterpretation",
    "PixelRepresentation", "PixelSpacing", "RescaleIntercept", "RescaleSlope", "RescaleType", "Rows", "SOPInstanceUID",
    "SamplesPerPixel", "SeriesInstanceUID", "SliceThickness", "StudyInstanceUID",
)  # fmt: skip


def _plain(value):
    """Numbers stay numbers, lists become their text."""
    from pydicom.multival import MultiValue

    if isinstance(value, MultiValue):
        return str([float(v) for v in value])
    return float(value) if isinstance(value, float) else int(value) if isinstance(value, int) else str(value)


def _write_segmentation(path: Path, painted: Painted) -> None:
    """Organs without findings, as an uncompressed NIfTI on the grid of the scan."""
    import nibabel

    canvas = painted.canvas
    fine = np.where(np.isin(canvas.labels, [LABELS[name] for name in GROUPS["bowel"]]), SEGMENTS["bowel"], 0)
    fine = fine.astype(np.uint8)
    for name in PARTS:
        organ = Organ(canvas, name)
        if organ.box is not None:
            fine[organ.box][organ.inside] = SEGMENTS[name]
    mask = fine[painted.slices // 2 :: painted.slices]
    z, y, x = (float(v) for v in painted.grid.origin_mm)
    data, affine = oriented(mask, painted.grid.spacing_mm, (x, y, z), "RAS")
    image = nibabel.Nifti1Image(np.ascontiguousarray(data), np.diag([-1, -1, 1, 1]) @ affine)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image.to_bytes())


def write_tables(out: Path, rows: list[dict]) -> None:
    """Write labels, series, marked images and header fields, sorted by patient as published."""
    import pandas as pd

    rows = sorted(rows, key=lambda row: row["_label_row"][0])
    _write(out / "train.csv", COLUMNS, [row["_label_row"] for row in rows])
    meta = [line for row in rows for line in row["_meta"]]
    _write(out / "train_series_meta.csv", ("patient_id", "series_id", "aortic_hu", "incomplete_organ"), meta)
    marks = [line for row in rows for line in row["_marks"]]
    _write(out / "image_level_labels.csv", ("patient_id", "series_id", "instance_number", "injury_name"), marks)
    tags = pd.DataFrame([line for row in rows for line in row["_tags"]], columns=[*_TAGS, "path"])
    tags.to_parquet(out / "train_dicom_tags.parquet", index=False)


def _write(path: Path, columns, rows: list[list]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
