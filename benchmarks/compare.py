"""Differences between sources with their uncertainty: paired by test patient, averaged over seeds.

The number is the mean over seeds of main metric(a_i) - main metric(b_i) on the same test units. Its interval comes from
a two-level bootstrap: patients and seeds are drawn with replacement at once, and the patients drawn depend on the test
set and the seed of the bootstrap alone, so that all comparisons of a grid see the same ones. Docs, with the reasons and
what was measured: docs/benchmarks_statistics.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.delong import DeLong, delong, delong_of
from benchmarks.pairing import by_unit, mismatch, why_not_paired
from benchmarks.power import detectable, detectable_kappa, holm
from benchmarks.weighted import mean_finite, metric_range, weighted_main_metric
from voco.errors import InputError
from voco.rng import derive_seed
from voco.stats import LEVEL, resample_counts
from voco.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DeLong",
    "Difference",
    "Drawn",
    "Interval",
    "delong",
    "delong_of",
    "detectable",
    "detectable_kappa",
    "difference",
    "draw",
    "holm",
    "interval",
    "why_not_paired",
]
RESAMPLES = 10_000
FEW_SEEDS = 5
# A metric without a fast version is computed draw by draw, with fewer draws.
SLOW_RESAMPLES = 1_000
# From fewer defined draws no interval is given: what is left of them is not the whole range.
_LEAST_DEFINED = 0.5


@dataclass(frozen=True)
class Interval:
    """A main metric, mean over seeds, with its 95 % interval.

    Attributes:
        point: the number, NaN where it is not defined.
        low, high: None where there is no interval; ``notes`` say why.
        units: test units (those of several folds or repeats once).
        patients: that were drawn from.
        seeds: runs that were averaged (pairs of runs of a paired difference).
        direction: ``higher`` or ``lower``: which way is better.
        notes: what must be said with the number.
        plain_low, plain_high: percentiles of the draws as they are, without the allowance for few seeds.
        stretch: factor of that allowance, 1 where patients alone decide.
        resamples: draws.
    """

    point: float
    low: float | None
    high: float | None
    units: int
    patients: int
    seeds: int
    direction: str
    notes: list[str] = field(default_factory=list)
    plain_low: float | None = None
    plain_high: float | None = None
    stretch: float = 1.0
    resamples: int = 0


@dataclass(frozen=True)
class Difference(Interval):
    """Main metric of a minus that of b; attributes as ``Interval``.

    Attributes:
        p: two-sided, the largest level at which the interval still holds 0; not below 2 / (resamples + 1). None where
            there is no interval.
    """

    p: float | None = None


@dataclass(frozen=True)
class Drawn:
    """The main metric of one run under the draws of patients that all runs of its test set share.

    Attributes:
        units: one row per unit and fold, sorted.
        key: of folds, units, patients and labels: equal keys are equal test sets.
        patients: that were drawn from.
        values, draws: (F,) numbers and (F, R) numbers under the draws, of each fold.
        slow: whether the metric was computed draw by draw, with fewer draws.
    """

    units: pd.DataFrame
    key: str
    patients: int
    values: np.ndarray
    draws: np.ndarray
    slow: bool


def draw(task: Task, units: pd.DataFrame, *, resamples: int = RESAMPLES, seed: int = 0) -> Drawn:
    """Compute the main metric of one run under every draw; whoever compares a run often does it once.

    Args:
        task: whose metric.
        units: what ``task.to_units`` gave: one row per unit (and fold), with ``patient``, label and score columns.
        resamples: draws.
        seed: of the draws.

    Raises:
        InputError: an empty table, or one without units or patients.
    """
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, found {resamples}")
    units = by_unit(units)
    if units.empty:
        raise InputError("the tables of units are empty")
    names, member = np.unique(units["patient"].to_numpy(str), return_inverse=True)
    fold = np.unique(units["fold"].to_numpy(), return_inverse=True)[1]
    counts = resample_counts(len(names), resamples, seed)
    parts = [np.flatnonzero(fold == f) for f in range(fold.max() + 1)]
    each = [_under_draws(task, units.iloc[rows], member[rows], counts) for rows in parts]
    shortest = min(len(drawn) for _, drawn, _ in each)
    values, draws = np.array([value for value, _, _ in each]), np.array([drawn[:shortest] for _, drawn, _ in each])
    labels = units[["fold", "unit", "patient", *task.label_columns]].to_csv(index=False)
    key = hashlib.blake2b(labels.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return Drawn(units, key, len(names), values, draws, any(slow for *_, slow in each))


def _under_draws(task: Task, units: pd.DataFrame, member: np.ndarray, counts: np.ndarray):
    """Main metric of one fold, its value under each draw, and whether those were computed one by one."""
    fast = weighted_main_metric(task, units)
    counts = counts if fast is not None else counts[:SLOW_RESAMPLES]
    everyone = len(units) == counts.shape[1] and (member == np.arange(counts.shape[1])).all()
    counts = counts if everyone else counts[:, member]
    if fast is not None:
        return float(fast(np.ones((1, len(units)), np.int32))[0]), fast(counts), False
    order = np.arange(len(units))
    drawn = [task.main_value(units.iloc[np.repeat(order, row)]) if row.any() else float("nan") for row in counts]
    return float(task.main_value(units)), np.array(drawn, float), True


def interval(
    task: Task, runs: Sequence[pd.DataFrame | Drawn], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The main metric of one row of a table, mean over seeds.

    Args:
        task: whose metric.
        runs: what ``task.to_units`` gave for each seed, on the same test set; or ``draw`` of it, of these draws.
        resamples: draws.
        seed: of the draws.

    Raises:
        InputError: no run, or runs on different test sets.
    """
    sample = _Sample(task, [runs], resamples, seed)
    values, draws = sample.each_fold(0)
    low, high = metric_range(task.main_metric)
    found = _two_level([_Side(mean_finite(values.T), _over_folds(draws), 1)], sample.patients, seed)
    return Interval(**sample.facts(found, len(runs), (low, high)))


def difference(
    task: Task,
    a: Sequence[pd.DataFrame | Drawn],
    b: Sequence[pd.DataFrame | Drawn],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    paired_seeds: bool = True,
) -> Difference:
    """Mean over seeds of main metric(a_i) - main metric(b_i) on the same test units.

    Metrics are computed within each fold and averaged over folds; scores of different models are never ranked together.

    Args:
        task: whose metric.
        a, b: what ``task.to_units`` gave for each run: one row per unit (and fold), with ``patient``, label and score
            columns; or ``draw`` of it, of these draws. ``a[i]`` and ``b[i]`` share seed i.
        resamples: draws.
        seed: of the draws.
        paired_seeds: False where the runs of a and b share no seeds, or are not as many: the seeds of each side are
            then drawn on their own. A side with one run (a cheap line) adds no variation between seeds.

    Raises:
        InputError: no runs, unequal numbers of paired runs, or tables with other units, patients or labels.
    """
    if paired_seeds and len(a) != len(b):
        raise InputError(
            f"{len(a)} runs cannot be paired with {len(b)}: give runs of the same seeds, or paired_seeds=False"
        )
    sample = _Sample(task, [a, b], resamples, seed)
    (x, dx), (y, dy) = sample.each_fold(0), sample.each_fold(1)
    if paired_seeds:
        sides = [_Side(mean_finite((x - y).T), _over_folds(dx - dy), 1)]
    else:
        sides = [_Side(mean_finite(v.T), _over_folds(d), s) for v, d, s in ((x, dx, 1), (y, dy, -1))]
    low, high = metric_range(task.main_metric)
    found = _two_level(sides, sample.patients, seed)
    facts = sample.facts(found, min(len(a), len(b)), (low - high, high - low))
    if not paired_seeds:
        facts["notes"] += [f"seeds are not paired: {len(a)} and {len(b)} runs"]
    return Difference(**facts, p=None if facts["low"] is None else found.p)


class _Sample:
    """Sides of runs on one test set."""

    def __init__(self, task: Task, sides: Sequence[Sequence[pd.DataFrame | Drawn]], resamples: int, seed: int):
        if not all(len(runs) for runs in sides):
            raise InputError("nothing to compare: each side needs at least one table of units")
        self.task = task
        self.sides = [
            [run if isinstance(run, Drawn) else draw(task, run, resamples=resamples, seed=seed) for run in runs]
            for runs in sides
        ]
        everyone = [run for runs in self.sides for run in runs]
        self.first = everyone[0]
        for number, run in enumerate(everyone[1:], 2):
            if run.key != self.first.key and (reason := mismatch(self.first.units, run.units, task)):
                raise InputError(f"table {number} cannot be paired with table 1: {reason}")
        self.patients = self.first.patients
        self.slow = any(run.slow for run in everyone)
        self._shortest = min(run.draws.shape[1] for run in everyone)

    def each_fold(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """(S, F) numbers and (S, F, R) draws of the runs of a side."""
        runs = self.sides[side]
        return np.array([run.values for run in runs]), np.array([run.draws[:, : self._shortest] for run in runs])

    def facts(self, found: _TwoLevel, seeds: int, limits: tuple[float, float]) -> dict:
        """What goes into the result, except p."""
        notes = list(found.notes)
        if seeds == 1:
            notes.append("one seed: the interval says nothing about another training run")
        elif seeds < FEW_SEEDS:
            notes.append(f"fewer than {FEW_SEEDS} seeds ({seeds})")
        if self.slow:
            notes.append(
                f"{self.task.main_metric} is computed draw by draw: at most {SLOW_RESAMPLES} resamples were drawn"
            )
        low, high = (None if v is None else float(np.clip(v, *limits)) for v in (found.low, found.high))
        return {
            "point": found.point, "low": low, "high": high, "units": int(self.first.units["unit"].nunique()),
            "patients": self.patients,
            "seeds": seeds, "direction": "higher" if self.task.higher_is_better else "lower", "notes": notes,
            "plain_low": found.plain_low, "plain_high": found.plain_high, "stretch": found.stretch,
            "resamples": found.resamples,
        }  # fmt: skip


def _over_folds(draws: np.ndarray) -> np.ndarray:
    """(S, F, R) -> (S, R) means over the folds where a draw is defined."""
    return mean_finite(np.moveaxis(draws, 1, 0))


@dataclass(frozen=True)
class _Side:
    """Runs whose seeds are drawn together: (S,) numbers, (S, R) draws of patients, and the sign they count with."""

    values: np.ndarray
    draws: np.ndarray
    sign: int

    @property
    def key(self) -> str:
        return hashlib.blake2b(self.draws.tobytes(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class _TwoLevel:
    point: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    plain_low: float | None = None
    plain_high: float | None = None
    stretch: float = 1.0
    resamples: int = 0
    notes: tuple[str, ...] = ()


def _two_level(sides: Sequence[_Side], patients_drawn: int, seed: int) -> _TwoLevel:
    """Point, interval and p of a signed sum of means over seeds.

    Seeds drawn with replacement from S of them vary too little by (S - 1) / S, and normal quantiles are too short for
    few of them. So deviations between seeds are stretched by sqrt(S / (S - 1)), as in Hesterberg (2015), The American
    Statistician 69(4), 371-386; and the whole distribution about its centre by t / z, where t is the mean of Student's
    quantiles of patients and of seeds, weighted by their variances (Cochran 1964, Biometrics 20(1), 191-195).
    """
    point = float(sum(side.sign * side.values.mean() for side in sides))
    resamples = sides[0].draws.shape[1]
    if not np.isfinite(point):
        return _TwoLevel(point, notes=("the number is not defined for every run",))
    if patients_drawn < 2:
        return _TwoLevel(point, notes=("one patient cannot be resampled: no interval",))
    fine = np.all([np.isfinite(side.draws).all(0) for side in sides], axis=0)
    if fine.sum() < _LEAST_DEFINED * resamples:
        return _TwoLevel(point, notes=(f"no interval: defined for {int(fine.sum())} of {resamples} resamples",))
    patients, between = np.zeros(resamples), np.zeros(resamples)
    plain = np.zeros(resamples)
    spread: list[tuple[float, int]] = []  # variance of the mean, degrees of freedom
    # streams by content and not by place, so that swapping the sides mirrors every draw
    for stream, side in enumerate(sorted(sides, key=lambda side: side.key)):
        runs = len(side.values)
        mean = side.draws.mean(0)
        patients += side.sign * mean
        if runs > 1:
            rng = np.random.default_rng(derive_seed(seed, "seeds", runs, stream))
            drawn = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples).T / runs
            deviation = side.sign * ((drawn * side.draws).sum(0) - mean)
            plain += deviation
            between += np.sqrt(runs / (runs - 1)) * deviation
            spread.append((side.values.var(ddof=1) / runs, runs - 1))
    notes = ("",) if fine.all() else (f"{int((~fine).sum())} of {resamples} resamples are not defined",)
    patients, between, plain = patients[fine], between[fine], plain[fine]
    spread.append((patients.var(ddof=1), patients_drawn - 1))
    centred = np.sort(patients + between - point)
    low, high = (point + _stretched(centred, level, spread) for level in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    plain_low, plain_high = np.percentile(patients + plain, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    p = _p_value(point, centred, spread)
    return _TwoLevel(
        point, float(low), float(high), p, float(plain_low), float(plain_high),
        _stretch((1 + LEVEL) / 2, spread), resamples,
        tuple(filter(None, notes)),
    )  # fmt: skip


def _stretch(level: float, spread: Sequence[tuple[float, int]]) -> float:
    """Quantile of Student's t over that of the normal distribution, averaged over the parts of the variance.

    Args:
        level: of the quantile.
        spread: variance of the mean and degrees of freedom of each part.
    """
    from scipy.special import ndtri, stdtrit  # scipy.stats is a hundred times slower on single numbers

    total = sum(variance for variance, _ in spread)
    if not total > 0:
        return 1.0
    quantile = sum(variance * stdtrit(freedom, level) for variance, freedom in spread) / total
    return float(quantile / ndtri(level))


def _stretched(centred: np.ndarray, level: float, spread: Sequence[tuple[float, int]]) -> float:
    """Quantile of sorted draws, stretched."""
    return float(np.quantile(centred, level)) * _stretch(level, spread)


def _p_value(point: float, centred: np.ndarray, spread: Sequence[tuple[float, int]]) -> float:
    """Largest level at which the two-sided interval holds 0, by bisection."""
    least, most = 2 / (len(centred) + 1), 1.0

    def holds(p: float) -> bool:
        low, high = (point + _stretched(centred, level, spread) for level in (p / 2, 1 - p / 2))
        return low <= 0 <= high

    if not holds(least):
        return least
    if holds(0.999):  # at 1 both limits are the median, and t / z is 0 / 0
        return 1.0
    inside, outside = least, most * 0.999
    while outside - inside > 1e-5 * inside:
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return float(inside)
