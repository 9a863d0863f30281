"""Shapes of disease: borders that are not geometry, soft edges, many small spheres at once."""

from __future__ import annotations

import numpy as np

from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.shapes import Points


class Ripple:
    """A smooth random field of unit variance in patient millimetres: a sum of waves in random directions.

    It is the same on every grid, and needs no lattice: cheap on the small box around a lesion.

    Args:
        rng: source of directions and phases.
        scale_mm: wavelength, about twice the size of its grains; each wave has 0.6 to 1.6 times that.
        waves: how many.
    """

    def __init__(self, rng: np.random.Generator, scale_mm: float, waves: int = 9):
        turn = rng.standard_normal((waves, 3))
        turn /= np.linalg.norm(turn, axis=1, keepdims=True)
        self.k = (turn * (2 * np.pi / (scale_mm * rng.uniform(0.6, 1.6, (waves, 1))))).astype(np.float32)
        self.phase = rng.uniform(0, 2 * np.pi, waves).astype(np.float32)

    def __call__(self, p: Points) -> np.ndarray:
        out = np.float32(0)
        for (x, y, z), phase in zip(self.k, self.phase):
            out = out + np.sin(x * p.x + y * p.y + z * p.z + phase)
        return out * np.float32((2 / len(self.phase)) ** 0.5)


def soft(distance: np.ndarray, edge_mm: float) -> np.ndarray:
    """Share of a voxel that lies inside: 1 inside, 0 outside, a ramp of ``edge_mm`` around the border."""
    return np.clip(np.float32(0.5) - distance * np.float32(1 / edge_mm), 0, 1)


def smooth_step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, without a kink."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def add_spheres(
    canvas: Canvas, centres: np.ndarray, radii: np.ndarray, value, where: np.ndarray | None = None
) -> np.ndarray:
    """Paint many small spheres that are denser than what is there; those under a voxel fill a part of it.

    Args:
        canvas: ideal image, changed in place.
        centres: (n, 3), patient (x, y, z) in mm.
        radii: (n,) in mm.
        value: HU, a number or (n,).
        where: boolean (D, H, W), voxels that may change; all without it.

    Returns:
        Which spheres lie on the grid, (n,) boolean.
    """
    grid = canvas.grid
    spacing = np.asarray(grid.spacing_mm)
    inverse = np.linalg.inv(grid.to_patient)
    at = (centres[:, ::-1] @ inverse.T + grid.centre_mm - grid.origin_mm) / spacing
    # A ramp of a voxel around a radius R encloses R^3 + R edge^2 / 4: the share keeps each sphere's mass.
    edge = canvas.edge_mm
    grown = np.maximum(radii, 0.5 * edge)
    share = np.minimum(1.0, radii**3 / (grown**3 + grown * edge**2 / 4))
    inside = ((at > -0.5) & (at < np.array(grid.size) - 0.5)).all(axis=1)
    value = np.broadcast_to(np.asarray(value, np.float32), len(radii))
    reach = np.ceil((float(grown.max(initial=0)) + 0.5 * canvas.edge_mm) / (spacing * _least_scale(grid))).astype(int)
    offsets = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    flat, shape = canvas.hu.reshape(-1), np.array(grid.size)  # a view: the canvas is contiguous
    allowed = None if where is None else where.reshape(-1)
    for part in np.array_split(np.flatnonzero(inside), max(1, inside.sum() * len(offsets) // 2_000_000)):
        voxel = np.rint(at[part]).astype(int)[:, None] + offsets
        away = ((voxel - at[part][:, None]) * spacing) @ grid.to_patient.T
        cover = soft(np.linalg.norm(away, axis=-1) - grown[part][:, None], edge) * share[part][:, None]
        keep = (cover > 0.01) & ((voxel >= 0) & (voxel < shape)).all(axis=-1)
        index = np.ravel_multi_index(tuple(voxel[keep].T), grid.size)
        target = np.broadcast_to(value[part][:, None], cover.shape)[keep]
        cover = cover[keep]
        if allowed is not None:
            cover = cover * allowed[index]
        # Neighbours share voxels: the stronger one counts, whatever their order.
        np.maximum.at(flat, index, flat[index] + np.maximum(target - flat[index], 0) * cover)
    return inside


def _least_scale(grid) -> float:
    """Smallest patient millimetre per scanner millimetre, so that a reach in voxels covers a patient distance."""
    return float(np.linalg.svd(grid.to_patient, compute_uv=False)[-1])
