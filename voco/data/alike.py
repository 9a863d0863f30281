"""Which scans may be one scan: pairs of fingerprints that are equal or alike, found by indices and not pair by pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from voco.data.fingerprint import Fingerprints
from voco.data.landmarks import WIDTH, Fit, compare

# Measured in docs/leaks.md: scores of different people stay below, those of copies lie above. In a cohort voxels
# decide, so less is asked of a candidate.
LANDMARK_SCORE, CANDIDATE_SCORE = 2.5, 1.0
PICTURE_CORRELATION = 0.98
# The strongest landmarks of a scan look for their nearest ones among the strongest of all scans; pairs of scans with
# some votes are compared in full.
_ASKING, _ASKED, _NEIGHBOURS, _VOTES, _DIMENSIONS, _NEAR_LOOK = 24, 48, 8, 3, 10, 9.0
_SAMPLE, _CHUNK = 1_000, 100_000
_PICTURE_NEIGHBOURS, _PICTURE_DIMENSIONS = 8, 12


@dataclass(frozen=True)
class Alike:
    """Two scans that may be one.

    Attributes:
        one, two: their numbers.
        how: ``voxels`` (equal), ``tissue`` (equal but for mirrors, right angles and padding), ``landmarks`` or
            ``picture``.
        score: of landmarks, or the correlation of pictures; 1 for equal ones.
        fit: the motion from one to two that the landmarks tell.
    """

    one: int
    two: int
    how: str
    score: float
    fit: Fit | None = None

    @property
    def is_equal(self) -> bool:
        """Whether it needs no further proof."""
        return self.how in ("voxels", "tissue")


def alike_within(prints: Fingerprints) -> list[Alike]:
    """Pairs of a cohort, each once, in the most certain way; n equal scans give n - 1 pairs.

    Args:
        prints: of the current version.
    """
    found: list[Alike] = []
    left = list(range(len(prints)))
    for how, hashes in (("voxels", prints.voxels), ("tissue", prints.tissue)):
        first: dict[bytes, int] = {}
        equal = [(first.setdefault(hashes[i].tobytes(), i), i) for i in left if hashes[i].any()]
        found += [Alike(one, two, how, 1.0) for one, two in equal if one != two]
        gone = {two for one, two in equal if one != two}
        left = [i for i in left if i not in gone]
    rest = np.array(left, np.int64)
    pairs = {(a.one, a.two): a for a in landmark_pairs(prints, prints, rest, rest, CANDIDATE_SCORE)}
    for i, j, correlation in _picture_pairs(prints.signatures[rest]):
        one, two = int(rest[i]), int(rest[j])
        pairs.setdefault((one, two), Alike(one, two, "picture", correlation))
    return found + [pairs[key] for key in sorted(pairs)]


def landmark_pairs(
    queries: Fingerprints, known: Fingerprints, rows: np.ndarray, others: np.ndarray, least: float = LANDMARK_SCORE
) -> list[Alike]:
    """Pairs of a query and a known scan whose landmarks go together.

    Args:
        queries, known: fingerprints; the same object for pairs of a cohort, which then come once, smaller number first.
        rows, others: numbers of the scans to look at.
        least: score.
    """
    found = []
    for i, j in _voted(queries, known, rows, others):
        fit = compare(queries.landmarks(i), known.landmarks(j))
        if fit.score >= least:
            found.append(Alike(i, j, "landmarks", fit.score, fit))
    return found


def _voted(queries: Fingerprints, known: Fingerprints, rows, others) -> Iterator[tuple[int, int]]:
    from scipy.spatial import cKDTree

    within = queries is known
    sample = _strongest(known, others[:: max(1, len(others) // _SAMPLE)], _ASKED)[0]
    if len(sample) < 2 or not len(rows):
        return
    frame = _principal(sample.astype(np.float32))
    look, owner = _projected(known, others, _ASKED, *frame)
    tree = cKDTree(look)
    asking, asker = _projected(queries, rows, _ASKING, *frame)
    limit, votes = _NEAR_LOOK * WIDTH**0.5, [np.zeros((2, 0), np.int64)]
    for first in range(0, len(asking), _CHUNK):
        part = slice(first, first + _CHUNK)
        _, index = tree.query(asking[part], k=_NEIGHBOURS, distance_upper_bound=limit, workers=-1)
        hit = index < len(owner)
        landmark = np.nonzero(hit)[0]
        who, scan = asker[part][landmark], owner[index[hit]]
        # a landmark has one vote per scan
        _, who, scan = np.unique(np.stack([landmark, who, scan]), axis=1)
        apart = who != scan if within else slice(None)
        votes.append(np.stack([who[apart], scan[apart]]))
    who, scan = np.concatenate(votes, axis=1)
    if within:
        who, scan = np.minimum(who, scan), np.maximum(who, scan)
    pair, count = np.unique(who * np.int64(len(known)) + scan, return_counts=True)
    for number in pair[count >= _VOTES]:
        yield int(number // len(known)), int(number % len(known))


def _strongest(prints: Fingerprints, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(L, WIDTH) uint8 looks of the ``count`` strongest landmarks of each scan, and (L,) whose they are."""
    place, look = prints.places[rows, :count, 0], prints.looks[rows, :count]
    used = place != np.iinfo(np.int16).min
    return look[used], np.repeat(np.asarray(rows, np.int64), used.sum(1))


def _projected(prints: Fingerprints, rows, count: int, middle, axes) -> tuple[np.ndarray, np.ndarray]:
    """The same along a few axes."""
    parts = [_strongest(prints, part, count) for part in _parts(rows)]
    looks = np.concatenate([(look.astype(np.float32) - middle) @ axes for look, _ in parts])
    return looks, np.concatenate([owner for _, owner in parts])


def _principal(values: np.ndarray, dimensions: int = _DIMENSIONS) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (F, dimensions) principal axes: distances along them are never longer than the whole."""
    middle = values.mean(0, dtype=np.float64)
    _, axes = np.linalg.eigh((values - middle).T @ (values - middle))
    return middle.astype(np.float32), axes[:, ::-1][:, :dimensions].astype(np.float32)


def _picture_pairs(signatures: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Pairs of scans, smaller number first, whose signatures correlate, among the nearest few of each."""
    from scipy.spatial import cKDTree

    if len(signatures) < 2:
        return
    pooled = np.concatenate([_unit(_pooled(part)) for part in _parts(signatures)])
    middle, axes = _principal(pooled[:: max(1, len(pooled) // _SAMPLE)], _PICTURE_DIMENSIONS)
    tree = cKDTree((pooled - middle) @ axes)
    neighbours = min(_PICTURE_NEIGHBOURS, len(signatures))
    # pooling brings pictures closer: a pair above the limit stays above it
    limit = (2 * (1 - PICTURE_CORRELATION)) ** 0.5
    _, index = tree.query(tree.data, k=neighbours, distance_upper_bound=limit, workers=-1)
    one = np.repeat(np.arange(len(signatures)), neighbours)
    hit = (index.ravel() < len(signatures)) & (index.ravel() != one)
    low, high = np.minimum(one, index.ravel())[hit], np.maximum(one, index.ravel())[hit]
    for i, j in np.unique(np.stack([low, high], 1), axis=0):
        a, b = _unit(signatures[[i, j]].astype(np.float32))
        if (correlation := float(a @ b)) >= PICTURE_CORRELATION:
            yield int(i), int(j), correlation


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(array), 4096):
        yield array[first : first + 4096]


def _pooled(signatures: np.ndarray) -> np.ndarray:
    cubes = signatures.reshape(len(signatures), 6, 2, 6, 2, 6, 2).astype(np.float32)
    return cubes.mean((2, 4, 6)).reshape(len(signatures), -1)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
