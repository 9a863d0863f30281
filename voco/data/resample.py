"""Geometry of the prepare stage: per-axis linear resampling, the body crop, and slices through both. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voco.errors import InputError

AIR_HU = -1024
# A grid within 0.1 % of the wanted spacing is kept as it is: its true spacing is recorded, and no voxel is blurred.
SAME_SPACING = 1e-3
_SLAB_VOXELS = 4_000_000


def parse_spacing(value: object) -> tuple[float | None, float | None, float | None]:
    """Turn a spacing setting into one value per axis.

    Args:
        value: one number (isotropic), ``"native"`` or None, or three of them in D, H, W order as a sequence or as text
            such as ``"5 1.25 1.25"`` or ``"native 1,1"``. Millimetres.

    Returns:
        (D, H, W) spacings in mm, None where the scan's own spacing is kept.

    Raises:
        InputError: not one or three values, or a value that is no positive number.
    """
    if isinstance(value, str):
        value = value.replace(",", " ").replace("[", " ").replace("]", " ").split()
    items = list(value) if isinstance(value, Sequence) else [value]
    if len(items) == 1:
        items = items * 3
    if len(items) != 3:
        raise InputError(
            f"spacing {items} has {len(items)} values; give one (1.5 or native) or three in D H W order (5 1.25 1.25)"
        )
    return tuple(_one_spacing(item) for item in items)


def _one_spacing(item: object) -> float | None:
    if item is None or str(item).strip().lower() in ("native", "none", "null"):
        return None
    try:
        mm = float(item)
    except (TypeError, ValueError):
        mm = float("nan")
    if not 0.05 <= mm <= 50:
        raise InputError(f"spacing {item!r} is not a length between 0.05 and 50 mm; write e.g. 1.5 or native")
    return mm


def resample(
    array: np.ndarray,
    spacing_mm: Sequence[float],
    target_mm: Sequence[float | None],
    antialias: bool = False,
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Resample HU linearly, axis by axis, keeping the centre of voxel (0, 0, 0) where it is.

    The grid ends at or before the last voxel centre, so nothing is extrapolated. Axes whose spacing is already right
    are not touched; if none changes, the same array comes back.

    Args:
        array: (D, H, W) int16 HU.
        spacing_mm: (D, H, W) of ``array``, mm.
        target_mm: wanted (D, H, W) spacing in mm, None for the axis as it is.
        antialias: widen the triangle filter by the reduction factor, as image libraries do, so that a coarse voxel
            averages all fine voxels that it covers. Off by default: published CT pipelines (and SimpleITK) interpolate.

    Returns:
        The (D', H', W') int16 array and its true (D, H, W) spacing in mm.
    """
    plans: list[tuple[np.ndarray, np.ndarray] | None] = []
    spacing = []
    for size, have, want in zip(array.shape, spacing_mm, target_mm, strict=True):
        keep = want is None or size < 2 or abs(want - have) <= SAME_SPACING * want
        plans.append(None if keep else _taps(size, want / have, antialias))
        spacing.append(float(have if keep else want))
    if all(plan is None for plan in plans):
        return array, tuple(spacing)
    in_plane = _resample_in_plane(array, plans[1], plans[2])
    out = _resample_depth(in_plane, plans[0])
    return out, tuple(spacing)


def resize(
    array: np.ndarray, spacing_mm: Sequence[float], size: Sequence[int | None], antialias: bool = True
) -> tuple[np.ndarray, tuple[float, float, float], tuple[float, float, float]]:
    """Stretch a volume to a fixed number of voxels, axis by axis; voxels cover the same extent as before.

    Args:
        array: (D, H, W) int16 HU.
        spacing_mm: (D, H, W) of ``array``, mm.
        size: wanted (D, H, W), None for the axis as it is.
        antialias: average where voxels become coarser.

    Returns:
        The int16 array, its (D, H, W) spacing in mm, and the index (D, H, W) in ``array`` of the new first voxel.
    """
    plans, spacing, start = [], [], []
    for have, mm, want in zip(array.shape, spacing_mm, size, strict=True):
        step = 1.0 if want is None else have / want
        keep = want is None or want == have
        # Half-voxel centres: the extent stays, where a fixed spacing keeps the first centre.
        plans.append(None if keep else _taps(have, step, antialias, count=want, start=0.5 * step - 0.5))
        spacing.append(float(mm * step))
        start.append(0.0 if keep else 0.5 * step - 0.5)
    if all(plan is None for plan in plans):
        return array, tuple(spacing), tuple(start)
    out = _resample_depth(_resample_in_plane(array, plans[1], plans[2]), plans[0])
    return out, tuple(spacing), tuple(start)


def _taps(
    size: int, step: float, antialias: bool, *, count: int | None = None, start: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights (n_out, taps) that turn ``size`` samples into ``count`` samples ``step`` apart."""
    if count is None:
        count = int(np.floor((size - 1) / step + 1e-6)) + 1
    centre = np.clip(start + np.arange(count) * step, 0, size - 1)
    support = max(1.0, step) if antialias else 1.0
    first = np.floor(centre - support).astype(np.int64) + 1
    index = first[:, None] + np.arange(int(np.ceil(2 * support)))
    weight = np.maximum(0.0, 1.0 - np.abs(index - centre[:, None]) / support)
    weight[(index < 0) | (index >= size)] = 0.0
    weight /= weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, size - 1), weight.astype(np.float32)


def _apply(block: np.ndarray, plan: tuple[np.ndarray, np.ndarray] | None, axis: int) -> np.ndarray:
    if plan is None:
        return block
    index, weight = plan
    shape = [1] * block.ndim
    shape[axis] = -1
    out = None
    for k in range(index.shape[1]):
        part = block.take(index[:, k], axis=axis).astype(np.float32, copy=False)
        part *= weight[:, k].reshape(shape)
        out = part if out is None else np.add(out, part, out=out)
    return out


def _resample_in_plane(array: np.ndarray, rows, columns) -> np.ndarray:
    if rows is None and columns is None:
        return array
    depth, height, width = array.shape
    shape = (depth, height if rows is None else len(rows[0]), width if columns is None else len(columns[0]))
    out = np.empty(shape, np.float32)
    # Slabs keep the temporaries small: the peak stays near one float32 copy of the in-plane result.
    slab = max(1, _SLAB_VOXELS // max(height * width, shape[1] * shape[2]))
    for start in range(0, depth, slab):
        part = slice(start, start + slab)
        out[part] = _apply(_apply(array[part], rows, 1), columns, 2)
    return out


def _resample_depth(block: np.ndarray, plan) -> np.ndarray:
    count = block.shape[0] if plan is None else len(plan[0])
    out = np.empty((count, *block.shape[1:]), np.int16)
    slab = max(1, _SLAB_VOXELS // (block.shape[1] * block.shape[2]))
    for start in range(0, count, slab):
        part = slice(start, start + slab)
        values = block[part] if plan is None else _apply(block, (plan[0][part], plan[1][part]), 0)
        out[part] = np.clip(np.rint(values), -32768, 32767)
    return out


def rescale_affine(affine: np.ndarray, start: Sequence[float], scale: Sequence[float]) -> np.ndarray:
    """Affine of a grid whose voxel ``(d, h, w)`` is voxel ``start + (d, h, w) * scale`` of the old one.

    Args:
        affine: (4, 4), old (d, h, w, 1) index to LPS mm.
        start: (D, H, W) index, in the old grid, of the new first voxel.
        scale: (D, H, W) new spacing over old spacing.
    """
    change = np.eye(4)
    change[:3, :3] = np.diag(np.asarray(scale, float))
    change[:3, 3] = np.asarray(start, float)
    return np.asarray(affine, float) @ change


def body_box(
    array: np.ndarray,
    spacing_mm: Sequence[float],
    threshold_hu: float = -400.0,
    margin_mm: float = 6.0,
) -> tuple[slice, slice, slice]:
    """Bounding box of the patient: tissue without the table, the mattress and loose objects.

    The scan is looked at on a grid of about 4 mm. An opening removes what is thin (table shell, tubes, sheets); of
    the connected pieces left, the largest and those of at least a fifth of its size (two legs, arms) are the body.

    Args:
        array: (D, H, W) int16 HU.
        spacing_mm: (D, H, W) mm.
        threshold_hu: tissue is above this.
        margin_mm: kept around the box.

    Returns:
        Slices into ``array``; the whole array where no body is found.
    """
    from scipy import ndimage

    steps = [max(1, int(4.0 / mm)) for mm in spacing_mm]
    whole = tuple(slice(0, size) for size in array.shape)
    tissue = array[:: steps[0], :: steps[1], :: steps[2]] > threshold_hu
    radius = [round(4.0 / (mm * step)) for mm, step in zip(spacing_mm, steps)]
    # Depth is left out of the opening: a slab of two thick slices would vanish.
    element = np.ones((1, 2 * radius[1] + 1, 2 * radius[2] + 1), bool)
    # The outside of the scan counts as tissue while eroding: a body that is cut by the image edge keeps its edge.
    opened = ndimage.binary_dilation(ndimage.binary_erosion(tissue, element, border_value=1), element) & tissue
    labels, count = ndimage.label(opened, np.ones((3, 3, 3), bool))
    if count == 0:
        return whole
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if sizes.max() < 0.005 * tissue.size:
        return whole
    body = (sizes >= 0.2 * sizes.max())[labels]
    # What the opening took from the body itself, such as a thin chest wall, comes back; little comes from a table.
    body = ndimage.binary_dilation(body, np.ones((3, 3, 3), bool), iterations=max(radius[1:]) + 1, mask=tissue)
    box = []
    for axis, (step, mm, size) in enumerate(zip(steps, spacing_mm, array.shape)):
        hit = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(margin_mm / mm)) if size > 1 else 0
        box.append(slice(max(0, int(hit[0]) * step - margin), min(size, (int(hit[-1]) + 1) * step + margin)))
    return tuple(box)
