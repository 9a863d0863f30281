"""What the report says, in its order: findings, then each test set with tables and charts, then cost and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import sentences as say
from benchmarks.charts import Style, styles
from benchmarks.content_runs import cost_tables, health_parts, left_out_parts, provenance_table, total_hours
from benchmarks.content_sets import set_parts
from benchmarks.document import Bullets, Document, Fold, Heading, Paragraph, Part
from benchmarks.measure import Comparison, Plan
from benchmarks.provenance import SCRATCH
from benchmarks.rows import Row, TestSet

READING = (
    ("Rows", "A row is one source, network, mode and share of labels; its figure is the mean over training seeds."),
    ("Intervals", "95 %, from drawing patients and seeds with replacement at once; the same patients for all rows."),
    (
        "Source effect",
        "Two rows that differ in the source of the weights alone: same network, head, view, input, labels and budget "
        "(the learning rate may be searched for each in the same way).",
    ),
    ("System comparison", "Rows that differ in more than that; the difference is one of whole systems."),
    ("Primary", "Named before the test set was opened; p is corrected after Holm. All else is exploratory."),
    ("Arrows", "↑: higher is better. ↓: lower is better."),
    ("Did not train", "Not surely better than a constant predictor on validation; no gain is stated over such a run."),
    ("Looks", "How often a test set was opened so far; the more looks, the less a figure is worth."),
    ("Leak guard", "Whether test scans were in the pretraining. Unknown is not clean."),
    ("Ceiling", f"A figure above {say.CEILING:g}: sources can hardly be told apart there."),
)  # fmt: skip


@dataclass
class Material:
    """Everything that a report is made of.

    Attributes:
        sets: test sets with their comparisons.
        intervals: of the rows, by ``id(row)``.
        left_out: (folder, reason) of what is not in the report.
        warnings: sentences that must be read first.
        published: parts about numbers of papers, where there are any.
        facts: ``time``, ``commit``, ``resamples`` of this report.
    """

    sets: Sequence[tuple[TestSet, Sequence[Comparison]]]
    intervals: Mapping[int, Any]
    plan: Plan
    left_out: Sequence[tuple[Path, str]] = ()
    warnings: Sequence[str] = ()
    published: Sequence[Part] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def rows(self) -> list[Row]:
        return [row for one, _ in self.sets for row in one.rows]

    @property
    def look(self) -> dict[str, Style]:
        """The style of each label, the same in all charts."""
        ranks = {row.label: (row.first.cheap, row.label != SCRATCH, row.label) for row in self.rows}
        return styles(sorted(ranks, key=ranks.__getitem__))


def compose(material: Material) -> Document:
    """The whole report."""
    rows, runs = material.rows, [run for row in material.rows for run in row.runs]
    synthetic = [one for one, _ in material.sets if one.synthetic]
    parts: list[Part] = []
    if synthetic:
        whole = len(synthetic) == len(material.sets)
        what = "Synthetic patients" if whole else f"{len(synthetic)} of {len(material.sets)} test sets are synthetic"
        parts.append(Paragraph(f"{what}: {say.SYNTHETIC_TITLE}.", "banner"))
    drawn = [row for row in rows if row.synthetic_pretraining]
    if drawn:
        names = ", ".join(dict.fromkeys(row.label for row in drawn))
        parts.append(
            Paragraph(
                f"Pretraining on synthetic data stands behind {len(drawn)} of {len(rows)} rows ({names}). They say "
                "nothing about pretraining on real scans.",
                "banner",
            )
        )
    parts += [Paragraph(text, "banner") for text in material.warnings]
    parts.append(Heading(2, "What was found", "found"))
    parts += _findings(material)
    parts.append(Fold("How to read this page", [Bullets(READING)]))
    look, hours = material.look, {id(row): total_hours(row) for row in rows}
    for number, (one, comparisons) in enumerate(material.sets, 1):
        parts += set_parts(number, one, comparisons, material.intervals, look, hours)
    parts.append(Heading(2, "Cost", "cost"))
    parts += cost_tables(material.sets, material.intervals)
    parts.append(Heading(2, "Did pretraining learn", "health"))
    parts += health_parts(rows)
    if material.published:
        parts.append(Heading(2, "Published numbers", "published"))
        parts += material.published
    parts.append(Heading(2, "Where every figure comes from", "provenance"))
    parts.append(Paragraph(methods_text(material)))
    parts.append(Fold(f"All {len(runs)} runs", [provenance_table(runs)]))
    parts += left_out_parts(material.left_out)
    sets = f"{len(material.sets)} test set{'s' if len(material.sets) != 1 else ''}"
    subtitle = f"{len(runs)} runs, {len(rows)} rows, {sets}. Written {material.facts.get('time', '')}."
    title = material.title or "Pretraining sources compared"
    if synthetic and len(synthetic) == len(material.sets):
        title = f"{title}: {say.SYNTHETIC_TITLE}"
    return Document(title, subtitle, parts)


def _findings(material: Material) -> list[Part]:
    """Sentences per test set: primaries, other source effects, and folded away the comparisons of systems."""
    parts: list[Part] = []
    for one, comparisons in material.sets:
        parts.append(Heading(3, say.title_of(one)))
        if one.synthetic:
            parts.append(
                Paragraph(
                    f"{say.SYNTHETIC_TITLE[0].upper()}{say.SYNTHETIC_TITLE[1:]}. Comparisons: {len(comparisons)}; "
                    "their numbers are in the tables below, and no sentence is made of them."
                )
            )
            continue
        ordered = sorted(comparisons, key=lambda c: (not c.primary, -c.pair.a.fraction, not c.shown))
        effects = [c for c in ordered if c.pair.kind == "source" and not c.pair.why_not]
        systems = [c for c in ordered if c.pair.kind != "source" or c.pair.why_not]
        if effects:
            parts.append(Bullets([(_word(c), say.finding(c, one)) for c in effects]))
        else:
            parts.append(Paragraph("No two rows differ in their source alone, so there is no source effect to report."))
        if systems:
            count = f"{len(systems)} system comparison{'s' if len(systems) != 1 else ''} (more than the source differs)"
            parts.append(Fold(count, [Bullets([(_word(c), say.finding(c, one)) for c in systems])]))
    return parts


def _word(c: Comparison) -> str:
    return "primary" if c.primary else "exploratory"


def methods_text(material: Material) -> str:
    """How the figures were made, from the records of the runs."""
    runs = [run for row in material.rows for run in row.runs]
    versions = [(run.record.get("sessions") or [{}])[-1].get("versions", {}) for run in runs]
    facts = [
        f"Encoders: {_list(run.encoder for run in runs if run.encoder)}.",
        f"Modes: {_list(run.mode for run in runs if run.mode)}.",
        f"Training seeds: {_list(run.seed for run in runs)}; shares of labels: {_list(run.fraction for run in runs)}.",
        f"Devices: {_list(run.cost['device'] for run in runs if run.cost['device'])}.",
        f"Commits: {_list((run.commit or 'not known')[:12] for run in runs)}.",
        f"Python {_list(v.get('python') for v in versions if v.get('python'))}, "
        f"PyTorch {_list(v.get('torch') for v in versions if v.get('torch'))}.",
    ]
    draws = material.facts.get("resamples", "")
    facts.append(
        "Each model was scored once per study, and every figure here was computed again from the stored predictions. "
        "The estimand is the mean over training seeds of the paired difference of the main metric on the same "
        f"patients; intervals come from a bootstrap over patients and seeds with {draws} resamples that all rows "
        "share. Metrics that rank scores were computed within each fold and averaged."
    )
    if material.plan.primary:
        facts.append(
            f"{len(material.plan.primary)} primary comparisons were stored at "
            f"{material.plan.time or 'an unknown time'} (settings {material.plan.digest or 'without a digest'}); "
            "their p-values are corrected after Holm."
        )
    else:
        facts.append("No comparison was named beforehand, so all are exploratory.")
    return " ".join(facts)


def _list(values) -> str:
    found = sorted(set(values), key=str)
    words = [f"{value:g}" if isinstance(value, float) else str(value) for value in found]
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "") if words else "not known"
