"""The official score of RSNA 2023 Abdominal Trauma Detection, and the metrics of single organs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from voco.data.layouts.rsna_trauma import ANY, ORGANS
from voco.errors import InputError
from voco.stats.parts import Part, Weighted, mean_part
from voco.stats.ranking import average_precision, divided
from voco.tasks import classes
from voco.tasks.metrics import Metric, NotOffered
from voco.tasks.outputs import Output, labels_and_scores
from voco.tasks.standard import AUROC, OfConfusion, Ranking

if TYPE_CHECKING:
    import pandas as pd

# Weight of a patient in a log loss, by the true grade.
WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "bowel": (1.0, 2.0),
    "extravasation": (1.0, 6.0),
    "kidney": (1.0, 2.0, 4.0),
    "liver": (1.0, 2.0, 4.0),
    "spleen": (1.0, 2.0, 4.0),
    ANY: (1.0, 6.0),
}
SOLID = ("kidney", "liver", "spleen")


def trauma_metrics(outputs: Sequence[Output]) -> list[Metric]:
    """Every metric of these organs; with all five the official score, else the mean loss.

    Args:
        outputs: of the organs that are learned.
    """
    missing = [organ for organ in ORGANS if organ not in {output.name for output in outputs}]
    found: list[Metric] = []
    if missing:
        reason = f"the official score needs all five organs; {', '.join(missing)} were not trained"
        found += [NotOffered("score", reason, False), NotOffered(f"loss_{ANY}", reason, False)]
    else:
        found += [
            OfficialScore(outputs, "score"),
            *(Losses(outputs, f"loss_{name}", only=name) for name in (*ORGANS, ANY)),
        ]
    for output in outputs:
        organ, own = output.name, (output,)
        said = {"unknown": f"no patient with a known label of {organ}", "undefined": "no patient with an injury"}
        if missing:
            found.append(Losses(outputs, f"loss_{organ}", only=organ))
        found.append(AUROC(own, f"auroc_{organ}", arrays=partial(injured, outputs=own)))
        for name, metric in (("ap", GradesAP), ("precision", GradesPrecision), ("recall", GradesRecall)):
            found.append(metric(own, f"{name}_{organ}", arrays=partial(graded, outputs=own), **said))
    solid = tuple(output for output in outputs if output.name in SOLID)
    for name, metric in (("map", MeanAP), ("precision", GradesPrecision), ("recall", GradesRecall)):
        said = dict.fromkeys(("unknown", "undefined"), "not defined for any organ")
        found.append(metric(outputs, name, arrays=partial(graded, outputs=outputs), **said))
        if len(solid) == len(SOLID) < len(outputs):
            found.append(metric(solid, f"{name}_solid", arrays=partial(graded, outputs=solid), **said))
    return [*found, Losses(outputs, "loss")] if missing else found


def official_score(labels: Mapping[str, np.ndarray], probabilities: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The official score: mean of six weighted log losses, of the five organs and of any injury.

    Rows are normalised first. Any injury is 1 where an organ is not healthy; its probability is the largest of the five
    1 - p(healthy). Float64; probabilities are cut to [2.2e-16, 1 - 2.2e-16], see ``classes.LOG_LOSS_CLIP``. Grades that
    nobody has change nothing, so a fold without injuries has a score too.

    Args:
        labels: (n,) grades of each of the five organs, 0 healthy.
        probabilities: (n, grades) of each organ, not negative.

    Returns:
        ``score``, ``loss_<organ>`` and ``loss_any_injury``, in nats; NaN without patients.

    Raises:
        InputError: a missing organ, or a row that is all zero, negative or not finite.
    """
    if missing := [organ for organ in ORGANS if organ not in labels or organ not in probabilities]:
        raise InputError(f"the official score needs all five organs; {', '.join(missing)} are missing")
    rows = {organ: classes.normalised(probabilities[organ], organ) for organ in ORGANS}
    terms = _with_any({organ: np.asarray(labels[organ], float) for organ in ORGANS}, rows)
    losses = {f"loss_{name}": classes.log_loss(y, p, WEIGHTS[name]) for name, (y, p) in terms.items()}
    return {"score": float(np.mean(list(losses.values()))), **losses}


class Losses(Metric):
    """Mean of weighted log losses: of all five organs and any injury, or of the organs that are learned.

    Args:
        outputs, name: see ``Metric``.
        only: one of the losses alone.
    """

    higher_is_better = False
    range = (0.0, float("inf"))

    def __init__(self, outputs: Sequence[Output], name: str, only: str = ""):
        super().__init__(outputs, name)
        self.only = only

    def value(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> float:
        terms = self._terms(units, official=True)
        return classes.mean_defined([classes.log_loss(y, p, WEIGHTS[name]) for name, _, y, p in terms])

    def why_not(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> str:
        if self._complete:
            return "" if len(self._terms(units)[0][1]) else "no patient whose labels are all known"
        return f"no patient with a known label{f' of {self.only}' if self.only else ''}"

    def of(self, rows: pd.DataFrame) -> Weighted:
        terms = self._terms(rows, official=True)

        def of_weights(weights: np.ndarray) -> np.ndarray:
            found = np.empty((len(weights), len(terms)))
            for k, (name, known, y, p) in enumerate(terms):
                places = (np.repeat(np.arange(len(y)), own.astype(int)) for own in weights[:, known])
                found[:, k] = [classes.log_loss(y[own], p[own], WEIGHTS[name]) for own in places]
            return np.array([classes.mean_defined(each) for each in found])

        return of_weights

    def parts(self, units: pd.DataFrame) -> list[Part]:
        return [
            mean_part(known, _costs(p)[np.arange(len(y)), y], np.asarray(WEIGHTS[name])[y])
            for name, known, y, p in self._terms(units)
        ]

    def shuffled(self, units: pd.DataFrame, places: np.ndarray) -> np.ndarray:
        """Every loss is a weighted mean of what each patient costs with each label."""
        losses = []
        for name, (labels, rows) in self._labeled(units).items():
            given = labels[places]
            label = np.nan_to_num(given).astype(int)
            share = np.where(np.isnan(given), 0.0, np.array(WEIGHTS[name])[label])
            losses.append(divided((share * _costs(rows)[np.arange(len(rows)), label]).sum(1), share.sum(1)))
        return np.array([classes.mean_defined(each) for each in np.transpose(losses)])

    @property
    def _complete(self) -> bool:
        return len(self.outputs) == len(ORGANS)

    def _labeled(self, units: pd.DataFrame, official: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Labels (n,), NaN where they do not count, and probabilities (n, grades) of each loss.

        ``official``: the official function divides rows by their sum itself, a second time, which can move the last
        digit.
        """
        known = {output.name: own for output, own in zip(self.outputs, graded(units, self.outputs))}
        if self._complete:  # of patients whose labels are all known, as a sixth loss any injury
            labels = {name: own for name, (own, _) in known.items()}
            unknown = np.isnan(list(labels.values())).any(0)
            labels = {name: np.where(unknown, np.nan, own) for name, own in labels.items()}
            rows = {name: classes.normalised(own, name) if official else own for name, (_, own) in known.items()}
            known = _with_any(labels, rows)
        return {name: own for name, own in known.items() if not self.only or name == self.only}

    def _terms(
        self, units: pd.DataFrame, official: bool = False
    ) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """Of each loss the rows that count, their labels and their probabilities."""
        found = []
        for name, (labels, rows) in self._labeled(units, official).items():
            known = np.flatnonzero(~np.isnan(labels))
            found.append((name, known, labels[known].astype(int), rows[known]))
        return found


class OfficialScore(Losses):
    """Mean of all six losses."""

    name = "score"
    words = "Score: weighted log loss of the RSNA 2023 challenge"


class GradesAP(Ranking):
    """Average precision of the injury, or mean over the grades that occur, each against the rest."""

    def compute(self, labels: np.ndarray, scores: np.ndarray) -> float:
        each = classes.one_vs_rest_ap(labels, scores)
        return each[1] if len(each) == 2 else classes.mean_defined(each)

    def weighted(self, labels: np.ndarray, scores: np.ndarray) -> Weighted:
        if self.all_draws:
            return lambda weights: average_precision(labels, scores[:, 1], weights)
        return super().weighted(labels, scores)


class MeanAP(GradesAP):
    """The same, mean over organs."""

    all_draws = False


class _OfGrades(OfConfusion):
    """Of two grades the injury, predicted from 0.5 on; of three the mean over those that occur, the most probable one
    predicted. So it is in the public code of 2D-VoCo's classifier."""

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        return (scores[:, 1] >= 0.5).astype(int) if scores.shape[1] == 2 else scores.argmax(1)

    def of_matrices(self, matrices: np.ndarray) -> np.ndarray:
        each = self.of_classes(matrices)
        return each[:, 1] if each.shape[1] == 2 else np.array([classes.mean_defined(own) for own in each])

    def of_classes(self, matrices: np.ndarray) -> np.ndarray:
        """(R, K) numbers of the classes."""
        raise NotImplementedError


class GradesPrecision(_OfGrades):
    """Share of predictions that are right."""

    def of_classes(self, matrices: np.ndarray) -> np.ndarray:
        return classes.precisions(matrices)


class GradesRecall(_OfGrades):
    """Share of cases that are found."""

    def of_classes(self, matrices: np.ndarray) -> np.ndarray:
        return classes.recalls(matrices)


def graded(units: pd.DataFrame, outputs: Sequence[Output]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Grades (n,), NaN where they are not known, and probabilities (n, grades) of each organ, rows normalised."""
    found = []
    for output in outputs:
        labels, scores = labels_and_scores(units, output)
        found.append((labels, classes.normalised(all_classes(scores), output.name)))
    return found


def injured(units: pd.DataFrame, outputs: Sequence[Output]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Whether an organ is injured (n,), NaN where that is not known, and 1 - p(healthy), (n, 1), of each organ."""
    return [
        (np.where(np.isnan(labels), np.nan, labels > 0), 1 - rows[:, :1]) for labels, rows in graded(units, outputs)
    ]


def all_classes(scores: np.ndarray) -> np.ndarray:
    """Probabilities of all classes: a single column is that of the injury."""
    return np.concatenate([1 - scores, scores], 1) if scores.shape[1] == 1 else scores


def _with_any(labels: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> dict[str, tuple]:
    """Labels and probabilities of the five organs and of any injury: 1 where an organ is not healthy, with the largest
    of the five 1 - p(healthy)."""
    each = np.array(list(labels.values()))
    injury = np.where(np.isnan(each).any(0), np.nan, (each > 0).any(0))
    score = np.max([1 - own[:, 0] for own in rows.values()], axis=0)
    return {name: (labels[name], rows[name]) for name in labels} | {ANY: (injury, np.stack([1 - score, score], 1))}


def _costs(rows: np.ndarray) -> np.ndarray:
    """What each case costs with each label."""
    return -np.log(np.clip(rows, classes.LOG_LOSS_CLIP, 1 - classes.LOG_LOSS_CLIP))
