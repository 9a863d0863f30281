"""Write a scan the way archives hold it: NIfTI in any orientation, DICOM series with deterministic identifiers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from voco.data.synthetic import IMPLEMENTATION_UID, MARK
from voco.errors import InputError

_LETTERS = {"R": (0, -1), "L": (0, 1), "A": (1, -1), "P": (1, 1), "I": (2, -1), "S": (2, 1)}
_UID_ROOT = "2.25."


def oriented(array: np.ndarray, spacing_mm, origin_mm, code: str) -> tuple[np.ndarray, np.ndarray]:
    """Reorder a canonical array for storage.

    Args:
        array: (D, H, W) toward superior, posterior, left.
        spacing_mm: (D, H, W).
        origin_mm: LPS position (x, y, z) of voxel (0, 0, 0).
        code: where the three storage axes point, fastest first, in NIfTI's words: ``"RAS"``, ``"LPS"``, ...

    Returns:
        The stored array indexed (i, j, k), and its (4, 4) affine from (i, j, k) to LPS mm.

    Raises:
        InputError: not an orientation.
    """
    if len(code) != 3 or any(c not in _LETTERS for c in code) or len({_LETTERS[c][0] for c in code}) != 3:
        raise InputError(f"orientation {code!r} is not three of R/L, A/P, I/S, such as 'LPS' or 'RAS'")
    data = array.transpose(2, 1, 0)  # x, y, z: each toward L, P, S
    step = np.array(spacing_mm, float)[::-1]
    affine = np.eye(4)
    origin = np.array(origin_mm, float)
    for k, letter in enumerate(code):
        axis, sign = _LETTERS[letter]
        affine[:3, k] = 0
        affine[axis, k] = sign * step[axis]
        if sign < 0:
            origin[axis] += step[axis] * (data.shape[axis] - 1)
    affine[:3, 3] = origin
    data = data[tuple(slice(None, None, _LETTERS[c][1]) for c in sorted(code, key=lambda c: _LETTERS[c][0]))]
    return data.transpose([_LETTERS[c][0] for c in code]), affine


def write_nifti(
    path: Path, array: np.ndarray, spacing_mm, origin_mm, orientation: str = "RAS", data_type: str = "int16"
) -> Path:
    """Write a canonical array as ``.nii.gz``.

    Args:
        path: file to write; its folder is made.
        array: (D, H, W) toward superior, posterior, left.
        spacing_mm: (D, H, W).
        origin_mm: LPS position (x, y, z) of the first voxel.
        orientation: storage order, e.g. ``"RAS"``.
        data_type: numpy type of the stored values.
    """
    import gzip

    import nibabel

    data, affine = oriented(array, spacing_mm, origin_mm, orientation)
    image = nibabel.Nifti1Image(np.ascontiguousarray(data).astype(data_type), np.diag([-1, -1, 1, 1]) @ affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"{MARK}: nobody's scan"
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    # mtime and the name inside the gzip header would make two equal files differ.
    with open(path, "wb") as file, gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
        packed.write(image.to_bytes())
    return path


def uid(*key: object) -> str:
    """A DICOM UID that depends on nothing but the key."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return _UID_ROOT + str(int.from_bytes(digest, "big"))


def write_dicom(
    folder: Path,
    array: np.ndarray,
    spacing_mm,
    origin_mm,
    *,
    patient: str,
    key: tuple,
    study: str = "1",
    series: str = "1",
    number: int = 2,
    description: str = "CHEST",
    study_description: str = "CT CHEST",
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    kernel: str = "B40f",
    padding: int | None = None,
    files: Iterable[str] | None = None,
    sex: str = "O",
    uids: tuple[str, str, Sequence[str]] | None = None,
) -> list[Path]:
    """Write a canonical array as a CT series of single slices whose file names do not sort in slice order.

    Args:
        folder: where the files go; made if missing.
        array: (D, H, W) toward superior, posterior, left.
        spacing_mm: (D, H, W).
        origin_mm: LPS position (x, y, z) of the first voxel.
        patient: ``PatientID``; the name is made from it.
        key: what the UIDs are made from, with study and series.
        study: name of the study within the patient.
        series: name of the series within the study.
        number: SeriesNumber.
        description: SeriesDescription.
        study_description: StudyDescription.
        image_type: ImageType.
        kernel: ConvolutionKernel.
        padding: PixelPaddingValue in HU where the scanner writes one.
        files: one name per slice, in slice order; numbered in a shuffled order without it.
        sex: PatientSex.
        uids: StudyInstanceUID, SeriesInstanceUID and one SOPInstanceUID per slice instead of those made from ``key``;
            published sets also use identifiers that are no UIDs by DICOM's rules.

    Returns:
        Files in slice order, from inferior to superior.
    """
    import pydicom

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little"))
    names = list(files) if files is not None else [f"IM{n:05d}.dcm" for n in rng.permutation(len(array)) + 1]
    intercept = -1024
    # Padding under -1024 needs signed storage, as it does on the scanners that write it.
    signed = padding is not None and padding < intercept
    paths = []
    for k, (image, name) in enumerate(zip(array, names)):
        with pydicom.config.disable_value_validation():  # identifiers that are no UIDs by DICOM's rules
            dataset = _slice_header(patient, sex, key, study, series, k)
            if uids is not None:
                _set_uids(dataset, uids[0], uids[1], uids[2][k])
        dataset.StudyDescription, dataset.SeriesDescription = study_description, description
        dataset.SeriesNumber, dataset.ImageType, dataset.ConvolutionKernel = number, list(image_type), kernel
        dataset.SliceThickness = _number(spacing_mm[0])
        dataset.PixelSpacing = [_number(spacing_mm[1]), _number(spacing_mm[2])]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [_number(v) for v in (*origin_mm[:2], origin_mm[2] + k * spacing_mm[0])]
        dataset.SliceLocation = dataset.ImagePositionPatient[2]
        # Scanners number from the head down or from the feet up; here from the head.
        dataset.InstanceNumber = len(array) - k
        dataset.Rows, dataset.Columns = image.shape
        dataset.PixelRepresentation = int(signed)
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = intercept, 1, "HU"
        if padding is not None:
            dataset.add_new(0x00280120, "SS" if signed else "US", padding - intercept)
        stored = image.astype(np.int32) - intercept
        dataset.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        path = folder / name
        with pydicom.config.disable_value_validation():
            dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _set_uids(dataset, study: str, series: str, sop: str) -> None:
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = study, series, sop
    dataset.file_meta.MediaStorageSOPInstanceUID = sop


def _number(value: float) -> str:
    """A decimal string within DICOM's 16 characters."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _slice_header(patient: str, sex: str, key: tuple, study: str, series: str, k: int):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = uid(*key, study, series, k)
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = uid(*key, study, series, k)
    dataset.StudyInstanceUID = uid(*key, study)
    dataset.SeriesInstanceUID = uid(*key, study, series)
    dataset.FrameOfReferenceUID = uid(*key, study, "frame")
    dataset.PatientID, dataset.PatientName = patient, patient.replace("-", "^")
    dataset.PatientBirthDate, dataset.PatientSex = "", sex
    dataset.StudyID, dataset.AccessionNumber = "1", ""
    dataset.StudyDate, dataset.StudyTime, dataset.ReferringPhysicianName = "20000101", "120000", ""
    dataset.Modality, dataset.Manufacturer = "CT", "Phantom"
    dataset.PatientPosition, dataset.KVP = "HFS", "120"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    return dataset
