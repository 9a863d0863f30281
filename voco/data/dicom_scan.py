"""DICOM headers of many files: what is needed to find series and order slices, and nothing that names a person."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import NamedTuple

from voco.data.privacy import hash_patient_id
from voco.errors import InputError

# Never DICOM: not even opened. Anything else is judged by its first bytes, because scanners often write no extension.
_KINDS = """
    nii gz mha mhd raw zraw nrrd nhdr png jpg jpeg gif bmp tif tiff txt csv tsv json xml html htm pdf doc docx xls xlsx
    zip tar tgz 7z npy npz pt pth md py yaml yml log h5 b2nd mp4 avi mkv safetensors exe dll ini inf css js
"""
OTHER_KINDS = frozenset(_KINDS.split())
CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "enhanced CT",
}
DICOMDIR = "1.2.840.10008.1.3.10"
MAX_FRAMES = 100_000
# Where one series holds several volumes, one of these may tell them apart; tried in this order.
SPLIT_KEYS = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "NominalPercentageOfCardiacPhase",
    "TriggerTime",
    "ConvolutionKernel",
    "KVP",
    "ImageType",
    "FrameOfReferenceUID",
    "SliceThickness",
)
TIMES = ("AcquisitionTime", "ContentTime")
TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "ImageType"),
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "ImageOrientationPatient", "ImagePositionPatient"),
    *("PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept", "RescaleType", "ConvolutionKernel"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *SPLIT_KEYS[:5], "KVP"),
    *("FrameOfReferenceUID", "InstanceNumber", *TIMES),
)


class SliceHeader(NamedTuple):
    """One slice: a single-frame file, or one frame of a multi-frame file (``frame`` counts from 0, else -1)."""

    file: str
    frame: int
    sop_uid: str
    sop_class: str
    syntax: str
    series: str
    study: str | None
    patient: str | None
    modality: str
    image_type: tuple[str, ...]
    kernel: str
    rows: int
    cols: int
    samples: int
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    pixel_mm: tuple[float, ...] | None
    thickness_mm: float | None
    rescale: tuple[float, float] | None
    rescale_type: str
    keys: tuple[str, ...]
    number: int | None
    times: tuple[float | None, ...]


class Unreadable(NamedTuple):
    """A file that begins like DICOM and then cannot be understood."""

    file: str
    reason: str


def find_files(root: Path) -> list[Path]:
    """List every file under a folder that could be DICOM, sorted, at any depth, through links to folders too."""
    found, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            # A link back to a folder above would never end.
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if not _other(name) and not name.startswith(".")]
    return found


def scan_headers(
    files: Iterable[Path], *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Iterator[SliceHeader | Unreadable]:
    """Read the headers of many files; files that are not DICOM images are passed over in silence.

    Args:
        files: paths to look at.
        workers: processes to read with; more than one needs a guarded main module, as multiprocessing does.
        progress: called now and then with (files done, files in all).

    Yields:
        One header per slice, or the reason why a DICOM file could not be read.
    """
    files = [str(f) for f in files if not _other(Path(f).name)]
    size = 256
    batches = [files[i : i + size] for i in range(0, len(files), size)]
    done = 0
    with contextlib.ExitStack() as stack:
        if workers > 1 and len(batches) > 1:
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import get_context

            # Not forked: the caller may hold threads (blosc2, torch) that a fork would leave hanging.
            pool = stack.enter_context(ProcessPoolExecutor(min(workers, len(batches)), mp_context=get_context("spawn")))
            results = pool.map(_read_batch, batches)
        else:
            results = map(_read_batch, batches)
        try:
            for batch, headers in zip(batches, results):
                yield from headers
                done += len(batch)
                if progress is not None:
                    progress(done, len(files))
        except BrokenExecutor:
            raise InputError(
                "a process that reads DICOM headers died; if your own script called this, put its main part under"
                " `if __name__ == '__main__':`, or use one worker (--workers 1)"
            ) from None


def _other(name: str) -> bool:
    return os.path.splitext(name)[1].lower().lstrip(".") in OTHER_KINDS


def _read_batch(files: list[str]) -> list[SliceHeader | Unreadable]:
    with quiet_pydicom():
        return [header for file in files for header in read_header(file)]


@contextlib.contextmanager
def quiet_pydicom():
    """Keep pydicom from printing values of odd elements: they can hold names."""
    import logging

    from pydicom import config

    log, mode = logging.getLogger("pydicom"), config.settings.reading_validation_mode
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        config.settings.reading_validation_mode = config.IGNORE
        try:
            yield
        finally:
            log.setLevel(level)
            config.settings.reading_validation_mode = mode


def _begins_like_dicom(head: bytes) -> bool:
    """Judge by the first bytes: the DICM mark, or a data set that starts without it as old scanners write."""
    if head[128:132] == b"DICM":
        return True
    return len(head) > 12 and head[:2] in (b"\x08\x00", b"\x02\x00") and head[3] == 0 and head[2:4] != b"\x00\x10"


def _named(file: str) -> bool:
    return file.lower().endswith((".dcm", ".dicom", ".ima"))


def _open_now(file: str, flags: int) -> int:
    return os.open(file, flags | getattr(os, "O_NONBLOCK", 0))


def read_header(file: str | Path) -> list[SliceHeader | Unreadable]:
    """Read one file: a header per slice or frame, nothing if it is not DICOM."""
    import pydicom

    file = str(file)
    try:
        # One open per file: on a network drive that is most of the time. Not blocking: a pipe would wait for ever.
        with open(file, "rb", opener=_open_now) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                return []
            head = stream.read(132)
            if not _begins_like_dicom(head):
                return [Unreadable(file, "named like DICOM, but empty or of another content")] if _named(file) else []
            stream.seek(0)
            ds = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_tags(), force=True)
        meta = getattr(ds, "file_meta", {})
        if _text(meta.get("MediaStorageSOPClassUID")) == DICOMDIR:
            return []
        if not _text(ds.get("SeriesInstanceUID")):
            sure = head[128:] == b"DICM" or _text(ds.get("SOPClassUID"))
            return [Unreadable(file, "a DICOM file without SeriesInstanceUID, or cut off before it")] if sure else []
        return _headers(ds, file, _text(meta.get("TransferSyntaxUID")))
    except OSError as error:
        return [Unreadable(file, f"cannot be opened ({error.strerror or type(error).__name__})")]
    except Exception as error:
        # pydicom raises whatever a damaged header provokes; its text may quote values, so only the kind is told.
        return [Unreadable(file, f"the header is damaged or incomplete ({type(error).__name__})")]


@functools.cache
def _tags() -> list[int]:
    from pydicom.datadict import tag_for_keyword

    return [tag_for_keyword(name) for name in TAGS]


def _headers(ds, file: str, syntax: str) -> list[SliceHeader | Unreadable]:
    patient, sop_class = _text(ds.get("PatientID")), _text(ds.get("SOPClassUID"))
    # De-identified sets may keep only a few elements; what kind of object it is then stands in the file meta group.
    sop_class = sop_class or _text(getattr(ds, "file_meta", {}).get("MediaStorageSOPClassUID"))
    first = SliceHeader(
        file=file,
        frame=-1,
        sop_uid=_text(ds.get("SOPInstanceUID")),
        sop_class=sop_class,
        syntax=syntax,
        series=_text(ds.get("SeriesInstanceUID")),
        study=_text(ds.get("StudyInstanceUID")) or None,
        patient=hash_patient_id(patient) if patient else None,
        modality=_text(ds.get("Modality")).upper() or ("CT" if sop_class in CT_CLASSES else ""),
        image_type=_texts(ds.get("ImageType")),
        kernel="/".join(_texts(ds.get("ConvolutionKernel"))),
        rows=int(ds.get("Rows") or 0),
        cols=int(ds.get("Columns") or 0),
        samples=int(ds.get("SamplesPerPixel") or 1),
        orientation=_numbers(ds.get("ImageOrientationPatient"), 6),
        position=_numbers(ds.get("ImagePositionPatient"), 3),
        pixel_mm=_numbers(ds.get("PixelSpacing"), 2),
        thickness_mm=_number(ds.get("SliceThickness")),
        rescale=_rescale(ds),
        rescale_type=_text(ds.get("RescaleType")),
        keys=(),
        number=None if (number := _number(ds.get("InstanceNumber"))) is None else int(number),
        times=tuple(_seconds(ds.get(name)) for name in TIMES),
    )
    first = first._replace(keys=_keys(ds, first))
    if "PerFrameFunctionalGroupsSequence" in ds:
        return _frames(ds, first)
    frames = int(ds.get("NumberOfFrames") or 1)
    if frames > MAX_FRAMES:
        return [Unreadable(file, f"the header claims {frames} frames")]
    if frames > 1:
        return [first._replace(frame=i, position=None) for i in range(frames)]
    return [first]


def _keys(ds, header: SliceHeader) -> tuple[str, ...]:
    own = {"ConvolutionKernel": header.kernel, "ImageType": "\\".join(header.image_type)}
    return tuple(own[k] if k in own else "/".join(_texts(ds.get(k))) for k in SPLIT_KEYS)


def _frames(ds, first: SliceHeader) -> list[SliceHeader]:
    """Enhanced CT: each value stands in the frame's own groups, or in the shared ones."""
    shared = (list(ds.get("SharedFunctionalGroupsSequence") or ()) or [{}])[0]
    out = []
    for index, groups in enumerate(ds.PerFrameFunctionalGroupsSequence):

        def item(name: str, groups=groups):
            sequence = groups.get(name) or shared.get(name)
            return sequence[0] if sequence else {}

        measures, content = item("PixelMeasuresSequence"), item("FrameContentSequence")
        frame_type = _texts(item("CTImageFrameTypeSequence").get("FrameType")) or first.image_type
        kernel = "/".join(_texts(item("CTReconstructionSequence").get("ConvolutionKernel"))) or first.kernel
        header = first._replace(
            frame=index,
            sop_uid=f"{first.sop_uid}#{index + 1}",
            image_type=frame_type,
            kernel=kernel,
            orientation=_numbers(item("PlaneOrientationSequence").get("ImageOrientationPatient"), 6)
            or first.orientation,
            position=_numbers(item("PlanePositionSequence").get("ImagePositionPatient"), 3),
            pixel_mm=_numbers(measures.get("PixelSpacing"), 2) or first.pixel_mm,
            thickness_mm=_number(measures.get("SliceThickness")) or first.thickness_mm,
            rescale=_rescale(item("PixelValueTransformationSequence")) or first.rescale,
            rescale_type=_text(item("PixelValueTransformationSequence").get("RescaleType")) or first.rescale_type,
        )
        number = _text(content.get("FrameAcquisitionNumber")) or header.keys[0]
        time_index = _text(content.get("TemporalPositionIndex")) or header.keys[2]
        keys = (number, header.keys[1], time_index, *header.keys[3:])
        named = dict(zip(SPLIT_KEYS, keys)) | {"ConvolutionKernel": kernel, "ImageType": "\\".join(frame_type)}
        out.append(header._replace(keys=tuple(named.values())))
    return out


def _rescale(ds) -> tuple[float, float] | None:
    slope, intercept = _number(ds.get("RescaleSlope")), _number(ds.get("RescaleIntercept"))
    if slope is None and intercept is None:
        return None
    return (1.0 if slope is None else slope, 0.0 if intercept is None else intercept)


def _text(value) -> str:
    return "" if value is None else str(value).strip()


def _texts(value) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    try:
        return tuple(str(v).strip() for v in value)
    except TypeError:
        return (str(value).strip(),)


def _number(value) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _seconds(value) -> float | None:
    """Seconds since midnight of a DICOM time (HHMMSS.ffffff)."""
    digits = _number(_text(value).replace(":", ""))
    return None if digits is None else digits // 10000 * 3600 + digits // 100 % 100 * 60 + digits % 100


def _numbers(value, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
