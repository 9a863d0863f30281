"""The geometry of a DICOM series: which slices form one stack, in which order, how regular, what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from voco.data.dicom_scan import SPLIT_KEYS, SliceHeader
from voco.data.volume import MIN_SLICES
from voco.errors import ScanError
from voco.short_repr import short_repr

# Two planes closer than this are the same plane: positions are written with 2 to 6 decimals.
SAME_PLANE_MM = 0.01
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
    return sorted(parts, key=len, reverse=True)


def _same_grid(a: SliceHeader, b: SliceHeader) -> bool:
    if (a.rows, a.cols, a.samples, a.sop_class) != (b.rows, b.cols, b.samples, b.sop_class):
        return False
    if "LOCALIZER" in a.image_type or "LOCALIZER" in b.image_type:
        return "LOCALIZER" in a.image_type and "LOCALIZER" in b.image_type
    for left, right, tolerance in ((a.orientation, b.orientation, 2e-3), (a.pixel_mm, b.pixel_mm, 1e-3)):
        if (left is None) != (right is None):
            return False
        if left is not None and np.abs(np.subtract(left, right)).max() > tolerance:
            return False
    return True


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


def split_repeats(headers: list[SliceHeader]) -> list[list[SliceHeader]]:
    """Part several volumes of the same place (phases, acquisitions) that share one series.

    Returns:
        The parts in order of their key; the series as it is when no plane repeats or no key tells the repeats apart.
    """
    if _distinct(headers):
        return [headers]
    for index in range(len(SPLIT_KEYS)):
        groups: dict[str, list[SliceHeader]] = {}
        for header in headers:
            groups.setdefault(header.keys[index], []).append(header)
        if len(groups) > 1 and all(_distinct(group) for group in groups.values()):
            return [groups[key] for key in sorted(groups, key=_natural)]
    return [headers]


def _natural(key: str) -> tuple:
    try:
        return (0, float(key), key)
    except ValueError:
        return (1, 0.0, key)


def _distinct(headers: Sequence[SliceHeader]) -> bool:
    """Tell whether no plane holds two different images; the same image stored twice does not count."""
    unique = {h.sop_uid or f"{h.file}#{h.frame}": h for h in headers}.values()
    _, _, normal = planes(headers)
    z = np.sort([np.dot(h.position, normal) for h in unique])
    return bool(np.all(np.diff(z) > SAME_PLANE_MM))


def arrange(headers: Sequence[SliceHeader], same: Callable[[SliceHeader, SliceHeader], bool]) -> Stack:
    """Order the slices of one stack along their normal and judge its regularity.

    Args:
        headers: slices of one size, spacing and orientation.
        same: tells whether two slices of one plane hold the same pixels.

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
    notes = [f"{len(repeated)} repeated slices dropped"] if repeated else []
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
        tuple(headers), tuple(repeated), row, col, normal, z, step, regular, offset, aligned, tuple(notes)
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
    if clash:
        raise ScanError(
            f"{clash} slices lie in a plane that another slice with different pixels already fills, and nothing in the"
            " headers tells them apart: several phases or reconstructions in one series"
        )
    return kept, repeated


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
