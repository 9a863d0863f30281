"""MetaImage and NRRD -> SimpleITK image, with the checks that ITK leaves out."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

from voco.data.grid import UNITS_MM
from voco.data.itk_path import data_file, detached_files, itk_path
from voco.data.volume import check_bytes, check_kind, last_line, quiet_itk
from voco.errors import ScanError

_META_BYTES = {"MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_FLOAT": 4, "MET_DOUBLE": 8}
_PER_AXIS = ("DimSize", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "CenterOfRotation")
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
# Where left and right are known. ITK takes the axes of any other space, such as scanner-xyz, for LPS.
_SPACES = {
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las"),
    *("left-posterior-superior-time", "right-anterior-superior-time", "left-anterior-superior-time"),
    *("lpst", "rast", "last"),
}


def read_itk(path: Path):
    """Read a MetaImage or NRRD file.

    Raises:
        ScanError: damaged, incomplete, not a single volume, or its orientation is not known.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    meta = path.name.lower().endswith((".mha", ".mhd"))
    try:
        unit = _check_meta(path) if meta else _check_nrrd_header(path)
        with quiet_itk(), itk_path(path) as name:
            reader.SetFileName(str(name))
            reader.ReadImageInformation()
            check_kind(reader.GetSize(), reader.GetNumberOfComponents(), str(path))
            if not meta:
                _check_nrrd(path, reader)
            image = reader.Execute()
    except ScanError:
        raise
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        raise ScanError(f"{path}: cannot be read, the file is damaged or incomplete ({last_line(error)})") from None
    image = image[..., 0] if image.GetDimension() == 4 else image
    if unit != 1.0:  # ITK passes over the unit
        image.SetSpacing([mm * unit for mm in image.GetSpacing()])
        image.SetOrigin([mm * unit for mm in image.GetOrigin()])
    return image


def _unit_mm(path: Path, words: list[str]) -> float:
    """How many mm the one unit of all axes is; no unit is mm."""
    found = {UNITS_MM.get(word.strip().lower()) for word in words if word.strip()} or {1.0}
    if None in found or len(found) > 1:
        raise ScanError(f"{path}: lengths in {', '.join(words)}; expected one of {', '.join(UNITS_MM)} for all axes")
    return found.pop()


def _check_nrrd_header(path: Path) -> float:
    """Refuse a NRRD whose header leaves open where its voxels lie; return the mm of its unit.

    ITK takes an axis without a direction for one of 1 mm, and any space for LPS.
    """
    fields = _nrrd_fields(path)
    space, directions = fields.get("space", ""), fields.get("space directions", "")
    if not space or fields.get("dimension") in ("1", "2"):  # refused by what comes after
        return 1.0
    if space.lower() not in _SPACES:
        raise ScanError(
            f"{path}: NRRD space {space!r} does not say where left and right, head and feet are; expected"
            " left-posterior-superior, right-anterior-superior or left-anterior-superior: write it again with its"
            " orientation"
        )
    vectors = re.findall(r"\([^)]*\)", directions)
    wanted = 4 if space.lower().endswith(("time", "t")) else 3
    if len(vectors) != wanted:
        raise ScanError(
            f"{path}: {len(vectors)} directions in the NRRD header (space directions: {directions or 'not given'});"
            f" expected {wanted}, since voxel size and orientation of an axis without one are not known"
        )
    return _unit_mm(path, re.findall(r'"([^"]*)"', fields.get("space units", ""))[:3])


def _nrrd_fields(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        head = re.split(rb"\r?\n\r?\n", file.read(1 << 20), maxsplit=1)[0]
    lines = head.decode("latin-1").splitlines()[1:]
    pairs = (line.partition(":") for line in lines if not line.startswith("#") and ":=" not in line)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _check_nrrd(path: Path, reader) -> None:
    import SimpleITK as sitk

    if not _nrrd_fields(path).get("space"):
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


def _check_meta(path: Path) -> float:
    """Check a MetaImage by hand: ITK fills the missing end of a short file, and prints when a header is damaged.

    Returns:
        The mm of its unit.
    """
    head = {}
    with path.open("rb") as file:
        for line in file:
            key, _, value = line.decode("utf-8", "surrogateescape").partition("=")
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
    data = path if name.upper() == "LOCAL" else data_file(path, name)
    if data is None and (name.upper().startswith("LIST") or "%" in name):
        have = sum(file.stat().st_size for file in detached_files(path))
    elif data is None:
        raise ScanError(
            f"{path}: incomplete, its voxels should lie in {name}, which is not there; put that file beside the header,"
            " or name the right one there (ElementDataFile)"
        )
    else:
        have = data.stat().st_size - (at if data == path else max(0, int(head.get("HeaderSize", 0))))
    if compressed:
        check_bytes(int(head.get("CompressedDataSize", 0)), have, str(path))
    check_bytes(voxel * math.prod(size), have, str(path), compressed)
    if compressed and data is not None:
        _check_stream(path, data, data.stat().st_size - have)
    return _unit_mm(path, [head.get("DistanceUnits", "")])
