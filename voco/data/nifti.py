"""NIfTI -> SimpleITK image, through nibabel: it takes an sform or a qform alone, and tells which one there is."""

from __future__ import annotations

import contextlib
import gzip
import math
import warnings
import zlib
from pathlib import Path

import numpy as np

from voco.data.grid import MAX_SHEAR, MIN_SPACING_MM, check_geometry, nearest_rigid
from voco.data.volume import Header, check_bytes, check_kind, last_line
from voco.errors import ScanError

# Voxel sizes of sform and pixdim that differ by less than this share are the same: float32, and rounding to 3 digits.
_SAME_SIZE = 0.01


def read_nifti(path: Path):
    """Read a NIfTI-1 or NIfTI-2 file, compressed or not.

    Returns:
        The image, and what else the header says.

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
            affine, notes = _affine(header, str(path))
            values = _nifti_values(image)
    except ScanError:
        raise
    except (OSError, EOFError, ValueError, KeyError, ArithmeticError, MemoryError, *_library_errors()) as error:
        raise ScanError(f"{path}: cannot be read, the file is damaged or incomplete ({last_line(error)})") from None
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction, bent = check_geometry(
        spacing, affine[:3, 3], affine[:3, :3] / np.maximum(spacing, MIN_SPACING_MM), str(path)
    )
    out = sitk.GetImageFromArray(np.ascontiguousarray(values.reshape(values.shape[:3]).T))
    out.SetSpacing([float(s) for s in spacing])
    out.SetOrigin([float(v) for v in affine[:3, 3]])
    out.SetDirection([float(v) for v in direction.ravel()])
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    return out, Header(None if (slope, inter) == (1, 0) else (slope, inter), (*notes, *bent))


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
    header = kind.header_class.from_fileobj(io.BytesIO(raw), check=False)
    raw = _with_offset(raw, header, str(path))
    return kind.from_bytes(raw), header, len(raw)


def _with_offset(raw: bytes, header, name: str) -> bytes:
    """Mend a vox_offset of 0, which nibabel takes at its word: the header itself would be read as the first voxels."""
    first, size = header.single_vox_offset, header.sizeof_hdr
    offset = int(header["vox_offset"])
    if offset >= first or header["magic"].item() != header.single_magic:
        return raw
    voxels = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    if len(raw) != first + voxels:
        raise ScanError(
            f"{name}: vox_offset {offset} lies inside the header, and {len(raw)} bytes are not the {first} of a header"
            f" and {voxels} of voxels: where the voxels begin is not known; write the file again"
        )
    mended = header.copy()
    mended["vox_offset"] = first
    return mended.binaryblock + raw[size:]


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


def _affine(header, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Index (i, j, k) -> LPS mm: the sform where it has a code, else the qform; and what the two disagree about.

    Raises:
        ScanError: neither is set, no axes at right angles, or an sform and voxel sizes that contradict each other.
    """
    unit = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}[header.get_xyzt_units()[0]]
    zooms = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    sform = header.get_sform() if int(header["sform_code"]) > 0 else None
    qform = None
    if int(header["qform_code"]) > 0:
        if not np.all(zooms > 0):
            raise ScanError(f"{name}: voxel size {zooms.tolist()} in the header; expected positive millimetres")
        qform = header.get_qform()
    if sform is None and qform is None:
        raise ScanError(
            f"{name}: neither sform nor qform is set, so left and right, head and feet are not known; set one of them"
        )
    chosen, notes = (sform if qform is None else qform), ()
    if sform is not None and _is_square(sform):
        chosen, notes = _settled(sform, qform, zooms, name)
    elif sform is not None and qform is not None:
        notes = ("the axes of the sform are not at right angles; the qform is taken",)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(chosen, dtype=np.float64)
    affine[:3] *= unit
    return affine, notes


def _is_square(affine: np.ndarray) -> bool:
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or sizes.min() < 1e-6:
        return False
    found = nearest_rigid(affine[:3, :3] / sizes)
    return found is not None and found[1] <= MAX_SHEAR


def _settled(
    sform: np.ndarray, qform: np.ndarray | None, zooms: np.ndarray, name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The sform, unless its voxel sizes are not those of the header's pixdim.

    An sform of bare direction cosines gives way to the qform; a pixdim of ones was never filled in.
    """
    sizes = np.linalg.norm(sform[:3, :3], axis=0)
    same = qform is None or _turn(sform, qform) > 0
    notes = () if same else ("sform and qform differ in which side is left; the sform is taken, as the format says",)
    filled = bool(np.all(np.isfinite(zooms)) and np.all(zooms > 0) and np.abs(zooms - 1).max() > _SAME_SIZE)
    if not filled or np.abs(sizes / zooms - 1).max() <= _SAME_SIZE:
        return sform, notes
    cosines = np.abs(sizes - 1).max() <= _SAME_SIZE
    if cosines and qform is not None and _axes_differ(sform, qform) <= MAX_SHEAR:
        return qform, ("the sform holds directions without voxel sizes; those of pixdim and qform are taken",)
    raise ScanError(
        f"{name}: the sform says voxels of {' x '.join(f'{mm:.4g}' for mm in sizes)} mm, pixdim"
        f" {' x '.join(f'{mm:.4g}' for mm in zooms)} mm: which is right is not known; set both to the true voxel size"
    )


def _turn(a: np.ndarray, b: np.ndarray) -> float:
    """Positive where both map the index to the same handedness."""
    return float(np.sign(np.linalg.det(a[:3, :3])) * np.sign(np.linalg.det(b[:3, :3])))


def _axes_differ(a: np.ndarray, b: np.ndarray) -> float:
    one, two = (m[:3, :3] / np.linalg.norm(m[:3, :3], axis=0) for m in (a, b))
    return float(np.abs(one - two).max())
