"""Tasks of every kind, and tables of units with drawn labels and scores for them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from voco.tasks import create_task
from voco.tasks.metrics import OutputMetric


def of_table(kind, metric, labels=("x",), classes=()):
    return create_task(
        "table", labels=list(labels), kind=kind, metric=metric, classes={name: list(classes) for name in labels}
    )


TASKS = {
    "pe": create_task("rsna_pe"),
    "nine labels": create_task("rsna_pe", heads="exam", indeterminate="negative"),
    "kappa": create_task("imageclef_tb"),
    "official score": create_task("rsna_trauma"),
    "some organs": create_task("rsna_trauma", organs=["liver", "bowel"]),
    "several labels": of_table("multilabel", "auroc", ("x", "y")),
    "average precision": of_table("multilabel", "ap", ("x", "y")),
    "one against the rest": of_table("multiclass", "auroc", classes="abc"),
    "balanced accuracy": of_table("multiclass", "balanced_accuracy", classes="abc"),
    "accuracy": of_table("multiclass", "accuracy", classes="abc"),
    "mae": of_table("regression", "mae", ("x", "y")),
    "rmse": of_table("regression", "rmse"),
    "r2": of_table("regression", "r2"),
}


def units_of(task, n=40, unknown=3):
    rng = np.random.default_rng(len(task.score_columns))
    frame = pd.DataFrame({"unit": [f"u{i}" for i in range(n)], "patient": [f"p{i}" for i in range(n)]})
    for output in task.outputs:
        if output.kind == "regression":
            frame[output.label_column] = rng.normal(size=n)
            frame[output.score_columns[0]] = rng.normal(size=n)
            continue
        labels = rng.integers(0, max(2, output.width), n).astype(float)
        scores = rng.dirichlet(np.ones(max(2, output.width)), n).round(2).clip(0.01)  # rounded: there are ties
        frame[output.label_column] = labels
        frame[list(output.score_columns)] = scores if output.width > 1 else scores[:, 1:]
    if task.name != "rsna_pe" or len(task.outputs) == 1:
        frame.loc[: unknown - 1, task.outputs[0].label_column] = np.nan
    return frame


class Brier(OutputMetric):
    """A metric as a user writes it: no form but the plain one."""

    name = "brier"
    kinds = ("binary",)
    higher_is_better = False
    range = (0.0, 1.0)
    words = "Brier score: mean squared error of probabilities"

    def compute(self, labels, scores):
        return ((scores[:, 0] - labels) ** 2).mean()
