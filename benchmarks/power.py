"""Before and after the runs: what a test set could detect, and how several p-values are read together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from voco.errors import InputError
from voco.stats import LEVEL
from voco.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

POWER = 0.8
# Assumptions for planning, where no run exists yet to estimate them from.
AUROC, KAPPA, CORRELATION = 0.75, 0.3, 0.5
_DRAWS = 2000


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several, so that the chance of any false finding stays below the level.

    Source: Holm (1979), Scandinavian Journal of Statistics 6(2), 65-70.

    Args:
        p_values: of the primary comparisons, in [0, 1].

    Returns:
        Adjusted values in the same order, at most 1.

    Raises:
        InputError: a value that is no probability.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"p-values lie from 0 to 1, found {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0).tolist()


def detectable(
    units: int,
    positives: int,
    *,
    auroc: float = AUROC,
    correlation: float = CORRELATION,
    seeds: int = 1,
    seed_sd: float = 0.0,
    power: float = POWER,
) -> float:
    """Smallest difference of two paired AUROCs that a test set detects at the 5 % level, two-sided.

    The standard error of each is that of Hanley and McNeil (1982), Radiology 143, 29-36; the difference of two with
    correlation r has variance 2 SE^2 (1 - r), the same authors (1983), Radiology 148, 839-843. Between seeds it varies
    by ``seed_sd`` more. Normal approximation; with few seeds the test is more careful than this number promises.

    Args:
        units: test units with a known label.
        positives: of them.
        auroc: that both have, about.
        correlation: of the two AUROCs over test sets.
        seeds: that are averaged.
        seed_sd: standard deviation of the difference between seeds, beyond what the test set brings.
        power: chance to detect it.

    Returns:
        The difference; infinite where a class has no case.

    Raises:
        InputError: numbers out of range.
    """
    if not 0 <= positives <= units or seeds < 1 or seed_sd < 0:
        raise InputError(
            "expected 0 <= positives <= units, at least one seed and no negative spread; found "
            f"{positives} of {units}, {seeds} seeds, seed_sd {seed_sd}"
        )
    if not 0.5 <= auroc < 1:
        raise InputError(f"auroc must be from 0.5 to below 1, found {auroc}")
    m, n = positives, units - positives
    if not m or not n:
        return float("inf")
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = (auroc * (1 - auroc) + (m - 1) * (q1 - auroc**2) + (n - 1) * (q2 - auroc**2)) / (m * n)
    return _smallest(variance, correlation, seeds, seed_sd, power)


def detectable_kappa(
    units: int,
    chance: float,
    *,
    kappa: float = KAPPA,
    correlation: float = CORRELATION,
    seeds: int = 1,
    seed_sd: float = 0.0,
    power: float = POWER,
) -> float:
    """Smallest difference of two paired kappas that a test set detects at the 5 % level, two-sided.

    Standard error of Cohen (1960), Educational and Psychological Measurement 20(1), 37-46: p_o (1 - p_o) /
    (n (1 - p_e)^2); the rest as ``detectable``.

    Args:
        units: test units.
        chance: agreement by chance, the sum of the squared shares of the classes.
        kappa: that both have, about.
        correlation, seeds, seed_sd, power: as ``detectable``.

    Raises:
        InputError: numbers out of range.
    """
    if not 0 <= chance < 1 or not 0 <= kappa <= 1 or seeds < 1 or seed_sd < 0:
        raise InputError(f"chance and kappa are shares, seeds at least 1; found {chance}, {kappa}, {seeds}")
    if not units:
        return float("inf")
    agreed = kappa * (1 - chance) + chance
    variance = agreed * (1 - agreed) / (units * (1 - chance) ** 2)
    return _smallest(variance, correlation, seeds, seed_sd, power)


def detectable_in(task: Task, units: pd.DataFrame, **settings) -> tuple[float, str]:
    """Smallest detectable difference of a task's main metric on a test set whose labels are known.

    Args:
        task: whose metric.
        units: label columns, one row per test unit.
        settings: as ``detectable``; ``auroc`` or ``kappa`` as the metric has it.

    Returns:
        The difference (infinite where nothing could be detected), and in words what it rests on. Metrics other than
        AUROC and kappa take the spread of a constant predictor's metric over resampled patients.
    """
    name = task.main_metric
    if name == "auroc" and all(output.kind == "binary" for output in task.outputs):
        found = []
        for output in task.outputs:
            labels = units[output.label_column].dropna()
            found.append(detectable(len(labels), int((labels == 1).sum()), **settings))
        # the mean over several outputs varies no more than the one that varies most
        return max(found), "Hanley and McNeil (1982, 1983)"
    if name == "kappa":
        labels = units[task.outputs[0].label_column].dropna().to_numpy(int)
        share = np.bincount(labels) / max(1, len(labels))
        return detectable_kappa(len(labels), float((share**2).sum()), **settings), "Cohen (1960)"
    return _from_constant(task, units, **settings)


def _from_constant(task: Task, units: pd.DataFrame, **settings) -> tuple[float, str]:
    from benchmarks.weighted import weighted_main_metric
    from voco.stats import resample_counts

    blind = units.assign(**task.constant_scores(units))
    fast = weighted_main_metric(task, blind)
    if fast is None:
        return float("inf"), f"no planning formula for {task.main_metric}"
    drawn = fast(resample_counts(len(blind), _DRAWS, 0))
    variance = float(np.nanvar(drawn))
    if not variance > 0:
        return float("inf"), f"no planning formula for {task.main_metric}"
    values = {"correlation": CORRELATION, "seeds": 1, "seed_sd": 0.0, "power": POWER}
    values |= {name: value for name, value in settings.items() if name in values}
    return _smallest(variance, **values), "spread of a constant predictor's metric"


def _smallest(variance: float, correlation: float, seeds: int, seed_sd: float, power: float) -> float:
    from scipy.stats import norm

    if not -1 <= correlation < 1 or not 0 < power < 1:
        raise InputError(f"correlation must lie in [-1, 1) and power in (0, 1); found {correlation} and {power}")
    error = math.sqrt(2 * variance * (1 - correlation) + seed_sd**2 / seeds)
    return float((norm.ppf((1 + LEVEL) / 2) + norm.ppf(power)) * error)
