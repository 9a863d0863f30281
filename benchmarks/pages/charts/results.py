"""Charts of figures with intervals: quality over labels, differences, quality over cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.pages.charts.chart import Chart, Scale, Style, legend, log_ticks, ticks
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

_LEFT, _RIGHT = 48, 16
_COST_NOTE = "Time of all pretraining and of one training run, as measured on its device. Hollow: a run did not train."
_LABELS_NOTE = "Vertical lines: 95 % intervals. Hollow: a run did not train. Dotted: cheap lines, with most labels."
_LETTERS = 56  # of a label that has room in large letters
_APART = 13  # of two names below each other
_DRAWN = 24  # comparisons in one forest plot; more become further plots


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
    chart = Chart(name, title, 0, note=_LABELS_NOTE)
    chart.columns = ("source", "label_share", "training_patients", "seeds", task.main_metric, "low", "high")
    top = legend(chart, names, look, 12, 18)
    top += 16
    bottom = top + 220
    chart.height = bottom + 44
    low, high = _range([intervals[id(row)] for row in (*rows, *lines)])
    y = Scale(low, high, bottom, top)
    spread = sorted(set(xs.values()))
    log = len(spread) > 1
    edge = 1.25 if log else 1.0
    x = Scale(spread[0] / edge, spread[-1] * edge, _LEFT, chart.width - _RIGHT, log)
    _y_axis(chart, y, low, high, f"{task.main.title} {arrow(task.higher_is_better)}", top)
    _ceiling(chart, y, low, high, task)
    for value in spread if len(spread) <= 6 else log_ticks(spread[0], spread[-1]):
        chart.text(x(value), bottom + 16, f"{value:g}", color="muted", size=11, anchor="middle")
    words = "labeled training patients" if counted else "share of the labels, %"
    chart.text(chart.width / 2, bottom + 34, words, color="muted", size=11, anchor="middle")
    _lines_across(chart, y, lines, intervals)
    for place, source in enumerate(names):
        own = sorted((row for row in rows if row.label == source), key=lambda row: xs[id(row)])
        # beside each other where they share a place
        shift = 5 * (place - (len(names) - 1) / 2)
        points = []
        for row in own:
            found = intervals[id(row)]
            at = x(xs[id(row)]) + shift
            chart.rows.append((source, row.fraction, row.train_patients or "", len(row.runs), found.point, found.low,
                               found.high))  # fmt: skip
            if found.point != found.point:
                continue
            points.append((at, y(found.point)))
            if found.low is not None:
                chart.line([(at, y(found.low)), (at, y(found.high))], look[source].color, 1.4)
        chart.line(points, look[source].color, 1.8, look[source].dash)
        for row, point in zip((r for r in own if intervals[id(r)].point == intervals[id(r)].point), points):
            found = intervals[id(row)]
            tip = f"{row.label}, {share(row.fraction)}: {number(found.point)} {bracket(found.low, found.high)}"
            chart.marker(*point, look[source], hollow=bool(row.untrained), tip=tip)
    return chart


def _lines_across(chart: Chart, y: Scale, lines: Sequence[Row], intervals) -> None:
    """Dotted lines with their names; names that would lie over each other stand in one row."""
    fine = [line for line in lines if intervals[id(line)].point == intervals[id(line)].point]
    places = sorted((y(intervals[id(line)].point), line.label) for line in fine)
    groups: list[list[tuple[float, str]]] = []
    for at, label in places:
        chart.line([(_LEFT, at), (chart.width - _RIGHT, at)], "muted", 1, "2 3")
        if groups and at - groups[-1][-1][0] < _APART:
            groups[-1].append((at, label))
        else:
            groups.append([(at, label)])
    for group in groups:
        words = ", ".join(label for _, label in group)
        chart.text(chart.width - _RIGHT, group[0][0] - 4, words, color="muted", size=10.5, anchor="end", room=300)


def forests(name: str, title: str, test_set: TestSet, comparisons: Sequence[Comparison]) -> list[Chart]:
    """Paired differences with intervals, as many plots as it takes."""
    shown = [c for c in comparisons if c.difference is not None and c.difference.low is not None]
    parts = [shown[i : i + _DRAWN] for i in range(0, len(shown), _DRAWN)]
    return [
        _forest(f"{name}-{i + 1}" if len(parts) > 1 else name, title, test_set, part) for i, part in enumerate(parts)
    ]


def _forest(name: str, title: str, test_set: TestSet, shown: Sequence[Comparison]) -> Chart:
    task = test_set.task
    row_height, top = 40, 44
    chart = Chart(name, title, top + row_height * len(shown) + 42)
    chart.note = (
        "First named minus second, same patients, with the share of labels; 95 % intervals. Filled: the interval lies "
        "on one side of 0, and the better side trained. A star marks comparisons named beforehand."
    )
    numbers = ("difference", "low", "high", "p", "p_holm", "runs")
    chart.columns = ("a", "b", "network", "mode", "label_share", "kind", "primary", *numbers)
    most = max(max(abs(c.difference.low), abs(c.difference.high), abs(c.difference.point)) for c in shown) or 0.01
    x = Scale(-most * 1.05, most * 1.05, _LEFT, chart.width - _LEFT)
    bottom = chart.height - 36
    for value in ticks(-most, most, 5):
        chart.line([(x(value), top - 10), (x(value), bottom)], "faint", 1)
        chart.text(x(value), bottom + 16, f"{value:+g}" if value else "0", color="muted", size=11, anchor="middle")
    chart.line([(x(0), top - 10), (x(0), bottom)], "muted", 1.4)
    words = ("favours second", "favours first") if task.higher_is_better else ("favours first", "favours second")
    chart.text(x(0) - 8, 18, f"← {words[0]}", color="muted", size=11, anchor="end")
    chart.text(x(0) + 8, 18, f"{words[1]} →", color="muted", size=11)
    chart.text(
        chart.width / 2,
        bottom + 32,
        f"difference in {task.main.title}",
        color="muted",
        size=11,
        anchor="middle",
    )
    for place, c in enumerate(shown):
        d, at = c.difference, top + row_height * place + 26
        a, b = names_of(c.pair)
        star = "★ " if c.primary else ""
        label = f"{star}{a} minus {b}, {100 * c.pair.a.fraction:g} %"
        # the lines of the axis stop at words
        chart.rect(8, at - 24, chart.width - 16, 16, "paper")
        size = 11.5 if len(label) <= _LETTERS else 10
        chart.text(12, at - 12, label, size=size, room=chart.width - 24)
        chart.line([(x(d.low), at), (x(d.high), at)], "c0", 2)
        tip = f"{label}: {signed(d.point)} {bracket(d.low, d.high, True)}"
        chart.marker(x(d.point), at, color="c0", shape="square", size=4.5, hollow=not c.shown, tip=tip)
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
    task = rows[0].first.task
    chart = Chart(name, title, 0, note=_COST_NOTE)
    chart.columns = ("source", "encoder", "label_share", "hours", task.main_metric, "low", "high")
    names = list(dict.fromkeys(row.label for row in rows))
    top = legend(chart, names, look, 12, 18, lines=False) + 16
    bottom = top + 200
    chart.height = bottom + 44
    low, high = _range([intervals[id(row)] for row in rows])
    y = Scale(low, high, bottom, top)
    known = [hours[id(row)] for row in rows if hours[id(row)]]
    apart = any(not hours[id(row)] for row in rows)
    right = chart.width - _RIGHT - (84 if apart else 0)
    _y_axis(chart, y, low, high, f"{task.main.title} {arrow(task.higher_is_better)}", top)
    if known:
        x = Scale(min(known) / 1.6, max(known) * 1.6, _LEFT, right, log=True)
        wide, (unit, of_hour) = max(known) / min(known), _unit(max(known))
        limits = (min(known) / 1.6 * of_hour, max(known) * 1.6 * of_hour)
        marks = [v for v in log_ticks(*limits) if wide < 30 or f"{v:e}".startswith("1")]
        for value in marks[:: max(1, len(marks) // 4)]:
            at = x(value / of_hour)
            chart.line([(at, bottom), (at, bottom + 4)], "muted", 1)
            chart.text(at, bottom + 16, f"{value:g} {unit}", color="muted", size=11, anchor="middle")
    if apart:
        chart.rect(right + 8, top, 76, bottom - top, "pale")
        chart.text(right + 46, bottom + 16, "not known", color="muted", size=11, anchor="middle")
    chart.text((_LEFT + right) / 2, bottom + 34, "time, logarithmic", color="muted", size=11, anchor="middle")
    unknown = [row for row in rows if not hours[id(row)]]
    for row in rows:
        found, spent = intervals[id(row)], hours[id(row)]
        values = (spent if spent else "", found.point, found.low, found.high)
        chart.rows.append((row.label, row.first.encoder, row.fraction, *values))
        if found.point != found.point:
            continue
        at = x(spent) if spent else right + 14 + 64 * (unknown.index(row) + 0.5) / len(unknown)
        if found.low is not None:
            chart.line([(at, y(found.low)), (at, y(found.high))], look[row.label].color, 1, opacity=0.6)
        tip = f"{row.label}, {row.first.encoder}, {share(row.fraction)}: {number(found.point)}, {cost_words(spent)}"
        chart.marker(at, y(found.point), look[row.label], hollow=bool(row.untrained), tip=tip)
    return chart


def _unit(hours: float) -> tuple[str, int]:
    """Unit of time for an axis that ends at some hours, and how many of it are an hour."""
    if hours < 0.1:
        return "s", 3600
    return ("min", 60) if hours < 3 else ("h", 1)


def _range(found) -> tuple[float, float]:
    """Limits of an axis that holds all points and their intervals."""
    values = [v for one in found for v in (one.point, one.low, one.high) if v is not None and v == v] or [0.0, 1.0]
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 0.01)
    return low - room, high + room


def _y_axis(chart: Chart, y: Scale, low: float, high: float, words: str, top: float) -> None:
    for value in ticks(low, high, 5):
        chart.line([(_LEFT, y(value)), (chart.width - _RIGHT, y(value))], "faint", 1)
        chart.text(_LEFT - 6, y(value) + 4, f"{value:g}", color="muted", size=11, anchor="end")
    chart.text(12, top - 6, words, color="muted", size=11)


def _ceiling(chart: Chart, y: Scale, low: float, high: float, task) -> None:
    """The band in which figures say little, where it is in sight."""
    if task.higher_is_better and high > CEILING and high <= 1.2:
        upper, lower = y(high), y(max(low, CEILING))
        chart.rect(_LEFT, upper, chart.width - _LEFT - _RIGHT, lower - upper, "muted", 0.12)
        chart.text(_LEFT + 4, upper + 12, f"ceiling (above {CEILING:g})", color="muted", size=10.5)
