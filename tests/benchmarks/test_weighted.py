from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.weighted import auroc_of_weights, metric_range, weighted_main_metric
from voco.stats import weighted_auroc
from voco.tasks import create_task
from voco.tasks.table import Table, TableOptions


def of_table(kind, metric, labels=("x",), classes=()):
    task = Table(
        TableOptions(labels=list(labels), kind=kind, metric=metric, classes={name: list(classes) for name in labels})
    )
    task._define()
    return task


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
    frame = pd.DataFrame({"unit": [f"u{i}" for i in range(n)]})
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


@pytest.mark.parametrize("name", TASKS)
def test_weights_count_rows_as_repeated_rows_do(name):
    task = TASKS[name]
    units = units_of(task)
    fast = weighted_main_metric(task, units)
    assert fast is not None
    weights = np.random.default_rng(9).multinomial(len(units), np.full(len(units), 1 / len(units)), size=4)
    weights[0, 5:] = 0  # a few rows only: classes are missing
    slow = [task.main_value(units.iloc[np.repeat(np.arange(len(units)), row)]) for row in weights]
    assert fast(weights) == pytest.approx(np.array(slow, float), abs=1e-9, nan_ok=True)
    low, high = metric_range(task.main_metric)
    assert (fast(weights)[1:] >= low).all() and (fast(weights)[1:] <= high).all()


def test_auroc_by_products_is_auroc_by_sorting(monkeypatch):
    rng = np.random.default_rng(2)
    labels, scores = (rng.random(90) < 0.3).astype(float), rng.normal(size=90).round(1)
    weights = rng.multinomial(90, np.full(90, 1 / 90), size=50)
    wanted = weighted_auroc(labels, scores, weights)
    assert auroc_of_weights(labels, scores)(weights) == pytest.approx(wanted, abs=1e-12)
    monkeypatch.setattr("benchmarks.weighted._CELLS", 500)  # several blocks
    assert auroc_of_weights(labels, scores)(weights) == pytest.approx(wanted, abs=1e-12)
    monkeypatch.setattr("benchmarks.weighted._MOST_PAIRS", 10)
    assert auroc_of_weights(labels, scores)(weights) == pytest.approx(wanted, abs=1e-12)


def test_a_task_that_computes_something_else_gets_no_fast_version(monkeypatch):
    task = create_task("rsna_pe")
    units = units_of(task)
    monkeypatch.setattr(task, "main_value", lambda rows: 0.123)
    assert weighted_main_metric(task, units) is None
