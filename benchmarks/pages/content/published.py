"""Published numbers beside own rows where both were measured in the same way, and the reason where they were not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages import sentences as say
from benchmarks.pages.document import Cell, Fold, Paragraph, Part, Table
from benchmarks.published import SYNTHETIC
from benchmarks.read.rows import Row, TestSet
from voco.tasks.metrics import titled


def published_parts(sets: Sequence[TestSet], intervals: Mapping[int, Any]) -> list[Part]:
    """Every stored table that has a number of one of these tasks."""
    from benchmarks.published import read_published, tables

    tasks = {one.task.name for one in sets}
    parts: list[Part] = []
    for name in tables():
        numbers = [number for number in read_published(name) if number.task in tasks]
        if not numbers:
            continue
        beside, apart = [], []
        for number in numbers:
            row, reason = _closest(number, sets)
            (apart if reason else beside).append((number, row, reason))
        words = f"{name}: {numbers[0].citation}"
        if beside:
            parts += [Paragraph(words), _beside(name, beside, intervals)]
        if apart:
            title = f"{name}: {len(apart)} numbers that no row of this report may stand beside"
            own = [] if beside else [Paragraph(words)]
            parts.append(Fold(title, [*own, _apart(name, apart)]))
    return parts


def _closest(number, sets: Sequence[TestSet]) -> tuple[Row, str]:
    """The own row that a number may stand beside, or the one with the fewest reasons against it."""
    from benchmarks.published import why_not_comparable

    found = []
    seen = set()
    for one in sets:
        for row in one.rows:
            run = row.first
            if one.task.name != number.task or row.first.cheap or (one.key, row.fraction, row.source) in seen:
                continue
            seen.add((one.key, row.fraction, row.source))
            reason = why_not_comparable(
                number, task=one.task.name, options=run.results["options"], metric=one.task.main_metric,
                part=one.split, split_rule=run.split_rule, test_units=one.counts["units"],
                fraction=row.fraction, synthetic=one.synthetic,
            )  # fmt: skip
            found.append((len(reason.split("; ")) if reason else 0, row.source != number.pretraining, row, reason))
    if not found:
        row = next(row for one in sets for row in one.rows if one.task.name == number.task)
        return row, "no own row with an encoder"
    _, _, row, reason = min(found, key=lambda item: item[:2])
    return row, reason


def _published_cells(number) -> list[Cell]:
    return [
        Cell(number.model),
        Cell(number.pretraining.replace("->", "→")),
        Cell(f"{100 * number.fraction:g} %", number.fraction),
        Cell(titled(number.metric)),
        Cell(say.number(number.value), number.value),
        Cell("" if number.low is None else say.bracket(number.low, number.high), number.low),
        Cell(number.certainty, flag=number.certainty in ("second-hand", "unconfirmed")),
    ]


_HEAD = ("published model", "published pretraining", "labels", "metric", "published", "published interval", "certainty")


def _beside(name: str, found, intervals: Mapping[int, Any]) -> Table:
    rows = []
    for number, row, _ in found:
        own = intervals[id(row)]
        cells = [Cell(f"{row.label}, {row.first.encoder}"), Cell(say.number(own.point), own.point)]
        interval = Cell(say.bracket(own.low, own.high), own.low)
        rows.append([*_published_cells(number), *cells, interval, Cell(number.remark)])
    columns = (*_HEAD, "own row", "own", "own interval", "remark")
    caption = f"{name}: labels, split, number of units and metric are the same; networks and training need not be."
    return Table(f"published-{name}", caption, columns, rows, frozenset({2, 4, 5, 8, 9}))


def _apart(name: str, found) -> Table:
    reasons = {reason for *_, reason in found}
    if reasons == {SYNTHETIC}:  # true of all own rows, so that once is enough
        rows = [[*_published_cells(number), Cell(number.remark)] for number, *_ in found]
        caption = f"{name}: not comparable with any row of this report: {reasons.pop()}."
        return Table(f"published-{name}-apart", caption, (*_HEAD, "remark"), rows, frozenset({2, 4, 5}))
    rows = [[*_published_cells(number), Cell(reason), Cell(number.remark)] for number, _, reason in found]
    caption = f"{name}: not comparable with any row of this report, with what differs from the closest one."
    return Table(f"published-{name}-apart", caption, (*_HEAD, "why not", "remark"), rows, frozenset({2, 4, 5}))
