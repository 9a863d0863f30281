"""Width of the right over the left ventricle: varied between patients, and measured as on axial images."""

from __future__ import annotations

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.heart import heart_axes, heart_parts
from voco.phantom.anatomy.labels import LABELS
from voco.phantom.lesions.chest import paint_in

_WALL_MM = 9.0
_VENTRICLES = ("right_ventricle", "left_ventricle")


def vary_ventricles(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Move the septum: a wide right and a narrow left ventricle in some patients, the other way round in others.

    The outer shape of the heart and everything around the ventricles stay as they are.
    """
    parts = heart_parts(anatomy, canvas.coarse)
    shift = np.float32(rng.uniform(-5.5, 5.5) * anatomy.heart_size)
    apart = -np.minimum(parts["left_atrium"], parts["right_atrium"]) + 2
    left = np.maximum.reduce([parts["left_ventricle"] + shift, parts["outer"] + 6, apart])
    right = np.maximum.reduce([parts["right_ventricle"] - shift, parts["outer"] + 3, apart, _WALL_MM - left])
    both = np.minimum(parts["left_ventricle"], parts["right_ventricle"])
    over = (*_VENTRICLES, "myocardium")
    for field, key, label in (
        (both, "myocardium", "myocardium"),
        (right, "right_heart", "right_ventricle"),
        (left, "left_heart", "left_ventricle"),
    ):
        box = canvas.field_box(field)
        if box is not None:
            paint_in(canvas, box, canvas.fine(field, box), anatomy.hu[key], over, label)


def ventricle_ratio(canvas: Canvas, anatomy: Anatomy) -> float:
    """Largest axial width of the right ventricle over that of the left, across the heart's long axis.

    Each may be measured on its own slice, as readers do. NaN where a ventricle is outside the image.
    """
    widths = [_width(canvas, anatomy, name) for name in _VENTRICLES]
    return widths[0] / widths[1] if all(widths) else float("nan")


def _width(canvas: Canvas, anatomy: Anatomy, name: str) -> float:
    _, dy, dx = canvas.grid.spacing_mm
    long = heart_axes(anatomy.heart_tilt)[0][:2]
    long = long / np.linalg.norm(long)
    step = max(4.0, 1.5 * dx)
    best = 0.0
    for image in canvas.labels == LABELS[name]:
        row, column = np.nonzero(image)
        if len(row) < 8:
            continue
        x, y = column * dx, row * dy
        band = np.floor((x * long[0] + y * long[1]) / step).astype(int)
        across = -x * long[1] + y * long[0]
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=band[order][0] - 1))
        widest = np.maximum.reduceat(across[order], starts) - np.minimum.reduceat(across[order], starts)
        best = max(best, float(widest.max()) + dx)
    return best
