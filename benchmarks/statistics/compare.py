"""Figures of rows and differences between sources with their uncertainty: over other patients, and over other runs.

The number is the mean over runs of main metric(a_i) - main metric(b_i) on the same test units. Its interval and p are
those of multi-reader multi-case analysis: runs are readers, patients are cases. Docs, with the reasons and what was
measured: docs/benchmarks_statistics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.read.pairing import mismatch, why_not_paired
from benchmarks.statistics.influence import Influence, influence
from benchmarks.statistics.mrmc import Analysis, Side, analyse, crossed, limits, p_value
from benchmarks.statistics.power import detectable, detectable_kappa, holm
from voco.errors import InputError
from voco.stats.interval import LEVEL, Interval
from voco.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "METHOD",
    "Difference",
    "Influence",
    "RunInterval",
    "detectable",
    "detectable_kappa",
    "difference",
    "holm",
    "influence",
    "interval",
    "why_not_paired",
]
# Stored beside every number. The version grows whenever the same predictions would give another number.
METHOD = {"name": "Obuchowski-Rockette with Hillis' degrees of freedom", "version": 1}
FEW_RUNS = 5
_TINY = 1e-12  # of a standard error: below, nothing varies


@dataclass(frozen=True)
class RunInterval(Interval):
    """A main metric, mean over runs. Its interval is for other patients and other runs; for other patients alone where
    there is one run.

    Attributes:
        units: test units (those of several folds or repeats once).
        runs: that were averaged (of the side with fewer, in a difference).
        direction: ``higher`` or ``lower``: which way is better.
        notes: what must be said with the number, also why there is no interval.
        error, freedom: standard error and degrees of freedom behind ``low`` and ``high``.
        fixed_low, fixed_high: for other patients and these very runs.
    """

    units: int = 0
    runs: int = 0
    direction: str = "higher"
    notes: list[str] = field(default_factory=list)
    error: float | None = None
    freedom: float | None = None
    fixed_low: float | None = None
    fixed_high: float | None = None


@dataclass(frozen=True)
class Difference(RunInterval):
    """Main metric of a minus that of b; attributes as ``RunInterval``.

    Attributes:
        p: two-sided, of the test that the interval belongs to; None where there is no interval.
        design: ``crossed`` where run i of both sides shares its seed, ``nested`` where runs belong to their source
            alone, ``fixed`` where each side has one run.
        runs_a, runs_b: of each side.
    """

    p: float | None = None
    design: str = "crossed"
    runs_a: int = 1
    runs_b: int = 1


def interval(task: Task, runs: Sequence[pd.DataFrame | Influence]) -> RunInterval:
    """The main metric of one row of a table, mean over runs.

    Limits of metrics with a smallest and a largest value are computed as logits, so that they stay between.

    Args:
        task: whose metric.
        runs: what ``task.to_units`` gave for each run, on the same test set; or ``influence`` of it.

    Raises:
        InputError: no run, or runs on different test sets.
    """
    (side,), first = _read(task, [runs])
    low, high = task.main.range
    facts = _facts(task, first, side, len(runs))
    if not _defined([side], facts):
        return RunInterval(**facts)
    found = analyse([_side(side)], first.sizes, first.patients)
    if not _varies(found, facts):
        return RunInterval(**facts)
    if np.isfinite([low, high]).all():
        facts |= _logit_limits(found, low, high)
    else:
        facts |= _limits(found, low, high)
    return RunInterval(**facts)


def difference(
    task: Task, a: Sequence[pd.DataFrame | Influence], b: Sequence[pd.DataFrame | Influence], *, paired: bool = True
) -> Difference:
    """Mean over runs of main metric(a_i) - main metric(b_i) on the same test units.

    Metrics are computed within each fold and averaged over folds; scores of different models are never ranked together.

    Args:
        task: whose metric.
        a, b: what ``task.to_units`` gave for each run: one row per unit (and fold), with ``patient``, label and score
            columns; or ``influence`` of it. ``a[i]`` and ``b[i]`` share seed i.
        paired: False where the runs of a and b share no seeds, or are not as many. A side with one run is fixed: the
            difference then concerns that one.

    Raises:
        InputError: no runs, unequal numbers of paired runs, or tables with other units, patients or labels.
    """
    if paired and len(a) != len(b):
        raise InputError(f"{len(a)} runs cannot be paired with {len(b)}: give runs of the same seeds, or paired=False")
    (x, y), first = _read(task, [a, b])
    low, high = task.main.range
    facts = _facts(task, first, x + y, min(len(a), len(b)))
    one, other = _side(x), _side(y, -1)
    facts["point"] = float(one.values.mean() - other.values.mean())
    facts["runs_a"], facts["runs_b"] = len(a), len(b)
    facts["design"] = "fixed" if len(a) == len(b) == 1 else "crossed" if paired else "nested"
    if not _defined([x, y], facts):
        return Difference(**facts)
    sides = [crossed(one, _side(y))] if paired else [one, other]
    found = analyse(sides, first.sizes, first.patients)
    if not _varies(found, facts):
        return Difference(**facts)
    facts |= _limits(found, low - high, high - low)
    return Difference(**facts, p=float(p_value(found.point, found.error, found.freedom)))


def _read(task: Task, sides) -> tuple[list[list[Influence]], Influence]:
    """Runs of each side on one test set, and the first of all."""
    if not all(len(runs) for runs in sides):
        raise InputError("nothing to compare: each side needs at least one table of units")
    found = [[run if isinstance(run, Influence) else influence(task, run) for run in runs] for runs in sides]
    everyone = [run for runs in found for run in runs]
    for number, run in enumerate(everyone[1:], 2):
        if run.key != everyone[0].key and (reason := mismatch(everyone[0].units, run.units, task)):
            raise InputError(f"table {number} cannot be paired with table 1: {reason}")
    return found, everyone[0]


def _side(runs: Sequence[Influence], sign: int = 1) -> Side:
    values = np.array([run.value for run in runs])
    if any(run.why_not for run in runs):
        return Side(values, np.zeros((len(runs), 1, 1)), sign)
    return Side(values, np.stack([run.sums for run in runs]), sign)


def _facts(task: Task, first: Influence, everyone: Sequence[Influence], runs: int) -> dict:
    return {
        "point": float(np.mean([run.value for run in everyone])), "low": None, "high": None,
        "units": int(first.units["unit"].nunique()), "patients": first.patients, "runs": runs,
        "direction": "higher" if task.higher_is_better else "lower", "notes": [],
    }  # fmt: skip


def _defined(sides: Sequence[Sequence[Influence]], facts: dict) -> bool:
    """Whether all runs have a variance; notes what they lack, or what few of them mean."""
    reasons = dict.fromkeys(run.why_not for runs in sides for run in runs if run.why_not)
    facts["notes"] += [f"no interval: {reason}" for reason in reasons]
    counts = [len(runs) for runs in sides]
    if max(counts) == 1:
        facts["notes"].append("one run: the interval says nothing about another training run")
    elif facts["runs"] < FEW_RUNS and min(counts) > 1:
        facts["notes"].append(f"fewer than {FEW_RUNS} runs ({facts['runs']})")
    if len(sides) == 2 and counts[0] != counts[1]:
        facts["notes"].append(f"runs are not paired: {counts[0]} and {counts[1]}")
    return not reasons and bool(np.isfinite(facts["point"]))


def _varies(found: Analysis, facts: dict) -> bool:
    if found.error < _TINY:
        facts["notes"].append("no interval: nothing varies (perfect, constant or equal scores)")
        return False
    return True


def _limits(found: Analysis, least: float, most: float) -> dict:
    low, high = limits(found.point, found.error, found.freedom, LEVEL)
    fixed = limits(found.point, found.fixed_error, found.fixed_freedom, LEVEL)
    names = ("low", "high", "fixed_low", "fixed_high")
    facts = {name: float(np.clip(value, least, most)) for name, value in zip(names, (low, high, *fixed))}
    return facts | {"error": float(found.error), "freedom": float(found.freedom)}


def _logit_limits(found: Analysis, least: float, most: float) -> dict:
    """Limits on the scale of logits, by the delta method; back on the scale of the metric."""
    share = (found.point - least) / (most - least)
    if not 0 < share < 1:
        return _limits(found, least, most)
    slope = (most - least) * share * (1 - share)
    logit = np.log(share / (1 - share))
    facts = {"error": float(found.error), "freedom": float(found.freedom)}
    for name, error, freedom in (
        ("", found.error, found.freedom), ("fixed_", found.fixed_error, found.fixed_freedom),
    ):  # fmt: skip
        for end, value in zip(("low", "high"), limits(logit, error / slope, freedom, LEVEL)):
            facts[name + end] = float(least + (most - least) / (1 + np.exp(-value)))
    return facts
