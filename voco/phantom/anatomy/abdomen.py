"""Organs under the diaphragm as far as a chest scan shows them: liver, spleen, kidneys, stomach, bowel and the rest."""

from __future__ import annotations

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas, smooth_noise
from voco.phantom.anatomy.shapes import Branch, Points, ellipsoid, grow_tree, smooth_max, tube, tube_field

_MUSCLE_MM = 3.5  # the diaphragm


def paint_diaphragm(canvas: Canvas, anatomy: Anatomy, fields: dict[str, np.ndarray]) -> None:
    """A sheet of muscle under the lungs and the crura beside the aorta."""
    p = canvas.coarse
    under = (p.z - fields["dome"]) * np.float32(0.75)
    within = np.maximum(fields["cage"] - 1, 2 - fields["sac"])
    canvas.paint_sheet(under + 0.5 * _MUSCLE_MM, 0.5 * _MUSCLE_MM, within, anatomy.hu["muscle"], "diaphragm")
    z = np.array([-165.0, -200, -240, -275])
    x, y = anatomy.spine(z)
    for side in (-1, 1):
        line = np.stack([x + side * np.array([16, 15, 13, 9]), y - [30, 31, 29, 23], z], axis=1)
        canvas.paint_branches(tube(line, [3, 4.5, 4, 2], 8), anatomy.hu["muscle"], "diaphragm", stretch=(1, 1.6, 1))


def _stomach(anatomy: Anatomy) -> list[Branch]:
    top = anatomy.left_dome_z
    fill = anatomy.stomach_fill
    points = [
        [54, 24, top - 34],
        [62, 2, top - 44],
        [60, -30, top - 74],
        [34, -52, top - 104],
        [4, -56, top - 110],
        [-20, -46, top - 104],
    ]
    return tube(points, np.array([36 + 4 * fill, 35 + 6 * fill, 31 * fill, 22 * fill, 15, 9]), 20)


def liver_distance(anatomy: Anatomy, p: Points, cage=None, dome=None) -> np.ndarray:
    """Signed distance to the liver: it fills the right dome and thins out toward the left in front of the stomach."""
    cage = anatomy.cage_distance(p) if cage is None else cage
    dome = anatomy.dome(p) if dome is None else dome
    s = anatomy.liver_scale
    roof = (p.z - dome) * np.float32(0.75) + _MUSCLE_MM + 0.8
    floor_z = anatomy.right_dome_z - s * (108 - 0.60 * (p.x + 62)) + 0.10 * (p.y + 20)
    floor = (floor_z - p.z) * np.float32(0.8)
    x_left = anatomy.liver_left - 0.9 * np.maximum(p.y + 42, 0)
    left = (p.x - np.maximum(x_left, -26)) * np.float32(0.75)
    x, y = anatomy.spine(p.z)
    back = 36 - np.sqrt((p.x - x) ** 2 + (p.y - y - 2) ** 2)
    out = smooth_max(smooth_max(cage + 4.5 + 2 * anatomy.visceral_fat, roof, 8.0), floor, 22.0)
    out = smooth_max(smooth_max(out, left, 20.0), back.astype(np.float32), 12.0)
    kidney = ellipsoid(p, _kidney_centre(anatomy, -1), (40, 37, 66))
    return smooth_max(out, -kidney, 8.0).astype(np.float32)


def _kidney_centre(anatomy: Anatomy, side: int) -> np.ndarray:
    z = (-258 if side < 0 else -244) - anatomy.kidney_drop
    x, y = (float(v) for v in anatomy.spine(z))
    return np.array([x + side * 60, y - 2, z])


def paint_abdomen(canvas: Canvas, anatomy: Anatomy, fields: dict[str, np.ndarray]) -> None:
    """Paint the abdominal organs, filled ones after their neighbours."""
    _paint_bowel(canvas, anatomy, fields)
    _paint_pancreas(canvas, anatomy)
    _paint_spleen(canvas, anatomy, fields)
    _paint_stomach(canvas, anatomy, fields)
    _paint_liver(canvas, anatomy, fields)
    for side in (-1, 1):
        _paint_kidney(canvas, anatomy, fields, side)
    paint_diaphragm(canvas, anatomy, fields)


def _below(fields: dict[str, np.ndarray], gap_mm: float) -> np.ndarray:
    """Inside the abdominal cavity, ``gap_mm`` away from the diaphragm and the wall."""
    return np.maximum(fields["under"] + _MUSCLE_MM + gap_mm, fields["cage"] + 2 + gap_mm)


def _paint_liver(canvas: Canvas, anatomy: Anatomy, fields) -> None:
    hu, p = anatomy.hu, canvas.coarse
    field = liver_distance(anatomy, p, fields["cage"], fields["dome"])
    grain = smooth_noise(canvas, anatomy.stream("liver"), 12.0, field)
    canvas.paint_field(field, lambda box: hu["liver"] + 3 * canvas.fine(grain, box), "liver")
    rng = anatomy.stream("liver vessels")
    flat = Points(*(rng.uniform(*limits, 6000).astype(np.float32) for limits in ((-300, -110), (-90, 95), (-135, 65))))
    inside = liver_distance(anatomy, flat) < -9
    targets = np.stack([flat.x, flat.y, flat.z], axis=1)[inside]
    if len(targets) < 200:
        return
    # Portal branches come from the hilum, hepatic veins run to the cava under the dome.
    porta = np.array([-26.0, -6, anatomy.right_dome_z - 78])
    cava = np.array([-26.0, 8, anatomy.right_dome_z - 26])
    value = hu["liver_vessels"]
    for root, chosen, leaf in ((porta, targets[:46], 1.2), (cava, targets[46:90], 1.2)):
        pieces = [branch for branch, _ in grow_tree(root, chosen, leaf, rng)]
        canvas.paint_branches(pieces, value, "liver_vessels")
    trunk = tube([porta, porta + np.array([14, -2, -16]), porta + np.array([30, 4, -28])], [6.5, 6, 5.5], 6)
    canvas.paint_branches(trunk, value, "liver_vessels")
    centre = np.array([-44, -44, anatomy.right_dome_z - 98 * anatomy.liver_scale])
    axes = np.array([[0.3, -0.5, -0.81], [0.95, 0.2, 0.23], [0.05, -0.84, 0.54]])
    bladder = np.maximum(ellipsoid(p, centre, (27, 13, 13), axes), fields["cage"] + 8)
    canvas.paint_field(bladder - 1.5, 40, "gallbladder")
    canvas.paint_field(bladder, hu["gallbladder"], "gallbladder")


def _paint_spleen(canvas: Canvas, anatomy: Anatomy, fields) -> None:
    s = anatomy.spleen_scale
    p = canvas.coarse
    centre = (92, 44, anatomy.left_dome_z - 62)
    axes = np.array([[0.80, 0.58, 0.15], [-0.58, 0.81, -0.06], [-0.16, -0.04, 0.99]])
    field = ellipsoid(p, centre, (29 * s, 50 * s, 54 * s), axes)
    field = smooth_max(field, _below(fields, 2.5 + anatomy.visceral_fat), 8.0)
    hollow = ellipsoid(p, (56, 4, anatomy.left_dome_z - 56), (44, 44, 66))
    field = smooth_max(field, -hollow, 8.0)
    grain = smooth_noise(canvas, anatomy.stream("spleen"), 12.0, field)
    spread = 22 if anatomy.phase == "arterial" else 3  # the early phase paints the spleen in stripes
    canvas.paint_field(field, lambda box: anatomy.hu["spleen"] + spread * canvas.fine(grain, box), "spleen")


def _paint_kidney(canvas: Canvas, anatomy: Anatomy, fields, side: int) -> None:
    hu, p = anatomy.hu, canvas.coarse
    centre = _kidney_centre(anatomy, side)
    s = anatomy.kidney_scale
    axes = np.array([[side * 0.26, 0.1, 0.96], [side * 0.80, -0.57, -0.16], [0.55 * side, 0.81, -0.2]])
    axes = np.linalg.qr(axes.T)[0].T * np.array([[1], [1], [1]])
    capsule = ellipsoid(p, centre, (66 * s, 40 * s, 36 * s), axes)
    canvas.paint_field(np.maximum(capsule, _below(fields, 1.0)), hu["fat"], "visceral_fat")
    outer = ellipsoid(p, centre, (54 * s, 30 * s, 25 * s), axes)
    # The sinus opens toward the spine and the front.
    door = centre + np.array([-side * 20, -10, 0]) * s
    sinus = ellipsoid(p, door, (15 * s, 14 * s, 24 * s))
    cortex = smooth_max(outer, -sinus, 5.0)
    cortex = np.maximum(cortex, _below(fields, 1.0))
    name = "kidney_right" if side < 0 else "kidney_left"
    canvas.paint_field(cortex, hu["kidney"], name)
    # Pyramids: the medulla is an inner shell, cut by columns of cortex.
    lumps = smooth_noise(canvas, anatomy.stream("kidney", name), 8.0, outer)
    medulla = np.maximum.reduce([outer + 8 + 1.5 * lumps, -(sinus - 3), cortex + 4])
    canvas.paint_field(medulla, hu["kidney_medulla"], "kidney_medulla")
    vein = tube(
        [door, centre * [0.5, 1, 1] + [0, -20, 6], [-2 * side, centre[1] - 28, centre[2] + 10]], [4, 4.5, 4.5], 6
    )
    canvas.paint_branches(vein, hu["inferior_vein"] * 0.5 + hu["aorta"] * 0.5, None)
    gland = centre + np.array([-side * 20, -6, 58 * s])
    for foot in ((side * 9, 16, -12), (-side * 4, 20, -14)):
        canvas.paint_branches([Branch(gland, gland + foot, 2.8, 1.8)], hu["adrenal"], "adrenal")


def _paint_stomach(canvas: Canvas, anatomy: Anatomy, fields) -> None:
    hu = anatomy.hu
    field = tube_field(canvas.coarse, _stomach(anatomy), 30)
    field = smooth_max(field, _below(fields, 3.0), 8.0)
    inner = field + 4.0
    canvas.paint_field(field, hu["stomach_wall"], "stomach_wall")
    canvas.paint_field(
        inner, lambda box: _level(canvas, anatomy, box, hu["fluid"], -36 + 46 * anatomy.stomach_gas), "stomach_content"
    )


def _level(canvas: Canvas, anatomy: Anatomy, box, below_hu: float, level_mm: float) -> np.ndarray:
    """Gas over fluid: the border is level in the scanner, however the patient is turned."""
    # Rows of scanner y; the level is given in the patient's frame at its centre.
    y = canvas.grid.scanner_axes(box)[1] - canvas.grid.centre_mm[1]
    y = y / anatomy.scale_zyx[1]
    share = np.clip((y - level_mm) / canvas.edge_mm + 0.5, 0, 1).astype(np.float32)
    return (anatomy.hu["bowel_gas"] + (below_hu - anatomy.hu["bowel_gas"]) * share)[None, :, None]


def _paint_pancreas(canvas: Canvas, anatomy: Anatomy) -> None:
    z = anatomy.left_dome_z - 84
    line = [[-26, -16, z - 30], [-8, -14, z - 22], [14, -10, z - 12], [44, 8, z - 4], [72, 26, z + 4]]
    pieces = tube(line, [12, 9, 8.5, 8, 6], 18)
    rng = anatomy.stream("pancreas")
    lobed = [Branch(b.start, b.end, b.start_radius * rng.uniform(0.8, 1.15), b.end_radius) for b in pieces]
    canvas.paint_branches(lobed, anatomy.hu["pancreas"], "pancreas")
    splenic = tube([[-8, -8, z - 20], [20, -2, z - 8], [50, 16, z], [80, 34, z + 10]], 4.0, 10)
    canvas.paint_branches(splenic, anatomy.hu["liver_vessels"], "liver_vessels")


def _colon(anatomy: Anatomy) -> np.ndarray:
    """Ascending, transverse and descending colon as one line."""
    right, left = anatomy.right_dome_z - 120, anatomy.left_dome_z - 88
    middle = min(right, left) - 45
    return np.array(
        [
            [-88, 22, -420], [-96, 18, -350], [-94, 4, right - 28], [-72, -34, right - 30], [-30, -62, middle],
            [20, -66, middle - 8], [66, -48, left - 30], [94, 0, left - 4], [102, 34, left - 24],
            [98, 42, -330], [92, 38, -420],
        ],
        float,
    )  # fmt: skip


def _paint_bowel(canvas: Canvas, anatomy: Anatomy, fields) -> None:
    hu, p = anatomy.hu, canvas.coarse
    rng = anatomy.stream("bowel")
    room = _below(fields, 3.0)
    _paint_loops(canvas, anatomy, room, rng)
    pieces = tube(_colon(anatomy), 17.0, 90)
    # Haustra: the width beats along the way.
    beat = (
        1 + 0.17 * np.sin(np.arange(len(pieces) + 1) * 1.45 + rng.uniform(0, 6)) + rng.normal(0, 0.06, len(pieces) + 1)
    )
    pieces = [Branch(b.start, b.end, 17 * beat[i], 17 * beat[i + 1]) for i, b in enumerate(pieces)]
    field = smooth_max(tube_field(p, pieces, 20), room, 6.0)
    lumps = smooth_noise(canvas, anatomy.stream("stool"), 8.0, field)
    canvas.paint_field(field, hu["bowel_wall"], "bowel_wall")
    gas = -70 + 60 * anatomy.colon_gas

    def content(box):
        stool = hu["stool"] + 35 * canvas.fine(lumps, box)
        specks = np.where(canvas.fine(lumps, box) > 1.1, -500, 0)
        level = _level(canvas, anatomy, box, 0.0, gas)
        return np.where(level < -300, level, stool + specks + level)

    canvas.paint_field(field + 2.5, content, "bowel_content")


def _paint_loops(canvas: Canvas, anatomy: Anatomy, room, rng) -> None:
    """Small bowel: a wandering tube through the middle of the lower abdomen, and the vessels of its mesentery."""
    hu = anatomy.hu
    root = np.array([4.0, 2, -226])
    twigs = rng.uniform([-85, -70, -330], [85, 25, -205], (70, 3))
    canvas.paint_branches([branch for branch, _ in grow_tree(root, twigs, 0.8, rng)], hu["liver_vessels"], None)
    turns = 30
    t = np.arange(turns)
    top = anatomy.left_dome_z - 135
    line = np.stack(
        [
            np.where(t % 2 == 0, -1, 1) * rng.uniform(8, 62, turns) + 8,
            rng.uniform(-58, 8, turns),
            top - t * 5.5 + rng.normal(0, 5, turns),
        ],
        axis=1,
    )
    field = np.maximum(tube_field(canvas.coarse, tube(line, 11.5, 130), 20), room)
    canvas.paint_field(field, hu["bowel_wall"], "bowel_wall")
    lumps = smooth_noise(canvas, anatomy.stream("loops"), 20.0, field)

    def content(box):
        gas = np.clip((canvas.fine(lumps, box) - 1.5) * 4, 0, 1) * np.clip(
            _level(canvas, anatomy, box, 0.0, -35.0) / hu["bowel_gas"], 0, 1
        )
        return hu["fluid"] + 8 + (hu["bowel_gas"] - hu["fluid"] - 8) * gas

    canvas.paint_field(field + 2.8, content, "bowel_content")
