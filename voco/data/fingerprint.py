"""What is kept of a scan so that it is recognised later: a hash of its voxels, a small picture, its patient's hash.

A pretraining run writes the fingerprints of its scans beside the encoder. From them nobody gets the scans back: the
picture has 12 x 12 x 12 voxels of about 3 cm, and names are stored as digests.
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

from voco.data.privacy import hash_patient_id
from voco.errors import InputError
from voco.short_repr import short_repr

if TYPE_CHECKING:
    from voco.data.prepare import PreparedEntry

FILE = "fingerprints.npz"
SIGNATURE_SHAPE = (12, 12, 12)
# Raise it, and FORMAT_VERSION of the cache, when a hash or a signature of the same scan comes out otherwise.
VERSION = 1
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
# What may be cut off a scan along D, as a share of its depth, on either side: tried when signatures are compared.
_CUTS = tuple((a, b) for a in (0.0, 0.05, 0.1, 0.15) for b in (0.0, 0.05, 0.1, 0.15) if 0 < a + b <= 0.2)
_CHUNK, _CANDIDATES = 4096, 16


def voxel_hash(array: np.ndarray) -> str:
    """32 hex digits of a canonical int16 volume; the file format, its data type and its orientation do not matter.

    Args:
        array: (D, H, W) int16 HU as ``voco.read_volume`` gives it.
    """
    digest = hashlib.blake2b(repr(tuple(array.shape)).encode(), digest_size=_HASH_BYTES)
    digest.update(np.ascontiguousarray(array, "<i2"))
    return digest.hexdigest()


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
    """Hash and signature of a scan as plain JSON, for the footer of its prepared file.

    Args:
        array: (D, H, W) int16 HU of the whole scan, before it is cropped or resampled.
        spacing_mm: (D, H, W) mm.
    """
    picture = base64.b64encode(signature(array, spacing_mm).tobytes()).decode()
    return {"version": VERSION, "voxels": voxel_hash(array), "signature": picture}


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


def shown_patient(name: str) -> str:
    """A patient for tables that leave the house: the digest of a DICOM header as it is, of any other name its own."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if _HASHED.fullmatch(text) else hash_patient_id(text)


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
    """

    voxels: np.ndarray
    signatures: np.ndarray
    patients: np.ndarray
    trained: np.ndarray
    data_sets: frozenset[bytes] = frozenset()

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
        return cls(
            np.array([list(bytes.fromhex(row["voxels"])) for row in rows], np.uint8).reshape(-1, _HASH_BYTES),
            np.array([np.frombuffer(base64.b64decode(row["signature"]), np.uint8) for row in rows], np.uint8).reshape(
                -1, _SIGNATURE_SIZE
            ),
            np.array([list(patient_digest(entry.case.patient)) for entry in entries], np.uint8).reshape(
                -1, _NAME_BYTES
            ),
            np.broadcast_to(np.asarray(trained, bool), len(entries)).copy(),
            frozenset(data_set_digest(name) for name in data_sets),
        )

    def to_bytes(self) -> bytes:
        """As one compressed ``.npz`` file; the same scans give the same bytes."""
        arrays = {
            "version": np.array([VERSION]),
            **{name: getattr(self, name) for name in ("voxels", "signatures", "patients", "trained")},
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
            InputError: damaged, or of another version, whose hashes cannot be compared.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                version = int(found["version"][0])
                arrays = {key: found[key] for key in ("voxels", "signatures", "patients", "trained", "data_sets")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{name} is no file of fingerprints, or a damaged one: {error}") from None
        if version != VERSION:
            raise InputError(
                f"{name} holds fingerprints of version {version}, this voco compares version {VERSION}: repeat the "
                "run that wrote it, or compare with that version"
            )
        data_sets = frozenset(bytes(row) for row in arrays.pop("data_sets"))
        return cls(**arrays, data_sets=data_sets)

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        from voco.data.cache import write_atomic

        write_atomic(Path(path), self.to_bytes())


def _read(path: Path) -> dict:
    from voco.data.cache import read_footer

    footer = read_footer(path)
    found = footer and footer.get("facts", {}).get("fingerprint")
    if not found or found["version"] != VERSION:
        state = "holds no fingerprint of this version" if footer else "is missing or damaged"
        raise InputError(f"prepared scan {path} {state}: delete it and prepare it again")
    return found


def nearest(queries: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar of the known scans for each query, by the correlation of signatures.

    A scan that lost up to a fifth of its slices at the ends still fits: both sides are also tried with their ends cut.
    The candidates of a query are found on signatures averaged in the plane, and then compared in full.

    Args:
        queries: (Q, 1728) uint8 signatures.
        known: (N, 1728).

    Returns:
        (Q,) correlation in [-1, 1] with the best one, and (Q,) its index; -1 and index -1 where nothing is known.
    """
    best, where = np.full(len(queries), -1.0, np.float32), np.full(len(queries), -1, np.int64)
    if not len(queries) or not len(known):
        return best, where
    for i, candidates in enumerate(_candidates(queries, known)):
        one, others = _pictures(queries[i : i + 1]), _pictures(known[candidates])
        score = _best_fit(one, others)[0]
        best[i], where[i] = score.max(), candidates[score.argmax()]
    return best, where


def _candidates(queries: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(Q, up to 16) indices of the known scans that are most like each query in the plane's quarter resolution."""
    coarse = _pool(_pictures(queries))
    score, index = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    for first in range(0, len(known), _CHUNK):
        part = _pool(_pictures(known[first : first + _CHUNK]))
        here = np.broadcast_to(np.arange(first, first + len(part)), (len(queries), len(part)))
        score, index = np.hstack([score, _best_fit(coarse, part)]), np.hstack([index, here])
        if score.shape[1] > _CANDIDATES:
            keep = np.argpartition(score, -_CANDIDATES, axis=1)[:, -_CANDIDATES:]
            score, index = np.take_along_axis(score, keep, 1), np.take_along_axis(index, keep, 1)
    return index


def _pictures(signatures: np.ndarray) -> np.ndarray:
    return signatures.reshape(len(signatures), *SIGNATURE_SHAPE).astype(np.float32)


def _pool(pictures: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 cells in the plane; along D the ends are cut in small steps, which needs all cells."""
    count, d, h, w = pictures.shape
    return pictures.reshape(count, d, h // 2, 2, w // 2, 2).mean((3, 5))


def _best_fit(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(Q, N) largest correlation over all ways to cut the ends of either side."""
    plain_one, plain_two = _normalised(one), _normalised(two)
    score = plain_one @ plain_two.T
    for cut in _CUTS:
        np.maximum(score, _normalised(_cut(one, *cut)) @ plain_two.T, out=score)
        np.maximum(score, plain_one @ _normalised(_cut(two, *cut)).T, out=score)
    return score


def _normalised(pictures: np.ndarray) -> np.ndarray:
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _cut(pictures: np.ndarray, low: float, high: float) -> np.ndarray:
    """What the pictures would be without the lowest and the highest share of slices."""
    cells = SIGNATURE_SHAPE[0]
    at = ((np.arange(cells) + 0.5) / cells * (1 - low - high) + low) * cells - 0.5
    at = np.clip(at, 0, cells - 1)
    below = np.minimum(at.astype(int), cells - 2)
    share = (at - below)[None, :, None, None].astype(np.float32)
    return pictures[:, below] * (1 - share) + pictures[:, below + 1] * share
