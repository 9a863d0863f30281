"""Write small DICOM series with any geometry, encoding or defect, straight from the standard's attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SECRET = {"PatientName": "Roe^Jane", "PatientID": "MRN-778812", "AccessionNumber": "ACC4711", "StudyDate": "20190203"}
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def uid(*parts: object) -> str:
    """A UID that is the same for the same words, so that tests can name it."""
    return generate_uid(entropy_srcs=[str(p) for p in parts])


def dataset(
    stored: np.ndarray, *, series="a", study="s", number=1, position=None, orientation=AXIAL, **tags
) -> Dataset:
    """One CT slice of stored values; ``tags`` overrule anything, None removes the element."""
    ds = Dataset()
    ds.SOPClassUID = CT
    ds.SOPInstanceUID = uid(study, series, number, tags.pop("copy", ""))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study), uid(study, series)
    for name, value in SECRET.items():
        setattr(ds, name, value)
    ds.SeriesDescription = "Roe Jane ward 5"
    ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber = number
    ds.ConvolutionKernel, ds.KVP, ds.AcquisitionNumber = "B30f", "120", 1
    ds.SliceThickness = "2"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = stored.shape[-2], stored.shape[-1], 1
    ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = "MONOCHROME2", 16, 16, 15
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelSpacing = ["0.8", "0.7"]
    ds.ImageOrientationPatient = [f"{v:.10g}" for v in orientation]
    if position is not None:
        ds.ImagePositionPatient = [f"{v:.10g}" for v in position]
    ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024"
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    if stored.dtype.itemsize == 1:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = np.ascontiguousarray(stored).tobytes()
    return ds


def save(ds: Dataset, path: Path, syntax=ExplicitVRLittleEndian, rle: bool = False) -> Path:
    """Write one file with its preamble and file meta group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    out = FileDataset(str(path), ds, file_meta=meta, preamble=b"\0" * 128)
    if rle:
        out.compress(RLELossless)
    out.save_as(path, enforce_file_format=True)
    return path


def positions(count: int, step: float = 2.0, start=(-40.0, -30.0, -100.0), along=(0.0, 0.0, 1.0)) -> np.ndarray:
    """Corners of evenly spaced slices."""
    return np.array(start) + np.arange(count)[:, None] * step * np.array(along)


def series(
    folder: Path, hu: np.ndarray, *, where=None, name="im{:03d}.dcm", rle=False, each=None, **tags
) -> list[Path]:
    """Write a series of (slices, rows, cols) HU, stored unsigned with intercept -1024.

    Args:
        folder: made if missing.
        hu: one plane per slice, in the order of ``where``.
        where: (slices, 3) corners.
        name: file name from the slice number.
        rle: compress by run lengths.
        each: function of the slice number that returns tags for that slice.
        tags: for all slices.
    """
    where = positions(len(hu)) if where is None else where
    paths = []
    for index, (plane, corner) in enumerate(zip(hu, where)):
        own = tags | (each(index) if each else {})
        ds = dataset((plane + 1024).astype(np.uint16), number=index + 1, position=corner, **own)
        paths.append(save(ds, folder / name.format(index), rle=rle))
    return paths


def enhanced(path: Path, hu: np.ndarray, where: np.ndarray, intercepts: np.ndarray, orientation=AXIAL) -> Path:
    """Write an enhanced multi-frame CT whose frames each have their own position and rescale intercept."""
    stored = np.stack([plane - int(b) for plane, b in zip(hu, intercepts)]).astype(np.uint16)
    ds = dataset(stored, orientation=orientation)
    for name in ("ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "SliceThickness"):
        delattr(ds, name)
    ds.SOPClassUID, ds.NumberOfFrames = ENHANCED_CT, len(hu)
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = list(orientation)
    measures.PixelSpacing, measures.SliceThickness = ["0.8", "0.7"], "2"
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for corner, intercept in zip(where, intercepts):
        frame, place, value = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [f"{v:.10g}" for v in corner]
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = "1", str(int(intercept)), "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [value]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    return save(ds, path)


def sample(name: str) -> Path:
    """A file that comes inside the pydicom package (no download)."""
    return Path(pydicom.__file__).parent / "data" / "test_files" / name


def anatomy(shape=(9, 12, 14), seed=3) -> np.ndarray:
    """An int16 volume in (S, P, L) without any symmetry, with values from air to bone."""
    values = np.random.default_rng(seed).integers(-1000, 2500, size=shape).astype(np.int16)
    values[0, 0, 0], values[-1, -1, -1] = -1024, 3071
    return values
