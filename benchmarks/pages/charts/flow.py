"""Participant flow: who was found, rejected, trained on, validated on and tested."""

from __future__ import annotations

import csv
import re
from collections import Counter

from benchmarks.pages.charts.chart import Chart, box, line, new_figure, write
from benchmarks.read.rows import TestSet
from benchmarks.read.run import Run
from voco.figures.style import INK, MUTED, PALE, SMALL, TEXT


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
    figure = new_figure(40 + 52 * len(boxes))
    title = f"Participant flow, {one.task.name} v{one.task.version}"
    chart = Chart(name, title, figure, columns=("step", "count", "detail"))
    if one.folds > 1:
        chart.note = f"Over {one.folds} folds: a patient who trains in one may validate or be tested in another."
    how = {"color": MUTED, "linewidth": 1.2}
    for place, (words, detail) in enumerate(boxes):
        top = 12 + 52 * place
        box(figure, 12, top, 230, 36, PALE)
        write(figure, 22, top + (16 if detail else 22), words, color=INK, size=TEXT, room=212)
        if detail:
            write(figure, 22, top + 30, detail, room=212)
        if place:
            line(figure, [127, 127], [top - 16, top], **how)
        number = re.search(r"\d+", words)
        chart.rows.append((words, number.group() if number else "", detail))
    line(figure, [127, 256], [56, 56], **how)  # between what was found and what could be used
    write(figure, 260, 54, f"{lost} rejected", color=INK, size=TEXT)
    for place, (reason, count) in enumerate(reasons.most_common(3)):
        write(figure, 260, 70 + 14 * place, f"{count} x {reason}", size=SMALL, room=150)
    chart.rows += [("rejected", count, reason) for reason, count in reasons.most_common()]
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
