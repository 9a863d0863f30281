"""Prepared volumes on disk: one file per scan, int16 HU in compressed blocks, partial reads, never a torn entry.

A file is a blosc2 array (``.b2nd``; ``blosc2.open`` reads it too) followed by a footer with its length and a checksum
per chunk. It is written under a temporary name, synced, and renamed, so that any number of processes may prepare into
one folder. A reader checks the footer on opening and each chunk the first time that it touches it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from voco.data.resample import AIR_HU
from voco.errors import ScanError
from voco.files import write_bytes
from voco.short_repr import grid_text

# Part of every key: raise it when reading, resampling or the file changes what a prepared scan holds.
FORMAT_VERSION = 3
SUFFIX = ".b2nd"
# Zstd with byte shuffle is both smaller and faster to read on CT than bit shuffle (measured on nine scans).
_CHUNK, _BLOCK, _LEVEL = 64, 32, 5
_META = "voco"
_MAGIC = b"VOCO-CT1"
_TAIL = struct.Struct("<II8s")  # checksum of the footer text, its length, magic


class EntryError(ScanError):
    """A cache entry that is missing, torn or damaged."""


def entry_key(*parts: object) -> str:
    """32 hex digits from anything that JSON can hold; the file name of an entry is made of it."""
    text = json.dumps([FORMAT_VERSION, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def entry_path(folder: str | Path, key: str) -> Path:
    """Where the entry ``key`` lies in a cache folder."""
    return Path(folder) / f"{key}{SUFFIX}"


def write_entry(
    path: str | Path, array: np.ndarray, spacing_mm: Sequence[float], meta: dict, facts: dict | None = None
) -> int:
    """Store a volume; the entry appears whole or not at all.

    Args:
        path: file to make, ``<key>.b2nd``.
        array: (D, H, W) int16 HU.
        spacing_mm: (D, H, W) mm.
        meta: anything JSON can hold; read back as ``PreparedVolume.meta``.
        facts: some kilobytes of JSON for the footer, which ``read_footer`` gives without opening the volume.

    Returns:
        Bytes on disk.
    """
    path = Path(path)
    array = np.ascontiguousarray(array)
    if array.dtype != np.int16 or array.ndim != 3 or 0 in array.shape:
        raise ScanError(f"a prepared volume is a filled (D, H, W) int16 array, not {array.shape} {array.dtype}")
    text = json.dumps({**meta, "voxels_crc32": zlib.crc32(array)}, sort_keys=True)
    frame, chunks = _compress(array, text)
    footer = {
        "format": FORMAT_VERSION,
        "key": path.name.removesuffix(SUFFIX),
        "shape": list(array.shape),
        "spacing_mm": [float(mm) for mm in spacing_mm],
        "frame_bytes": len(frame),
        "chunks": chunks,
        "facts": facts or {},
    }
    data = json.dumps(footer, separators=(",", ":")).encode()
    write_bytes(path, frame, data, _TAIL.pack(zlib.crc32(data), len(data), _MAGIC))
    return len(frame) + len(data) + _TAIL.size


def _blosc2():
    import blosc2

    # One thread in every process before any use: a forked worker hangs on a thread pool it inherited.
    blosc2.set_nthreads(1)
    return blosc2


def _compress(array: np.ndarray, meta: str) -> tuple[bytes, dict]:
    blosc2 = _blosc2()
    chunks = tuple(min(_CHUNK, size) for size in array.shape)
    stored = blosc2.asarray(
        array,
        chunks=chunks,
        blocks=tuple(min(_BLOCK, size) for size in chunks),
        cparams=blosc2.CParams(
            codec=blosc2.Codec.ZSTD,
            clevel=_LEVEL,
            filters=[blosc2.Filter.SHUFFLE],
            filters_meta=[0],
            typesize=2,
            nthreads=1,
        ),
        dparams=blosc2.DParams(nthreads=1),
    )
    stored.schunk.vlmeta[_META] = meta
    frame = stored.to_cframe()
    # From the frame, as a reader will see them: in memory, chunks of zeros look different. The name keeps it alive.
    view = blosc2.ndarray_from_cframe(frame)
    return frame, _chunk_table(frame, view)


def _chunk_table(frame: bytes, view) -> dict:
    """Part the bytes of a frame into one region per chunk and the rest around them, with a checksum of each.

    A reader checks the bytes before blosc2 sees them: damaged ones can crash it. Where a chunk lies is found by its
    bytes. Chunks of zeros are in the index of the frame alone and get no region. Were a chunk with content not there as
    such, nothing would be parted, and the whole frame be checked on opening.
    """
    chunks = [view.schunk.get_chunk(number) for number in range(view.schunk.nchunks)]
    starts, at = {}, 0
    for number, chunk in enumerate(chunks):
        if len(chunk) > _blosc2().MAX_OVERHEAD:
            start = frame.find(chunk, at)
            if start < 0:
                starts = {}
                break
            starts[number], at = start, start + len(chunk)
    bounds = [*starts.values(), at] if starts else [len(frame)]
    sizes = dict(zip(starts, (end - start for start, end in pairwise(bounds))))
    around = zlib.crc32(frame[bounds[-1] :], zlib.crc32(frame[: bounds[0]]))
    return {
        "first": bounds[0],
        "sizes": [sizes.get(number, 0) for number in range(len(chunks))],
        "crc32": [
            zlib.crc32(frame[starts[n] : starts[n] + sizes[n]]) if n in starts else 0 for n in range(len(chunks))
        ],
        "around_crc32": around,
    }


def read_footer(path: str | Path) -> dict | None:
    """The footer of an entry, or None where the file is missing, torn, or was written under another name or format.

    One open and one small read, so that a cohort can be checked quickly.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = os.pread(file.fileno(), 16384, max(0, size - 16384))
            if len(data) < _TAIL.size:
                return None
            check, length, magic = _TAIL.unpack(data[-_TAIL.size :])
            if magic != _MAGIC or length + _TAIL.size > size:
                return None
            if length + _TAIL.size > len(data):
                data = os.pread(file.fileno(), length + _TAIL.size, size - length - _TAIL.size)
    except OSError:
        return None
    text = data[-_TAIL.size - length : -_TAIL.size]
    if zlib.crc32(text) != check:
        return None
    footer = json.loads(text)
    whole = footer["frame_bytes"] + length + _TAIL.size == size
    footer["bytes"] = size
    named = footer["key"] == path.name.removesuffix(SUFFIX)
    return footer if whole and named and footer["format"] == FORMAT_VERSION else None


class PreparedVolume:
    """A prepared volume, read in parts.

    Opening reads the footer alone. The blosc2 handle is made by the process that reads, never inherited through a
    fork and never pickled, with one thread.

    Attributes:
        shape: (D, H, W).
        spacing_mm: (D, H, W), mm.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        footer = read_footer(self.path)
        if footer is None:
            state = "is damaged or of another format" if self.path.exists() else "does not exist"
            raise EntryError(f"cache entry {self.path} {state}: run voco prepare again, it makes only what is missing")
        self.shape: tuple[int, int, int] = tuple(footer["shape"])
        self.spacing_mm: tuple[float, float, float] = tuple(footer["spacing_mm"])
        self._footer = footer
        table = footer["chunks"]
        self._offsets = list(accumulate(table["sizes"], initial=table["first"]))
        self._handle = None
        self._pid = -1
        self._checked: set[int] = set()
        self._meta: dict | None = None

    @classmethod
    def open(cls, path: str | Path) -> PreparedVolume:
        """Open an entry.

        Raises:
            EntryError: missing, torn or damaged.
        """
        return cls(path)

    def __repr__(self) -> str:
        return f"PreparedVolume({grid_text(self.shape, self.spacing_mm)}, {self.path})"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handle": None, "_pid": -1, "_checked": set()}

    @property
    def meta(self) -> dict:
        """What was stored with the volume: case, settings, affine, slices."""
        if self._meta is None:
            with self._errors():
                self._meta = json.loads(self._open().schunk.vlmeta[_META])
        return self._meta

    def read(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """Read a box; what lies outside the volume is air (-1024 HU).

        Args:
            start: (D, H, W) voxel index of the first voxel; may be negative.
            size: (D, H, W) voxels; the result has exactly this shape.

        Raises:
            EntryError: the file is damaged in the part that was asked for.
        """
        return _read_box(self.shape, start, size, self._stored)

    def _stored(self, box: tuple[slice, ...]) -> np.ndarray:
        with self._errors():
            stored = self._open()
            self._check_chunks(stored.chunks, box)
            return stored[box]

    def verify(self) -> None:
        """Read everything and compare with the checksum of the voxels that were stored.

        Raises:
            EntryError: they differ.
        """
        if zlib.crc32(self.read((0, 0, 0), self.shape)) != self.meta["voxels_crc32"]:
            raise self._damaged("voxels")

    def _open(self):
        if self._handle is None or self._pid != os.getpid():
            table = self._footer["chunks"]
            last = table["first"] + sum(table["sizes"])
            with open(self.path, "rb", buffering=0) as file:
                head = os.pread(file.fileno(), table["first"], 0)
                tail = os.pread(file.fileno(), self._footer["frame_bytes"] - last, last)
            if zlib.crc32(tail, zlib.crc32(head)) != table["around_crc32"]:
                raise self._damaged("header or index")
            self._handle, self._pid, self._checked = _blosc2().open(str(self.path), mode="r"), os.getpid(), set()
        return self._handle

    def _check_chunks(self, chunk_shape: Sequence[int], box: tuple[slice, ...]) -> None:
        grid = [-(-n // c) for n, c in zip(self.shape, chunk_shape)]
        touched = [range(b.start // c, -(-b.stop // c)) for b, c in zip(box, chunk_shape)]
        numbers = {(d * grid[1] + h) * grid[2] + w for d in touched[0] for h in touched[1] for w in touched[2]}
        fresh = sorted(numbers - self._checked)
        if not fresh:
            return
        table = self._footer["chunks"]
        with open(self.path, "rb", buffering=0) as file:
            for number in fresh:
                size = table["sizes"][number]
                if zlib.crc32(os.pread(file.fileno(), size, self._offsets[number])) != table["crc32"][number]:
                    raise self._damaged(f"chunk {number}")
        self._checked.update(fresh)

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except EntryError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error

    def _damaged(self, what: str) -> EntryError:
        return EntryError(f"cache entry {self.path} is damaged ({what}): delete this file and run voco prepare again")


class PreparedArray:
    """A prepared volume in memory; it is read as one on disk is.

    Args:
        array: (D, H, W) int16 HU.
        spacing_mm: (D, H, W), mm.
        meta: as ``prepare_volume`` gives it.
    """

    def __init__(self, array: np.ndarray, spacing_mm: Sequence[float], meta: dict):
        self.array, self.shape, self.spacing_mm, self.meta = array, array.shape, tuple(spacing_mm), meta

    def __repr__(self) -> str:
        return f"PreparedArray({grid_text(self.shape, self.spacing_mm)})"

    def read(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """As ``PreparedVolume.read``."""
        return _read_box(self.shape, start, size, self.array.__getitem__)


def _read_box(shape: Sequence[int], start: Sequence[int], size: Sequence[int], stored: Callable) -> np.ndarray:
    """A box of a volume of which ``stored(slices)`` gives the inside, with air where it sticks out."""
    out = np.full(tuple(size), AIR_HU, np.int16)
    low = [max(0, s) for s in start]
    high = [min(n, s + k) for n, s, k in zip(shape, start, size, strict=True)]
    if any(a >= b for a, b in zip(low, high)):
        return out
    inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start))
    out[inside] = stored(tuple(slice(int(a), int(b)) for a, b in zip(low, high)))
    return out
