"""NIfTI -> SimpleITK image, through nibabel: it takes an sform or a qform alone, and tells which one there is."""

from __future__ import annotations

import contextlib
import gzip
import math
import warnings
import zlib
from pathlib import Path

import numpy as np

from voco.data.volume import MIN_SPACING_MM, check_bytes, check_geometry, check_kind, last_line
from voco.errors import ScanError


def read_nifti(path: Path):
    """Read a NIfTI-1 or NIfTI-2 file, compressed or not.

    Raises:
        ScanError: damaged, not a single volume, or its orientation is not known.
    """
    import SimpleITK as sitk

    try:
        with _quiet_nibabel():
            image, header, size = _load(path)
            if image.header.get_data_dtype().fields:
                raise ScanError(f"{path}: colour voxels; expected one Hounsfield unit per voxel")
            check_kind(image.shape, 1, str(path))
            _check_size(image, size, str(path))
            affine = _nifti_affine(header, str(path))
            values = _nifti_values(image)
    except ScanError:
        raise
    except (OSError, EOFError, ValueError, KeyError, ArithmeticError, MemoryError, *_library_errors()) as error:
        raise ScanError(f"{path}: cannot be read, the file is damaged or incomplete ({last_line(error)})") from None
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    check_geometry(spacing, affine[:3, 3], direction.ravel(), str(path))
    out = sitk.GetImageFromArray(np.ascontiguousarray(values.reshape(values.shape[:3]).T))
    out.SetSpacing([float(s) for s in spacing])
    out.SetOrigin([float(v) for v in affine[:3, 3]])
    out.SetDirection([float(v) for v in direction.ravel()])
    return out


def _load(path: Path):
    """Return the image, its header as it stands in the file, and the bytes of the file once unpacked.

    The stream is read to its end, because only there gzip says whether the bytes are the ones that were written. The
    header is read again because nibabel silently turns a voxel size of 0 into 1 and drops its sign.
    """
    import io

    import nibabel

    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    second = (540).to_bytes(4, "little"), (540).to_bytes(4, "big")
    kind = nibabel.Nifti2Image if raw[:4] in second else nibabel.Nifti1Image
    return kind.from_bytes(raw), kind.header_class.from_fileobj(io.BytesIO(raw), check=False), len(raw)


def _check_size(image, size: int, name: str) -> None:
    if min(image.shape) < 1:
        raise ScanError(f"{name}: the header gives a size of {' x '.join(map(str, image.shape))} voxels")
    voxels = math.prod(image.shape) * image.header.get_data_dtype().itemsize
    check_bytes(voxels, max(0, size - int(image.dataobj.offset)), name)


@contextlib.contextmanager
def _quiet_nibabel():
    import logging

    log = logging.getLogger("nibabel.global")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _library_errors() -> tuple[type[Exception], ...]:
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, ImageDataError
    from nibabel.wrapstruct import WrapStructError

    return ImageFileError, HeaderDataError, ImageDataError, WrapStructError, zlib.error


def _nifti_values(image) -> np.ndarray:
    slope, inter = image.dataobj.slope, image.dataobj.inter
    raw = image.dataobj.get_unscaled()
    if (slope, inter) == (1, 0):
        return np.asarray(raw, dtype=raw.dtype.newbyteorder("="))
    values = np.asarray(raw, dtype=np.float64 if raw.dtype.itemsize > 4 else np.float32)
    values *= slope
    values += inter
    return values


def _nifti_affine(header, name: str) -> np.ndarray:
    """Index (i, j, k) -> LPS mm by the rule of the format: the sform where it has a code, else the qform."""
    unit = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}[header.get_xyzt_units()[0]]
    wanted = []
    if int(header["sform_code"]) > 0:
        wanted.append(("sform", header.get_sform()))
    if int(header["qform_code"]) > 0:
        zooms = np.asarray(header["pixdim"][1:4], dtype=np.float64)
        if not np.all(zooms > 0):
            raise ScanError(f"{name}: voxel size {zooms.tolist()} in the header; expected positive millimetres")
        wanted.append(("qform", header.get_qform()))
    if not wanted:
        raise ScanError(
            f"{name}: neither sform nor qform is set, so left and right, head and feet are not known; set one of them"
        )
    found = []
    for kind, affine in wanted:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)
        affine[:3] *= unit
        square = _nearest_rigid(affine)
        if square is not None:
            return square
        found.append(f"{kind} {np.round(affine[:3, :3], 4).tolist()}")
    raise ScanError(
        f"{name}: its axes are not at right angles ({'; '.join(found)}); resample it to a rectangular grid first"
    )


def _nearest_rigid(affine: np.ndarray, tolerance: float = 0.01) -> np.ndarray | None:
    """Make axes that are at right angles but for rounding exactly so; None where they are truly sheared."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or spacing.min() < MIN_SPACING_MM:
        return None
    u, _, vt = np.linalg.svd(affine[:3, :3] / spacing)
    rigid = u @ vt
    if np.abs(rigid - affine[:3, :3] / spacing).max() > tolerance:
        return None
    out = affine.copy()
    out[:3, :3] = rigid * spacing
    return out
