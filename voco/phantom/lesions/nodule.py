"""Pulmonary nodules, and what four readers would mark of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.shapes import Branch, Points, ellipsoid
from voco.phantom.disease import Lesion, contrast_share, plant, size_share
from voco.phantom.lesions.chest import LUNG, lung_points, paint_in, paint_tube, random_direction
from voco.short_repr import short_repr

TEXTURES = ("solid", "part_solid", "ground_glass")


@short_repr
@dataclass(frozen=True)
class Nodule:
    """One nodule in the patient's frame.

    Attributes:
        centre: (x, y, z) mm.
        diameter_mm: mean diameter at severity 1.
        shape: three radii over half of the diameter.
        axes: (3, 3) rows of unit vectors.
        lobes: (n, 4) bumps on the surface: direction and height over the radius.
        spikes: (n, 3) directions of thin strands.
        texture: of ``TEXTURES``.
        hu: of the whole; of the core where it is part-solid.
        halo_hu: of the rim where it is part-solid.
    """

    centre: np.ndarray
    diameter_mm: float
    shape: np.ndarray
    axes: np.ndarray
    lobes: np.ndarray
    spikes: np.ndarray
    texture: str
    hu: float
    halo_hu: float

    def field(self, p: Points, size: float = 1.0, moved=(0.0, 0.0, 0.0)) -> np.ndarray:
        """Signed distance in mm; ``size`` over that at severity 1, ``moved`` (x, y, z) in mm."""
        radius = 0.5 * self.diameter_mm * size
        centre = self.centre + moved
        out = ellipsoid(p, centre, self.shape * radius, self.axes)
        x, y, z = (c - np.float32(v) for c, v in zip((p.x, p.y, p.z), centre))
        length = np.sqrt(x * x + y * y + z * z) + np.float32(1e-3)
        for *direction, height in self.lobes.astype(np.float32):
            cosine = (x * direction[0] + y * direction[1] + z * direction[2]) / length
            out = out - height * np.float32(radius) * np.exp((cosine - 1) * 5)
        return out


def plan_nodules(anatomy: Anatomy, rng: np.random.Generator) -> list[Nodule]:
    """Draw the nodules of one patient: 13 to 28 mm at severity 1, three to five of them, no two close together."""
    found: list[Nodule] = []
    points = lung_points(anatomy, rng, 8.0)
    count = int(rng.integers(3, 6))
    for centre in points:
        if all(np.linalg.norm(centre - other.centre) > 35 for other in found):
            found.append(_nodule(centre, rng))
        if len(found) == count:
            break
    return found


def _nodule(centre: np.ndarray, rng: np.random.Generator) -> Nodule:
    texture = str(rng.choice(TEXTURES, p=[0.66, 0.18, 0.16]))
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    lobes = [[*random_direction(rng), rng.uniform(0.1, 0.3)] for _ in range(int(rng.integers(1, 5)))]
    spikes = [random_direction(rng) for _ in range(int(rng.integers(3, 8)))] if rng.random() < 0.35 else []
    # A faint nodule is seen from a larger size on.
    least = 13.0 if texture == "solid" else 16.0
    return Nodule(
        centre, float(rng.uniform(least, 28)), rng.uniform(0.82, 1.18, 3), axes,
        np.array(lobes), np.array(spikes).reshape(-1, 3), texture,
        float(rng.uniform(-650, -450) if texture == "ground_glass" else rng.uniform(-10, 60)),
        float(rng.uniform(-680, -500)),
    )  # fmt: skip


def plant_nodules(canvas: Canvas, nodules: list[Nodule], severity: float) -> list[tuple[Nodule, Lesion]]:
    """Paint nodules into the lungs of an ideal image; those outside its range are left out."""
    planted = []
    for nodule in nodules:
        if (lesion := _plant(canvas, nodule, severity)) is not None:
            planted.append((nodule, lesion))
    return planted


def _plant(canvas: Canvas, nodule: Nodule, severity: float) -> Lesion | None:
    size, share = size_share(severity), contrast_share(severity)
    radius = 0.5 * nodule.diameter_mm * size
    reach = 1.6 * radius + 3 + canvas.edge_mm
    box = canvas.grid.box(nodule.centre - reach, nodule.centre + reach)
    # Over vessels a nodule merges with them: they are as dense, or denser, and stay in front.
    over = (*LUNG, "airway_wall")

    def put() -> None:
        p = canvas.points(box)
        field = nodule.field(p, size)
        if nodule.texture == "solid":
            paint_in(canvas, box, field, nodule.hu, over, strength=share)
        else:
            rim = nodule.halo_hu if nodule.texture == "part_solid" else nodule.hu
            edge = max(2.5, canvas.edge_mm)
            paint_in(canvas, box, field, rim, over, strength=share, edge_mm=edge)
            if nodule.texture == "part_solid":
                paint_in(canvas, box, field + np.float32(0.45 * radius), nodule.hu, over, strength=share)
        for direction in nodule.spikes:
            strand = Branch(
                nodule.centre + 0.8 * radius * direction, nodule.centre + 1.5 * radius * direction, 0.6, 0.3
            )
            thin = min(1.0, np.pi * (0.5 / canvas.edge_mm) ** 2)
            paint_tube(canvas, [strand], nodule.hu, LUNG, strength=thin * share)

    return plant(
        canvas, box, "nodule", put, share=share, texture=nodule.texture, diameter_mm=round(2 * radius, 1), hu=nodule.hu
    )


@short_repr
@dataclass(frozen=True)
class Reading:
    """What one reader drew of one nodule.

    Attributes:
        reader: 0 to 3.
        contours: slice of the scan to outline (n, 2) of pixels (column, row), the first ones outside the nodule.
    """

    reader: int
    contours: dict[int, np.ndarray]


def read_nodule(
    canvas: Canvas, slices: int, nodule: Nodule, size: float, readers: list[int], rng: np.random.Generator
) -> list[Reading]:
    """Outline a nodule once per reader: each sees the edge and the middle a little differently.

    Args:
        canvas: for its grid.
        slices: thin slices of the canvas per slice of the scan.
        nodule: in the patient's frame.
        size: over that at severity 1.
        readers: who marks it.
        rng: of the readers.
    """
    reach = 0.8 * nodule.diameter_mm * size + 6
    box = canvas.grid.box(nodule.centre - reach, nodule.centre + reach)
    if box is None:
        return []
    p = canvas.points(box)
    out = []
    for reader in readers:
        field = nodule.field(p, size, rng.normal(0, 0.35, 3)) - np.float32(rng.normal(0.2, 0.45))
        contours = {}
        for number in range(box[0].start // slices, (box[0].stop - 1) // slices + 1):
            first = number * slices - box[0].start
            inside = field[max(first, 0) : max(first + slices, 0)]
            mask = inside.mean(axis=0) < 0 if len(inside) else np.zeros(field.shape[1:], bool)
            if mask.any():
                contours[number] = _outline(mask) + np.array([box[2].start, box[1].start])
        if contours:
            out.append(Reading(reader, contours))
    return out


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels just outside of a blob, in order around it and back to the first; (column, row)."""
    from scipy.ndimage import binary_dilation

    wide = np.pad(mask, 1)
    ring = binary_dilation(wide) & ~wide
    row, column = np.nonzero(ring)
    middle = np.argwhere(wide).mean(axis=0)
    order = np.argsort(np.arctan2(row - middle[0], column - middle[1]), kind="stable")
    points = np.stack([column, row], axis=1)[order] - 1
    return np.concatenate([points, points[:1]])
