"""The words of the report about rows and test sets: templates filled with numbers, and nothing more than they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.read.rows import Pair, Row, TestSet
from benchmarks.read.run import Run, plural

if TYPE_CHECKING:
    from benchmarks.statistics.compare import RunInterval

CEILING = 0.95
FEW_SEEDS = 5
FEW_PATIENTS = 10  # of validation: with fewer, a verdict on training hangs on one or two of them
SYNTHETIC_TITLE = "pipeline check, says nothing about sources"


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; ``n/a`` where there is none."""
    return "n/a" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """As ``number``, with its sign."""
    return "n/a" if value is None or math.isnan(value) else f"{value:+.3f}"


def bracket(low: float | None, high: float | None, sign: bool = False) -> str:
    """``[low, high]``; words where there is no interval."""
    if low is None or high is None:
        return "(no interval)"
    form = signed if sign else number
    return f"[{form(low)}, {form(high)}]"


def arrow(higher_is_better: bool) -> str:
    """Which way is better, for the head of a column."""
    return "↑ higher is better" if higher_is_better else "↓ lower is better"


def share(fraction: float) -> str:
    """A share of the labels in words."""
    return "all labels" if fraction == 1 else f"{100 * fraction:g} % of the labels"


def either(a: str, b: str) -> str:
    """What two rows share, or both."""
    return a if a == b else f"{a} / {b}"


def system_of(pair: Pair) -> tuple[str, str]:
    """Network and mode of a pair, each of both rows where they differ."""
    a, b = pair.a.first, pair.b.first
    return either(a.encoder or "none", b.encoder or "none"), either(a.mode, b.mode)


def names_of(pair: Pair) -> tuple[str, str]:
    """Both rows of a pair, with network, mode and share of labels where they differ in them.

    The label of a line without an encoder says what it is: it has no network and no mode.
    """
    rows = (pair.a, pair.b)
    parts = [[row.label] for row in rows]
    for words in (lambda row: row.first.encoder, lambda row: row.first.mode):
        if words(rows[0]) != words(rows[1]):
            for part, row in zip(parts, rows):
                part += [] if row.first.cheap else [words(row) or "no network"]
    if pair.a.fraction != pair.b.fraction:
        for part, row in zip(parts, rows):
            part.append(share(row.fraction))
    first, second = (f"{part[0]} ({', '.join(part[1:])})" if part[1:] else part[0] for part in parts)
    return first, second


def title_of(one: TestSet) -> str:
    """Heading of a test set."""
    who = f"{one.counts['patients']} {'synthetic ' if one.synthetic else ''}patients"
    metric = f"{one.task.main.title} {arrow(one.task.higher_is_better)}"
    note = f" ({one.note})" if one.note else ""
    return f"{one.task.name} v{one.task.version}{note}, {one.split}, {who}: {metric}"


def facts_of(one: TestSet) -> str:
    """Who is in a test set, and how often it was looked at."""
    counts, task = one.counts, one.task
    classes = "; ".join(
        f"{name}: " + ", ".join(f"{n} {word}" for word, n in found.items()) for name, found in counts["classes"].items()
    )
    folds = f" in {one.folds} folds, figures averaged over folds" if one.folds > 1 else ""
    # scans of one drawn anatomy are split and drawn together, as those of a patient are
    people = "drawn anatomies, which count as patients" if one.synthetic else "patients"
    parts = [f"{counts['units']} {plural(task.noun)} of {counts['patients']} {people}{folds}", classes]
    parts.append(task.main.words)
    parts.append(f"Split rule: {one.run.split_rule or 'not said'}")
    if one.split == "test":
        own = sum(len(row.runs) for row in one.rows)
        counted = "not counted" if one.looks is None else str(one.looks)
        parts.append(f"Looks at this test set so far: {counted}; this report holds {own} runs that looked")
    else:
        parts.append("Validation patients: settings may have been chosen on them, so these are no test figures")
    if task.evaluation and not one.synthetic:
        parts.append(f"{task.evaluation[0].upper()}{task.evaluation[1:]}")
    if marks := own_marks(one.common_marks):
        parts.append(f"All runs: {'; '.join(marks)}")
    parts.append(_rule_words(one))
    return ". ".join(part for part in parts if part) + "."


def _rule_words(one: TestSet) -> str:
    """Under which rule training was judged; rules have a name since verdicts stopped using what chose the weights."""
    runs = [run for row in one.rows for run in row.runs if not run.cheap and run.trained is not None]
    rules = list(dict.fromkeys(run.verdict_rule for run in runs))
    if not runs or rules == [""]:
        return "Whether runs trained was judged under an older rule, by what also chose their weights" if runs else ""
    older = sum(not run.verdict_rule for run in runs)
    words = f"Whether runs trained was judged by the rule {', '.join(filter(None, rules))}"
    return words + (f"; of {older} of {len(runs)} runs under an older rule" if older else "")


def own_marks(marks: Sequence[str]) -> list[str]:
    """Marks of runs without those that the page says in its own words."""
    return [mark for mark in marks if not mark.startswith(("synthetic", "pretraining of the encoder"))]


def flags_of(row: Row, found: RunInterval, said: Sequence[str] = ()) -> list[str]:
    """What must be said beside the figure of a row; ``said``: marks that stand at its test set already."""
    flags = []
    metric = row.first.task.main
    if metric.higher_is_better and metric.range[1] == 1 and found.point > CEILING:
        flags.append(f"ceiling (above {CEILING:g}: no room left to tell sources apart)")
    if any(run.synthetic for run in row.runs):
        flags.append("synthetic")
    flags += synthetic_flags(row.synthetic_pretraining)
    if row.first.cheap:
        flags.append("cheap line")
    elif row.untrained:
        flags.append(f"did not train ({row.untrained} of {len(row.runs)})")
    elif row.not_judged and not row.first.cheap:
        flags.append("training not judged")
    judged = row.validation_patients or 0
    if 0 < judged < FEW_PATIENTS and not row.first.cheap:
        flags.append(f"training judged on {judged} validation patients")
    doubts = dict.fromkeys((t.words, t.doubt) for run in row.runs for t in run.trainings if t.doubt)
    flags += [f"pretraining {words} {doubt} (see below)" for words, doubt in doubts]
    # a line without an encoder has no seeds to vary
    if len(row.runs) < FEW_SEEDS and not row.first.cheap:
        flags.append(f"{len(row.runs)} seed{'s' if len(row.runs) != 1 else ''} (fewer than {FEW_SEEDS})")
    if len(row.runs) > 1 and not row.first.cheap and len({run.results["main"]["value"] for run in row.runs}) == 1:
        flags.append("the same figure with every seed: nothing random is left")
    if row.first.split != "test":
        flags.append("validation, not test")
    if any(run.stored_value_differs() for run in row.runs):
        flags.append("results.json differs from the predictions; the figure is of the predictions")
    flags += sorted({mark for run in row.runs for mark in own_marks(run.marks)} - set(said))
    # runs are said above, in words of the row
    flags += [note for note in found.notes if "run" not in note]
    return flags + search_flags(row.runs)


def synthetic_flags(names: Sequence[str]) -> list[str]:
    """The mark of what was pretrained on synthetic data."""
    return [f"pretrained on synthetic data: {', '.join(names)}"] if names else []


def search_flags(runs: Sequence[Run]) -> list[str]:
    """A searched setting that lies on the edge of what was tried."""
    flags = []
    for run in runs:
        search = run.cell.get("search") or {}
        tried = sorted(map(float, search.get("tried", {})))
        if tried and float(search["chosen"]) in (tried[0], tried[-1]):
            text = f"{search.get('setting', 'setting')} {float(search['chosen']):g} lies on the edge of the search"
            flags += [text] if text not in flags else []
    return flags


def search_words(run: Run) -> str:
    """Budget of the search and what it chose; empty where there was none."""
    search = run.cell.get("search") or {}
    if not search.get("tried"):
        words = f"{search.get('setting', 'setting')} {float(search['chosen']):g}" if "chosen" in search else ""
        return words and f"{words}, not searched: {search.get('note') or 'no trial could be scored'}"
    tried = ", ".join(
        f"{float(k):g}: {number(v)}" for k, v in sorted(search["tried"].items(), key=lambda i: float(i[0]))
    )
    steps = f" of {search['steps']} steps" if search.get("steps") else ""
    return (
        f"{search.get('setting', 'setting')} {float(search['chosen']):g}, of {len(search['tried'])} trials{steps} on "
        f"validation ({tried}){'; ' + search['note'] if search.get('note') else ''}"
    )


def cost_words(hours: float | None, words: str = "") -> str:
    """Hours for people, in the unit that suits them; ``words`` where they are not known."""
    if words or hours is None:
        return words or "unknown"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.2g} s"
