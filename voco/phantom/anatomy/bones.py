"""Vertebrae with discs and canal, twelve pairs of ribs with their cartilage, sternum, and the shoulder girdle."""

from __future__ import annotations

import numpy as np

from voco.phantom.anatomy.anatomy import VERTEBRAE, Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.shapes import Branch, smooth_max, tube

_RIB_MIDDLE_MM = 6.0  # from the inner chest wall to the middle of a rib
# Per rib 1..12: drop from head to front end in mm, and the angle from the front where the bone ends.
_RIB_DROP = (34, 56, 70, 80, 86, 90, 92, 92, 86, 76, 52, 34)
_RIB_END = (0.72, 0.60, 0.56, 0.55, 0.58, 0.66, 0.80, 0.98, 1.12, 1.28, 1.75, 2.15)


def _bone_values(anatomy: Anatomy) -> tuple[float, float]:
    return anatomy.hu["cortical"], anatomy.hu["marrow"] * anatomy.bone_density


def paint_bones(canvas: Canvas, anatomy: Anatomy) -> None:
    """Paint the skeleton of the trunk."""
    _paint_spine(canvas, anatomy)
    _paint_ribs(canvas, anatomy)
    _paint_sternum(canvas, anatomy)
    _paint_shoulders(canvas, anatomy)


def _paint_spine(canvas: Canvas, anatomy: Anatomy) -> None:
    levels = [z for _, z in VERTEBRAE]
    for number, (name, z) in enumerate(VERTEBRAE):
        below = levels[number + 1] if number + 1 < len(levels) else z - 35
        _paint_vertebra(canvas, anatomy, name, float(z), float(z - below), number)


def _paint_vertebra(canvas: Canvas, anatomy: Anatomy, name: str, z: float, step: float, number: int) -> None:
    cortical, marrow = _bone_values(anatomy)
    x, y = (float(v) for v in anatomy.spine(z))
    x2, y2 = (float(v) for v in anatomy.spine(z + 1))
    grow = np.clip((120 - z) / 400, 0, 1)
    half_x, half_y, half_z = 13.5 + 12 * grow, 11.5 + 6 * grow, 0.40 * step
    reach = np.array([70.0, 75, 0.62 * step + 34])
    box = canvas.grid.box(np.array([x, y + 20, z - 6]) - reach, np.array([x, y + 20, z - 6]) + reach)
    if box is None:
        return
    p = canvas.points(box)
    # Coordinates along the spine: the body tilts with the curve, the endplates with it.
    u, v, w = p.x - x - (p.z - z) * (x2 - x), p.y - y - (p.z - z) * (y2 - y), p.z - z + (p.y - y) * (y2 - y)
    waist = 1 - 0.11 * np.clip(1 - (w / half_z) ** 2, 0, 1)
    round_ = (np.sqrt((u / half_x) ** 2 + (v / half_y) ** 2) / waist - 1) * np.float32(0.5 * (half_x + half_y))
    round_ = np.maximum(round_, v - half_y + 1.5)  # the back of the body is flat
    disc = np.maximum(round_ + 0.5, np.abs(w + 0.5 * step) - (0.5 * step - half_z + 1.5))
    canvas.paint(box, disc, anatomy.hu["disc"], "disc")
    canal_y = half_y + 8.0
    canal = np.sqrt((u * 0.82) ** 2 + (v - canal_y) ** 2) - 7.5
    lumbar = name.startswith("L")
    arch = np.maximum(np.abs(canal - 2.4) - 2.6, np.abs(w + 2) - 0.36 * step)
    spinous = Branch(np.array([x, y + canal_y + 9, z - 4]), _spinous_tip(name, x, y + canal_y, z), 3.6, 3.4)
    base = np.array([x, y + canal_y, z])
    tip = np.array([32, 2, 2.0]) if lumbar else np.array([20, 9, 2.0])
    parts = []
    for s in (-1, 1):
        mirror = np.array([s, 1, 1])
        parts.append(Branch(base + mirror * [11, -1, 0], base + mirror * tip, 4.2, 3.2))  # transverse process
        joint = base + mirror * [11, 5, -0.5 * step]
        parts.append(Branch(joint - np.array([0, 0, 7]), joint + np.array([0, 1, 7]), 4.4, 4.4))  # facet joint
    canvas.paint(box, arch, cortical * 0.8, "vertebra")
    for branch in parts:
        canvas.paint_branches([branch], cortical * 0.75, "vertebra")
        canvas.paint_branches([branch], marrow + 40, "vertebra", grow_mm=-1.6)
    canvas.paint_branches([spinous], cortical * 0.8, "vertebra", stretch=(0.8, 1.0, 1.7))
    canvas.paint_branches([spinous], marrow + 40, "vertebra", grow_mm=-1.5, stretch=(0.8, 1.0, 1.7))
    body = smooth_max(round_, np.abs(w) - np.float32(half_z), 3.0)
    canvas.paint(box, body, cortical * 0.68, "vertebra")
    grain = anatomy.stream("marrow", str(number)).normal(0, 12)
    # Trabecular bone is denser toward the endplates.
    inner = marrow + grain + 60 * np.clip(np.abs(w) / half_z, 0, 1) ** 3
    canvas.paint(box, body + 1.5, inner, "vertebra")
    canvas.paint(box, np.maximum(canal, np.abs(w) - 0.55 * step), anatomy.hu["cord"], "spinal_canal")
    cord = np.sqrt((u * 0.85) ** 2 + (v - canal_y) ** 2) - 4.0
    canvas.paint(box, np.maximum(cord, np.abs(w) - 0.55 * step), anatomy.hu["cord"] + 14, "spinal_canal")


def _spinous_tip(name: str, x: float, y: float, z: float) -> np.ndarray:
    if name.startswith("T"):
        return np.array([x, y + 35, z - 24])
    return np.array([x, y + (34 if name.startswith("L") else 26), z - 7])


def rib_path(anatomy: Anatomy, rib: int, side: int, count: int = 30) -> np.ndarray:
    """Middle line (count, 3) of one rib's bone from its head to its front end.

    Args:
        anatomy: the patient.
        rib: 1 to 12.
        side: -1 right, +1 left.
        count: points on the line.
    """
    z_head = float(VERTEBRAE[rib + 2][1]) + 8
    x, y = (float(v) for v in anatomy.spine(z_head))
    drop, end = _RIB_DROP[rib - 1], _RIB_END[rib - 1]
    t = np.linspace(0, 1, count)
    angle = 2.72 + (end - 2.72) * t
    # Ribs fall steeply at the back and flatten toward their front end.
    fall = z_head + 2 - drop * (1 - (1 - t) ** 1.45)
    wall = np.array([anatomy.cage_point(side * a, level, _RIB_MIDDLE_MM) for a, level in zip(angle, fall)])
    head = np.array([x + side * 20, y + 10, z_head])
    neck = np.array([x + side * 34, y + 29, z_head + 1])
    into = np.clip(t * 7, 0, 1)[:, None]
    bend = np.where(into < 0.5, head + (neck - head) * into * 2, neck + (wall - neck) * (into * 2 - 1))
    return np.where(into < 1, bend, wall)


def _paint_ribs(canvas: Canvas, anatomy: Anatomy) -> None:
    cortical, marrow = _bone_values(anatomy)
    build = 0.9 if anatomy.sex == "F" else 1.05
    for rib in range(1, 13):
        for side, label in ((-1, "rib_right"), (1, "rib_left")):
            path = rib_path(anatomy, rib, side)
            radius = (3.3 if rib > 1 else 3.6) * build
            radii = np.full(len(path), radius)
            radii[-3:] *= 0.85 if rib > 10 else 1.1
            pieces = [Branch(path[i], path[i + 1], radii[i], radii[i + 1]) for i in range(len(path) - 1)]
            stretch = (1.0, 1.0, 1.9 if rib > 1 else 1.2)
            canvas.paint_branches(pieces, cortical * 0.95, label, stretch=stretch)
            canvas.paint_branches(pieces, marrow + 10, label, grow_mm=-1.35, stretch=stretch)
            if rib <= 10:
                _paint_cartilage(canvas, anatomy, rib, side, path[-1])


def sternum_point(anatomy: Anatomy, z: float) -> np.ndarray:
    """Middle of the breastbone at level z."""
    return np.array([float(anatomy.midline(z)), float(anatomy.cage(z)[1]) - 8.5, z])


def _paint_cartilage(canvas: Canvas, anatomy: Anatomy, rib: int, side: int, start: np.ndarray) -> None:
    """Cartilage climbs from the rib's end to the breastbone; ribs 8 to 10 join the one above (the costal margin)."""
    if rib <= 7:
        z_end = (46, 22, 2, -18, -36, -52, -66)[rib - 1]
        end = sternum_point(anatomy, z_end) + np.array([side * 15, 0, 0])
        middle_angle = 0.55 * _RIB_END[rib - 1]
    else:
        end = rib_path(anatomy, rib - 1, side)[-1] - [side * 12, 0, 3]
        middle_angle = 0.5 * (_RIB_END[rib - 1] + _RIB_END[rib - 2])
    sag = 4 if rib < 5 else 9
    middle = anatomy.cage_point(side * middle_angle, 0.5 * (start[2] + end[2]) - sag, 5.5)
    pieces = tube([start, middle, end], [4.2, 4.0, 3.8], 8)
    canvas.paint_branches(pieces, anatomy.hu["cartilage"], "costal_cartilage", stretch=(1, 1, 1.5))


def _paint_sternum(canvas: Canvas, anatomy: Anatomy) -> None:
    cortical, marrow = _bone_values(anatomy)
    levels = np.array([50.0, 36, 18, 0, -25, -50, -74, -96])
    points = np.array([sternum_point(anatomy, z) for z in levels])
    wide = np.array([5.6, 5.8, 4.6, 4.4, 4.8, 5.2, 4.6, 2.4])
    pieces = tube(points, wide, 24)
    for grow, value in ((0.0, cortical * 0.7), (-1.3, marrow - 30)):
        upper, lower = pieces[:7], pieces[7:]
        canvas.paint_branches(upper, value, "sternum", grow_mm=grow, stretch=(4.3, 1.0, 1.0))
        canvas.paint_branches(lower, value, "sternum", grow_mm=grow, stretch=(3.2, 1.0, 1.0))


def _paint_shoulders(canvas: Canvas, anatomy: Anatomy) -> None:
    cortical, marrow = _bone_values(anatomy)
    raised = 1.0 if anatomy.arms == "up" else 0.0
    manubrium = sternum_point(anatomy, 48)
    for side in (-1, 1):
        clavicle = [
            manubrium + np.array([side * 22, -1, 4]),
            [side * 62, -22, 68 + 8 * raised],
            [side * 108, 4, 84 + 10 * raised],
            [side * 140, 20, 96 + 8 * raised],
        ]
        pieces = tube(clavicle, [7.5, 5.5, 5.5, 6.5], 16)
        canvas.paint_branches(pieces, cortical, "clavicle")
        canvas.paint_branches(pieces, marrow + 40, "clavicle", grow_mm=-1.9)
        _paint_scapula(canvas, anatomy, side, cortical, marrow)
        head = np.array([side * 153.0, 24, 84])
        elbow = np.array([side * 178.0, -20, 260]) if raised else np.array([side * 204.0, 30, -300])
        shaft = tube([head, 0.75 * head + 0.25 * elbow, elbow], [13, 11, 11], 8)
        for grow, value in ((0.0, cortical), (-3.6, marrow - 90)):
            canvas.paint_branches(shaft, value, "humerus", grow_mm=grow)
        ball = [Branch(head - np.array([0, 0, 1]), head + np.array([0, 0, 1]), 22.5, 22.5)]
        canvas.paint_branches(ball, cortical * 0.7, "humerus")
        canvas.paint_branches(ball, marrow + 30, "humerus", grow_mm=-1.8)


def _paint_scapula(canvas: Canvas, anatomy: Anatomy, side: int, cortical: float, marrow: float) -> None:
    """A thin triangular blade that follows the chest wall, thicker at its outer border, with spine and socket."""
    corners = np.array([[2.45, 84.0], [2.2, -52.0], [1.62, 70.0]])  # angle from the front, level
    low, high = np.array([70.0, -10, -60]), np.array([168.0, 130, 100])
    if side < 0:
        low[0], high[0] = -high[0], -low[0]
    box = canvas.grid.box(low, high)
    if box is None:
        return
    p = canvas.points(box)
    cage, angle = anatomy.cage_distance(p), anatomy.cage_angle(p) * side
    inside = _triangle(angle * 110, p.z, corners * [110, 1])
    depth = 23 + 0.06 * (p.z - 20)
    thin = 1.9 + 2.6 * np.exp(-((inside + 3) ** 2) / 16)
    blade = np.maximum(np.abs(cage - depth) - thin, inside)
    canvas.paint(box, blade, cortical * 0.8, "scapula")
    canvas.paint(box, blade + 1.8, marrow + 60, "scapula")
    ridge = [anatomy.cage_point(side * 2.35, 62, 28), anatomy.cage_point(side * 2.05, 74, 40), [side * 132, 62, 92]]
    socket = [anatomy.cage_point(side * 1.72, 66, 26), [side * 128, 30, 78]]
    for line, radii in ((ridge, [3, 4, 5.5]), (socket, [6, 12])):
        pieces = tube(line, radii, 8)
        canvas.paint_branches(pieces, cortical * 0.85, "scapula")
        canvas.paint_branches(pieces, marrow + 40, "scapula", grow_mm=-1.6)


def _triangle(u: np.ndarray, v: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance (first order) to a triangle in a plane; corners may run either way round."""
    middle = corners.mean(axis=0)
    out = None
    for a, b in zip(corners, np.roll(corners, -1, axis=0)):
        normal = np.array([b[1] - a[1], a[0] - b[0]]) / np.linalg.norm(b - a)
        normal *= -np.sign(normal @ (middle - a))
        edge = (u - a[0]) * np.float32(normal[0]) + (v - a[1]) * np.float32(normal[1])
        out = edge if out is None else np.maximum(out, edge)
    return out
