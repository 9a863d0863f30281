"""Charts of figures with intervals: quality over labels, differences, quality over cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks.pages.charts.chart import (
    BOTTOM,
    LEFT,
    RIGHT,
    WIDTH,
    Chart,
    Style,
    box,
    fit,
    framed,
    from_corner,
    new_figure,
    write,
)
from benchmarks.pages.sentences import (
    CEILING,
    arrow,
    bracket,
    cost_words,
    names_of,
    number,
    share,
    signed,
    system_of,
)
from benchmarks.read.rows import Row, TestSet
from benchmarks.statistics.measure import Comparison
from voco.figures import style
from voco.figures.export import tip
from voco.figures.style import BLUE, FAINT, INK, MUTED, NOTE, PALE, PAPER, SMALL, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COST_NOTE = "Time of all pretraining and of one training run, as measured on its device. Hollow: a run did not train."
_LABELS_NOTE = "Vertical lines: 95 % intervals. Hollow: a run did not train. Dotted: cheap lines, with most labels."
_LETTERS = 56  # of a label that has room in large letters
_DRAWN = 24  # comparisons in one forest plot; more become further plots
_ROW, _TOP = 40, 34  # pixels of a comparison, and above the first
_UNKNOWN = 84  # pixels beside a chart of cost for what is not known
_NAMES = 84  # pixels beside a chart for names of lines
_DOTS = (0, (2, 3))


def label_curves(
    name: str, title: str, rows: Sequence[Row], lines: Sequence[Row], intervals, look: Mapping[str, Style]
) -> Chart:
    """Main metric over labeled training patients, one curve a source.

    Args:
        rows: of one network, head, view and budget.
        lines: rows that need no encoder, drawn across.
        intervals: by ``id(row)``.
        look: style of each source.
    """
    task = rows[0].first.task
    counted = all(row.train_patients for row in rows)
    xs = {id(row): float(row.train_patients if counted else 100 * row.fraction) for row in rows}
    names = list(dict.fromkeys(row.label for row in rows))
    words = "labeled training patients" if counted else "share of the labels, %"
    lines = [line for line in lines if intervals[id(line)].point == intervals[id(line)].point]
    right = RIGHT + (_NAMES if lines else 0)
    figure, axes = framed(names, look, 220, (words, _metric(task)), right=right)
    columns = ("source", "label_share", "training_patients", "seeds", task.main_metric, "low", "high")
    chart = Chart(name, title, figure, _LABELS_NOTE, columns)
    _y_axis(axes, [intervals[id(row)] for row in (*rows, *lines)], task)
    spread = sorted(set(xs.values()))
    if len(spread) > 1:
        _log(axes, spread[0] / 1.25, spread[-1] * 1.25)
    axes.set_xticks(*_labeled(spread if len(spread) <= 6 else _log_ticks(spread[0], spread[-1])))
    _lines_across(axes, lines, intervals)
    for place, source in enumerate(names):
        own = sorted((row for row in rows if row.label == source), key=lambda row: xs[id(row)])
        found = {id(row): intervals[id(row)] for row in own}
        for row in own:
            one = found[id(row)]
            values = (len(row.runs), one.point, one.low, one.high)
            chart.rows.append((source, row.fraction, row.train_patients or "", *values))
        # beside each other where they share a place
        beside = style.moved(axes.transData, figure, 5 * (place - (len(names) - 1) / 2), 0)
        known = [row for row in own if found[id(row)].point == found[id(row)].point]
        points = ([xs[id(row)] for row in known], [found[id(row)].point for row in known])
        axes.plot(*points, linewidth=1.8, transform=beside, **look[source].line)
        for row in known:
            one = found[id(row)]
            words = f"{row.label}, {share(row.fraction)}: {number(one.point)} {bracket(one.low, one.high)}"
            _point(axes, xs[id(row)], row, one, look, words, transform=beside, linewidth=1.4)
    return chart


def _lines_across(axes: Axes, lines: Sequence[Row], intervals) -> None:
    """Dotted lines with their names beside them."""
    for line in lines:
        axes.axhline(intervals[id(line)].point, color=MUTED, linewidth=1, linestyle=_DOTS)
    places = [(intervals[id(line)].point, fit(line.label, _NAMES - 12, SMALL), MUTED) for line in lines]
    for line, words in zip(lines, style.label_right(axes, places)):
        tip(words, line.label)


def forests(name: str, title: str, test_set: TestSet, comparisons: Sequence[Comparison]) -> list[Chart]:
    """Paired differences with intervals, as many plots as it takes."""
    shown = [c for c in comparisons if c.difference is not None and c.difference.low is not None]
    parts = [shown[i : i + _DRAWN] for i in range(0, len(shown), _DRAWN)]
    return [
        _forest(f"{name}-{i + 1}" if len(parts) > 1 else name, title, test_set, part) for i, part in enumerate(parts)
    ]


def _forest(name: str, title: str, test_set: TestSet, shown: Sequence[Comparison]) -> Chart:
    task = test_set.task
    note = (
        "First named minus second, same patients, with the share of labels; 95 % intervals. Filled: the interval lies "
        "on one side of 0, and the better side trained. A star marks comparisons named beforehand."
    )
    numbers = ("difference", "low", "high", "p", "p_holm", "runs")
    columns = ("a", "b", "network", "mode", "label_share", "kind", "primary", *numbers)
    height = _ROW * len(shown) + 12
    figure = new_figure(_TOP + height + BOTTOM)
    chart = Chart(name, title, figure, note, columns)
    words = ("favours second", "favours first") if task.higher_is_better else ("favours first", "favours second")
    write(figure, WIDTH / 2 - 8, 18, f"← {words[0]}", ha="right")
    write(figure, WIDTH / 2 + 8, 18, f"{words[1]} →")
    write(figure, WIDTH / 2, chart.size[1] - 10, f"difference in {task.main.title}", ha="center")
    axes = style.pixels(figure, LEFT, _TOP, WIDTH - 2 * LEFT, height)
    most = max(max(abs(c.difference.low), abs(c.difference.high), abs(c.difference.point)) for c in shown) or 0.01
    axes.set(xlim=(-1.05 * most, 1.05 * most), ylim=(height, 0), yticks=[])
    style.plain(axes, grid=False)
    axes.grid(axis="x", color=FAINT, linewidth=1)
    axes.tick_params(labelsize=NOTE, pad=5)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:+g}" if value else "0")
    axes.axvline(0, color=MUTED, linewidth=1.4)
    square, ys = Style(BLUE, "s", ()), [_ROW * place + 36 for place in range(len(shown))]
    # the lines of the axis stop at words
    axes.hlines([y - 16 for y in ys], *axes.get_xlim(), color=PAPER, linewidth=14)
    axes.hlines(ys, [c.difference.low for c in shown], [c.difference.high for c in shown], color=BLUE, linewidth=2)
    for y, c in zip(ys, shown):
        d, (a, b) = c.difference, names_of(c.pair)
        label = f"{'★ ' if c.primary else ''}{a} minus {b}, {100 * c.pair.a.fraction:g} %"
        size = TEXT if len(label) <= _LETTERS else SMALL
        write(figure, 12, _TOP + y - 12, label, color=INK, size=size, room=WIDTH - 24)
        (point,) = axes.plot([d.point], [y], **square.mark(hollow=not c.shown, size=9))
        tip(point, f"{label}: {signed(d.point)} {bracket(d.low, d.high, True)}")
        holm = "" if c.p_holm is None else c.p_holm
        names = (c.pair.a.label, c.pair.b.label, *system_of(c.pair), c.pair.a.fraction, c.pair.kind)
        chart.rows.append((*names, int(c.primary), d.point, d.low, d.high, c.p, holm, d.runs))
    return chart


def quality_cost(
    name: str, title: str, rows: Sequence[Row], intervals, look: Mapping[str, Style], hours: Mapping[int, float | None]
) -> Chart:
    """Main metric over hours of pretraining and training; what is not known stands apart on the right.

    Args:
        hours: of each row by ``id``, None where any part of it is not known.
    """
    from matplotlib.transforms import blended_transform_factory

    task = rows[0].first.task
    known = [hours[id(row)] for row in rows if hours[id(row)]]
    unknown = [row for row in rows if not hours[id(row)]]
    right = RIGHT + (_UNKNOWN if unknown else 0)
    words = ("time, logarithmic", _metric(task))
    figure, axes = framed([row.label for row in rows], look, 200, words, right=right, lines=False)
    columns = ("source", "encoder", "label_share", "hours", task.main_metric, "low", "high")
    chart = Chart(name, title, figure, _COST_NOTE, columns)
    _y_axis(axes, [intervals[id(row)] for row in rows], task, ceiling=False)
    axes.set_xticks([])
    unit, of_hour = _unit(max(known, default=0))
    if known:
        low, high = min(known) / 1.6 * of_hour, max(known) * 1.6 * of_hour
        _log(axes, low, high)
        marks = _log_ticks(low, high, (1, 2, 5) if max(known) / min(known) < 30 else (1,))
        axes.set_xticks(*_labeled(marks[:: math.ceil(len(marks) / 4)], f" {unit}"))
        axes.tick_params(axis="x", length=4)
    beside = blended_transform_factory(from_corner(figure), axes.transData)
    edge = WIDTH - right
    if unknown:
        box(figure, edge + 8, chart.size[1] - BOTTOM - 200, 76, 200, PALE)
        write(figure, edge + 46, chart.size[1] - 10, "not known", ha="center")
    for row in rows:
        found, spent = intervals[id(row)], hours[id(row)]
        values = (spent if spent else "", found.point, found.low, found.high)
        chart.rows.append((row.label, row.first.encoder, row.fraction, *values))
        if found.point != found.point:
            continue
        at = spent * of_hour if spent else edge + 14 + 64 * (unknown.index(row) + 0.5) / len(unknown)
        words = f"{row.label}, {row.first.encoder}, {share(row.fraction)}: {number(found.point)}, {cost_words(spent)}"
        where = axes.transData if spent else beside
        _point(axes, at, row, found, look, words, transform=where, linewidth=1, alpha=0.6)
    return chart


def _point(
    axes: Axes, x: float, row: Row, found, look: Mapping[str, Style], words: str, *, alpha=1.0, linewidth, **how
):
    """A figure of a row with its interval."""
    if found.low is not None:
        color = look[row.label].color
        axes.plot([x, x], [found.low, found.high], color=color, alpha=alpha, linewidth=linewidth, clip_on=False, **how)
    (point,) = axes.plot([x], [found.point], **look[row.label].mark(hollow=bool(row.untrained)), **how)
    tip(point, words)


def _unit(hours: float) -> tuple[str, int]:
    """Unit of time for an axis that ends at some hours, and how many of it are an hour."""
    if hours < 0.1:
        return "s", 3600
    return ("min", 60) if hours < 3 else ("h", 1)


def _metric(task) -> str:
    return f"{task.main.title} {arrow(task.higher_is_better)}"


def _log(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low, high)


def _log_ticks(low: float, high: float, steps: Sequence[int] = (1, 2, 5)) -> list[float]:
    """1, 2, 5, 10, … between two positive numbers."""
    from matplotlib.ticker import LogLocator

    marks = LogLocator(subs=steps, numticks=99).tick_values(low, high)
    return [float(mark) for mark in marks if low * 0.999 <= mark <= high * 1.001]


def _labeled(marks: Sequence[float], unit: str = "") -> tuple[Sequence[float], list[str]]:
    return marks, [f"{mark:g}{unit}" for mark in marks]


def _y_axis(axes: Axes, found, task, *, ceiling: bool = True) -> None:
    """Limits that hold all points and their intervals; the band in which figures say little, where it is in sight."""
    values = [v for one in found for v in (one.point, one.low, one.high) if v is not None and v == v] or [0.0, 1.0]
    room = max(0.06 * (max(values) - min(values)), 0.01)
    low, high = min(values) - room, max(values) + room
    axes.set_ylim(low, high)
    axes.locator_params(axis="y", nbins=5)
    if ceiling and task.higher_is_better and CEILING < high <= 1.2:
        axes.axhspan(max(low, CEILING), high, color=MUTED, alpha=0.12, linewidth=0)
        words = f"ceiling (above {CEILING:g})"
        axes.annotate(words, (0, 1), xycoords="axes fraction", xytext=(4, -4), textcoords="offset points",
                      fontsize=SMALL, color=MUTED, va="top")  # fmt: skip
