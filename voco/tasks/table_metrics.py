"""Metrics of any labels by their kind, from rows of predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from voco.tasks import classes
from voco.tasks.base import Output, Scores, known_labels
from voco.tasks.ranking import auroc, average_precision, why_undefined

if TYPE_CHECKING:
    import pandas as pd

MAIN_METRIC = {"binary": "auroc", "multilabel": "auroc", "multiclass": "auroc", "regression": "mae"}
_Metric = Callable[[np.ndarray, np.ndarray], float]


def table_metrics(kind: str, outputs: Sequence[Output], units: pd.DataFrame, only: str = "") -> Scores:
    """Metrics of one kind of labels.

    Of several columns, each has its own metrics (``auroc_<label>``), and the plain name is the mean over the columns
    where it is defined.

    Args:
        kind: binary, multilabel, multiclass or regression.
        outputs: one per label column.
        units: rows with label and score columns.
        only: a metric that is wanted alone.
    """
    known = {output.name: known_labels(units, output) for output in outputs}
    out = Scores()
    for name, function in _METRICS[kind].items():
        if only and only != name and not any(only == f"{name}_{output}" for output in known):
            continue
        single = {}
        for output, (labels, scores) in known.items():
            single[output] = function(labels, scores) if len(labels) else float("nan")
            if len(outputs) > 1:
                out.add(f"{name}_{output}", single[output], _why(kind, labels))
        why = _why(kind, known[outputs[0].name][0]) if len(outputs) == 1 else "not defined for any label"
        out.add(name, classes.mean_defined(list(single.values())), why)
    return out


def shuffled_metric(
    kind: str, outputs: Sequence[Output], units: pd.DataFrame, places: np.ndarray, name: str
) -> np.ndarray:
    """(R,) values of a metric where each unit has the labels of the unit at ``places`` (R, n)."""
    base = next(metric for metric in _METRICS[kind] if name in (metric, *(f"{metric}_{o.name}" for o in outputs)))
    values = []
    for output in outputs if name == base else [o for o in outputs if name == f"{base}_{o.name}"]:
        scores = units[list(output.score_columns)].to_numpy(float)
        given = units[output.label_column].to_numpy(float)[places]
        known = ~np.isnan(given)
        compute = _METRICS[kind][base]
        values.append([compute(own[k], scores[k]) if k.any() else float("nan") for own, k in zip(given, known)])
    return np.array([classes.mean_defined(each) for each in np.transpose(values)])


def metric_names(kind: str, outputs: Sequence[Output]) -> list[str]:
    """Names that ``table_metrics`` gives."""
    single = [f"{name}_{output.name}" for name in _METRICS[kind] for output in outputs] if len(outputs) > 1 else []
    return [*_METRICS[kind], *single]


def lower_is_better(name: str) -> bool:
    """Whether a metric is an error."""
    return name.split("_")[0] in ("mae", "rmse")


def _why(kind: str, labels: np.ndarray) -> str:
    if kind in ("binary", "multilabel"):
        return why_undefined(labels)
    if not len(labels):
        return "no case with a known label"
    if kind == "multiclass":
        return "all cases are of one class" if len(set(labels)) == 1 else ""
    return "all labels or all scores are the same"


def _of_classes(function: Callable[[np.ndarray], float]) -> _Metric:
    def metric(labels: np.ndarray, scores: np.ndarray) -> float:
        return function(classes.confusion(labels, scores.argmax(1), scores.shape[1]))

    return metric


def _mae(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(np.abs(labels - scores[:, 0]).mean())


def _rmse(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(np.sqrt(((labels - scores[:, 0]) ** 2).mean()))


def _r2(labels: np.ndarray, scores: np.ndarray) -> float:
    """1 - squared error / squared deviation from the mean of these labels; NaN where they are all the same."""
    spread = ((labels - labels.mean()) ** 2).sum()
    return float(1 - ((labels - scores[:, 0]) ** 2).sum() / spread) if spread > 0 else float("nan")


def _spearman(labels: np.ndarray, scores: np.ndarray) -> float:
    """Correlation of ranks, ties at their mean rank; NaN where one side is constant."""
    if len(set(labels)) < 2 or len(set(scores[:, 0])) < 2:
        return float("nan")
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(labels), rankdata(scores[:, 0]))[0, 1])


_BINARY: dict[str, _Metric] = {
    "auroc": lambda labels, scores: auroc(labels, scores[:, 0]),
    "ap": lambda labels, scores: average_precision(labels, scores[:, 0]),
}
_METRICS: dict[str, dict[str, _Metric]] = {
    "binary": _BINARY,
    "multilabel": _BINARY,
    "multiclass": {
        "auroc": lambda labels, scores: classes.mean_defined(classes.one_vs_rest_auroc(labels, scores)),
        "accuracy": _of_classes(classes.accuracy),
        "balanced_accuracy": _of_classes(lambda matrix: classes.mean_defined(classes.recalls(matrix))),
        "kappa": _of_classes(classes.cohen_kappa),
    },
    "regression": {"mae": _mae, "rmse": _rmse, "r2": _r2, "spearman": _spearman},
}
