"""What chests show whether or not the type of tuberculosis is at stake: old scars, dependent lung, fluid, bullae."""

from __future__ import annotations

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.lungs import LOBES
from voco.phantom.lesions.shapes import Ripple, smooth_step, soft
from voco.phantom.lesions.tb import Lungs


def paint_chest_mimics(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Paint findings that do not tell the type, in widely drawn amounts.

    Args:
        canvas: ideal image, changed in place.
        anatomy: of the patient.
        rng: of the anatomy, not of the label.
    """
    lungs = Lungs(canvas, anatomy)
    places = lungs.places(rng, 9.0)
    _dependent(lungs, rng)
    _granulomas(lungs, rng, places)
    _scars(lungs, rng, places)
    if rng.random() < 0.4:
        _bullae(lungs, rng, places)


def _granulomas(lungs: Lungs, rng, places) -> None:
    """Old, small, calcified: left by an infection long ago."""
    for _ in range(int(rng.poisson(1.6))):
        at = places[LOBES[int(rng.integers(5))]]
        if len(at):
            lungs.nodule(at[rng.integers(len(at))], rng.uniform(1.4, 2.6), rng.uniform(250, 700), rng, edge_mm=1.0)


def _scars(lungs: Lungs, rng, places) -> None:
    """Thin bands that reach the pleura, in any lobe."""
    for _ in range(int(rng.integers(0, 6))):
        at = places[LOBES[int(rng.integers(5))]]
        if not len(at):
            continue
        start = at[rng.integers(len(at))]
        way = rng.standard_normal(3) * (1, 1, 0.4)
        end = start + way / np.linalg.norm(way) * rng.uniform(14, 38)
        lungs.strand(start, end, rng.uniform(1.0, 2.4), rng.uniform(-450, -50))


def _bullae(lungs: Lungs, rng, places) -> None:
    """Air without lung in it, hardly a wall, mostly near the top."""
    for _ in range(int(rng.integers(1, 5))):
        name = LOBES[int(rng.choice([0, 0, 3, 3, 2, 4]))]
        if not len(places[name]):
            continue
        centre, radius = places[name][rng.integers(len(places[name]))], rng.uniform(5, 13)
        box = lungs.box(centre, radius + 3)
        if box is None:
            continue
        p = lungs.canvas.points(box)
        distance = np.sqrt((p.x - centre[0]) ** 2 + (p.y - centre[1]) ** 2 + (p.z - centre[2]) ** 2) - radius
        distance = distance + 0.08 * radius * Ripple(rng, radius)(p)
        edge = max(1.2, lungs.canvas.edge_mm)
        lungs.thicken(box, soft(np.abs(distance) - 0.4, edge) * min(1.0, 0.8 / edge), -500)
        hu = lungs.canvas.hu[box]
        hu += soft(distance, edge) * lungs.inner(box, 1.0) * np.minimum(-960 - hu, 0)


def _dependent(lungs: Lungs, rng) -> None:
    """What gravity does: lung that grows denser toward the back, by little to much, and fluid in the pleural space."""
    canvas, anatomy = lungs.canvas, lungs.anatomy
    box = canvas.field_box(lungs.field, 2.0)
    if box is None:
        return
    fluid = [rng.uniform(4, 22) if rng.random() < 0.3 else 0.0 for _ in range(2)]
    # A smooth rise that fills all densities between air and water in some patients, hardly any in others.
    rise, bend = rng.uniform(0, 420) * rng.random(), rng.uniform(1.2, 3.0)
    top = rng.uniform(-70, 10)
    for first in range(box[0].start, box[0].stop, 16):  # slabs: whole-chest temporaries are large at 512 x 512
        part = (slice(first, min(first + 16, box[0].stop)), *box[1:])
        p = canvas.points(part)
        _, front, back = anatomy.cage(p.z)
        share = np.clip((p.y - front) / (back - front), 0, 1)
        layer = np.where(p.x < anatomy.midline(p.z), *fluid) * smooth_step(-p.z, -top, -top + 90)
        layer = layer * smooth_step(share, 0.45, 0.95)
        hu = canvas.hu[part]
        hu += lungs.inner(part) * (hu < -500) * (rise * share**bend).astype(np.float32)
        deep = -anatomy.cage_distance(p)
        lungs.thicken(part, soft((deep - layer).astype(np.float32), max(1.5, canvas.edge_mm)) * (layer > 0.5), 9.0)
