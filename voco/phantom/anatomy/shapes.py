"""Implicit shapes in millimetres: every function returns a signed distance (negative inside), exact or first order.

Points are ``Points(z, y, x)``; positions and curves are rows of (x, y, z): x toward left, y toward posterior, z toward
superior, the way anatomy is written down.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FAR = np.float32(1e3)


class Points(NamedTuple):
    """Coordinates in patient millimetres; the three arrays have one shape or broadcast to it."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray


class Branch(NamedTuple):
    """One piece of a tube: a straight segment whose radius changes linearly."""

    start: np.ndarray
    end: np.ndarray
    start_radius: float
    end_radius: float


def smooth_min(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """Union of two shapes with the crease rounded over ``width_mm`` (polynomial blend)."""
    blend = np.maximum(width_mm - np.abs(a - b), 0) / width_mm
    return np.minimum(a, b) - np.float32(width_mm / 4) * blend * blend


def smooth_max(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """Intersection of two shapes with the crease rounded over ``width_mm``."""
    blend = np.maximum(width_mm - np.abs(a - b), 0) / width_mm
    return np.maximum(a, b) + np.float32(width_mm / 4) * blend * blend


def ellipsoid(p: Points, centre, radii, axes: np.ndarray | None = None) -> np.ndarray:
    """First-order distance to an ellipsoid.

    Args:
        p: points.
        centre: (x, y, z) in mm.
        radii: three radii in mm along the axes.
        axes: (3, 3), rows are the unit axes in (x, y, z); the patient's own axes without it.
    """
    x, y, z = p.x - np.float32(centre[0]), p.y - np.float32(centre[1]), p.z - np.float32(centre[2])
    if axes is not None:
        axes = np.asarray(axes, np.float32)
        x, y, z = (row[0] * x + row[1] * y + row[2] * z for row in axes)
    a, b, c = (np.float32(1 / r) for r in radii)
    x, y, z = x * a, y * b, z * c
    xx, yy, zz = x * x, y * y, z * z
    level = np.sqrt(xx + yy + zz)
    slope = np.sqrt(xx * (a * a) + yy * (b * b) + zz * (c * c)) + np.float32(1e-6)
    return level * (level - 1) / slope


def segment(p: Points, branch: Branch, stretch=(1.0, 1.0, 1.0)) -> np.ndarray:
    """Distance to a tapered tube piece; ``stretch`` (x, y, z) divides distances: (1, 1, 2) is twice as high."""
    sx, sy, sz = (np.float32(1 / s) for s in stretch)
    ax, ay, az = (np.float32(v / s) for v, s in zip(branch.start, stretch))
    bx, by, bz = (np.float32(v / s) for v, s in zip(branch.end, stretch))
    dx, dy, dz = bx - ax, by - ay, bz - az
    x, y, z = p.x * sx - ax, p.y * sy - ay, p.z * sz - az
    length2 = max(float(dx * dx + dy * dy + dz * dz), 1e-6)
    t = np.clip((x * dx + y * dy + z * dz) * np.float32(1 / length2), 0, 1)
    x, y, z = x - t * dx, y - t * dy, z - t * dz
    radius = np.float32(branch.start_radius) + t * np.float32(branch.end_radius - branch.start_radius)
    return np.sqrt(x * x + y * y + z * z) - radius


def curve(points, count: int = 24) -> np.ndarray:
    """A smooth curve (count, 3) through control points (n, 3), sampled evenly along the chords."""
    from scipy.interpolate import CubicSpline, PchipInterpolator

    points = np.asarray(points, float)
    at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    kind = CubicSpline if len(points) > 3 else PchipInterpolator
    return kind(at, points)(np.linspace(0, at[-1], count))


def tube(points, radii, count: int = 24) -> list[Branch]:
    """Tube pieces along a smooth curve; ``radii`` is one radius or one per control point."""
    line = curve(points, count)
    radii = np.broadcast_to(np.asarray(radii, float), (len(points),))
    r = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(points)), radii)
    return [Branch(line[i], line[i + 1], r[i], r[i + 1]) for i in range(count - 1)]


def tube_field(p: Points, branches: list[Branch], reach_mm: float = 30.0) -> np.ndarray:
    """Distance to a union of tube pieces; farther than ``reach_mm`` it is only a large number.

    Args:
        p: points of one regular grid (3-D arrays), or a flat list of points (1-D arrays).
    """
    shape = np.broadcast_shapes(p.z.shape, p.y.shape, p.x.shape)
    out = np.full(shape, FAR, np.float32)
    flat = len(shape) != 3
    bounds = None if flat else _axis_bounds(p)
    for branch in branches:
        if flat:
            np.minimum(out, segment(p, branch), out=out)
            continue
        reach = reach_mm + max(branch.start_radius, branch.end_radius)
        low = np.minimum(branch.start, branch.end) - reach
        high = np.maximum(branch.start, branch.end) + reach
        box = _grid_box(bounds, low, high)
        if box is not None:
            part = Points(p.z[box], p.y[box], p.x[box])
            out[box] = np.minimum(out[box], segment(part, branch))
    return out


def _axis_bounds(p: Points) -> list[tuple[np.ndarray, np.ndarray]]:
    """Smallest and largest coordinate in every plane of a grid: z per first index, y per second, x per third."""
    bounds = []
    for axis, values in enumerate(p):
        other = tuple(a for a in range(3) if a != axis)
        bounds.append((values.min(axis=other), values.max(axis=other)))
    return bounds


def _grid_box(bounds, low: np.ndarray, high: np.ndarray) -> tuple[slice, ...] | None:
    """The index box of a nearly axis-parallel 3-D grid that holds the mm box; None when they do not meet."""
    box = []
    for (least, most), first, last in zip(bounds, low[::-1], high[::-1]):
        inside = np.flatnonzero((most >= first) & (least <= last))
        if not len(inside):
            return None
        box.append(slice(inside[0], inside[-1] + 1))
    return tuple(box)


def grow_tree(
    root, targets: np.ndarray, leaf_radius: float, rng: np.random.Generator, exponent: float = 2.7
) -> list[tuple[Branch, int]]:
    """A tree that fills a region: it heads for the middle of its targets, splits them in two, goes on with each half.

    Radii follow Murray's rule: a branch that feeds n targets has ``leaf_radius * n ** (1 / exponent)``.

    Args:
        root: (x, y, z) where the tree starts.
        targets: (n, 3) points to reach.
        leaf_radius: radius of the last branches in mm.
        rng: small bends come from here.

    Returns:
        Pieces with the number of targets that each one feeds, from the root outward.
    """
    pieces: list[tuple[Branch, int]] = []
    stack = [(np.asarray(root, float), np.asarray(targets, float), leaf_radius * len(targets) ** (1 / exponent))]
    while stack:
        start, points, before = stack.pop()
        count = len(points)
        radius = leaf_radius * count ** (1 / exponent)
        middle = points.mean(axis=0)
        end = middle if count == 1 else start + rng.uniform(0.34, 0.5) * (middle - start)
        length = np.linalg.norm(end - start)
        bend = 0.5 * (start + end) + rng.normal(0, 0.06 * length, 3)
        last = radius if count > 1 else 0.6 * radius
        if count > 1:
            pieces.append((Branch(start, bend, min(before, 1.15 * radius), radius), count))
            start = bend
        pieces.append((Branch(start, end, radius, last), count))
        if count > 1:
            heading = (end - start) / max(np.linalg.norm(end - start), 1e-6)
            offset = points - middle
            # Splitting across the direction of travel keeps the two children on either side of the parent.
            across = offset - 0.7 * np.outer(offset @ heading, heading)
            normal = np.linalg.eigh(across.T @ across)[1][:, -1]
            normal *= np.sign(normal[np.argmax(np.abs(normal))])
            order = np.argsort(across @ normal, kind="stable")
            cut = int(np.clip(round(count * rng.uniform(0.35, 0.65)), 1, count - 1))
            stack += [(end, points[order[:cut]], radius), (end, points[order[cut:]], radius)]
    return pieces
