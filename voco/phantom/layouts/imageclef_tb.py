"""The ``imageclef_tb`` layout: chests with one of five types of tuberculosis, laid out as ImageCLEF 2021 is.

Pairs of scans share one anatomy and differ in type; there is no healthy class. Every tenth pair is left unlabeled, as
the published test set is.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.patient import Painted
from voco.phantom.anatomy.scanner import Scanner
from voco.phantom.anatomy.tissue import draw_tissue
from voco.phantom.disease import Job, Lesion
from voco.phantom.layouts.writers import write_nifti
from voco.phantom.lesions.mimics_tb import paint_chest_mimics
from voco.phantom.lesions.tb import TYPES, plant_tb
from voco.rng import derive_seed

GROUP = 2
COUNTS = {1: 420, 2: 226, 3: 101, 4: 100, 5: 70}
"""Training scans of each type in the published set: the proportions that a cohort follows."""

_UNLABELED = 10
_GOLDEN = 0.6180339887498949


def draw(anatomy: Anatomy, scanner: Scanner, rng: np.random.Generator) -> tuple[Anatomy, Scanner]:
    """A chest scan without contrast, with aeration that differs more between patients than the types change it."""
    hu = draw_tissue(np.random.default_rng(derive_seed(anatomy.seed, "tissue")), "none")
    hu["lung"] = float(np.clip(rng.normal(-848, 34), -910, -770))
    anatomy = replace(anatomy, phase="none", hu=hu, gravity_hu=float(rng.uniform(20, 90)))
    return anatomy, replace(scanner, bottom_mm=float(rng.uniform(-212, -176)))


def paint_mimics(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Scars, granulomas, bullae, dependent lung and fluid, the same in both scans of an anatomy."""
    paint_chest_mimics(canvas, anatomy, rng)


def write_case(job: Job) -> tuple[list[Path], dict]:
    """Write one scan with its two lung masks."""
    kind = types_of_group(job)[job.member]
    found: list[Lesion] = []

    def edit(canvas: Canvas, anatomy: Anatomy) -> None:
        found.extend(plant_tb(kind, canvas, anatomy, job.rng("lesion"), job.severity or 1.0))

    patient = job.scan(edit)
    painted = job.subject.painted()
    unlabeled = is_unlabeled(job.group)
    name = scan_name(job.index)
    path = job.out / ("test" if unlabeled else "train") / name
    stored = (patient.spacing_mm, patient.origin_mm, patient.scanner.orientation)
    write_nifti(path, patient.scan, *stored, patient.scanner.data_type)
    for folder, mask in zip(("masks1", "masks2"), lung_masks(painted)):
        write_nifti(job.out / folder / name, mask, *stored, "uint8")
    return [path], job.row(
        patient,
        ids=[name.removesuffix(".nii.gz")],
        label=kind,
        lesions=[lesion.row(painted) for lesion in found],
        paths=[path],
        type=TYPES[kind],
        _file=name,
        _sex=patient.anatomy.sex,
        _seed=job.seed,
    )


def is_unlabeled(group: int) -> bool:
    """Whether the scans of an anatomy go to the part without labels."""
    return group % _UNLABELED == _UNLABELED - 1


def scan_name(index: int) -> str:
    """File name of a case: both parts are numbered from 1, whatever the size of the cohort."""
    rounds, place = divmod(index, GROUP * _UNLABELED)
    labeled = GROUP * (_UNLABELED - 1)
    if place < labeled:
        return f"TRN_{rounds * labeled + place + 1:04d}.nii.gz"
    return f"TST_{rounds * GROUP + place - labeled + 1:04d}.nii.gz"


def types_of_group(job: Job) -> list[int]:
    """Two different types for the scans of one anatomy, in random order.

    The types lie on a line of length 2 with lengths in proportion to ``COUNTS``; the types at u and u + 1 are taken, u
    from a sequence that fills the unit interval evenly: small cohorts keep the proportions too. No type is longer than
    1, so the two differ.
    """
    start = np.random.default_rng(derive_seed(job.seed, "imageclef_tb", "types")).random()
    u = (start + _GOLDEN * job.group) % 1.0
    ends = np.cumsum(list(COUNTS.values())) * (GROUP / sum(COUNTS.values()))
    kinds = list(COUNTS)
    chosen = [kinds[min(int(np.searchsorted(ends, v, side="right")), len(kinds) - 1)] for v in (u, u + 1.0)]
    return chosen[::-1] if job.subject.rng("types").random() < 0.5 else chosen


def lung_masks(painted: Painted) -> tuple[np.ndarray, np.ndarray]:
    """Two uint8 masks (D, H, W) of both lungs: one tight, one that is rough and reaches a little farther.

    Both come from the anatomy without findings: they say nothing about the type.
    """
    from scipy.ndimage import gaussian_filter

    from voco.phantom.anatomy.lungs import lung_distance

    canvas = painted.canvas
    field = lung_distance(painted.anatomy, canvas.coarse)
    # A blur of 8 mm rounds corners off and fills recesses; 5 mm more than make up for what it takes away.
    step = [np.ptp(axis) / max(n - 1, 1) for axis, n in zip(_extent(canvas), field.shape)]
    rough = gaussian_filter(np.clip(field, -24, 24), [8.0 / max(s, 1e-3) for s in step]) - 5.0
    out = []
    for shape in (field, rough.astype(np.float32)):
        mask = np.empty(painted.grid.size, np.uint8)
        rows = (slice(0, canvas.grid.size[1]), slice(0, canvas.grid.size[2]))
        for k in range(len(mask)):
            middle = k * painted.slices + painted.slices // 2
            mask[k] = canvas.fine(shape, (slice(middle, middle + 1), *rows))[0] < 0
        out.append(mask)
    return out[0], out[1]


def _extent(canvas: Canvas) -> list[np.ndarray]:
    """Coordinates along the three axes of the coarse grid, through its first corner, in mm."""
    p = canvas.coarse
    return [p.z[:, 0, 0], p.y[0, :, 0], p.x[0, 0, :]]


def write_tables(out: Path, rows: list[dict]) -> None:
    """Write the labels of the training scans, and further data for a part of them."""
    from uuid import UUID

    seed = rows[0]["_seed"]
    key = derive_seed(seed, "imageclef_tb", "table")
    name = str(UUID(int=(key << 65 | derive_seed(seed, "imageclef_tb", "name")) % 2**128, version=4))
    labeled = [row for row in rows if row["_file"].startswith("TRN")]
    _write(
        out / f"{name}_TrainSet_metaData.csv",
        ["FileName", "TypeOfTB"],
        [[row["_file"], row["label"]] for row in labeled],
    )
    _write(
        out / f"{name}_TrainSet_add_metaData.csv",
        ["FileName", "Sex"],
        [[row["_file"], row["_sex"]] for number, row in enumerate(labeled) if number % 3 == 0],
    )


def _write(path: Path, columns: list[str], rows: list[list]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
