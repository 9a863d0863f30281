"""How much each patient bears on the main metric of a run: one sum per patient, over units, parts, folds and repeats.

The sums are scaled so that their products are covariances: that of the figures of two runs over other patients is the
sum over patients of the products of their sums. For AUROCs that is DeLong's estimate, with several units of a patient
that of Obuchowski (1997), Biometrics 53(2), 567-578; for all other metrics it is the jackknife that leaves out one
patient after the other, which for a mean over patients is the usual variance of a mean.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.read.pairing import by_unit
from voco.errors import InputError
from voco.stats.parts import Part, RankingPart, SumPart, mean_placement
from voco.stats.ranking import placements
from voco.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

# Of fewer patients of a class no variance is estimated: with two, A/A comparisons were told apart in 8 to 9 of 100.
LEAST_PATIENTS = 3
_CELLS = 4_000_000  # of weights, at once


@dataclass(frozen=True)
class Influence:
    """The main metric of one run, and the share of each patient in it.

    Attributes:
        units: one row per unit and fold, sorted.
        key: of folds, units, patients and labels: equal keys are equal test sets.
        patients: of the test set.
        value: the main metric, mean over the folds where it is defined; NaN where it is in none.
        sums: (G, P) of each patient in each group: patients of one class in one part of the metric.
        sizes: (G,) patients of each group.
        why_not: why there are no sums; empty where there are.
    """

    units: pd.DataFrame
    key: str
    patients: int
    value: float
    sums: np.ndarray
    sizes: np.ndarray
    why_not: str = ""


@dataclass(frozen=True)
class WholeMetric:
    """The main metric of a task as its only part, for one that has no others."""

    task: Task
    units: pd.DataFrame

    def value(self) -> float:
        """The number itself."""
        return self.task.main_value(self.units)


class _Undefined(Exception):
    """No variance can be estimated, and why."""


def influence(task: Task, units: pd.DataFrame) -> Influence:
    """Compute the main metric of one run and its sums; whoever compares a run often does it once.

    Args:
        task: whose metric.
        units: what ``task.to_units`` gave: one row per unit (and fold), with ``patient``, label and score columns.

    Raises:
        InputError: an empty table, or one without units or patients.
    """
    units = by_unit(units)
    if units.empty:
        raise InputError("the tables of units are empty")
    names, member = np.unique(units["patient"].to_numpy(str), return_inverse=True)
    fold = np.unique(units["fold"].to_numpy(), return_inverse=True)[1]
    labels = units[["fold", "unit", "patient", *task.label_columns]].to_csv(index=False)
    key = hashlib.blake2b(labels.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    folds = []
    for rows in (np.flatnonzero(fold == f) for f in range(fold.max() + 1)):
        parts = main_parts(task, units.iloc[rows])
        values = np.array([part.value() for part in parts])
        if np.isfinite(values).any():
            folds.append((parts, values, member[rows]))
    value = float(np.mean([np.nanmean(values) for _, values, _ in folds])) if folds else float("nan")
    try:
        if not folds:
            raise _Undefined("the number is not defined for every run")
        sums, sizes = _over_folds(folds, len(names))
    except _Undefined as reason:
        return Influence(units, key, len(names), value, np.zeros((1, len(names))), np.ones(1), str(reason))
    return Influence(units, key, len(names), value, sums, sizes)


def main_parts(task: Task, units: pd.DataFrame) -> list[Part | WholeMetric]:
    """Parts of the main metric on one fold; their mean over those that are defined is the number.

    Version 1 of the method leaves out one patient after the other for a metric of one label among several.
    """
    parts = task.main.parts(units) if task.main.outputs == task.outputs else None
    return parts or [WholeMetric(task, units)]


def _over_folds(folds, patients: int) -> tuple[np.ndarray, np.ndarray]:
    """(G, P) sums over folds, and (G,) patients of each group."""
    sums: dict[tuple, np.ndarray] = {}
    there: dict[tuple, np.ndarray] = {}
    for parts, values, member in folds:
        fine = np.flatnonzero(np.isfinite(values))
        for k in fine:
            for kind, own, present in of_part(parts[k], member, patients):
                total = sums.setdefault((k, kind), np.zeros(patients))
                total += own / (len(fine) * len(folds))
                there[k, kind] = there.get((k, kind), False) | present
    sizes = np.array([present.sum() for present in there.values()])
    if sizes.min() < LEAST_PATIENTS:
        what = "a class" if len(sizes) > 1 else "the test set"
        raise _Undefined(f"{what} has {sizes.min()} patients; an interval needs {LEAST_PATIENTS}")
    return np.stack(list(sums.values())), sizes


def of_part(part: Part | WholeMetric, member: np.ndarray, patients: int):
    """Sums of the patients in one part of a metric, on one fold.

    Args:
        part: of the metric.
        member: (n,) patient of each row of the fold.
        patients: in all.

    Yields:
        A name of the group, (P,) sums, and (P,) whether a patient is in the group.
    """
    if isinstance(part, RankingPart):
        yield from of_ranking(part.labels, part.scores, member[part.rows], patients)
        return
    rows = part.rows if isinstance(part, SumPart) else np.arange(len(member))
    names, own = np.unique(member[rows], return_inverse=True)
    if len(names) < 2:
        raise _Undefined("one patient alone: no interval")
    without = _left_out(part, own, len(names))
    if not np.isfinite(without).all():
        lost = int((~np.isfinite(without)).sum())
        raise _Undefined(f"left out one by one, {lost} of {len(names)} patients leave the number undefined")
    n = len(names)
    found = np.zeros(patients)
    found[names] = np.sqrt((n - 1) / n) * (without.mean() - without)
    kinds = np.zeros(n)
    if isinstance(part, SumPart) and part.kinds is not None:  # a patient with several units is of the highest class
        np.maximum.at(kinds, own, part.kinds)
    for kind in np.unique(kinds):
        present = np.zeros(patients, bool)
        present[names[kinds == kind]] = True
        yield kind, np.where(present, found, 0.0), present


def of_ranking(labels: np.ndarray, scores: np.ndarray, member: np.ndarray, patients: int):
    """Sums of the patients in AUROCs of the same units; arguments and result as ``of_part``, (…, n) scores and sums."""
    positive = labels == 1
    up, down = placements(positive, scores)
    auroc = mean_placement(up, down)
    for kind, placed in ((1, up), (0, down)):
        own = member[positive if kind else ~positive]
        present = np.bincount(own, minlength=patients) > 0
        count = int(present.sum())
        if count < 2:
            raise _Undefined(f"one patient alone is {'positive' if kind else 'negative'} in a fold: no interval")
        share = np.sqrt(count / (count - 1)) / len(own)
        single = np.zeros((*placed.shape[:-1], patients))
        if count == len(own):
            single[..., own] = (placed - auroc[..., None]) * share
        else:
            np.add.at(single, (..., own), (placed - auroc[..., None]) * share)
        yield kind, single, present


def _left_out(part: SumPart | WholeMetric, own: np.ndarray, patients: int) -> np.ndarray:
    """(P,) values of a part without the units of each patient in turn."""
    if not isinstance(part, SumPart):
        return np.array([part.task.main_value(part.units.iloc[np.flatnonzero(own != p)]) for p in range(patients)])
    found, block = np.empty(patients), max(1, _CELLS // len(own))
    for first in range(0, patients, block):
        some = np.arange(first, min(first + block, patients))
        found[some] = part.of_weights((own[None] != some[:, None]).astype(np.float64))
    return found
