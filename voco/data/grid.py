"""The one check of geometry that every format goes through: voxel size, place, and axes at right angles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voco.errors import ScanError

MAX_SPACING_MM = 50.0
MIN_SPACING_MM = 0.01
# Axes this far from right angles (an element of the matrix; about one degree) are taken as rectangular, and above the
# second limit that is said: rounding in a header is below it, and a true gantry tilt of half a degree is above.
MAX_SHEAR, QUIET_SHEAR = 0.01, 0.002
# How many mm a unit of a header is.
UNITS_MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "micron": 0.001, "microns": 0.001}


def nearest_rigid(axes: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The axes at exact right angles that are nearest.

    Args:
        axes: (3, 3), one unit vector per column.

    Returns:
        The matrix and the largest change of an element; None where the axes do not span space.
    """
    axes = np.asarray(axes, dtype=np.float64).reshape(3, 3)
    if not np.all(np.isfinite(axes)):
        return None
    u, size, vt = np.linalg.svd(axes)
    if size.min() < 1e-6:
        return None
    rigid = u @ vt
    return rigid, float(np.abs(rigid - axes).max())


def shear_degrees(axes: np.ndarray) -> float:
    """How far the worst pair of axes is from a right angle."""
    axes = np.asarray(axes, dtype=np.float64).reshape(3, 3)
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))


def check_geometry(
    spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float], name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Refuse voxel sizes, origins and directions that no scan has, and grids that are not rectangular.

    Args:
        spacing, origin: of the axes x, y, z in mm.
        direction: (3, 3) or flat, one unit vector per column.
        name: how to call the scan in an error.

    Returns:
        The direction at exact right angles, and sentences about what was straightened.

    Raises:
        ScanError: see above.
    """
    spacing, axes = np.asarray(spacing, np.float64), np.asarray(direction, np.float64).reshape(3, 3)
    if not np.all(np.isfinite(spacing)) or spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        raise ScanError(
            f"{name}: voxel size {' x '.join(f'{s:g}' for s in spacing)} mm (x, y, z); expected {MIN_SPACING_MM} to"
            f" {MAX_SPACING_MM:g} mm along each axis"
        )
    found = nearest_rigid(axes)
    lengths = np.linalg.norm(axes, axis=0)
    if found is None or not np.all(np.isfinite(origin)) or np.abs(lengths - 1).max() > MAX_SHEAR:
        raise ScanError(
            f"{name}: its axes {np.round(axes, 3).tolist()} do not span space with unit vectors; the header is damaged"
        )
    rigid, change = found
    if change > MAX_SHEAR:
        raise ScanError(
            f"{name}: its axes are not at right angles ({shear_degrees(axes):.1f} degrees off:"
            f" {np.round(axes, 4).tolist()}), as after gantry tilt; resample it to a rectangular grid first"
        )
    if change <= QUIET_SHEAR:
        return (rigid if change > 1e-9 else axes), ()
    return rigid, (f"axes {shear_degrees(axes):.2f} degrees off right angles, taken as rectangular",)
