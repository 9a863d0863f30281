"""Synthetic chest CTs with nodules in the layout of LIDC-IDRI.

``LIDC-IDRI/LIDC-IDRI-0001/<StudyInstanceUID>/<SeriesInstanceUID>/*.dcm`` with one XML beside the slices: four readers,
nodules of 3 mm or more with outlines and ratings, smaller ones, and non-nodules. Some patients have a radiograph too.

A slice is positive where at least three annotations reach over it. Negatives have annotations as well: of mimics, by
fewer readers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.patient import Painted, Patient
from voco.phantom.anatomy.scanner import Scanner
from voco.phantom.anatomy.shapes import ellipsoid
from voco.phantom.disease import Job, Lesion, size_share
from voco.phantom.layouts.lidc_xml import Session, write_xml
from voco.phantom.layouts.writers import write_dicom
from voco.phantom.lesions.chest import (
    Mark,
    hilar_nodes,
    lung_points,
    mucus_plugs,
    paint_interlobar,
    paint_marks,
    plan_granulomas,
    plan_scars,
)
from voco.phantom.lesions.nodule import Nodule, plan_nodules, plant_nodules, read_nodule

GROUP = 2
READERS = 4
AGREEMENT = 3
_UID_ROOT = "1.3.6.1.4.1.14519.5.2.1.6279.6001."


def draw(anatomy: Anatomy, scanner: Scanner, rng: np.random.Generator) -> tuple[Anatomy, Scanner]:
    """The lungs from top to bottom, in any contrast phase."""
    return anatomy, replace(scanner, top_mm=float(rng.uniform(102, 118)), bottom_mm=float(rng.uniform(-225, -195)))


def paint_mimics(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """What positives and negatives share: granulomas, scars, plugs, nodes, dots under 3 mm, doubtful nodules."""
    paint_interlobar(canvas, anatomy)
    hilar_nodes(canvas, anatomy, rng)
    mucus_plugs(canvas, rng)
    for dot in _dots(anatomy):
        box = canvas.grid.box(dot - 4, dot + 4)
        if box is not None:
            strength = min(1.0, 4 / 3 * np.pi * (1.2 / canvas.edge_mm) ** 3)
            canvas.paint(box, ellipsoid(canvas.points(box), dot, (1.2, 1.2, 1.2)), 20, None, strength=strength)
    paint_marks(canvas, _others(anatomy))
    for nodule in _doubtful(anatomy):
        plant_nodules(canvas, [nodule], 1.0)


def write_case(job: Job) -> tuple[list[Path], dict]:
    """Write one patient."""
    subject, anatomy = job.subject, job.subject.anatomy
    severity = job.planned_severity
    nodules = []
    if job.member == int(subject.rng("label").integers(GROUP)):
        nodules = subject.shared("nodules", lambda: plan_nodules(anatomy, subject.rng("lesions")))
    planted: list[tuple[Nodule, Lesion]] = []
    patient = job.scan(lambda canvas, _: planted.extend(plant_nodules(canvas, nodules, severity)))
    painted = subject.painted()
    sessions, counts = _read(job, painted, planted, size_share(severity))
    present = counts >= AGREEMENT
    name = f"LIDC-IDRI-{job.index + 1:04d}"
    folder = job.out / "LIDC-IDRI" / name
    study, series = _uid(job, "study"), _uid(job, "series")
    sops = [_uid(job, "image", k) for k in range(len(patient.scan))]
    path = folder / study / series
    sharp = patient.scanner.kernel == "sharp"
    dz, z0 = patient.spacing_mm[0], patient.origin_mm[2]
    order = job.rng("files").permutation(len(sops)) + 1
    write_dicom(
        path, patient.scan, patient.spacing_mm, patient.origin_mm, patient=name, key=(*subject.key, job.index),
        sex=anatomy.sex, kernel="B70f" if sharp else "B31f", padding=patient.scanner.padding,
        files=[f"1-{number:03d}.dcm" for number in order], uids=(study, series, sops),
    )  # fmt: skip
    z_mm = [z0 + k * dz for k in range(len(sops))]
    write_xml(path / f"{job.index + 1:03d}.xml", study, series, z_mm, sops, sessions)
    if anatomy.stream("radiograph").random() < 0.15:
        _write_radiograph(folder, job, patient, name)
    lesions = [
        {**lesion.row(painted), "sop_uids": [sops[k] for k in np.flatnonzero(lesion.areas_mm2(painted) > 0)]}
        for _, lesion in planted
    ]
    row = job.row(
        patient, ids=[name], label=int(present.any()), lesions=lesions, paths=[path],
        positive_slices=int(present.sum()), positive_sop_uids=[sops[k] for k in np.flatnonzero(present)],
    )  # fmt: skip
    return [path], row


def write_tables(out: Path, rows: list[dict]) -> None:
    """LIDC-IDRI has no table: everything is in the XML files."""


def _read(job: Job, painted: Painted, planted: list, size: float) -> tuple[list[Session], np.ndarray]:
    """The readers' sessions, and the number of annotations that reach over each slice, (D,)."""
    anatomy, canvas = job.subject.anatomy, painted.canvas
    sessions = [Session() for _ in range(READERS)]
    counts = np.zeros(painted.grid.size[0], int)

    def mark(nodule: Nodule, name: str, readers: list[int], scale: float, rng: np.random.Generator) -> None:
        for reading in read_nodule(canvas, painted.slices, nodule, scale, readers, rng):
            session = sessions[reading.reader]
            title = f"{name}{reading.reader}"
            session.nodules.append((title, reading.contours, _ratings(nodule, rng)))
            counts[min(reading.contours) : max(reading.contours) + 1] += 1

    # First what twins share, from the anatomy's stream.
    rng = anatomy.stream("readers")
    doubtful, dots, others = job.subject.shared(
        "mimics", lambda: (_doubtful(anatomy), _dots(anatomy), _others(anatomy))
    )
    for number, nodule in enumerate(doubtful):
        mark(nodule, f"doubtful {number} ", _some(rng, int(rng.integers(1, AGREEMENT))), 1.0, rng)
    points = [(dot, True) for dot in dots] + [(mark.centre, False) for mark in others]
    for number, (point, small) in enumerate(points):
        place = _pixel(painted, point)
        for reader in _some(rng, int(rng.integers(1, READERS + 1))) if place else []:
            title = f"{'small' if small else 'other'} {number} {reader}"
            (sessions[reader].small if small else sessions[reader].others).append((title, *place))
    rng = job.subject.rng("nodule readers")
    for number, (nodule, _) in enumerate(planted):
        mark(nodule, f"Nodule {number + 1:03d} ", _some(rng, AGREEMENT + int(rng.random() < 0.7)), size, rng)
    return sessions, counts


def _some(rng: np.random.Generator, count: int) -> list[int]:
    return sorted(int(v) for v in rng.choice(READERS, count, replace=False))


def _doubtful(anatomy: Anatomy) -> list[Nodule]:
    """Little nodules that one or two readers mark, far apart in z, so that no slice of a negative has three marks."""
    rng = anatomy.stream("doubtful")
    found: list[Nodule] = []
    for nodule in plan_nodules(anatomy, rng)[: int(rng.integers(0, 3))]:
        if all(abs(nodule.centre[2] - other.centre[2]) > 30 for other in found):
            # As small as vessels, so that doubt is right.
            found.append(replace(nodule, diameter_mm=float(rng.uniform(3.2, 4.2)), spikes=nodule.spikes[:0]))
    return found


def _dots(anatomy: Anatomy) -> np.ndarray:
    """Nodules under 3 mm."""
    rng = anatomy.stream("dots")
    return lung_points(anatomy, rng, 4.0)[: int(rng.integers(0, 6))]


def _others(anatomy: Anatomy) -> list[Mark]:
    """What readers mark as no nodule: scars and calcified granulomas."""
    return plan_scars(anatomy, anatomy.stream("scars")) + plan_granulomas(anatomy, anatomy.stream("granulomas"))


def _pixel(painted: Painted, point) -> tuple[int, tuple[int, int]] | None:
    """Slice and (column, row) of a point in the patient's frame; None outside the scan."""
    box = painted.canvas.grid.box(point, point)
    if box is None:
        return None
    z, y, x = (part.start for part in box)
    return z // painted.slices, (x, y)


def _ratings(nodule: Nodule, rng: np.random.Generator) -> dict[str, int]:
    """A reader's ratings, on the scales of LIDC-IDRI: 1 to 5; calcification 6 is none, texture 1 is ground glass."""
    lean = {"solid": 5, "part_solid": 3, "ground_glass": 1}[nodule.texture]
    spiky = 2 + 2 * bool(len(nodule.spikes))

    def about(value: float) -> int:
        return int(np.clip(round(value + rng.normal(0, 0.6)), 1, 5))

    return {
        "subtlety": about(1 + nodule.diameter_mm / 3), "internalStructure": 1, "calcification": 6,
        "sphericity": about(4), "margin": about(lean), "lobulation": about(len(nodule.lobes)),
        "spiculation": about(spiky), "texture": about(lean), "malignancy": about(1.5 + nodule.diameter_mm / 5),
    }  # fmt: skip


def _uid(job: Job, *what: str | int) -> str:
    from voco.rng import derive_seed

    return _UID_ROOT + str(10**19 + derive_seed(*job.subject.key, "case", job.index, *what))


def _write_radiograph(folder: Path, job: Job, patient: Patient, name: str) -> None:
    """A chest radiograph in a study of its own, as many patients of the set have."""
    import pydicom

    study, series = _uid(job, "radiograph study"), _uid(job, "radiograph series")
    dz, _, dx = patient.spacing_mm
    summed = np.maximum(patient.hu, -1000).astype(np.float32).mean(axis=1)[::-1] + 1000
    image = np.clip(summed * 1.5, 0, 4000).astype(np.int16) - 1024
    (path,) = write_dicom(
        folder / study / series, image[None], (1.0, dz, dx), patient.origin_mm, patient=name,
        key=(*job.subject.key, job.index, "radiograph"), number=1, kernel="", description="CHEST PA",
        files=["1-1.dcm"], uids=(study, series, [_uid(job, "radiograph")]), sex=patient.anatomy.sex,
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    dataset.Modality = "DX"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "ConvolutionKernel",
                    "SliceLocation", "RescaleIntercept", "RescaleSlope", "RescaleType"):  # fmt: skip
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.save_as(path, enforce_file_format=True)
