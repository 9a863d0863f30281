"""``paper/``: every figure as SVG, PDF and CSV, tables as LaTeX, participant flow, a paragraph on methods."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts import Chart
from benchmarks.document import Document, Table
from benchmarks.rows import TestSet
from benchmarks.runs import Run
from benchmarks.sentences import SYNTHETIC_TITLE

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$",
    "<": r"\textless{}", ">": r"\textgreater{}", "…": r"\dots{}", "★": r"$\star$",
}  # fmt: skip


def write_paper(folder: Path, document: Document, sets: Sequence[TestSet], methods: str) -> list[Path]:
    """Write everything that a paper takes from a report.

    Args:
        folder: is made if missing; files of the same names are replaced.
        document: whose charts and tables.
        sets: test sets, for the participant flow.
        methods: paragraph.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, one in enumerate(sets, 1):
        paths += flow_chart(f"{number:02d}-{one.task.name}-flow", one).save(folder / "figures")
    for chart in document.charts:
        paths += chart.save(folder / "figures")
    tables = folder / "tables"
    tables.mkdir(exist_ok=True)
    for table in document.tables:
        paths += [tables / f"{table.name}.tex", tables / f"{table.name}.csv"]
        paths[-2].write_text(latex(table), encoding="utf-8")
        with paths[-1].open("w", newline="", encoding="utf-8") as file:
            texts = [[cell.text for cell in row] for row in table.rows]
            csv.writer(file, lineterminator="\n").writerows([table.columns, *texts])
    paths.append(folder / "methods.txt")
    paths[-1].write_text(methods + "\n", encoding="utf-8")
    return paths


def latex(table: Table) -> str:
    """A table for the packages booktabs and graphicx."""
    columns = "".join("r" if i in table.numeric else "l" for i in range(len(table.columns)))
    lines = [" & ".join(escaped(cell.text) for cell in row) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escaped(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(escaped, table.columns)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(letter, letter) for letter in re.sub(r"\s+", " ", text))


def flow_chart(name: str, one: TestSet) -> Chart:
    """Participant flow: scans found, rejected with reasons, studies, and who trained, validated and was tested.

    Parts are those of the run with most labels, over all its folds; reasons are those of ``rejected.csv``.
    """
    run = max((run for row in one.rows if not row.first.cheap for run in row.runs), default=one.run,
              key=lambda run: run.fraction)  # fmt: skip
    counts = run.facts.get("counts") or {}
    reasons = rejection_reasons(run)
    parts = _parts(run)
    boxes = [(f"{counts.get('scans', 'unknown')} scans in the data set", "")]
    boxes.append((f"{counts.get('studies', 'unknown')} studies of {counts.get('patients', 'unknown')} patients", ""))
    boxes += [(f"{part}: {patients} patients", f"{cases} scans") for part, (patients, cases) in parts.items()]
    lost = counts.get("rejected_scans", sum(reasons.values()))
    chart = Chart(name, f"Participant flow, {one.task.name} v{one.task.version}", 60 + 52 * len(boxes))
    chart.columns = ("step", "count", "detail")
    chart.text(12, 20, chart.title, bold=True)
    for place, (words, detail) in enumerate(boxes):
        top = 36 + 52 * place
        chart.rect(12, top, 230, 36, "pale")
        chart.text(22, top + (22 if not detail else 16), words, size=11.5, room=212)
        if detail:
            chart.text(22, top + 30, detail, size=10.5, color="muted", room=212)
        if place:
            chart.line([(127, top - 16), (127, top)], "muted", 1.2)
        number = re.search(r"\d+", words)
        chart.rows.append((words, number.group() if number else "", detail))
    chart.line([(127, 78), (256, 78)], "muted", 1.2)
    chart.text(260, 74, f"{lost} rejected", size=11.5)
    for place, (reason, count) in enumerate(reasons.most_common(3)):
        chart.text(260, 90 + 14 * place, f"{count} x {reason}", size=10, color="muted", room=150)
    chart.rows += [("rejected", count, reason) for reason, count in reasons.most_common()]
    if one.synthetic:
        chart.stamp(f"synthetic: {SYNTHETIC_TITLE}")
    return chart


def rejection_reasons(run: Run) -> Counter[str]:
    """Reasons of ``rejected.csv`` with their counts, numbers and names in them left out."""
    path = run.folder / "rejected.csv"
    if not path.is_file():
        return Counter()
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        texts = [row.get("reason", "") for row in csv.DictReader(file)]
    return Counter(re.split(r"[:;(]", text)[0].strip() or "no reason given" for text in texts)


def _parts(run: Run) -> dict[str, tuple[int, int]]:
    """Patients and scans of each part in ``splits.csv``; those outside the share of labels stand apart."""
    path = run.folder / "splits.csv"
    if not path.is_file():
        return {}
    people: dict[str, set[str]] = {}
    cases: dict[str, set[str]] = {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            name = row["split"] if row.get("in_fraction", "1") != "0" else "labels not used"
            people.setdefault(name, set()).add(row["patient"])
            cases.setdefault(name, set()).add(row["case"])
    order = ("train", "labels not used", "validation", "test")
    return {name: (len(people[name]), len(cases[name])) for name in order if name in people}
