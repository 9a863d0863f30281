"""How well scores order positives above negatives: AUROC and average precision, NaN where they are not defined."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_CELLS = 4_000_000  # of weights, at once


def auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Area under the ROC curve: share of pairs (positive, negative) in the right order, ties counted half.

    Args:
        labels: (n,) 0 or 1; rows with NaN are left out.
        scores: (n,) higher means more likely positive.
        weights: (R, n) how often each row counts, not negative; None: once.

    Returns:
        A number in [0, 1], or (R,) of them; NaN where positives or negatives have no weight.

    Raises:
        ValueError: lengths differ, a label that is neither 0 nor 1, or a score that is not finite.
    """

    def of_bins(positive, negative):
        below = np.cumsum(negative, 1) - negative
        pairs = positive.sum(1) * negative.sum(1)
        won = (positive * (below + 0.5 * negative)).sum(1)
        return divided(won, pairs)

    found = _by_bins(*_checked(labels, scores, weights), of_bins)
    return float(found[0]) if weights is None else found


def average_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Average precision: precision at each distinct score, weighted by the recall it adds; ties enter together.

    It is not interpolated (scikit-learn's definition, and without weights its number). A score that says nothing gives
    the share of positives.

    Args:
        labels, scores, weights: as ``auroc``.

    Returns:
        A number in (0, 1], or (R,) of them; NaN where positives have no weight.

    Raises:
        ValueError: as ``auroc``.
    """
    positive, scores, own = _checked(labels, scores, weights)
    if weights is None:
        from sklearn.metrics import average_precision_score

        return float(average_precision_score(positive, scores)) if positive.any() else float("nan")

    def of_bins(positive, negative):
        positive, negative = positive[:, ::-1], negative[:, ::-1]
        hits = np.cumsum(positive, 1)
        taken = hits + np.cumsum(negative, 1)
        precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
        return divided((positive * precision).sum(1), positive.sum(1))

    return _by_bins(positive, scores, own, of_bins)


def with_labels(compute: Callable[..., np.ndarray], labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """``auroc`` or ``average_precision`` of the same scores with many vectors of labels.

    Args:
        compute: one of the two.
        labels: (R, n) 0, 1, or NaN for rows that do not count.
        scores: (n,).

    Returns:
        (R,) values.
    """
    sides = np.repeat([1.0, 0.0], len(scores))  # each row once as either class
    return compute(sides, np.tile(scores, 2), np.hstack([labels == 1, labels == 0]))


def placements(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each case stands among those of the other class (DeLong et al. 1988); the mean of either is the AUROC.

    Computed from mid-ranks as in Sun and Xu (2014), IEEE Signal Processing Letters 21(11).

    Args:
        positive: (n,) whether a case is.
        scores: (…, n).

    Returns:
        (…, m) share of negatives below each positive, (…, n - m) share of positives above each negative, ties half; NaN
        where a class has no case.
    """
    from scipy.stats import rankdata

    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        nothing = np.full(scores.shape, np.nan)
        return nothing[..., :m], nothing[..., :n]
    ranks = rankdata(scores, axis=-1)
    up = (ranks[..., positive] - rankdata(scores[..., positive], axis=-1)) / n
    down = 1 - (ranks[..., ~positive] - rankdata(scores[..., ~positive], axis=-1)) / m
    return up, down


def why_undefined(labels: np.ndarray) -> str:
    """Why ranking metrics are not defined for these labels; empty where they are."""
    labels = np.asarray(labels, np.float64)
    labels = labels[~np.isnan(labels)]
    if not len(labels):
        return "no case with a known label"
    if not labels.any():
        return f"no positive among {len(labels)}"
    if labels.all():
        return f"no negative among {len(labels)}"
    return ""


def divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotients, NaN where the lower number is not above 0."""
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _by_bins(labels, scores, weights, of_bins) -> np.ndarray:
    """Weights of positives and negatives per distinct score, (R, U) in rising order, in blocks that fit in memory."""
    if not len(labels):
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], labels[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    found, block = [], max(1, _CELLS // len(labels))
    for first in range(0, len(weights), block):
        own = weights[first : first + block][:, order].astype(np.float64)
        hits = np.add.reduceat(own * positive, starts, axis=1)
        found.append(of_bins(hits, np.add.reduceat(own, starts, axis=1) - hits))
    return np.concatenate(found)


def _checked(labels, scores, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape}; expected two vectors of one length")
    weights = np.ones((1, len(labels))) if weights is None else np.atleast_2d(weights)
    known = ~np.isnan(labels)
    if not known.all():
        labels, scores, weights = labels[known], scores[known], weights[:, known]
    if not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError(f"labels hold {np.unique(labels)[:5].tolist()}; expected 0 and 1")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    return labels.astype(bool), scores, weights
