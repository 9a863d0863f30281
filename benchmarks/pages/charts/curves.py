"""Charts of scores: ROC and precision over recall, calibration, confusion. Seeds and folds are averaged, never pooled
where scores of different models would be ranked together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.pages.charts.chart import Chart, Scale, Style, legend
from benchmarks.read.rows import Row
from voco.tasks.base import Output, known_labels

if TYPE_CHECKING:
    import pandas as pd

_GRID = np.linspace(0, 1, 51)
_BINS = 8
_LEFT, _SIDE = 48, 300


def roc_overlay(name: str, title: str, rows: Sequence[Row], output: Output, look: Mapping[str, Style]) -> Chart | None:
    """True over false positive rate, mean over seeds and folds, one curve a row; None where there is none."""
    curves = {row.label: _mean_curve(row, output, _roc) for row in rows}
    note = "Mean over seeds and folds at equal false positive rate."
    axes = ("false positive rate", "true positive rate")
    return _overlay(name, title, curves, look, axes, note, diagonal=True)


def precision_overlay(
    name: str, title: str, rows: Sequence[Row], output: Output, look: Mapping[str, Style]
) -> Chart | None:
    """Precision over recall, mean over seeds and folds, with the share of positives; None where there is none."""
    curves = {row.label: _mean_curve(row, output, _precision) for row in rows}
    labels = known_labels(rows[0].first.units, output)[0]
    positive = float(labels.mean()) if len(labels) else None
    note = "Mean over seeds and folds at equal recall. Dotted: share of positives."
    return _overlay(name, title, curves, look, ("recall", "precision"), note, level=positive)


def calibration(name: str, title: str, rows: Sequence[Row], output: Output, look: Mapping[str, Style]) -> Chart | None:
    """How often what was scored alike came true, in bins of equal size, mean over seeds; None for regression.

    Of several classes: how often the class with the highest score was right, over that score.
    """
    if output.kind == "regression":
        return None
    chart = _square(name, title, [row.label for row in rows], look, ("mean score", "share that came true"))
    chart.note = f"Up to {_BINS} bins of equal size, mean over seeds. On the diagonal scores are probabilities."
    chart.columns = ("source", "bin", "mean_score", "share_true")
    x, y = _scales(chart)
    chart.line([(x(0), y(0)), (x(1), y(1))], "muted", 1, "2 3")
    drawn = False
    for row in rows:
        each = [bins for run in row.runs if (bins := _reliability(run.units, output)) is not None]
        if not each:
            continue
        drawn = True
        means = np.mean(each, 0)
        style = look[row.label]
        chart.line([(x(a), y(b)) for a, b in means], style.color, 1.6, style.dash)
        for place, (a, b) in enumerate(means):
            chart.marker(x(a), y(b), style, size=3.2)
            chart.rows.append((row.label, place, a, b))
    return chart if drawn else None


def confusion(name: str, row: Row, output: Output) -> Chart | None:
    """Counts of true and given classes, mean over seeds.

    Binary: at the threshold with the highest sensitivity + specificity on the run's own validation patients. None where
    there is no validation to choose one, and for regression.
    """
    if output.kind == "regression":
        return None
    tables = [table for run in row.runs if (table := _confusion(run, output)) is not None]
    if not tables:
        return None
    matrix = np.mean(tables, 0)
    names = output.classes if output.kind == "multiclass" else ("negative", "positive")
    cell = 76 if len(names) == 2 else max(40, 250 // len(names))
    left, top = 104, 46
    how = "threshold from validation" if output.kind == "binary" else "class with the highest score"
    chart = Chart(
        name,
        f"{output.name}: {row.label}, {row.first.encoder}, {row.first.mode}",
        top + cell * len(names) + 14,
        left + cell * len(names) + 14,
    )
    seeds = f"mean over {len(tables)} seeds" if len(tables) > 1 else "one seed"
    chart.note = f"Rows: true class; columns: given class ({how}). Counts, {seeds}."
    chart.columns = ("true", "given", "count", "share_of_true")
    chart.text(left, 16, "given →", color="muted", size=10.5)
    chart.text(left - 8, top - 8, "true ↓", color="muted", size=10.5, anchor="end")
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-12)
    for i, true in enumerate(names):
        chart.text(left - 8, top + cell * (i + 0.5) + 4, true, size=11, anchor="end", room=left - 12)
        chart.text(left + cell * (i + 0.5), top - 8, true, size=10.5, anchor="middle", room=cell - 2)
        for j, given in enumerate(names):
            x, y = left + cell * j, top + cell * i
            chart.rect(x + 1, y + 1, cell - 2, cell - 2, "faint", 0.5)
            chart.rect(x + 1, y + 1, cell - 2, cell - 2, "c0", 0.55 * float(share[i, j]))
            middle = (x + cell / 2, y + cell / 2)
            chart.text(middle[0], middle[1] + 1, f"{matrix[i, j]:.3g}", anchor="middle", bold=True, size=12)
            chart.text(middle[0], middle[1] + 15, f"{100 * share[i, j]:.0f} %", anchor="middle", size=10, color="ink")
            chart.rows.append((true, given, float(matrix[i, j]), float(share[i, j])))
    return chart


def _overlay(name, title, curves, look, axes, note, *, diagonal=False, level=None) -> Chart | None:
    curves = {source: values for source, values in curves.items() if values is not None}
    if not curves:
        return None
    chart = _square(name, title, list(curves), look, axes)
    chart.note, chart.columns = note, ("source", axes[0].replace(" ", "_"), axes[1].replace(" ", "_"))
    x, y = _scales(chart)
    if diagonal:
        chart.line([(x(0), y(0)), (x(1), y(1))], "muted", 1, "2 3")
    if level is not None:
        chart.line([(x(0), y(level)), (x(1), y(level))], "muted", 1, "2 3")
    for source, values in curves.items():
        chart.line([(x(a), y(b)) for a, b in zip(_GRID, values)], look[source].color, 2, look[source].dash)
        chart.rows += [(source, float(a), float(b)) for a, b in zip(_GRID, values)]
    return chart


def _square(name: str, title: str, names: Sequence[str], look: Mapping[str, Style], axes: tuple[str, str]) -> Chart:
    """A chart with both axes from 0 to 1; the legend stands above."""
    chart = Chart(name, title, 0)
    top = legend(chart, list(dict.fromkeys(names)), look, 12, 18) + 18
    chart.height = int(top + _SIDE + 44)
    x, y = _scales(chart)
    for value in (0, 0.25, 0.5, 0.75, 1):
        chart.line([(x(0), y(value)), (x(1), y(value))], "faint", 1)
        chart.text(x(0) - 6, y(value) + 4, f"{value:g}", color="muted", size=11, anchor="end")
        chart.text(x(value), y(0) + 16, f"{value:g}", color="muted", size=11, anchor="middle")
    chart.text(x(0.5), y(0) + 34, axes[0], color="muted", size=11, anchor="middle")
    chart.text(12, y(1) - 8, axes[1], color="muted", size=11)
    return chart


def _scales(chart: Chart) -> tuple[Scale, Scale]:
    bottom = chart.height - 44
    return Scale(0, 1, _LEFT, _LEFT + _SIDE + 40), Scale(0, 1, bottom, bottom - _SIDE)


def _mean_curve(row: Row, output: Output, curve) -> np.ndarray | None:
    """(51,) values on the grid, mean over the folds and seeds where the curve is defined."""
    found = []
    for run in row.runs:
        for _, own in run.units.groupby("fold"):
            labels, scores = known_labels(own, output)
            if 0 < labels.sum() < len(labels):
                found.append(curve(labels, scores[:, 0]))
    return np.mean(found, 0) if found else None


def _steps(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives at or above each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], labels[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    return np.cumsum(hit)[ends], np.cumsum(1 - hit)[ends]


def _roc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    true, false = _steps(labels, scores)
    found = np.interp(_GRID, np.r_[0.0, false / false[-1]], np.r_[0.0, true / true[-1]])
    found[0] = (true / true[-1])[false == 0].max(initial=0.0)  # the step at rate 0
    return found


def _precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Precision at the first threshold that reaches each recall, as average precision sums it."""
    true, false = _steps(labels, scores)
    recall, precision = true / true[-1], true / (true + false)
    return precision[np.minimum(np.searchsorted(recall, np.maximum(_GRID - 1e-9, 1e-9)), len(recall) - 1)]


def _reliability(units: pd.DataFrame, output: Output) -> np.ndarray | None:
    """(bins, 2) mean score and share that came true; None without known labels, or for scores beyond [0, 1]."""
    labels, scores = known_labels(units, output)
    if output.kind == "multiclass":
        labels, scores = (scores.argmax(1) == labels).astype(float), scores.max(1, keepdims=True)
    if not len(labels) or scores.min() < 0 or scores.max() > 1:
        return None
    order = np.argsort(scores[:, 0], kind="stable")
    parts = np.array_split(order, min(_BINS, max(1, len(order) // 5)))
    return np.array([[scores[part, 0].mean(), labels[part].mean()] for part in parts])


def _confusion(run, output: Output) -> np.ndarray | None:
    from voco.tasks.classes import confusion as count
    from voco.transfer.operating import operating_points

    if output.kind == "multiclass":
        labels, scores = known_labels(run.units, output)
        return count(labels.astype(int), scores.argmax(1), output.width).astype(float) if len(labels) else None
    total = np.zeros((2, 2))
    for fold, own in run.predictions.groupby("fold"):
        validation = own[own["split"] == "validation"]
        points = operating_points(run.task, validation) if len(validation) else {}
        if output.name not in points:
            return None
        labels, scores = known_labels(run.units[run.units["fold"] == fold], output)
        called = scores[:, 0] >= points[output.name]["threshold"]
        total += count(labels.astype(int), called.astype(int), 2)
    return total
