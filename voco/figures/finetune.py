"""Learning curves of a finetune run: loss and the main metric on validation, and which step was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from voco.figures import style
from voco.figures.style import BLUE, INK, MUTED, ORANGE, SKY

_PREFIX = "validation_"


def learning_curves(
    folds: Mapping[int, Sequence[Mapping]],
    metric: str,
    *,
    best_steps: Mapping[int, int] | None = None,
    constant: float | None = None,
    higher_is_better: bool = True,
    title: str = "",
) -> style.Figure:
    """Training and validation loss on the left, the main metric on validation on the right.

    Args:
        folds: fold to rows of its metrics.jsonl (``step``, ``loss``, ``validation_loss``, ``validation_<metric>``).
        metric: name of the main metric.
        best_steps: fold to the step whose weights were kept.
        constant: the metric of a constant predictor.
        higher_is_better: direction of the metric.
        title: replaces the finding.
    """
    best_steps = best_steps or {}
    figure = style.new_figure(580)
    left, right = (style.pixels(figure, x, 142, 400, 350) for x in (72, 640))
    single = len(folds) == 1
    tops: list[float] = []
    for rows in folds.values():
        tops += _draw_loss(left, rows, single)
    left.set_ylim(0, 1.08 * max(tops, default=1.0))
    for fold, rows in folds.items():
        _draw_metric(right, rows, metric, best_steps.get(fold), single)
    labels = []
    if constant is not None and np.isfinite(constant):
        right.axhline(constant, color=INK, linewidth=1.0, linestyle=(0, (1, 2)))
        labels.append((constant, f"constant {constant:.2f}", INK))
    style.panel_title(left, "loss", "orange: training, running mean; blue: validation")
    style.panel_title(right, f"{metric} on validation", "dot: the step whose weights were kept")
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=style.SMALL, color=MUTED)
        style.plain(axes)
        axes.locator_params(axis="x", nbins=5, integer=True)
    style.label_right(right, labels)
    style.headline(
        figure,
        title or _finding(folds, metric, best_steps, higher_is_better),
        "Chosen on validation, so its value at the kept step is optimistic; test patients have no part in this."
        + ("" if single else f" One line for each of {len(folds)} folds."),
    )
    return figure


def _draw_loss(axes, rows, single: bool) -> list[float]:
    """Draws one fold and returns values that should be in the picture."""
    steps, values = style.series(rows, "loss")
    fine = np.isfinite(values)
    steps, values = steps[fine], values[fine]
    shown = []
    if len(values):
        if single:
            axes.plot(steps, values, color=ORANGE, linewidth=0.9, alpha=0.35)
        smooth = style.smooth(values, max(1, len(values) // 15) | 1)
        axes.plot(steps, smooth, color=ORANGE, linewidth=1.8 if single else 1.0, alpha=1.0 if single else 0.7)
        shown += [float(np.percentile(values, 98)), float(smooth.max())]
    steps, values = style.series(rows, f"{_PREFIX}loss")
    if len(values):
        axes.plot(steps, values, "o-" if single else "-", color=BLUE, linewidth=1.8 if single else 1.0, markersize=4)
        shown.append(float(np.nanpercentile(values, 98)))
    if not shown:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
    return shown


def _draw_metric(axes, rows, metric: str, best: int | None, single: bool) -> None:
    steps, values = style.series(rows, _PREFIX + metric)
    if not len(values):
        if single:
            axes.text(0.5, 0.5, "no validation patients", transform=axes.transAxes, ha="center", color=MUTED)
        return
    axes.plot(steps, values, color=BLUE if single else SKY, linewidth=2 if single else 1.2)
    if best is not None and best in steps:
        value = values[list(steps).index(best)]
        axes.plot([best], [value], "o", color=BLUE, markersize=8 if single else 5, markeredgecolor="white", zorder=4)
        if single:
            axes.annotate(f"step {best}: {value:.3f}", (best, value), xytext=(0, 10), textcoords="offset points",
                fontsize=style.SMALL, color=BLUE, ha="center" if steps[0] < best < steps[-1] else
                ("left" if best == steps[0] else "right"))  # fmt: skip


def _finding(folds, metric: str, best_steps, higher: bool) -> str:
    found = []
    for fold, rows in folds.items():
        steps, values = style.series(rows, _PREFIX + metric)
        if not len(values):
            continue
        best = best_steps.get(fold)
        if best in steps:
            found.append(values[list(steps).index(best)])
        else:
            found.append(np.nanmax(values) if higher else np.nanmin(values))
    if not found:
        return f"No {metric} was measured on validation"
    way = "higher" if higher else "lower"
    if len(found) == 1:
        return f"{metric} on validation is {found[0]:.3f} at the step that was kept ({way} is better)"
    return f"{metric} on validation is {min(found):.3f} to {max(found):.3f} over {len(found)} folds ({way} is better)"
