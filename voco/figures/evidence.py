"""Why a study got its score: window scores along z, the slice behind the highest one, and where the network looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from voco.figures import style
from voco.figures.style import BLUE, FAINT, INK, MUTED, ORANGE, VERMILLION
from voco.short_repr import short_repr

_SIDE, _GAP, _TOP = 300, 22, 132


@short_repr
@dataclass(frozen=True)
class Evidence:
    """One study.

    Attributes:
        name: shown beside the row, e.g. the case id.
        hu: (D, H, W) prepared volume in Hounsfield units, canonical axes (toward superior, posterior, left).
        spacing_mm: (D, H, W).
        starts: (N,) first slice of each window; may be below 0 where a window is larger than the study.
        depth: slices of a window.
        scores: (N,) of the windows.
        slice_index, slice_labels: (P,) place along D and label of slices that have one; NaN = not known.
        saliency: (D, H, W) at least 0, any scale; None for none.
        truth: label in words.
        score: of the study.
        shown: slice to show; by default that of the highest score.
    """

    name: str
    hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    starts: np.ndarray
    depth: int
    scores: np.ndarray
    slice_index: np.ndarray = field(default_factory=lambda: np.zeros(0))
    slice_labels: np.ndarray = field(default_factory=lambda: np.zeros(0))
    saliency: np.ndarray | None = None
    truth: str = ""
    score: float = float("nan")
    shown: int | None = None

    def slice_scores(self) -> np.ndarray:
        """(D,) mean score of the windows that hold each slice, NaN where none does."""
        total, count = np.zeros(len(self.hu)), np.zeros(len(self.hu))
        for start, score in zip(self.starts, self.scores):
            inside = slice(max(0, int(start)), max(0, int(start) + self.depth))
            total[inside] += score
            count[inside] += 1
        return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)

    def best_slice(self) -> int:
        """Slice of the highest score; of several that are equal the most salient, else the middle one."""
        if self.shown is not None:
            return self.shown
        scores = self.slice_scores()
        if not np.isfinite(scores).any():
            return len(self.hu) // 2
        ties = np.flatnonzero(scores >= np.nanmax(scores) - 1e-9)
        if self.saliency is not None:
            weight = self.saliency[ties].reshape(len(ties), -1).sum(1)
            if weight.max() > 0:
                return int(ties[weight.argmax()])
        return int(ties[len(ties) // 2])


def evidence(
    cases: Sequence[Evidence],
    *,
    hu_window: tuple[float, float] = (-160.0, 240.0),
    title: str = "",
    note: str = "",
) -> style.Figure:
    """One row a study: coronal view and window scores on one z axis, then the slice, plain and with saliency.

    Args:
        cases: at least one.
        hu_window: (low, high) HU that is black and white.
        title: replaces the finding.
        note: added to the line under the title.
    """
    figure = style.new_figure(_TOP + len(cases) * (_SIDE + 46) + 30)
    for row, case in enumerate(cases):
        top = _TOP + row * (_SIDE + 46)
        best = case.best_slice()
        coronal = style.pixels(figure, 76, top, 190, _SIDE)
        curve = style.pixels(figure, 76 + 190 + 16, top, 200, _SIDE)
        _coronal(coronal, case, best, hu_window)
        _curve(curve, case, best)
        left = 76 + 190 + 16 + 200 + 44
        plain = style.pixels(figure, left, top, _SIDE, _SIDE)
        _axial(plain, case, best, hu_window)
        overlay = style.pixels(figure, left + _SIDE + _GAP, top, _SIDE, _SIDE)
        _axial(overlay, case, best, hu_window, saliency=True)
        if row == 0:
            heads = ("from the front", "window scores", "slice of the highest score", "saliency on it")
            for axes, words in zip((coronal, curve, plain, overlay), heads):
                style.panel_title(axes, words)
        words = f"{_short(case.name)}{', ' if case.truth else ''}{case.truth}"
        coronal.text(
            0.0, -0.03, words, transform=coronal.transAxes, fontsize=style.SMALL, fontweight="bold", color=INK, va="top"
        )
    style.headline(
        figure,
        title or _finding(cases),
        "Orange: slices labeled positive. Dashed: the slice shown. Warm colours: what the score depends on most."
        + (f"\n{note}" if note else ""),
    )
    return figure


def _short(name: str, longest: int = 40) -> str:
    return name if len(name) <= longest else f"{name[: longest - 13]}…{name[-12:]}"


def _positive(case: Evidence) -> np.ndarray:
    labels = np.nan_to_num(np.asarray(case.slice_labels, float))
    return np.asarray(case.slice_index, float)[labels > 0]


def _mark_positive(axes, case: Evidence) -> None:
    for index in _positive(case):
        axes.axhspan(index - 0.5, index + 0.5, color=ORANGE, alpha=0.35, linewidth=0)


def _coronal(axes, case: Evidence, best: int, window) -> None:
    """Middle coronal slice, superior up; the panel keeps its height, so that z matches the curve beside it."""
    image = style.grey(case.hu[:, case.hu.shape[1] // 2], window)
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, origin="lower", aspect="auto", interpolation="nearest")
    for index in _positive(case):
        axes.axhspan(index - 0.5, index + 0.5, xmin=0.0, xmax=0.05, color=ORANGE, linewidth=0)
    axes.axhline(best, color="white", linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xticks([])
    axes.set_ylim(-0.5, len(case.hu) - 0.5)
    _millimetres(axes, case)


def _millimetres(axes, case: Evidence) -> None:
    """Ticks along z in mm from the lowest slice."""
    length = len(case.hu) * case.spacing_mm[0]
    step = next((s for s in (5, 10, 20, 50, 100, 200) if length / s <= 7), 500)
    marks = np.arange(0, length, step)
    axes.set_yticks(marks / case.spacing_mm[0], [f"{mark:g}" for mark in marks])
    axes.tick_params(length=0, labelsize=8, colors=MUTED)
    axes.set_ylabel("mm toward the head", fontsize=8.5, color=MUTED, labelpad=2)
    for side in axes.spines.values():
        side.set_visible(False)


def _curve(axes, case: Evidence, best: int) -> None:
    _mark_positive(axes, case)
    scores = case.slice_scores()
    axes.plot(scores, np.arange(len(scores)), color=BLUE, linewidth=1.6)
    middle = np.asarray(case.starts, float) + (case.depth - 1) / 2
    axes.plot(case.scores, middle, "o", color=BLUE, markersize=3.5)
    axes.axhline(best, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_ylim(-0.5, len(case.hu) - 0.5)
    values = np.asarray(case.scores, float)
    if len(values) and values.min() >= 0 and values.max() <= 1:
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    if np.isfinite(case.score):
        axes.axvline(case.score, color=VERMILLION, linewidth=1.0, linestyle=(0, (1, 2)))
        axes.text(case.score, 1.0, f"study {case.score:.2f}", transform=axes.get_xaxis_transform(), fontsize=8.5,
            color=VERMILLION, ha="left" if case.score < 0.5 else "right", va="top")  # fmt: skip
    style.plain(axes, grid=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_yticks([])


def _axial(axes, case: Evidence, best: int, window, *, saliency: bool = False) -> None:
    aspect = case.spacing_mm[1] / case.spacing_mm[2]
    grey = style.grey(case.hu[best], window)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    if saliency:
        _overlay(axes, case, best, aspect)
        return
    label = _label_at(case, best)
    words = f"slice {best + 1} of {len(case.hu)}" + (f", labeled {label}" if label else "")
    axes.text(0.0, -0.03, words, transform=axes.transAxes, fontsize=8.5, color=MUTED, va="top")


def _label_at(case: Evidence, best: int) -> str:
    index, labels = np.asarray(case.slice_index, float), np.asarray(case.slice_labels, float)
    near = np.flatnonzero((np.abs(index - best) <= 0.5) & ~np.isnan(labels))
    return "" if not len(near) else ("positive" if labels[near].max() > 0 else "negative")


def _overlay(axes, case: Evidence, best: int, aspect: float) -> None:
    from matplotlib import colormaps

    if case.saliency is None:
        axes.text(
            0.5,
            0.5,
            "no saliency map",
            transform=axes.transAxes,
            ha="center",
            color="white",
            fontsize=style.SMALL,
            bbox={"facecolor": "black", "edgecolor": "none", "alpha": 0.7},
        )
        return
    weighed = case.saliency[case.saliency > 0]
    # single voxels may stand far out; a map may also be zero nearly everywhere
    most = float(np.percentile(weighed, 99.5)) if weighed.size else 1.0
    heat = np.clip(case.saliency[best] / most, 0, 1)
    colour = colormaps["inferno"](0.25 + 0.75 * heat)
    colour[..., 3] = 0.75 * np.clip((heat - 0.1) / 0.5, 0, 1)  # the weakest tenth would only veil the slice
    axes.imshow(colour, aspect=aspect, interpolation="bilinear")


def _finding(cases: Sequence[Evidence]) -> str:
    labeled = [case for case in cases if len(_positive(case))]
    if not labeled:
        return f"What the scores of {len(cases)} studies rest on"
    hits = sum(_label_at(case, case.best_slice()) == "positive" for case in labeled)
    return f"In {hits} of {len(labeled)} studies with positive slices the highest score falls on one of them"
