"""``voco.read_volume``: any CT file or folder to the canonical volume, by the reader that fits."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from voco.data.volume import Header, Source, Volume, canonical_volume
from voco.errors import ScanError

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")


def is_volume_file(path: str | Path) -> bool:
    """Tell by its name whether a file is NIfTI, MetaImage or NRRD."""
    return str(path).lower().endswith(VOLUME_SUFFIXES)


def read_volume(
    path: str | Path,
    *,
    series: str | None = None,
    files: Iterable[str | Path] | None = None,
    offset: float | None = None,
) -> Volume:
    """Read one CT scan into the canonical frame.

    Args:
        path: a NIfTI, MHD/MHA or NRRD file, a DICOM file (its whole series is read), or a folder with DICOM files at
            any depth. A folder with several series of one study gives its thinnest original axial series.
        series: SeriesInstanceUID to take instead; it may name a reformat or a derived series.
        files: the DICOM files of the series where they are already known; the folder is then not searched.
        offset: HU to add to the values, such as -1024 for stored values whose intercept was lost. 0 says that they are
            Hounsfield units as they are, whatever they look like.

    Returns:
        The canonical volume; ``notes`` says what is doubtful about it.

    Raises:
        ScanError: the scan is missing, damaged, not a CT volume, or its geometry is not known.
    """
    path = Path(path)
    if files is not None:
        from voco.data.dicom import read_files

        return read_files([Path(f) for f in files], path=str(path), series=series, offset=offset)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ScanError(f"{path}: no such file or folder") from None
    except (OSError, ValueError) as error:
        raise ScanError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(status.st_mode):
        from voco.data.dicom import read_folder

        return read_folder(path, series=series, offset=offset)
    if not stat.S_ISREG(status.st_mode):
        raise ScanError(f"{path}: neither a file nor a folder (a pipe or device)")
    if not os.access(path, os.R_OK):
        raise ScanError(f"{path}: cannot be opened (permission denied)")
    if status.st_size == 0:
        raise ScanError(f"{path}: the file is empty")
    if is_volume_file(path):
        image, header = _read_file(path)
        return canonical_volume(image, Source(str(path)), header=header, offset=offset)
    from voco.data.dicom import read_series_of_file

    return read_series_of_file(path, series=series, offset=offset)


def _read_file(path: Path):
    if str(path).lower().endswith((".nii", ".nii.gz")):
        from voco.data.nifti import read_nifti

        return read_nifti(path)
    from voco.data.itk import read_itk

    return read_itk(path), Header()
