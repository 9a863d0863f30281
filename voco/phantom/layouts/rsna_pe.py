"""Synthetic pulmonary CT angiograms in the layout of the RSNA STR Pulmonary Embolism set (2020).

``train/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm`` with identifiers of 12 hex digits, and
``train.csv`` with one row per image and the published columns in their order.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.heart_strain import vary_ventricles, ventricle_ratio
from voco.phantom.anatomy.patient import Painted
from voco.phantom.anatomy.scanner import Scanner
from voco.phantom.anatomy.tissue import draw_tissue
from voco.phantom.disease import Job, Lesion
from voco.phantom.layouts.writers import write_dicom
from voco.phantom.lesions.chest import (
    cava_thrombus,
    hilar_nodes,
    mixing,
    mucus_plugs,
    paint_interlobar,
    paint_marks,
    plan_granulomas,
    plan_scars,
)
from voco.phantom.lesions.pe import exam_labels, plan_emboli, plant_emboli

GROUP = 2
COLUMNS = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "pe_present_on_image", "negative_exam_for_pe",
    "qa_motion", "qa_contrast", "flow_artifact", "rv_lv_ratio_gte_1", "rv_lv_ratio_lt_1", "leftsided_pe",
    "chronic_pe", "true_filling_defect_not_pe", "rightsided_pe", "acute_and_chronic_pe", "central_pe",
    "indeterminate",
)  # fmt: skip
INDETERMINATE_SHARE = 1 / 16
LEAST_AREA_MM2 = 10.0


def draw(anatomy: Anatomy, scanner: Scanner, rng: np.random.Generator) -> tuple[Anatomy, Scanner]:
    """A scan of the chest with the contrast in the pulmonary arteries: 250 to 350 HU, less in some unreadable ones."""
    hu = draw_tissue(rng, "pulmonary")
    artery = rng.uniform(250, 350)
    shares = {
        "pulmonary_artery": 1.0,
        "right_heart": rng.uniform(0.92, 1.03),
        "systemic_vein": rng.uniform(1.0, 1.35),
        "pulmonary_vein": rng.uniform(0.7, 0.95),
        "left_heart": rng.uniform(0.5, 0.85),
        "aorta": rng.uniform(0.4, 0.75),
    }
    if _quality(anatomy) == "contrast":
        artery *= 0.45
    hu.update({name: float(artery * share) for name, share in shares.items()})
    scanner = replace(scanner, top_mm=float(rng.uniform(100, 116)), bottom_mm=float(rng.uniform(-185, -150)))
    return replace(anatomy, phase="pulmonary", hu=hu), scanner


def paint_mimics(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """What positives and negatives share: nodes, plugs, scars, unmixed contrast, other thrombi, unreadable scans."""
    paint_interlobar(canvas, anatomy)
    vary_ventricles(canvas, anatomy, rng)
    hilar_nodes(canvas, anatomy, rng)
    mucus_plugs(canvas, rng)
    paint_marks(canvas, plan_scars(anatomy, rng) + plan_granulomas(anatomy, rng))
    mixing(canvas, anatomy, anatomy.stream("mixing"), _flow_artifact(anatomy))
    if _other_thrombus(anatomy):
        cava_thrombus(canvas, anatomy, rng)
    if _quality(anatomy) == "motion":
        _move(canvas, rng)


def write_case(job: Job) -> tuple[list[Path], dict]:
    """Write one exam."""
    subject, anatomy = job.subject, job.subject.anatomy
    quality = _quality(anatomy)
    positive = not quality and job.member == int(subject.rng("label").integers(GROUP))
    emboli = []
    if positive:
        emboli = plan_emboli(anatomy, subject.painted().canvas.trees, subject.rng("lesions"))
    lesions: list[Lesion] = []
    severity = job.planned_severity
    patient = job.scan(lambda canvas, _: lesions.extend(plant_emboli(canvas, emboli, severity)))
    painted = subject.painted()
    present = positive_slices(lesions, painted)
    positive = bool(present.any())
    ratio = subject.shared("ratio", lambda: ventricle_ratio(painted.canvas, anatomy))
    study, series = _hex(job, "study"), _hex(job, "series")
    sops = [_hex(job, "image", k) for k in range(len(patient.scan))]
    folder = job.out / "train" / study / series
    sharp = patient.scanner.kernel == "sharp"
    write_dicom(
        folder, patient.scan, patient.spacing_mm, patient.origin_mm, patient=_hex(job, "patient"),
        key=(*subject.key, job.index), sex=anatomy.sex, kernel="B70f" if sharp else "B31f",
        description="PE CHEST", padding=patient.scanner.padding, files=[f"{sop}.dcm" for sop in sops],
        uids=(study, series, sops),
    )  # fmt: skip
    exam = {
        "negative_exam_for_pe": int(not positive and not quality),
        "qa_motion": int(quality == "motion"),
        "qa_contrast": int(quality == "contrast"),
        "flow_artifact": int(_flow_artifact(anatomy)),
        "rv_lv_ratio_gte_1": int(positive and ratio >= 1),
        "rv_lv_ratio_lt_1": int(positive and not ratio >= 1),
        "true_filling_defect_not_pe": int(_other_thrombus(anatomy)),
        "indeterminate": int(bool(quality)),
        **exam_labels(lesions),
    }
    shown = [{**lesion.row(painted), "sop_uids": _touched(lesion, painted, sops)} for lesion in lesions]
    row = job.row(
        patient, ids=[study], label=int(positive), lesions=shown, paths=[folder], exam=exam,
        rv_lv_ratio=None if np.isnan(ratio) else round(ratio, 3), positive_slices=int(present.sum()),
        _images=[(study, series, sop, int(here)) for sop, here in zip(sops, present)],
    )  # fmt: skip
    return [folder], row


def write_tables(out: Path, rows: list[dict]) -> None:
    """``train.csv``: images of one exam together, in the order of their identifiers and not of their position."""
    with open(out / "train.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in rows:
            for study, series, sop, present in sorted(row["_images"]):
                table.writerow([study, series, sop, present, *(row["exam"][name] for name in COLUMNS[4:])])


def positive_slices(lesions: list[Lesion], painted: Painted) -> np.ndarray:
    """Which slices of the scan hold a defect, (D,) boolean: at least 10 mm2, or a voxel and a half."""
    area = sum((lesion.areas_mm2(painted) for lesion in lesions), np.zeros(painted.grid.size[0]))
    _, dy, dx = painted.grid.spacing_mm
    present = area >= max(LEAST_AREA_MM2, 1.5 * dy * dx)
    if area.any() and not present.any():  # a lone small clot still has its slice
        present[area.argmax()] = True
    return present


def _touched(lesion: Lesion, painted: Painted, sops: list[str]) -> list[str]:
    return [sops[k] for k in np.flatnonzero(lesion.areas_mm2(painted) > 0)]


def _hex(job: Job, *what: str | int) -> str:
    from voco.rng import derive_seed

    return f"{derive_seed(*job.subject.key, 'case', job.index, *what):016x}"[-12:]


def _quality(anatomy: Anatomy) -> str:
    """Why an exam cannot be read: ``motion``, ``contrast``, or empty for a good one. Twins share it."""
    rng = anatomy.stream("quality")
    return str(rng.choice(["motion", "contrast"])) if rng.random() < INDETERMINATE_SHARE else ""


def _flow_artifact(anatomy: Anatomy) -> bool:
    return bool(anatomy.stream("flow artefact").random() < 0.25)


def _other_thrombus(anatomy: Anatomy) -> bool:
    return bool(anatomy.stream("other thrombus").random() < 0.05)


def _move(canvas: Canvas, rng: np.random.Generator) -> None:
    """Breathing during the scan: double contours, stronger toward the diaphragm."""
    z = canvas.grid.scanner_axes()[0]
    low = 1 / (1 + np.exp((z - canvas.grid.centre_mm[0] + 30) / 25))
    pixel = canvas.grid.spacing_mm[1]
    for image, share in zip(canvas.hu, low):
        for step in rng.uniform(4, 10, 2) * (1, -1):
            moved = np.roll(image, round(float(step * share) / pixel), axis=0)
            image += np.float32(0.35) * (moved - image)
