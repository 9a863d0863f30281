"""ROC and precision-recall curves with bands over patients; folds of a cross-validation one by one and averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voco.figures import style
from voco.figures.style import BLUE, INK, MUTED, SKY
from voco.stats.bootstrap import bootstrap, resample_counts
from voco.stats.interval import Interval
from voco.tasks.outputs import Output
from voco.tasks.standard import AUROC, AveragePrecision

GRID = np.linspace(0, 1, 201)
_DRAWS = 300


def roc_pr(
    labels: Sequence[float],
    scores: Sequence[float],
    patients: Sequence[str],
    *,
    folds: Sequence[int] | None = None,
    name: str = "",
    title: str = "",
    seed: int = 0,
) -> style.Figure:
    """ROC on the left, precision and recall on the right, each with its 95 % band and its area with interval.

    With several folds thin lines are the folds, the bold line is their mean at equal false positive rate or recall:
    scores of different models are never ranked together.

    Args:
        labels: (n,) 0 or 1; rows with NaN are left out.
        scores: (n,) higher means more likely positive.
        patients: (n,) drawn together.
        folds: (n,) fold of each row.
        name: what is predicted, in the headline.
        title: replaces the finding.
        seed: of the resamples.
    """
    import pandas as pd

    frame = pd.DataFrame(
        {"label_": np.asarray(labels, float), "score_": np.asarray(scores, float), "p": list(map(str, patients))}
    )
    frame["f"] = 0 if folds is None else np.asarray(folds)
    frame = frame[frame["label_"].notna()].reset_index(drop=True)
    areas = {
        metric.name: bootstrap(frame, frame["p"], metric((Output(""),)), folds=frame["f"], seed=seed)
        for metric in (AUROC, AveragePrecision)
    }
    count, positive = len(frame), int(frame["label_"].sum())
    figure = style.new_figure(640)
    panels = [style.pixels(figure, 76 + column * 590, 148, 420, 420) for column in range(2)]
    _draw(panels[0], frame, roc, seed)
    _draw(panels[1], frame, precision, seed)
    panels[0].plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (1, 2)))
    panels[0].text(
        0.98,
        0.93,
        "chance",
        color=MUTED,
        fontsize=style.SMALL,
        ha="right",
        rotation=45,
        rotation_mode="anchor",
        transform=panels[0].transData,
    )
    share = positive / max(1, count)
    panels[1].axhline(share, color=INK, linewidth=1, linestyle=(0, (1, 2)))
    panels[1].text(
        0.02,
        share + (0.02 if share < 0.9 else -0.05),
        f"share of positives {share:.2f}",
        color=MUTED,
        fontsize=style.SMALL,
    )
    style.panel_title(
        panels[0], f"ROC, AUROC {_words(areas['auroc'])}", "true positive rate against false positive rate"
    )
    style.panel_title(panels[1], f"precision, AP {_words(areas['ap'])}", "precision against recall")
    for axes, words in zip(panels, ("false positive rate", "recall")):
        axes.set_xlabel(words, fontsize=style.SMALL, color=MUTED)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.03)
        axes.set_aspect("equal")
        style.plain(axes)
    shown = frame["f"].nunique()
    style.headline(
        figure,
        title or f"{name + ': ' if name else ''}AUROC {_words(areas['auroc'])} on {count} cases, {positive} positive",
        f"Bands: 95 % over {frame['p'].nunique()} patients, drawn with replacement."
        + (f" Thin lines: {shown} folds; bold: their mean." if shown > 1 else ""),
    )
    return figure


def _words(area: Interval) -> str:
    if not np.isfinite(area.point):
        return "not defined"
    return f"{area.point:.3f}" + (f" ({area.low:.3f} to {area.high:.3f})" if area.low is not None else "")


def _draw(axes, frame, curve, seed: int) -> None:
    parts = [own for _, own in frame.groupby("f") if 0 < own["label_"].sum() < len(own)]
    if not parts:
        axes.text(0.5, 0.5, "not defined: one class only", transform=axes.transAxes, ha="center", color=MUTED,
            bbox={"facecolor": "white", "edgecolor": "none"})  # fmt: skip
        return
    names, member = np.unique(frame["p"], return_inverse=True)
    plain = [curve(*_arrays(own)) for own in parts]
    if len(names) > 1:
        draws = []
        for counts in resample_counts(len(names), _DRAWS, seed):
            each = [
                curve(own["label_"].to_numpy(), own["score_"].to_numpy(), counts[member[own.index]]) for own in parts
            ]
            each = [values for values in each if values is not None]
            if each:
                draws.append(np.mean(each, 0))
        low, high = np.percentile(draws, [2.5, 97.5], axis=0)
        axes.fill_between(GRID, low, high, color=BLUE, alpha=0.15, linewidth=0)
    if len(plain) > 1:
        for values in plain:
            axes.plot(GRID, values, color=SKY, linewidth=0.8, alpha=0.8)
    axes.plot(GRID, np.mean(plain, 0), color=BLUE, linewidth=2.2)


def _arrays(own) -> tuple[np.ndarray, np.ndarray]:
    return own["label_"].to_numpy(), own["score_"].to_numpy()


def _counts(y: np.ndarray, s: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Weights of positives and negatives at or above each distinct score, from the highest down."""
    order = np.argsort(-s, kind="stable")
    ranked, hit = s[order], y[order]
    weight = np.ones(len(y)) if weights is None else weights[order].astype(float)
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    true, false = np.cumsum(weight * hit)[ends], np.cumsum(weight * (1 - hit))[ends]
    return (true, false) if true[-1] > 0 and false[-1] > 0 else None


def roc(y: np.ndarray, s: np.ndarray, weights: np.ndarray | None = None, *, grid: np.ndarray = GRID):
    """True positive rate at each false positive rate of the grid; ties are straight lines.

    Args:
        y: (n,) 0 or 1.
        s: (n,) scores, higher means more likely positive.
        weights: (n,) of the cases; 1 by default.
        grid: (g,) from 0 to 1.

    Returns:
        (g,) values, None where there is one class only.
    """
    found = _counts(y, s, weights)
    if found is None:
        return None
    true, false = (count / count[-1] for count in found)
    values = np.interp(grid, np.r_[0.0, false], np.r_[0.0, true])
    values[0] = true[false == 0].max(initial=0.0)  # the step at rate 0
    return values


def precision(y: np.ndarray, s: np.ndarray, weights: np.ndarray | None = None, *, grid: np.ndarray = GRID):
    """Precision at the first threshold that reaches each recall of the grid, as average precision sums it.

    At recall 0 it is that of the first hit. Arguments and value are those of ``roc``.
    """
    found = _counts(y, s, weights)
    if found is None:
        return None
    recall = found[0] / found[0][-1]
    values = found[0] / np.maximum(found[0] + found[1], 1e-12)
    return values[np.minimum(np.searchsorted(recall, np.maximum(grid - 1e-9, 1e-9)), len(recall) - 1)]
