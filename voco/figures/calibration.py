"""Do scores mean what they say: observed shares against scores, with how many cases stand behind each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voco.figures import style
from voco.figures.style import BLUE, FAINT, GREY, INK, MUTED

_MOST_BINS = 10
_LEAST_PER_BIN = 8


def reliability(
    labels: Sequence[float],
    scores: Sequence[float],
    *,
    name: str = "",
    event: str = "positive",
    title: str = "",
) -> style.Figure:
    """Share of positives among cases of similar score, with 95 % intervals of Wilson (1927), and counts of scores.

    Cases are put in up to ten groups of equal size by their score; equal scores stay together. Intervals take cases as
    independent, so with several scans a patient they are too narrow.

    Args:
        labels: (n,) 0 or 1; rows with NaN are left out.
        scores: (n,) probabilities.
        name: what is predicted, in the headline.
        event: what a label of 1 means; for several classes the pairs (answer was right, its probability) are shown.
        title: replaces the finding.
    """
    labels, scores = np.asarray(labels, float), np.asarray(scores, float)
    known = ~np.isnan(labels)
    labels, scores = labels[known], scores[known]
    figure = style.new_figure(820)
    top, bottom = style.pixels(figure, 76, 160, 420, 420), style.pixels(figure, 76, 670, 420, 90)
    top.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (1, 2)))
    rows = groups_of_scores(labels, scores)
    for row in rows:
        top.vlines(row["score"], row["low"], row["high"], color=BLUE, linewidth=1.4, alpha=0.7)
    top.plot([r["score"] for r in rows], [r["share"] for r in rows], "o-", color=BLUE, linewidth=1.4, markersize=5)
    style.panel_title(top, f"share that is {event}", "dotted: scores that mean what they say")
    bins = np.linspace(0, 1, 21)
    negative, positive = (np.histogram(scores[labels == value], bins)[0] for value in (0, 1))
    bottom.bar(bins[:-1] + 0.025, negative, width=0.042, color=GREY, alpha=0.45)
    bottom.bar(bins[:-1] + 0.025, positive, width=0.042, bottom=negative, color=BLUE)
    style.panel_title(bottom, "cases", f"blue: {event}, grey: not")
    bottom.set_xlabel("score", fontsize=style.SMALL, color=MUTED)
    for axes in (top, bottom):
        axes.set_xlim(-0.01, 1.01)
        style.plain(axes)
    top.set_ylim(-0.01, 1.03)
    _write_groups(figure, rows, event)
    style.headline(
        figure,
        title or _finding(labels, scores, name, event),
        f"{_brier(labels, scores)}Groups of about equal size by score; bars: 95 % interval of the share.\n"
        "Good order (AUROC) and good calibration are different things.",
    )
    return figure


def groups_of_scores(labels: np.ndarray, scores: np.ndarray) -> list[dict[str, float]]:
    """Groups of similar score: mean score, share of positives with Wilson interval, and counts.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,).
    """
    if not len(scores):
        return []
    count = int(np.clip(len(scores) // _LEAST_PER_BIN, 1, _MOST_BINS))
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, count + 1)[1:-1]))
    member = np.searchsorted(edges, scores, side="left")
    rows = []
    for group in np.unique(member):
        own = labels[member == group]
        low, high = wilson(own.sum(), len(own))
        rows.append({"score": float(scores[member == group].mean()), "share": float(own.mean()), "low": low,
            "high": high, "cases": len(own), "positive": int(own.sum())})  # fmt: skip
    return rows


def wilson(hits: float, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), never outside [0, 1]."""
    share = hits / count
    middle = share + z * z / (2 * count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)
    return float(max(0.0, low)), float(min(1.0, high))


def _finding(labels, scores, name: str, event: str) -> str:
    if not len(labels):
        return "No case has a known label"
    return f"{name + ': ' if name else ''}the mean score is {scores.mean():.2f}, and {labels.mean():.0%} are {event}"


def _brier(labels, scores) -> str:
    if not len(labels):
        return ""
    score, blind = np.mean((scores - labels) ** 2), labels.mean() * (1 - labels.mean())
    return f"Brier score {score:.3f}, of a constant {blind:.3f}. "


def _write_groups(figure, rows, event: str) -> None:
    axes = style.pixels(figure, 620, 140, 520, 560)
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    columns = ((0.0, "mean score"), (0.24, f"share {event}"), (0.52, "95 % interval"), (0.8, "cases"))
    for x, words in columns:
        axes.text(x, 0.99, words, fontsize=style.NOTE, fontweight="bold", color=INK, va="top")
    axes.axhline(0.945, color=FAINT, linewidth=0.8)
    for number, row in enumerate(rows):
        y = 0.92 - 0.05 * number
        texts = (f"{row['score']:.2f}", f"{row['share']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['positive']} of {row['cases']}")  # fmt: skip
        for (x, _), text in zip(columns, texts):
            axes.text(x, y, text, fontsize=style.NOTE, color=INK, va="top")
