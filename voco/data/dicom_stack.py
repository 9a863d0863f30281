"""The geometry of a DICOM series: which slices form one stack, in which order, how regular, what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from voco.data.dicom_scan import SliceHeader
from voco.data.volume import MIN_SLICES
from voco.errors import ScanError
from voco.short_repr import short_repr

# Two planes closer than this are the same plane: positions are written with 2 to 6 decimals.
SAME_PLANE_MM = 0.01
# Direction cosines within this are the same direction; within the other (a degree) they are one that jitters.
SAME_DIRECTION = 2e-3
JITTER = 0.0175
# Slices no further than this share of a step from an even grid lie on it: scanners round positions, some to 0.1 mm.
REGULAR = 0.1
# A wider step is bridged by linear interpolation while it is one missing slice, or few and thin ones.
MAX_STEP_RATIO = 2.1
MAX_THIN_STEP_RATIO = 4.1
MAX_THIN_STEP_MM = 10.0
# Drift in the plane below this share of a pixel is rounding, above it the slices are shifted back.
ALIGNED_PIXELS = 0.25
MAX_SHIFT_SHARE = 1.0


@short_repr
@dataclass(frozen=True)
class Stack:
    """Slices of one volume in order along their normal.

    Attributes:
        headers: slices with distinct planes, ascending along ``normal``.
        repeated: slices left aside because their plane is already there.
        row, col, normal: unit vectors (LPS): along a row, along a column, out of the plane.
        z: (n,) position of each slice along the normal in mm.
        step: spacing of the regular grid along the normal in mm.
        regular: whether the slices already lie on that grid.
        offset: (n, 2) where each slice's corner lies along ``col`` and ``row`` in mm, relative to the first.
        aligned: whether those offsets are nothing but rounding; they are not under gantry tilt.
        notes: what was noticed, as sentences.
    """

    headers: tuple[SliceHeader, ...]
    repeated: tuple[SliceHeader, ...]
    row: np.ndarray
    col: np.ndarray
    normal: np.ndarray
    z: np.ndarray
    step: float
    regular: bool
    offset: np.ndarray
    aligned: bool
    notes: tuple[str, ...]


def cluster(headers: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Part the slices of a series by size, pixel spacing and orientation, the largest part first."""
    parts: list[list[SliceHeader]] = []
    for header in headers:
        for part in parts:
            if _same_grid(part[0], header):
                part.append(header)
                break
        else:
            parts.append([header])
    return sorted((turn for part in parts for turn in _turns(part)), key=len, reverse=True)


def _same_grid(a: SliceHeader, b: SliceHeader) -> bool:
    if (a.rows, a.cols, a.samples, a.sop_class) != (b.rows, b.cols, b.samples, b.sop_class):
        return False
    if "LOCALIZER" in a.image_type or "LOCALIZER" in b.image_type:
        return "LOCALIZER" in a.image_type and "LOCALIZER" in b.image_type
    for left, right in ((a.orientation, b.orientation), (a.pixel_mm, b.pixel_mm)):
        if (left is None) != (right is None):
            return False
    return a.pixel_mm is None or np.abs(np.subtract(a.pixel_mm, b.pixel_mm)).max() <= 1e-3


def _turns(headers: list[SliceHeader]) -> list[list[SliceHeader]]:
    """Part slices by orientation, each part about the one that most of them are near to."""
    if headers[0].orientation is None:
        return [headers]
    parts = []
    while headers:
        distinct, count = np.unique([h.orientation for h in headers], axis=0, return_counts=True)
        near = [count[np.abs(distinct - turn).max(axis=1) <= JITTER].sum() for turn in distinct]
        middle = distinct[int(np.argmax(near))]
        inside = np.abs(np.array([h.orientation for h in headers]) - middle).max(axis=1) <= JITTER
        parts.append([h for h, yes in zip(headers, inside) if yes])
        headers = [h for h, yes in zip(headers, inside) if not yes]
    return parts


def planes(headers: Sequence[SliceHeader]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors along rows, along columns and out of the plane, averaged over the slices."""
    mean = np.mean([h.orientation for h in headers], axis=0)
    row, col = mean[:3], mean[3:]
    if min(np.linalg.norm(row), np.linalg.norm(col)) < 0.9:
        raise ScanError("the row and column directions in the header are not unit vectors")
    row = row / np.linalg.norm(row)
    if abs(row @ col) > 0.01:
        raise ScanError("rows and columns are not at right angles in the header")
    col = col - (row @ col) * row
    col = col / np.linalg.norm(col)
    return row, col, np.cross(row, col)


def parallel(headers: Sequence[SliceHeader]) -> tuple[list[SliceHeader], tuple[str, ...]]:
    """Take slices that are turned against each other a little as parallel, about their corners or their middles.

    Returns:
        The slices with one orientation, and a sentence where they had several.
    """
    turned = np.array([h.orientation for h in headers], dtype=np.float64)
    if np.ptp(turned, axis=0).max() <= SAME_DIRECTION:
        return list(headers), ()
    row, col, normal = planes(headers)
    corner = np.array([h.position for h in headers], dtype=np.float64)
    half = [0.5 * np.array([(h.cols - 1) * h.pixel_mm[1], (h.rows - 1) * h.pixel_mm[0]]) for h in headers]
    moved = [a * (t[:3] - row) + b * (t[3:] - col) for (a, b), t in zip(half, turned)]
    # What the positions mean is not known: the steps are even where they are understood.
    about = min(
        (corner, corner + moved), key=lambda place: np.diff(np.sort(place @ normal)).var() if len(place) > 1 else 0
    )
    angle = np.degrees(np.arccos(np.clip(np.cross(turned[:, :3], turned[:, 3:]) @ normal, -1, 1)).max())
    note = f"slices turned against each other by up to {angle:.2g} degrees, taken as parallel"
    one = tuple(float(v) for v in (*row, *col))
    return [h._replace(orientation=one, position=tuple(p)) for h, p in zip(headers, about.tolist())], (note,)


def arrange(
    headers: Sequence[SliceHeader],
    same: Callable[[SliceHeader, SliceHeader], bool],
    dropped: Sequence[SliceHeader] = (),
    notes: Sequence[str] = (),
) -> Stack:
    """Order the slices of one stack along their normal and judge its regularity.

    Args:
        headers: slices of one size, spacing and orientation.
        same: tells whether two slices of one plane hold the same pixels.
        dropped: slices left aside before, to be listed with the repeated ones.
        notes: what was noticed before.

    Returns:
        The stack, ready to be read.

    Raises:
        ScanError: positions missing, planes that repeat with different content, gaps, too few slices. The message
            does not name the scan.
    """
    for what, missing in (
        ("ImageOrientationPatient", [h for h in headers if h.orientation is None]),
        ("ImagePositionPatient", [h for h in headers if h.position is None]),
        ("PixelSpacing", [h for h in headers if h.pixel_mm is None or min(h.pixel_mm) <= 0]),
    ):
        if missing:
            raise ScanError(
                f"{len(missing)} of {len(headers)} slices have no valid {what}, so their place is not known"
            )
    row, col, normal = planes(headers)
    headers, repeated = _drop_repeats(sorted(headers, key=lambda h: (np.dot(h.position, normal), h.file)), normal, same)
    if len(headers) < MIN_SLICES:
        raise ScanError(f"{len(headers)} different slice positions; a volume needs at least {MIN_SLICES}")
    position = np.array([h.position for h in headers], dtype=np.float64)
    z = position @ normal
    steps = np.diff(z)
    median = float(np.median(steps))
    notes = [*notes, *([f"{len(repeated)} repeated slices dropped"] if repeated else [])]
    step = float((z[-1] - z[0]) / (len(z) - 1))
    regular = bool(np.abs(z - z[0] - step * np.arange(len(z))).max() <= REGULAR * step)
    if not regular:
        _check_gap(steps, median, headers)
        step = _grid_step(steps, median)
        notes.append(f"uneven slice steps of {steps.min():.4g} to {steps.max():.4g} mm, resampled to {step:.4g} mm")
    offset = (position - position[0]) @ np.stack([col, row]).T
    drift = np.ptp(offset, axis=0)
    pixel = np.array(headers[0].pixel_mm)
    aligned = bool((drift <= ALIGNED_PIXELS * pixel).all())
    if not aligned:
        if (drift > MAX_SHIFT_SHARE * pixel * (headers[0].rows, headers[0].cols)).any():
            raise ScanError(f"slices lie up to {drift.max():.0f} mm beside each other: they do not form one stack")
        tilt = np.degrees(np.arctan2(np.linalg.norm(offset[-1]), z[-1] - z[0]))
        notes.append(f"slices shifted in their planes to undo a shear of {tilt:.1f} degrees (gantry tilt)")
    return Stack(
        tuple(headers), (*repeated, *dropped), row, col, normal, z, step, regular, offset, aligned, tuple(notes)
    )  # fmt: skip


def _drop_repeats(headers, normal, same) -> tuple[list[SliceHeader], list[SliceHeader]]:
    kept, repeated, clash = [], [], 0
    for header in headers:
        if not kept or np.dot(np.subtract(header.position, kept[-1].position), normal) > SAME_PLANE_MM:
            kept.append(header)
        elif same(kept[-1], header):
            repeated.append(header)
        else:
            clash += 1
    if clash and len(kept) >= MIN_SLICES:
        raise ScanError(
            f"{clash} slices lie in a plane that another slice with different pixels already fills, and nothing in the"
            " headers tells them apart: several phases or reconstructions in one series"
        )
    return kept, repeated


def residual(z: Sequence[float], images: Sequence[np.ndarray]) -> float:
    """Mean absolute difference between the middle one of three images and what the outer two foretell by place."""
    weight = (z[1] - z[0]) / (z[2] - z[0])
    return float(np.abs(images[1] - (images[0] + np.float32(weight) * (images[2] - images[0]))).mean())


def _grid_step(steps: np.ndarray, median: float) -> float:
    """The median, made exact over the whole stack where every step is a multiple of it (slices missing)."""
    multiples = np.round(steps / median)
    if (multiples >= 1).all() and np.abs(steps - multiples * median).max() <= 2 * REGULAR * median:
        return float(steps.sum() / multiples.sum())
    return median


def _check_gap(steps: np.ndarray, median: float, headers: Sequence[SliceHeader]) -> None:
    limit = max(MAX_STEP_RATIO * median, min(MAX_THIN_STEP_RATIO * median, MAX_THIN_STEP_MM))
    widest = int(np.argmax(steps))
    if steps[widest] > limit:
        missing = max(1, round(steps[widest] / median) - 1)
        raise ScanError(
            f"a gap of {steps[widest]:.4g} mm between slices {widest + 1} and {widest + 2} of {len(headers)}, where the"
            f" usual step is {median:.4g} mm: about {missing} slices are missing (up to {limit:.4g} mm is bridged)"
        )
