"""Operating points: thresholds fixed on validation, and what they give elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from voco.tasks.base import Task, known_labels


def operating_points(task: Task, predictions) -> dict[str, dict[str, float]]:
    """Per binary output, the threshold with the highest sensitivity + specificity (Youden) on these predictions.

    Args:
        predictions: rows of cases, of the validation part.

    Returns:
        Output name to ``threshold`` and the ``sensitivity`` and ``specificity`` there; outputs without both classes are
        left out. A score at or above the threshold is positive.
    """
    units = task.to_units(predictions)
    found = {}
    for output in task.outputs:
        if output.kind != "binary":
            continue
        labels, scores = known_labels(units, output)
        if len(np.unique(labels)) < 2:
            continue
        thresholds = np.unique(scores)
        rates = [at_threshold(labels, scores[:, 0], t) for t in thresholds]
        best = max(range(len(rates)), key=lambda i: rates[i]["sensitivity"] + rates[i]["specificity"])
        found[output.name] = {"threshold": float(thresholds[best]), **rates[best]}
    return found


def at_threshold(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Sensitivity and specificity of ``score >= threshold``; NaN for a class that is not there."""
    positive, called = np.asarray(labels) == 1, np.asarray(scores) >= threshold
    found = {"sensitivity": float("nan"), "specificity": float("nan")}
    if positive.any():
        found["sensitivity"] = float(called[positive].mean())
    if not positive.all():
        found["specificity"] = float(1 - called[~positive].mean())
    return found


def apply_operating_points(task: Task, predictions, points: Mapping[str, Mapping[str, float]]) -> dict[str, dict]:
    """Sensitivity, specificity and counts of labeled predictions at thresholds fixed elsewhere."""
    units = task.to_units(predictions)
    found = {}
    for output in task.outputs:
        if output.name in points:
            labels, scores = known_labels(units, output)
            threshold = points[output.name]["threshold"]
            counts = {"positive": int((labels == 1).sum()), "negative": int((labels == 0).sum())}
            found[output.name] = {"threshold": threshold, **at_threshold(labels, scores[:, 0], threshold), **counts}
    return found
