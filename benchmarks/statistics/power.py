"""Before and after the runs: what a test set could detect, and how several p-values are read together.

What could be detected follows the model that judges the runs, ``benchmarks.statistics.mrmc``: the difference of two
sources varies with the patients, by what all runs of a source share, and with the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.statistics.mrmc import TWO_RUNS
from voco.errors import InputError
from voco.stats.interval import LEVEL
from voco.tasks import standard
from voco.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

POWER = 0.8
# Assumptions for planning, where no run exists yet to estimate them from.
AUROC, KAPPA, CORRELATION, RUN_CORRELATION = 0.75, 0.3, 0.5, 0.8
LEVEL_ERROR = 1 - LEVEL
_CLOSE = 1e-7


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


def power(effect: float, *, of_runs: float, of_patients: float, runs: int, patients: float = float("inf")) -> float:
    """Chance that a difference is detected at the 5 % level, two-sided, with runs that share their seeds.

    Noncentral t with the degrees of freedom of the test itself: Hillis, Obuchowski and Berbaum (2011), Academic
    Radiology 18(2), 129-142.

    Args:
        effect: true difference.
        of_runs: variance of the difference of one pair of runs about that of all runs, on these patients.
        of_patients: covariance over patients of the differences of two pairs of runs; with one run, the variance.
        runs: of each source.
        patients: degrees of freedom of the patients.

    Returns:
        In [0, 1]; 0 where nothing varies by which to judge.
    """
    from scipy.stats import nct, t

    of_runs = of_runs / runs if runs > 1 else 0.0
    variance = of_runs + of_patients
    if not variance > 0:
        return 0.0
    below = of_patients**2 / patients + (of_runs**2 / (runs - 1) if runs > 1 else 0.0)
    freedom = min(variance**2 / below, 1e6) if below > 0 else 1e6
    if runs == 2 and of_runs > 0:
        freedom = min(freedom, TWO_RUNS)
    critical, shift = t.ppf((1 + LEVEL) / 2, freedom), abs(effect) / math.sqrt(variance)
    return float(nct.sf(critical, freedom, shift) + nct.cdf(-critical, freedom, shift))


def detectable(
    units: int,
    positives: int,
    *,
    auroc: float = AUROC,
    correlation: float = CORRELATION,
    run_correlation: float = RUN_CORRELATION,
    runs: int = 1,
    run_sd: float = 0.0,
    chance: float = POWER,
) -> float:
    """Smallest difference of two paired AUROCs that a test set detects at the 5 % level, two-sided.

    The standard error of each is that of Hanley and McNeil (1982), Radiology 143, 29-36; the difference of two with
    correlation r has variance 2 SE^2 (1 - r), the same authors (1983), Radiology 148, 839-843. Of this, runs of one
    source share a part, and the rest is averaged over them.

    Args:
        units: test units with a known label.
        positives: of them.
        auroc: that both have, about.
        correlation: over test sets, of the AUROCs of two runs of different sources.
        run_correlation: the same of two runs of one source.
        runs: of each source. With one, the difference is that of these two networks.
        run_sd: standard deviation of the difference from one pair of runs to the next, beyond what the test set brings.
        chance: to detect it.

    Returns:
        The difference; infinite where a class has no case.

    Raises:
        InputError: numbers out of range.
    """
    if not 0 <= positives <= units:
        raise InputError(f"expected 0 <= positives <= units, found {positives} of {units}")
    if not 0.5 <= auroc < 1:
        raise InputError(f"auroc must be from 0.5 to below 1, found {auroc}")
    m, n = positives, units - positives
    if not m or not n:
        return float("inf")
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    of_m, of_n = (m - 1) * (q1 - auroc**2), (n - 1) * (q2 - auroc**2)
    variance = (auroc * (1 - auroc) + of_m + of_n) / (m * n)
    # patients of the rarer class carry most of the variance, as in the test: Welch's degrees of freedom
    below = of_n**2 / max(m - 1, _CLOSE) + of_m**2 / max(n - 1, _CLOSE)
    freedom = min((of_m + of_n) ** 2 / below, units - 1) if below > 0 else 0.0
    return _smallest(variance, freedom, correlation, run_correlation, runs, run_sd, chance)


def detectable_kappa(
    units: int,
    agreement: float,
    *,
    kappa: float = KAPPA,
    **settings,
) -> float:
    """Smallest difference of two paired kappas that a test set detects at the 5 % level, two-sided.

    Standard error of Cohen (1960), Educational and Psychological Measurement 20(1), 37-46: p_o (1 - p_o) /
    (n (1 - p_e)^2); the rest as ``detectable``.

    Args:
        units: test units.
        agreement: by chance, the sum of the squared shares of the classes.
        kappa: that both have, about.
        settings: ``correlation``, ``run_correlation``, ``runs``, ``run_sd``, ``chance`` as ``detectable``.

    Raises:
        InputError: numbers out of range.
    """
    if not 0 <= agreement < 1 or not 0 <= kappa <= 1:
        raise InputError(f"agreement by chance and kappa are shares; found {agreement} and {kappa}")
    if not units:
        return float("inf")
    agreed = kappa * (1 - agreement) + agreement
    variance = agreed * (1 - agreed) / (units * (1 - agreement) ** 2)
    return _smallest_of(variance, units - 1, settings)


def detectable_in(task: Task, units: pd.DataFrame, **settings) -> tuple[float, str]:
    """Smallest detectable difference of a task's main metric on a test set whose labels are known.

    Args:
        task: whose metric.
        units: label columns and ``patient``, one row per test unit.
        settings: as ``detectable``; ``auroc`` or ``kappa`` as the metric has it.

    Returns:
        The difference (infinite where nothing could be detected), and in words what it rests on. Metrics other than
        AUROC and kappa take the variance of a constant predictor's metric over patients.
    """
    metric = task.main if task.main.outputs == task.outputs else None
    if isinstance(metric, standard.AUROC) and all(output.kind == "binary" for output in task.outputs):
        found = []
        for output in task.outputs:
            labels = units[output.label_column].dropna()
            found.append(detectable(len(labels), int((labels == 1).sum()), **settings))
        # the mean over several outputs varies no more than the one that varies most
        return max(found), "Hanley and McNeil (1982, 1983)"
    if isinstance(metric, standard.Kappa):
        labels = units[task.outputs[0].label_column].dropna().to_numpy(int)
        share = np.bincount(labels) / max(1, len(labels))
        return detectable_kappa(len(labels), float((share**2).sum()), **settings), "Cohen (1960)"
    return _from_constant(task, units, settings)


def _from_constant(task: Task, units: pd.DataFrame, settings: dict) -> tuple[float, str]:
    from benchmarks.statistics.influence import influence

    found = influence(task, units.assign(**task.constant_scores(units)))
    variance = float((found.sums.sum(0) ** 2).sum())
    if found.why_not or not variance > 0:
        return float("inf"), f"no planning formula for {task.main_metric}"
    return _smallest_of(variance, found.patients - 1, settings), "spread of a constant predictor's metric"


def _smallest_of(variance: float, freedom: float, settings: dict) -> float:
    values = {"correlation": CORRELATION, "run_correlation": RUN_CORRELATION, "runs": 1, "run_sd": 0.0, "chance": POWER}
    return _smallest(variance, freedom, **values | settings)


def _smallest(
    variance: float, freedom: float, correlation: float, run_correlation: float, runs: int, run_sd: float, chance: float
) -> float:
    """Difference that is detected with this chance, by bisection.

    Args:
        variance: of the figure of one run over patients; ``freedom``: of the patients.
        correlation, run_correlation, runs, run_sd, chance: as ``detectable``.
    """
    if runs < 1 or run_sd < 0 or not LEVEL_ERROR < chance < 1:
        raise InputError(
            f"expected at least one run, no negative spread and a chance between {LEVEL_ERROR:g} and 1; found {runs} "
            f"runs, run_sd {run_sd}, chance {chance}"
        )
    if not -1 <= correlation <= run_correlation <= 1 or correlation == 1:
        raise InputError(
            "two runs of one source agree at least as much as those of two: expected -1 <= correlation <= "
            f"run_correlation <= 1 and correlation below 1, found {correlation} and {run_correlation}"
        )
    if freedom < 1:
        return float("inf")
    shared = 2 * variance * (run_correlation - correlation)
    single = 2 * variance * (1 - run_correlation)
    parts = {"of_runs": single + run_sd**2, "of_patients": shared if runs > 1 else shared + single}

    def detected(effect: float) -> bool:
        return power(effect, **parts, runs=runs, patients=freedom) >= chance

    low, high = 0.0, math.sqrt(parts["of_runs"] + parts["of_patients"])
    while not detected(high):  # from below: far in its tail the noncentral t is not computed well
        low, high = high, 1.5 * high
    while high - low > _CLOSE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if detected(middle) else (middle, high)
    return high
