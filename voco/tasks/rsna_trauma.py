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
from voco.tasks.base import Output, Task
from voco.tasks.rsna_trauma_score import WEIGHTS, all_classes, trauma_metrics

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

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
    noun = "patient"
    main_metric = "score"
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
        self.metrics = trauma_metrics(self.outputs)
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
            each = classes.normalised(all_classes(predictions[columns].to_numpy(float)), output.name)
            grouped = pd.DataFrame(each).groupby(names, sort=True).agg(self.options.patient_score)
            rows = classes.normalised(grouped.to_numpy(), output.name)
            units[columns] = rows if output.kind == "multiclass" else rows[:, 1:]
        return units


def _any_injury(targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(B,) bool each: whether all organs are known, and whether any is injured."""
    import torch

    grades = torch.stack([targets[organ] for organ in ORGANS])
    return ~torch.isnan(grades).any(0), (grades > 0).any(0)
