"""Any CT file or DICOM series -> the canonical volume: int16 Hounsfield units, toward Superior, Posterior, Left."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voco.errors import ScanError

AIR_HU = -1024
MIN_SLICES = 4
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")
# Narrower than this, or without one negative value, no body in air can be in it.
MIN_RANGE_HU = 100
MAX_SHARE_ABOVE_INT16 = 1e-3
MAX_SPACING_MM = 50.0
MIN_SPACING_MM = 0.01


@dataclass(frozen=True)
class SliceInfo:
    """One source slice of a DICOM series.

    Attributes:
        sop_uid: SOPInstanceUID; frames of a multi-frame file carry ``UID#frame`` (frames count from 1).
        z_mm: LPS z of the middle of the slice, in mm.
        kept: whether its voxels are in the volume; a repeated slice is not.
    """

    sop_uid: str
    z_mm: float
    kept: bool


@dataclass(frozen=True)
class Source:
    """Where a volume came from: the path as given, the hashed patient, and the UIDs of study and series."""

    path: str
    patient: str | None = None
    study: str | None = None
    series: str | None = None


@dataclass
class Volume:
    """A CT scan in the canonical frame.

    Attributes:
        array: int16 Hounsfield units, (D, H, W) toward Superior, Posterior, Left.
        spacing_mm: voxel size along D, H, W.
        affine: (4, 4) float64, maps the index (d, h, w, 1) to LPS millimetres (x, y, z, 1).
        source: where it came from.
        slices: the source slices of an axial DICOM series from the lowest to the highest, else None.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    source: Source
    slices: tuple[SliceInfo, ...] | None = None

    def to_sitk(self):
        """Return the same voxels at the same place as a SimpleITK image."""
        import SimpleITK as sitk

        spacing = np.asarray(self.spacing_mm)
        image = sitk.GetImageFromArray(np.ascontiguousarray(self.array))
        direction = (self.affine[:3, :3] / spacing)[:, ::-1]
        image.SetSpacing([float(s) for s in spacing[::-1]])
        image.SetOrigin([float(v) for v in self.affine[:3, 3]])
        image.SetDirection([float(v) for v in direction.ravel()])
        return image


def is_volume_file(path: str | Path) -> bool:
    """Tell by its name whether a file is NIfTI, MetaImage or NRRD."""
    return str(path).lower().endswith(VOLUME_SUFFIXES)


def read_volume(path: str | Path, *, series: str | None = None, files: Iterable[str | Path] | None = None) -> Volume:
    """Read one CT scan into the canonical frame.

    Args:
        path: a NIfTI, MHD/MHA or NRRD file, a DICOM file (its whole series is read), or a folder with DICOM files at
            any depth. A folder with several series of one study gives its thinnest original axial series.
        series: SeriesInstanceUID to take instead; it may name a reformat or a derived series.
        files: the DICOM files of the series where they are already known; the folder is then not searched.

    Returns:
        The canonical volume.

    Raises:
        ScanError: the scan is missing, damaged, not a CT volume, or its geometry is not known.
    """
    path = Path(path)
    if files is not None:
        from voco.data.dicom import read_files

        return read_files([Path(f) for f in files], path=str(path), series=series)
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder")
    if path.is_dir():
        from voco.data.dicom import read_folder

        return read_folder(path, series=series)
    if is_volume_file(path):
        image = _read_nifti(path) if str(path).lower().endswith((".nii", ".nii.gz")) else _read_itk(path)
        return canonical_volume(image, Source(str(path)))
    from voco.data.dicom import read_series_of_file

    return read_series_of_file(path, series=series)


def canonical_volume(image, source: Source, slices: tuple[SliceInfo, ...] | None = None) -> Volume:
    """Turn a three-dimensional SimpleITK image into the canonical volume.

    Oblique images are turned by whole axes to the nearest canonical orientation; no voxel value changes, and the
    remaining angle stays in the affine.

    Args:
        image: SimpleITK image with Hounsfield units of any scalar type.
        source: identity to carry along.
        slices: source slices from the lowest to the highest.

    Raises:
        ScanError: the geometry or the values cannot be those of a CT volume.
    """
    import SimpleITK as sitk

    _check_geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection(), source.path)
    image = sitk.DICOMOrient(image, "LPS")
    array = hounsfield(sitk.GetArrayViewFromImage(image), source.path)
    if min(array.shape) < MIN_SLICES:
        raise ScanError(
            f"{source.path}: {' x '.join(map(str, array.shape))} voxels (D, H, W); a volume needs at least {MIN_SLICES}"
            " along each axis: this is a single image or a localizer"
        )
    spacing = np.array(image.GetSpacing()[::-1], dtype=np.float64)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3)[:, ::-1] * spacing
    affine[:3, 3] = image.GetOrigin()
    return Volume(array, tuple(float(s) for s in spacing), affine, source, slices)


def hounsfield(values: np.ndarray, name: str) -> np.ndarray:
    """Round to int16 Hounsfield units, with everything below -1024 (padding outside the field of view) as air.

    Args:
        values: any real array, in Hounsfield units.
        name: how to call the scan in an error.

    Returns:
        A new int16 array of the same shape. Up to one voxel in a thousand above 32767 (metal) is clipped.

    Raises:
        ScanError: not finite, or not Hounsfield units: no negative value at all, or hardly any contrast.
    """
    if values.dtype.kind == "f":
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            raise ScanError(
                f"{name}: {bad} of {values.size} voxels are not numbers (NaN or infinite); if they mark the outside of"
                f" the field of view, store {AIR_HU} there"
            )
        values = np.rint(values)
    elif values.dtype.kind not in "iu":
        raise ScanError(f"{name}: voxels of type {values.dtype}; expected integers or floats in Hounsfield units")
    low, high = values.min(), values.max()
    if low >= 0:
        raise ScanError(
            f"{name}: values run from {low:g} to {high:g} with none below zero: not Hounsfield units (air is near"
            " -1000); this may be a mask, a grey-scale picture, an MR, or CT stored without its rescale intercept"
        )
    if high > np.iinfo(np.int16).max:
        share = np.count_nonzero(values > np.iinfo(np.int16).max) / values.size
        if share > MAX_SHARE_ABOVE_INT16:
            raise ScanError(
                f"{name}: {share:.1%} of the voxels are above 32767 (largest {high:g}): not Hounsfield units"
            )
    out = np.clip(values, AIR_HU, np.iinfo(np.int16).max).astype(np.int16)
    if int(out.max()) - int(out.min()) < MIN_RANGE_HU:
        raise ScanError(
            f"{name}: values only run from {out.min()} to {out.max()}; a CT in Hounsfield units spans hundreds: is it"
            " empty, or scaled to another range?"
        )
    return out


def _check_geometry(spacing, origin, direction, name: str) -> None:
    spacing = np.asarray(spacing, dtype=np.float64)
    if not np.all(np.isfinite(spacing)) or spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        raise ScanError(
            f"{name}: voxel size {' x '.join(f'{s:g}' for s in spacing)} mm (x, y, z); expected {MIN_SPACING_MM} to"
            f" {MAX_SPACING_MM:g} mm along each axis"
        )
    matrix = np.asarray(direction, dtype=np.float64).reshape(3, 3)
    if not np.all(np.isfinite(matrix)) or not np.all(np.isfinite(origin)) or abs(np.linalg.det(matrix)) < 0.9:
        raise ScanError(f"{name}: its axes {np.round(matrix, 3).tolist()} do not span space; the header is damaged")


@contextlib.contextmanager
def _quiet_itk():
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("ITK ERROR: ") if lines else type(error).__name__


def _read_itk(path: Path):
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _quiet_itk():
            reader.ReadImageInformation()
            _check_kind(reader.GetSize(), reader.GetNumberOfComponents(), str(path))
            if path.name.lower().endswith((".nrrd", ".nhdr")) and not _nrrd_space(reader):
                raise ScanError(
                    f"{path}: the NRRD header has no 'space', so left and right, head and feet are not known; write it"
                    " again with its orientation"
                )
            if path.name.lower().endswith((".mha", ".mhd")):
                voxel = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
                _check_length(path, voxel * int(np.prod(reader.GetSize(), dtype=np.int64)))
            image = reader.Execute()
    except RuntimeError as error:
        raise ScanError(f"{path}: cannot be read, the file is damaged or incomplete ({_last_line(error)})") from None
    return image[..., 0] if image.GetDimension() == 4 else image


def _nrrd_space(reader) -> bool:
    return reader.HasMetaDataKey("NRRD_space") and bool(reader.GetMetaData("NRRD_space").strip())


def _check_kind(size, components: int, name: str) -> None:
    if components != 1:
        raise ScanError(f"{name}: {components} values per voxel (colour or vectors); expected one Hounsfield unit")
    if len(size) < 3:
        raise ScanError(f"{name}: a {len(size)}-D image of {' x '.join(map(str, size))}; expected a 3-D volume")
    if len(size) > 3 and any(n != 1 for n in size[3:]):
        raise ScanError(
            f"{name}: {len(size)}-D data of {' x '.join(map(str, size))}; expected one 3-D volume: save each time point"
            " or channel as a file of its own"
        )


def _check_length(path: Path, voxel_bytes: int) -> None:
    """MetaImage readers fill the missing end of a short file and only print a line: compare the sizes beforehand."""
    head = {}
    with path.open("rb") as file:
        for line in file:
            key, _, value = line.decode("latin-1").partition("=")
            head[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                break
        at = file.tell()
    local = head.get("ElementDataFile", "LOCAL").upper() == "LOCAL"
    data = path if local else path.parent / head["ElementDataFile"]
    if not data.is_file():
        return
    compressed = head.get("CompressedData", "False").lower() == "true"
    need = int(head.get("CompressedDataSize", 0)) if compressed else voxel_bytes
    have = data.stat().st_size - (at if local else max(0, int(head.get("HeaderSize", 0))))
    if have < need:
        raise ScanError(f"{path}: incomplete, {have} of {need} bytes of voxels are there; copy it again")


def _read_nifti(path: Path):
    """Read through nibabel: unlike ITK it takes an sform or a qform alone, and reports a short file."""
    import zlib

    import nibabel
    import SimpleITK as sitk

    try:
        with _quiet_nibabel():
            image = nibabel.load(path)
            if image.header.get_data_dtype().fields:
                raise ScanError(f"{path}: colour voxels; expected one Hounsfield unit per voxel")
            _check_kind(image.shape, 1, str(path))
            with nibabel.openers.ImageOpener(path) as file:
                # As it stands: loading silently turns a voxel size of 0 into 1 and drops its sign.
                header = type(image.header).from_fileobj(file, check=False)
            affine = _nifti_affine(header, str(path))
            values = _nifti_values(image)
    except ScanError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zlib.error, *_nibabel_errors()) as error:
        raise ScanError(f"{path}: cannot be read, the file is damaged or incomplete ({_last_line(error)})") from None
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    with np.errstate(all="ignore"):
        direction = affine[:3, :3] / spacing
    _check_geometry(spacing, affine[:3, 3], direction.ravel(), str(path))
    out = sitk.GetImageFromArray(np.ascontiguousarray(values.reshape(values.shape[:3]).T))
    out.SetSpacing([float(s) for s in spacing])
    out.SetOrigin([float(v) for v in affine[:3, 3]])
    out.SetDirection([float(v) for v in direction.ravel()])
    return out


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


def _nibabel_errors() -> tuple[type[Exception], ...]:
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, ImageDataError

    return ImageFileError, HeaderDataError, ImageDataError


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
