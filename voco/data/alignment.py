"""Whether two prepared scans hold the same voxels once they are brought together: what proves a copy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voco.short_repr import short_repr

# Scans are brought together by their detail, which is what a window of soft tissue is without its blur.
_BLUR_MM = 12.0
_TISSUE_HU = -190.0
_FINE_MM, _AROUND_MM = 4.0, 8.0
_POINTS, _ROUNDS, _LEAST_POINTS, _LEAST_SHARE = 20_000, 12, 300, 0.15
_STIFFNESS = 1e-3


@short_repr
@dataclass(frozen=True)
class Detail:
    """A scan on a coarse grid, for comparison.

    Attributes:
        hu: (D, H, W) float32, cut to the window.
        detail: the same without its blur.
        mm: (3,) spacing.
        first_mm: (3,) place of its first voxel in the scan as it was read.
        box_mm: (2, 3) lower and upper end of the body in the scan as it was read.
    """

    hu: np.ndarray
    detail: np.ndarray
    mm: np.ndarray
    first_mm: np.ndarray
    box_mm: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """How well two scans agree where they overlap.

    Attributes:
        correlation: of the fine detail, median over neighbourhoods; 0 where they do not overlap.
        difference_hu: mean absolute difference in the window, after a linear fit of the second to the first one.
        overlap: share of the smaller one's tissue that was compared.
    """

    correlation: float = 0.0
    difference_hu: float = float("nan")
    overlap: float = 0.0


def read_detail(path: str | Path) -> Detail:
    """The detail of a prepared scan."""
    from voco.data.cache import PreparedVolume

    volume = PreparedVolume.open(path)
    meta = volume.meta
    source, settings = meta["source"], meta["settings"]
    first = []
    for axis in range(3):
        mm = source["spacing_mm"][axis]
        regular = settings["spacing_mm"][axis] or mm
        resized = settings["size"][axis] is not None
        first.append(source["box"][axis][0] * mm + (0.5 * (volume.spacing_mm[axis] - regular) if resized else 0.0))
    return detail_of(volume.read((0, 0, 0), volume.shape), volume.spacing_mm, first)


def detail_of(array: np.ndarray, spacing_mm, first_mm=(0.0, 0.0, 0.0)) -> Detail:
    """The detail of a volume.

    Args:
        array: (D, H, W) int16 HU.
        spacing_mm: (D, H, W) mm.
        first_mm: place of the first voxel.
    """
    from scipy.ndimage import gaussian_filter

    from voco.data.landmarks import coarse
    from voco.data.resample import body_box

    hu, mm, first = coarse(array, spacing_mm)
    first = first + np.asarray(first_mm)
    detail = hu - gaussian_filter(hu, _BLUR_MM / mm, mode="nearest")
    box = body_box(np.rint(hu).astype(np.int16), tuple(mm), threshold_hu=-150.0, margin_mm=0.0)
    ends = np.array([[part.start for part in box], [part.stop - 1 for part in box]])
    return Detail(hu, detail, mm, first, ends * mm + first)


def box_to_box(one: Detail, two: Detail) -> tuple[np.ndarray, np.ndarray]:
    """The scaling that brings the body's box of one scan onto that of another one, where nothing else is known."""
    size_one, size_two = (np.maximum(box[1] - box[0], 1.0) for box in (one.box_mm, two.box_mm))
    scale = np.diag(size_two / size_one)
    return scale, two.box_mm.mean(0) - scale @ one.box_mm.mean(0)


def agree(one: Detail, two: Detail, turn: np.ndarray, shift: np.ndarray) -> Agreement:
    """Bring two scans together and compare them where they overlap.

    From the start given, an affine motion is refined by Gauss-Newton steps on the detail (Lucas & Kanade 1981;
    Evangelidis & Psarakis 2008 for the free scale of the values).

    Args:
        one, two: scans.
        turn: (3, 3) start.
        shift: (3,) mm; ``turn @ p + shift`` takes a place of one to two.
    """
    from scipy.ndimage import map_coordinates

    at = np.argwhere(one.hu > _TISSUE_HU)
    total = min(len(at), int((two.hu > _TISSUE_HU).sum() * two.mm.prod() / one.mm.prod()))
    stride = max(1, len(at) // _POINTS)
    at = at[stride // 2 :: stride]
    if not len(at):
        return Agreement()
    wanted = one.detail[tuple(at.T)].astype(np.float64)
    place = at * one.mm + one.first_mm
    middle = place.mean(0)
    place = place - middle
    matrix, offset = turn.astype(np.float64), shift + turn @ middle
    slopes = [
        np.gradient(two.detail, axis=a) / two.mm[a] if two.detail.shape[a] > 1 else two.detail * 0 for a in range(3)
    ]
    best, matched = 0.0, None
    for _ in range(_ROUNDS):
        index = ((place @ matrix.T + offset - two.first_mm) / two.mm).T
        inside = _within(index, two.hu.shape)
        if inside.sum() < _LEAST_POINTS or inside.sum() * stride < _LEAST_SHARE * total:
            break
        index, o = index[:, inside], wanted[inside]
        v = map_coordinates(two.detail, index, order=1, mode="nearest").astype(np.float64)
        o, v = o - o.mean(), v - v.mean()
        norm = np.sqrt((o @ o) * (v @ v))
        correlation = float(o @ v / norm) if norm > 0 else 0.0
        if correlation > best:
            gain, best, matched = correlation - best, correlation, (matrix, offset - matrix @ middle)
            if gain < 1e-4:
                break
        scale = max(o @ v, 1e-9) / max(v @ v, 1e-9)
        slope = np.stack([map_coordinates(s, index, order=1, mode="nearest") for s in slopes], 1) * scale
        jacobian = np.concatenate([(slope[:, :, None] * place[inside][:, None, :]).reshape(len(o), 9), slope], 1)
        normal = jacobian.T @ jacobian
        normal += np.diag(np.diag(normal)) * _STIFFNESS + np.eye(12) * 1e-9
        step = np.linalg.solve(normal, jacobian.T @ (o - scale * v))
        matrix = matrix + step[:9].reshape(3, 3)
        offset = offset + step[9:]
    return Agreement() if matched is None else _compared(one, two, *matched, total)


def _within(index: np.ndarray, shape) -> np.ndarray:
    ends = np.array(shape).reshape(3, *[1] * (index.ndim - 1))
    return ((index > -0.01) & (index < ends - 0.99)).all(0)


def _compared(one: Detail, two: Detail, matrix: np.ndarray, offset: np.ndarray, total: int) -> Agreement:
    """Agreement of two scans under a motion.

    Fine detail is what the blur over the common field leaves, so that no border counts. It is correlated in every
    neighbourhood, and the median over the tissue taken: outlines and bones, which people share, do not decide.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    place = np.stack(np.meshgrid(*(np.arange(n) for n in one.hu.shape), indexing="ij"), -1) * one.mm + one.first_mm
    index = np.moveaxis((place @ matrix.T + offset - two.first_mm) / two.mm, -1, 0)
    common = _within(index, two.hu.shape)
    other = map_coordinates(two.hu, index, order=1, mode="nearest")
    tissue = (one.hu > _TISSUE_HU) & common
    if tissue.sum() < _LEAST_POINTS:
        return Agreement()

    def blur(values, mask, mm):
        mask = mask.astype(np.float32)
        return gaussian_filter(values * mask, mm / one.mm) / (gaussian_filter(mask, mm / one.mm) + 1e-6)

    a, b = (np.where(common, hu - blur(hu, common, _FINE_MM), 0) for hu in (one.hu, other))
    mean_a, mean_b = blur(a, tissue, _AROUND_MM), blur(b, tissue, _AROUND_MM)
    power_a, power_b = blur(a * a, tissue, _AROUND_MM) - mean_a**2, blur(b * b, tissue, _AROUND_MM) - mean_b**2
    local = blur(a * b, tissue, _AROUND_MM) - mean_a * mean_b
    local = local / np.sqrt(np.maximum(power_a, 1.0) * np.maximum(power_b, 1.0))
    x, y = one.hu[tissue], other[tissue]
    slope = float(np.cov(x, y)[0, 1] / max(y.var(ddof=1), 1e-6))
    difference = float(np.abs(x - x.mean() - slope * (y - y.mean())).mean())
    return Agreement(float(np.median(local[tissue])), difference, min(1.0, float(tissue.sum() / max(1, total))))
