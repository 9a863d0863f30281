"""Lungs with lobes and fissures, and the airway, artery and vein trees that fill them."""

from __future__ import annotations

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas, smooth_noise
from voco.phantom.anatomy.heart import central_airways, mediastinum
from voco.phantom.anatomy.shapes import Branch, Points, grow_tree, smooth_max, tube

LOBES = ("lobe_right_upper", "lobe_right_middle", "lobe_right_lower", "lobe_left_upper", "lobe_left_lower")

# Where bronchus, artery and vein of a lobe leave the hilum: (x, y, z).
_HILUM = {
    "lobe_right_upper": ((-30, 14, -10), (-38, 2, -14), (-44, -4, -24)),
    "lobe_right_middle": ((-40, 10, -46), (-44, 6, -42), (-40, 0, -42)),
    "lobe_right_lower": ((-38, 20, -46), (-46, 20, -44), (-36, 28, -58)),
    "lobe_left_upper": ((48, 16, -28), (46, 8, -8), (48, -2, -28)),
    "lobe_left_lower": ((46, 26, -46), (50, 24, -34), (42, 34, -58)),
}
_VEIN_ENDS = ((-18, 6, -44), (-18, 6, -44), (-18, 18, -54), (28, 4, -42), (26, 20, -52))


def lung_distance(anatomy: Anatomy, p: Points, cage: np.ndarray | None = None) -> np.ndarray:
    """Signed distance to the two lungs: inside the ribs, above the diaphragm, beside the mediastinum."""
    cage = anatomy.cage_distance(p) if cage is None else cage
    above = (anatomy.dome(p) - p.z) * np.float32(0.75)
    return smooth_max(smooth_max(cage, above, 7.0), -mediastinum(anatomy, p), 5.0)


def fissures(anatomy: Anatomy, p: Points) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances to the oblique fissure (positive above it) and the horizontal one of the right lung."""
    rng = anatomy.stream("fissures")
    lift, slope, level = rng.normal(0, 6), rng.normal(1.07, 0.07), rng.normal(-32, 6)
    bow = 6 * np.sin(p.x / 34) + 5 * np.sin(p.y / 40)
    oblique = (p.z - (36 + lift) - slope * (p.y - 80) + bow) / np.hypot(1, slope)
    horizontal = p.z - level + 0.10 * (p.y + 40) - 3 * np.sin(p.x / 25)
    return oblique.astype(np.float32), horizontal.astype(np.float32)


def lobe_regions(anatomy: Anatomy, p: Points) -> dict[str, np.ndarray]:
    """Signed distances to five half-spaces whose meeting with the lungs are the lobes."""
    oblique, horizontal = fissures(anatomy, p)
    left = (anatomy.midline(p.z) + 2 - p.x).astype(np.float32)
    return {
        "lobe_right_upper": np.maximum.reduce([-left, -oblique, -horizontal]),
        "lobe_right_middle": np.maximum.reduce([-left, -oblique, horizontal]),
        "lobe_right_lower": np.maximum(-left, oblique),
        "lobe_left_upper": np.maximum(left, -oblique),
        "lobe_left_lower": np.maximum(left, oblique),
    }


def paint_lungs(canvas: Canvas, anatomy: Anatomy, fields: dict[str, np.ndarray]) -> None:
    """Paint the lung tissue lobe by lobe, darker in front (gravity) and with emphysema in some; then the fissures."""
    p, hu = canvas.coarse, anatomy.hu
    lungs = fields["lungs"]
    grain = smooth_noise(canvas, anatomy.stream("lung grain"), 7.0, lungs)
    patches = smooth_noise(canvas, anatomy.stream("lung patches"), 32.0, lungs)
    texture = hu["lung"] + 9 * grain + 9 * patches + anatomy.gravity_hu * (p.y - 10) / 90
    # The last millimetres over the diaphragm and at the back are less aerated when lying.
    texture = texture + 70 * np.exp(-((p.y - anatomy.cage(p.z)[2]) ** 2) / 60) * (anatomy.gravity_hu / 75)
    holes = np.clip((patches - 0.9) * 2, 0, 1) * np.clip((p.z + 60) / 80, 0.2, 1)
    texture = (texture - anatomy.emphysema * 90 * holes).astype(np.float32)
    oblique, horizontal = fissures(anatomy, p)
    for name, region in lobe_regions(anatomy, p).items():
        field = np.maximum(lungs, region)
        canvas.paint_field(np.maximum(lungs, region - 0.5), lambda box: canvas.fine(texture, box), None)
        canvas.paint_field(field, lambda box: canvas.fine(texture, box), name)
    canvas.paint_sheet(oblique, 0.5, lungs + 1, -560, None)
    canvas.paint_sheet(horizontal, 0.5, np.maximum.reduce([lungs + 1, -oblique, p.x]), -560, None)


def lung_trees(anatomy: Anatomy) -> dict[str, list[tuple[Branch, int, str]]]:
    """Airway, artery and vein pieces with the number of twigs they feed and their lobe.

    They grow toward points drawn inside each lobe in the patient's frame: they do not depend on the scan's grid.
    """
    rng = anatomy.stream("trees")
    count = 16000
    flat = Points(
        *(rng.uniform(*limits, count).astype(np.float32) for limits in ((-215, 102), (-98, 106), (-140, 140)))
    )
    inside = lung_distance(anatomy, flat)
    regions = lobe_regions(anatomy, flat)
    xyz = np.stack([flat.x, flat.y, flat.z], axis=1)
    trees: dict[str, list] = {"airway": [], "artery": [], "vein": []}
    for number, name in enumerate(LOBES):
        candidates = xyz[(inside < -3.5) & (regions[name] < -2.0)]
        if len(candidates) < 20:
            continue
        volume = len(candidates) / count
        twigs = min(int(np.clip(volume * 3400, 60, 400)), len(candidates) // 2)
        bronchus, artery, vein = (np.array(v, float) for v in _HILUM[name])
        chosen = candidates[: 2 * twigs]
        q = anatomy.pulmonary_scale
        arteries = grow_tree(artery, chosen[:twigs], 0.78 * q, rng)
        veins = grow_tree(vein, chosen[twigs : 2 * twigs], 0.8 * q, rng, exponent=2.85)
        trees["artery"] += [(branch, fed, name) for branch, fed in arteries]
        stem = tube([_VEIN_ENDS[number], 0.5 * (vein + _VEIN_ENDS[number]), vein], veins[0][0].start_radius * 1.05, 5)
        trees["vein"] += [(branch, twigs, name) for branch in stem] + [(branch, fed, name) for branch, fed in veins]
        trees["airway"] += [(branch, fed, name) for branch, fed in _airways(artery, bronchus, arteries, twigs)]
    return trees


def _airways(artery, bronchus, arteries, twigs: int) -> list[tuple[Branch, int]]:
    """Bronchi run beside the arteries of the first generations, as wide as their partner."""
    beside = bronchus - artery
    away = beside / max(np.linalg.norm(beside), 1e-6)
    out = []
    for branch, fed in arteries:
        if fed < max(5, twigs / 16):
            continue
        radii = [max(0.72 * r, 0.9) for r in (branch.start_radius, branch.end_radius)]
        gap = [1.9 * r + 1.6 for r in (branch.start_radius, branch.end_radius)]
        start, end = branch.start + away * gap[0], branch.end + away * gap[1]
        out.append((Branch(start, end, *radii), fed))
    return out


def _stems(anatomy: Anatomy) -> list[Branch]:
    """Intermediate and lobar bronchi between the main bronchi and the trees."""
    narrow = 0.86 if anatomy.sex == "F" else 1.0
    pieces = tube([[-24, 15, -19], _HILUM["lobe_right_upper"][0], [-38, 12, -8]], np.array([4.8, 4.5, 4]) * narrow, 5)
    pieces += tube([[-31, 16, -27], [-36, 16, -38], _HILUM["lobe_right_lower"][0]], np.array([6, 5.4, 4.6]) * narrow, 6)
    pieces += tube([[-36, 16, -38], _HILUM["lobe_right_middle"][0]], np.array([4, 3.4]) * narrow, 3)
    pieces += tube([[42, 20, -28], _HILUM["lobe_left_upper"][0]], np.array([5, 4.2]) * narrow, 3)
    return pieces + tube([[43, 21, -29], _HILUM["lobe_left_lower"][0]], np.array([5.4, 4.4]) * narrow, 4)


def paint_trees(canvas: Canvas, anatomy: Anatomy, trees: dict | None = None) -> None:
    """Paint veins, arteries and airways; walls before lumina, so that a branching stays open."""
    hu = anatomy.hu
    trees = lung_trees(anatomy) if trees is None else trees
    for kind, part, key in (
        ("vein", "pulmonary_vein", "pulmonary_vein"),
        ("artery", "pulmonary_artery", "pulmonary_artery"),
    ):
        canvas.paint_branches([branch for branch, _, _ in trees[kind]], hu[key], part)
    tubes = central_airways(anatomy) + _stems(anatomy)
    small = [branch for branch, _, _ in trees["airway"]]
    canvas.paint_branches(tubes, hu["airway_wall"], "airway_wall", grow_mm=1.3)
    canvas.paint_branches(small, hu["airway_wall"] - 60, "airway_wall", grow_mm=0.7)
    canvas.paint_branches(small, hu["airway"] + 30, "airway_lumen")
    canvas.paint_branches(tubes, hu["airway"], "airway_lumen")
