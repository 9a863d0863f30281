"""Charts of scores: ROC and precision over recall, calibration, confusion. Seeds and folds are averaged, never pooled
where scores of different models would be ranked together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.pages.charts.chart import Chart, Style, framed, new_figure, write
from benchmarks.read.rows import Row
from voco.figures import style
from voco.figures.confusion import tiles
from voco.figures.ranking import precision, roc
from voco.figures.style import INK, MUTED, SMALL, TEXT
from voco.tasks.base import Output, known_labels

if TYPE_CHECKING:
    import pandas as pd

_GRID = np.linspace(0, 1, 51)
_BINS = 8
_SIDE = 300
_DOTS = (0, (2, 3))


def roc_overlay(name: str, title: str, rows: Sequence[Row], output: Output, look: Mapping[str, Style]) -> Chart | None:
    """True over false positive rate, mean over seeds and folds, one curve a row; None where there is none."""
    curves = {row.label: _mean_curve(row, output, roc) for row in rows}
    note = "Mean over seeds and folds at equal false positive rate."
    axes = ("false positive rate", "true positive rate")
    return _overlay(name, title, curves, look, axes, note, diagonal=True)


def precision_overlay(
    name: str, title: str, rows: Sequence[Row], output: Output, look: Mapping[str, Style]
) -> Chart | None:
    """Precision over recall, mean over seeds and folds, with the share of positives; None where there is none."""
    curves = {row.label: _mean_curve(row, output, precision) for row in rows}
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
    figure, axes = _square([row.label for row in rows], look, ("mean score", "share that came true"))
    note = f"Up to {_BINS} bins of equal size, mean over seeds. On the diagonal scores are probabilities."
    chart = Chart(name, title, figure, note, ("source", "bin", "mean_score", "share_true"))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DOTS)
    for row in rows:
        each = [bins for run in row.runs if (bins := _reliability(run.units, output)) is not None]
        if not each:
            continue
        means, own = np.mean(each, 0), look[row.label]
        axes.plot(*means.T, linewidth=1.6, **own.mark(size=6.4) | own.line)
        chart.rows += [(row.label, place, a, b) for place, (a, b) in enumerate(means)]
    return chart if chart.rows else None


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
    count = len(names)
    cell, left, top = 76 if count == 2 else max(40, 250 // count), 104, 46
    how = "threshold from validation" if output.kind == "binary" else "class with the highest score"
    seeds = f"mean over {len(tables)} seeds" if len(tables) > 1 else "one seed"
    figure = new_figure(top + cell * count + 14, left + cell * count + 14)
    title = f"{output.name}: {row.label}, {row.first.encoder}, {row.first.mode}"
    note = f"Rows: true class; columns: given class ({how}). Counts, {seeds}."
    chart = Chart(name, title, figure, note, ("true", "given", "count", "share_of_true"))
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-12)
    tiles(style.pixels(figure, left, top, cell * count, cell * count), share, strength=0.55, gap=2)
    write(figure, left, 16, "given →")
    write(figure, left - 8, top - 8, "true ↓", ha="right")
    for i, true in enumerate(names):
        y, x = (start + cell * (i + 0.5) for start in (top, left))
        write(figure, left - 8, y + 4, true, color=INK, room=left - 12, ha="right")
        write(figure, x, top - 8, true, color=INK, room=cell - 2, ha="center")
        for j, given in enumerate(names):
            x = left + cell * (j + 0.5)
            write(figure, x, y + 1, f"{matrix[i, j]:.3g}", color=INK, size=TEXT, ha="center")
            write(figure, x, y + 15, f"{100 * share[i, j]:.0f} %", color=INK, size=SMALL, ha="center")
            chart.rows.append((true, given, float(matrix[i, j]), float(share[i, j])))
    return chart


def _overlay(name, title, curves, look, axes_words, note, *, diagonal=False, level=None) -> Chart | None:
    curves = {source: values for source, values in curves.items() if values is not None}
    if not curves:
        return None
    figure, axes = _square(list(curves), look, axes_words)
    chart = Chart(name, title, figure, note, ("source", *(words.replace(" ", "_") for words in axes_words)))
    if diagonal:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DOTS)
    if level is not None:
        axes.axhline(level, color=MUTED, linewidth=1, linestyle=_DOTS)
    for source, values in curves.items():
        axes.plot(_GRID, values, linewidth=2, **look[source].line)
        chart.rows += [(source, float(a), float(b)) for a, b in zip(_GRID, values)]
    return chart


def _square(names: Sequence[str], look: Mapping[str, Style], words: tuple[str, str]):
    """Figure and axes with both axes from 0 to 1."""
    figure, axes = framed(names, look, _SIDE, words, right=32)
    marks = (0, 0.25, 0.5, 0.75, 1)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
    return figure, axes


def _mean_curve(row: Row, output: Output, curve) -> np.ndarray | None:
    """(51,) values on the grid, mean over the folds and seeds where the curve is defined."""
    found = []
    for run in row.runs:
        for _, own in run.units.groupby("fold"):
            labels, scores = known_labels(own, output)
            if len(labels) and (values := curve(labels, scores[:, 0], grid=_GRID)) is not None:
                found.append(values)
    return np.mean(found, 0) if found else None


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
