"""The pixels of a DICOM series: decoded, rescaled slice by slice, put on a regular upright grid."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from voco.data.dicom_scan import SliceHeader, quiet_pydicom
from voco.data.dicom_stack import Stack, residual
from voco.data.intensity import check_planes
from voco.data.itk_path import itk_path
from voco.data.volume import (
    AIR_HU,
    MIN_SLICES,
    Header,
    SliceInfo,
    Source,
    Volume,
    canonical_volume,
    last_line,
    quiet_itk,
)
from voco.errors import ScanError

# GDCM, which comes with SimpleITK, takes the JPEG families; pydicom what needs no codec, and the rest by its plugins.
_GDCM = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)}
# Neighbours foretell a slice better than next but one neighbours do: 0.40 to 0.55 in real scans, 1 in pure noise.
MIXED_UNTOLD = 1.25
_TRIPLES = 8
MAX_LABELS = 32
# What a CT number reaches in 12 bits: a padding value above it cannot be tissue.
MAX_TISSUE_HU = 3071


def read_stack(stack: Stack, source: Source, offset: float | None = None) -> Volume:
    """Read one arranged stack into the canonical volume.

    Args:
        stack: from ``arrange``.
        source: identity to carry along.
        offset: see ``voco.read_volume``.

    Raises:
        ScanError: pixels missing, damaged, or of a kind that no installed decoder reads.
    """
    import SimpleITK as sitk

    headers = stack.headers
    block = np.empty((len(headers), headers[0].rows, headers[0].cols), dtype=np.int32)
    place = {(h.file, h.frame): i for i, h in enumerate(headers)}
    for file in dict.fromkeys(h.file for h in headers):
        own = [h for h in headers if h.file == file]
        for header, pixels in decode(file, own):
            if pixels.shape != block.shape[1:]:
                raise ScanError(f"{file}: {pixels.shape} pixels where the header says {block.shape[1:]}")
            block[place[header.file, header.frame]] = pixels
    rescales = [h.rescale for h in headers]
    check_planes(block, source.path, rescales)
    _check_mixed(block, stack.z)
    corner = np.array(headers[0].position, dtype=np.float64)
    if not stack.aligned:
        block, moved = _upright(block, stack)
        corner = corner + moved
    if not stack.regular:
        block = _regular(block, stack)
    image = sitk.GetImageFromArray(block)
    pixel = headers[0].pixel_mm
    image.SetSpacing([pixel[1], pixel[0], stack.step])
    image.SetOrigin([float(v) for v in corner])
    image.SetDirection(np.stack([stack.row, stack.col, stack.normal], axis=1).ravel().tolist())
    header = Header(rescales[0] if len(set(rescales)) == 1 else None)
    return canonical_volume(image, source, slice_infos(stack), header, offset)


def _check_mixed(block: np.ndarray, z: np.ndarray) -> None:
    """Refuse a stack whose slices are foretold better by the next but one than by the next: two scans, interleaved."""
    if len(z) < 2 * MIN_SLICES:
        return
    near, far = [], []
    for i in np.unique(np.linspace(2, len(z) - 3, _TRIPLES).astype(int)):
        images = {k: coarse(block[k]) for k in range(i - 2, i + 3)}
        near.append(residual(z[i - 1 : i + 2], [images[k] for k in (i - 1, i, i + 1)]))
        far.append(residual(z[i - 2 : i + 3 : 2], [images[k] for k in (i - 2, i, i + 2)]))
    ratio = sum(near) / max(sum(far), 1e-6)
    if ratio > MIXED_UNTOLD and np.greater(near, far).mean() > 0.75:
        raise ScanError(
            f"every other of its {len(z)} slices seems to be of another scan: neighbours differ {ratio:.2g} times as"
            " much as next but one neighbours, and nothing in the headers tells them apart (two phases or two patients"
            " in one series?); part them by hand"
        )


def slice_infos(stack: Stack) -> tuple[SliceInfo, ...] | None:
    """List kept and dropped slices from the lowest to the highest; None where slices do not run along D."""
    if np.argmax(np.abs(stack.normal)) != 2:
        return None
    infos = []
    for kept, headers in ((True, stack.headers), (False, stack.repeated)):
        for h in headers:
            half = 0.5 * np.array([(h.cols - 1) * h.pixel_mm[1], (h.rows - 1) * h.pixel_mm[0]])
            middle = np.array(h.position) + half[0] * stack.row + half[1] * stack.col
            infos.append(SliceInfo(h.sop_uid, float(middle[2]), kept))
    return tuple(sorted(infos, key=lambda s: (s.z_mm, not s.kept)))


def decode(file: str, headers: list[SliceHeader]) -> Iterator[tuple[SliceHeader, np.ndarray]]:
    """Decode the wanted slices of one file.

    Args:
        file: path.
        headers: its slice, or some of its frames.

    Yields:
        Each header with its (rows, cols) int32 Hounsfield units, outside padding as air.

    Raises:
        ScanError: see ``read_stack``.
    """
    syntax = headers[0].syntax
    if syntax not in _GDCM:
        try:
            with quiet_pydicom():
                stored, padding = _stored(file)
        except Exception as error:
            # pydicom's own text may quote values of the header: only the kind of error is told.
            raise _undecodable(file, syntax, type(error).__name__) from None
        for header in headers:
            frame = stored[max(header.frame, 0)] if stored.ndim == 3 else stored
            yield header, _rescaled(frame, header.rescale or (1.0, 0.0), padding)
        return
    if len({h.rescale for h in headers}) > 1:
        raise ScanError(
            f"{file}: compressed frames with different rescale values; decompress it first (gdcmconv --raw)"
        )
    values, padding = _gdcm(file, syntax)
    for header in headers:
        hu = np.rint(values[max(header.frame, 0)]).astype(np.int32)
        yield header, _without_padding(hu, header.rescale or (1.0, 0.0), padding)


def _stored(file: str) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Return stored values, cut to the bits in use, and the lowest and highest padding value."""
    import pydicom

    ds = pydicom.dcmread(file, force=True)
    if not getattr(ds.file_meta, "TransferSyntaxUID", None):
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    values = ds.pixel_array
    spare = int(ds.BitsAllocated) - int(ds.BitsStored)
    if spare and values.dtype.kind in "iu":
        # Old scanners keep overlays in the unused high bits.
        wide = values.astype(values.dtype.newbyteorder("="), copy=True)
        values = (wide << spare) >> spare
    return values, _padding(ds)


def _padding(ds) -> tuple[float, float] | None:
    """Return the lowest and highest stored value that marks the outside of the field of view, None if none does."""
    low = ds.get("PixelPaddingValue")
    if low is None:
        return None
    high = ds.get("PixelPaddingRangeLimit", low)
    low, high = (int.from_bytes(v[:2], "little") if isinstance(v, bytes) else int(v) for v in (low, high))
    if int(ds.PixelRepresentation) == 1:
        # Written as unsigned where the VR was not known: 63536 is -2000.
        low, high = (v - 65536 if v > 32767 else v for v in (low, high))
    return min(low, high), max(low, high)


def _rescaled(stored: np.ndarray, rescale: tuple[float, float], padding: tuple[float, float] | None) -> np.ndarray:
    slope, intercept = rescale
    if slope == int(slope) and intercept == int(intercept):
        out = stored.astype(np.int32) * int(slope) + int(intercept)
    else:
        out = np.rint(stored * slope + intercept).astype(np.int32)
    return _without_padding(out, rescale, padding)


def _without_padding(hu: np.ndarray, rescale: tuple[float, float], padding: tuple[float, float] | None) -> np.ndarray:
    """Turn padding above every tissue (unsigned files) into air; below -1024 it becomes air anyway.

    A padding value inside the range of tissue (0 is common, also where 0 means water) is not believed.
    """
    if padding is not None:
        low, high = (round(v * rescale[0] + rescale[1]) for v in padding)
        if low > MAX_TISSUE_HU:
            hu[(hu >= low) & (hu <= high)] = AIR_HU
    return hu


def _gdcm(file: str, syntax: str) -> tuple[np.ndarray, tuple[float, float] | None]:
    import pydicom
    import SimpleITK as sitk

    tags = ["PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation", "PhotometricInterpretation"]
    try:
        with quiet_itk(), quiet_pydicom(), contextlib.ExitStack() as stack:
            ds = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
            inverted = str(ds.get("PhotometricInterpretation") or "").strip() == "MONOCHROME1"
            path = stack.enter_context(_as_stored(file) if inverted else itk_path(file))
            return sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO")), _padding(ds)
    except RuntimeError as error:
        raise _undecodable(file, syntax, last_line(error)) from None


@contextlib.contextmanager
def _as_stored(file: str) -> Iterator[Path]:
    """A copy for GDCM, which inverts MONOCHROME1 (by the largest value, or by -1 where signed) instead of decoding it.

    How a picture is shown does not touch what its values mean: the rescale applies to them as they are stored.

    Raises:
        ScanError: the file cannot be written again.
    """
    import pydicom

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "slice.dcm")
        try:
            ds = pydicom.dcmread(file, force=True)
            ds.PhotometricInterpretation = "MONOCHROME2"
            ds.save_as(copy)
        except Exception as error:  # its text may quote values of the header
            raise ScanError(f"{file}: MONOCHROME1 cannot be decoded ({type(error).__name__}); decompress it") from None
        yield copy


def _undecodable(file: str, syntax: str, why: str) -> ScanError:
    from pydicom.uid import UID

    with quiet_pydicom():
        kind = UID(syntax)
    if not kind.is_transfer_syntax or not kind.is_compressed or kind.is_deflated:
        return ScanError(f"{file}: the pixels are damaged or incomplete ({why}); copy it again")
    return ScanError(
        f"{file}: pixels stored as {kind.name or syntax} cannot be decoded ({why}); the file is damaged, or there is no"
        " decoder for this compression: decompress it first (gdcmconv --raw, or dcmdjpeg)"
    )


def _upright(block: np.ndarray, stack: Stack) -> tuple[np.ndarray, np.ndarray]:
    """Shift every slice in its plane so that all corners lie above each other; the grid grows, nothing is cut off.

    Planes and slice order stay as scanned: under gantry tilt the volume keeps its tilted planes, with an affine that
    says so, and only the shear is undone. The image is interpolated in the plane alone.
    """
    from scipy import ndimage

    pixel = np.array(stack.headers[0].pixel_mm)
    low = stack.offset.min(axis=0)
    shift = (stack.offset - low) / pixel
    grow = np.ceil(shift.max(axis=0) - 1e-6).astype(int)
    out = np.full((len(block), block.shape[1] + grow[0], block.shape[2] + grow[1]), AIR_HU, dtype=np.int32)
    for index, plane in enumerate(block):
        wide = np.full(out.shape[1:], AIR_HU, dtype=np.float32)
        wide[: block.shape[1], : block.shape[2]] = np.maximum(plane, AIR_HU)
        out[index] = np.rint(ndimage.shift(wide, shift[index], order=1, mode="constant", cval=AIR_HU))
    return out, low[0] * stack.col + low[1] * stack.row


def _regular(block: np.ndarray, stack: Stack) -> np.ndarray:
    """Interpolate linearly between neighbouring slices onto steps of ``stack.step`` from the first slice on."""
    z = stack.z - stack.z[0]
    wanted = np.arange(int(np.floor(z[-1] / stack.step + 1e-6)) + 1) * stack.step
    wanted = np.minimum(wanted, z[-1])
    upper = np.clip(np.searchsorted(z, wanted), 1, len(z) - 1)
    weight = (wanted - z[upper - 1]) / (z[upper] - z[upper - 1])
    out = np.empty((len(wanted), *block.shape[1:]), dtype=np.int32)
    for index, (u, w) in enumerate(zip(upper, weight)):
        below, above = (np.maximum(block[i], AIR_HU).astype(np.float32) for i in (u - 1, u))
        out[index] = np.rint(below + np.float32(w) * (above - below))
    return out


def same_pixels(a: SliceHeader, b: SliceHeader) -> bool:
    """Tell whether two slices of one plane are the same image stored twice."""
    if a.sop_uid and a.sop_uid == b.sop_uid:
        return True
    if np.abs(np.subtract(a.position, b.position)).max() > 0.01 or a.rescale != b.rescale:
        return False
    try:
        left, right = (next(iter(decode(h.file, [h])))[1] for h in (a, b))
    except ScanError:
        return False
    return np.array_equal(left, right)


def labels_seen(stack: Stack) -> str:
    """The few whole numbers from 0 to 255 that a series of masks stored as CT consists of; "" where it is a scan.

    Stored numbers count: masks are written with the header of their scan, intercept and all.
    """
    values = np.empty(0)
    try:
        for header in stack.headers[:: max(1, len(stack.headers) // 4)]:
            slope, intercept = header.rescale or (1.0, 0.0)
            stored = (next(iter(decode(header.file, [header])))[1] - intercept) / (slope or 1.0)
            values = np.union1d(values, np.rint(stored))
            if len(values) > MAX_LABELS or values[0] < 0 or values[-1] > 255:
                return ""
    except ScanError:
        return ""
    return f"whole numbers from {values[0]:g} to {values[-1]:g}" if len(values) > 1 else ""


def coarse_pixels(header: SliceHeader) -> np.ndarray:
    """A slice at about 128 pixels a side, smoothed, float32 HU without the extremes, to hold it against others."""
    return coarse(next(iter(decode(header.file, [header])))[1])


def coarse(hu: np.ndarray) -> np.ndarray:
    """Average a (rows, cols) slice of HU to about 128 pixels a side and smooth it over 3 x 3: noise counts less."""
    from scipy import ndimage

    step = max(1, min(hu.shape) // 128)
    rows, cols = (n // step for n in hu.shape)
    hu = np.clip(hu[: rows * step, : cols * step], AIR_HU, 1000).astype(np.float32)
    return ndimage.uniform_filter(hu.reshape(rows, step, cols, step).mean(axis=(1, 3)), 3)
