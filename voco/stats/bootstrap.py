"""How sure a number is: percentile intervals from patients drawn with replacement, and what takes their place for few.

Scans of one patient are drawn together, or intervals would be too narrow. Over the folds of a cross-validation, which
are scored by different models, a number is computed within each fold and then averaged; one draw of patients serves all
folds and repeats, so that a patient who is scored in every repeat does not count as several. Intervals say how a number
would vary with other patients of the same kind; how it would vary with another training run they do not say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Protocol

import numpy as np

from voco.rng import derive_seed
from voco.stats.interval import LEVEL, Interval

if TYPE_CHECKING:
    import pandas as pd

# From fewer than this share of the resamples no interval is given: what is left of them is not the whole range.
_LEAST_DEFINED = 0.5
# Percentiles of a bootstrap over fewer patients are too narrow: seen in the table of docs/finetune.md.
LEAST_GROUPS = 10
# An AUROC with fewer patients on either side has the interval of Newcombe.
LEAST_SIDE = 20
_SAME = 1e-9


@dataclass(frozen=True)
class Resampled(Interval):
    """An interval from resamples; attributes as ``Interval``.

    Attributes:
        resamples: draws.
        undefined: draws for which the number is not defined, such as an AUROC without positives; they are left out.
        reason: why there is no interval.
    """

    resamples: int = 0
    undefined: int = 0
    reason: str = ""


class Statistic(Protocol):
    """A number of a table of rows that is computed for thousands of resamples at once; metrics of tasks are such.

    Attributes:
        all_draws: whether it is cheap to compute.
    """

    all_draws: bool

    def of(self, rows: pd.DataFrame) -> Callable[[np.ndarray], np.ndarray]:
        """A function of (R, n) weights of the rows that gives (R,) values."""

    def sides(self, rows: pd.DataFrame) -> np.ndarray | None:
        """(n,) labels where it is an AUROC, NaN where they are not known; else None."""


@lru_cache(maxsize=8)
def resample_counts(groups: int, resamples: int, seed: int) -> np.ndarray:
    """(R, G) how often each group is in each draw of G groups with replacement; the same for every statistic."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", groups))
    counts = rng.multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(np.int32)
    counts.setflags(write=False)
    return counts


def bootstrap(
    frame: pd.DataFrame,
    groups: Sequence,
    statistic: Statistic | Callable[[pd.DataFrame], float | Mapping[str, float | None] | None],
    *,
    n: int = 2000,
    seed: int = 0,
    folds: Sequence | None = None,
) -> Resampled | dict[str, Resampled]:
    """A number of a table, or several, with percentile intervals over groups of rows drawn with replacement.

    Args:
        frame: rows.
        groups: (n,) patient of each row.
        statistic: as ``Statistic``; or a function of a table of rows, which may repeat, that gives a number or names to
            numbers. None and NaN mean undefined.
        n: resamples.
        seed: of the draws; the same patients are drawn for every statistic, so that two of them can be compared.
        folds: (n,) fold of each row. The number is the mean of those of the folds where it is defined.

    Returns:
        One interval, or one per name.
    """
    names, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    if not len(frame):
        return Resampled(float("nan"), reason="no rows")
    fold = np.zeros(len(frame), int) if folds is None else np.unique(np.asarray(folds), return_inverse=True)[1]
    rows = [np.flatnonzero(fold == f) for f in range(fold.max() + 1)]
    parts = [frame.iloc[own] for own in rows]
    counts = resample_counts(len(names), n, seed) if len(names) > 1 and n else np.zeros((0, len(names)), np.int32)
    if not callable(statistic):
        each = [_weighted(statistic.of(part), counts[:, member[own]]) for part, own in zip(parts, rows)]
        # numpy adds along a row in another order than across rows: either as numbers always were, to the last digit
        each = np.stack(each) if statistic.all_draws else np.stack(each, 1).T
        found = _interval(_mean(each[:, :1])[0], _mean(each)[1:], len(names))
        labels = statistic.sides(frame)
        return found if labels is None else _few_cases(found, labels, member, fold, _mean(each)[1:])
    plain = [_numbers(statistic(part)) for part in parts]
    draws = [
        _average([_numbers(statistic(p.iloc[np.repeat(np.arange(len(o)), row[member[o]])])) if row[member[o]].any()
                  else {} for p, o in zip(parts, rows)])
        for row in counts
    ]  # fmt: skip
    found = {
        name: _interval(value, np.array([one.get(name, np.nan) for one in draws]), len(names))
        for name, value in _average(plain).items()
    }
    return found if set(found) != {""} else found[""]


def _weighted(function: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Values of the sample itself and of each draw."""
    return function(np.concatenate([np.ones((1, counts.shape[1]), counts.dtype), counts]))


def _numbers(found) -> dict[str, float]:
    found = found if isinstance(found, Mapping) else {"": found}
    return {name: float("nan") if value is None else float(value) for name, value in found.items()}


def _average(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in each for name in one)
    return {name: float(_mean(np.array([[one.get(name, np.nan)] for one in each]))[0]) for name in names}


def _mean(values: np.ndarray) -> np.ndarray:
    """(F, R) -> (R,) means over the folds that are finite, NaN where none is."""
    fine = np.isfinite(values)
    count = fine.sum(0)
    total = np.where(fine, values, 0.0).sum(0)
    return np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)


def _interval(value: float, draws: np.ndarray, patients: int) -> Resampled:
    fine = draws[np.isfinite(draws)]
    undefined = len(draws) - len(fine)
    reason = ""
    if not np.isfinite(value):
        reason = "the number itself is not defined"
    elif patients < 2:
        reason = "one patient cannot be resampled"
    elif not len(draws):
        reason = "no resamples were asked for"
    elif len(fine) < _LEAST_DEFINED * len(draws):
        reason = f"not defined for {undefined} of {len(draws)} resamples"
    elif patients < LEAST_GROUPS:
        reason = f"{patients} patients are too few for an interval, {LEAST_GROUPS} are needed"
    elif _all_same(fine):
        reason = "the same in every resample, so nothing is known of how it varies"
    if reason:
        return Resampled(value, None, None, patients, len(draws), undefined, reason)
    low, high = np.percentile(fine, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Resampled(value, float(low), float(high), patients, len(draws), undefined)


def _all_same(draws: np.ndarray) -> bool:
    return len(draws) > 0 and float(np.ptp(draws)) < _SAME


def _few_cases(found: Resampled, labels: np.ndarray, member: np.ndarray, fold: np.ndarray, draws) -> Resampled:
    """An AUROC with the interval of Newcombe where there are few cases, or where resamples reach 0 or 1."""
    known = ~np.isnan(labels)
    same = _all_same(draws[np.isfinite(draws)]) and 0 < found.point < 1  # a constant predictor
    if not np.isfinite(found.point) or found.patients < 2 or not len(draws) or same:
        return found
    positives, negatives, parts = _sides(labels[known], member[known], fold[known])
    inside = found.low is not None and found.low > 0 and found.high < 1
    if inside and min(positives, negatives) * parts >= LEAST_SIDE:
        return found
    low, high = auroc_interval(found.point, positives, negatives, parts)
    return replace(found, low=low, high=high, reason="")


def auroc_interval(auroc: float, positives: float, negatives: float, parts: float = 1.0) -> tuple[float, float]:
    """95 % interval of an AUROC that also holds for few cases and for perfect separation.

    The limits A are where (A - auroc)^2 = z^2 V(A), as in Wilson's interval of a share; V is the variance of Hanley and
    McNeil with the mean of both numbers in place of each (Newcombe, Statistics in Medicine 25:559, 2006, method 5).

    Args:
        auroc: as found.
        positives, negatives: independent cases on either side, at least 1.
        parts: how many such sets of cases it is the mean of.
    """
    z, others = NormalDist().inv_cdf(0.5 + LEVEL / 2), (positives + negatives) / 2 - 1

    def excess(limit: float) -> float:
        spread = limit * (1 - limit) * (1 + others * ((1 - limit) / (2 - limit) + limit / (1 + limit)))
        return (limit - auroc) ** 2 - z**2 * spread / (positives * negatives * parts)

    return _crossing(excess, auroc, 0.0), _crossing(excess, auroc, 1.0)


def _crossing(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """Where a function that is not positive inside and not negative outside changes its sign, by bisection."""
    if excess(outside) <= 0:
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if excess(middle) <= 0 else (inside, middle)
    return (inside + outside) / 2


def _sides(labels: np.ndarray, member: np.ndarray, fold: np.ndarray) -> tuple[float, float, float]:
    """Independent positives and negatives of a fold, and how many such folds there are.

    Units of a patient count as one; where patients have unequal numbers of them, Kish's effective number is taken.
    """
    once = {}
    for name, side in (("positive", labels == 1), ("negative", labels == 0)):
        each = [np.bincount(member[side & (fold == f)]) for f in np.unique(fold)]
        each = [counts.sum() ** 2 / (counts.astype(float) ** 2).sum() for counts in each if counts.sum()]
        once[name] = float(np.mean(each)) if each else 0.0
    pairs = {(f, m) for f, m in zip(fold, member)}
    return once["positive"], once["negative"], len(np.unique(member)) * len(np.unique(fold)) / len(pairs)
