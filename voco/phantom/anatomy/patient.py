"""Put a patient together: anatomy from one stream of random numbers, the scan from another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from voco.errors import InputError
from voco.phantom.anatomy.abdomen import paint_abdomen
from voco.phantom.anatomy.anatomy import Anatomy, draw_anatomy
from voco.phantom.anatomy.bones import paint_bones
from voco.phantom.anatomy.canvas import Canvas, Grid
from voco.phantom.anatomy.heart import heart_parts, mediastinum, paint_heart
from voco.phantom.anatomy.labels import GROUPS, LABELS
from voco.phantom.anatomy.lungs import lung_trees, paint_lungs, paint_trees
from voco.phantom.anatomy.scanner import Scanner, acquire, add_table, draw_scanner, plan_grid
from voco.phantom.anatomy.shapes import smooth_max
from voco.phantom.anatomy.torso import inside_abdomen, paint_neck, paint_spinal_muscles, paint_torso
from voco.short_repr import short_repr

Edit = Callable[[Canvas, Anatomy], None]


@short_repr
@dataclass(frozen=True)
class Patient:
    """A synthetic patient and the scan of it.

    Args:
        scan: int16 (D, H, W) toward superior, posterior, left; outside the field of view the scanner's padding value.
        labels: uint8 (D, H, W), values of ``LABELS``.
        spacing_mm: (D, H, W).
        origin_mm: position (x, y, z) in LPS of the first voxel.
        name: identity within the cohort, e.g. ``PHANTOM-0003``.
        anatomy: the numbers behind the body.
        scanner: the numbers behind the scan.
    """

    scan: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    name: str
    anatomy: Anatomy
    scanner: Scanner

    @property
    def hu(self) -> np.ndarray:
        """Canonical HU: padding below -1024 read as air."""
        return np.maximum(self.scan, -1024)

    @property
    def parameters(self) -> dict:
        """Everything that was drawn, ready for JSON."""
        return {"name": self.name, "anatomy": self.anatomy.as_dict(), "scanner": self.scanner.as_dict()}

    def mask(self, name: str) -> np.ndarray:
        """Boolean mask of a part (``LABELS``) or a group of parts (``GROUPS``).

        Raises:
            InputError: unknown name.
        """
        names = GROUPS.get(name, (name,))
        if not all(part in LABELS for part in names):
            raise InputError(f"unknown part {name!r}; known: {', '.join([*LABELS, *GROUPS])}")
        table = np.zeros(256, bool)
        table[[LABELS[part] for part in names]] = True
        return table[self.labels]

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Masks of all parts that the scan holds."""
        present = np.flatnonzero(np.bincount(self.labels.ravel(), minlength=len(LABELS)))
        by_value = {value: name for name, value in LABELS.items()}
        return {by_value[int(v)]: self.labels == v for v in present}


def make_patient(
    seed: int,
    index: int,
    *,
    size: tuple[int, int, int] | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    scanner: Scanner | None = None,
    edit: Edit | None = None,
) -> Patient:
    """Make patient ``index`` of cohort ``seed``: the same patient and scan in every run, whatever else is made.

    Args:
        seed: cohort.
        index: patient in the cohort, from 0.
        size: voxels (D, H, W); with ``spacing_mm`` see ``scanner.plan_grid``. Default: a 512 x 512 matrix.
        spacing_mm: (D, H, W).
        scanner: scan settings instead of the drawn ones (another series of the same patient).
        edit: called with the ideal image and the anatomy before blur and noise: the place to plant a lesion.

    Raises:
        InputError: a size or spacing that cannot be used.
    """
    from voco.rng import derive_seed

    anatomy = draw_anatomy(derive_seed(seed, "phantom", index))
    scanner = scanner or draw_scanner(derive_seed(seed, "phantom scan", index))
    return expose(paint(anatomy, scanner, size, spacing_mm), f"PHANTOM-{index:04d}", edit=edit)


@dataclass(frozen=True)
class Painted:
    """The ideal image of a patient on the grid of a scan.

    Args:
        canvas: HU before blur and noise, and labels, on thin slices.
        grid: of the scan.
        slices: thin slices per slice of the scan.
        anatomy, scanner: where it comes from.
    """

    canvas: Canvas
    grid: Grid
    slices: int
    anatomy: Anatomy
    scanner: Scanner


def paint(
    anatomy: Anatomy,
    scanner: Scanner,
    size: tuple[int, int, int] | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
) -> Painted:
    """Paint a patient for a scan: the first half of ``make_patient``, which says what the arguments are."""
    grid = plan_grid(scanner, anatomy, size, spacing_mm)
    fine, slices = _thin_slices(grid)
    return Painted(render(anatomy, scanner, fine), grid, slices, anatomy, scanner)


def expose(painted: Painted, name: str, *, edit: Edit | None = None, keep: bool = False) -> Patient:
    """Scan an ideal image: the second half of ``make_patient``.

    Args:
        painted: used up, unless ``keep``; the same noise each time.
        name: identity of the patient.
        edit: called with the ideal image and the anatomy before blur and noise.
        keep: work on a copy.
    """
    canvas = painted.canvas.copy() if keep else painted.canvas
    if edit is not None:
        edit(canvas, painted.anatomy)
    labels = np.ascontiguousarray(canvas.labels[painted.slices // 2 :: painted.slices])
    scan = acquire(canvas.hu, painted.grid, painted.scanner, painted.anatomy, painted.slices)
    z, y, x = (float(v) for v in painted.grid.origin_mm)
    return Patient(scan, labels, painted.grid.spacing_mm, (x, y, z), name, painted.anatomy, painted.scanner)


def _thin_slices(grid: Grid) -> tuple[Grid, int]:
    """Slices much thicker than a pixel are averages of thin ones, as on a scanner."""
    dz = grid.spacing_mm[0]
    count = max(1, round(dz / max(1.8, grid.spacing_mm[1])))
    if count == 1:
        return grid, 1
    thin = dz / count
    origin = grid.origin_mm - np.array([0.5 * (dz - thin), 0, 0])
    size = (grid.size[0] * count, *grid.size[1:])
    return replace(grid, size=size, spacing_mm=(thin, *grid.spacing_mm[1:]), origin_mm=origin), count


def render(anatomy: Anatomy, scanner: Scanner, grid: Grid) -> Canvas:
    """Paint the whole patient on a grid: ideal HU and labels, before any blur or noise."""
    canvas = Canvas(grid)
    back = (anatomy.cage(-60.0)[2] + 22 + 0.35 * anatomy.fat_mm) * anatomy.scale_zyx[1] + grid.centre_mm[1]
    couch = add_table(canvas.hu, grid, scanner, float(back))
    canvas.labels[:, couch] = LABELS["table"]
    fields = paint_torso(canvas, anatomy)
    paint_spinal_muscles(canvas, anatomy)
    paint_neck(canvas, anatomy)
    p = canvas.coarse
    fields["dome"] = anatomy.dome(p)
    fields["under"] = (p.z - fields["dome"]) * np.float32(0.75)
    parts = heart_parts(anatomy, p)
    fields["sac"] = parts["sac"]
    middle = mediastinum(anatomy, p, parts)
    fields["lungs"] = smooth_max(smooth_max(fields["cage"], -fields["under"], 7.0), -middle, 5.0)
    inside_abdomen(canvas, fields["cage"], fields["dome"])
    paint_abdomen(canvas, anatomy, fields)
    paint_lungs(canvas, anatomy, fields)
    paint_heart(canvas, anatomy)
    canvas.trees = lung_trees(anatomy)
    paint_trees(canvas, anatomy, canvas.trees)
    paint_bones(canvas, anatomy)
    return canvas
