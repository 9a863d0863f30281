"""Multi-reader multi-case analysis: training runs are readers, test patients are cases, sources are treatments.

Obuchowski and Rockette (1995), Communications in Statistics - Simulation and Computation 24(2), 285-308, with the
degrees of freedom of Hillis (2007), Statistics in Medicine 26(3), 596-619, and for nested runs Hillis (2014),
Statistics in Medicine 33(2), 330-360.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Most degrees of freedom with two runs: where runs vary most, and by chance agree, Satterthwaite's are many, and equal
# sources would be told apart in up to 13 of 100.
TWO_RUNS = 2.0


@dataclass(frozen=True)
class Side:
    """Runs that are averaged. All arrays may have more axes in front, for many analyses at once.

    Attributes:
        values: (…, J) main metric of each run.
        sums: (…, J, G, P) share of each patient in it, as ``Influence.sums``.
        sign: with which the mean counts.
    """

    values: np.ndarray
    sums: np.ndarray
    sign: int = 1

    @property
    def runs(self) -> int:
        return self.values.shape[-1]


@dataclass(frozen=True)
class Analysis:
    """A signed sum of means over runs, and how far it would be off with other runs and patients.

    Attributes:
        point: the sum.
        error, freedom: standard error and degrees of freedom where runs and patients are drawn from all that could be.
        fixed_error, fixed_freedom: where patients are, and the runs stay these.
        of_runs, of_patients: spread of the mean between runs, and what all runs of a side share over patients; together
            ``error`` squared, or less where that is held up by ``fixed_error``.
    """

    point: np.ndarray
    error: np.ndarray
    freedom: np.ndarray
    fixed_error: np.ndarray
    fixed_freedom: np.ndarray
    of_runs: np.ndarray
    of_patients: np.ndarray


def crossed(a: Side, b: Side) -> Side:
    """Runs that share their seeds, as one side of differences, run by run."""
    return Side(a.values - b.values, a.sums - b.sums)


def analyse(sides: Sequence[Side], sizes: np.ndarray, patients: int) -> Analysis:
    """Variance and degrees of freedom of a signed sum of means over runs.

    With one side this is a single treatment, or two that are crossed (the side holds differences): the variance is
    s^2 / J + max(Cov, 0), where s^2 is the sample variance over J runs and Cov the mean covariance of the errors of two
    runs, in the notation of the papers 2 / J (MS(T*R) + J max(Cov2 - Cov3, 0)). With two sides runs are nested:
    s_a^2 / J_a + s_b^2 / J_b + max(Cov2_a + Cov2_b - 2 Cov3, 0). A side of one run has no s^2, and its own error
    variance stands for Cov2: it is fixed. Degrees of freedom are Satterthwaite's.

    Unlike in the papers, s_a^2 and s_b^2 are not pooled, because sources need not vary alike; the part of the patients
    has degrees of freedom too, those of Welch over the groups and at most patients - 1; the variance is at least that
    of these very runs, which it must be where other runs may come in their place; and with two runs there are at most
    ``TWO_RUNS`` degrees of freedom.

    Args:
        sides: runs.
        sizes: (G,) patients of each group.
        patients: of the test set.
    """
    means = [side.sign * side.sums.mean(-3) for side in sides]
    totals = [mean.sum(-2) for mean in means]
    shared = sum(_covariance(side) for side in sides)
    for i, one in enumerate(totals):
        for other in totals[i + 1 :]:
            shared = shared + 2 * (one * other).sum(-1)
    of_patients = np.maximum(shared, 0.0)
    each = [(side.values.var(-1, ddof=1) / side.runs, side.runs - 1) for side in sides if side.runs > 1]
    of_runs = sum((variance for variance, _ in each), np.zeros_like(of_patients))
    fixed = (sum(totals) ** 2).sum(-1)
    groups = (sum(means) ** 2).sum(-1)  # (…, G)
    with np.errstate(divide="ignore", invalid="ignore"):
        welch = groups.sum(-1) ** 2 / (groups**2 / (np.asarray(sizes) - 1)).sum(-1)
        fixed_freedom = np.minimum(np.where(np.isfinite(welch), welch, np.inf), patients - 1)
        if not each:  # one run on each side: only patients vary
            variance, freedom = fixed, fixed_freedom
        else:
            variance = np.maximum(of_runs + of_patients, fixed)
            below = sum(part**2 / df for part, df in each) + of_patients**2 / fixed_freedom
            freedom = np.minimum(variance**2 / below, fixed_freedom)
            if min(df for _, df in each) == 1:
                freedom = np.where(of_runs > 0, np.minimum(freedom, TWO_RUNS), freedom)
    point = sum(side.sign * side.values.mean(-1) for side in sides)
    return Analysis(
        point, np.sqrt(variance), freedom, np.sqrt(fixed), fixed_freedom, of_runs, of_patients if each else fixed
    )


def _covariance(side: Side) -> np.ndarray:
    """Mean covariance of the errors of two runs of a side; the variance of its only run."""
    own = side.sums.sum(-2)
    squares = (own**2).sum((-2, -1))
    if side.runs == 1:
        return squares
    whole = (own.sum(-2) ** 2).sum(-1)
    return (whole - squares) / (side.runs * (side.runs - 1))


def limits(point, error, freedom, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Interval of Student's t."""
    from scipy.special import stdtrit  # scipy.stats is a hundred times slower on single numbers

    half = stdtrit(freedom, (1 + level) / 2) * error
    return point - half, point + half


def p_value(point, error, freedom) -> np.ndarray:
    """Two-sided, of Student's t."""
    from scipy.special import stdtr

    return 2 * stdtr(freedom, -np.abs(point) / error)
