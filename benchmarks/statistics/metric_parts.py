"""Main metrics of tasks as means of parts, each of which knows how single patients bear on it.

A part is an AUROC, a recall, a mean. Parts are used only where their mean is the task's own number on the very table;
so a task that changes its metric falls back to the slow way and never to a wrong number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from voco.stats import weighted_average_precision
from voco.tasks.base import Output, Task, known_labels

if TYPE_CHECKING:
    import pandas as pd

# (R, n) weights, not negative -> (R,) values, NaN where the metric is not defined
Weighted = Callable[[np.ndarray], np.ndarray]
_SAME = 1e-9
_RANGES = (
    (re.compile(r"^(auroc|ap|map|accuracy|balanced_accuracy|recall|precision)(_|$)"), (0.0, 1.0)),
    (re.compile(r"^(kappa|spearman)(_|$)"), (-1.0, 1.0)),
    (re.compile(r"^(score|loss|log_loss|mae|rmse)(_|$)"), (0.0, float("inf"))),
)


def metric_range(name: str) -> tuple[float, float]:
    """Smallest and largest value that a metric can have; infinite where that is not known."""
    return next((limits for pattern, limits in _RANGES if pattern.search(name)), (-float("inf"), float("inf")))


@dataclass(frozen=True)
class Ranking:
    """An AUROC, ties counted half.

    Attributes:
        rows: (m,) rows of the table that count.
        labels: (m,) 0 or 1.
        scores: (m,).
    """

    rows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def value(self) -> float:
        positive = self.labels == 1
        return float(placements(positive, self.scores)[0])


@dataclass(frozen=True)
class Sum:
    """A number that can be computed for weighted rows.

    Attributes:
        rows: (m,) rows of the table that count.
        of_weights: (R, m) weights of these rows -> (R,) values.
        kinds: (m,) classes of the rows, where the number hangs on each class apart; None where it does not.
    """

    rows: np.ndarray
    of_weights: Weighted
    kinds: np.ndarray | None = None

    def value(self) -> float:
        return float(self.of_weights(np.ones((1, len(self.rows))))[0])


@dataclass(frozen=True)
class Whole:
    """A main metric that only the task itself can compute."""

    task: Task
    units: pd.DataFrame

    def value(self) -> float:
        value = self.task.main_value(self.units)
        return float("nan") if value is None else float(value)


Part = Ranking | Sum | Whole


def main_parts(task: Task, units: pd.DataFrame) -> list[Part]:
    """The main metric of a table as parts; their mean over those that are defined is the metric.

    Args:
        task: whose metric.
        units: one row per unit, of one fold.
    """
    whole = Whole(task, units)
    for build in _candidates(task):
        parts = build(units)
        if np.isclose(mean_of(parts), whole.value(), rtol=0, atol=_SAME, equal_nan=True):
            return parts
    return [whole]


def mean_of(parts: Sequence[Part]) -> float:
    """Mean of the parts that are defined, NaN where none is."""
    values = np.array([part.value() for part in parts])
    fine = np.isfinite(values)
    return float(values[fine].mean()) if fine.any() else float("nan")


def placements(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUROC, and where each case stands among those of the other class (DeLong et al. 1988).

    Computed from mid-ranks as in Sun and Xu (2014), IEEE Signal Processing Letters 21(11).

    Args:
        positive: (n,) whether a case is.
        scores: (…, n).

    Returns:
        (…) AUROC, (…, m) share of negatives below each positive, (…, n - m) share of positives above each negative,
        ties half; NaN where a class has no case.
    """
    from scipy.stats import rankdata

    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        nothing = np.full(scores.shape, np.nan)
        return nothing[..., 0] if scores.shape[-1] else np.float64("nan"), nothing[..., :m], nothing[..., :n]
    ranks = rankdata(scores, axis=-1)
    up = (ranks[..., positive] - rankdata(scores[..., positive], axis=-1)) / n
    down = 1 - (ranks[..., ~positive] - rankdata(scores[..., ~positive], axis=-1)) / m
    return up.mean(-1), up, down


def _candidates(task: Task) -> Iterator[Callable[[pd.DataFrame], list[Part]]]:
    """What the main metric of a task could be, by its name and outputs."""
    outputs, name = task.outputs, task.main_metric
    kinds = {output.kind for output in outputs}
    if task.name == "rsna_trauma":
        yield lambda units: _trauma(task, units)
    if task.name == "rsna_pe" and task.options.heads == "exam":
        yield lambda units: [_embolism(task, units)]
    if kinds == {"binary"} and name in ("auroc", "ap"):
        build = Ranking if name == "auroc" else _average_precision
        yield lambda units: [build(rows, labels, scores[:, 0]) for rows, labels, scores in _known(units, outputs)]
    if kinds == {"multiclass"} and len(outputs) == 1 and name in _OF_CLASSES:
        yield lambda units: _OF_CLASSES[name](*next(_known(units, outputs)))
    if kinds == {"regression"} and name in _OF_VALUES:
        yield lambda units: [
            Sum(rows, _OF_VALUES[name](labels, scores[:, 0])) for rows, labels, scores in _known(units, outputs)
        ]


def _known(units: pd.DataFrame, outputs: Sequence[Output]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows whose label is known, their labels and scores, of each output."""
    for output in outputs:
        labels, scores = known_labels(units, output)
        yield np.flatnonzero(units[output.label_column].notna().to_numpy()), labels, scores


# Rankings


def _average_precision(rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Sum:
    return Sum(rows, lambda weights: weighted_average_precision(labels, scores, weights), labels)


def _one_vs_rest(rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part]:
    return [Ranking(rows, (labels == k).astype(float), scores[:, k]) for k in range(scores.shape[1])]


def _embolism(task: Task, units: pd.DataFrame) -> Ranking:
    """Embolism from the nine exam labels."""
    negative, unclear = (units[f"label_{name}"].to_numpy(float) for name in ("negative_exam_for_pe", "indeterminate"))
    counts_as = {"exclude": np.nan, "negative": 0.0, "positive": 1.0}[task.indeterminate]
    labels = np.where(unclear == 1, counts_as, 1.0 - negative)
    rows = np.flatnonzero(~np.isnan(labels))
    return Ranking(rows, labels[rows], task.window_score(units)[rows])


# Classes


def _recalls(rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part]:
    """Balanced accuracy is the mean of the recalls of the classes that occur."""
    right = scores.argmax(1) == labels
    return [_mean(rows[labels == k], right[labels == k]) for k in range(scores.shape[1])]


def _accuracy(rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part]:
    return [_mean(rows, scores.argmax(1) == labels)]


def _kappa(rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part]:
    """Cohen's kappa, unweighted."""
    k = scores.shape[1]
    cell = np.zeros((len(labels), k * k))
    cell[np.arange(len(labels)), labels.astype(int) * k + scores.argmax(1)] = 1

    def of_weights(weights: np.ndarray) -> np.ndarray:
        matrices = (weights @ cell).reshape(-1, k, k)
        n = matrices.sum((1, 2))
        chance = (matrices.sum(2) * matrices.sum(1)).sum(1)
        agreed = n * matrices.trace(axis1=1, axis2=2)
        return np.divide(agreed - chance, n * n - chance, out=np.full(len(n), np.nan), where=n * n != chance)

    return [Sum(rows, of_weights)]


_OF_CLASSES = {"auroc": _one_vs_rest, "kappa": _kappa, "accuracy": _accuracy, "balanced_accuracy": _recalls}


# Numbers


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _mean(rows: np.ndarray, values: np.ndarray, shares: np.ndarray | None = None) -> Sum:
    """Mean of values, each with its share."""
    shares = np.ones(len(values)) if shares is None else shares
    table = np.stack([values * shares, shares], 1)

    def of_weights(weights: np.ndarray) -> np.ndarray:
        sums = weights @ table
        return _divide(sums[:, 0], sums[:, 1])

    return Sum(rows, of_weights)


def _mae(y: np.ndarray, p: np.ndarray) -> Weighted:
    return lambda weights: _divide(weights @ np.abs(y - p), weights.sum(1))


def _rmse(y: np.ndarray, p: np.ndarray) -> Weighted:
    return lambda weights: np.sqrt(_divide(weights @ (y - p) ** 2, weights.sum(1)))


def _r2(y: np.ndarray, p: np.ndarray) -> Weighted:
    def of_weights(weights: np.ndarray) -> np.ndarray:
        mean = _divide(weights @ y, weights.sum(1))
        spread = (weights * (y - mean[:, None]) ** 2).sum(1)
        return 1 - _divide(weights @ (y - p) ** 2, spread)

    return of_weights


_OF_VALUES = {"mae": _mae, "rmse": _rmse, "r2": _r2}


# The official score of abdominal trauma


def _trauma(task: Task, units: pd.DataFrame) -> list[Part]:
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
    parts: list[Part] = []
    for name, rows in known.items():
        own = np.flatnonzero(rows)
        y = labels[name][own].astype(int)
        p = np.clip(probabilities[name][own, y], LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP)
        parts.append(_mean(own, -np.log(p), np.asarray(WEIGHTS[name])[y]))
    return parts
