"""What a grid on synthetic patients shows: whether the pipeline works. Nothing in it is about sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages import sentences as say
from benchmarks.pages.document import Bullets, Cell, Paragraph, Part, Table
from benchmarks.read.provenance import SCRATCH
from benchmarks.read.rows import Row, TestSet
from benchmarks.statistics.measure import Comparison

WHOLE = "full"  # the mode that trains the whole network


def check_parts(number: int, one: TestSet, comparisons: Sequence[Comparison], intervals: Mapping[int, Any]):
    """What stands in place of findings: did training find what was drawn, and the primaries in numbers.

    Args:
        number: of the test set on the page, for the name of the table.
        one: the test set.
        comparisons: of it.
        intervals: of rows, by ``id(row)``.
    """
    side = "above" if one.task.higher_is_better else "below"
    words = (
        f"These patients were drawn by a program in the layout of {one.task.name}, and so was what is to be found in "
        "them. A pipeline that works finds it: where the whole network is trained from scratch with most labels, every "
        f"run trains, and the interval lies {side} what models without an encoder reach. Which source does so sooner "
        f"says nothing about real scans. So no sentence is made of the {len(comparisons)} comparisons; their numbers "
        "are in the tables."
    )
    parts: list[Part] = [Paragraph(words), Bullets(_bullets(one, intervals))]
    if primary := [c for c in comparisons if c.primary]:
        parts.append(primaries_table(f"{number:02d}-{one.task.name}-primary", one, primary))
    return parts


def overall(sets: Sequence[TestSet], intervals: Mapping[int, Any]) -> str:
    """One line on all synthetic test sets: where the check of the pipeline was passed."""
    found: dict[str, list[str]] = {}
    for one in sets:
        name = ", ".join(filter(None, (one.task.name, one.note, one.split if one.split != "test" else "")))
        found.setdefault(check_verdict(one, *_checked(one), intervals).partition(":")[0], []).append(name)
    words = [f"{word} ({'; '.join(names)})" for word, names in found.items()]
    return f"Check of the pipeline: {'; '.join(words)}."


def _most(one: TestSet) -> float:
    """Largest share of labels that any network was given."""
    return max((row.fraction for row in one.rows if not row.first.cheap), default=1.0)


def _checked(one: TestSet) -> tuple[list[Row], list[Row]]:
    """With most labels: rows from scratch whose whole network is trained, and lines without an encoder."""
    rows = [row for row in one.rows if row.fraction == _most(one)]
    whole = [row for row in rows if row.source == SCRATCH and row.first.mode == WHOLE and not row.first.cheap]
    # the line of frozen slice features has an encoder, which may be pretrained
    return whole, [row for row in rows if row.first.cheap and not row.first.parameters]


def _bullets(one: TestSet, intervals: Mapping[int, Any]) -> list[tuple[str, str]]:
    """The verdict, what it hangs on (scratch and cheap lines with most labels), and how many rows trained."""
    most = _most(one)
    networks = [row for row in one.rows if not row.first.cheap and row.fraction == most]
    whole, lines = _checked(one)
    found = [("check", check_verdict(one, whole, lines, intervals))]
    for row in networks:
        if row.source == SCRATCH:
            words = f"{row.label}, {row.first.encoder}, {row.first.mode}, {say.share(most)}"
            found.append(("from scratch", f"{words}: {_figure(one, row, intervals)}{_state(row)}."))
    if lines:
        shown = "; ".join(f"{row.label} {_figure(one, row, intervals)}" for row in lines)
        found.append(("without an encoder", f"{shown} ({say.share(most)})."))
    for mode in dict.fromkeys(row.first.mode for row in networks):
        rows = [row for row in networks if row.first.mode == mode]
        trained = sum(not row.untrained and not row.not_judged for row in rows)
        unknown = sum(bool(row.not_judged) for row in rows)
        more = f", {unknown} not judged" if unknown else ""
        found.append((f"mode {mode}", f"{trained} of {len(rows)} rows trained in every run{more} ({say.share(most)})."))
    return found


def _state(row: Row) -> str:
    if row.untrained:
        return f"; did not train in {row.untrained} of {len(row.runs)} runs"
    return "; training not judged" if row.not_judged else ""


def check_verdict(one: TestSet, whole: Sequence[Row], lines: Sequence[Row], intervals: Mapping[int, Any]) -> str:
    """Whether training found what was drawn."""
    lines = [line for line in lines if intervals[id(line)].point == intervals[id(line)].point]
    if not whole:
        return (
            "not possible here: no row trains a whole network from scratch with most labels, and features that were "
            "never trained on this need not hold it."
        )
    if not lines:
        return "not possible here: no line without an encoder has a figure with as many labels."
    for row in whole:
        name = f"{row.label} ({row.first.encoder})"
        if row.untrained:
            return f"not passed: {name} did not train in every run."
        if row.not_judged:
            return f"not possible here: whether {name} trained was not judged."
        figure, better = intervals[id(row)], one.task.higher_is_better
        edge = figure.low if better else figure.high
        for line in lines:
            other = intervals[id(line)].point
            if edge is None or not (edge > other if better else edge < other):
                return f"not passed: {name} is not surely better than {line.label}."
    return "passed: trained from scratch, the whole network found what was drawn."


def _figure(one: TestSet, row: Row, intervals: Mapping[int, Any]) -> str:
    figure = intervals[id(row)]
    return f"{one.task.main.title} {say.number(figure.point)} {say.bracket(figure.low, figure.high)}"


def primaries_table(name: str, one: TestSet, primary: Sequence[Comparison]) -> Table:
    """What was named before the test set was opened, in numbers alone."""
    rows = []
    for c in primary:
        d, a, b = c.difference, c.pair.a, c.pair.b
        rows.append(
            [
                Cell(a.label),
                Cell(b.label),
                Cell("" if d is None else say.signed(d.point), None if d is None else d.point),
                Cell("" if d is None else say.bracket(d.low, d.high, True), None if d is None else d.low),
                Cell("" if c.p_holm is None else f"{c.p_holm:.2g}", c.p_holm),
                Cell("none named" if c.margin is None else f"{c.margin:g}", c.margin),
                *map(Cell, say.system_of(c.pair)),
                Cell(f"{100 * a.fraction:g} %", a.fraction),
            ]
        )
    columns = ("first", "second", "difference", "95 % interval", "p (Holm)", "margin", "network", "mode", "labels")
    caption = (
        f"Named before the test set was opened: differences in {one.task.main.title}, first minus "
        f"second. Synthetic: {say.SYNTHETIC_TITLE}."
    )
    return Table(name, caption, columns, rows, frozenset({2, 3, 4, 5, 8}))
