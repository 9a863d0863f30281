"""A task in one file: which scans a table calls dense, scored by the share that is named right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from voco.data.layouts.labeled import LabeledCase, LabeledManifest, read_table
from voco.data.manifest import Case
from voco.tasks import register_task
from voco.tasks.base import Output, Task
from voco.tasks.metrics import OutputMetric


@dataclass(frozen=True)
class ToyOptions:
    """The table."""

    name: Literal["toy_dense"] = "toy_dense"
    """Task."""
    table: str = "dense.csv"
    """CSV in the data folder with the columns path and dense."""


class Right(OutputMetric):
    """Share of the scans that are named right."""

    name = "right"
    kinds = ("binary",)
    range = (0.0, 1.0)
    words = "share of the scans that are named right"

    def compute(self, labels, scores):
        return float(((scores[:, 0] > 0.5) == (labels == 1)).mean())


@register_task("toy_dense")
class Dense(Task):
    """Dense or not."""

    Options = ToyOptions
    main_metric = "right"
    outputs = (Output("dense"),)
    metrics = (Right(outputs),)

    def read(self, root):
        rows = read_table(Path(root) / self.options.table, ["path", "dense"])
        cases = [
            LabeledCase(Case(Path(path).name, path, Path(path).name), {"dense": float(label)})
            for path, label in zip(rows["path"], rows["dense"])
        ]
        return LabeledManifest(Path(root), sorted(cases, key=lambda case: case.id))
