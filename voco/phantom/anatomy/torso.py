"""Skin, subcutaneous fat, muscle layers, shoulders, arms and breasts: what surrounds the chest and abdominal wall."""

from __future__ import annotations

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas, smooth_noise
from voco.phantom.anatomy.labels import LABELS
from voco.phantom.anatomy.shapes import Branch, Points, ellipsoid, smooth_max, smooth_min, tube, tube_field

WALL_MM = 12.0  # ribs and intercostal muscle
SKIN_MM = 2.0


def _bump(value, centre: float, width: float):
    return np.exp(-(((value - centre) / width) ** 2))


def wall_thickness(anatomy: Anatomy, p: Points, angle: np.ndarray) -> np.ndarray:
    """Distance from the inner chest wall to the outer surface of the muscles."""
    around, m = np.abs(angle), anatomy.muscle
    thick = WALL_MM + 3 * _bump(around, 0, 0.3)
    thick = thick + 17 * m * _bump(around, 0.72, 0.42) * _bump(p.z, 22, 46)  # pectoral muscles
    thick = thick + 13 * m * _bump(around, 1.9, 0.5) * _bump(p.z, -20, 95)  # serratus and latissimus
    thick = thick + 33 * m * _bump(around, 2.15, 0.42) * _bump(p.z, 40, 62)  # scapula in its muscles
    thick = thick + (8 + 18 * m) * _bump(around, 2.75, 0.3) + 13 * _bump(around, np.pi, 0.35)  # along the spine
    thick = thick + 5 * m * _bump(around, 1.6, 0.7) * _bump(p.z, -300, 110)  # three layers of the flank
    return thick.astype(np.float32)


def fat_thickness(anatomy: Anatomy, p: Points, angle: np.ndarray) -> np.ndarray:
    """Distance from the outer surface of the muscles to the skin's inner side."""
    around = np.abs(angle)
    belly = 1 / (1 + np.exp((p.z + 185) / 30))
    share = 0.55 + 0.35 * _bump(around, 1.6, 0.8) + belly * (0.75 * _bump(around, 0.5, 0.9) + 0.25)
    breast = anatomy.breast_mm * _bump(around, 0.62, 0.36) * _bump(p.z, -48, 40)
    return (2.5 + anatomy.fat_mm * share + breast).astype(np.float32)


def _limbs(anatomy: Anatomy) -> dict[str, list[Branch]]:
    """Muscle envelopes of neck, shoulders and upper arms."""
    x, y = anatomy.spine(105.0)
    m = 0.5 + 0.5 * anatomy.muscle
    out = {
        "neck": tube([[0, 10, 60], [float(x), float(y) - 16, 100], [0, -2, 150], [0, -4, 230]], [50, 50, 52, 54], 10)
    }
    for side in (-1, 1):
        joint = [side * 150, 26, 84]
        out[f"shoulder{side}"] = tube([[side * 55, 40, 74], [side * 105, 36, 80], joint], [34 * m, 44 * m, 48 * m], 8)
        if anatomy.arms == "up":
            arm = [joint, [side * 176, 8, 150], [side * 178, -20, 260]]
        else:
            arm = [joint, [side * 196, 34, -20], [side * 206, 30, -400]]
        out[f"arm{side}"] = tube(arm, [46 * m, 43 * m, 38 * m], 10)
    return out


def muscle_surface(anatomy: Anatomy, p: Points, cage: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances to the outer surface of the trunk's muscles and to that of neck, shoulders and arms."""
    trunk = cage - wall_thickness(anatomy, p, angle)
    limbs = _limbs(anatomy)
    outer = tube_field(p, limbs["neck"], 70)
    for side in (-1, 1):
        outer = smooth_min(outer, tube_field(p, limbs[f"shoulder{side}"], 70), 24.0)
        outer = smooth_min(outer, tube_field(p, limbs[f"arm{side}"], 70), 12.0)
    return trunk, outer


def paint_torso(canvas: Canvas, anatomy: Anatomy) -> dict[str, np.ndarray]:
    """Paint the trunk without its contents and return the coarse fields that other parts need (``cage``, ``angle``)."""
    p, hu = canvas.coarse, anatomy.hu
    cage, angle = anatomy.cage_distance(p), anatomy.cage_angle(p)
    trunk, limbs = muscle_surface(anatomy, p, cage, angle)
    muscle = smooth_min(trunk, limbs, 22.0)
    fat = fat_thickness(anatomy, p, angle)
    limb_fat = np.float32(3 + 0.5 * anatomy.fat_mm)
    inner_skin = smooth_min(trunk - fat, limbs - limb_fat, 26.0)
    # Lying on a table flattens the back.
    flat = np.float32(anatomy.cage(-60.0)[2] + 22 + 0.35 * anatomy.fat_mm)
    inner_skin = smooth_max(inner_skin, p.y - flat, 22.0)
    muscle = smooth_max(muscle, p.y - (flat - np.float32(2 + 0.25 * anatomy.fat_mm)), 18.0)
    streaks = smooth_noise(canvas, anatomy.stream("fat"), 14.0)
    grain = smooth_noise(canvas, anatomy.stream("muscle"), 9.0)

    canvas.paint_field(inner_skin - SKIN_MM, hu["skin"], "skin")
    canvas.paint_field(inner_skin, lambda box: hu["fat"] + 5 * canvas.fine(streaks, box), "subcutaneous_fat")
    _paint_breasts(canvas, anatomy, inner_skin, trunk)
    canvas.paint_field(muscle, lambda box: hu["muscle"] + 7 * canvas.fine(grain, box), "muscle")
    _paint_planes(canvas, anatomy, cage, muscle, streaks)
    # The wall itself stays muscle between the ribs; inside it begins with fat, organs come later.
    canvas.paint_field(cage + 1.0, lambda box: hu["fat"] + 4 * canvas.fine(streaks, box), "mediastinal_fat")
    return {"cage": cage, "angle": angle, "muscle": muscle, "skin": inner_skin, "streaks": streaks}


def _paint_planes(canvas: Canvas, anatomy: Anatomy, cage, muscle, streaks) -> None:
    """Fat between the muscles: over the ribs, between muscle bellies, and in the armpits."""
    p, fat = canvas.coarse, anatomy.hu["fat"]
    over_ribs = cage - (WALL_MM + 1.5 + 1.5 * streaks)
    canvas.paint_sheet(over_ribs, 0.7 + 0.05 * anatomy.fat_mm, muscle + 3, fat, "subcutaneous_fat")
    # Zero crossings of a smooth texture are closed thin sheets, as the fat between muscle bellies is.
    within = np.maximum.reduce([muscle + 4, 16 - cage, 0.3 * (0 - p.z)])
    canvas.paint_sheet(9 * streaks, 0.8 + 0.05 * anatomy.fat_mm, within, fat, "subcutaneous_fat")
    for side in (-1, 1):
        armpit = ellipsoid(p, (side * 128, 22, 48), (22 + 0.3 * anatomy.fat_mm, 24, 44))
        canvas.paint_field(np.maximum.reduce([armpit, 15 - cage, muscle + 4]), fat + 6, "subcutaneous_fat")


def _paint_breasts(canvas: Canvas, anatomy: Anatomy, skin, trunk) -> None:
    """Glandular tissue inside the breasts' fat, patchy and different on each side."""
    if anatomy.gland <= 0 or anatomy.breast_mm < 10:
        return
    p = canvas.coarse
    patch = smooth_noise(canvas, anatomy.stream("gland"), 11.0, np.maximum(skin, -40 - skin))
    for side in (-1, 1):
        centre = anatomy.cage_point(side * 0.62, -52.0, 16 + 0.4 * (anatomy.breast_mm + anatomy.fat_mm))
        size = 10 + anatomy.breast_mm * (0.25 + 0.35 * anatomy.gland)
        gland = ellipsoid(p, centre, (1.3 * size, 0.75 * size, 1.2 * size)) + 4 * patch
        gland = np.maximum.reduce([gland, skin + 4, 3 - trunk])
        canvas.paint_field(gland, anatomy.hu["gland"], "breast_gland")


def paint_spinal_muscles(canvas: Canvas, anatomy: Anatomy) -> None:
    """Fat around the erector muscles, so that they stand out in the back, and the psoas in the abdomen."""
    hu = anatomy.hu
    z = np.array([110.0, 20, -100, -220, -320, -400])
    x, y = anatomy.spine(z)
    for side in (-1, 1):
        erector = np.stack([x + side * 27, y + np.array([40, 44, 46, 46, 46, 46]), z], axis=1)
        branches = tube(erector, 15.5 * (0.4 + 0.6 * anatomy.muscle), 16)
        canvas.paint_branches(branches, hu["fat"] + 30, None, grow_mm=0.8, stretch=(1.45, 1, 1))
        canvas.paint_branches(branches, hu["muscle"], "muscle", stretch=(1.45, 1, 1))
        z_low = np.array([-215.0, -265, -330, -400])
        x_low, y_low = anatomy.spine(z_low)
        psoas = np.stack(
            [x_low + side * np.array([24.0, 33, 40, 46]), y_low + np.array([6, 2, -4, -10]), z_low], axis=1
        )
        canvas.paint_branches(tube(psoas, np.array([8.0, 16, 22, 24]) * anatomy.muscle, 10), hu["muscle"], "muscle")


def paint_neck(canvas: Canvas, anatomy: Anatomy) -> None:
    """Muscles in front of and beside the cervical spine, and the thyroid."""
    hu = anatomy.hu
    z = np.array([60.0, 85, 110, 150, 200])
    x, y = anatomy.spine(z)
    for side in (-1, 1):
        longus = np.stack([x + side * 9, y - [16, 17, 17, 17, 17], z], axis=1)
        canvas.paint_branches(tube(longus, [2, 5, 6, 6, 6], 10), hu["muscle"], "muscle")
        scalene = np.stack([x + side * np.array([52, 42, 34, 32, 32]), y - [8, 8, 4, 2, 2], z], axis=1)
        canvas.paint_branches(tube(scalene, [5, 9, 11, 11, 11], 10), hu["muscle"], "muscle")
        mastoid = [[side * 14, -36, 54], [side * 24, -34, 84], [side * 40, -22, 120], [side * 50, 4, 200]]
        canvas.paint_branches(tube(mastoid, [5, 7, 8, 9], 12), hu["muscle"], "muscle")
        lobe = [[side * 13, -6, 88], [side * 15, -7, 104], [side * 14, -5, 122]]
        canvas.paint_branches(tube(lobe, [5, 8, 4], 8), hu["thyroid"], "thyroid", stretch=(0.8, 1.1, 1))


def inside_abdomen(canvas: Canvas, cage: np.ndarray, dome: np.ndarray) -> None:
    """Relabel the fat under the diaphragm: one paint serves both cavities, the label says which."""
    below = np.maximum(canvas.coarse.z - dome, cage + 1)
    box = canvas.field_box(below)
    if box is None:
        return
    labels = canvas.labels[box]
    under = (canvas.fine(below, box) < 0) & (labels == LABELS["mediastinal_fat"])
    labels[under] = LABELS["visceral_fat"]
