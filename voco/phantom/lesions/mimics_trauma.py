"""What abdomens show without any injury: cysts, clefts, fluid, streaks behind ribs, calcium, hazy fat."""

from __future__ import annotations

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.labels import LABELS
from voco.phantom.anatomy.shapes import ellipsoid
from voco.phantom.lesions.shapes import Ripple, soft
from voco.phantom.lesions.trauma import Organ


def paint_abdomen_mimics(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Paint harmless findings that look a little like injuries.

    Args:
        canvas: ideal image, changed in place.
        anatomy: of the patient.
        rng: of the anatomy, not of the label; the same for each series.
    """
    organs = {name: Organ(canvas, name) for name in ("liver", "spleen", "kidney_right", "kidney_left")}
    organs = {name: organ for name, organ in organs.items() if organ.box is not None}
    # Each kind has its own numbers: an organ that the scan lacks does not move the others.
    streams = [np.random.default_rng(rng.integers(2**63)) for _ in range(6)]
    _ascites(organs, streams[0])
    _cysts(organs, streams[1])
    _clefts(organs, streams[2])
    _granulomas(organs, streams[3])
    _haze(canvas, streams[4])
    _rib_streaks(canvas, anatomy, streams[5])


def _cysts(organs: dict[str, Organ], rng) -> None:
    """Round, smooth, thin as water; in the kidney some stand out of the surface."""
    for name, most, largest in (("liver", 4, 7), ("kidney_right", 3, 9), ("kidney_left", 3, 9)):
        for _ in range(int(rng.integers(0, most))):
            pick, radius, value = rng.random(), rng.uniform(2.5, largest), rng.uniform(0, 15)
            if name not in organs:
                continue
            organ = organs[name]
            depth = 0.6 * radius if name == "liver" else -0.3 * radius
            at = np.argwhere(organ.inside & (organ.depth > min(depth, 0.6 * organ.depth.max())))
            centre = organ.at(at[int(pick * len(at))])
            cover = soft(ellipsoid(organ.points, centre, (radius,) * 3), max(1.0, organ.canvas.edge_mm))
            if name == "liver":
                organ.mix(cover, value)
            else:
                fat = np.isin(organ.canvas.labels[organ.box], [LABELS["visceral_fat"]])
                hu = organ.canvas.hu[organ.box]
                hu += cover * (organ.inside | fat) * (value - hu)


def _clefts(organs: dict[str, Organ], rng) -> None:
    """Smooth notches: the spleen's lobulation, and the liver's fissure for the falciform ligament."""
    has_cleft, has_fissure = rng.random() < 0.4, rng.random() < 0.6
    for name, wanted, length, breadth in (("spleen", has_cleft, (9, 20), 44), ("liver", has_fissure, (20, 45), 60)):
        draw = rng.random(8)
        if not wanted or name not in organs:
            continue
        organ = organs[name]
        surface = np.argwhere(organ.inside & (organ.depth <= 1.5 * organ.canvas.edge_mm))
        if name == "liver":  # in front, left of the middle
            at = np.stack([organ.points.y[tuple(surface.T)], organ.points.x[tuple(surface.T)]], axis=1)
            surface = surface[np.argsort(at[:, 0] - 0.5 * at[:, 1], kind="stable")[: max(1, len(surface) // 30)]]
        start = organ.at(surface[int(draw[0] * len(surface))])
        deep = np.argwhere(organ.depth > 0.6 * organ.depth.max())
        goal = organ.at(deep[int(draw[1] * len(deep))])
        p, inward = organ.points, (goal - start) / max(np.linalg.norm(goal - start), 1e-6)
        across = np.cross(inward, (0.3 * draw[2], 0.3 * draw[3], 1.0))
        across /= max(np.linalg.norm(across), 1e-6)
        shift = (p.x - start[0], p.y - start[1], p.z - start[2])
        a, c = (sum(np.float32(v) * s for v, s in zip(axis, shift)) for axis in (inward, across))
        c = c + 0.010 * (draw[4] - 0.5) * a**2  # a little bent, not jagged
        reach, width = length[0] + draw[5] * (length[1] - length[0]), 1.6 + 1.6 * draw[6]
        side2 = sum(s**2 for s in shift) - a**2 - c**2
        distance = np.maximum(np.abs(c) - 0.5 * width * np.clip(1.2 - a / reach, 0, 1), a - reach)
        distance = np.maximum(distance, np.sqrt(np.maximum(side2, 0)) - 0.5 * breadth)
        edge = max(1.2, organ.canvas.edge_mm)
        organ.mix(soft(distance, edge) * np.float32(min(1.0, width / edge)), -70 + 60 * draw[7])


def _ascites(organs: dict[str, Organ], rng) -> None:
    """Thin fluid around liver and spleen that is not blood."""
    present, thick, value = rng.random() < 0.3, rng.uniform(1, 4), rng.uniform(2, 16)
    for name in ("liver", "spleen"):
        own = np.random.default_rng(rng.integers(2**63))
        if present and name in organs:
            organs[name].surround(thick * own.uniform(0.5, 1.1), value, own)


def _granulomas(organs: dict[str, Organ], rng) -> None:
    """Calcium, a few millimetres, in spleen or liver."""
    for name in ("spleen", "liver"):
        for _ in range(int(rng.poisson(0.5))):
            pick, radius, value = rng.random(), rng.uniform(1, 2.6), rng.uniform(200, 600)
            if name in organs:
                organ = organs[name]
                at = np.argwhere(organ.depth > 3)
                centre = organ.at(at[int(pick * len(at))])
                share = min(1.0, (2 * radius / organ.canvas.edge_mm) ** 2)
                organ.mix(soft(ellipsoid(organ.points, centre, (radius,) * 3), organ.canvas.edge_mm) * share, value)


def _haze(canvas: Canvas, rng) -> None:
    """Hazy fat in the mesentery of some patients, for no reason that matters here."""
    centre = np.array([rng.uniform(-40, 50), rng.uniform(-45, -10), rng.uniform(-300, -225)])
    amount, radius, texture = rng.uniform(0.15, 0.6), rng.uniform(22, 50), Ripple(rng, 8)
    present = rng.random() < 0.4
    box = canvas.grid.box(centre - 1.3 * radius, centre + 1.3 * radius)
    if not present or box is None:
        return
    p, hu = canvas.points(box), canvas.hu[box]
    cover = soft(ellipsoid(p, centre, (radius,) * 3), 20.0) * amount * np.clip(0.7 + 0.4 * texture(p), 0, 1)
    hu += cover * (canvas.labels[box] == LABELS["visceral_fat"]) * (-5 - hu)


def _rib_streaks(canvas: Canvas, anatomy: Anatomy, rng) -> None:
    """Dark bands that run from a rib straight across what lies inside it, as beam hardening leaves them."""
    for _ in range(int(rng.integers(2, 8))):
        side = rng.choice([-1, 1])
        angle, z = side * rng.uniform(1.1, 2.3), rng.uniform(-230, -120)
        drop, wide, length = rng.uniform(6, 24), rng.uniform(2.5, 5), rng.uniform(45, 90)
        start = anatomy.cage_point(angle, z, 2.0)
        middle = np.array([float(anatomy.midline(z)), 5.0, z])
        inward = (middle - start) / np.linalg.norm(middle - start)
        across = np.array([-inward[1], inward[0], 0.0])
        end = start + inward * length
        box = canvas.grid.box(np.minimum(start, end) - 12, np.maximum(start, end) + 12)
        if box is None:
            continue
        p = canvas.points(box)
        shift = (p.x - start[0], p.y - start[1], p.z - start[2])
        a, c = (sum(np.float32(v) * s for v, s in zip(axis, shift)) for axis in (inward, across))
        band = np.exp(-((c / wide) ** 2) - (shift[2] / 4.5) ** 2) * soft(-a, 8.0) * np.clip(1.3 - a / length, 0, 1)
        tissue = (canvas.hu[box] > -200) & (canvas.hu[box] < 300)
        canvas.hu[box] -= (drop * band * tissue).astype(np.float32)
