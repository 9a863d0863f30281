"""Places in a scan that are found again when it was mirrored, turned, cut or resampled, and what they look like.

A landmark is a spot or a hole of about a centimetre in the plane of the slices. What is kept of it is where it lies,
and numbers of the rings around it that neither a turn nor a mirror changes. Two scans are one where many landmarks look
alike *and* lie at the same distances from each other: that outlasts rigid motions, mirrors, and cuts.
The idea is that of 3D SIFT (Toews & Wells, Medical Image Analysis 2013); rings in the plane replace cubes because
slices are often thick, and few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voco.short_repr import short_repr

LANDMARKS = 96
_GRID_MM, _DEPTH_MM = 3.0, 4.0
_WINDOW_HU = (-200.0, 200.0)
_SCALES_MM, _SMOOTH_MM = (5.0, 9.0), 3.0
_APART_MM = (8.0, 9.0)  # between two landmarks, along D and in the plane
_LEAST_HU = 6.0
_RADII_MM = np.arange(3.0, 25.0, 3.0)
_ANGLES, _WAVES = 24, 3
WIDTH = len(_RADII_MM) * (1 + _WAVES) + (len(_RADII_MM) - 1) * _WAVES
STEP_MM = 0.5  # positions are stored in these
_LEAST_PAIRS = 4
_PARTNERS, _FAR_LOOK = 2, 14.0  # root mean square difference of two looks, of 255
_NEAR_MM, _APART_LEAST_MM, _SPREAD_MM, _EDGE_MM = 4.0, 12.0, 10.0, 5.0
_UNUSED = -32768


@short_repr
@dataclass(frozen=True)
class Landmarks:
    """Landmarks of one scan, strongest first.

    Attributes:
        position_mm: (K, 3) along D, H, W from the centre of the first voxel.
        look: (K, WIDTH) uint8.
    """

    position_mm: np.ndarray
    look: np.ndarray

    def __len__(self) -> int:
        return len(self.look)

    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """(LANDMARKS, 3) int16 positions in half millimetres and (LANDMARKS, WIDTH) uint8 looks, filled up."""
        position = np.full((LANDMARKS, 3), _UNUSED, np.int16)
        look = np.zeros((LANDMARKS, WIDTH), np.uint8)
        position[: len(self)] = np.rint(self.position_mm / STEP_MM).clip(-32767, 32767)
        look[: len(self)] = self.look
        return position, look

    @classmethod
    def unpacked(cls, position: np.ndarray, look: np.ndarray) -> Landmarks:
        """What ``packed`` gave."""
        count = int((position[:, 0] != _UNUSED).sum())
        return cls(position[:count] * np.float32(STEP_MM), look[:count])


def find_landmarks(array: np.ndarray, spacing_mm: Sequence[float]) -> Landmarks:
    """The strongest landmarks of a scan.

    Args:
        array: (D, H, W) int16 HU of the whole scan.
        spacing_mm: (D, H, W) mm.
    """
    from scipy.ndimage import gaussian_filter, maximum_filter

    grid, mm, first = coarse(array, spacing_mm)
    fine, wide = (gaussian_filter(grid, (0, s / mm[1], s / mm[2]), mode="nearest") for s in _SCALES_MM)
    strength = np.abs(fine - wide)
    size = [2 * int(apart / step) + 1 for apart, step in zip((_APART_MM[0], _APART_MM[1], _APART_MM[1]), mm)]
    peak = (strength == maximum_filter(strength, size, mode="nearest")) & (strength > _LEAST_HU)
    at = np.argwhere(peak)
    if not len(at):
        return Landmarks(np.zeros((0, 3), np.float32), np.zeros((0, WIDTH), np.uint8))
    order = np.lexsort((*at.T[::-1], -strength[peak]))[:LANDMARKS]
    at = at[order]
    place = _refined(strength, at)
    return Landmarks(
        (place * mm + first).astype(np.float32),
        _looks(gaussian_filter(grid, (0, _SMOOTH_MM / mm[1], _SMOOTH_MM / mm[2]), mode="nearest"), place, mm),
    )


def coarse(array: np.ndarray, spacing_mm: Sequence[float]):
    """The scan in its window at about 4 x 3 x 3 mm, its spacing, and where its first voxel lies (mm).

    Blocks of whole voxels are averaged; then slices are resampled in the plane, and never along D.
    """
    from voco.data.resample import resample

    fold = [max(1, int(limit / mm + 0.01)) for limit, mm in zip((_DEPTH_MM, _GRID_MM, _GRID_MM), spacing_mm)]
    fold = [min(f, n) for f, n in zip(fold, array.shape)]
    d, h, w = (n // f for n, f in zip(array.shape, fold))
    out = np.empty((d, h, w), np.float32)
    for i in range(d):
        part = array[i * fold[0] : (i + 1) * fold[0], : h * fold[1], : w * fold[2]]
        part = np.clip(part, *_WINDOW_HU).reshape(fold[0], h, fold[1], w, fold[2])
        out[i] = part.mean((0, 2, 4), dtype=np.float32)
    mm = [step * f for step, f in zip(spacing_mm, fold)]
    first = [(f - 1) / 2 * step for f, step in zip(fold, spacing_mm)]
    small, mm = resample(np.rint(out * 32).astype(np.int16), mm, (None, _GRID_MM, _GRID_MM))
    return small.astype(np.float32) / 32, np.array(mm), np.array(first)


def _refined(strength: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Places of the peaks between voxels: the top of a parabola along each axis."""
    place = at.astype(np.float64)
    for axis in range(3):
        low, high = at.copy(), at.copy()
        low[:, axis] = np.maximum(at[:, axis] - 1, 0)
        high[:, axis] = np.minimum(at[:, axis] + 1, strength.shape[axis] - 1)
        a, b, c = (strength[tuple(x.T)] for x in (low, at, high))
        bend = a - 2 * b + c
        shift = np.where(bend < -1e-6, 0.5 * (a - c) / np.minimum(bend, -1e-6), 0.0)
        place[:, axis] += np.clip(shift, -0.5, 0.5)
    return place


def _looks(grid: np.ndarray, place: np.ndarray, mm: np.ndarray) -> np.ndarray:
    """(K, WIDTH) uint8 of the rings around each place: means, and how strongly they vary once, twice, thrice around.

    The product of neighbouring rings' waves adds how these are turned against each other, the same for any turn of
    the whole; its real part is also the same for mirrors.
    """
    from scipy.ndimage import map_coordinates

    angle = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
    y = place[:, 1, None, None] + _RADII_MM[None, :, None] * np.sin(angle) / mm[1]
    x = place[:, 2, None, None] + _RADII_MM[None, :, None] * np.cos(angle) / mm[2]
    z = np.broadcast_to(np.rint(place[:, 0])[:, None, None], y.shape)
    rings = map_coordinates(grid, [z, y, x], order=1, mode="nearest")
    wave = np.fft.fft(rings, axis=-1)[..., : _WAVES + 1] / _ANGLES
    mean, turning = wave[..., 0].real, wave[..., 1:]
    size = np.abs(turning)
    beside = turning[:, :-1] * turning[:, 1:].conj()
    beside = beside.real / np.sqrt(np.maximum(np.abs(beside), 1e-6))
    low, high = _WINDOW_HU
    flat = [(mean - low) / (high - low), size / 100, 0.5 + beside / 200]
    return (
        np.rint(np.concatenate([part.reshape(len(place), -1) for part in flat], 1) * 255).clip(0, 255).astype(np.uint8)
    )


@short_repr
@dataclass(frozen=True)
class Fit:
    """How well the landmarks of two scans go together under one rigid motion, mirrors included.

    Attributes:
        score: likeness summed over the landmarks that fit, times their share of those in the common part; 0 = nothing.
        inliers: landmarks that fit.
        turn: (3, 3) orthogonal, determinant -1 for a mirrored scan; ``turn @ p + shift`` takes a place in the first
            scan to the second one.
        shift: (3,) mm.
    """

    score: float = 0.0
    inliers: int = 0
    turn: np.ndarray | None = None
    shift: np.ndarray | None = None


def compare(one: Landmarks, two: Landmarks) -> Fit:
    """The motion that brings most landmarks of one scan onto those of another one, and how well they fit.

    Each landmark has its two most similar ones as partners. Pairs of partners that keep their distance support each
    other; the largest group of such is the start (first eigenvector, Leordeanu & Hebert, ICCV 2005), a rigid motion is
    fitted to it (Kabsch, reflections allowed) and the pairs that it brings together are counted.
    """
    if len(one) < _LEAST_PAIRS or len(two) < _LEAST_PAIRS:
        return Fit()
    i, j, like = _partners(one.look, two.look)
    if len(i) < _LEAST_PAIRS:
        return Fit()
    p, q = one.position_mm[i].astype(np.float64), two.position_mm[j].astype(np.float64)
    apart_p, apart_q = (np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (p, q))
    agree = (np.abs(apart_p - apart_q) < _NEAR_MM) & (apart_p > _APART_LEAST_MM) & (apart_q > _APART_LEAST_MM)
    vector = np.ones(len(i))
    for _ in range(10):
        vector = agree @ vector
        if not vector.any():
            return Fit()
        vector /= np.linalg.norm(vector)
    chosen, best = vector > 0.5 * vector.max(), Fit()
    for _ in range(4):
        if chosen.sum() < 3:
            break
        turn, shift = _kabsch(p[chosen], q[chosen])
        chosen = np.linalg.norm(p @ turn.T + shift - q, axis=1) < _NEAR_MM
        best = max(best, _judged(one, two, i[chosen], j[chosen], like[chosen], turn, shift), key=lambda fit: fit.score)
    return best


def _partners(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = one.astype(np.float32), two.astype(np.float32)
    square = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    far = np.sqrt(np.maximum(square, 0) / a.shape[1])
    j = np.argpartition(far, _PARTNERS - 1, axis=1)[:, :_PARTNERS].ravel()
    i = np.repeat(np.arange(len(a)), _PARTNERS)
    far = far[i, j]
    keep = far < _FAR_LOOK
    return i[keep], j[keep], 1 - (far[keep] / _FAR_LOOK) ** 2


def _kabsch(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle_p, middle_q = p.mean(0), q.mean(0)
    u, _, vt = np.linalg.svd((p - middle_p).T @ (q - middle_q))
    turn = (u @ vt).T
    return turn, middle_q - turn @ middle_p


def _judged(one: Landmarks, two: Landmarks, i, j, like, turn, shift) -> Fit:
    count = min(len(set(i)), len(set(j)))
    if count < _LEAST_PAIRS:
        return Fit()
    # along one line, such as a spine, a motion is not fixed, and evenly spaced things fit each other
    spread = np.linalg.svd(one.position_mm[i] - one.position_mm[i].mean(0), compute_uv=False)[1] / len(i) ** 0.5
    if spread < _SPREAD_MM:
        return Fit()
    best: dict[int, float] = {}
    for partner, value in zip(j, like):
        best[partner] = max(best.get(partner, 0.0), value)
    there = one.position_mm @ turn.T + shift
    back = (two.position_mm - shift) @ turn
    common = min(_inside(there, two.position_mm), _inside(back, one.position_mm))
    score = min(count, sum(best.values())) * count / max(count, common)
    return Fit(float(score), count, turn, shift)


def _inside(points: np.ndarray, others: np.ndarray) -> int:
    """How many points lie in the box around the others."""
    low, high = others.min(0) - _EDGE_MM, others.max(0) + _EDGE_MM
    return int(((points >= low) & (points <= high)).all(1).sum())
