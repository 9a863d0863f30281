"""The words of the report: every statement is a template filled with numbers, so that none says more than they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.measure import Comparison
from benchmarks.rows import Pair, Row, TestSet
from benchmarks.runs import Run, plural

if TYPE_CHECKING:
    from benchmarks.compare import Interval

CEILING = 0.95
FEW_SEEDS = 5
FEW_PATIENTS = 10  # of validation: with fewer, a verdict on training hangs on one or two of them
_NAMED = 3  # settings in a sentence at most
SYNTHETIC_TITLE = "pipeline check, says nothing about sources"
_BOUNDED = ("auroc", "ap", "auc", "kappa", "accuracy", "f1", "recall", "precision", "sensitivity", "specificity")


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


def metric_words(name: str) -> str:
    """A metric as papers write it."""
    return {"auroc": "AUROC", "ap": "AP", "mae": "MAE"}.get(name, name.replace("_", " "))


# What a reader must know of a metric beside its direction.
_METRICS = {
    "auroc": "AUROC: area under the ROC curve; 0.5 where scores rank no better than chance",
    "kappa": "Kappa: Cohen's, unweighted; 0 where agreement is no better than chance",
    "score": "Score: weighted log loss of the RSNA 2023 challenge",
}


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


def _common(pair: Pair) -> str:
    """What both rows share of network, mode and labels."""
    rows = (pair.a, pair.b)
    pairs = ([row.first.encoder for row in rows], [row.first.mode for row in rows], [share(r.fraction) for r in rows])
    return ", ".join(values[0] for values in pairs if values[0] == values[1] and values[0])


def title_of(one: TestSet) -> str:
    """Heading of a test set."""
    who = f"{one.counts['patients']} {'synthetic ' if one.synthetic else ''}patients"
    metric = f"{metric_words(one.task.main_metric)} {arrow(one.task.higher_is_better)}"
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
    parts = [f"{counts['units']} {plural(task.unit)} of {counts['patients']} {people}{folds}", classes]
    parts.append(_METRICS.get(task.main_metric, ""))
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


def finding(c: Comparison, test_set: TestSet) -> str:
    """The one sentence that a comparison allows, and what must stand behind it.

    Nothing is said of sources where patients are synthetic or where neither side trained, and no gain is stated of a
    side that did not train.
    """
    pair, task, d = c.pair, test_set.task, c.difference
    a, b = names_of(pair)
    names = f"{a} and {b}" + (f" ({common})" if (common := _common(pair)) else "")
    if pair.why_not:
        return f"{names}: not comparable: {pair.why_not}."
    if test_set.synthetic:
        return f"{names}: {SYNTHETIC_TITLE}."
    if c.silent:
        said = " and ".join(f"{row.label} did not in {_failures(row)}" for row in (pair.a, pair.b))
        return f"{names}: nothing is said of their difference, because neither trained: {said}."
    head = ", ".join(filter(None, (metric_words(task.main_metric), _common(pair))))
    if d is None or d.low is None:
        return f"{head}: {a} and {b}: no interval ({'; '.join(d.notes) if d else 'no numbers'})."
    if c.apart:
        return f"{head}: {_apart_words(c, (a, b), task.higher_is_better)}.{_more_words(c)}"
    most = max(abs(d.low), abs(d.high))
    most = math.ceil(most * 1000) / 1000
    after = " after Holm's correction" if c.primary and not d.low <= 0 <= d.high else ""
    text = (
        f"{head}: no difference shown between {a} and {b}{after} ({signed(d.point)} "
        f"{bracket(d.low, d.high, True)}); differences above {number(most)} are excluded, {_basis(c)}."
    )
    return text + _fixed_words(c) + _more_words(c)


def _apart_words(c: Comparison, names: tuple[str, str], higher_is_better: bool) -> str:
    """Which side was better by how much; where one of them did not train, that comes first."""
    d, better = c.difference, c.better
    worse = c.pair.b if better is c.pair.a else c.pair.a
    first, other = names if better is c.pair.a else names[::-1]
    low, high = sorted((abs(d.low), abs(d.high)))
    word, remark = ("higher", "") if higher_is_better else ("lower", " (lower is better)")
    holm = f", p {_p(c.p_holm)} after Holm" if c.primary else ""
    amount = f"by {number(abs(d.point))} {bracket(low, high)}{remark} {_basis(c)}{holm}"
    if better.failed:
        failed = f"{first} did not train ({_failures(better)})"
        return f"no gain is stated: {failed}, though it was {word} than {other} {amount}"
    if not worse.failed:
        return f"{first} was {word} than {other} {amount}"
    known = not better.first.cheap and not better.not_judged
    return f"{other} did not train ({_failures(worse)}){f', {first} did' if known else ''}; {first} was {word} {amount}"


def _failures(row: Row) -> str:
    return f"{row.untrained} of {len(row.runs)} runs"


def _fixed_words(c: Comparison) -> str:
    """A sentence where these very runs differ, though runs differ too much to say so of their sources."""
    d = c.difference
    if d.design == "fixed" or d.fixed_low is None or d.fixed_low <= 0 <= d.fixed_high or c.better.failed:
        return ""
    return (
        f" With these runs held fixed the interval is {bracket(d.fixed_low, d.fixed_high, True)}: these trained "
        "networks differ, and another set of runs need not."
    )


def _more_words(c: Comparison) -> str:
    """Sentences that follow a number: whom it concerns, its margin, what else differs, and marks of training."""
    return (
        _claim_words(c)
        + _margin_words(c)
        + _system_words(c.pair)
        + _untrained_words(c)
        + _unjudged_words(c.pair)
        + _synthetic_words(c.pair)
    )


def _claim_words(c: Comparison) -> str:
    """A sentence where a side has one run: the difference is not one of sources in general."""
    if c.difference.design == "crossed":
        return ""
    single = [row for row in (c.pair.a, c.pair.b) if len(row.runs) == 1 and not row.first.cheap]
    if len(single) == 2:
        return " With one run each this concerns these two trained networks, not their sources."
    names = " and ".join(row.label for row in single)
    return f" With one run of {names} this concerns that trained network, not its source." if single else ""


def _untrained_words(c: Comparison) -> str:
    """A sentence about runs that did not train, where the first one has not named them."""
    named = [row for row in (c.pair.a, c.pair.b) if row.failed] if c.apart else []
    rows = [f"{row.label} in {_failures(row)}" for row in c.untrained if not any(row is one for one in named)]
    return f" Did not train: {', '.join(rows)}." if rows else ""


def _unjudged_words(pair: Pair) -> str:
    """A sentence about rows of which nobody knows whether they trained."""
    rows = [row for row in (pair.a, pair.b) if row.not_judged and not row.first.cheap]
    names = dict.fromkeys(row.label for row in rows)
    return f" Whether training worked was not judged: {', '.join(names)}." if names else ""


def _system_words(pair: Pair) -> str:
    """In which settings the systems differ; empty for a source effect, and for lines that have no network."""
    if pair.kind == "source" or not pair.differs or pair.a.first.cheap or pair.b.first.cheap:
        return ""
    named, more = pair.differs[:_NAMED], len(pair.differs) - _NAMED
    return f" They differ in {'; '.join(named)}" + (f"; and {more} more settings." if more > 0 else ".")


def _margin_words(c: Comparison) -> str:
    """Whether all of the interval is within what was said beforehand not to matter.

    Empty where nothing was said, and where a difference is shown that may be larger than that.
    """
    if c.margin is None:
        return ""
    inside = -c.margin < c.difference.low and c.difference.high < c.margin
    if c.shown and not inside:
        return ""
    how = "lies within" if inside else "reaches beyond"
    return f" The interval {how} the margin of {c.margin:g} that was named beforehand."


def _synthetic_words(pair: Pair) -> str:
    """A sentence about rows whose pretraining was fed synthetic data; the patients of the test set may be real."""
    names = list(dict.fromkeys(row.label for row in (pair.a, pair.b) if row.synthetic_pretraining))
    return f" Pretrained on synthetic data: {', '.join(names)}." if names else ""


def _basis(c: Comparison) -> str:
    """``on n test patients, s seeds, one pretraining run each``."""
    d, pair = c.difference, c.pair
    part = "test" if pair.a.first.split == "test" else "validation"
    counts = seeds_of(c)
    few = f" (fewer than {FEW_SEEDS})" if 1 < min(counts) < FEW_SEEDS or max(counts) == 1 else ""
    if d.design == "crossed" or len(counts) == 1:
        seeds = f"{counts[0]} seed{'s' if counts[0] != 1 else ''}{few}"
    elif counts == [1, 1]:
        seeds = "one run each"
    else:
        seeds = f"{counts[0]} and {counts[1]} runs{few}"
    return ", ".join(filter(None, (f"on {d.patients} {part} patients", seeds, pretraining_words(pair.a, pair.b))))


def seeds_of(c: Comparison) -> list[int]:
    """Runs behind a difference, of each side; one number where they share seeds, or a line has none of its own."""
    rows = [row for row in (c.pair.a, c.pair.b) if not row.first.cheap]
    if c.difference.design == "crossed":
        return [c.difference.runs]
    return [len(row.runs) for row in rows] or [c.difference.runs]


def pretraining_words(a: Row, b: Row) -> str:
    """How many pretraining runs stand behind two rows."""
    counts = [row.pretrainings for row in (a, b)]
    if counts == [1, 1]:
        return "one pretraining run each"
    if counts == [0, 0]:
        return ""
    if 0 in counts:
        count, row = max(zip(counts, (a, b)), key=lambda pair: pair[0])
        return f"{'one pretraining run' if count == 1 else f'{count} pretraining runs'} of {row.label}"
    return f"{counts[0]} and {counts[1]} pretraining runs"


def kind_words(c: Comparison) -> str:
    """``source effect`` or ``system comparison``, and whether it was named beforehand."""
    if c.pair.why_not:
        return "not comparable"
    head = "source effect" if c.pair.kind == "source" else "system comparison"
    return f"{head}, {'primary' if c.primary else 'exploratory'}"


def flags_of(row: Row, found: Interval, said: Sequence[str] = ()) -> list[str]:
    """What must be said beside the figure of a row; ``said``: marks that stand at its test set already."""
    flags = []
    metric = row.first.task.main_metric.lower()
    bounded = any(word in metric.split("_") for word in _BOUNDED)
    if row.first.task.higher_is_better and bounded and found.point > CEILING:
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


def _p(value: float | None) -> str:
    if value is None:
        return "n/a"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
