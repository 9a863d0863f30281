"""MetaImage and NRRD -> SimpleITK image, with the checks that ITK leaves out."""

from __future__ import annotations

import contextlib
import math
import re
import zlib
from pathlib import Path

from voco.data.volume import check_bytes, check_kind, last_line, quiet_itk
from voco.errors import ScanError

_META_BYTES = {"MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_FLOAT": 4, "MET_DOUBLE": 8}
_PER_AXIS = ("DimSize", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "CenterOfRotation")
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
# In a detached header: the line that names the files with the voxels.
_DATA_LINE = {".mhd": rb"(?im)^\s*ElementDataFile\s*=(.*)$", ".nhdr": rb"(?im)^\s*data ?file:(.*)$"}


def read_itk(path: Path):
    """Read a MetaImage or NRRD file.

    Raises:
        ScanError: damaged, incomplete, not a single volume, or its orientation is not known.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    meta = path.name.lower().endswith((".mha", ".mhd"))
    try:
        with quiet_itk():
            if meta:
                _check_meta(path)
            reader.ReadImageInformation()
            check_kind(reader.GetSize(), reader.GetNumberOfComponents(), str(path))
            if not meta:
                _check_nrrd(path, reader)
            image = reader.Execute()
    except ScanError:
        raise
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        raise ScanError(f"{path}: cannot be read, the file is damaged or incomplete ({last_line(error)})") from None
    return image[..., 0] if image.GetDimension() == 4 else image


def detached_files(path: Path) -> list[Path]:
    """Files with voxels that an MHD or NHDR header points to (one, a list, or a numbered pattern) and that exist."""
    line = _DATA_LINE.get(path.suffix.lower())
    if line is None or not path.is_file():
        return []
    with contextlib.suppress(OSError, ValueError, TypeError):
        with path.open("rb") as file:
            head = file.read(1 << 20)
        found = re.search(line, head)
        if found is None:
            return []
        value, rest = (part.decode("utf-8", "surrogateescape").strip() for part in (found[1], head[found.end() :]))
        names = [value]
        if value.upper().split(" ")[0] == "LIST":
            names = [name.strip() for name in rest.splitlines() if name.strip()]
        elif "%" in value:
            pattern, first, last, *step = value.split()
            numbers = range(int(first), int(last) + 1, int(step[0]) if step else 1)
            names = [pattern % number for number in numbers[: 1 << 16]]
        return [file for file in (path.parent / name for name in names) if file.is_file()]
    return []


def _check_nrrd(path: Path, reader) -> None:
    import SimpleITK as sitk

    if not (reader.HasMetaDataKey("NRRD_space") and reader.GetMetaData("NRRD_space").strip()):
        raise ScanError(
            f"{path}: the NRRD header has no 'space', so left and right, head and feet are not known; write it"
            " again with its orientation"
        )
    voxel = {sitk.sitkInt8: 1, sitk.sitkUInt8: 1, sitk.sitkInt16: 2, sitk.sitkUInt16: 2}.get(reader.GetPixelID(), 4)
    have = sum(file.stat().st_size for file in [path, *detached_files(path)])
    # Whether it is compressed is not told by ITK, which finds a raw file that is a little short.
    check_bytes(voxel * math.prod(reader.GetSize()), have, str(path), compressed=True)
    with path.open("rb") as file:
        head = file.read(1 << 20)
    end = re.search(rb"\r?\n\r?\n", head)
    if re.search(rb"(?im)^encoding: *gz", head[: end.start()] if end else head):
        beside = detached_files(path)
        for data, start in [(file, 0) for file in beside] if beside else [(path, end.end() if end else 0)]:
            with data.open("rb") as file:
                file.seek(start)
                zipped = file.read(2) == b"\x1f\x8b"  # not after "line skip" or "byte skip"
            if zipped:
                _check_stream(path, data, start)


def _check_stream(path: Path, data: Path, start: int) -> None:
    """Unpack a deflate stream for its checksum: ITK takes voxels from a damaged one without a word.

    Raises:
        ScanError: damaged, or cut off.
    """
    stream = zlib.decompressobj(47)  # zlib or gzip
    try:
        with data.open("rb") as file:
            file.seek(start)
            while not stream.eof and (piece := file.read(1 << 16)):
                stream.decompress(piece)
    except zlib.error as error:
        raise ScanError(f"{path}: damaged, its compressed voxels cannot be unpacked ({error}); copy it again") from None
    if not stream.eof:
        raise ScanError(f"{path}: incomplete, its compressed voxels end too early; copy it again")


def _check_meta(path: Path) -> None:
    """Check a MetaImage by hand: ITK fills the missing end of a short file, and prints when a header is damaged."""
    head = {}
    with path.open("rb") as file:
        for line in file:
            key, _, value = line.decode("latin-1").partition("=")
            head[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile" or file.tell() > 1 << 20:
                break
        at = file.tell()
    missing = [key for key in ("NDims", "DimSize", "ElementType", "ElementDataFile") if not head.get(key)]
    if missing:
        raise ScanError(f"{path}: cannot be read, the header has no {', '.join(missing)}; it is damaged or incomplete")
    size = [int(n) for n in head["DimSize"].split()]
    if not size or min(size) < 1:
        raise ScanError(f"{path}: cannot be read, the header gives a size of {head['DimSize']} voxels")
    # ITK takes lists of another length at their word, and memory with them.
    axes = int(head["NDims"])
    for key, value in head.items():
        wanted = axes if key in _PER_AXIS else axes**2 if key in _MATRIX else None
        if wanted is not None and len(value.split()) != wanted:
            raise ScanError(f"{path}: damaged, the header has NDims = {axes} and {key} = {value}")
    spacing = head.get("ElementSpacing", head.get("ElementSize", "1"))
    if not all(float(mm) > 0 for mm in spacing.split()):
        raise ScanError(f"{path}: voxel size {spacing} in the header; expected positive millimetres")
    name = head["ElementDataFile"]
    voxel = _META_BYTES.get(head["ElementType"].upper(), 1) * int(head.get("ElementNumberOfChannels", 1))
    compressed = head.get("CompressedData", "False").lower() == "true"
    if name.upper().startswith("LIST") or "%" in name:
        data, have = None, sum(file.stat().st_size for file in detached_files(path))
    else:
        data = path if name.upper() == "LOCAL" else path.parent / name
        if not data.is_file():
            raise ScanError(f"{path}: incomplete, its voxels should lie in {name}, which is not there")
        have = data.stat().st_size - (at if data == path else max(0, int(head.get("HeaderSize", 0))))
    if compressed:
        check_bytes(int(head.get("CompressedDataSize", 0)), have, str(path))
    check_bytes(voxel * math.prod(size), have, str(path), compressed)
    if compressed and data is not None:
        _check_stream(path, data, data.stat().st_size - have)
