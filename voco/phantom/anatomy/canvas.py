"""The grid that parts are painted on: patient coordinates, soft edges for partial volume, coarse fields."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from voco.phantom.anatomy.labels import LABELS
from voco.phantom.anatomy.shapes import Branch, Points, segment
from voco.short_repr import short_repr

COARSE_MM = 4.0


@short_repr
@dataclass(frozen=True)
class Grid:
    """A regular grid in scanner millimetres and the pose of the patient in it.

    Args:
        size: voxels (D, H, W).
        spacing_mm: (D, H, W).
        origin_mm: scanner position (z, y, x) of the first voxel's centre.
        to_patient: (3, 3), scanner (z, y, x) minus ``centre_mm`` to patient (z, y, x).
        centre_mm: scanner position (z, y, x) of the patient's origin.
    """

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: np.ndarray
    to_patient: np.ndarray
    centre_mm: np.ndarray

    @cached_property
    def _axes(self) -> list[np.ndarray]:
        return [o + s * np.arange(n) for o, s, n in zip(self.origin_mm, self.spacing_mm, self.size)]

    @cached_property
    def _to_scanner(self) -> np.ndarray:
        return np.linalg.inv(self.to_patient)

    def scanner_axes(self, box: tuple[slice, ...] | None = None) -> list[np.ndarray]:
        """Scanner coordinates of the voxel centres, one 1-D array per axis (z, y, x)."""
        return self._axes if box is None else [axis[part] for axis, part in zip(self._axes, box)]

    def patient_points(self, axes: list[np.ndarray]) -> Points:
        """Patient coordinates on the grid spanned by three scanner axes."""
        z, y, x = (axis - c for axis, c in zip(axes, self.centre_mm))
        out = []
        for m in self.to_patient:
            plane = (m[0] * z)[:, None] + (m[1] * y)[None, :]
            out.append(plane.astype(np.float32)[:, :, None] + (m[2] * x).astype(np.float32)[None, None, :])
        return Points(*out)

    def box(self, low, high) -> tuple[slice, ...] | None:
        """Index box that holds a patient-mm box given by two (x, y, z) corners; None when it is outside the grid."""
        low, high = np.asarray(low, float)[::-1], np.asarray(high, float)[::-1]
        middle = self._to_scanner @ (0.5 * (low + high)) + self.centre_mm - self.origin_mm
        half = np.abs(self._to_scanner) @ (0.5 * (high - low))
        box = []
        for m, h, s, n in zip(middle.tolist(), half.tolist(), self.spacing_mm, self.size):
            first, last = max(math.floor((m - h) / s), 0), min(math.ceil((m + h) / s) + 1, n)
            if first >= last:
                return None
            box.append(slice(first, last))
        return tuple(box)


class Canvas:
    """HU before the scanner (float32) and the label map, painted part by part, later parts over earlier ones.

    ``trees`` are the lung trees that were painted (``lungs.lung_trees``), for findings that lie in or beside them.
    """

    def __init__(self, grid: Grid):
        self.grid = grid
        self.trees: dict[str, list] = {}
        self.hu = np.full(grid.size, -1000, np.float32)
        self.labels = np.zeros(grid.size, np.uint8)
        self.edge_mm = float(np.prod(grid.spacing_mm) ** (1 / 3))
        step = [max(COARSE_MM, 1.5 * s) for s in grid.spacing_mm]
        extent = [s * (n - 1) for s, n in zip(grid.spacing_mm, grid.size)]
        self._coarse_step = step
        counts = [int(np.ceil(e / s)) + 2 for e, s in zip(extent, step)]
        self.coarse = grid.patient_points([o + s * np.arange(n) for o, s, n in zip(grid.origin_mm, step, counts)])

    def copy(self) -> Canvas:
        """Another image on the same grid, to be changed on its own."""
        other = copy(self)
        other.hu, other.labels = self.hu.copy(), self.labels.copy()
        return other

    def points(self, box: tuple[slice, ...]) -> Points:
        """Patient coordinates of the voxels in an index box."""
        return self.grid.patient_points(self.grid.scanner_axes(box))

    def field_box(self, field: np.ndarray, margin_mm: float = 6.0) -> tuple[slice, ...] | None:
        """The fine index box around the part of a coarse field that is below ``margin_mm``."""
        near = field < margin_mm
        box = []
        for axis in range(3):
            hit = np.flatnonzero(near.any(axis=tuple(a for a in range(3) if a != axis)))
            if not len(hit):
                return None
            ratio = self._coarse_step[axis] / self.grid.spacing_mm[axis]
            first = max(int((hit[0] - 1) * ratio), 0)
            last = min(int(np.ceil((hit[-1] + 1) * ratio)) + 1, self.grid.size[axis])
            if first >= last:
                return None
            box.append(slice(first, last))
        return tuple(box)

    def fine(self, field: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
        """A coarse field, linearly interpolated at the voxels of a box."""
        index = []
        for axis, part in enumerate(box):
            at = np.arange(part.start, part.stop) * (self.grid.spacing_mm[axis] / self._coarse_step[axis])
            low = np.minimum(at.astype(int), field.shape[axis] - 2)
            index.append((low, (at - low).astype(np.float32)))
        # The slow axis comes last and slice by slice, so that only small arrays are gathered.
        low, w = index[0]
        field = field[low[0] : low[-1] + 2]
        base = low[0]
        (lw, ww), (lh, wh) = index[2], index[1][:2]
        rows = field[:, :, lw] * (1 - ww) + field[:, :, lw + 1] * ww
        wh = wh[:, None]
        plane = rows[:, lh] * (1 - wh) + rows[:, lh + 1] * wh
        out = np.empty((len(low), *plane.shape[1:]), np.float32)
        for k, (i, t) in enumerate(zip(low - base, w)):
            np.add(plane[i] * (1 - t), plane[i + 1] * t, out=out[k])
        return out

    def paint(self, box, distance: np.ndarray, value, label: str | None, edge_mm: float | None = None, strength=1.0):
        """Mix ``value`` into a box where ``distance`` is negative, with an edge one voxel wide.

        Args:
            box: index box.
            distance: signed distance in mm on the box.
            value: HU, a number or an array on the box.
            label: part name, or None to leave the labels alone.
            edge_mm: width of the edge; a voxel without it.
            strength: at most this share of each voxel (thin vessels fill a part of a voxel only).
        """
        cover = np.clip(0.5 - distance * np.float32(1 / (edge_mm or self.edge_mm)), 0, 1)
        hu = self.hu[box]
        hu += (value - hu) * (cover if strength == 1.0 else cover * np.float32(strength))
        if label is not None:
            np.copyto(self.labels[box], np.uint8(LABELS[label]), where=cover * strength >= 0.5)

    def paint_field(self, field: np.ndarray, value, label: str | None) -> None:
        """Paint a coarse signed distance field; ``value`` is a number or a function of the index box."""
        box = self.field_box(field)
        for part in _slabs(box):
            self.paint(part, self.fine(field, part), value(part) if callable(value) else value, label)

    def paint_sheet(self, surface: np.ndarray, half_mm: float, within: np.ndarray, value, label: str | None) -> None:
        """Paint a thin layer around the zero level of a coarse field, where ``within`` is negative.

        The layer is thinner than the coarse grid: only the smooth fields are interpolated, the layer is cut after that.
        """
        box = self.field_box(np.maximum(np.abs(surface) - half_mm - max(self._coarse_step), within))
        for part in _slabs(box):
            layer = np.maximum(np.abs(self.fine(surface, part)) - np.float32(half_mm), self.fine(within, part))
            self.paint(part, layer, value, label, strength=min(1.0, 2 * half_mm / self.edge_mm))

    def paint_branches(
        self, branches: list[Branch], value, label: str | None, grow_mm: float = 0.0, stretch=(1.0, 1.0, 1.0)
    ) -> None:
        """Paint tube pieces; ``grow_mm`` widens them (negative: the core), ``stretch`` as in ``shapes.segment``."""
        stretch = np.asarray(stretch, float)
        for number, branch in enumerate(branches):
            if grow_mm:
                radii = [max(r + grow_mm, 0.0) for r in (branch.start_radius, branch.end_radius)]
                branch = Branch(branch.start, branch.end, *radii)
            widest = max(branch.start_radius, branch.end_radius)
            # Under half a voxel the soft edge alone would paint half a voxel however thin the tube is.
            strength = float(min(1.0, np.pi * (widest / self.edge_mm) ** 2 * stretch.max()))
            if strength < 0.04:
                continue
            reach = (widest + self.edge_mm) * stretch
            low, high = np.minimum(branch.start, branch.end) - reach, np.maximum(branch.start, branch.end) + reach
            box = self.grid.box(low, high)
            if box is not None:
                here = value[number] if isinstance(value, (list, np.ndarray)) else value
                self.paint(box, segment(self.points(box), branch, stretch), here, label, strength=strength)


def _slabs(box: tuple[slice, ...] | None) -> Iterator[tuple[slice, ...]]:
    """A box in pieces of a few slices: temporary arrays stay small, whatever the size of the scan."""
    if box is not None:
        for first in range(box[0].start, box[0].stop, 16):
            yield (slice(first, min(first + 16, box[0].stop)), *box[1:])


def smooth_noise(
    canvas: Canvas, rng: np.random.Generator, scale_mm: float, within: np.ndarray | None = None
) -> np.ndarray:
    """Unit-variance smooth texture on the coarse grid, fixed to the patient: it does not depend on the scan's grid.

    Args:
        canvas: where it will be used.
        rng: source of the texture.
        scale_mm: size of its grains.
        within: coarse signed distance; the texture is made where it is below 8 mm and is zero elsewhere.
    """
    from scipy.ndimage import map_coordinates

    count = 48
    lattice = rng.standard_normal((count, count, count), dtype=np.float32)
    chosen = ... if within is None else within < 8
    at = np.stack([c[chosen] / np.float32(scale_mm) for c in canvas.coarse]) + np.float32(count / 2)
    out = np.zeros(canvas.coarse.z.shape, np.float32)
    out[chosen] = map_coordinates(lattice, at, order=1, mode="grid-wrap") * np.float32(1.8)
    return out
