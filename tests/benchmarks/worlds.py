"""Simulated comparisons of two sources whose truth is known, thousands at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from benchmarks.statistics.influence import of_ranking
from benchmarks.statistics.mrmc import Analysis, Side, analyse, crossed, limits, p_value


@dataclass(frozen=True)
class World:
    """What varies: standard deviations in units of a score.

    Attributes:
        between: of a run's shift of the positives: runs differ for all patients alike.
        source: of what all runs of a source see in a patient.
        noise: of what one run sees in a patient.
        common: of what every run of both sources sees in a patient.
        per_patient: units of each patient; half of what is seen in a unit is the patient's.
    """

    between: float = 0.0
    source: float = 0.0
    noise: float = 0.0
    common: float = 0.7
    per_patient: int = 1


WORLDS = {
    "patients only": World(source=0.7),
    "runs only": World(between=0.5),
    "both": World(between=0.3, source=0.5),
    "patient by run": World(noise=0.7),
    "all of it": World(between=0.2, source=0.4, noise=0.4),
}


@dataclass(frozen=True)
class Drawn:
    """R simulated test sets.

    Attributes:
        labels: (n,) 0 or 1; member: (n,) patient of each unit.
        scores: of each source (R, J, n).
        shifts: of each source (R, J): true shift of the positives of each run.
    """

    labels: np.ndarray
    member: np.ndarray
    scores: list[np.ndarray]
    shifts: list[np.ndarray]


def draw(world: World, rng, repeats: int, runs: tuple[int, int], shifts, patients: int, share: float) -> Drawn:
    """Scores of two sources with ``runs`` runs each on the same patients."""
    n = patients * world.per_patient
    member = np.repeat(np.arange(patients), world.per_patient)
    labels = (np.arange(patients) < round(share * patients)).astype(float)[member]

    def seen(sd: float, *shape: int) -> np.ndarray:
        if world.per_patient == 1:
            return sd * rng.normal(size=(repeats, *shape, n))
        own, unit = rng.normal(size=(repeats, *shape, patients))[..., member], rng.normal(size=(repeats, *shape, n))
        return sd * (own + unit) / np.sqrt(2)

    common, scores, found = seen(world.common, 1), [], []
    for count, shift in zip(runs, shifts):
        found.append(shift + world.between * rng.normal(size=(repeats, count)))
        scores.append(
            common + seen(world.source, 1) + seen(world.noise, count) + found[-1][..., None] * labels
        )  # fmt: skip
    return Drawn(labels, member, scores, found)


def true_auroc(world: World, shifts: np.ndarray) -> np.ndarray:
    """AUROC of runs with these shifts, on all patients there are."""
    return norm.cdf(shifts / np.sqrt(2 * (world.common**2 + world.source**2 + world.noise**2)))


def mean_auroc(world: World, shift: float) -> float:
    """Mean of it over all runs there are."""
    within = 2 * (world.common**2 + world.source**2 + world.noise**2)
    return float(norm.cdf(shift / np.sqrt(within + world.between**2)))


# Metrics: (R, J, n) scores -> (R, J) values, (R, J, G, P) sums, (G,) patients of each group


def auroc(drawn: Drawn, scores: np.ndarray):
    """Placements, as the report computes them."""
    patients = drawn.member.max() + 1
    groups = list(of_ranking(drawn.labels, scores, drawn.member, patients))
    positive = drawn.labels == 1
    ranks = scores.argsort(-1).argsort(-1) + 1.0  # continuous scores have no ties
    m, n = positive.sum(), (~positive).sum()
    values = (ranks[..., positive].sum(-1) - m * (m + 1) / 2) / (m * n)
    return values, np.stack([sums for _, sums, _ in groups], -2), np.array([there.sum() for *_, there in groups])


def accuracy(drawn: Drawn, scores: np.ndarray):
    """Variance of a mean, as textbooks have it."""
    right = ((scores > 0.5) == (drawn.labels == 1)).astype(float)
    values, n = right.mean(-1), right.shape[-1]
    sums = (right - values[..., None]) / n * np.sqrt(n / (n - 1))
    return values, sums[..., None, :], np.array([n])


def kappa(drawn: Drawn, scores: np.ndarray):
    """Leave one patient out, of two classes, by the four counts."""
    said, true = (scores > 0.5).astype(float), drawn.labels
    n = len(true)

    def value(hits, said_yes, true_yes, n):
        chance = (said_yes * true_yes + (n - said_yes) * (n - true_yes)) / n**2
        return (hits / n - chance) / (1 - chance)

    hit = (said == true).astype(float)
    full = value(hit.sum(-1), said.sum(-1), true.sum(), n)
    without = value(
        hit.sum(-1)[..., None] - hit, said.sum(-1)[..., None] - said, true.sum() - true, n - 1
    )  # fmt: skip
    sums = np.sqrt((n - 1) / n) * (without.mean(-1, keepdims=True) - without)
    return full, sums[..., None, :], np.array([n])


METRICS = {"AUROC": auroc, "accuracy": accuracy, "kappa": kappa}


def compare(drawn: Drawn, metric, paired: bool = True) -> tuple[Analysis, Analysis]:
    """Analyses of all differences, and of the first source alone."""
    (x, u, sizes), (y, v, _) = (metric(drawn, scores) for scores in drawn.scores)
    patients = int(drawn.member.max() + 1)
    a, b = Side(x, u), Side(y, v)
    sides = [crossed(a, b)] if paired else [a, Side(y, v, -1)]
    return analyse(sides, sizes, patients), analyse([a], sizes, patients)


def rejected(found: Analysis, fixed: bool = False) -> np.ndarray:
    """(R,) whether equality is rejected at the 5 % level; where nothing varies it is not."""
    error, freedom = (found.fixed_error, found.fixed_freedom) if fixed else (found.error, found.freedom)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error > 1e-12, p_value(found.point, error, freedom) < 0.05, False)


def held(found: Analysis, truth, fixed: bool = False) -> np.ndarray:
    """(R,) whether the interval of a difference holds the truth."""
    error, freedom = (found.fixed_error, found.fixed_freedom) if fixed else (found.error, found.freedom)
    low, high = limits(found.point, error, freedom, 0.95)
    return (low <= truth) & (truth <= high)


def row_held(found: Analysis, truth: float, least: float = 0.0) -> np.ndarray:
    """(R,) whether the interval of a row, computed as a logit, holds the truth."""
    share = (found.point - least) / (1 - least)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = limits(
            np.log(share / (1 - share)), found.error / ((1 - least) * share * (1 - share)), found.freedom, 0.95
        )
    wanted = (truth - least) / (1 - least)
    return (low <= np.log(wanted / (1 - wanted))) & (np.log(wanted / (1 - wanted)) <= high)
