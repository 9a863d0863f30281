"""Injuries of five abdominal organs, one model, and the official score (RSNA 2023 Abdominal Trauma Detection)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from voco.data.layouts.labeled import LabeledCase, LabeledManifest
from voco.data.layouts.rsna_trauma import ANY, ORGANS, read_rsna_trauma, read_rsna_trauma_test
from voco.errors import InputError
from voco.tasks import classes
from voco.tasks.base import Output, Scores, Task, known_labels
from voco.tasks.ranking import auroc, why_undefined

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

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
# From rare to common among the published patients.
_RARE_FIRST = ("bowel", "kidney", "extravasation", "liver", "spleen")


@dataclass(frozen=True)
class RSNATraumaOptions:
    """Abdominal trauma, RSNA 2023."""

    name: Literal["rsna_trauma"] = "rsna_trauma"
    table: str = ""
    """path of the table of injuries below the root, where it is neither train.csv nor train_2024.csv"""
    organs: list[str] = field(default_factory=lambda: list(ORGANS))
    """what is learned: all five together, or some of them; the official score needs all"""
    any_injury: bool = False
    """also learn whether there is any injury, from the five outputs, as the sixth term of the official score"""
    strata: Literal["rarest", "all"] = "rarest"
    """what splits keep balanced: the rarest injured organ of a patient, or the grades of every organ, one after the
    other"""
    patient_score: Literal["mean", "max"] = "mean"
    """how the series of a patient are put together, class by class, before rows are normalised"""


class RSNATrauma(Task):
    """Five outputs: injury of the bowel and free contrast (yes or no), grades of kidney, liver and spleen.

    Main metric is the official score, lower is better. A flip mirrors the body and moves no organ's label, and the
    published training flips all three axes.
    """

    name = "rsna_trauma"
    Options: ClassVar[type] = RSNATraumaOptions
    unit = "patient"
    main_metric = "score"
    higher_is_better = False
    directions: ClassVar[Mapping[str, bool]] = {"score": False, "loss": False, **{f"loss_{k}": False for k in WEIGHTS}}
    data_sets = ("RSNA-2023-Abdominal-Trauma",)
    evaluation = "made on the training patients by splits of this run; the official test labels are not public"

    def __init__(self, options: RSNATraumaOptions):
        super().__init__(options)
        wrong = [name for name in options.organs if name not in ORGANS]
        if wrong or not options.organs or len(set(options.organs)) < len(options.organs):
            found = ", ".join(map(str, options.organs)) or "none"
            raise InputError(f"task.organs takes each of {', '.join(ORGANS)} at most once, at least one; found {found}")
        self.outputs = tuple(
            Output(organ, "multiclass", grades) if len(grades) > 2 else Output(organ)
            for organ, grades in ORGANS.items()
            if organ in options.organs
        )
        if options.any_injury and not self._complete:
            raise InputError("task.any_injury is learned from all five organs; leave task.organs as it is")
        if not self._complete:
            self.main_metric = "loss"

    @property
    def _complete(self) -> bool:
        return len(self.outputs) == len(ORGANS)

    def read(self, root: str | Path) -> LabeledManifest:
        return read_rsna_trauma(root, table=self.options.table)

    def read_unlabeled(self, root: str | Path) -> LabeledManifest:
        """The series of ``test_images``."""
        return read_rsna_trauma_test(root)

    def stratum(self, case: LabeledCase) -> str:
        """The rarest injured organ, or with ``strata`` all the grades of all organs."""
        if len(self.outputs) == 1 or self.options.strata == "all":
            return super().stratum(case)
        return next((o for o in _RARE_FIRST if o in self.options.organs and case.labels.get(o)), "healthy")

    def class_weights(self) -> dict[str, list[float]]:
        """Weights of the classes in the official losses, for training with the same ones."""
        names = [output.name for output in self.outputs] + [ANY] * self.options.any_injury
        return {name: list(WEIGHTS[name]) for name in names}

    def sample_weights(
        self, targets: Mapping[str, Tensor], class_weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """As of every task, and with ``any_injury`` of that one: 0 where an organ is not known."""
        weights = super().sample_weights(targets, class_weights)
        if not self.options.any_injury:
            return weights
        known, injured = _any_injury(targets)
        table = (class_weights or {}).get(ANY)
        weights[ANY] = known.to(weights["bowel"]) * (
            1.0 if table is None else table.to(weights["bowel"])[injured.long()]
        )
        return weights

    def loss(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], **settings) -> dict[str, Tensor]:
        """As of every task; with ``any_injury`` a sixth term, the cross-entropy of the largest 1 - p(healthy).

        Source: RSNA 2023, metric; the classifier of 2D-VoCo takes 1 - min p(healthy), which is the same number.
        """
        terms = super().loss(logits, targets, **settings)
        if not self.options.any_injury:
            return terms
        import torch
        from torch.nn import functional as F

        from voco.losses import full_precision

        # of each organ log p(healthy) and log(1 - p(healthy)); the least healthy organ gives both
        healthy, injured = [], []
        for output in self.outputs:
            z = full_precision(logits[output.name])
            z = torch.cat([torch.zeros_like(z), z], 1) if output.kind == "binary" else z
            log_p = F.log_softmax(z, 1)
            healthy.append(log_p[:, 0])
            injured.append(log_p[:, 1:].logsumexp(1))
        targets = {name: values.to(healthy[0].device) for name, values in targets.items()}
        _, target = _any_injury(targets)
        smooth = settings.get("label_smoothing", 0.0)
        soft = target.to(healthy[0]) * (1 - smooth) + smooth / 2
        each = -soft * torch.stack(injured).amax(0) - (1 - soft) * torch.stack(healthy).amin(0)
        weights = self.sample_weights(targets, settings.get("class_weights"))[ANY].to(each)
        whole = len(each) * (settings.get("expected") or {}).get(ANY, 1.0)
        return terms | {ANY: (each * weights).sum() / each.new_full((), whole)}

    def constant_scores(self, train: pd.DataFrame) -> dict[str, float]:
        """The best constant: how common each class is, counted with the weights of the official losses."""
        columns: dict[str, float] = {}
        for output in self.outputs:
            weights = np.array(WEIGHTS[output.name])
            labels = train[output.label_column].dropna().to_numpy(int)
            mass = np.bincount(labels, minlength=len(weights)) * weights
            share = mass / mass.sum() if mass.sum() else np.full(len(weights), 1 / len(weights))
            columns.update(zip(output.score_columns, share if output.kind == "multiclass" else share[1:]))
        return {name: float(value) for name, value in columns.items()}

    def to_units(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """One row a patient: each class averaged (or its maximum taken) over the series, then rows normalised.

        Of a yes-or-no output both classes take part, p and 1 - p, as in the official table with its two columns.

        Raises:
            InputError: a row of an organ that is all zero, negative or not finite.
        """
        import pandas as pd

        units = super().to_units(predictions)
        names = predictions["unit"].to_numpy()
        for output in self.outputs:
            columns = list(output.score_columns)
            if any(name not in predictions for name in columns):
                continue
            each = classes.normalised(_rows(predictions[columns].to_numpy(float)), output.name)
            grouped = pd.DataFrame(each).groupby(names, sort=True).agg(self.options.patient_score)
            rows = classes.normalised(grouped.to_numpy(), output.name)
            units[columns] = rows if output.kind == "multiclass" else rows[:, 1:]
        return units

    def metrics(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> Scores:
        out = Scores()
        known = {output.name: self._organ(units, output) for output in self.outputs}
        self._add_score(out, units)
        losses, tables = [], {}
        for organ, (labels, rows) in known.items():
            none = "" if len(labels) else f"no patient with a known label of {organ}"
            losses.append(classes.log_loss(labels, rows, WEIGHTS[organ]))
            if not self._complete:
                out.add(f"loss_{organ}", losses[-1], none)
            injured = (labels > 0).astype(float)
            out.add(f"auroc_{organ}", auroc(injured, 1 - rows[:, 0]), why_undefined(injured))
            tables[organ] = _summary(labels, rows)
            for name, value in tables[organ].items():
                out.add(f"{name.replace('map', 'ap')}_{organ}", value, none or "no patient with an injury")
        for name in ("map", "precision", "recall"):
            each = {organ: table[name] for organ, table in tables.items()}
            out.add(name, classes.mean_defined(list(each.values())), "not defined for any organ")
            if set(SOLID) < set(each):
                solid = [each[organ] for organ in SOLID]
                out.add(f"{name}_solid", classes.mean_defined(solid), "not defined for any organ")
        if not self._complete:
            out.add("loss", classes.mean_defined(losses), "no patient with a known label")
        return out

    def main_value(self, units: pd.DataFrame) -> float:
        if self._complete:
            return self._official(units)[0]["score"]
        known = [self._organ(units, output) for output in self.outputs]
        losses = [classes.log_loss(y, p, WEIGHTS[o.name]) for (y, p), o in zip(known, self.outputs)]
        return classes.mean_defined(losses)

    def shuffled_values(self, units: pd.DataFrame, places: np.ndarray) -> np.ndarray:
        """See ``Task``: every loss is a weighted mean of what each patient costs with each label."""
        labels = units[self.label_columns].to_numpy(float)
        rows = [classes.normalised(_rows(units[list(o.score_columns)].to_numpy(float)), o.name) for o in self.outputs]
        weights = [WEIGHTS[output.name] for output in self.outputs]
        if self._complete:  # of patients whose labels are all known, as a sixth loss any injury
            labels[np.isnan(labels).any(1)] = np.nan
            injured = np.where(np.isnan(labels[:, :1]), np.nan, (labels > 0).any(1, keepdims=True))
            labels = np.hstack([labels, injured])
            score = np.max([1 - own[:, 0] for own in rows], axis=0)
            rows, weights = [*rows, np.stack([1 - score, score], 1)], [*weights, WEIGHTS[ANY]]
        losses = []
        for known, own, weight in zip(labels.T, rows, weights):
            cost = -np.log(np.clip(own, classes.LOG_LOSS_CLIP, 1 - classes.LOG_LOSS_CLIP))
            given = known[places]
            label = np.nan_to_num(given).astype(int)
            share = np.where(np.isnan(given), 0.0, np.array(weight)[label])
            total = share.sum(1)
            found = (share * cost[np.arange(len(cost)), label]).sum(1)
            losses.append(np.divide(found, total, out=np.full(len(total), np.nan), where=total > 0))
        return np.array([classes.mean_defined(each) for each in np.transpose(losses)])

    def _organ(self, units: pd.DataFrame, output: Output) -> tuple[np.ndarray, np.ndarray]:
        """Known grades (n,) of an organ and probabilities (n, grades), normalised."""
        labels, scores = known_labels(units, output)
        return labels.astype(int), classes.normalised(_rows(scores), output.name)

    def _official(self, units: pd.DataFrame) -> tuple[dict[str, float], int]:
        """Official losses over the patients whose labels are all known, and how many there are."""
        complete = units[units[self.label_columns].notna().all(axis=1)]
        known = {output.name: self._organ(complete, output) for output in self.outputs}
        return official_score({k: v[0] for k, v in known.items()}, {k: v[1] for k, v in known.items()}), len(complete)

    def _add_score(self, out: Scores, units: pd.DataFrame) -> None:
        if not self._complete:
            missing = [organ for organ in ORGANS if organ not in self.options.organs]
            reason = f"the official score needs all five organs; {', '.join(missing)} were not trained"
            out.add("score", None, reason)
            out.add(f"loss_{ANY}", None, reason)
            return
        values, count = self._official(units)
        for name, value in values.items():
            out.add(name, value, "" if count else "no patient whose labels are all known")


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
    losses = {f"loss_{organ}": classes.log_loss(labels[organ], rows[organ], WEIGHTS[organ]) for organ in ORGANS}
    injured = np.any([np.asarray(labels[organ]) > 0 for organ in ORGANS], axis=0)
    score = np.max([1 - rows[organ][:, 0] for organ in ORGANS], axis=0)
    losses[f"loss_{ANY}"] = classes.log_loss(injured, np.stack([1 - score, score], 1), WEIGHTS[ANY])
    return {"score": float(np.mean(list(losses.values()))), **losses}


def _any_injury(targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(B,) bool each: whether all organs are known, and whether any is injured."""
    import torch

    grades = torch.stack([targets[organ] for organ in ORGANS])
    return ~torch.isnan(grades).any(0), (grades > 0).any(0)


def _rows(scores: np.ndarray) -> np.ndarray:
    """Probabilities of all classes: a single column is that of the injury."""
    return np.concatenate([1 - scores, scores], 1) if scores.shape[1] == 1 else scores


def _summary(labels: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """``map``, ``precision``, ``recall`` of an organ.

    Three grades: means over the grades that occur, the most probable one is predicted. Two: of the injury, predicted
    from 0.5 on. So they are in the public code of 2D-VoCo's classifier.
    """
    if rows.shape[1] == 2:
        matrix = classes.confusion(labels, (rows[:, 1] >= 0.5).astype(int), 2)
        values = classes.one_vs_rest_ap(labels, rows), classes.precisions(matrix), classes.recalls(matrix)
        return {name: float(value[1]) for name, value in zip(("map", "precision", "recall"), values)}
    matrix = classes.confusion(labels, rows.argmax(1), rows.shape[1])
    values = classes.one_vs_rest_ap(labels, rows), classes.precisions(matrix), classes.recalls(matrix)
    return {name: classes.mean_defined(value) for name, value in zip(("map", "precision", "recall"), values)}
