"""Masks that come with a scan, such as lung masks: read onto the scan's own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voco.data.itk_path import itk_path
from voco.data.volume import quiet_itk
from voco.errors import ScanError


def read_mask(path: str | Path, volume) -> np.ndarray:
    """Read a mask file as (D, H, W) bool, true where it is not zero.

    Args:
        path: NIfTI, MetaImage or NRRD with the voxel grid of the scan.
        volume: the canonical volume that it belongs to.

    Raises:
        ScanError: cannot be read, is empty, or has another grid.
    """
    import SimpleITK as sitk

    path = Path(path)
    try:
        with quiet_itk(), itk_path(path) as name:
            image = sitk.DICOMOrient(sitk.ReadImage(str(name)), "LPS")
    except RuntimeError:
        raise ScanError(f"mask {path.name} cannot be read") from None
    mask = sitk.GetArrayFromImage(image) != 0
    if mask.shape != volume.array.shape:
        shapes = [" x ".join(map(str, shape)) for shape in (mask.shape, volume.array.shape)]
        raise ScanError(
            f"mask {path.name} has {shapes[0]} voxels (D, H, W), its scan {shapes[1]}; they must be the same"
        )
    if not mask.any():
        raise ScanError(f"mask {path.name} is empty")
    return mask


def mask_box(mask: np.ndarray, spacing_mm, margin_mm: float = 6.0) -> tuple[slice, slice, slice]:
    """Bounding box of a (D, H, W) mask with a margin."""
    box = []
    for axis, (mm, size) in enumerate(zip(spacing_mm, mask.shape)):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(margin_mm / mm))
        box.append(slice(max(0, int(hit[0]) - margin), min(size, int(hit[-1]) + 1 + margin)))
    return tuple(box)
