"""A short look at the voxels of a volume file: its grid, range and distinct values, as few bytes as will do.

The readers refuse what is no CT; this tells what it is instead. It knows the common forms of the formats only, and says
nothing about a file in another form.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voco.data.itk_path import detached_files
from voco.short_repr import short_repr

# More distinct values than this are not counted.
MAX_VALUES = 256
# A value below this, among many, is of a CT: nothing else has so many so far below zero.
SURELY_HU = -200
_CHUNK = 1 << 16
# About so many voxels are kept.
_SAMPLE = 1 << 16
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    "signed char": "i1", "int8": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1",
    "uint8_t": "u1", "short": "i2", "short int": "i2", "signed short": "i2", "int16": "i2", "int16_t": "i2",
    "ushort": "u2", "unsigned short": "u2", "uint16": "u2", "uint16_t": "u2", "int": "i4", "signed int": "i4",
    "int32": "i4", "int32_t": "i4", "uint": "u4", "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4",
    "float": "f4", "double": "f8",
}  # fmt: skip


@short_repr
@dataclass(frozen=True)
class Peek:
    """What was seen of a volume.

    Attributes:
        grid: size and voxel size in mm, rounded, along the axes of the file.
        low, high: smallest and largest value seen, rescaled as the header says.
        values: the distinct ones in order, None if there are more than ``MAX_VALUES``.
        whole: whether all of them are whole numbers.
        smooth: share of voxels off the most common value that equal the voxel before them: 1 in large flat pieces.
        sample: evenly thinned values, to look at their distribution.
        complete: whether all voxels were looked at.
    """

    grid: tuple
    low: float
    high: float
    values: np.ndarray | None
    whole: bool
    smooth: float
    sample: np.ndarray
    complete: bool


@dataclass(frozen=True)
class NoVolume:
    """A file that holds voxels, but not one volume of one number each: why."""

    seen: str


@dataclass(frozen=True)
class _Stream:
    """Where the voxels lie and how they are stored; ``start`` is for the first file."""

    paths: tuple[Path, ...]
    start: int
    compression: str
    kind: np.dtype
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    rescale: tuple[float, float] = (1.0, 0.0)


def peek(path: Path, most: int | None = None) -> Peek | NoVolume | None:
    """Look at the voxels of a NIfTI, MetaImage or NRRD file until it is clear what they are.

    Args:
        path: the file.
        most: look at this many voxels at most.

    Returns:
        What was seen, or None where the file is damaged or in an uncommon form.
    """
    try:
        # A pipe would be waited for.
        stream = _open(path) if path.is_file() else None
        if not isinstance(stream, _Stream):
            return stream
        axes = sum(n > 1 for n in stream.size)
        if axes != 3 or any(n > 1 for n in stream.size[3:]):
            return NoVolume(f"{' x '.join(map(str, stream.size))} voxels")
        return _look(stream, most) if stream.paths and stream.paths[0].is_file() else None
    except Exception:
        # Headers of strangers raise anything; what is wrong with the file is for its reader to say.
        return None


def _look(stream: _Stream, most: int | None) -> Peek | None:
    total = math.prod(stream.size)
    slope, inter = stream.rescale
    values = _Distinct(stream.kind)
    seen, low, high, whole = 0, math.inf, -math.inf, True
    equal, pairs, common = 0, 0, None
    thinned: list[np.ndarray] = []
    step = max(1, total // _SAMPLE)
    for chunk in _voxels(stream, total if most is None else min(most, total)):
        ends = sorted((float(chunk.min()) * slope + inter, float(chunk.max()) * slope + inter))
        if not np.isfinite(ends).all():
            return None
        seen, low, high = seen + len(chunk), min(low, ends[0]), max(high, ends[1])
        flat = ends[0] == ends[1]  # the background of a mask, most of it
        values.add(chunk[:1] if flat else chunk)
        if values.many and low <= SURELY_HU:
            break
        if chunk.dtype.kind == "f" or stream.rescale != (1.0, 0.0):
            whole = whole and bool((np.rint(part := chunk * slope + inter) == part).all())
        # The corner of a volume is outside of what it shows.
        common = chunk[0] if common is None else common
        if not flat or chunk[0] != common:
            off = chunk[1:] != common
            pairs, equal = pairs + int(off.sum()), equal + int((off & (chunk[1:] == chunk[:-1])).sum())
        thinned.append(chunk[::step].astype(np.float64) * slope + inter)
    if not seen:
        return None
    return Peek(
        grid=(tuple(stream.size[:3]), tuple(round(mm, 2) for mm in stream.spacing[:3])),
        low=low,
        high=high,
        values=None if values.many else np.sort(values.found() * slope + inter),
        whole=whole,
        smooth=equal / pairs if pairs else 1.0,
        sample=np.concatenate(thinned) if thinned else np.empty(0),
        complete=seen >= total,
    )


class _Distinct:
    """The distinct stored values of a volume, until there are many."""

    def __init__(self, kind: np.dtype):
        self.many = False
        self.small = kind.kind in "iu" and kind.itemsize <= 2
        self.first = np.iinfo(kind).min if self.small else 0
        self.hit = np.zeros(1 << 16, bool) if self.small else np.empty(0)

    def add(self, chunk: np.ndarray) -> None:
        if self.many:
            return
        if self.small:
            self.hit[chunk.astype(np.int32) - self.first] = True
        else:
            self.hit = np.union1d(self.hit, chunk)
        self.many = len(self.found()) > MAX_VALUES

    def found(self) -> np.ndarray:
        return np.flatnonzero(self.hit) + self.first if self.small else self.hit.astype(np.float64)


def _voxels(stream: _Stream, count: int) -> Iterator[np.ndarray]:
    """Stored values in the order of the file, a small piece first."""
    left, rest = count * stream.kind.itemsize, b""
    for path, start in zip(stream.paths, (stream.start, *[0] * len(stream.paths))):
        for data in _bytes(path, start, stream.compression):
            whole = min(len(rest) + len(data), left) // stream.kind.itemsize * stream.kind.itemsize
            data, rest = (rest + data)[:whole], (rest + data)[whole:]
            left -= whole
            if whole:
                yield np.frombuffer(data, stream.kind)
            if left <= 0:
                return


def _bytes(path: Path, start: int, compression: str) -> Iterator[bytes]:
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        if compression == "gzip" and not start:
            file = stack.enter_context(gzip.open(file))
        elif compression == "gzip" and path.name.lower().endswith(".gz"):
            file = stack.enter_context(gzip.open(file))
            file.read(start)
        else:
            file.seek(start)
            file = stack.enter_context(gzip.open(file)) if compression == "gzip" else file
        unpack = zlib.decompressobj() if compression == "zlib" else None
        size = _CHUNK
        while raw := (unpack.unconsumed_tail if unpack else b"") or file.read(size):
            yield unpack.decompress(raw, size) if unpack else raw
            size = 8 * _CHUNK


def _open(path: Path) -> _Stream | NoVolume | None:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _nifti(path)
    with path.open("rb") as file:
        head = file.read(_CHUNK)
    return _meta(path, head) if name.endswith((".mhd", ".mha")) else _nrrd(path, head)


def _nifti(path: Path) -> _Stream | NoVolume | None:
    import nibabel

    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as file:
        head = file.read(540)
    second = (540).to_bytes(4, "little"), (540).to_bytes(4, "big")
    kind = nibabel.Nifti2Header if head[:4] in second else nibabel.Nifti1Header
    header = kind.from_fileobj(io.BytesIO(head), check=False)
    dtype = header.get_data_dtype()
    if dtype.fields or dtype.kind not in "iuf":
        return NoVolume("colour" if dtype.fields else "complex numbers")
    if zipped != path.name.lower().endswith(".gz"):
        return None
    slope, inter = (float(header[key]) for key in ("scl_slope", "scl_inter"))
    rescale = (slope, inter) if math.isfinite(slope) and slope and math.isfinite(inter) else (1.0, 0.0)
    shape, zooms = header.get_data_shape(), header.get_zooms()
    start = int(header["vox_offset"]) or header.sizeof_hdr + 4
    return _Stream((path,), start, "gzip" if zipped else "", dtype, shape, tuple(float(z) for z in zooms), rescale)


def _meta(path: Path, head: bytes) -> _Stream | NoVolume | None:
    end = re.search(rb"(?m)^ElementDataFile *=.*\n?", head)
    if end is None:
        return None
    lines = (line.partition("=") for line in head[: end.end()].decode("latin-1").splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    if (channels := int(fields.get("ElementNumberOfChannels", 1))) != 1:
        return NoVolume(f"{channels} values per voxel")
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    kind = np.dtype(_META_TYPES[fields["ElementType"]]).newbyteorder(">" if big else "<")
    spacing = fields.get("ElementSpacing", fields.get("ElementSize", "1 1 1")).split()
    local = fields["ElementDataFile"].upper() == "LOCAL"
    skip = int(fields.get("HeaderSize", 0))
    data, start = ((path,), end.end()) if local else (tuple(detached_files(path)), max(0, skip))
    packed = "zlib" if fields.get("CompressedData", "False").lower() == "true" else ""
    if skip < 0 or (packed and (skip or len(data) > 1)):
        return None
    size = tuple(int(n) for n in fields["DimSize"].split())
    return _Stream(data, start, packed, kind, size, tuple(float(mm) for mm in spacing))


def _nrrd(path: Path, head: bytes) -> _Stream | NoVolume | None:
    end = re.search(rb"\r?\n\r?\n", head)
    text = (head[: end.start()] if end else head).decode("latin-1").splitlines()
    pairs = (line.partition(":") for line in text if ":" in line and not line.startswith("#"))
    fields = {key.strip().lower().replace(" ", ""): value.strip() for key, _, value in pairs}
    size = tuple(int(n) for n in fields["sizes"].split())
    vectors = fields.get("spacedirections", "")
    if len(size) > 3 and sum(n > 1 for n in size) > 3:
        return NoVolume(f"{' x '.join(map(str, size))} voxels")
    if "none" in vectors.split():  # an axis without a direction, which is of length 1, is none of space
        axes = re.findall(r"none|\([^)]*\)", vectors)
        size = tuple(n for n, axis in zip(size, axes) if axis != "none" or n > 1)
    skip = int(fields.get("byteskip", 0))
    kind = np.dtype(_NRRD_TYPES[fields["type"].lower()])
    kind = kind.newbyteorder(">" if fields.get("endian", "little").lower() == "big" else "<")
    packed = {"raw": "", "gz": "gzip", "gzip": "gzip"}[fields["encoding"].lower()]
    rows = re.findall(r"\(([^)]*)\)", vectors)
    spacing = [math.hypot(*(float(v) for v in row.split(","))) for row in rows] or [1.0, 1.0, 1.0]
    detached = "datafile" in fields
    data = tuple(detached_files(path)) if detached else (path,)
    if "lineskip" in fields or (skip and packed) or not data or (end is None and not detached):
        return None
    start = skip if skip >= 0 else data[0].stat().st_size - math.prod(size) * kind.itemsize
    return _Stream(data, start + (0 if detached or skip < 0 else end.end()), packed, kind, size, tuple(spacing))
