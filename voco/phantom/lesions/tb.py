"""Five types of pulmonary tuberculosis, and what all chests may show besides. Patterns: docs/phantoms.md."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.labels import LABELS
from voco.phantom.anatomy.lungs import LOBES, lobe_regions, lung_distance
from voco.phantom.anatomy.shapes import Branch, Points, ellipsoid, segment
from voco.phantom.disease import Lesion, contrast_share, plant, size_share
from voco.phantom.lesions.shapes import Ripple, add_spheres, smooth_step, soft

TYPES = {1: "infiltrative", 2: "focal", 3: "tuberculoma", 4: "miliary", 5: "fibro_cavernous"}
"""Class ids of the published table."""

_LIMITS = ((-215, 102), (-98, 106), (-140, 140))  # z, y, x of a box that holds both lungs
_DRAWS = 6000


class Lungs:
    """Where lesions may lie: the lungs of one canvas, and random places in them.

    Args:
        canvas: ideal image, changed in place by the methods.
        anatomy: whose lungs they are.
    """

    def __init__(self, canvas: Canvas, anatomy: Anatomy):
        self.canvas, self.anatomy = canvas, anatomy
        self.field = lung_distance(anatomy, canvas.coarse)

    def places(self, rng: np.random.Generator, depth_mm: float, draws: int = _DRAWS) -> dict[str, np.ndarray]:
        """Random points of each lobe, at least ``depth_mm`` from the pleura; (n, 3) patient (x, y, z)."""
        flat = Points(*(rng.uniform(*limits, draws).astype(np.float32) for limits in _LIMITS))
        inside = lung_distance(self.anatomy, flat) < -depth_mm
        xyz = np.stack([flat.x, flat.y, flat.z], axis=1).astype(float)
        return {name: xyz[inside & (region < -2)] for name, region in lobe_regions(self.anatomy, flat).items()}

    def apical(self, rng: np.random.Generator, depth_mm: float = 12.0, lower: float = 0.2) -> tuple[np.ndarray, str]:
        """A place where adult tuberculosis sits: the back and top of an upper lobe, or the top of a lower one."""
        places = self.places(rng, depth_mm)
        order = [*rng.permutation([LOBES[0], LOBES[3]]), *rng.permutation([LOBES[2], LOBES[4]])]
        if rng.random() < lower:
            order = order[2:] + order[:2]
        for name in order:
            at = places[name]
            if len(at) >= 10:
                # Up and back is where oxygen is plenty and lymph flow slow.
                likely = np.exp((at[:, 2] + 0.6 * at[:, 1]) / 15)
                return at[rng.choice(len(at), p=likely / likely.sum())], str(name)
        raise ValueError("an anatomy without upper lobes")

    def box(self, centre: np.ndarray, reach_mm: float) -> tuple[slice, ...] | None:
        """Index box around a patient point."""
        return self.canvas.grid.box(centre - reach_mm, centre + reach_mm)

    def inner(self, box: tuple[slice, ...], inset_mm: float = 0.0) -> np.ndarray:
        """Share of each voxel inside the pleura."""
        return soft(self.canvas.fine(self.field, box) + np.float32(inset_mm), max(self.canvas.edge_mm, 1.5))

    def thicken(self, box: tuple[slice, ...], cover: np.ndarray, value) -> None:
        """Fill lung with something denser; vessels keep their HU, larger bronchi stay open."""
        hu = self.canvas.hu[box]
        closed = self.canvas.labels[box] != LABELS["airway_lumen"]
        hu += self.inner(box) * closed * cover * np.maximum(value - hu, 0)

    def nodule(self, centre, radius: float, value: float, rng, *, rough: float = 0.12, edge_mm: float = 1.5) -> None:
        """A round lesion with a slightly uneven border."""
        box = self.box(centre, 1.3 * radius + edge_mm + self.canvas.edge_mm)
        if box is None:
            return
        p = self.canvas.points(box)
        distance = np.sqrt((p.x - centre[0]) ** 2 + (p.y - centre[1]) ** 2 + (p.z - centre[2]) ** 2) - radius
        distance = distance + rough * radius * Ripple(rng, max(1.6 * radius, 4))(p)
        self.thicken(box, soft(distance, max(edge_mm, self.canvas.edge_mm)), value)

    def strand(self, start, end, width_mm: float, value: float) -> None:
        """A band of scar between two points; thinner than a voxel, it fills a part of it."""
        branch = Branch(np.asarray(start, float), np.asarray(end, float), 0.5 * width_mm, 0.35 * width_mm)
        reach = width_mm + self.canvas.edge_mm
        box = self.canvas.grid.box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        if box is None:
            return
        share = min(1.0, width_mm / self.canvas.edge_mm)
        self.thicken(box, soft(segment(self.canvas.points(box), branch), self.canvas.edge_mm) * share, value)


def plant_tb(kind: int, canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """Plant tuberculosis of one type.

    Args:
        kind: class id, a key of ``TYPES``.
        canvas: ideal image, changed in place.
        anatomy: of the patient.
        rng: place and shape come from here; the draws do not depend on severity.
        severity: above 0.
    """
    lungs = Lungs(canvas, anatomy)
    paint = {1: _infiltrative, 2: _focal, 3: _tuberculoma, 4: _miliary, 5: _cavernous}[kind]
    lesions = paint(lungs, rng, size_share(severity), contrast_share(severity))
    return [lesion for lesion in lesions if lesion is not None]


def _infiltrative(lungs: Lungs, rng, size: float, contrast: float) -> list[Lesion | None]:
    """Ill-defined patches of ground glass and consolidation in one or two lobes, with small nodules around."""
    spots = []
    for number in range(2):
        if number and rng.random() < 0.4:  # the other spot is mostly in another lobe
            break
        first, lobe = lungs.apical(rng, lower=0.35)
        spots += [(first, lobe)]
        spots += [(first + rng.normal(0, 20, 3), lobe) for _ in range(int(rng.integers(2, 5)))]
    return [_patch(lungs, centre, name, rng, size, contrast) for centre, name in spots]


def _patch(lungs: Lungs, centre, lobe: str, rng, size: float, contrast: float) -> Lesion | None:
    radii = rng.uniform(15, 28, 3) * size
    coarse, fine = Ripple(rng, 34), Ripple(rng, 11)
    density, around = rng.uniform(0.4, 1.0), rng.standard_normal((12, 3))
    seeds = rng.uniform(0.9, 1.5, 12)
    box = lungs.box(centre, float(radii.max()) * 1.9 + 6)

    def put():
        p = lungs.canvas.points(box)
        distance = ellipsoid(p, centre, radii) + 0.30 * radii.mean() * coarse(p) + 2.2 * fine(p)
        # An infiltrate stops at the fissure, as the air in its lobe does.
        region = lobe_regions(lungs.anatomy, p)[lobe]
        haze = soft(distance, 13.0) * soft(region, 2.0)
        core = smooth_step(-distance / np.float32(radii.mean()) + 0.22 * fine(p), 0.65 - 0.55 * density, 1.0)
        value = -640 + 130 * density + (650 - 130 * density) * core
        lungs.thicken(box, haze * contrast * np.clip(0.85 + 0.2 * fine(p), 0.3, 1), value)
        for step, shift in zip(around, seeds):
            at = centre + step / np.linalg.norm(step) * radii.mean() * shift
            lungs.nodule(at, 1.8 * size, -150 * contrast - 300, rng)

    return plant(lungs.canvas, box, TYPES[1], put, share=contrast, lobe=lobe)


def _focal(lungs: Lungs, rng, size: float, contrast: float) -> list[Lesion | None]:
    """A handful of foci under 10 mm close together in one or two segments, some old and hard, with thin strands."""
    lesions = []
    groups = [lungs.apical(rng, 8.0, 0.2) for _ in range(int(rng.integers(1, 3)))]
    for centre, lobe in groups:
        count = int(rng.integers(9, 16)) if len(groups) == 1 else int(rng.integers(6, 10))
        at = centre + rng.normal(0, 1, (count, 3)) * 10
        radii, hard = rng.uniform(3.3, 4.8, count) * min(size, 1.04), rng.random(count) < 0.15
        box = lungs.box(centre, 48.0)

        def put(at=at, radii=radii, hard=hard):
            for where, radius, old in zip(at, radii, hard):
                value = 180.0 if old else 20.0
                lungs.nodule(where, radius, -850 + (value + 850) * contrast, rng, rough=0.2, edge_mm=1.8)
            for a, b in pairwise(at):
                if np.linalg.norm(a - b) < 26:
                    lungs.strand(a, b, 1.0 * size, -850 + 500 * contrast)

        lesions.append(plant(lungs.canvas, box, TYPES[2], put, share=contrast, lobe=lobe, foci=count))
    return lesions


def _tuberculoma(lungs: Lungs, rng, size: float, contrast: float) -> list[Lesion | None]:
    """One round, sharp nodule, often with calcium in its middle or a thin shell of it, and a satellite or two."""
    centre, lobe = lungs.apical(rng, 13.0, 0.35)
    radius, hard = rng.uniform(10, 15) * size, rng.random()
    satellites = centre + _directions(rng, int(rng.integers(0, 3))) * (radius + rng.uniform(4, 9))
    box = lungs.box(centre, radius * 1.4 + 14)

    def put():
        lungs.nodule(centre, radius, -850 + 885 * contrast, rng, rough=0.045, edge_mm=1.2)
        if hard < 0.3:
            lungs.nodule(centre + rng.normal(0, 0.1, 3) * radius, 0.35 * radius, 350 * contrast, rng, rough=0.2)
        elif hard < 0.5:
            p = lungs.canvas.points(box)
            away = np.sqrt(sum((c - v) ** 2 for c, v in zip((p.x, p.y, p.z), centre)))
            shell = soft(np.abs(away - 0.75 * radius) - 0.8, lungs.canvas.edge_mm)
            speckle = np.clip(0.4 + 0.6 * Ripple(rng, 7)(p), 0, 1) * min(1.0, 1.6 / lungs.canvas.edge_mm)
            lungs.thicken(box, shell * speckle, 320 * contrast)
        for at in satellites:
            lungs.nodule(at, 2.2 * size, -850 + 850 * contrast, rng)

    return [plant(lungs.canvas, box, TYPES[3], put, share=contrast, lobe=lobe, diameter_mm=round(2 * float(radius), 1))]


def _miliary(lungs: Lungs, rng, size: float, contrast: float) -> list[Lesion | None]:
    """Nodules like millet seeds through both lungs, evenly, whatever the vessels do."""
    count = int(rng.integers(45000, 70000))  # over the whole box; a third of it is lung
    centres = np.stack([rng.uniform(*limits, count) for limits in _LIMITS[::-1]], axis=1)
    radii = rng.uniform(0.9, 1.6, count) * size
    canvas = lungs.canvas
    flat = Points(*(centres[:, a].astype(np.float32) for a in (2, 1, 0)))
    inside = lung_distance(lungs.anatomy, flat) < -1.0
    box = canvas.field_box(lungs.field, 2.0)

    def put():
        allowed = np.isin(canvas.labels, [LABELS[name] for name in LOBES])
        add_spheres(canvas, centres[inside], radii[inside], -850 + 880 * contrast, allowed)

    return [plant(canvas, box, TYPES[4], put, share=contrast, nodules=int(inside.sum()))]


def _cavernous(lungs: Lungs, rng, size: float, contrast: float) -> list[Lesion | None]:
    """A cavity with a thick uneven wall in a shrunken, scarred upper lobe under a thickened pleura."""
    centre, lobe = lungs.apical(rng, 16.0, 0.1)
    lesions = [_cavity(lungs, centre, lobe, rng, size, contrast, main=True)]
    for _ in range(int(rng.integers(0, 3))):
        beside = centre + _directions(rng, 1)[0] * rng.uniform(28, 40)
        lesions.append(_cavity(lungs, beside, lobe, rng, size, contrast, main=False))
    return lesions


def _cavity(lungs: Lungs, centre, lobe: str, rng, size: float, contrast: float, main: bool) -> Lesion | None:
    radii = (rng.uniform(18, 26, 3) if main else rng.uniform(9, 13, 3)) * size
    wall = rng.uniform(6.0, 9.5) * size if main else rng.uniform(3, 5) * size
    uneven, inner, patchy = Ripple(rng, 24), Ripple(rng, 12), Ripple(rng, 14)
    fluid = rng.random() < 0.3
    ends = centre + _directions(rng, 16) * rng.uniform(1.5, 2.6, (16, 1)) * radii.mean()
    widths = rng.uniform(1.2, 3.2, 16)
    apex = rng.uniform(4, 9) * size
    reach = float(radii.max()) * 2.6 + 8 if main else float(radii.max()) * 1.6 + 8
    box = lungs.box(centre, reach)

    def put():
        canvas = lungs.canvas
        p = canvas.points(box)
        if main:
            _retract(lungs, box, p, centre, reach, 0.28 * contrast)
            _thick_pleura(lungs, box, p, centre, reach, apex, patchy, contrast)
            for end, width in zip(ends, widths):
                lungs.strand(centre, end, width * size, -850 + 850 * contrast)
        distance = ellipsoid(p, centre, radii) + 0.10 * radii.mean() * uneven(p)
        halo = soft(distance - 3 - 2.5 * patchy(p), 9.0) * 0.55
        lungs.thicken(box, halo * contrast, -350)
        edge = max(1.5, canvas.edge_mm)
        lungs.thicken(box, soft(distance, edge), -850 + 890 * contrast)
        hollow = soft(distance + wall + 1.2 * inner(p), edge) * lungs.inner(box, 2.0)
        level = canvas.grid.scanner_axes(box)[1] - canvas.grid.centre_mm[1]
        deepest = float(level[np.abs(p.y - centre[1]).min(axis=(0, 2)).argmin()] + 0.35 * radii.mean())
        filled = soft(deepest - level, edge)[None, :, None] if fluid else np.float32(0)
        # The lumen is emptied to air only as far as the wall shows: at low severity both fade into the lung.
        lumen = -850 - 110 * contrast + (870 * contrast + 110 * contrast) * filled
        canvas.hu[box] += hollow * (lumen - canvas.hu[box])

    return (
        plant(lungs.canvas, box, TYPES[5], put, share=contrast, lobe=lobe, wall_mm=round(float(wall), 1))
        if box
        else None
    )


def _retract(lungs: Lungs, box, p: Points, centre, reach: float, pull: float) -> None:
    """Scar draws the lung together: what lies around the centre moves toward it, the pleura stays."""
    from scipy.ndimage import map_coordinates

    canvas = lungs.canvas
    away = np.stack([p.z - np.float32(centre[2]), p.y - np.float32(centre[1]), p.x - np.float32(centre[0])])
    far = np.sqrt((away**2).sum(axis=0)) / np.float32(reach)
    depth = smooth_step(-canvas.fine(lungs.field, box), 0.0, 14.0)
    stretch = pull * smooth_step(1 - far, 0.0, 0.6) * depth
    inverse = np.linalg.inv(canvas.grid.to_patient).astype(np.float32)
    step = np.einsum("ij,j...->i...", inverse, away * stretch) / np.asarray(canvas.grid.spacing_mm)[:, None, None, None]
    index = np.indices(far.shape, dtype=np.float32) + step
    canvas.hu[box] = map_coordinates(canvas.hu[box], index, order=1, mode="nearest")


def _thick_pleura(lungs: Lungs, box, p: Points, centre, reach: float, apex: float, patchy: Ripple, contrast) -> None:
    """Soft tissue along the chest wall next to the lesion; the lung has less room."""
    canvas = lungs.canvas
    near = np.sqrt((p.x - centre[0]) ** 2 + (p.y - centre[1]) ** 2 + (p.z - centre[2]) ** 2) / reach
    thick = apex * smooth_step(1 - near, 0.0, 0.6) * np.clip(0.8 + 0.35 * patchy(p), 0.1, 1.5)
    cage = lungs.anatomy.cage_distance(p)
    lungs.thicken(box, soft(-cage - thick, max(2.0, canvas.edge_mm)) * (thick > 0.3) * contrast, 35.0)


def _directions(rng, count: int) -> np.ndarray:
    out = rng.standard_normal((count, 3))
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6)
