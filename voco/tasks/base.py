"""What every task offers: labels in, training targets and official numbers out.

A task reads a data set as published (``read``), says what is learned from a case (``outputs``, ``targets``), turns
network outputs into score columns (``scores``), and computes every metric from the rows of ``predictions.csv`` alone
(``metrics``), so that anybody can recompute them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from voco.data.layouts.labeled import LabeledCase, LabeledManifest
from voco.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

KEYS = ("case", "patient", "unit", "fold", "split")


@dataclass(frozen=True)
class Output:
    """One thing that is predicted: a head of the model.

    Attributes:
        name: used in columns, ``label_<name>`` and ``score_<name>``.
        kind: ``binary`` (one logit, sigmoid), ``multiclass`` (one logit per class, softmax), or ``regression``.
        classes: names of the classes of ``multiclass``, in the order of the logits; columns ``score_<name>_<class>``.
    """

    name: str
    kind: Literal["binary", "multiclass", "regression"] = "binary"
    classes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of logits."""
        return len(self.classes) if self.kind == "multiclass" else 1

    @property
    def score_columns(self) -> tuple[str, ...]:
        if self.kind == "multiclass":
            return tuple(f"score_{self.name}_{name}" for name in self.classes)
        return (f"score_{self.name}",)

    @property
    def label_column(self) -> str:
        return f"label_{self.name}"


@dataclass
class Scores:
    """Metrics of one set of predictions.

    Attributes:
        values: name to number, None where it is not defined.
        reasons: name to the reason why it is None.
    """

    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float | None, reason: str = "") -> None:
        """File a number; one that is not finite counts as undefined."""
        if value is None or not np.isfinite(value):
            self.values[name] = None
            self.reasons[name] = reason or "not defined for these cases"
        else:
            self.values[name] = float(value)


class Task:
    """Base of all tasks; see the module's text. Subclasses set the class attributes and implement what is marked.

    Attributes:
        name, version: of the task; the version rises when a number would change.
        Options: dataclass of its settings; its first field is ``name``.
        unit: word for what is scored: study, scan or patient.
        main_metric: name in ``metrics(...).values``.
        higher_is_better: direction of the main metric.
        directions: direction of every metric that is not "higher is better": name to False.
        flips: axes (0 = D, 1 = H, 2 = W) along which a volume may be flipped without changing any target. A task
            whose labels have sides leaves 2 out, or swaps labels in ``flip_targets``.
        slice_labels: whether cases carry labels of slices, so that windows can be learned on their own.
        data_sets: short names of the public sets that the cases come from, as ``WeightSource.data`` has them.
        evaluation: how own figures must be called where the official test labels are not public.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    Options: ClassVar[type]
    unit: str = "study"
    main_metric: str = "auroc"
    higher_is_better: bool = True
    directions: Mapping[str, bool] = {}
    flips: tuple[int, ...] = (0, 1, 2)
    slice_labels: bool = False
    data_sets: tuple[str, ...] = ()
    evaluation: str = ""
    outputs: tuple[Output, ...] = ()

    def __init__(self, options: Any):
        self.options = options

    def adopt(self, outputs: Sequence[Output]) -> None:
        """Take the outputs of a model that was trained by another version, which may name them otherwise."""
        self.outputs = tuple(outputs)

    def words(self, output: Output) -> tuple[str, ...]:
        """What users call the classes of an output, in their order."""
        return output.classes

    # What a data set holds

    def read(self, root: str | Path) -> LabeledManifest:
        """The labeled cases of a data set as it was downloaded.

        Raises:
            InputError: the folder or its tables are not those of this data set.
        """
        raise NotImplementedError

    def read_unlabeled(self, root: str | Path) -> LabeledManifest:
        """The official test cases of a data set, which have no labels, for prediction.

        Raises:
            InputError: this task knows of none.
        """
        raise InputError(f"task {self.name} has no unlabeled part of its own; give the scans as --layout scans")

    def targets(self, case: LabeledCase) -> dict[str, float]:
        """Training target per output: 0 or 1, the number of the class, or the value; NaN where it is not known."""
        return {output.name: float(case.labels[output.name]) for output in self.outputs}

    def flip_targets(self, targets: dict[str, float], axes: Sequence[int]) -> dict[str, float]:
        """Targets of a volume that was flipped along ``axes`` of ``flips``."""
        return targets

    def window_targets(self, labels: np.ndarray) -> dict[str, float]:
        """Targets of a window from the labels of its slices (NaN: slice without a label); with ``slice_labels``."""
        raise NotImplementedError

    def stratum(self, case: LabeledCase) -> str:
        """What splits keep balanced: cases with the same word are spread evenly over the parts."""
        return "/".join(f"{value:g}" for value in self.targets(case).values())

    # From network outputs to columns

    def scores(self, logits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score columns from logits (n, width) per output, in float64."""
        columns: dict[str, np.ndarray] = {}
        for output in self.outputs:
            z = np.asarray(logits[output.name], np.float64)
            if output.kind == "binary":
                columns[output.score_columns[0]] = _sigmoid(z[:, 0])
            elif output.kind == "regression":
                columns[output.score_columns[0]] = z[:, 0]
            else:
                e = np.exp(z - z.max(1, keepdims=True))
                columns.update(zip(output.score_columns, (e / e.sum(1, keepdims=True)).T))
        return columns

    def window_score(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Score of windows, and so of their slices, from the score columns of windows; with ``slice_labels``."""
        return np.asarray(columns[self.outputs[0].score_columns[0]], np.float64)

    @property
    def score_columns(self) -> list[str]:
        return [name for output in self.outputs for name in output.score_columns]

    @property
    def label_columns(self) -> list[str]:
        return [output.label_column for output in self.outputs]

    def constant_scores(self, train: pd.DataFrame) -> dict[str, float]:
        """Scores of a predictor that knows nothing but how common each class is in ``train`` (rows of cases)."""
        columns: dict[str, float] = {}
        for output in self.outputs:
            labels = train[output.label_column].dropna().to_numpy(float)
            if output.kind == "multiclass":
                counts = np.bincount(labels.astype(int), minlength=output.width)[: output.width]
                columns.update(zip(output.score_columns, counts / max(1, counts.sum())))
            else:
                columns[output.score_columns[0]] = float(labels.mean()) if len(labels) else 0.5
        return columns

    # From columns to numbers

    def to_units(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """One row per unit: scores of its cases averaged; labels, patient, fold and split are those of the unit."""
        how = {name: "mean" for name in self.score_columns if name in predictions}
        first = [name for name in predictions.columns if name not in how and name not in ("case", "unit")]
        grouped = predictions.groupby("unit", sort=True)
        return grouped.agg({**dict.fromkeys(first, "first"), **how}).reset_index()

    def metrics(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> Scores:
        """Every metric of rows of units.

        Args:
            units: what ``to_units`` gave: label and score columns, one row per unit.
            images: rows of ``predictions_images.parquet`` (``unit``, ``label``, ``score``), where slices are scored.
        """
        raise NotImplementedError

    def main_value(self, units: pd.DataFrame) -> float:
        """The main metric alone, for bootstraps and early stopping; NaN where it is not defined."""
        value = self.metrics(units).values.get(self.main_metric)
        return float("nan") if value is None else value

    def shuffled_values(self, units: pd.DataFrame, places: np.ndarray) -> np.ndarray:
        """The main metric where units have the labels of others; a task may know a faster way than one by one.

        Args:
            units: n rows.
            places: (R, n) row from which each unit takes its labels, R times.

        Returns:
            (R,) values.
        """
        labels = units[self.label_columns].to_numpy(float)
        return np.array([self.main_value(units.assign(**dict(zip(self.label_columns, labels[p].T)))) for p in places])

    # From logits to a loss

    def sample_weights(
        self, targets: Mapping[str, Tensor], class_weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Weight (B,) of every sample per output: that of its class, 1 without weights, 0 where it is not known.

        Args:
            targets: (B,) per output; NaN = not known.
            class_weights: per output, a weight for each class (binary: negative, positive).
        """
        import torch

        weights = {}
        for output in self.outputs:
            y = targets[output.name]
            known = ~torch.isnan(y)
            table = (class_weights or {}).get(output.name)
            if table is None or output.kind == "regression":
                weights[output.name] = known.to(y.dtype)
            else:
                weights[output.name] = known * table.to(y)[torch.where(known, y, 0).long()]
        return weights

    def loss(
        self,
        logits: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        *,
        class_weights: Mapping[str, Tensor] | None = None,
        expected: Mapping[str, float] | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        """Loss per output: the weighted sum over the samples, divided by B and by the weight that a sample is expected
        to have.

        The divisor is fixed before training, so the mean over the parts of a batch is the loss of the batch, however it
        is cut. torch's ``CrossEntropyLoss(weight=...)`` divides by the weights of the batch at hand instead: in a batch
        of one they cancel out.

        Args:
            logits: (B, width) per output.
            targets: (B,) per output; NaN = not known.
            class_weights: as ``sample_weights``.
            expected: per output, the mean of ``sample_weights`` over what training draws; 1 where it is not given.
            label_smoothing: share of the target that is spread evenly over the classes.
        """
        import torch
        from torch.nn import functional as F

        from voco.losses import full_precision

        targets = {output.name: targets[output.name].to(logits[output.name].device) for output in self.outputs}
        weights, terms = self.sample_weights(targets, class_weights), {}
        for output in self.outputs:
            z, y = full_precision(logits[output.name]), targets[output.name]
            safe = torch.where(torch.isnan(y), torch.zeros_like(y), y)
            if output.kind == "regression":
                each = (z[:, 0] - safe.to(z.dtype)) ** 2
            elif output.kind == "binary":
                soft = safe.to(z.dtype) * (1 - label_smoothing) + label_smoothing / 2
                each = F.binary_cross_entropy_with_logits(z[:, 0], soft, reduction="none")
            else:
                each = F.cross_entropy(z, safe.long(), reduction="none", label_smoothing=label_smoothing)
            whole = len(z) * (expected or {}).get(output.name, 1.0)
            # a tensor: a GPU divides by a plain number as times its rounded inverse
            terms[output.name] = (each * weights[output.name].to(z)).sum() / z.new_full((), whole)
        return terms


def known_labels(units: pd.DataFrame, output: Output) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and scores (n, width) of the rows whose label is known.

    Raises:
        InputError: a column is missing.
    """
    columns = [output.label_column, *output.score_columns]
    if missing := [name for name in columns if name not in units]:
        raise InputError(
            f"predictions lack the columns {', '.join(missing)}; found {', '.join(map(str, units.columns))}"
        )
    labels = units[output.label_column].to_numpy(float)
    known = ~np.isnan(labels)
    return labels[known], units[list(output.score_columns)].to_numpy(float)[known]


def _sigmoid(z: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e))
