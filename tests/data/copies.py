"""Scans with things in them, and copies of a scan as they turn up in collections."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import affine_transform

from voco.data.resample import resample

SPACING = (4.0, 3.0, 3.0)


def scan(seed: int, shape=(40, 64, 72)) -> np.ndarray:
    """An ellipse of tissue in air with a hundred blobs of its own, (D, H, W) int16 HU."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    wide = 0.42 + 0.03 * np.sin(z / 9 + seed)
    body = ((y / shape[1] - 0.5) / wide) ** 2 + ((x / shape[2] - 0.5) / 0.44) ** 2 < 1
    hu = np.where(body, 30.0, -1000.0)
    for _ in range(100):
        at, size = rng.uniform(0, shape), rng.uniform((1, 2, 2), (4, 7, 7))
        box = tuple(slice(max(0, int(a - s)), int(a + s) + 2) for a, s in zip(at, size))
        blob = sum(((grid[box] - a) / s) ** 2 for grid, a, s in zip((z, y, x), at, size)) < 1
        hu[box][blob & body[box]] = rng.uniform(-180, 190)
    return np.clip(hu + rng.normal(0, 12, shape), -1000, 1500).astype(np.int16)


def turned(array: np.ndarray, spacing_mm, degrees: float, axes: tuple[int, int]) -> np.ndarray:
    """Turned about its middle, air where it comes from outside."""
    angle, turn, mm = np.deg2rad(degrees), np.eye(3), np.diag(spacing_mm)
    i, j = axes
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
    matrix, middle = np.linalg.inv(mm) @ turn @ mm, (np.array(array.shape) - 1) / 2
    moved = affine_transform(array.astype(np.float32), matrix, middle - matrix @ middle, order=1, cval=-1000)
    return np.rint(moved).astype(np.int16)


def field(array: np.ndarray, share: float, start: tuple[float, float]) -> np.ndarray:
    """A part of the field: ``share`` of height and width, from ``start`` (0 to 1) of what is left over."""
    size = [round(n * share) for n in array.shape[1:]]
    first = [round((n - s) * at) for n, s, at in zip(array.shape[1:], size, start)]
    return array[:, first[0] : first[0] + size[0], first[1] : first[1] + size[1]]


def stored(array: np.ndarray, spacing_mm) -> Iterator[tuple[str, np.ndarray, tuple]]:
    """Copies as a second download or export makes them: name, volume, spacing."""
    mm = tuple(spacing_mm)
    yield "mirrored left to right", array[:, :, ::-1], mm
    yield "mirrored front to back", array[:, ::-1], mm
    yield "mirrored top to bottom", array[::-1], mm
    yield "turned by 90 degrees", np.rot90(array, axes=(1, 2)), (mm[0], mm[2], mm[1])
    yield "padded with air", np.pad(array, ((2, 3), (20, 7), (11, 30)), constant_values=-1000), mm
    small = tuple(0.93 * step for step in mm)
    yield "resampled by 7 %", *resample(array, mm, small)
    eight = np.rint((np.clip(array, -160, 240) + 160) / 400 * 255) / 255 * 400 - 160
    yield "window of 400 HU in 8 bits", np.rint(eight).astype(np.int16), mm


def cut(array: np.ndarray, spacing_mm, seed: int = 0) -> Iterator[tuple[str, np.ndarray, tuple]]:
    """Copies that lost something or were turned: name, volume, spacing."""
    mm, half = tuple(spacing_mm), len(array) // 2
    where = tuple(np.random.default_rng(seed).uniform(0, 1, 2))
    yield "turned by 10 degrees in the plane", turned(array, mm, 10, (1, 2)), mm
    yield "tilted by 10 degrees", turned(array, mm, 10, (0, 1)), mm
    yield "middle 70 % of the field", field(array, 0.7, (0.5, 0.5)), mm
    yield "70 % of the field, anywhere", field(array, 0.7, where), mm
    yield "upper half", array[half:], mm
    yield "lower half", array[:half], mm
    yield "left half", array[:, :, : array.shape[2] // 2], mm
    yield "every second slice", array[::2], (2 * mm[0], *mm[1:])
