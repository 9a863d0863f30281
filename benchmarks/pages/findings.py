"""The words of the report about differences: what a comparison allows to be said, and what must stand with it."""

from __future__ import annotations

import math

from benchmarks.pages.sentences import (
    FEW_SEEDS,
    SYNTHETIC_TITLE,
    bracket,
    names_of,
    number,
    share,
    signed,
)
from benchmarks.read.rows import Pair, Row, TestSet
from benchmarks.statistics.measure import Comparison

_NAMED = 3  # settings in a sentence at most


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
    head = ", ".join(filter(None, (task.main.title, _common(pair))))
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


def _common(pair: Pair) -> str:
    """What both rows share of network, mode and labels."""
    rows = (pair.a, pair.b)
    pairs = ([row.first.encoder for row in rows], [row.first.mode for row in rows], [share(r.fraction) for r in rows])
    return ", ".join(values[0] for values in pairs if values[0] == values[1] and values[0])


def _p(value: float | None) -> str:
    if value is None:
        return "n/a"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
