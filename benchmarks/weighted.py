"""Main metrics of tasks for thousands of resamples at once: row i of a table counts ``weights[:, i]`` times.

A fast version is used only where it gives the same numbers as the task itself on the table and on a resample of it; so
a task that changes its metric falls back to the slow way and never to a wrong number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from voco.rng import derive_seed
from voco.stats import weighted_auroc, weighted_average_precision
from voco.tasks.base import Output, Task, known_labels

if TYPE_CHECKING:
    import pandas as pd

# (R, n) weights, not negative whole numbers -> (R,) values, NaN where the metric is not defined
Weighted = Callable[[np.ndarray], np.ndarray]
_SAME = 1e-9
_CHECKED_RESAMPLES = 1
# With more pairs of a positive and a negative the sorted way is faster, and float32 no longer counts them exactly.
_MOST_PAIRS = 4_000_000
_CELLS = 8_000_000
_RANGES = (
    (re.compile(r"^(auroc|ap|map|accuracy|balanced_accuracy|recall|precision)(_|$)"), (0.0, 1.0)),
    (re.compile(r"^(kappa|spearman)(_|$)"), (-1.0, 1.0)),
    (re.compile(r"^(score|loss|log_loss|mae|rmse)(_|$)"), (0.0, float("inf"))),
)


def metric_range(name: str) -> tuple[float, float]:
    """Smallest and largest value that a metric can have; infinite where that is not known."""
    return next((limits for pattern, limits in _RANGES if pattern.search(name)), (-float("inf"), float("inf")))


def weighted_main_metric(task: Task, units: pd.DataFrame) -> Weighted | None:
    """The main metric of a table for many weights at once.

    Args:
        task: whose metric.
        units: one row per unit, of one fold.

    Returns:
        A function of (R, n) weights that gives (R,) values; None where there is no fast version, or none that agrees
        with ``task.main_value`` on the table and on a resample of it.
    """
    rng = np.random.default_rng(derive_seed(0, "check", len(units)))
    n = len(units)
    if not n:
        return None
    weights = np.stack([np.ones(n, int), *(rng.multinomial(n, np.full(n, 1 / n)) for _ in range(_CHECKED_RESAMPLES))])
    true = None
    for build in _candidates(task):
        fast = build(units)
        if true is None:
            true = np.array([task.main_value(units.iloc[np.repeat(np.arange(n), row)]) for row in weights], float)
        if np.allclose(fast(weights), true, rtol=0, atol=_SAME, equal_nan=True):
            return fast
    return None


def _candidates(task: Task) -> Iterator[Callable[[pd.DataFrame], Weighted]]:
    """What the main metric of a task could be, by its name and outputs."""
    outputs, name = task.outputs, task.main_metric
    kinds = {output.kind for output in outputs}
    if task.name == "rsna_trauma":
        yield lambda units: _trauma(task, units)
    if task.name == "rsna_pe" and task.options.heads == "exam":
        yield lambda units: _embolism(task, units)
    if kinds == {"binary"} and name in ("auroc", "ap"):
        compute = auroc_of_weights if name == "auroc" else _average_precision
        yield lambda units: _mean_of([compute(*_binary(units, output), rows) for output, rows in _rows(units, outputs)])
    if kinds == {"multiclass"} and len(outputs) == 1 and name == "auroc":
        yield lambda units: _one_vs_rest(units, outputs[0])
    if kinds == {"multiclass"} and len(outputs) == 1 and name in _OF_CLASSES:
        yield lambda units: _of_confusion(units, outputs[0], _OF_CLASSES[name])
    if kinds == {"regression"} and name in _OF_VALUES:
        yield lambda units: _mean_of(
            [
                _regression(*known_labels(units, output), rows, _OF_VALUES[name])
                for output, rows in _rows(units, outputs)
            ]
        )


def _rows(units: pd.DataFrame, outputs) -> Iterator[tuple[Output, np.ndarray]]:
    """Each output and the rows whose label is known."""
    for output in outputs:
        yield output, np.flatnonzero(units[output.label_column].notna().to_numpy())


def _binary(units: pd.DataFrame, output: Output) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = known_labels(units, output)
    return labels, scores[:, 0]


def _mean_of(parts: list[Weighted]) -> Weighted:
    """Mean over the parts that are defined."""
    return lambda weights: mean_finite(np.stack([part(weights) for part in parts]))


def mean_finite(values: np.ndarray) -> np.ndarray:
    """(K, …) -> (…) mean over the first axis of what is finite, NaN where nothing is."""
    fine = np.isfinite(values)
    count = fine.sum(0)
    total = np.where(fine, values, 0.0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


# Rankings


def auroc_of_weights(labels: np.ndarray, scores: np.ndarray, rows: np.ndarray | None = None) -> Weighted:
    """AUROC as a function of weights, ties counted half.

    It is w_pos K w_neg over the product of the sums, K holding 1, 1/2 or 0 for each pair of a positive and a negative:
    one product of matrices for all resamples, which is several times faster than sorting.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,).
        rows: (n,) columns of the weights that belong to them; None = all.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels != 1)
    if len(positive) * len(negative) > _MOST_PAIRS:
        return lambda weights: weighted_auroc(labels, scores, weights[:, rows])
    high, low = scores[positive][:, None], scores[negative][None]
    pairs = (high > low).astype(np.float32) + 0.5 * (high == low).astype(np.float32)

    def value(weights: np.ndarray) -> np.ndarray:
        found, block = np.full(len(weights), np.nan), max(1, _CELLS // max(1, len(labels)))
        for first in range(0, len(weights), block):
            own = weights[first : first + block]
            up, down = (own[:, rows[side]].astype(np.float32) for side in (positive, negative))
            won = np.einsum("ij,ij->i", up @ pairs, down, dtype=np.float64)
            count = up.sum(1, dtype=np.float64) * down.sum(1, dtype=np.float64)
            np.divide(won, count, out=found[first : first + block], where=count > 0)
        return found

    return value


def _average_precision(labels: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> Weighted:
    return lambda weights: weighted_average_precision(labels, scores, weights[:, rows])


def _one_vs_rest(units: pd.DataFrame, output: Output) -> Weighted:
    labels, scores = known_labels(units, output)
    rows = np.flatnonzero(units[output.label_column].notna().to_numpy())
    return _mean_of([auroc_of_weights((labels == k).astype(float), scores[:, k], rows) for k in range(output.width)])


def _embolism(task: Task, units: pd.DataFrame) -> Weighted:
    """Embolism from the nine exam labels."""
    negative, unclear = (units[f"label_{name}"].to_numpy(float) for name in ("negative_exam_for_pe", "indeterminate"))
    counts_as = {"exclude": np.nan, "negative": 0.0, "positive": 1.0}[task.indeterminate]
    labels = np.where(unclear == 1, counts_as, 1.0 - negative)
    rows = np.flatnonzero(~np.isnan(labels))
    return auroc_of_weights(labels[rows], task.window_score(units)[rows], rows)


# Confusion matrices


def _of_confusion(units: pd.DataFrame, output: Output, metric: Callable[[np.ndarray], np.ndarray]) -> Weighted:
    labels, scores = known_labels(units, output)
    rows = np.flatnonzero(units[output.label_column].notna().to_numpy())
    k = output.width
    cell = np.zeros((len(rows), k * k))
    cell[np.arange(len(rows)), labels.astype(int) * k + scores.argmax(1)] = 1
    return lambda weights: metric((weights[:, rows].astype(np.float64) @ cell).reshape(-1, k, k))


def _kappa(matrices: np.ndarray) -> np.ndarray:
    n = matrices.sum((1, 2))
    chance = (matrices.sum(2) * matrices.sum(1)).sum(1)
    agreed = n * matrices.trace(axis1=1, axis2=2)
    return np.divide(agreed - chance, n * n - chance, out=np.full(len(n), np.nan), where=n * n != chance)


def _accuracy(matrices: np.ndarray) -> np.ndarray:
    n = matrices.sum((1, 2))
    return np.divide(matrices.trace(axis1=1, axis2=2), n, out=np.full(len(n), np.nan), where=n > 0)


def _balanced_accuracy(matrices: np.ndarray) -> np.ndarray:
    count, right = matrices.sum(2), np.diagonal(matrices, axis1=1, axis2=2)
    return mean_finite(np.divide(right, count, out=np.full(count.shape, np.nan), where=count > 0).T)


_OF_CLASSES = {"kappa": _kappa, "accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy}


# Numbers


def _regression(labels: np.ndarray, scores: np.ndarray, rows: np.ndarray, metric) -> Weighted:
    return lambda weights: metric(labels, scores[:, 0], weights[:, rows].astype(np.float64))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _mae(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _divide(weights @ np.abs(y - p), weights.sum(1))


def _rmse(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.sqrt(_divide(weights @ (y - p) ** 2, weights.sum(1)))


def _r2(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    mean = _divide(weights @ y, weights.sum(1))
    spread = (weights * (y - mean[:, None]) ** 2).sum(1)
    return 1 - _divide(weights @ (y - p) ** 2, spread)


_OF_VALUES = {"mae": _mae, "rmse": _rmse, "r2": _r2}


# The official score of abdominal trauma


def _trauma(task: Task, units: pd.DataFrame) -> Weighted:
    """Mean of weighted log losses: of all five organs and any injury, or of the organs that were learned."""
    from voco.data.layouts.rsna_trauma import ANY, ORGANS
    from voco.tasks.classes import LOG_LOSS_CLIP, normalised
    from voco.tasks.rsna_trauma import WEIGHTS

    labels, probabilities = {}, {}
    for output in task.outputs:
        scores = units[list(output.score_columns)].to_numpy(float)
        both = np.concatenate([1 - scores, scores], 1) if scores.shape[1] == 1 else scores
        labels[output.name] = units[output.label_column].to_numpy(float)
        probabilities[output.name] = normalised(both, output.name)
    known = {name: ~np.isnan(values) for name, values in labels.items()}
    if set(ORGANS) == set(labels):
        everything = np.all(list(known.values()), axis=0)
        known = dict.fromkeys((*labels, ANY), everything)
        injury = np.max([1 - rows[:, 0] for rows in probabilities.values()], axis=0)
        labels[ANY] = np.any([values > 0 for values in labels.values()], axis=0).astype(float)
        probabilities[ANY] = np.stack([1 - injury, injury], 1)
    parts = []
    for name, rows in known.items():
        own = np.flatnonzero(rows)
        y = labels[name][own].astype(int)
        p = np.clip(probabilities[name][own, y], LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP)
        parts.append(_weighted_mean(-np.log(p), np.asarray(WEIGHTS[name])[y], own))
    return _mean_of(parts)


def _weighted_mean(values: np.ndarray, weight: np.ndarray, rows: np.ndarray) -> Weighted:
    table = np.stack([values * weight, weight], 1)

    def value(weights: np.ndarray) -> np.ndarray:
        sums = weights[:, rows].astype(np.float64) @ table
        return _divide(sums[:, 0], sums[:, 1])

    return value
