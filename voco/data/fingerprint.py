"""What is kept of a scan so that it is recognised later: hashes of its voxels, a small picture, landmarks, its patient.

A pretraining run writes the fingerprints of its scans beside the encoder. From them nobody gets the scans back: the
picture has 12 x 12 x 12 voxels of about 3 cm, landmarks are means over rings, and names are stored as digests.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import re
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from voco.data.landmarks import LANDMARKS, WIDTH, Landmarks, find_landmarks
from voco.data.privacy import hash_patient_id
from voco.errors import InputError
from voco.files import write_bytes
from voco.short_repr import short_repr

if TYPE_CHECKING:
    from voco.data.prepare import PreparedEntry

FILE = "fingerprints.npz"
SIGNATURE_SHAPE = (12, 12, 12)
# Raise it, and FORMAT_VERSION of the cache, when a hash or a signature of the same scan comes out otherwise.
VERSION = 2
# Version 1 had no hash of the tissue and no landmarks; its files are read, and what they lack is not looked for.
READABLE = (1, VERSION)
_WINDOW_HU = (-200.0, 200.0)
_BODY_HU, _ABOVE_AIR_HU = -400.0, 25.0
_SAMPLE_MM = 3.0
_SIGNATURE_SIZE = int(np.prod(SIGNATURE_SHAPE))
_HASH_BYTES, _NAME_BYTES = 16, 8
_HASHED = re.compile(r"p-[0-9a-f]{12}")
# With a number below 1000, or alone, these are the names of somebody in every data set.
_ANYBODY = (
    *("patient", "pat", "pt", "p", "case", "subject", "subj", "sub", "s", "id", "anon", "anonymous", "anonymized"),
    *("anonymised", "unknown", "none", "no name", "na", "test", "train", "val", "trn", "tst", "scan", "ct", "ct chest"),
    *("image", "img", "volume", "vol", "series", "study", "phantom", "pair", "chest", "abdomen", "thorax", "data", ""),
)
_TISSUE_HU, _LEAST_TISSUE, _LEAST_VALUES = -500, 500, 20


def voxel_hash(array: np.ndarray) -> str:
    """32 hex digits of a canonical int16 volume; the file format, its data type and its orientation do not matter.

    Args:
        array: (D, H, W) int16 HU as ``voco.read_volume`` gives it.
    """
    digest = hashlib.blake2b(repr(tuple(array.shape)).encode(), digest_size=_HASH_BYTES)
    digest.update(np.ascontiguousarray(array, "<i2"))
    return digest.hexdigest()


def tissue_hash(array: np.ndarray) -> str:
    """32 hex digits that stay where a scan is mirrored, turned by right angles, padded with air or 0, or shuffled.

    It is a hash of how often each value above -500 HU occurs. Two scans of different people with the same number of
    voxels at each of some hundred values do not occur. Empty for scans with too little tissue to say so.

    Args:
        array: (D, H, W) int16 HU.
    """
    count = np.zeros(65536, np.int64)
    for part in array:  # slice by slice: no copy of the volume
        count += np.bincount(part.ravel().astype(np.int32) + 32768, minlength=65536)
    count = count[32768 + _TISSUE_HU :].copy()
    count[-_TISSUE_HU] = 0  # what some tools pad with
    if count.sum() < _LEAST_TISSUE or (count > 0).sum() < _LEAST_VALUES:
        return ""
    return hashlib.blake2b(np.ascontiguousarray(count, "<i8"), digest_size=_HASH_BYTES).hexdigest()


def signature(array: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """A small picture of the body: means of the cells of a 12 x 12 x 12 grid over its bounding box.

    Values are cut to -200 to 200 HU first, so that scans that were stored in a window, or in 8 bits, look alike.

    Args:
        array: (D, H, W) int16 HU.
        spacing_mm: (D, H, W) mm.

    Returns:
        (12, 12, 12) uint8.
    """
    from voco.data.resample import body_box

    # In a scan stored in a narrow window, air is the lower end of the window.
    tissue = max(_BODY_HU, float(array.min()) + _ABOVE_AIR_HU)
    body = array[body_box(array, spacing_mm, threshold_hu=tissue, margin_mm=0.0)]
    steps = [max(1, int(_SAMPLE_MM / mm)) for mm in spacing_mm]
    low, high = _WINDOW_HU
    small = np.clip(body[:: steps[0], :: steps[1], :: steps[2]].astype(np.float64), low, high)
    for axis, cells in enumerate(SIGNATURE_SHAPE):
        small = _cell_means(small, axis, cells)
    return np.rint((small - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)


def _cell_means(array: np.ndarray, axis: int, cells: int) -> np.ndarray:
    """Means of ``cells`` equal parts of an axis; a voxel on a border counts for both by its share."""
    size = array.shape[axis]
    total = np.concatenate([np.zeros_like(array.take([0], axis)), np.cumsum(array, axis)], axis)
    edges = np.linspace(0, size, cells + 1)
    below = np.minimum(edges.astype(int), size)
    share = (edges - below).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    low, high = total.take(below, axis), total.take(np.minimum(below + 1, size), axis)
    return np.diff(low + (high - low) * share, axis=axis) * (cells / size)


def scan_fingerprint(array: np.ndarray, spacing_mm: Sequence[float]) -> dict:
    """Hashes, signature and landmarks of a scan as plain JSON, for the footer of its prepared file.

    Args:
        array: (D, H, W) int16 HU of the whole scan, before it is cropped or resampled.
        spacing_mm: (D, H, W) mm.
    """
    places, looks = find_landmarks(array, spacing_mm).packed()
    arrays = {"signature": signature(array, spacing_mm), "places": places.astype("<i2"), "looks": looks}
    texts = {name: base64.b64encode(value.tobytes()).decode() for name, value in arrays.items()}
    return {"version": VERSION, "voxels": voxel_hash(array), "tissue": tissue_hash(array), **texts}


def patient_digest(name: str) -> bytes:
    """8 bytes that tell patients apart, zeros for a name that may be anybody's (``patient_007``, ``1``, ``anonymous``).

    A PatientID of a DICOM header, which is kept hashed, and the same text as a folder, a file name or a column give
    the same digest. Letter case, folders above and file endings do not count.
    """
    text = name.encode("utf-8", "backslashreplace").decode().strip()  # a folder's name need not be UTF-8
    if not _HASHED.fullmatch(text):
        text = re.sub(r"\.(nii\.gz|nii|mha|mhd|nrrd|nhdr|dcm)$", "", text.rstrip("/").split("/")[-1], flags=re.I)
        if _is_anybody(text):
            return bytes(_NAME_BYTES)
        text = hash_patient_id(text)
    return bytes(_NAME_BYTES) if text in _anybody_digests() else _short(text)


def _is_anybody(text: str) -> bool:
    words = " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())
    match = re.fullmatch(r"([a-z ]*?) ?(\d*)", words)
    return bool(match) and match.group(1).strip() in _ANYBODY and len(match.group(2).lstrip("0")) <= 3


@functools.cache
def _anybody_digests() -> frozenset[str]:
    """Of the commonest placeholders that stand in DICOM headers, where the text itself is not kept."""
    numbers = {f"{n:0{width}d}" for n in range(1000) for width in (1, 2, 3, 4)}
    words = {form for word in _ANYBODY for form in (word, word.upper(), word.capitalize())}
    return frozenset(hash_patient_id(text) for text in numbers | words)


def data_set_digest(name: str) -> bytes:
    """8 bytes of a data set's name; letter case, blanks, ``-``, ``_`` and ``.`` do not count."""
    return _short(re.sub(r"[\s._-]+", "", name.lower()))


def _short(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:_NAME_BYTES]


_COLUMNS, _LATER = ("voxels", "signatures", "patients", "trained"), ("tissue", "places", "looks")


@short_repr
@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of N scans.

    Attributes:
        voxels: (N, 16) uint8 hashes.
        signatures: (N, 1728) uint8.
        patients: (N, 8) uint8 digests, zeros where the patient is not known by a name of his own.
        trained: (N,) bool; False for scans that were held out: looked at, but never trained on.
        data_sets: digests of the names of the data sets that the scans come from, as far as they were named.
        tissue: (N, 16) uint8 hashes that mirrors and padding leave alone, zeros where there is too little tissue; None
            in files of version 1.
        places: (N, LANDMARKS, 3) int16, see ``Landmarks.packed``; None in files of version 1.
        looks: (N, LANDMARKS, WIDTH) uint8, likewise.
    """

    voxels: np.ndarray
    signatures: np.ndarray
    patients: np.ndarray
    trained: np.ndarray
    data_sets: frozenset[bytes] = frozenset()
    tissue: np.ndarray | None = None
    places: np.ndarray | None = None
    looks: np.ndarray | None = None

    @property
    def is_old(self) -> bool:
        """Whether they are of version 1, by which mirrored, turned and cut scans are not found."""
        return self.looks is None

    def landmarks(self, number: int) -> Landmarks:
        """Landmarks of one scan."""
        return Landmarks.unpacked(self.places[number], self.looks[number])

    def __len__(self) -> int:
        return len(self.voxels)

    @classmethod
    def of_entries(
        cls, entries: Sequence[PreparedEntry], *, trained: bool | Sequence[bool] = True, data_sets: Sequence[str] = ()
    ) -> Fingerprints:
        """Of prepared scans, from the footers of their files.

        Args:
            entries: prepared scans.
            trained: of all, or of each.
            data_sets: names of the data sets that they come from.

        Raises:
            InputError: a prepared file is gone, damaged or of an earlier version.
        """
        with ThreadPoolExecutor(16) as pool:
            rows = list(pool.map(_read, (entry.path for entry in entries)))
        count = len(rows)

        def column(name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
            return np.frombuffer(b"".join(row[name] for row in rows), kind).reshape(count, *shape)

        def hashes(name: str) -> np.ndarray:
            data = b"".join(row[name] or bytes(_HASH_BYTES) for row in rows)
            return np.frombuffer(data, np.uint8).reshape(count, _HASH_BYTES)

        names = b"".join(patient_digest(entry.case.patient) for entry in entries)
        return cls(
            hashes("voxels"),
            column("signature", "u1", (_SIGNATURE_SIZE,)),
            np.frombuffer(names, np.uint8).reshape(count, _NAME_BYTES),
            np.broadcast_to(np.asarray(trained, bool), count).copy(),
            frozenset(data_set_digest(name) for name in data_sets),
            hashes("tissue"),
            column("places", "<i2", (LANDMARKS, 3)),
            column("looks", "u1", (LANDMARKS, WIDTH)),
        )

    def to_bytes(self) -> bytes:
        """As one compressed ``.npz`` file; the same scans give the same bytes."""
        arrays = {
            "version": np.array([1 if self.is_old else VERSION]),
            **{name: getattr(self, name) for name in (*_COLUMNS, *(() if self.is_old else _LATER))},
            "data_sets": np.array([list(d) for d in sorted(self.data_sets)], np.uint8).reshape(-1, _NAME_BYTES),
        }
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                part = io.BytesIO()
                np.lib.format.write_array(part, np.ascontiguousarray(array), allow_pickle=False)
                # numpy's own writer stamps the time of day into the archive
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue(), zipfile.ZIP_DEFLATED)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, name: str = FILE) -> Fingerprints:
        """Read what ``to_bytes`` gave.

        Raises:
            InputError: damaged, or of a version whose hashes cannot be compared.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                version = int(found["version"][0])
                arrays = {key: found[key] for key in (*_COLUMNS, "data_sets", *(_LATER if version > 1 else ()))}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{name} is no file of fingerprints, or a damaged one: {error}") from None
        if version not in READABLE:
            raise InputError(
                f"{name} holds fingerprints of version {version}, this voco compares version {VERSION}: repeat the "
                "run that wrote it, or compare with that version"
            )
        data_sets = frozenset(bytes(row) for row in arrays.pop("data_sets"))
        return cls(**arrays, data_sets=data_sets)

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_bytes(path, self.to_bytes())


def _read(path: Path) -> dict[str, bytes]:
    from voco.data.cache import read_footer

    footer = read_footer(path)
    found = footer and footer.get("facts", {}).get("fingerprint")
    if not found or found["version"] != VERSION:
        state = "holds no fingerprint of this version" if footer else "is missing or damaged"
        raise InputError(f"prepared scan {path} {state}: delete it and prepare it again")
    hashes = {name: bytes.fromhex(found[name]) for name in ("voxels", "tissue")}
    return hashes | {name: base64.b64decode(found[name]) for name in ("signature", "places", "looks")}
