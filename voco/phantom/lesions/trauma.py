"""Injuries of the abdomen: torn organs, blood around them, damaged bowel, contrast that leaks. docs/phantoms.md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.labels import LABELS
from voco.phantom.anatomy.shapes import ellipsoid
from voco.phantom.disease import Lesion, contrast_share, plant, size_share
from voco.phantom.lesions.shapes import Ripple, smooth_step, soft

SOLID = ("kidney", "liver", "spleen")
PARTS = {
    "liver": ("liver", "liver_vessels"),
    "spleen": ("spleen",),
    "kidney_right": ("kidney_right", "kidney_medulla"),
    "kidney_left": ("kidney_left", "kidney_medulla"),
}
_MARGIN_MM = 14.0
_CAVITY = ("visceral_fat", "mediastinal_fat")
_LEAK_MM2 = 12.0


@dataclass(frozen=True)
class Injuries:
    """What is injured: grades "healthy", "low", "high" of solid organs; bowel and leaking contrast yes or no."""

    kidney: str = "healthy"
    liver: str = "healthy"
    spleen: str = "healthy"
    bowel: bool = False
    extravasation: bool = False

    @property
    def any(self) -> bool:
        return self.bowel or self.extravasation or any(getattr(self, organ) != "healthy" for organ in SOLID)


class Organ:
    """One solid organ on a canvas, cut out with a margin.

    Attributes:
        box: index box around it, None where the scan holds less than 2 ml of it.
        inside: boolean mask on the box.
        points: patient coordinates on the box.
    """

    def __init__(self, canvas: Canvas, name: str):
        self.canvas, self.name = canvas, name
        found = canvas.labels == LABELS[PARTS[name][0]]
        self.box = _box_around(found, canvas.grid.spacing_mm, _MARGIN_MM)
        if found.sum() * np.prod(canvas.grid.spacing_mm) < 2000:
            self.box = None
        if self.box is not None:
            # Bowel vessels are called as those of the liver; they are not joined to it.
            self.inside = _largest(np.isin(canvas.labels[self.box], [LABELS[part] for part in PARTS[name]]))
            self.points = canvas.points(self.box)

    @cached_property
    def depth(self) -> np.ndarray:
        """Distance in mm to the organ's surface, positive inside, negative outside."""
        from scipy.ndimage import distance_transform_edt as edt

        spacing = self.canvas.grid.spacing_mm
        return (edt(self.inside, spacing) - edt(~self.inside, spacing)).astype(np.float32)

    def at(self, index) -> np.ndarray:
        """Patient (x, y, z) of a voxel of the box."""
        index = tuple(index)
        return np.array([self.points.x[index], self.points.y[index], self.points.z[index]], float)

    def entry(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A point on the surface and the nearest of some points deep under it; thick parts are hit more often."""
        surface = np.argwhere(self.inside & (self.depth <= 1.5 * self.canvas.edge_mm))
        deep = np.argwhere(self.depth > 0.55 * self.depth.max())
        starts, goals = (
            np.stack([self.at(i) for i in points[(rng.random(count) * len(points)).astype(int)]])
            for points, count in ((surface, 3), (deep, 24))
        )
        away = np.linalg.norm(starts[:, None] - goals, axis=-1)
        first, second = np.unravel_index(away.argmin(), away.shape)
        return starts[first], goals[second]

    def mix(self, cover: np.ndarray, value) -> None:
        """Give the organ's voxels another density."""
        hu = self.canvas.hu[self.box]
        hu += self.inside * cover * (value - hu)

    def tear(self, start, goal, length: float, breadth: float, width: float, value: float, rng, share: float) -> None:
        """A jagged cleft from the surface inward, wide at its mouth, filled with blood (or whatever ``value`` is)."""
        p = self.points
        inward = _unit(goal - start)
        along = _unit(np.cross(inward, rng.standard_normal(3)))
        across = np.cross(inward, along)
        rough, fine = Ripple(rng, 26), Ripple(rng, 8)
        shift = (p.x - start[0], p.y - start[1], p.z - start[2])
        a, b, c = (sum(np.float32(v) * s for v, s in zip(axis, shift)) for axis in (inward, along, across))
        jag = rough(p)
        c = c + 2.6 * jag + 0.7 * fine(p)
        taper = 1 - 0.65 * np.clip(a / np.float32(length), 0, 1)
        distance = np.maximum(np.abs(c) - np.float32(0.5 * width) * taper, np.abs(b) - 0.5 * breadth * taper)
        distance = np.maximum(distance, np.maximum(a - length - 2 * jag, -a - 6))
        edge = max(1.3, self.canvas.edge_mm)
        self.mix(soft(distance, edge) * np.float32(share * min(1.0, width / edge)), value)

    def pool(self, centre, radius: float, value: float, rng, share: float) -> None:
        """Blood inside the organ: a blot without a sharp border, not of one density."""
        coarse, fine = Ripple(rng, 2.2 * radius), Ripple(rng, 9)
        radii = radius * rng.uniform(0.75, 1.3, 3)
        distance = ellipsoid(self.points, centre, radii) + radius * 0.28 * coarse(self.points)
        self.mix(soft(distance, 5.0) * np.float32(share), value + 7 * fine(self.points))

    def crescent(self, centre, radius: float, thick: float, value: float, share: float) -> None:
        """Blood under the capsule: a lens between the surface and the dented organ."""
        p = self.points
        away2 = (p.x - centre[0]) ** 2 + (p.y - centre[1]) ** 2 + (p.z - centre[2]) ** 2
        lens = thick * (1 - away2 / np.float32(radius**2))
        self.mix(soft(np.where(self.inside, self.depth, 0) - lens, max(1.5, self.canvas.edge_mm)) * share, value)

    def infarct(self, start, goal, share: float, value: float) -> None:
        """A part of the organ without blood supply, behind a straight border that ends at the surface."""
        inward = _unit(goal - start)
        p = self.points
        reach = 0.8 * float(np.linalg.norm(goal - start))
        a = sum(np.float32(v) * s for v, s in zip(inward, (p.x - start[0], p.y - start[1], p.z - start[2])))
        self.mix(soft(a - reach, 3.0) * np.float32(share), value)

    def surround(self, thick: float, value: float, rng, share: float = 1.0) -> None:
        """Fluid around the organ: where there is fat, more of it toward the back, uneven."""
        p, box = self.points, self.box
        free = np.isin(self.canvas.labels[box], [LABELS[name] for name in _CAVITY])
        middle = float(np.median(p.y[self.inside]))
        layer = thick * (0.55 + 0.45 * np.tanh((p.y - middle) / 25)) * np.clip(0.8 + 0.45 * Ripple(rng, 45)(p), 0, 1.6)
        cover = soft(-self.depth - layer, max(1.5, self.canvas.edge_mm)) * (layer > 0.3) * free
        hu = self.canvas.hu[box]
        hu += cover * np.float32(share) * np.maximum(value - hu, 0)  # edges share voxels with the organ


def plant_trauma(
    injuries: Injuries, canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator, severity: float
) -> list[Lesion]:
    """Plant injuries.

    Args:
        injuries: what is injured and how badly.
        canvas: ideal image, changed in place.
        anatomy: of the patient; its phase decides how bright leaking contrast is.
        rng: place and shape; the same for each series of a patient.
        severity: above 0.
    """
    size, share = size_share(severity), contrast_share(severity)
    lesions: list[Lesion | None] = []
    sites: list[np.ndarray] = []
    for organ in SOLID:
        own = np.random.default_rng(rng.integers(2**63))
        grade = getattr(injuries, organ)
        if grade == "healthy":
            continue
        name = organ if organ != "kidney" else ("kidney_right", "kidney_left")[int(own.integers(2))]
        lesion, site = _tear_organ(Organ(canvas, name), grade, own, size, share)
        lesions.append(lesion)
        if site is not None:
            sites.insert(0 if grade == "high" else len(sites), site)
    own = np.random.default_rng(rng.integers(2**63))
    if injuries.bowel:
        lesion, site = _injure_bowel(canvas, anatomy, own, size, share)
        lesions.append(lesion)
        if own.random() < 0.8:
            lesions.append(_free_gas(canvas, anatomy, own, size, share))
        if site is not None:
            sites.append(site)
    own = np.random.default_rng(rng.integers(2**63))
    if injuries.extravasation:
        lesions.append(_leak(canvas, anatomy, sites, own, size, share))
    return [lesion for lesion in lesions if lesion is not None]


def _tear_organ(organ: Organ, grade: str, rng, size: float, share: float) -> tuple[Lesion | None, np.ndarray | None]:
    """Low: small shallow tears or a thin crescent. High: deep branched tears, blood inside and around, lost supply."""
    if organ.box is None:
        return None, None
    blood = rng.uniform(34, 50)
    start, goal = organ.entry(rng)
    small = organ.name.startswith("kidney")
    scale = size * (0.85 if small else 1.0)

    def low():
        kind = rng.random()
        if kind < 0.75:
            for _ in range(int(rng.integers(1, 3))):
                way, length, width = goal + rng.normal(0, 8, 3), rng.uniform(26, 42) * scale, rng.uniform(8, 12) * scale
                organ.tear(start, way, length, 40 * scale, width, blood, rng, share)
        if kind > 0.5:
            organ.crescent(start, rng.uniform(30, 42) * scale, rng.uniform(10, 15) * scale, blood + 5, share)
        organ.surround(rng.uniform(2, 4) * size, blood, rng, share)

    def high():
        for _ in range(int(rng.integers(3, 6))):
            way = goal + rng.normal(0, 16, 3) * scale
            length = rng.uniform(42, 75) * scale
            organ.tear(start, way, length, 60 * scale, rng.uniform(12, 20) * scale, blood, rng, share)
        organ.pool(0.5 * (start + goal), rng.uniform(24, 36) * scale, blood + 12, rng, share)
        if rng.random() < (0.6 if small else 0.3):
            organ.infarct(start, goal, share, blood + 8)
        organ.surround(rng.uniform(8, 16) * size, blood, rng, share)

    lesion = plant(organ.canvas, organ.box, f"{organ.name}_{grade}", low if grade == "low" else high, share=share)
    return lesion, start


def _injure_bowel(canvas: Canvas, anatomy: Anatomy, rng, size: float, share: float):
    """A thick-walled loop in streaky fat, fluid between the loops, bubbles of free gas beside it."""
    from scipy.ndimage import distance_transform_edt as edt

    site = _place(canvas, rng, "bowel_wall")
    if site is None:
        return None, None
    radius = rng.uniform(36, 50) * size
    box = canvas.grid.box(site - 1.5 * radius, site + 1.5 * radius)
    thick = rng.uniform(4.5, 7) * size
    bubbles, radii = site + rng.normal(0, 0.45, (9, 3)) * radius, rng.uniform(1.6, 3.6, 9) * size
    streaks, lumps, rim = Ripple(rng, 6), Ripple(rng, 24), Ripple(rng, 30)

    def put():
        p, labels, hu = canvas.points(box), canvas.labels[box], canvas.hu[box]
        near = ellipsoid(p, site, (radius, radius, radius)) + 0.25 * radius * rim(p)
        here = soft(near, 14.0) * np.float32(share)
        fat = np.isin(labels, [LABELS[name] for name in _CAVITY])
        hu += here * fat * np.clip(0.45 + 0.4 * streaks(p), 0, 0.9) * (0 - hu)
        hu += here * fat * smooth_step(lumps(p), 0.15, 0.5) * (24 - hu)
        off = edt(labels != LABELS["bowel_wall"], canvas.grid.spacing_mm).astype(np.float32)
        outward, inward = (soft(off - part * thick, canvas.edge_mm) for part in (1.0, 0.4))
        swollen = outward * fat + inward * (labels == LABELS["bowel_content"])
        hu += swollen * here * (anatomy.hu["bowel_wall"] + 12 - hu)
        for at, r in zip(bubbles, radii):
            bubble = soft(ellipsoid(p, at, (r, r, r)), canvas.edge_mm) * min(1.0, 2 * r / canvas.edge_mm)
            hu += bubble * fat * np.float32(share) * (-900 - hu)

    return plant(canvas, box, "bowel", put, share=share), site


def _free_gas(canvas: Canvas, anatomy: Anatomy, rng, size: float, share: float) -> Lesion | None:
    """Gas under the front wall of the abdomen, the highest place of a patient on the back."""
    level, thick = float(rng.uniform(-250, -190)), rng.uniform(5, 10) * size
    box = canvas.grid.box((-75, -130, level - 45), (75, -20, level + 45))

    def put():
        p, hu = canvas.points(box), canvas.hu[box]
        fat = np.isin(canvas.labels[box], [LABELS[name] for name in _CAVITY])
        layer = thick * smooth_step(1 - np.sqrt((p.x / 55) ** 2 + ((p.z - level) / 40) ** 2), 0, 0.5)
        cover = soft(-anatomy.cage_distance(p) - 3 - layer, canvas.edge_mm) * (layer > 0.3) * (p.y < -30)
        hu += cover * fat * np.float32(share) * (-940 - hu)

    return plant(canvas, box, "free_gas", put, share=share)


def _place(canvas: Canvas, rng: np.random.Generator, part: str) -> np.ndarray | None:
    """Patient (x, y, z) of a random voxel of a part; None where there is hardly any."""
    found = np.flatnonzero(canvas.labels == LABELS[part])
    if len(found) < 20:
        return None
    index = np.unravel_index(found[int(rng.random() * len(found))], canvas.labels.shape)
    p = canvas.points(tuple(slice(int(v), int(v) + 1) for v in index))
    return np.array([p.x.item(), p.y.item(), p.z.item()])


def _leak(canvas: Canvas, anatomy: Anatomy, sites: list[np.ndarray], rng, size: float, share: float) -> Lesion | None:
    """Contrast outside the vessels, bright and without form, in a haematoma at an injury, else in the mesentery."""
    centre = sites[0] if sites else _place(canvas, rng, "bowel_wall")
    if centre is None:
        return None
    arterial = anatomy.phase == "arterial"
    bright = min(anatomy.hu["aorta"] * rng.uniform(1.0, 1.3) + (0 if arterial else 110), 400.0)
    radius = rng.uniform(24, 34) * size
    box = canvas.grid.box(centre - 1.7 * radius, centre + 1.7 * radius)
    coarse, fine = Ripple(rng, 1.8 * radius), Ripple(rng, 11)
    jets = centre + rng.normal(0, 0.3, (4, 3)) * radius
    radii = rng.uniform(0.3, 0.55, (4, 3)) * radius * (0.8 if arterial else 1.0)

    def put():
        p, labels, hu = canvas.points(box), canvas.labels[box], canvas.hu[box]
        soft_parts = _CAVITY + sum(PARTS.values(), ()) + ("bowel_wall",)
        open_to = np.isin(labels, [LABELS[name] for name in soft_parts]) * np.float32(share)
        clot = soft(ellipsoid(p, centre, (radius,) * 3) + 0.3 * radius * coarse(p), 4.0)
        hu += clot * open_to * (56 + 6 * fine(p) - hu)
        pool = np.min([ellipsoid(p, at, r) for at, r in zip(jets, radii)], axis=0) + 1.6 * fine(p)
        hu += soft(pool, max(3.0, canvas.edge_mm)) * open_to * np.maximum(bright - hu, 0)

    return plant(canvas, box, "active_extravasation", put, share=share, bright_hu=round(float(bright), 1))


def injured_slices(lesion: Lesion, painted) -> np.ndarray:
    """Slices of the scan, from the lowest, in which a radiologist would mark the finding."""
    return np.flatnonzero(lesion.areas_mm2(painted) >= _LEAK_MM2)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / max(float(np.linalg.norm(v)), 1e-6)


def _largest(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    parts, count = label(mask)
    if count < 2:
        return mask
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def _box_around(mask: np.ndarray, spacing_mm, margin_mm: float) -> tuple[slice, ...] | None:
    from scipy.ndimage import find_objects

    found = find_objects(mask.astype(np.uint8))
    if not found:
        return None
    grow = [int(np.ceil(margin_mm / s)) for s in spacing_mm]
    return tuple(slice(max(b.start - g, 0), min(b.stop + g, n)) for b, g, n in zip(found[0], grow, mask.shape))
