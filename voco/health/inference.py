"""How sure a held-out score is, for few scans as well: patients are clusters, networks that learned nothing a sample.

Two things vary: which patients were held out, and which random network one happened to draw. A score is called higher
than a line only where both were asked: ``sign_flip_p`` swaps run and line within whole patients, ``chance_limit`` says
how high an untrained network comes by its draw alone. Percentile bootstraps are not used: over 2 to 10 scans they call
a difference of nothing "surely above" in 23 to 4.5 % of the cases, where 2.5 % were promised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voco.errors import InputError
from voco.health.scores import Tally
from voco.rng import derive_seed

# One-sided. With fewer clusters than this no arrangement of signs is as rare: 2 ** -6 = 0.016, 2 ** -5 = 0.031.
LEVEL = 0.025
LEAST_CLUSTERS = 6
_POWER = 0.8
_EXACT_CLUSTERS = 14
_DRAWS, _FEWEST_DRAWS = 20_000, 1_000
# Signs that are drawn, and that are in memory at a time: of 20,000 groups of clips 1,000 arrangements are drawn.
_SIGNS, _BLOCK = 4_000_000, 1_000_000
# Sums of the same numbers in another order: a tie of two arrangements counts as a tie.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """A score minus a line, over the same questions to the same patients.

    Attributes:
        value: of the pooled scores.
        low, high: 95 % interval with other patients of the same kind; None where there is none.
        p: one-sided, of run and line being alike: share of the ways to swap them within patients that give as much.
        clusters: patients that were asked.
        needed: about so many patients show a difference of this size at four of five tries; None where it is not
            positive or its spread is not known.
    """

    value: float
    low: float | None
    high: float | None
    p: float
    clusters: int
    needed: int | None = None

    @property
    def surely_above(self) -> bool:
        return self.value > 0 and self.p <= LEVEL


def compare(one: Tally, other: Tally) -> Difference:
    """Score of ``one`` minus score of ``other``.

    Raises:
        InputError: the two were not measured on the same queries of the same scans.
    """
    if one.weight.shape != other.weight.shape or not np.allclose(one.weight, other.weight):
        raise InputError(
            f"scores of different queries cannot be paired ({one.clusters} and {other.clusters} patients): "
            "evaluate both on the same windows with the same seed"
        )
    asked = one.weight.sum(1) > 0
    change, influence = one.contributions - other.contributions, one.influence - other.influence
    low, high = _t_interval(float(change.sum()), influence[asked]) or (None, None)
    return Difference(float(change.sum()), low, high, sign_flip_p(change), int(asked.sum()), _needed(change[asked]))


def sign_flip_p(change: np.ndarray) -> float:
    """One-sided p-value of a sum of independent differences: how often flipped signs give as large a sum.

    The score is pooled over patients with the same weights on both sides, so that swapping run and line within a
    patient turns the sign of what that patient adds. All 2^S arrangements are counted up to 14 patients, 20,000 drawn
    ones beyond, and fewer from 200 patients on.

    Args:
        change: (S,) what each patient adds to the difference.

    Returns:
        p, never below 2^-S; 1 where nothing differs or something is not finite.

    Source: Fisher, The Design of Experiments (1935), chapter 3.
    """
    change = np.asarray(change, np.float64)
    change = change[change != 0]
    if not len(change) or not np.isfinite(change).all():
        return 1.0
    limit = change.sum() - _ROUNDING * np.abs(change).sum()
    if len(change) <= _EXACT_CLUSTERS:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(change))[:, None] >> np.arange(len(change))) & 1)
        return float((signs @ change >= limit).mean())
    rng = np.random.default_rng(derive_seed(0, "sign flips", len(change)))
    draws = max(_FEWEST_DRAWS, min(_DRAWS, _SIGNS // len(change)))
    rows, as_large = max(1, _BLOCK // len(change)), 0
    for first in range(0, draws, rows):
        signs = rng.choice((-1.0, 1.0), size=(min(rows, draws - first), len(change)))
        as_large += int((signs @ change >= limit).sum())
    return (1 + as_large) / (1 + draws)


def interval(tally: Tally) -> tuple[float, float] | None:
    """95 % interval of a score with other patients of the same kind: t with S - 1 degrees of freedom.

    The variance is that of the influence of each patient. None for one patient, and where all are alike: an interval
    without width would say that nothing could have come out otherwise.
    """
    limits = _t_interval(tally.value, tally.influence[tally.weight.sum(1) > 0])
    if limits is None or not tally.share:
        return limits
    return max(0.0, limits[0]), min(1.0, limits[1])


def chance_limit(values: Sequence[float]) -> float:
    """How high one more network of the same kind comes by its draw: a one-sided 97.5 % prediction limit.

    Given the patients, networks are independent draws, whatever the patients have in common.

    Args:
        values: scores of at least two networks that learned nothing, on the same questions.
    """
    from scipy.stats import t

    values = np.asarray(values, np.float64)
    spread = values.std(ddof=1) * math.sqrt(1 + 1 / len(values))
    return float(values.mean() + t.ppf(1 - LEVEL, len(values) - 1) * spread)


def _t_interval(value: float, influence: np.ndarray) -> tuple[float, float] | None:
    from scipy.stats import t

    count = len(influence)
    if count < 2 or not np.isfinite(influence).all():
        return None
    error = math.sqrt(count / (count - 1) * float(influence @ influence))
    if error <= _ROUNDING:
        return None
    half = float(t.ppf(1 - LEVEL, count - 1)) * error
    return value - half, value + half


def _needed(change: np.ndarray) -> int | None:
    """Patients for a power of 80 %: normal approximation, and two more for not knowing the spread (Guenther 1981)."""
    from scipy.stats import norm

    count = len(change)
    if count < 2 or not np.isfinite(change).all() or change.sum() <= 0:
        return None
    spread = (change * count).std(ddof=1) / change.sum()
    enough = (norm.ppf(1 - LEVEL) + norm.ppf(_POWER)) ** 2 * spread**2 + norm.ppf(1 - LEVEL) ** 2 / 2
    return max(LEAST_CLUSTERS, math.ceil(enough))
