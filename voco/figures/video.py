"""Pictures of a run on videos: loss and accuracy over steps, and clips with what the network says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from voco.figures import style
from voco.figures.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION

_FRAMES = 8
_DOTTED, _DASHED, _MIXED = (0, (1, 2)), (0, (6, 2)), (0, (6, 2, 1, 2))
# line of the accuracy -> (label, colour, dashes)
_LEVELS = {
    "constant": ("constant answer", INK, _DOTTED),
    "step0": ("own step 0", PURPLE, _DASHED),
    "untrained": ("untrained", GREEN, _DASHED),
    "single_frame": ("single frame", VERMILLION, _MIXED),
}
_LOSS = (("loss", "training", ORANGE), ("heldout/loss", "held-out", BLUE))
_ACCURACY = (
    ("top1", "training", ORANGE),
    ("heldout/top1_balanced", "classifier", SKY),
    ("heldout/features_top1_balanced", "features", BLUE),
)


def accuracy_curves(rows: Sequence[Mapping], lines: Mapping[str, float], *, limit: float | None = None) -> style.Figure:
    """Cross-entropy and top-1 accuracy over steps, training and held-out, beside the lines that need no learning.

    Args:
        rows: of metrics.jsonl.
        lines: ``lines/constant_loss``, and ``lines/NAME_top1_balanced`` of ``constant``, ``step0``, ``untrained`` and
            ``single_frame``.
        limit: how high untrained networks come by their draw.
    """
    figure = style.new_figure(600)
    left, right = (style.pixels(figure, x, 168, 355, 350) for x in (64, 640))
    _draw(left, rows, _LOSS, [("not knowing", lines.get("lines/constant_loss"), INK, _DOTTED)], top=None)
    style.panel_title(left, "cross-entropy", "training clips are augmented, held-out clips as they are")
    levels = [(words, lines.get(f"lines/{name}_top1_balanced"), *how) for name, (words, *how) in _LEVELS.items()]
    if limit is not None:
        right.axhspan(lines["lines/untrained_top1_balanced"], limit, color=GREEN, alpha=0.12, linewidth=0)
    _draw(right, rows, _ACCURACY, levels, top=1.02)
    style.panel_title(right, "top-1 accuracy", "held-out: mean recall of the classes; bands: 95 % over groups")
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=style.SMALL, color=MUTED)
    style.headline(
        figure,
        _finding(rows, levels),
        "Features: the nearest mean of a class among the encoder's features, as for all lines; it is what the verdict "
        "judges. Single frame: pixels of the middle frame. Green band: how high untrained networks come by their draw.",
    )
    return figure


def clip_strips(clips: Sequence[tuple[np.ndarray, str, str]]) -> style.Figure:
    """Frames of a few clips, one row each, with the true class and the answer.

    Args:
        clips: frames (T, H, W, 3) or (T, H, W, 1) uint8, true class, answer.
    """
    frames = min(_FRAMES, max(len(c) for c, _, _ in clips))
    side = min(118, (style.WIDTH - 250) // frames - 4)
    figure = style.new_figure(max(420, 110 + len(clips) * (side + 14)))
    for row, (clip, true, answer) in enumerate(clips):
        top = 100 + row * (side + 14)
        for column, index in enumerate(np.linspace(0, len(clip) - 1, frames).round().astype(int)):
            axes = style.pixels(figure, 210 + column * (side + 4), top, side, side)
            image = clip[index][..., 0] if clip.shape[-1] == 1 else clip[index]
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_axis_off()
        words = style.pixels(figure, 24, top, 180, side)
        words.set_axis_off()
        words.text(0, 0.62, true, fontsize=style.TEXT, fontweight="bold", color=INK, va="center")
        right = true == answer
        words.text(0, 0.35, "right" if right else f"called {answer}", fontsize=style.NOTE, va="center",
            color=GREEN if right else VERMILLION)  # fmt: skip
    right = sum(true == answer for _, true, answer in clips)
    style.headline(
        figure,
        f"{right} of {len(clips)} clips named right",
        f"First held-out clip of each of the first {len(clips)} classes, as the network sees it; {frames} of "
        f"{len(clips[0][0])} frames.",
    )
    return figure


def _draw(axes, rows, curves, levels, top: float | None) -> None:
    """Values over steps, held-out ones with their intervals, and lines, labelled at the right edge."""
    highest, labels = [], []
    for name, words, colour in curves:
        steps, values = style.series(rows, name)
        if not len(steps):
            continue
        if name.startswith("heldout/"):
            axes.plot(steps, values, "o-", color=colour, linewidth=2, markersize=4)
            low, high = (style.series(rows, f"{name}_{end}")[1] for end in ("low", "high"))
            if len(low) == len(steps):
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = style.smooth(values, max(1, len(values) // 20))
            axes.plot(steps, values, color=colour, linewidth=1.6)
        highest += [float(np.percentile(values, 99)), values[-1]]
        labels.append((values[-1], f"{words} {values[-1]:.2f}", colour))
    if not labels:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
    for words, level, colour, dashes in levels:
        if level is not None:
            axes.axhline(level, color=colour, linestyle=dashes, linewidth=1.4)
            highest.append(level)
            labels.append((level, f"{words} {level:.2f}", colour))
    axes.set_ylim(0, top or 1.1 * max([v for v in highest if np.isfinite(v)], default=1.0))
    style.label_right(axes, [label for label in labels if np.isfinite(label[0])])
    style.plain(axes)
    axes.locator_params(axis="x", nbins=5, integer=True)


def _finding(rows: Sequence[Mapping], levels) -> str:
    steps, values = style.series(rows, "heldout/features_top1_balanced")
    if not len(steps):
        return "No held-out accuracy of the encoder's features has been measured yet"
    best = max((level for _, level, _, _ in levels if level is not None), default=None)
    line = "" if best is None else f" (best line {best:.2f})"
    return f"At step {steps[-1]:.0f}: held-out top-1 of the encoder's features {values[-1]:.2f}{line}"
