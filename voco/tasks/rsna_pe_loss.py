"""The official metric of RSNA STR Pulmonary Embolism 2020: weighted log loss, consistency rules, submission file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from voco.tasks.metrics import Metric

if TYPE_CHECKING:
    import pandas as pd

# Published weights of the nine exam labels and of an image (times the share of positive images of its exam).
EXAM_WEIGHTS = {
    "negative_exam_for_pe": 0.0736196319,
    "indeterminate": 0.09202453988,
    "chronic_pe": 0.1042944785,
    "acute_and_chronic_pe": 0.1042944785,
    "central_pe": 0.1877300613,
    "leftsided_pe": 0.06257668712,
    "rightsided_pe": 0.06257668712,
    "rv_lv_ratio_gte_1": 0.2346625767,
    "rv_lv_ratio_lt_1": 0.0782208589,
}
EXAM_LABELS = tuple(EXAM_WEIGHTS)
IMAGE_WEIGHT = 0.07361963
CLIP = 1e-15
THRESHOLD = 0.5
# Raised labels go this far above the threshold, which six decimals of a submission file still show.
_ABOVE = THRESHOLD + 1e-6
_WEIGHTS = np.array(list(EXAM_WEIGHTS.values()))
_COLUMN = {name: k for k, name in enumerate(EXAM_LABELS)}
_STATES = [_COLUMN[name] for name in ("negative_exam_for_pe", "indeterminate")]
_RATIOS = [_COLUMN[name] for name in ("rv_lv_ratio_gte_1", "rv_lv_ratio_lt_1")]
_PLACES = [_COLUMN[name] for name in ("central_pe", "rightsided_pe", "leftsided_pe")]
_AGES = [_COLUMN[name] for name in ("chronic_pe", "acute_and_chronic_pe")]


def official_loss(
    exam_labels: np.ndarray,
    exam_probs: np.ndarray,
    image_labels: np.ndarray,
    image_probs: np.ndarray,
    image_exam: np.ndarray,
) -> float:
    """Weighted log loss of exams and images.

    An exam adds the weighted cross-entropy of its nine labels; each of its images adds 0.07361963 q times its own,
    where q is the share of positive images of the exam, so images of exams without any add nothing. The sum is divided
    by the sum of all weights. Computed in float64 with probabilities clipped to [1e-15, 1 - 1e-15].

    Args:
        exam_labels, exam_probs: (E, 9) in the order of ``EXAM_LABELS``.
        image_labels, image_probs: (I,).
        image_exam: (I,) row of the exam of each image.

    Raises:
        ValueError: shapes that do not fit, labels that are neither 0 nor 1, or values that are no probabilities.
    """
    labels, probs = _checked(exam_labels, exam_probs)
    y, p = _checked(image_labels, image_probs)
    exam = np.asarray(image_exam, np.int64)
    if (
        labels.ndim != 2
        or labels.shape[1] != len(EXAM_LABELS)
        or not len(labels)
        or y.ndim != 1
        or exam.shape != y.shape
    ):
        raise ValueError(
            f"exam labels {labels.shape}, image labels {y.shape}, image_exam {exam.shape}; expected (E, 9), (I,), (I,)"
        )
    if len(exam) and not (exam.min() >= 0 and exam.max() < len(labels)):
        raise ValueError(f"image_exam runs from {exam.min()} to {exam.max()}; there are {len(labels)} exams")
    images = np.bincount(exam, minlength=len(labels))
    positive = np.bincount(exam, y, minlength=len(labels))
    share = positive / np.maximum(images, 1)
    loss = (_cross_entropy(labels, probs) * _WEIGHTS).sum()
    loss += (IMAGE_WEIGHT * share[exam] * _cross_entropy(y, p)).sum()
    weight = len(labels) * _WEIGHTS.sum() + (IMAGE_WEIGHT * share * images).sum()
    return float(loss / weight)


def breaks_rules(exam_probs: np.ndarray, any_image: np.ndarray) -> np.ndarray:
    """Which exams break the rules of a submission; "on" means above 0.5.

    With an image on: exactly one RV/LV ratio on, at least one of central, right- and left-sided on, chronic and
    acute-and-chronic not both on, negative and indeterminate off. Without: exactly one of negative and indeterminate
    on, everything else off.

    Args:
        exam_probs: (E, 9) in the order of ``EXAM_LABELS``.
        any_image: (E,) whether an image of the exam is on.

    Returns:
        (E,) bool.
    """
    on = np.asarray(exam_probs, np.float64) > THRESHOLD
    count = {name: on[:, k].sum(1) for name, k in (("r", _RATIOS), ("p", _PLACES), ("a", _AGES), ("s", _STATES))}
    positive = (count["r"] == 1) & (count["p"] >= 1) & (count["a"] <= 1) & (count["s"] == 0)
    negative = (count["s"] == 1) & (count["r"] + count["p"] + count["a"] == 0)
    return ~np.where(np.asarray(any_image, bool), positive, negative)


def repair(exam_probs: np.ndarray, any_image: np.ndarray) -> np.ndarray:
    """The exam probabilities that keep the rules and differ least, images as they are.

    What must be off is lowered to 0.5 where it is above; where one of a group must be on and none is, the highest is
    raised to just above 0.5; where only one may be on, the others are lowered. The first in ``EXAM_LABELS`` wins ties.

    Args:
        exam_probs, any_image: as ``breaks_rules``.

    Returns:
        (E, 9) float64.
    """
    out = np.array(exam_probs, np.float64)
    positive = np.asarray(any_image, bool)
    negative = ~positive
    findings = _RATIOS + _PLACES + _AGES
    _lower(out, positive, _STATES)
    _lower(out, negative, findings)
    _lower_but_highest(out, positive, _RATIOS)
    _lower_but_highest(out, positive, _AGES)
    _lower_but_highest(out, negative, _STATES)
    _raise_highest(out, positive, _RATIOS)
    _raise_highest(out, positive, _PLACES)
    _raise_highest(out, negative, _STATES)
    return out


def _lower(probs: np.ndarray, rows: np.ndarray, columns: Sequence[int]) -> None:
    for k in columns:
        probs[rows, k] = np.minimum(probs[rows, k], THRESHOLD)


def _lower_but_highest(probs: np.ndarray, rows: np.ndarray, columns: Sequence[int]) -> None:
    columns = sorted(columns)
    best = probs[:, columns].argmax(1)
    for j, k in enumerate(columns):
        _lower(probs, rows & (best != j), [k])


def _raise_highest(probs: np.ndarray, rows: np.ndarray, columns: Sequence[int]) -> None:
    columns = sorted(columns)
    none = rows & (probs[:, columns] <= THRESHOLD).all(1)
    best = np.array(columns)[probs[:, columns].argmax(1)]
    probs[none, best[none]] = _ABOVE


class _OfExams(Metric):
    """A number of the nine exam labels and the images of each exam."""

    higher_is_better = False
    range = (0.0, float("inf"))
    table = "both"

    def value(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> float:
        images = self._own(units, images)
        if self._why(units, images):
            return float("nan")
        row = {unit: k for k, unit in enumerate(units["unit"])}
        exam = images["unit"].map(row).to_numpy(np.int64)
        labels, probs = (
            units[[f"{kind}_{name}" for name in EXAM_LABELS]].to_numpy(float) for kind in ("label", "score")
        )
        y, p = images["label"].to_numpy(float), images["score"].to_numpy(float)
        any_image = np.bincount(exam, p > THRESHOLD, minlength=len(units)) > 0
        return self.of_exams(labels, probs, any_image, y, p, exam)

    def of_exams(self, labels, probs, any_image, image_labels, image_probs, image_exam) -> float:
        """The number; arguments as those of ``official_loss`` and ``breaks_rules``."""
        raise NotImplementedError

    def why_not(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> str:
        return self._why(units, self._own(units, images))

    @staticmethod
    def _own(units: pd.DataFrame, images: pd.DataFrame | None) -> pd.DataFrame | None:
        return None if images is None else images[images["unit"].isin(units["unit"])]

    def _why(self, units: pd.DataFrame, images: pd.DataFrame | None) -> str:
        if tuple(output.name for output in self.outputs) != EXAM_LABELS:
            return "the official loss needs the nine exam labels as outputs: task.heads=exam"
        if not len(units) or units[[output.label_column for output in self.outputs]].isna().any(axis=None):
            return "an exam label is not known"
        if images is None or not len(images):
            return "the official loss needs image scores"
        if without := len(set(units["unit"]) - set(images["unit"])):
            return f"{without} of {len(units)} exams have no image scores"
        for name in ("label", "score"):
            if lacking := int(images[name].isna().sum()):
                return f"{lacking} of {len(images)} images have no {name}"
        return ""


class LogLoss(_OfExams):
    """The official loss of scores as they are."""

    name = "log_loss"

    def of_exams(self, labels, probs, any_image, image_labels, image_probs, image_exam) -> float:
        return official_loss(labels, probs, image_labels, image_probs, image_exam)


class RepairedLogLoss(_OfExams):
    """The official loss once scores keep the rules."""

    name = "log_loss_repaired"

    def of_exams(self, labels, probs, any_image, image_labels, image_probs, image_exam) -> float:
        return official_loss(labels, repair(probs, any_image), image_labels, image_probs, image_exam)


class InconsistentExams(_OfExams):
    """Exams that break a rule."""

    name = "inconsistent_exams"

    def of_exams(self, labels, probs, any_image, image_labels, image_probs, image_exam) -> float:
        return float(breaks_rules(probs, any_image).sum())


LOSSES = (LogLoss, RepairedLogLoss, InconsistentExams)


def submission(
    exams: Sequence[str], exam_probs: np.ndarray, images: Sequence[str], image_probs: np.ndarray
) -> list[tuple[str, float]]:
    """Rows ``id,label`` of the published submission file: nine per exam, then one per image.

    Args:
        exams: StudyInstanceUIDs.
        exam_probs: (E, 9); see ``repair``.
        images: SOPInstanceUIDs.
        image_probs: (I,).
    """
    rows = [
        (f"{exam}_{name}", float(p)) for exam, probs in zip(exams, exam_probs) for name, p in zip(EXAM_LABELS, probs)
    ]
    return rows + [(uid, float(p)) for uid, p in zip(images, image_probs)]


def _checked(labels, probs) -> tuple[np.ndarray, np.ndarray]:
    labels, probs = np.asarray(labels, np.float64), np.asarray(probs, np.float64)
    if labels.shape != probs.shape:
        raise ValueError(f"labels {labels.shape} and probabilities {probs.shape} differ in shape")
    if not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    if not ((probs >= 0) & (probs <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    return labels, probs


def _cross_entropy(labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
    p = np.clip(probs, CLIP, 1 - CLIP)
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
