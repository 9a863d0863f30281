"""The canonical volume: int16 Hounsfield units, axes toward Superior, Posterior, Left; and the checks it must pass."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np

from voco.data.grid import check_geometry
from voco.data.intensity import check_planes, check_values
from voco.errors import ScanError
from voco.short_repr import grid_text

AIR_HU = -1024
MIN_SLICES = 4
# Narrower than this, or without one negative value, no body in air can be in it.
MIN_RANGE_HU = 100
MAX_SHARE_ABOVE_INT16 = 1e-3
# No deflate stream grows by more when it is unpacked.
MAX_DEFLATE = 1032


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


@dataclass(frozen=True)
class Header:
    """What a reader knows beside the image.

    Attributes:
        rescale: slope and intercept of the header, which are in the values already; None where there is none.
        notes: what is doubtful about the geometry, as sentences.
    """

    rescale: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Volume:
    """A CT scan in the canonical frame.

    Attributes:
        array: int16 Hounsfield units, (D, H, W) toward Superior, Posterior, Left.
        spacing_mm: voxel size along D, H, W.
        affine: (4, 4) float64, maps the index (d, h, w, 1) to LPS millimetres (x, y, z, 1).
        source: where it came from.
        slices: the source slices of an axial DICOM series from the lowest to the highest, else None.
        notes: what is doubtful about its values or its geometry, as sentences.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    source: Source
    slices: tuple[SliceInfo, ...] | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Volume({grid_text(self.array.shape, self.spacing_mm)}, {self.source.path})"

    def resample(self, spacing_mm) -> Volume:
        """The same anatomy at another spacing, linear, as data are prepared for training.

        Args:
            spacing_mm: one number, (D, H, W) in mm with None for an axis that stays, or None for no change; an
                encoder's wish is ``encoder.input_spec.spacing_mm``.

        Raises:
            InputError: not one or three positive numbers.
        """
        from voco.data.resample import parse_spacing, resample, rescale_affine

        array, spacing = resample(self.array, self.spacing_mm, parse_spacing(spacing_mm))
        scale = [new / old for new, old in zip(spacing, self.spacing_mm)]
        affine = rescale_affine(self.affine, (0, 0, 0), scale)
        return replace(self, array=array, spacing_mm=spacing, affine=affine)

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


def canonical_volume(
    image,
    source: Source,
    slices: tuple[SliceInfo, ...] | None = None,
    header: Header | None = None,
    offset: float | None = None,
) -> Volume:
    """Turn a three-dimensional SimpleITK image into the canonical volume.

    Oblique images are turned by whole axes to the nearest canonical orientation; no voxel value changes, and the
    remaining angle stays in the affine.

    Args:
        image: SimpleITK image with Hounsfield units of any scalar type.
        source: identity to carry along.
        slices: source slices from the lowest to the highest.
        header: what else its header says.
        offset: HU to add to the values; see ``voco.read_volume``.

    Raises:
        ScanError: the geometry or the values cannot be those of a CT volume.
    """
    import SimpleITK as sitk

    header = header or Header()
    name = source.path
    direction, notes = check_geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection(), name)
    if image.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise ScanError(f"{name}: complex voxels; expected integers or floats in Hounsfield units")
    image.SetDirection(direction.ravel().tolist())
    image = sitk.DICOMOrient(image, "LPS")
    values = sitk.GetArrayViewFromImage(image)
    array, doubts = hounsfield(values, name, offset=offset, rescale=header.rescale)
    if min(array.shape) < MIN_SLICES:
        raise ScanError(
            f"{name}: {' x '.join(map(str, array.shape))} voxels (D, H, W); a volume needs at least {MIN_SLICES}"
            " along each axis: this is a single image or a localizer"
        )
    check_planes(values, name)
    spacing = np.array(image.GetSpacing()[::-1], dtype=np.float64)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3)[:, ::-1] * spacing
    affine[:3, 3] = image.GetOrigin()
    notes = (*header.notes, *notes, *doubts)
    return Volume(array, tuple(float(s) for s in spacing), affine, source, slices, notes)


def hounsfield(
    values: np.ndarray, name: str, *, offset: float | None = None, rescale: tuple[float, float] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Round to int16 Hounsfield units, with everything below -1024 (padding outside the field of view) as air.

    Args:
        values: any real array, in Hounsfield units.
        name: how to call the scan in an error.
        offset: HU to add first; 0 says that the values are Hounsfield units whatever they look like.
        rescale: slope and intercept of the header, which are in the values already.

    Returns:
        A new int16 array of the same shape, and sentences about what is doubtful. Up to one voxel in a thousand above
        32767 (metal) is clipped.

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
    elif values.dtype.kind not in "iu":
        raise ScanError(f"{name}: voxels of type {values.dtype}; expected integers or floats in Hounsfield units")
    if offset:
        values = values + np.float32(offset) if values.dtype.kind == "f" else values.astype(np.int64) + round(offset)
    if values.dtype.kind == "f":
        values = np.rint(values)
    low, high = values.min(), values.max()
    if low >= 0:
        raise ScanError(
            f"{name}: values run from {low:g} to {high:g} with none below zero: not Hounsfield units (air is near"
            " -1000); this may be a mask, a grey-scale picture, an MR, or CT stored without its rescale intercept"
            " (which --data.offset gives, often -1024)"
        )
    if high > np.iinfo(np.int16).max:
        share = np.count_nonzero(values > np.iinfo(np.int16).max) / values.size
        if share > MAX_SHARE_ABOVE_INT16:
            raise ScanError(
                f"{name}: {share:.1%} of the voxels are above 32767 (largest {high:g}): not Hounsfield units"
            )
    doubts = check_values(values, name, rescale=rescale, taken=offset == 0)
    out = np.clip(values, AIR_HU, np.iinfo(np.int16).max).astype(np.int16)
    if int(out.max()) - int(out.min()) < MIN_RANGE_HU:
        raise ScanError(
            f"{name}: values only run from {out.min()} to {out.max()}; a CT in Hounsfield units spans hundreds: is it"
            " empty, or scaled to another range?"
        )
    return out, doubts


@contextlib.contextmanager
def quiet_itk():
    """Keep ITK from printing warnings."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def last_line(error: Exception) -> str:
    """Cut a many-line ITK message to the line that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("ITK ERROR: ") if lines else type(error).__name__


def check_kind(size, components: int, name: str) -> None:
    """Refuse colour, 2-D and true 4-D data."""
    if components != 1:
        raise ScanError(f"{name}: {components} values per voxel (colour or vectors); expected one Hounsfield unit")
    if len(size) < 3:
        raise ScanError(f"{name}: a {len(size)}-D image of {' x '.join(map(str, size))}; expected a 3-D volume")
    if len(size) > 3 and any(n != 1 for n in size[3:]):
        raise ScanError(
            f"{name}: {len(size)}-D data of {' x '.join(map(str, size))}; expected one 3-D volume: save each time point"
            " or channel as a file of its own"
        )


def check_bytes(need: int, have: int, name: str, compressed: bool = False) -> None:
    """Refuse a header that claims more voxels than its bytes can hold, before memory is asked for.

    Args:
        need: bytes of voxels by the header.
        have: bytes there are.
        name: how to call the scan in an error.
        compressed: whether they are, or may be, compressed.
    """
    if need <= have * (MAX_DEFLATE if compressed else 1):
        return
    if compressed:
        raise ScanError(
            f"{name}: damaged, the header claims {need} bytes of voxels and {have} compressed ones are there"
        )
    raise ScanError(f"{name}: incomplete, {have} of {need} bytes of voxels are there; copy it again")
