"""Harmless findings of the chest that look like disease: nodes, mucus plugs, granulomas, scars, flow artefacts.

They are drawn from the anatomy alone, so a positive and its twin share them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.heart import great_vessels
from voco.phantom.anatomy.labels import GROUPS, LABELS
from voco.phantom.anatomy.lungs import lung_distance
from voco.phantom.anatomy.shapes import FAR, Branch, Points, ellipsoid, tube, tube_field
from voco.short_repr import short_repr

LUNG = GROUPS["lungs"]
SOFT = (*LUNG, "mediastinal_fat", "lymph_node")


def paint_in(
    canvas: Canvas, box, distance: np.ndarray, value, parts: tuple[str, ...], label: str | None = None, **how
) -> None:
    """``Canvas.paint`` in some parts of the patient only.

    Args:
        canvas: ideal image.
        box: index box.
        distance: signed distance in mm on the box.
        value: HU.
        parts: names of ``LABELS`` that may be painted over.
        label: as in ``Canvas.paint``.
        how: ``edge_mm`` and ``strength`` of ``Canvas.paint``.
    """
    table = np.zeros(256, bool)
    table[[LABELS[part] for part in parts]] = True
    canvas.paint(box, np.where(table[canvas.labels[box]], distance, FAR), value, label, **how)


def random_direction(rng: np.random.Generator) -> np.ndarray:
    """A unit vector, all directions alike."""
    v = rng.normal(size=3)
    return v / max(float(np.linalg.norm(v)), 1e-6)


def lung_points(anatomy: Anatomy, rng: np.random.Generator, depth_mm: float, count: int = 1600) -> np.ndarray:
    """Random points (n, 3) as (x, y, z) in the lungs, at least ``depth_mm`` from their surface."""
    limits = ((-190, 92), (-96, 104), (-138, 138))
    flat = Points(*(rng.uniform(*limit, count).astype(np.float32) for limit in limits))
    inside = lung_distance(anatomy, flat) < -depth_mm
    return np.stack([flat.x, flat.y, flat.z], axis=1)[inside].astype(float)


def tube_box(canvas: Canvas, branches: list[Branch], margin_mm: float = 3.0):
    """Index box around tube pieces; None outside the grid."""
    ends = np.array([end for branch in branches for end in (branch.start, branch.end)])
    reach = max(max(b.start_radius, b.end_radius) for b in branches) + margin_mm + canvas.edge_mm
    return canvas.grid.box(ends.min(axis=0) - reach, ends.max(axis=0) + reach)


def paint_tube(
    canvas: Canvas, branches: list[Branch], value, parts: tuple[str, ...], label: str | None = None, **how
) -> None:
    """Paint tube pieces as one shape, in some parts only."""
    box = tube_box(canvas, branches)
    if box is not None:
        paint_in(canvas, box, tube_field(canvas.points(box), branches, 12), value, parts, label, **how)


def interlobar_arteries(anatomy: Anatomy) -> dict[str, list[Branch]]:
    """The arteries between the main ones and the trees of the lower and middle lobes, by lobe."""
    q = anatomy.pulmonary_scale
    right = [[-42, 4, -24], [-46, 12, -35], [-46, 20, -44]]
    return {
        "lobe_right_lower": tube(right, np.array([9.0, 8.0, 6.8]) * q, 9),
        "lobe_right_middle": tube([[-44, 8, -32], [-44, 6, -42]], np.array([5.5, 4.6]) * q, 4),
        "lobe_left_lower": tube([[44, 14, -12], [49, 20, -23], [50, 24, -34]], np.array([9.3, 8.0, 6.6]) * q, 9),
    }


def paint_interlobar(canvas: Canvas, anatomy: Anatomy) -> None:
    """Paint ``interlobar_arteries``; bronchi and veins stay in front."""
    for branches in interlobar_arteries(anatomy).values():
        paint_tube(canvas, branches, anatomy.hu["pulmonary_artery"], SOFT, "pulmonary_artery")


def hilar_nodes(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Enlarged nodes in contact with the lobar arteries: as dark as a clot, but outside of the vessel."""
    roots = {}
    for branch, _, lobe in canvas.trees["artery"]:
        roots.setdefault(lobe, branch)
    lobes = sorted(roots)
    for lobe in rng.choice(lobes, int(rng.integers(2, 6))):
        branch, radii = roots[str(lobe)], rng.uniform(2.8, 6.0, 3)
        along = branch.end - branch.start
        away = np.cross(along / np.linalg.norm(along), random_direction(rng))
        away /= max(float(np.linalg.norm(away)), 1e-6)
        centre = branch.start + rng.uniform(0, 1) * along + away * (branch.start_radius + 0.85 * radii.mean())
        box = canvas.grid.box(centre - 10, centre + 10)
        value = anatomy.hu["node"] + rng.normal(0, 6)
        if box is not None:
            paint_in(canvas, box, ellipsoid(canvas.points(box), centre, radii), value, SOFT, "lymph_node")


def mucus_plugs(canvas: Canvas, rng: np.random.Generator) -> None:
    """Segmental bronchi filled with mucus: dark branching tubes beside bright arteries, or dots in the lung."""
    pieces = [branch for branch, _, _ in canvas.trees["airway"] if branch.start_radius > 1.3]
    for number in rng.choice(len(pieces), min(len(pieces), int(rng.integers(1, 6))), replace=False):
        piece = pieces[int(number)]
        grown = piece._replace(start_radius=piece.start_radius + 0.8, end_radius=piece.end_radius + 0.8)
        paint_tube(canvas, [grown], rng.uniform(5, 35), ("airway_lumen", "airway_wall", *LUNG))


@short_repr
@dataclass(frozen=True)
class Mark:
    """A harmless finding in the lung: its middle (x, y, z), its shape as tube pieces (mm), and HU."""

    centre: np.ndarray
    pieces: list[Branch]
    hu: float


def plan_granulomas(anatomy: Anatomy, rng: np.random.Generator) -> list[Mark]:
    """Calcified nodules of 3 to 6 mm."""
    points = lung_points(anatomy, rng, 4.0)
    found = []
    for centre in points[: int(rng.integers(0, 5))]:
        radius, half = float(rng.uniform(1.4, 3.0)), 0.15 * random_direction(rng)
        found.append(Mark(centre, [Branch(centre - half, centre + half, radius, radius)], float(rng.uniform(250, 900))))
    return found


def plan_scars(anatomy: Anatomy, rng: np.random.Generator) -> list[Mark]:
    """Bands of scar tissue that end at the pleura."""
    points = lung_points(anatomy, rng, 3.0)
    depth = -lung_distance(anatomy, Points(*(points[:, k].astype(np.float32) for k in (2, 1, 0))))
    near = points[np.argsort(depth, kind="stable")][: max(4, len(points) // 4)]
    found = []
    for number in rng.choice(len(near), int(rng.integers(1, 5)), replace=False):
        start = near[int(number)]
        inward = np.array([np.sign(start[0]) * 62, 6, start[2]]) - start
        inward = inward / max(float(np.linalg.norm(inward)), 1e-6) + 0.5 * random_direction(rng)
        length, radius = rng.uniform(8, 28), float(rng.uniform(0.8, 1.9))
        bend = start + 0.5 * length * inward + rng.normal(0, 2, 3)
        pieces = tube([start, bend, start + length * inward], [1.5 * radius, radius, 0.5 * radius], 6)
        found.append(Mark(bend, pieces, float(rng.uniform(-150, 20))))
    return found


def paint_marks(canvas: Canvas, marks: list[Mark]) -> None:
    """Paint granulomas and scars; what is thinner than a voxel fills a part of it."""
    for mark in marks:
        radius = max(max(b.start_radius, b.end_radius) for b in mark.pieces)
        paint_tube(canvas, mark.pieces, mark.hu, LUNG, strength=min(1.0, np.pi * (radius / canvas.edge_mm) ** 2))


def mixing(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator, strong: bool) -> None:
    """Unmixed blood in the upper cava and, where ``strong``, in the pulmonary arteries: dark, but without an edge."""
    vessels = great_vessels(anatomy)
    cava = vessels["superior_vena_cava"][3:13]
    core = [
        b._replace(start_radius=0.3 * b.start_radius, end_radius=0.3 * b.end_radius, start=b.start + s, end=b.end + s)
        for b, s in zip(cava, rng.normal(0, 2.0, (len(cava), 3)))
    ]
    value = anatomy.hu["systemic_vein"] * rng.uniform(0.3, 0.9)
    paint_tube(canvas, core, value, ("superior_vena_cava",), edge_mm=max(7.0, canvas.edge_mm))
    arteries = vessels["pulmonary_artery"]
    for number in rng.choice(len(arteries), 3 if strong else 1):
        branch = arteries[int(number)]
        centre = 0.5 * (branch.start + branch.end) + rng.normal(0, 3, 3)
        radii = rng.uniform(4, 8, 3)
        box = canvas.grid.box(centre - 20, centre + 20)
        if box is not None:
            value = anatomy.hu["pulmonary_artery"] * (rng.uniform(0.55, 0.75) if strong else rng.uniform(0.8, 0.95))
            field = ellipsoid(canvas.points(box), centre, radii)
            paint_in(canvas, box, field, value, ("pulmonary_artery",), edge_mm=max(12.0, canvas.edge_mm))


def cava_thrombus(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """A true filling defect that is no embolism: a catheter thrombus in the superior vena cava."""
    cava = great_vessels(anatomy)["superior_vena_cava"][5:10]
    first = int(rng.integers(len(cava) - 2))
    shift = 0.4 * cava[0].start_radius * random_direction(rng)
    pieces = [
        Branch(b.start + shift, b.end + shift, 0.5 * b.start_radius, 0.45 * b.end_radius)
        for b in cava[first : first + 3]
    ]
    paint_tube(canvas, pieces, rng.uniform(30, 60), ("superior_vena_cava",))
