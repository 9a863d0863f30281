"""Parts of the report about runs: what they cost, whether pretraining learned, where every figure comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import sentences as say
from benchmarks.pages.document import Bullets, Cell, Fold, Paragraph, Part, Table
from benchmarks.read.flops import COUNTED, ESTIMATE
from benchmarks.read.provenance import HEALTH_SCORES, Training
from benchmarks.read.rows import Row, TestSet
from benchmarks.read.run import Run
from benchmarks.statistics.measure import Comparison


def total_hours(row: Row) -> float | None:
    """Hours of pretraining and of one run, mean over seeds; None where any part is not known."""
    values = []
    for run in row.runs:
        before, own = run.cost["pretraining"]["hours"], run.cost["hours"]
        if before is None or own is None:
            return None
        values.append(before + own)
    return sum(values) / len(values) or None


def cost_tables(sets: Sequence[tuple[TestSet, Sequence[Comparison]]], intervals: Mapping[int, Any]) -> list[Part]:
    """One table over all rows: parameters, operations, hours, memory, volumes seen, beside the figure."""
    rows = []
    for one, _ in sets:
        for row in one.rows:
            figure, cost, before = intervals[id(row)], row.first.cost, row.first.cost["pretraining"]
            hours = row.mean_cost("hours")
            kind = "" if cost["hours_of"] == "training" else " (whole run)"
            rows.append(
                [
                    Cell(f"{one.task.name}, {one.split}{', synthetic' if one.synthetic else ''}"),
                    Cell(row.label),
                    Cell(row.first.encoder or "none"),
                    Cell(row.first.mode),
                    Cell(f"{100 * row.fraction:g} %", row.fraction),
                    Cell(say.number(figure.point), figure.point if figure.point == figure.point else None),
                    _count(cost["parameters"], 1e6, "M"),
                    Cell(say.cost_words(before["hours"], before["words"]), before["hours"]),
                    _before(before, "volumes_seen", 1, ""),
                    _before(before, "flops", 1e12, "T"),
                    Cell(say.cost_words(hours) + kind, hours),
                    _count(row.mean_cost("samples_seen"), 1, ""),
                    _count(row.mean_cost("flops"), 1e12, "T"),
                    _count(row.mean_cost("peak_memory_bytes"), 2**30, "GiB"),
                    Cell(", ".join(dict.fromkeys(str(run.cost["device"] or "not known") for run in row.runs))),
                ]
            )
    columns = (
        *("test set", "source", "network", "mode", "labels", "figure", "parameters", "pretraining"),
        *("pretraining volumes", "pretraining FLOPs", "training", "training samples", "training FLOPs (estimate)"),
        *("peak memory", "device"),
    )
    caption = (
        "Cost per row, mean over seeds. Hours are those of the device named, of one run; what published weights took "
        f"is published by their authors or unknown, and never counted as nothing. {COUNTED}. {ESTIMATE}."
    )
    return [Table("cost", caption, columns, rows, frozenset(range(4, 14)))]


def health_parts(rows: Sequence[Row]) -> list[Part]:
    """Learning scores of every pretraining run behind the rows, and of published weights what is known."""
    found: dict[str, Training] = {}
    networks: dict[str, str] = {}
    for run in (run for row in rows for run in row.runs):
        for training in run.trainings:
            networks[training.id] = run.encoder
            if training.id not in found or training.verdict:
                found[training.id] = training
    if not found:
        return [Paragraph("No row starts from pretrained weights.")]
    scores = [name for name in HEALTH_SCORES if any(name in t.results for t in found.values())]
    table = []
    for one in sorted(found.values(), key=lambda t: (t.published, t.words, t.id)):
        hours = say.cost_words(one.hours, "published (unknown)" if one.published and one.hours is None else "")
        table.append(
            [
                Cell(one.words + (f" (after {one.chain})" if one.chain != "scratch" else "")),
                Cell(networks[one.id]),
                Cell(f"synthetic: {one.data}" if one.synthetic else one.data or "not said", flag=one.synthetic),
                _count(one.cases, 1, "", "not said"),
                _count(one.steps, 1, "", "not said"),
                _count(one.volumes_seen, 1, "", "not said"),
                Cell(hours, one.hours),
                *(Cell(say.number(one.results.get(name)), one.results.get(name)) for name in scores),
                Cell(_verdict(one), flag=bool(one.doubt)),
            ]
        )
    columns = (
        "training", "network", "data", "scans", "steps", "volumes seen", "hours",
        *(HEALTH_SCORES[n] for n in scores), "verdict",
    )  # fmt: skip
    caption = (
        "Every training that rows of this report start from, and the scores on held-out data that it was left with. "
        "Position accuracy: how often a crop is most like the base crop that it was taken from, mean over the cells of "
        "the grid; disjoint: the same for crops that share no voxel with any base crop; place: the mean of both, "
        "of the encoder's features, which the verdict is about; clip accuracy: how often the "
        "class of a clip is named. Mean cosine: likeness of different base crops, near 1 where an encoder sees no "
        "difference any more. Learned: surely above a constant answer and the other lines that the verdict names; it "
        "is the run's own."
    )
    return [Table("health", caption, columns, table, frozenset(range(3, 7 + len(scores))))]


def provenance_table(runs: Sequence[Run]) -> Table:
    """One line per run: settings, versions, verdicts, folder."""
    rows = []
    for run in runs:
        session = (run.record.get("sessions") or [{}])[-1]
        marks = [*run.marks, *say.synthetic_flags(run.synthetic_pretraining)]
        rows.append(
            [
                Cell(str(run.folder)),
                Cell(f"{run.task.name} v{run.task.version}, {run.split}"),
                Cell(run.source),
                Cell(str(run.settings.get("encoder.weights") or "none")),
                Cell(run.encoder or "none"),
                Cell(run.mode),
                Cell(f"{100 * run.fraction:g} %", run.fraction),
                Cell(str(run.seed), run.seed),
                Cell(f"{run.settings['train.lr']}" if run.mode == "full" and "train.lr" in run.settings else ""),
                Cell(say.search_words(run) or "none"),
                Cell(run.view),
                Cell(run.results["verdict"]["text"], flag=run.trained is False),
                Cell(run.leaks),
                Cell((run.commit or "not known")[:19]),
                Cell(str(session.get("started", ""))),
                Cell(str(run.cost["device"] or "not known")),
                Cell("; ".join(marks), flag=bool(marks)),
            ]
        )
    columns = (
        *("folder", "task", "source", "weights", "network", "mode", "labels", "seed", "learning rate", "search"),
        *("view", "training verdict", "leak guard", "commit", "started", "device", "marks"),
    )
    return Table("runs", "Every run behind this report.", columns, rows, frozenset({6, 7, 8}))


def left_out_parts(left_out: Sequence[tuple[Path, str]]) -> list[Part]:
    """What was given and is not in the report, with the reason."""
    if not left_out:
        return []
    items = [("", f"{path}: {reason}") for path, reason in left_out]
    return [Fold(f"Not in this report ({len(items)})", [Bullets(items)])]


def _verdict(one: Training) -> str:
    if one.verdict:
        return " ".join(one.verdict)
    return "published weights: not measured here" if one.published else "its run folder is not here"


def _count(value: float | None, unit: float, word: str, missing: str = "unknown") -> Cell:
    if value is None:
        return Cell(missing)
    text = f"{value:,.0f}" if unit == 1 else f"{value / unit:,.4g}"
    return Cell(f"{text} {word}".strip(), value)


def _before(before: Mapping[str, Any], name: str, unit: float, word: str) -> Cell:
    """A number of the pretraining; what is not known says so."""
    return Cell("none", 0.0) if before["words"] == "none" else _count(before[name], unit, word)
