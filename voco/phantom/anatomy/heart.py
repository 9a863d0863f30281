"""Heart chambers, great vessels, oesophagus and the central airways: the middle of the chest."""

from __future__ import annotations

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.shapes import Branch, Points, ellipsoid, smooth_max, smooth_min, tube, tube_field

_CENTRE = np.array([20.0, -26.0, -72.0])


def heart_axes(tilt: float) -> np.ndarray:
    """Rows: long axis toward the apex (left, front, down), across, and the remaining one."""
    long = np.array([0.70 + 0.5 * tilt, -0.55, -0.46 + 0.7 * tilt])
    long /= np.linalg.norm(long)
    across = np.cross(long, [0.0, 0.0, 1.0])
    across /= np.linalg.norm(across)
    return np.stack([long, across, np.cross(long, across)])


def heart_parts(anatomy: Anatomy, p: Points) -> dict[str, np.ndarray]:
    """Signed distances to the chambers, the outer heart and the pericardial sac."""
    scale = anatomy.heart_size
    axes = heart_axes(anatomy.heart_tilt)
    origin = _CENTRE + anatomy.heart_shift
    turn = axes.T @ heart_axes(0.0)

    def part(centre, radii, own_axes=False):
        moved = origin + turn @ ((np.array(centre, float) - _CENTRE) * scale)
        return ellipsoid(p, moved, [r * scale for r in radii], axes if own_axes else None)

    left_ventricle = part((40, -25, -82), (40, 20, 21), own_axes=True)
    left_wall = part((40, -25, -82), (50, 30, 31), own_axes=True)
    right_ventricle = part((14, -52, -80), (45, 24, 27), own_axes=True)
    outflow = part((11, -54, -56), (16, 15, 24))
    right_ventricle = smooth_max(smooth_min(right_ventricle, outflow, 12.0), -left_wall - 0.5, 4.0)
    right_atrium = smooth_max(part((-27, -22, -72), (23, 25, 31)), -right_ventricle + 3, 4.0)
    left_atrium = smooth_max(part((6, 10, -50), (33, 18, 20)), -left_wall + 1, 4.0)
    chambers = {
        "left_ventricle": left_ventricle,
        "right_ventricle": right_ventricle,
        "right_atrium": np.maximum(right_atrium, -left_atrium + 2),
        "left_atrium": left_atrium,
    }
    outer = smooth_min(left_wall, right_ventricle - 4, 8.0)
    outer = smooth_min(outer, np.minimum(chambers["right_atrium"] - 2.5, left_atrium - 2.5), 5.0)
    sac = smooth_min(left_wall - 3, right_ventricle - 7, 22.0)
    sac = smooth_min(sac, np.minimum(chambers["right_atrium"] - 5, left_atrium - 4), 22.0)
    return {**chambers, "outer": outer, "sac": sac}


def great_vessels(anatomy: Anatomy) -> dict[str, list[Branch]]:
    """Tube pieces of every large vessel, the oesophagus and the central airways."""
    a, q = anatomy.aorta_scale, anatomy.pulmonary_scale
    up = anatomy.arch_shift
    shift = np.array(anatomy.heart_shift)
    h = (_CENTRE + shift)[None] + (np.array([[6, -22, -52], [-6, -30, -32]]) - _CENTRE) * anatomy.heart_size
    z = np.array([-10.0, -60, -110, -150, -185, -230, -290, -360])
    sx, sy = anatomy.spine(z)
    toward_middle = np.array([25, 24, 21, 16, 8, 4, 3, 3.0])
    down = np.stack([sx + toward_middle, sy - [16, 19, 22, 25, 28, 29, 29, 28], z], axis=1)
    arch = [[-9, -33, -6], [-9, -29, 14 + up], [0, -13, 32 + up], [12, 8, 38 + up], [24, 29, 26 + up]]
    aorta = np.concatenate([h, arch, down])
    aorta_r = np.array([15, 16.5, 16, 15, 14, 13.5, 13, 12.5, 12, 11.8, 11.5, 11, 10, 9, 8.5]) * a
    atrium = _CENTRE + shift + (np.array([-32, -14, -48]) - _CENTRE) * anatomy.heart_size
    floor = _CENTRE + shift + (np.array([-26, -8, -92]) - _CENTRE) * anatomy.heart_size
    zi = np.array([-185.0, -230, -290, -360])
    cx, cy = anatomy.spine(zi)
    cava = np.stack([cx - [21, 20, 18, 17], cy - [32, 30, 28, 26], zi], axis=1)
    outflow = _CENTRE + shift + (np.array([12, -52, -42]) - _CENTRE) * anatomy.heart_size
    z_azygos = np.array([4.0, -40, -100, -170])
    ax, ay = anatomy.spine(z_azygos)
    azygos = np.stack([ax - [8, 7, 6, 5], ay - [17, 19, 21, 23], z_azygos], axis=1)
    trunk = np.array([14, 14, 14, 12]) * q
    return {
        "aorta": tube(aorta, aorta_r, 64),
        "superior_vena_cava": tube([[-27, -22, 44], [-34, -14, 12], [-35, -11, -18], atrium], [7, 9, 9.5, 11], 14)
        + tube([[62, 0, 80], [34, -24, 66], [4, -38, 54], [-27, -22, 44]], [5.5, 6, 6.5, 7], 14)
        + tube([[-62, 0, 82], [-40, -14, 70], [-27, -22, 44]], [5.5, 6, 7], 8),
        "inferior_vena_cava": tube([floor, [-24, 4, -122], [-24, 10, -150], *cava], [13, 12, 12, 11, 11, 10, 9], 24),
        "azygos_vein": tube([[-31, -8, 8], [-20, 8, 13], *azygos], [3.5, 3.5, 3.5, 3.2, 2.8, 2.2], 18),
        "arch_branches": tube([[-6, -13, 36 + up], [-16, -8, 62], [-24, 2, 82], [-30, 0, 150]], [6.5, 6, 4.5, 3.5], 14)
        + tube([[-22, 2, 80], [-46, 18, 92], [-90, 16, 92]], [4.5, 4.5, 4], 8)
        + tube([[5, 1, 42 + up], [14, 4, 80], [26, 0, 150]], [4, 3.8, 3.5], 10)
        + tube([[15, 14, 42 + up], [26, 24, 76], [48, 20, 92], [90, 16, 92]], [5, 4.5, 4.5, 4], 12),
        "pulmonary_artery": tube([outflow, [14, -40, -26], [18, -22, -10], [22, -10, -6]], trunk, 12)
        + tube([[22, -10, -6], [34, 2, -5], [44, 14, -12]], np.array([12, 11, 9.5]) * q, 8)
        + tube([[17, -18, -12], [0, -8, -15], [-22, -2, -18], [-42, 4, -24]], np.array([11.5, 11, 10.5, 9]) * q, 12),
        "oesophagus": tube(_oesophagus(anatomy), 6.0, 28),
    }  # fmt: skip


def _oesophagus(anatomy: Anatomy) -> np.ndarray:
    z = np.array([130.0, 80, 40, 0, -50, -100, -135])
    x, y = anatomy.spine(z)
    line = np.stack([x + np.array([2, 4, 6, 3, 1, 6, 13]), y - [19, 22, 24, 25, 26, 33, 42], z], axis=1)
    return np.concatenate([line, [[24, 8, -152]]])


def central_airways(anatomy: Anatomy) -> list[Branch]:
    """Trachea and main bronchi by their lumen."""
    wide = 0.86 if anatomy.sex == "F" else 1.0
    _, top = anatomy.spine(125.0)
    trachea = tube([[0, float(top) - 34, 160], [0, -2, 100], [1, 3, 55], [2, 10, 20], [0, 13, 2]], 8.6 * wide, 22)
    right = tube([[0, 13, 3], [-17, 14, -14], [-31, 16, -27]], np.array([8, 7.3, 6.6]) * wide, 9)
    left = tube([[0, 13, 3], [20, 15, -13], [36, 18, -24], [44, 21, -30]], np.array([7.6, 6.8, 6.3, 6]) * wide, 11)
    return trachea + right + left


def mediastinum(anatomy: Anatomy, p: Points, parts: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """Signed distance to everything between the lungs: they end where this begins."""
    sac = (heart_parts(anatomy, p) if parts is None else parts)["sac"]
    vessels = great_vessels(anatomy)
    out = sac - 1
    spread = 1.5 + 2 * anatomy.visceral_fat
    for name, margin in (
        ("aorta", 2.0),
        ("superior_vena_cava", 2.5),
        ("inferior_vena_cava", 2.0),
        ("pulmonary_artery", 1.5),
        ("arch_branches", 5.0),
        ("azygos_vein", 2.0),
        ("oesophagus", 2.0),
    ):
        out = smooth_min(out, tube_field(p, vessels[name], 40) - margin, 9.0)
    out = smooth_min(out, tube_field(p, central_airways(anatomy), 40) - 3.0, 9.0)
    z = np.array([150.0, 100, 60, 20, -30, -80, -140, -200, -280])
    x, y = anatomy.spine(z)
    column = tube_field(p, tube(np.stack([x, y + 3, z], axis=1), [17, 17, 18, 19, 20, 21, 22, 23, 24], 24), 40)
    behind = tube_field(p, tube(np.stack([x, y + 32, z], axis=1), [22, 22, 22, 23, 24, 25, 26, 26, 26], 24), 40)
    out = smooth_min(out, smooth_min(column, behind, 16.0), 7.0)
    half = np.interp(p.z, [-200, -60, -10, 20, 45, 70, 90, 100], [5, 5, 7, 12, 20, 24, 26, 34])
    front = np.interp(p.z, [-200, -120, -60, 10, 50, 100], [9, 7, 3, 4, 12, 20]) * (0.6 + 0.4 * anatomy.visceral_fat)
    half = np.where(p.y < -38, front + spread * 0.5, half + 0.4 * spread)
    slab = (np.abs(p.x - 2 - anatomy.midline(p.z)) - half).astype(np.float32)
    return smooth_min(out, slab, 10.0)


def paint_heart(canvas: Canvas, anatomy: Anatomy) -> None:
    """Paint heart, great vessels and oesophagus over the mediastinal fat."""
    hu, p = anatomy.hu, canvas.coarse
    parts = heart_parts(anatomy, p)
    vessels = great_vessels(anatomy)
    _paint_nodes(canvas, anatomy)
    canvas.paint_branches(vessels["oesophagus"], hu["oesophagus"], "oesophagus")
    canvas.paint_branches(vessels["oesophagus"][::2], -500, None, grow_mm=-4.6)
    canvas.paint_sheet(parts["sac"], 0.7, parts["sac"] - 8, 25, None)
    canvas.paint_field(parts["outer"], hu["myocardium"], "myocardium")
    chamber_hu = {
        "left_atrium": hu["left_heart"] * 0.5 + hu["pulmonary_vein"] * 0.5,
        "left_ventricle": hu["left_heart"],
        "right_atrium": hu["right_heart"],
        "right_ventricle": hu["right_heart"],
    }
    for name, value in chamber_hu.items():
        canvas.paint_field(parts[name], value, name)
    for name, key in (
        ("azygos_vein", "azygos"),
        ("superior_vena_cava", "systemic_vein"),
        ("inferior_vena_cava", "inferior_vein"),
        ("pulmonary_artery", "pulmonary_artery"),
        ("arch_branches", "aorta"),
        ("aorta", "aorta"),
    ):
        if name == "aorta":  # a wall that shows against unenhanced blood, and fat-free contact with its neighbours
            canvas.paint_branches(vessels[name], 45, None, grow_mm=1.2)
        canvas.paint_branches(vessels[name], hu[key], name)


def _paint_nodes(canvas: Canvas, anatomy: Anatomy) -> None:
    """A few normal lymph nodes in the mediastinal fat."""
    rng = anatomy.stream("nodes")
    sites = np.array([[-12, 0, 22], [-8, 6, -14], [16, 2, 12], [4, -20, 30], [-6, 22, -24], [24, -30, 22]], float)
    for site in sites[rng.random(len(sites)) < 0.7]:
        centre, radii = site + rng.normal(0, 2.5, 3), rng.uniform(2.0, 4.2, 3)
        box = canvas.grid.box(centre - 8, centre + 8)
        if box is not None:
            canvas.paint(box, ellipsoid(canvas.points(box), centre, radii), anatomy.hu["node"], "lymph_node")
