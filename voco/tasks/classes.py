"""Metrics of predicted classes, from arrays: kappa, accuracy, recall, precision, macro rankings, weighted log loss.

Classes are numbers from 0; a class without a true case has no recall and does not count in macro means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voco.errors import InputError
from voco.stats.ranking import auroc, average_precision

# The official trauma metric calls scikit-learn's log_loss and names no constant; since scikit-learn 1.2 (December 2022,
# before that challenge) this clips at the machine precision of the probabilities, float64. Until 1.1 it was 1e-15.
LOG_LOSS_CLIP = float(np.finfo(np.float64).eps)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) counts: rows are true classes, columns predicted ones.

    Args:
        labels: (n,) numbers of the true classes, 0 to ``classes`` - 1.
        predicted: (n,) numbers of the predicted classes.
        classes: K.

    Raises:
        ValueError: lengths differ, or a number that is no class.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.ndim != 1 or labels.shape != predicted.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predicted.shape}; expected two vectors of one length")
    for name, values in (("labels", labels), ("predictions", predicted)):
        if not np.isin(values, np.arange(classes)).all():
            raise ValueError(f"{name} hold {np.unique(values)[:5].tolist()}; expected 0 to {classes - 1}")
    flat = labels.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def confusions(labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """(R, K, K) sums of weights; rows are true classes, columns predicted ones.

    Args:
        labels, predicted, classes: as ``confusion``.
        weights: (R, n) how often each case counts.
    """
    cells = np.zeros((len(labels), classes * classes))
    cells[np.arange(len(labels)), labels.astype(int) * classes + predicted] = 1
    return (weights @ cells).reshape(-1, classes, classes)


def cohen_kappa(matrix: np.ndarray) -> np.ndarray:
    """Unweighted Cohen's kappa: agreement beyond the chance agreement of the two margins.

    Args:
        matrix: (…, K, K) counts.

    Returns:
        (…) (p_o - p_e) / (1 - p_e), at most 1; NaN without cases, and where both margins are one and the same class.
    """
    matrix = np.asarray(matrix, np.float64)
    n = matrix.sum((-2, -1))
    # n^2 times the chance agreement: exact for counts, so that "all in one class" is seen as such
    chance = (matrix.sum(-1) * matrix.sum(-2)).sum(-1)
    return _shares(n * matrix.trace(axis1=-2, axis2=-1) - chance, n * n - chance)


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """(…) share of cases on the diagonal of (…, K, K) counts; NaN without cases."""
    return _shares(matrix.trace(axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def recalls(matrix: np.ndarray) -> np.ndarray:
    """(…, K) share of the cases of each class that are found; NaN for a class without cases."""
    return _shares(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1))


def precisions(matrix: np.ndarray) -> np.ndarray:
    """(…, K) share of the predictions of each class that are right.

    0 for a class that has cases and is never predicted, NaN for one without cases.
    """
    right = np.diagonal(matrix, axis1=-2, axis2=-1) / np.maximum(matrix.sum(-2), 1)
    return np.where(matrix.sum(-1) > 0, right, np.nan)


def _shares(part, whole) -> np.ndarray:
    """Quotients, NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def mean_defined(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN where there are none."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def one_vs_rest_auroc(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(K,) AUROC of each class against all others; NaN where a side is empty."""
    return np.array([auroc(labels == k, column) for k, column in enumerate(probabilities.T)])


def one_vs_rest_ap(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(K,) average precision of each class against all others; NaN for a class without cases."""
    return np.array([average_precision(labels == k, column) for k, column in enumerate(probabilities.T)])


def normalised(probabilities: np.ndarray, what: str = "scores") -> np.ndarray:
    """Rows divided by their sum, in float64.

    Args:
        probabilities: (n, K), not negative.
        what: how to call them in errors.

    Raises:
        InputError: a row whose entries are all zero, one with a negative number, or one that is not finite.
    """
    values = np.asarray(probabilities, np.float64)
    bad = ~np.isfinite(values).all(1) | (values < 0).any(1)
    if bad.any():
        raise InputError(
            f"{what}: {int(bad.sum())} of {len(values)} rows hold a negative number or none at all "
            f"(first: row {int(bad.argmax())}, {values[bad.argmax()].tolist()}); expected probabilities"
        )
    total = values.sum(1, keepdims=True)
    if (empty := total[:, 0] == 0).any():
        raise InputError(
            f"{what}: {int(empty.sum())} of {len(values)} rows are all zero (first: row {int(empty.argmax())}); "
            "they cannot be normalised: give every row at least one number above zero"
        )
    return values / total


def log_loss(
    labels: np.ndarray, probabilities: np.ndarray, weights: Sequence[float] | None = None, clip: float = LOG_LOSS_CLIP
) -> float:
    """Weighted mean of -log of the probability of the true class.

    Args:
        labels: (n,) numbers of the true classes; classes that do not occur change nothing.
        probabilities: (n, K), rows that sum to 1.
        weights: (K,) weight of a case by its true class; the mean is divided by the sum of the weights.
        clip: probabilities are cut to [clip, 1 - clip], and not normalised again, as scikit-learn does.

    Returns:
        The loss in nats; NaN without cases.
    """
    labels = np.asarray(labels).astype(np.int64)
    if not len(labels):
        return float("nan")
    true = np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels]
    weight = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)[labels]
    return float(-(weight * np.log(np.clip(true, clip, 1 - clip))).sum() / weight.sum())
