"""Which class is taken for which: a matrix that stays readable from two classes to hundreds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voco.figures import style
from voco.figures.style import BLUE, FAINT, INK, MUTED, PAPER

_WITH_NUMBERS = 20
_WITH_NAMES = 60
_LISTED = 14
_LONGEST_NAME = 22


def confusion(matrix: np.ndarray, classes: Sequence[str], *, title: str = "", noun: str = "clips") -> style.Figure:
    """Shares of each true class by answer, and beside them the commonest mistakes and the hardest classes.

    Up to 20 classes every cell has its number, up to 60 every row has its name; beyond, the list beside the
    matrix names what matters.

    Args:
        matrix: (C, C) counts, true class in rows, answer in columns.
        classes: C names.
        title: replaces the finding.
        noun: what is counted, in the plural.
    """
    matrix, count = np.asarray(matrix), len(classes)
    totals = matrix.sum(1)
    share = np.divide(matrix, totals[:, None], out=np.zeros(matrix.shape), where=totals[:, None] > 0)
    figure = style.new_figure(880)
    names = [_short(name) for name in classes]
    longest = max(map(len, names)) if count <= _WITH_NAMES else 4
    left = 36 + int(1.02 * longest * _font(count))  # pixels: a letter is about as wide as its size in points
    side = min(770 - left, 620)
    axes = style.pixels(figure, left, 110, side, side)
    tiles(axes, share)
    _name_axes(axes, names)
    if count <= _WITH_NUMBERS:
        _write_numbers(axes, matrix, share)
    lists = figure.add_axes((0.675, 0.02, 0.31, 1 - 110 / 880 - 0.02))
    _write_lists(lists, matrix, share, totals, classes, noun)
    style.headline(
        figure,
        title or _finding(matrix, totals, noun),
        "Rows: true class. Columns: answer. Darker: a larger share of the row"
        + (f"; in each cell the number of {noun}." if count <= _WITH_NUMBERS else "."),
    )
    return figure


def _short(name: str, most: int = _LONGEST_NAME) -> str:
    """Long names lose their middle: classes often differ in their first or their last word."""
    return name if len(name) <= most else name[: most // 2] + "…" + name[-(most - 1 - most // 2) :]


def _font(count: int) -> float:
    return 10 if count <= 12 else 9 if count <= _WITH_NUMBERS else 6 if count <= 40 else 5


def tiles(axes, share: np.ndarray, *, strength: float = 1.0, gap: float = 0.0) -> None:
    """A matrix as squares of one colour, the stronger the larger the share, so that they follow the colours of a page.

    Args:
        axes: of matplotlib; cells lie at 0, 1, …, the first row at the top.
        share: (C, C) from 0 to 1.
        strength: of a share of 1.
        gap: points between cells, which then have a ground.
    """
    from matplotlib.colors import ListedColormap

    edges = np.arange(len(share) + 1) - 0.5
    if gap:
        axes.set_facecolor((FAINT, 0.5))
    axes.pcolormesh(edges, edges, np.zeros(share.shape), alpha=strength * share, cmap=ListedColormap([BLUE]),
                    edgecolors=PAPER if gap else "none", linewidth=gap)  # fmt: skip
    axes.set(xlim=edges[[0, -1]], ylim=edges[[-1, 0]], aspect="equal", xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(not gap)


def _name_axes(axes, names: Sequence[str]) -> None:
    for side in axes.spines.values():
        side.set_color(FAINT)
    count, size = len(names), _font(len(names))
    axes.tick_params(length=0, colors=INK)
    axes.set_xlabel("answer", fontsize=style.SMALL, color=MUTED)
    if count > _WITH_NAMES:
        axes.set_xticks([0, count - 1], ["1", str(count)], fontsize=style.SMALL)
        axes.set_yticks([0, count - 1], ["1", str(count)], fontsize=style.SMALL)
        return
    upright = count <= 6 and max(map(len, names)) <= 12
    axes.set_yticks(range(count), names, fontsize=size)
    turned = {} if upright else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(count), names, fontsize=size, **turned)
    axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=0.6)
    axes.tick_params(which="minor", length=0)


def _write_numbers(axes, matrix: np.ndarray, share: np.ndarray) -> None:
    count = len(matrix)
    for row, column in zip(*np.nonzero(matrix)):
        text = str(matrix[row, column])
        if count <= 10:
            text += f"\n{share[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center", fontsize=style.SMALL if count <= 12 else 7,
            color=PAPER if share[row, column] > 0.55 else INK, linespacing=1.2)  # fmt: skip


def _finding(matrix: np.ndarray, totals: np.ndarray, noun: str) -> str:
    right, count = int(np.trace(matrix)), int(totals.sum())
    if not count:
        return f"No held-out {noun.removesuffix('s')} has an answer"
    return f"{right} of {count} held-out {noun} are named right ({right / count:.0%})"


def _write_lists(axes, matrix, share, totals, names, noun) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    off = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-off, axis=None, kind="stable")
    pairs = [divmod(int(i), len(names)) for i in order[: min(_LISTED, len(order))]]
    lines = [
        (f"{_short(names[row], 15)} → {_short(names[column], 15)}", f"{matrix[row, column]} of {totals[row]}")
        for row, column in pairs
        if off[row, column] > 0
    ]
    place = _write_list(axes, 1.0, "Mistakes made most (true → answer)", lines or [("none", "")])
    seen = np.flatnonzero(totals)
    recall = np.diag(share)
    hardest = seen[np.argsort(recall[seen], kind="stable")][:10]
    lines = [(_short(names[c], 26), f"{recall[c]:.0%} of {totals[c]}") for c in hardest]
    place = _write_list(axes, place - 0.05, "Hardest classes (share named right)", lines)
    if absent := len(names) - len(seen):
        axes.text(0, place - 0.02, f"{absent} of {len(names)} classes have no held-out {noun.removesuffix('s')}",
            fontsize=style.SMALL, color=MUTED, va="top")  # fmt: skip


def _write_list(axes, top: float, heading: str, lines: Sequence[tuple[str, str]]) -> float:
    axes.text(0, top, heading, fontsize=style.TEXT, fontweight="bold", color=INK, va="top")
    for number, (words, value) in enumerate(lines):
        height = top - 0.045 - 0.0275 * number
        axes.text(0, height, words, fontsize=style.SMALL, color=INK, va="top")
        axes.text(1, height, value, fontsize=style.SMALL, color=MUTED, va="top", ha="right")
    return top - 0.045 - 0.0275 * len(lines)
