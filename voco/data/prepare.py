"""Prepare a cohort: read each scan, crop, resample, store. Parallel, restartable at any moment, safe to run twice.

Each entry is named after its source files (path, size, time), the settings and the format, so an entry that exists
is an entry that is right, and one that has become stale is never found again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from voco import __version__
from voco.data.cache import entry_key, entry_path, read_footer, write_entry
from voco.data.fingerprint import scan_fingerprint
from voco.data.manifest import Case, Rejection, name_outside
from voco.data.masks import mask_box, read_mask
from voco.data.pool import Crashed, run_isolated
from voco.data.progress import Progress
from voco.data.resample import AIR_HU, body_box, parse_spacing, resample, rescale_affine, resize
from voco.data.synthetic import is_synthetic
from voco.data.volume import last_line
from voco.errors import InputError, ScanError
from voco.files import sweep, write_bytes

_REJECTED = ".rejected.json"
# After so many new entries their mean size foretells what the rest will need.
_SAMPLE = 8
_MAX_OFFSET = 65536.0


@dataclass(frozen=True)
class PrepareSettings:
    """What is done to a scan before it is stored.

    Attributes:
        spacing_mm: one value or (D, H, W) in mm; None or ``"native"`` keeps the scan's own spacing of that axis.
        crop_body: keep only the bounding box of the patient.
        antialias: average instead of interpolating where an axis is made coarser.
        size: (D, H, W) voxels that the scan is stretched to, after ``spacing_mm``; None for an axis that is not.
        mask: what ``Case.mask`` is for: ``crop`` to its bounding box, ``fill`` everything outside with air, or "".
        offset: HU to add to the values of every scan first, see ``voco.read_volume``.
    """

    spacing_mm: tuple[float | None, float | None, float | None] = (1.5, 1.5, 1.5)
    crop_body: bool = False
    antialias: bool = False
    size: tuple[int | None, int | None, int | None] = (None, None, None)
    mask: str = ""
    offset: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "spacing_mm", parse_spacing(self.spacing_mm))
        object.__setattr__(self, "size", tuple(self.size))
        if self.mask not in ("", "crop", "fill"):
            raise InputError(f"a mask is used to crop or to fill, found {self.mask!r}")
        if self.offset is not None and not abs(self.offset) <= _MAX_OFFSET:
            raise InputError(
                f"--data.offset {self.offset} is not a number of Hounsfield units to add to stored values; expected"
                f" one such as -1024, at most {_MAX_OFFSET:g}"
            )

    def to_dict(self) -> dict:
        """As JSON, in keys and metadata; without an offset as before there was one, so that old entries are found."""
        found = asdict(self)
        if self.offset is None:
            del found["offset"]
        return found


def made_with(meta: dict, settings: PrepareSettings) -> bool:
    """Whether a prepared volume has the geometry of these settings, by its metadata; one that says nothing has.

    What was added to its values to make Hounsfield units of them is the business of who prepared it.
    """
    found = meta.get("settings")
    if found is None:
        return True
    one, two = ({k: v for k, v in item.items() if k != "offset"} for item in (found, settings.to_dict()))
    return json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)


@dataclass(frozen=True)
class PreparedEntry:
    """One prepared scan.

    Attributes:
        case: which scan.
        path: the prepared file.
        shape: (D, H, W) voxels.
        spacing_mm: (D, H, W).
        bytes: size on disk.
        synthetic: whether it was drawn.
        notes: what is doubtful about it.
    """

    case: Case
    path: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    bytes: int = 0
    synthetic: bool = False
    notes: tuple[str, ...] = ()


@dataclass
class PrepareResult:
    """Entries in the order of the cases, the scans that could not be prepared, and what was done."""

    entries: list[PreparedEntry] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    made: int = 0
    reused: int = 0

    @property
    def bytes_per_voxel(self) -> float:
        """Mean over all voxels of all entries."""
        voxels = sum(int(np.prod(entry.shape)) for entry in self.entries)
        return sum(entry.bytes for entry in self.entries) / max(1, voxels)


@dataclass(frozen=True)
class _Job:
    case: Case
    root: Path
    cache: Path
    settings: PrepareSettings
    key: str


def prepare(
    cases: Sequence[Case],
    root: str | Path,
    cache_dir: str | Path,
    settings: PrepareSettings | None = None,
    workers: int = 1,
    progress: bool = True,
    retry_rejected: bool = False,
) -> PrepareResult:
    """Make the entries that are missing in a cache.

    Any number of processes may prepare into the same folder; at worst they make an entry twice, equally.

    Args:
        cases: of a manifest; their paths are relative to ``root``.
        root: folder of the scans.
        cache_dir: folder of the entries; made where missing.
        settings: geometry.
        workers: processes. One reads in this process; more are spawned, each holds one scan in memory, and the death
            of one costs no more than the scan it was reading.
        progress: show a bar (or lines, where stderr is no terminal).
        retry_rejected: try scans again that were found unusable before, though neither they nor the reader changed.

    Returns:
        Entries for all cases that can be used, whether made now or before.

    Raises:
        InputError: no space is left, or the cache folder cannot be written.
    """
    root, cache = Path(root), _cache_folder(cache_dir)
    settings = settings or PrepareSettings()
    # Checking is waiting for the file system, so threads help also on one core.
    with ThreadPoolExecutor(16) as pool:
        known = list(pool.map(lambda case: _lookup(case, root, cache, settings, retry_rejected), cases))
    jobs = [item for item in known if isinstance(item, _Job)]
    result = PrepareResult(reused=sum(isinstance(item, PreparedEntry) for item in known))
    if jobs:
        # A cache that others have filled may be read-only as long as nothing is missing.
        if not os.access(cache, os.W_OK):
            raise InputError(
                f"the cache folder {cache} cannot be written to: choose another, or change its permissions"
            )
        fresh = _make(jobs, workers, progress, cache)
        result.made = sum(isinstance(item, PreparedEntry) for item in fresh.values())
        known = [fresh[item.key] if isinstance(item, _Job) else item for item in known]
    result.entries = [item for item in known if isinstance(item, PreparedEntry)]
    result.rejected = [
        replace(item, path=name_outside(item.path, root)) for item in known if isinstance(item, Rejection)
    ]
    return result


def _cache_folder(cache_dir: str | Path) -> Path:
    cache = Path(cache_dir)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the cache folder {cache} cannot be used: {error.strerror}") from None
    sweep(cache)
    return cache


def source_files(root: Path, case: Case) -> list[Path]:
    """All files that a case is read from, also the voxels that an MHD or NHDR header points to."""
    from voco.data.itk_path import detached_files

    if case.files:
        return [root / name for name in case.files]
    path = root / case.path
    if path.is_dir():
        return sorted(item for item in path.rglob("*") if item.is_file())
    return [path, *detached_files(path)]


def case_key(case: Case, root: Path, settings: PrepareSettings) -> str:
    """Name of the entry of a case: relative path, size and time of each source file, series, settings, format.

    Raises:
        ScanError: a source file is gone.
    """
    identity = []
    masks = [root / case.mask] if settings.mask and case.mask else []
    for path in [*source_files(root, case), *masks]:
        try:
            stat = path.stat()
        except OSError as error:
            raise ScanError(f"{case.path}: {error.strerror}") from None
        identity.append([os.path.relpath(path, root).replace(os.sep, "/"), stat.st_size, stat.st_mtime_ns])
    return entry_key(sorted(identity), case.series, settings.to_dict())


def _lookup(case: Case, root: Path, cache: Path, settings: PrepareSettings, retry: bool):
    try:
        key = case_key(case, root, settings)
    except ScanError as error:
        return Rejection(case.path, str(error).removeprefix(f"{case.path}: "), case.patient)
    path = entry_path(cache, key)
    footer = read_footer(path)
    if footer is not None:
        return _entry(case, path, footer)
    if not retry:
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads((cache / f"{key}{_REJECTED}").read_text())
            if found["reader"] == _reader():
                return Rejection(case.path, found["reason"], case.patient)
    return _Job(case, root, cache, settings, key)


@functools.cache
def _reader() -> str:
    """Digest of the code that reads: once it changes, it may be able to read what it refused before."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return entry_key(*(zlib.crc32(path.read_bytes()) for path in sources))


def _entry(case: Case, path: Path, footer: dict) -> PreparedEntry:
    shape, spacing, facts = footer["shape"], footer["spacing_mm"], footer["facts"]
    told = facts.get("synthetic", False), tuple(facts.get("notes", ()))
    return PreparedEntry(case, path, tuple(shape), tuple(spacing), footer["bytes"], *told)


def _make(jobs: list[_Job], workers: int, show: bool, cache: Path) -> dict[str, PreparedEntry | Rejection]:
    unique = list({job.key: job for job in jobs}.values())
    # Spread over the cohort, so that the first few foretell the whole.
    stride = max(1, len(unique) // _SAMPLE)
    order = [unique[i] for offset in range(stride) for i in range(offset, len(unique), stride)]
    if workers > 1 and len(order) > 1:
        outcomes = run_isolated(prepare_case, order, min(workers, len(order)))
    else:
        outcomes = ((index, prepare_case(job)) for index, job in enumerate(order))
    bar = Progress("prepare", len(order), show)
    done: dict[str, PreparedEntry | Rejection] = {}
    written = made = 0
    try:
        with contextlib.closing(outcomes):
            for index, outcome in outcomes:
                if isinstance(outcome, OSError):
                    raise InputError(_disk_message(cache, outcome))
                if isinstance(outcome, Crashed):
                    outcome = Rejection(order[index].case.path, outcome.reason, order[index].case.patient)
                done[order[index].key] = outcome
                bar.step()
                if isinstance(outcome, PreparedEntry):
                    written, made = written + outcome.bytes, made + 1
                    if made == _SAMPLE or made % 100 == 0:
                        _check_space(cache, written / made, len(order) - len(done), bar)
    finally:
        bar.close()
    return done


def _check_space(cache: Path, each: float, left: int, bar: Progress) -> None:
    free = shutil.disk_usage(cache).free
    if each * left > 0.98 * free:
        raise InputError(
            f"the disk of {cache} has {free / 1e9:.1f} GB free, and the {left} scans still to prepare need about "
            f"{each * left / 1e9:.1f} GB ({each / 1e6:.1f} MB each): free some, choose another cache folder, or a "
            "coarser spacing. What is prepared so far is kept"
        )
    if bar.done == _SAMPLE and left > 50:
        bar.say(f"about {each * left / 1e9:.1f} GB more for {left} scans; {free / 1e9:.1f} GB are free")


def _disk_message(cache: Path, error: OSError) -> str:
    return (
        f"writing to {cache} failed: {error.strerror}. What is prepared so far is kept: make room, or name another "
        "cache folder, and start the same command again"
    )


def prepare_case(job: _Job) -> PreparedEntry | Rejection | OSError:
    """Prepare one scan in the process that calls. Returns what came of it and raises nothing, whatever the scan."""
    from voco.data.read import read_volume

    try:
        files = [job.root / name for name in job.case.files] or None
        path = job.root / job.case.path
        volume = read_volume(path, series=job.case.series, files=files, offset=job.settings.offset)
        mask = read_mask(job.root / job.case.mask, volume) if job.settings.mask and job.case.mask else None
        facts = {
            "fingerprint": scan_fingerprint(volume.array, volume.spacing_mm),
            "synthetic": is_synthetic(source_files(job.root, job.case)[0]),
            **({"notes": list(volume.notes)} if volume.notes else {}),
        }
        array, spacing, meta = prepare_volume(volume, job.settings, mask)
    except ScanError as error:
        return _reject(job, str(error), sticky=True)
    except Exception as error:
        return _reject(job, _unforeseen(job, error), sticky=False)
    meta["case"] = {"id": job.case.id, "path": job.case.path, "patient": job.case.patient, "series": job.case.series}
    meta["key"], meta["version"] = job.key, __version__
    path = entry_path(job.cache, job.key)
    try:
        size = write_entry(path, array, spacing, meta, facts)
    except OSError as error:
        return OSError(error.errno, error.strerror or str(error))
    except Exception as error:
        return _reject(job, _unforeseen(job, error), sticky=False)
    return PreparedEntry(job.case, path, array.shape, spacing, size, facts["synthetic"], volume.notes)


def _unforeseen(job: _Job, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory to read and resample it: use fewer workers or a machine with more"
    # What a library says about a DICOM file may quote values of its header: only the kind is told.
    told = "" if job.case.files else f": {last_line(error)}"
    return f"cannot be prepared ({type(error).__name__}{told})"


def _reject(job: _Job, reason: str, sticky: bool) -> Rejection:
    # Reasons are stored and shown: the folder that the user keeps the scans in is nobody's business.
    if job.root != Path("."):
        reason = reason.replace(f"{job.root}{os.sep}", "").replace(f"{job.root}:", f"{job.case.path}:")
    reason = reason.removeprefix(f"{job.case.path}: ")
    if sticky:
        with contextlib.suppress(OSError):
            text = json.dumps({"reader": _reader(), "path": job.case.path, "reason": reason})
            write_bytes(job.cache / f"{job.key}{_REJECTED}", text.encode())
    return Rejection(job.case.path, reason, job.case.patient)


def prepare_volume(
    volume, settings: PrepareSettings, mask: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[float, float, float], dict]:
    """Crop and resample one volume.

    Args:
        volume: canonical, see ``voco.read_volume``.
        settings: geometry.
        mask: (D, H, W) bool on the volume's grid, used as ``settings.mask`` says; nothing is done without one.

    Returns:
        (D, H, W) int16 HU, its spacing in mm, and metadata: ``affine`` of the prepared grid, ``spacing_mm``, ``shape``,
        ``settings``, what the scan was before, and ``slices``: for each source slice its UID, z in mm, whether its
        voxels are in the scan, and its fractional D index in the prepared grid.
    """
    box = tuple(slice(0, size) for size in volume.array.shape)
    if settings.crop_body:
        box = body_box(volume.array, volume.spacing_mm)
    values = volume.array
    if mask is not None and settings.mask == "crop":
        box = mask_box(mask, volume.spacing_mm)
    elif mask is not None and settings.mask == "fill":
        values = np.where(mask, values, np.int16(AIR_HU))
    array, regular = resample(values[box], volume.spacing_mm, settings.spacing_mm, settings.antialias)
    array, spacing, shift = resize(array, regular, settings.size)
    scale = [new / old for new, old in zip(spacing, volume.spacing_mm)]
    # index in the scan of the first prepared voxel: a resize moves it by part of a voxel
    start = [part.start + s * mm / old for part, s, mm, old in zip(box, shift, regular, volume.spacing_mm)]
    meta = {
        "settings": settings.to_dict(),
        "shape": list(array.shape),
        "spacing_mm": list(spacing),
        "affine": rescale_affine(volume.affine, start, scale).tolist(),
        "source": {
            "study": volume.source.study,
            "shape": list(volume.array.shape),
            "spacing_mm": [float(mm) for mm in volume.spacing_mm],
            "box": [[part.start, part.stop] for part in box],
        },
        "slices": None,
    }
    if volume.slices is not None:
        index = (slice_depths(volume) - start[0]) / scale[0]
        meta["slices"] = [
            {"sop_uid": s.sop_uid, "z_mm": s.z_mm, "kept": s.kept, "index": float(i)}
            for s, i in zip(volume.slices, index)
        ]
    return np.ascontiguousarray(array), spacing, meta


def slice_depths(volume) -> np.ndarray:
    """Fractional D index of each source slice in the volume that was read from them; outside 0 .. D-1 it runs on.

    The first kept slice is plane 0. Where planes lean, what a millimetre of z is worth depends on how the slices follow
    each other: straight along z (gantry tilt) or along their normal (an oblique scan). The grid ends at the last
    slice, which tells the two apart.
    """
    z = np.array([info.z_mm for info in volume.slices])
    kept = np.array([info.kept for info in volume.slices])
    first, last = z[kept].min(), z[kept].max()
    step = volume.spacing_mm[0]
    lean = abs(volume.affine[2, 0]) / step
    slopes = (lean / step, 1 / (lean * step))
    slope = min(slopes, key=lambda value: abs((last - first) * value - (volume.array.shape[0] - 1)))
    return (z - first) * slope
