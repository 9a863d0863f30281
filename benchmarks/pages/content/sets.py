"""The part of the report about one test set: who is in it, its table, its charts, its differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages import sentences as say
from benchmarks.pages.charts.chart import Chart, Style
from benchmarks.pages.charts.curves import calibration, confusion, precision_overlay, roc_overlay
from benchmarks.pages.charts.flow import flow_chart
from benchmarks.pages.charts.results import forests, label_curves, quality_cost
from benchmarks.pages.document import Cell, Figures, Fold, Heading, Paragraph, Part, Table
from benchmarks.pages.findings import kind_words, seeds_of
from benchmarks.read.rows import Row, TestSet
from benchmarks.statistics.measure import Comparison


def set_parts(
    number: int,
    one: TestSet,
    comparisons: Sequence[Comparison],
    intervals: Mapping[int, Any],
    look: Mapping[str, Style],
    hours: Mapping[int, float | None],
) -> list[Part]:
    """Heading, facts, table, charts and differences of a test set."""
    name = f"{number:02d}-{one.task.name}"
    parts: list[Part] = [Heading(2, say.title_of(one), f"set-{number}")]
    if one.synthetic:
        parts.append(Paragraph(f"Synthetic: {say.SYNTHETIC_TITLE}.", "banner"))
    parts.append(Paragraph(say.facts_of(one), "note"))
    flow = _stamp([flow_chart(f"{name}-flow", one)], one, [])
    parts.append(Fold("Participant flow: who was found, trained on, validated on and tested", [Figures(flow)]))
    parts.append(results_table(name, one, intervals))
    if searched := search_table(name, one):
        parts.append(Fold(f"What was searched ({len(searched.rows)} rows)", [searched]))
    panels = _panels(one)
    lines = [row for row in one.rows if row.first.cheap]
    lines = [row for row in lines if row.fraction == max(line.fraction for line in lines)]
    curves = []
    for place, rows in enumerate(panels):
        if len(rows) > 1:
            title = f"Quality over labels: {_panel_words(rows[0])}"
            curves.append(label_curves(f"{name}-labels-{place + 1}", title, rows, lines, intervals, look))
            _stamp(curves[-1:], one, rows)
    effects = [c for c in comparisons if c.pair.kind == "source"]
    systems = [c for c in comparisons if c.pair.kind != "source" and not c.pair.why_not]
    matched: dict[tuple, list[Comparison]] = {}
    for c in effects:
        matched.setdefault(c.pair.a.panel, []).append(c)
    groups = [("effects", f"Source effects: {_panel_words(own[0].pair.a)}", own) for own in matched.values()]
    if len(groups) > 1:
        groups = [(f"effects-{i}", title, own) for i, (_, title, own) in enumerate(groups, 1)]
    trees = []
    for word, title, compared in (*groups, ("systems", "System comparisons", systems)):
        made = forests(f"{name}-{word}", title, one, compared)
        trees += _stamp(made, one, [row for c in compared for row in (c.pair.a, c.pair.b)])
    costs = []
    if len(one.rows) > 1:
        costs.append(quality_cost(f"{name}-cost", "Quality against cost", one.rows, intervals, look, hours))
        _stamp(costs, one, one.rows)
    if charts := [*trees, *curves, *costs]:
        parts += [Heading(3, "Differences, labels, cost"), Figures(charts)]
    if comparisons:
        parts.append(
            Fold(f"All {len(comparisons)} comparisons in numbers", [differences_table(name, one, comparisons)])
        )
    return parts + _score_parts(name, one, panels, look)


def _stamp(charts: Sequence[Chart | None], one: TestSet, rows: Sequence[Row]) -> list[Chart]:
    """Marks charts of synthetic patients, or with rows that were pretrained on synthetic data; leaves out None."""
    names = list(dict.fromkeys(row.label for row in rows if row.synthetic_pretraining))
    words = [f"synthetic: {say.SYNTHETIC_TITLE}"] if one.synthetic else say.synthetic_flags(names)
    found = [chart for chart in charts if chart is not None]
    for chart in found if words else ():
        chart.stamp(words[0])
    return found


def results_table(name: str, one: TestSet, intervals: Mapping[int, Any]) -> Table:
    """Every row with its figure, its interval, and what must be said beside it."""
    task = one.task
    found = [intervals[id(row)] for row in one.rows]
    values = [v for i in found for v in (i.point, i.low, i.high) if v is not None and v == v]
    left, right = (min(values), max(values)) if values else (0.0, 1.0)
    rows = []
    for row, figure in zip(one.rows, found):
        bar = None
        if figure.low is not None:
            bar = (figure.point, figure.low, figure.high, left, right)
        patients = "" if row.train_patients is None else f" ({row.train_patients} patients)"
        looks = max((run.looks or 0 for run in row.runs), default=0)
        flags = say.flags_of(row, figure, one.common_marks)
        rows.append(
            [
                Cell(row.label),
                Cell(f"{100 * row.fraction:g} %{patients}", row.fraction),
                Cell(say.number(figure.point), figure.point if figure.point == figure.point else None),
                Cell(say.bracket(figure.low, figure.high), figure.low, bar),
                Cell("; ".join(flags), flag=bool(flags)),
                Cell(str(len(row.runs)), len(row.runs)),
                Cell(row.first.encoder or "none"),
                Cell(row.first.mode),
                Cell(_leaks(row)),
                Cell(str(looks) if looks else "not counted", looks) if one.split == "test" else Cell("validation"),
            ]
        )
    metric = f"{task.main.title} {'↑' if task.higher_is_better else '↓'}"
    columns = ("source", "labels", metric, "95 % interval", "flags", "seeds", "network", "mode", "leak guard", "looks")
    text = f"{say.title_of(one)}. {'Synthetic: ' + say.SYNTHETIC_TITLE + '.' if one.synthetic else ''}".strip()
    if marks := say.own_marks(one.common_marks):  # a table that is taken to a paper takes them along
        text += f" All runs: {'; '.join(marks)}."
    return Table(f"{name}-results", text, columns, rows, frozenset({1, 2, 3, 5, 9}))


def differences_table(name: str, one: TestSet, comparisons: Sequence[Comparison]) -> Table:
    """Every comparison with its numbers, or with the reason why there are none."""
    rows = []
    for c in comparisons:
        d, a, b = c.difference, c.pair.a, c.pair.b
        untrained = [row.label for row in c.untrained]
        remarks = [c.pair.why_not] if c.pair.why_not else []
        remarks += [f"did not train: {', '.join(dict.fromkeys(untrained))}"] if untrained else []
        remarks += [f"differs in {', '.join(c.pair.differs[:3])}" + (" …" if len(c.pair.differs) > 3 else "")] * bool(
            c.pair.differs
        )
        drawn = list(dict.fromkeys(row.label for row in (a, b) if row.synthetic_pretraining))
        remarks += say.synthetic_flags(drawn)
        cheap = a.first.cheap or b.first.cheap
        remarks += [note for note in d.notes if not (cheap and "run" in note)] if d is not None else []
        rows.append(
            [
                Cell(a.label),
                Cell(b.label),
                *map(Cell, say.system_of(c.pair)),
                Cell(say.either(f"{100 * a.fraction:g} %", f"{100 * b.fraction:g} %"), a.fraction),
                Cell(kind_words(c)),
                Cell("" if d is None else say.signed(d.point), None if d is None else d.point),
                Cell("" if d is None else say.bracket(d.low, d.high, True), None if d is None else d.low),
                Cell("" if d is None else say.bracket(d.fixed_low, d.fixed_high, True), d.fixed_low if d else None),
                Cell("" if c.p is None else f"{c.p:.2g}", c.p),
                Cell("" if c.p_holm is None else f"{c.p_holm:.2g}", c.p_holm),
                Cell("" if d is None else ", ".join(map(str, seeds_of(c))), seeds_of(c)[0] if d else None),
                Cell("; ".join(remarks), flag=bool(untrained or drawn)),
            ]
        )
    way = "above 0 favours the first" if one.task.higher_is_better else "below 0 favours the first"
    columns = ("first", "second", "network", "mode", "labels", "kind", "difference", "95 % interval", "runs fixed",
               "p, uncorrected", "p (Holm)", "runs", "remarks")  # fmt: skip
    caption = (
        f"Differences in {one.task.main.title}, first minus second: {way}. 95 % interval: for other "
        "patients and other training runs; runs fixed: the same for other patients and these very runs. Exploratory "
        "comparisons of two rows that did not train have no p."
    )
    if one.synthetic:
        caption += f" Synthetic: {say.SYNTHETIC_TITLE}."
    return Table(f"{name}-differences", caption, columns, rows, frozenset({4, 6, 7, 8, 9, 10, 11}))


def _tried(row: Row) -> bool:
    return any((run.cell.get("search") or {}).get("tried") for run in row.runs)


def search_table(name: str, one: TestSet) -> Table | None:
    """What a search on validation patients tried for each row, and what it chose; None where nothing was searched."""
    rows = []
    for row in one.rows:
        words = list(dict.fromkeys(filter(None, map(say.search_words, row.runs))))
        if not words:
            continue
        edge = say.search_flags(row.runs)
        rows.append(
            [
                Cell(row.label),
                Cell(row.first.encoder or "none"),
                Cell(row.first.mode),
                Cell(f"{100 * row.fraction:g} %", row.fraction),
                Cell("; ".join(words)),
                Cell("; ".join(edge) or ("within what was tried" if _tried(row) else "nothing tried"), flag=bool(edge)),
            ]
        )
    columns = ("source", "network", "mode", "labels", "chosen, and every trial", "edge")
    caption = (
        "Trials on one seed, scored on validation patients alone. Rows that are not here had no search: probes on "
        "frozen features choose their penalty in each run, on its own validation patients."
    )
    return Table(f"{name}-search", caption, columns, rows, frozenset({3})) if rows else None


def _score_parts(name: str, one: TestSet, panels: Sequence[Sequence[Row]], look: Mapping[str, Style]) -> list[Part]:
    """ROC, precision, calibration and confusion of the rows with most labels, panel by panel."""
    overlays: list[Chart] = []
    matrices: list[Chart] = []
    for place, rows in enumerate(panels):
        most = max(row.fraction for row in rows)
        shown = [row for row in rows if row.fraction == most]
        words = f"{_panel_words(rows[0])}, {say.share(most)}"
        for output in rows[0].first.task.outputs:
            stem, what = f"{name}-{place + 1}-{output.name}", f"{output.name}: {words}"
            charts = []
            if output.kind == "binary":
                charts.append(roc_overlay(f"{stem}-roc", f"ROC, {what}", shown, output, look))
                charts.append(precision_overlay(f"{stem}-pr", f"Precision and recall, {what}", shown, output, look))
            charts.append(calibration(f"{stem}-calibration", f"Calibration, {what}", shown, output, look))
            overlays += _stamp(charts, one, shown)
            for i, row in enumerate(shown):
                matrices += _stamp([confusion(f"{stem}-confusion-{i + 1}", row, output)], one, [row])
    parts: list[Part] = []
    if overlays:
        parts += [Heading(3, "Scores: ranking and calibration, most labels"), Figures(overlays)]
    if matrices:
        parts.append(Fold(f"Confusion matrices ({len(matrices)})", [Figures(matrices)]))
    return parts


def _panels(one: TestSet) -> list[list[Row]]:
    found: dict[tuple, list[Row]] = {}
    for row in one.rows:
        if not row.first.cheap:
            found.setdefault(row.panel, []).append(row)
    return list(found.values())


def _panel_words(row: Row) -> str:
    return ", ".join(word for word in row.panel if word)


def _leaks(row: Row) -> str:
    return "; ".join(dict.fromkeys(run.leaks for run in row.runs))
