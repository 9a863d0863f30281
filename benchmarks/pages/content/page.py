"""What the report says, in its order: findings, then each test set with tables and charts, then cost and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.pages import sentences as say
from benchmarks.pages.charts.chart import Style, styles
from benchmarks.pages.content.check import check_parts, overall
from benchmarks.pages.content.runs import cost_tables, health_parts, left_out_parts, provenance_table, total_hours
from benchmarks.pages.content.sets import set_parts
from benchmarks.pages.document import Bullets, Document, Fold, Heading, Paragraph, Part
from benchmarks.pages.findings import finding, kind_words
from benchmarks.read.provenance import SCRATCH
from benchmarks.read.rows import Row, TestSet
from benchmarks.statistics.compare import METHOD
from benchmarks.statistics.measure import Comparison, Plan

_SENTENCES = 12  # source effects of a test set that stand in the open; with more, primaries alone
READING = (
    (
        "Source",
        "What the weights of a network went through before this task: scratch (random weights), published weights "
        "(kinetics400), pretraining of one's own, or one after the other (a → b). Own pretraining: voco3d learns where "
        "a crop lies in its volume, voco2d the same on slices, video the classes of action clips.",
    ),
    (
        "Row",
        "One source, network, mode and share of labels. Mode full trains the whole network; linear and knn train only "
        "a head on frozen features. The figure of a row is the mean over its seeds.",
    ),
    (
        "Network",
        "A name such as cnn3d_s or r3d_18 is a 3D network; slices/x is the 2D network x, fed slice by slice. cnn3d_s "
        "and slices/test_resnet are small ones that a CPU trains in minutes, for trying things out.",
    ),
    (
        "Share of labels",
        'Of the patients that train and validate, together (where a run says "full validation set": of those that '
        "train); beside it stands how many of them trained. Where a share is too small to leave patients for "
        "validation, all of it trains, which can be more than that share of those who train with all labels.",
    ),
    (
        "Seed",
        "Decides which labels are used, how the head begins and the order of samples, alike for all sources; from "
        "scratch also the whole network. A linear probe of one encoder with all labels has nothing random left. With "
        f"fewer than {say.FEW_SEEDS} seeds an interval says little about another training run.",
    ),
    (
        "Interval",
        "95 %, for other patients and other training runs of the same kind: test patients are the cases and runs the "
        "readers of a multi-reader multi-case analysis. With one run it is for other patients alone, and says nothing "
        "of another run. Pretraining is not repeated: with one pretraining run, another one could come out otherwise.",
    ),
    (
        "Runs fixed",
        "The interval for other patients and these very trained networks. It is often narrower; what it shows holds of "
        "these runs, and other runs of the same sources need not agree.",
    ),
    (
        "No difference shown",
        "The interval of the difference holds 0. That is no proof that two rows are equal; the sentence says how large "
        "a difference the data leave possible.",
    ),
    (
        "Source effect",
        "A difference of two rows that differ in their source alone: same network, head, view, input, labels and "
        "training budget. (The learning rate is searched for each source in the same way.)",
    ),
    (
        "System comparison",
        "A difference of two rows that differ in more than that, for example in the network. What made the difference, "
        "the source or the rest, cannot be told.",
    ),
    (
        "Primary, exploratory",
        "Primary comparisons were named before the test set was opened, and their p is corrected for being several "
        "(Holm). All others are exploratory: with many of them, some seem to show something by chance.",
    ),
    (
        "Did not train",
        "A run that is not surely better on validation than the same answer for everybody. A row did not train where "
        "half of its judged runs or more did not. That another row is better than such a row may be said, and that it "
        "did not train with it; no gain is stated of it, and of two such rows nothing. Training not judged: too few "
        f"patients of validation, or none. With fewer than {say.FEW_PATIENTS} of them, their number stands at the row.",
    ),
    ("Looks", "How often a test set was opened so far. The more looks, the less its figures are worth."),
    (
        "Leak guard",
        "Whether test scans were found among those of the pretraining. No match found: none was, of what was looked "
        "for (leaks.csv). Unknown: nobody can tell.",
    ),
    (
        "Edge of the search",
        "The learning rate that did well on validation was the smallest or the largest that was tried, so that a wider "
        "search may change the figure.",
    ),
    (
        "Cheap line",
        "A model without pretraining, such as one that sees only slice counts and spacings. A source that does not "
        "beat it has not been shown to see the finding.",
    ),
    ("Margin", "A difference that was named beforehand as too small to matter, in units of the metric."),
    ("Ceiling", f"A figure above {say.CEILING:g}: there is hardly room left to tell sources apart."),
    ("Arrows", "↑: higher is better. ↓: lower is better."),
)


METHODS = (
    "The estimand is the mean over training runs of the difference of the main metric on the same patients. Intervals "
    "and p-values come from multi-reader multi-case analysis (Obuchowski and Rockette 1995) with training runs as "
    "readers, test patients as cases and sources as treatments, and Satterthwaite degrees of freedom as in Hillis "
    "(2007): runs that share their seeds are crossed with sources, others are nested in them (Hillis 2014) with "
    "variances that are not pooled, and a side of one run is held fixed. Error covariances are DeLong's (1988) for "
    "AUROC, with several units of a patient summed (Obuchowski 1997), and those of a jackknife over patients for other "
    "metrics. It assumes that runs of a source are alike and independent, that patients are independent of each other, "
    "and that means over runs are about normal; differences between pretraining runs are in it only where runs have "
    "pretrainings of their own. Metrics that rank scores were computed within each fold and averaged."
)


@dataclass
class Material:
    """Everything that a report is made of.

    Attributes:
        sets: test sets with their comparisons.
        intervals: of the rows, by ``id(row)``.
        left_out: (folder, reason) of what is not in the report.
        warnings: sentences that must be read first.
        published: parts about numbers of papers, where there are any.
        facts: ``time``, ``commit`` of this report.
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
        count = f"{len(synthetic)} of {len(material.sets)} test sets {'is' if len(synthetic) == 1 else 'are'} synthetic"
        what = "Synthetic patients" if whole else count
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
    parts.append(Fold("How to read this page", [Bullets(READING)]))
    parts.append(Heading(2, "What was found", "found"))
    parts += [Paragraph(overall(synthetic, material.intervals))] if synthetic else []
    parts += _findings(material)
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
    """Sentences per test set: primaries, other source effects, and folded away the comparisons of systems.

    Of synthetic patients no sentence about sources is made: there stands whether the pipeline works.
    """
    parts: list[Part] = []
    for number, (one, comparisons) in enumerate(material.sets, 1):
        parts.append(Heading(3, say.title_of(one)))
        if one.synthetic:
            parts += check_parts(number, one, comparisons, material.intervals)
            continue
        ordered = sorted(comparisons, key=lambda c: (not c.primary, -c.pair.a.fraction, not c.shown))
        effects = [c for c in ordered if c.pair.kind == "source" and not c.pair.why_not]
        systems = [c for c in ordered if c.pair.kind != "source" or c.pair.why_not]
        if not effects:
            parts.append(Paragraph("No two rows differ in their source alone, so there is no source effect to report."))
        named = sum(c.primary for c in effects)
        first = effects if len(effects) <= _SENTENCES else effects[: named or _SENTENCES]
        more, rest = effects[len(first) :], len(systems)
        if first:
            parts.append(_sentences(first, one))
        if more:
            words = f"{len(more)} more source effect{'s' if len(more) != 1 else ''}, exploratory"
            parts.append(Fold(words, [_sentences(more, one)]))
        if systems:
            count = f"{rest} system comparison{'s' if rest != 1 else ''} (more than the source differs)"
            parts.append(Fold(count, [_sentences(systems, one)]))
    return parts


def _sentences(comparisons: Sequence[Comparison], one: TestSet) -> Bullets:
    return Bullets([(kind_words(c), finding(c, one)) for c in comparisons])


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
    facts += [
        "Each model was scored once per study, and every figure here was computed again from the stored predictions.",
        METHODS,
        f"Statistical method: {METHOD['name']}, version {METHOD['version']}.",
    ]
    if material.plan.primary:
        several = len(material.plan.primary) != 1
        corrected = sum(c.p_holm is not None for _, found in material.sets for c in found)
        facts.append(
            f"{len(material.plan.primary)} primary comparison{'s were' if several else ' was'} stored at "
            f"{material.plan.time or 'an unknown time'} (settings {material.plan.digest or 'without a digest'}); "
            f"p-values of the {corrected} pairs of rows that {'they name' if several else 'it names'} are corrected "
            "together after Holm."
        )
    else:
        facts.append("No comparison was named beforehand, so all are exploratory.")
    return " ".join(facts)


def _list(values) -> str:
    found = sorted(set(values), key=str)
    words = [f"{value:g}" if isinstance(value, float) else str(value) for value in found]
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "") if words else "not known"
