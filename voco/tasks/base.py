"""What every task offers: labels in, training targets and official numbers out.

A task reads a data set as published (``read``), says what is learned from a case (``outputs``, ``targets``), turns
network outputs into score columns (``scores``), and has a list of metrics (``metrics``), each computed from the rows of
``predictions.csv`` alone, so that anybody can recompute them. Whatever the stages ask of a task is declared here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from voco.data.layouts.labeled import LabeledCase, LabeledManifest
from voco.errors import InputError
from voco.tasks.metrics import Metric
from voco.tasks.outputs import Output, check_columns, known_labels

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

__all__ = ["KEYS", "Output", "Scores", "Task", "known_labels"]
KEYS = ("case", "patient", "unit", "fold", "split")


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
        unit: what has a score and a label of its own.
        noun: word for one of them in tables and sentences: study, scan or patient.
        outputs: heads of the model.
        metrics: what is computed of predictions, in the order of the results.
        main_metric: name of one of them.
        flips: axes (0 = D, 1 = H, 2 = W) along which a volume may be flipped without changing any target. A task
            whose labels have sides leaves 2 out, or swaps labels in ``flip_targets``.
        slice_labels: whether cases carry labels of slices, so that windows can be learned on their own.
        data_sets: short names of the public sets that the cases come from, as ``WeightSource.data`` has them.
        columns: output to the column of the table that the user wrote, where it has another name.
        evaluation: how own figures must be called where the official test labels are not public.
        mask_use: ``crop``, ``fill`` or ``channel`` where scans are shown through masks of the data set, else empty.
        mask_name: which published set of masks that is.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    Options: ClassVar[type]
    unit: Literal["study", "slice", "window", "voxel"] = "study"
    noun: str = "study"
    outputs: tuple[Output, ...] = ()
    columns: Mapping[str, str] = {}
    metrics: Sequence[Metric] = ()
    main_metric: str = "auroc"
    flips: tuple[int, ...] = (0, 1, 2)
    slice_labels: bool = False
    data_sets: tuple[str, ...] = ()
    evaluation: str = ""
    mask_use: Literal["", "crop", "fill", "channel"] = ""
    mask_name: str = ""

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

    def targets_from_slices(self, case: LabeledCase, index: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Targets of a case with labels of slices, once it is known where the slices lie.

        Args:
            case: of ``read``.
            index, labels: (P,) of ``SliceTable.positions``, from the lowest to the highest.

        Raises:
            ScanError: the task needs an order of slices, and the scan has none.
        """
        return self.targets(case)

    def target_scale(self, cases: Sequence[LabeledCase]) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of the targets of the training cases, per output that a head gives in these
        units; asked once before training."""
        return {}

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

    @property
    def main(self) -> Metric:
        """The main metric."""
        for metric in self.metrics:
            if metric.name == self.main_metric:
                return metric
        raise ValueError(f"task {self.name}: main_metric {self.main_metric!r} is none of its metrics")

    @property
    def higher_is_better(self) -> bool:
        """Direction of the main metric."""
        return self.main.higher_is_better

    def measure(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> Scores:
        """Every metric of rows of units.

        Args:
            units: what ``to_units`` gave: label and score columns, one row per unit.
            images: rows of ``predictions_images.parquet`` (``unit``, ``label``, ``score``), where slices are scored.

        Raises:
            InputError: a column is missing.
        """
        check_columns(units, self.outputs)
        found = Scores()
        for metric in self.metrics:
            value = metric.value(units, images)
            undefined = value is None or not np.isfinite(value)
            found.add(metric.name, value, metric.why_not(units, images) if undefined else "")
        return found

    def main_value(self, units: pd.DataFrame) -> float:
        """The main metric alone; NaN where it is not defined."""
        value = self.main.value(units)
        return float("nan") if value is None else float(value)

    def write_submission(
        self, path: str | Path, predictions: pd.DataFrame, images: pd.DataFrame | None = None
    ) -> Path | None:
        """Write the file that an official evaluation takes; None where a task has none.

        Args:
            path: file to write.
            predictions: rows of ``predictions.csv`` of the official test cases.
            images: rows of ``predictions_images.parquet``, where slices are scored.
        """
        return None

    # From logits to a loss

    def class_weights(self) -> dict[str, list[float]]:
        """Weights of the classes in the official metric, per output; empty where it has none."""
        return {}

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


def _sigmoid(z: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e))
