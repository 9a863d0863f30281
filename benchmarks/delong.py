"""DeLong's test of two AUROCs on one fixed test set: an exact-variance check beside the bootstrap.

It compares one run with one run. Variation between seeds, folds, and several scans of one patient have no place in it,
so it refuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.pairing import why_not_paired
from voco.errors import InputError
from voco.stats import LEVEL
from voco.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

_TINY = 1e-12


@dataclass(frozen=True)
class DeLong:
    """Two AUROCs on the same patients.

    Attributes:
        auc_a, auc_b: of the two scores.
        difference: a minus b, with its 95 % interval ``low``, ``high``.
        p: two-sided, normal approximation.
    """

    auc_a: float
    auc_b: float
    difference: float
    low: float
    high: float
    p: float


def delong(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, *, patients: Sequence | None = None
) -> DeLong:
    """Compare two AUROCs of the same cases.

    Source: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44(3), 837-845; the placements are computed from
    mid-ranks as in Sun and Xu (2014), IEEE Signal Processing Letters 21(11).

    Args:
        labels: (n,) 0 or 1.
        scores_a, scores_b: (n,) higher means more likely positive.
        patients: (n,) of the cases; given, it is checked that nobody stands there twice.

    Raises:
        InputError: the test does not apply: labels that are not known or not 0 and 1, fewer than two cases of a class,
            scores that are not finite, several cases of one patient, or scores that leave no variance to judge by.
    """
    y, a, b = (np.asarray(values, np.float64) for values in (labels, scores_a, scores_b))
    if y.ndim != 1 or not y.shape == a.shape == b.shape:
        raise InputError(f"DeLong's test takes three vectors of one length, found {y.shape}, {a.shape}, {b.shape}")
    if not np.isin(y, (0.0, 1.0)).all():
        raise InputError(f"DeLong's test takes labels 0 and 1, all known; found {np.unique(y)[:5].tolist()}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("DeLong's test takes finite scores")
    positive = y == 1
    if min(positive.sum(), (~positive).sum()) < 2:
        raise InputError(
            f"DeLong's test needs two cases of each class, found {int(positive.sum())} positive and "
            f"{int((~positive).sum())} negative; use the bootstrap"
        )
    if patients is not None and len(set(map(str, patients))) < len(y):
        raise InputError(
            f"DeLong's test takes one case per patient, found {len(y)} cases of {len(set(map(str, patients)))} "
            "patients; use the bootstrap, which draws patients"
        )
    (auc_a, up_a, down_a), (auc_b, up_b, down_b) = _placements(positive, a), _placements(positive, b)
    variance = (up_a - up_b).var(ddof=1) / len(up_a) + (down_a - down_b).var(ddof=1) / len(down_a)
    return _judge(auc_a, auc_b, float(np.sqrt(variance)))


def _placements(positive: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """AUROC, share of negatives below each positive (m,), and of positives above each negative (n,), ties half."""
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    m, n = int(positive.sum()), int((~positive).sum())
    up = (ranks[positive] - rankdata(scores[positive])) / n
    down = 1 - (ranks[~positive] - rankdata(scores[~positive])) / m
    return float(up.mean()), up, down


def _judge(auc_a: float, auc_b: float, error: float) -> DeLong:
    from scipy.stats import norm

    difference = auc_a - auc_b
    if error < _TINY:
        if abs(difference) > _TINY:
            raise InputError(
                f"DeLong's test does not apply: AUROCs {auc_a:.3f} and {auc_b:.3f} have no variance (perfect or "
                "constant scores); use the bootstrap"
            )
        return DeLong(auc_a, auc_b, 0.0, 0.0, 0.0, 1.0)
    half = norm.ppf((1 + LEVEL) / 2) * error
    p = 2 * norm.sf(abs(difference) / error)
    return DeLong(auc_a, auc_b, difference, float(difference - half), float(difference + half), float(p))


def delong_of(task: Task, a: pd.DataFrame, b: pd.DataFrame) -> DeLong:
    """DeLong's test of one run against one run, from their tables of units.

    Args:
        task: its main metric must be the AUROC of one yes-or-no output.
        a, b: what ``task.to_units`` gave, on the same test set.

    Raises:
        InputError: the test does not apply: another metric, several folds, other units, or as ``delong``.
    """
    if task.main_metric != "auroc" or len(task.outputs) != 1 or task.outputs[0].kind != "binary":
        raise InputError(
            f"DeLong's test compares AUROCs of one yes-or-no output; {task.name} has {task.main_metric} of "
            f"{', '.join(output.name for output in task.outputs)}"
        )
    if reason := why_not_paired(a, b, task):
        raise InputError(f"DeLong's test needs the same test units: {reason}")
    if "fold" in a and a["fold"].nunique() > 1:
        raise InputError(
            f"DeLong's test needs one fixed test set and one model, found {a['fold'].nunique()} folds, whose scores "
            "come from different models; use the bootstrap"
        )
    output = task.outputs[0]
    b = b.set_index("unit").loc[a["unit"]]
    known = a[output.label_column].notna().to_numpy()
    score = output.score_columns[0]
    return delong(
        a[output.label_column].to_numpy(float)[known], a[score].to_numpy(float)[known], b[score].to_numpy(float)[known],
        patients=a["patient"].to_numpy()[known],
    )  # fmt: skip
