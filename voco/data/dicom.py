"""DICOM folders: find every series, choose per study, read one series into the canonical volume."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from voco.data.dicom_parts import Part, part_volumes
from voco.data.dicom_read import coarse_pixels, labels_seen, read_stack, same_pixels
from voco.data.dicom_scan import SliceHeader, Unreadable, find_files, quiet_pydicom, read_header, scan_headers
from voco.data.dicom_select import SELECT_RULES, SeriesRecord, classify, plane_name, select_series
from voco.data.dicom_stack import Stack, arrange, cluster, parallel
from voco.data.volume import Source, Volume
from voco.errors import ScanError

__all__ = ["SELECT_RULES", "SeriesRecord", "find_series", "read_files", "read_folder", "read_series", "select_series"]


def find_series(
    root: str | Path,
    files: Iterable[str | Path] | None = None,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[SeriesRecord]:
    """Find every DICOM series under a folder from the headers of its files.

    A series may lie in several folders and several series in one; other files are passed over. Images of another
    size or orientation, and phases that share a series UID, become records of their own.

    Args:
        root: folder; paths in the records are relative to it.
        files: look only at these files (absolute, or relative to the root) instead of searching.
        workers: processes that read headers.
        progress: called now and then with (files done, files in all).

    Returns:
        One record per volume or rejected part, sorted by path, series and part; decisions are still empty.
    """
    root = Path(root)
    paths = find_files(root) if files is None else [root / f for f in files]
    records = [_record(root, found) for found in _stacks(paths, workers=workers, progress=progress)]
    return sorted(records, key=lambda r: (r.path, r.series, r.part, -r.slices))


def read_series(record: SeriesRecord, root: str | Path) -> Volume:
    """Read one series that ``find_series`` found.

    Args:
        record: from ``find_series`` with the same root.
        root: folder that the record's paths are relative to.

    Raises:
        ScanError: the series cannot be read.
    """
    if record.problem is not None:
        raise ScanError(f"{Path(root, record.path)}: {record.problem}")
    files = [Path(root, f) for f in record.files]
    return read_files(files, path=str(Path(root, record.path)), series=record.series)


def read_files(
    files: Sequence[Path], *, path: str | None = None, series: str | None = None, offset: float | None = None
) -> Volume:
    """Read the DICOM files of one series.

    Args:
        files: its files in any order.
        path: how to call the scan; the folder of the first file if not given.
        series: SeriesInstanceUID, where the files may hold more than one.
        offset: see ``voco.read_volume``.

    Raises:
        ScanError: the files do not hold exactly one readable volume.
    """
    if not files:
        raise ScanError(f"{path or 'DICOM series'}: no files given")
    root = Path(path) if path is not None else Path(files[0]).parent
    return _read_one(root, list(_stacks(files)), series, str(root), offset)


def read_folder(folder: Path, *, series: str | None = None, offset: float | None = None) -> Volume:
    """Read a folder that holds one DICOM study; see ``voco.read_volume``."""
    found = list(_stacks(find_files(folder)))
    if not found:
        raise ScanError(f"{folder}: no DICOM images in this folder; expected a series, or name a volume file")
    return _read_one(folder, found, series, str(folder), offset)


def read_series_of_file(file: Path, *, series: str | None = None, offset: float | None = None) -> Volume:
    """Read the series that one DICOM file belongs to, from the files beside it."""
    with quiet_pydicom():
        headers = read_header(file)
    if not headers:
        raise ScanError(f"{file}: neither NIfTI, MHD/MHA nor NRRD by its name, nor DICOM by its content")
    if isinstance(headers[0], Unreadable):
        raise ScanError(f"{file}: {headers[0].reason}")
    beside = [file] if len(headers) > 1 else sorted(p for p in file.parent.iterdir() if p.is_file())
    found = list(_stacks(beside))
    # Of a series with several volumes the one that holds the file is meant.
    own = [f for f in found if any(h.file == str(file) for h in (*f.headers, *(f.stack.repeated if f.stack else ())))]
    return _read_one(file.parent, own or found, series or headers[0].series, str(file), offset)


class _Found(NamedTuple):
    """A volume, or a part that is none: slices, stack or None, number among several, what is wrong, kind if known."""

    headers: list[SliceHeader] | list[Unreadable]
    stack: Stack | None = None
    part: int = 0
    problem: str | None = None
    kind: str = ""


def _stacks(files: Iterable[Path], **scan) -> Iterable[_Found]:
    """Yield every volume and every rejected part."""
    by_series: dict[tuple, list[SliceHeader]] = {}
    torn: dict[tuple[str, str], list[Unreadable]] = {}
    for header in scan_headers(files, **scan):
        if isinstance(header, Unreadable):
            torn.setdefault((os.path.dirname(header.file), header.reason), []).append(header)
        else:
            by_series.setdefault((header.study, header.series, header.modality), []).append(header)
    for headers in by_series.values():
        # Other modalities are one line of the table whatever they hold.
        clusters = cluster(headers) if headers[0].modality == "CT" else [headers]
        for rank, headers_of_one_grid in enumerate(clusters):
            yield from _parts(headers_of_one_grid, rank, len(headers))
    for (_, reason), unreadable in torn.items():
        count = f"{len(unreadable)} file{'s' if len(unreadable) > 1 else ''}"
        yield _Found(unreadable, problem=f"{count}: {reason}")


def _parts(headers: list[SliceHeader], rank: int, total: int) -> Iterable[_Found]:
    _, problem = classify(headers)
    if problem is not None:
        yield _Found(headers, problem=problem)
        return
    parts = [Part(headers)]
    if all(h.orientation and h.position and h.pixel_mm for h in headers):
        try:
            headers, notes = parallel(headers)
            parts = part_volumes(headers, coarse_pixels)
        except ScanError as error:
            yield _Found(headers, problem=str(error))
            return
        for part in parts:
            part.notes = (*notes, *part.notes)
    for number, part in enumerate(parts, 1):
        number = number if len(parts) > 1 else 0
        if part.aside is not None:
            yield _Found(part.headers, None, number, "; ".join([part.aside, *part.notes]), kind="monitoring")
            continue
        try:
            stack, why = arrange(part.headers, same_pixels, part.dropped, part.notes), None
        except ScanError as error:
            stack, why = None, "; ".join([str(error), *part.notes])
            if rank:
                why = f"{len(part.headers)} of {total} images of the series, with another size or orientation: {why}"
        if stack is not None and (seen := labels_seen(stack)):
            why = "; ".join([f"a mask: {seen} in a few of its slices", *part.notes])
            yield _Found(part.headers, None, number, why, kind="mask")
            continue
        yield _Found(part.headers, stack, number, why)


def _record(root: Path, found: _Found) -> SeriesRecord:
    headers, stack, part, problem, kind = found
    ordered = headers if stack is None else [*stack.headers, *stack.repeated]
    files = tuple(dict.fromkeys(Path(os.path.relpath(h.file, root)).as_posix() for h in ordered))
    folder = os.path.commonpath([os.path.dirname(f) for f in files]) if files else ""
    path = Path(folder).as_posix()
    if isinstance(headers[0], Unreadable):
        return SeriesRecord(path=path, series="", files=files, problem=problem)
    first = ordered[0]
    thickness = [h.thickness_mm for h in headers if h.thickness_mm]
    spacing = None if stack is None else (stack.step, *first.pixel_mm)
    return SeriesRecord(
        path=path,
        series=first.series,
        study=first.study,
        patient=first.patient,
        modality=first.modality,
        image_type=first.image_type,
        kernel=first.kernel,
        orientation=plane_name(first.orientation),
        rows=first.rows,
        cols=first.cols,
        slices=len(stack.headers) if stack else len(headers),
        spacing_mm=spacing,
        thickness_mm=sorted(thickness)[len(thickness) // 2] if thickness else None,
        kind=kind or classify(headers)[0],
        part=part,
        files=files,
        problem=problem,
        notes=() if stack is None else stack.notes,
    )


def _read_one(root: Path, found: list[_Found], series: str | None, name: str, offset: float | None) -> Volume:
    pairs = [(_record(root, f), f.stack) for f in found]
    if series is not None:
        pairs = [(r, s) for r, s in pairs if r.series == series]
        if not pairs:
            raise ScanError(f"{name}: no series {series} here")
    records = select_series([r for r, _ in pairs])
    kept = [(r, s) for r, s in pairs if r.decision == "kept"]
    if not kept and series is not None:
        # Named by hand: a reformat or a map is read too, where it is a volume.
        kept = sorted(((r, s) for r, s in pairs if s is not None), key=lambda p: -p[0].slices)[:1]
    if not kept:
        reasons = sorted({r.reason for r in records})
        raise ScanError(f"{name}: no usable CT series among {len(records)} ({'; '.join(reasons[:3])})")
    if len(kept) > 1:
        uids = ", ".join(r.series for r, _ in kept[:5])
        raise ScanError(f"{name}: {len(kept)} studies in this folder; name one series of them ({uids})")
    record, stack = kept[0]
    return read_stack(stack, Source(name, record.patient, record.study, record.series), offset)
