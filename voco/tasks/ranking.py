"""How well scores order positives above negatives: AUROC and average precision, NaN where they are not defined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: share of pairs (positive, negative) in the right order, ties counted half.

    Args:
        labels: (n,) 0 or 1; rows with NaN are left out.
        scores: (n,) higher means more likely positive.

    Returns:
        A number in [0, 1]; NaN where there are no positives or no negatives.

    Raises:
        ValueError: lengths differ, a label that is neither 0 nor 1, or a score that is not finite.
    """
    labels, scores = _checked(labels, scores)
    if not 0 < labels.sum() < len(labels):
        return float("nan")
    from scipy.stats import rankdata  # scikit-learn gives the same number, forty times slower

    positives, negatives = int(labels.sum()), int((~labels).sum())
    return float((rankdata(scores)[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision: precision at each distinct score, weighted by the recall it adds; ties enter together.

    It is not interpolated (scikit-learn's definition). A score that says nothing gives the share of positives.

    Args:
        labels: (n,) 0 or 1; rows with NaN are left out.
        scores: (n,) higher means more likely positive.

    Returns:
        A number in (0, 1]; NaN where there are no positives.

    Raises:
        ValueError: as ``auroc``.
    """
    labels, scores = _checked(labels, scores)
    if not labels.any():
        return float("nan")
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores))


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


def image_auroc(units: pd.DataFrame, images: pd.DataFrame | None) -> tuple[float | None, str]:
    """AUROC of images, all studies together, and why it is None.

    Args:
        units: rows of units; images of others do not count.
        images: rows of ``predictions_images.parquet``; those without a score or a label do not count.
    """
    if images is None or not len(images):
        return None, "no image scores"
    images = images[images["unit"].isin(units["unit"])]
    labels, scores = images["label"].to_numpy(np.float64), images["score"].to_numpy(np.float64)
    labels = np.where(np.isnan(scores), np.nan, labels)
    return auroc(labels, np.nan_to_num(scores)), why_undefined(labels)


def _checked(labels, scores) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape}; expected two vectors of one length")
    known = ~np.isnan(labels)
    labels, scores = labels[known], scores[known]
    if not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError(f"labels hold {np.unique(labels)[:5].tolist()}; expected 0 and 1")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    return labels.astype(bool), scores
