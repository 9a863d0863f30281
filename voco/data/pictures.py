"""Signatures compared: the most similar of many known scans for each of some, by correlation."""

from __future__ import annotations

import numpy as np

from voco.data.fingerprint import SIGNATURE_SHAPE

# What may be cut off a scan along D, as a share of its depth, on either side: tried when signatures are compared.
_CUTS = tuple((a, b) for a in (0.0, 0.05, 0.1, 0.15) for b in (0.0, 0.05, 0.1, 0.15) if 0 < a + b <= 0.2)
_FLIPS = ((1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3))
_CHUNK, _CANDIDATES = 4096, 16


def nearest(queries: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar of the known scans for each query, by the correlation of signatures.

    A scan that lost up to a fifth of its slices at the ends still fits: both sides are also tried with their ends cut,
    and the query mirrored along any of its axes.
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
    """(Q, N) largest correlation over all ways to cut the ends of either side, and over mirrors of the first."""
    plain_one, plain_two = _normalised(one), _normalised(two)
    score = plain_one @ plain_two.T
    for axes in _FLIPS:
        np.maximum(score, _normalised(np.flip(one, axes)) @ plain_two.T, out=score)
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
