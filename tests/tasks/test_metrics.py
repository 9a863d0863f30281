"""The contract of metrics: every form of each gives the number of the rows themselves; names say nothing."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error

from tests.tasks.tables import TASKS, Brier, of_table, units_of
from voco.tasks import create_task
from voco.tasks.metrics import METRICS, Metric, titled
from voco.transfer.results import summarise

OF_UNITS = [
    pytest.param(name, metric, id=f"{name}: {metric.name}")
    for name, task in TASKS.items()
    for metric in task.metrics
    if metric.table == "units"
]


@pytest.mark.parametrize(("name", "metric"), OF_UNITS)
def test_every_form_of_a_metric_is_that_of_its_rows(name, metric):
    units = units_of(TASKS[name], n=25)
    value = metric.value(units)
    if not math.isfinite(value):
        assert metric.why_not(units) or metric.name.startswith("spearman")
        return
    assert metric.range[0] <= value <= metric.range[1]
    rng = np.random.default_rng(0)
    weights = np.concatenate([np.ones((1, 25), int), rng.multinomial(25, np.full(25, 1 / 25), 6)])
    found, plain = metric.of(units)(weights), Metric.of(metric, units)(weights)
    assert found == pytest.approx(plain, abs=1e-12, nan_ok=True) and found[0] == pytest.approx(value, abs=1e-12)
    assert metric.of(units)(np.zeros((1, 25), int)) == pytest.approx([np.nan], nan_ok=True)
    places = rng.permuted(np.tile(np.arange(25), (5, 1)), axis=1)
    slow = Metric.shuffled(metric, units, places)
    assert metric.shuffled(units, places) == pytest.approx(slow, abs=1e-12, nan_ok=True)
    if parts := metric.parts(units):
        assert np.nanmean([part.value() for part in parts]) == pytest.approx(value, abs=1e-12)
    sides = metric.sides(units)
    assert sides is None or set(sides[~np.isnan(sides)]) == {0.0, 1.0}


def test_names_of_a_task_are_its_own_and_the_main_one_is_among_them():
    for task in TASKS.values():
        names = [metric.name for metric in task.metrics]
        assert len(set(names)) == len(names) and task.main.name == task.main_metric
        assert task.higher_is_better is task.main.higher_is_better


def test_which_metrics_compare_scores_with_each_other():
    def ranking(task):
        return [metric.name for metric in task.metrics if metric.ranks]

    assert ranking(TASKS["pe"]) == ranking(create_task("lidc")) == ["auroc", "ap", "image_auroc"]
    assert ranking(TASKS["kappa"]) == [] and ranking(TASKS["rmse"]) == ["spearman"]
    assert {name.split("_")[0] for name in ranking(TASKS["official score"])} == {"auroc", "ap", "map"}


def test_a_label_may_be_called_like_a_metric():
    """``mae_map`` is a mean absolute error: lower is better, it has no upper end, and may be pooled over folds."""
    task = of_table("regression", "mae_map", ("map", "auroc"))
    assert task.main.range == (0.0, math.inf) and not task.higher_is_better and not task.main.ranks
    rows = units_of(task, n=40, unknown=0).assign(split="validation", case=lambda frame: frame["unit"])
    rows["fold"] = np.arange(40) % 2
    part = summarise(task, rows, n=30)["parts"]["validation"]
    expected = mean_absolute_error(rows["label_map"], rows["score_map"])
    assert part["pooled"]["mae_map"]["value"] == pytest.approx(expected)
    assert part["metrics"]["mae_map"]["higher_is_better"] is part["metrics"]["mae_auroc"]["higher_is_better"] is False
    assert part["pooled"]["spearman_map"]["value"] is None


def test_words_of_metrics():
    assert titled("auroc") == "AUROC" and titled("kappa") == "kappa" and titled("map_solid") == "map solid"
    one, other = of_table("multilabel", "", ("x", "y")).main, of_table("multilabel", "auroc_x", ("x", "y")).main
    assert (one.title, other.title, other.words) == ("AUROC", "auroc x", "") and one.words.startswith("AUROC: area")


class Youngest(Metric):
    """Of whole rows: undefined without a patient of that name."""

    name = "first_half"

    def value(self, units, images=None):
        own = units[units["patient"] < "p2"]
        return own["score_x"].mean() if len(own) else None


def test_an_own_metric_needs_nothing_but_its_number():
    task = of_table("binary", "")
    task.metrics = [*task.metrics, Brier(task.outputs), Youngest()]
    units = units_of(task, n=30, unknown=3).assign(split="validation", fold=0, case=lambda frame: frame["unit"])
    found = summarise(task, units, n=40)["parts"]["validation"]["metrics"]
    known = units[3:]
    assert found["brier"]["value"] == pytest.approx(((known["score_x"] - known["label_x"]) ** 2).mean())
    assert found["brier"]["low"] < found["brier"]["value"] < found["brier"]["high"]
    assert found["brier"]["higher_is_better"] is False and found["first_half"]["resamples"] == 40
    none = task.measure(units[units["patient"] > "p2"])
    assert none.values["first_half"] is None and none.reasons["first_half"] == "not defined for these cases"


def test_the_example_in_the_docs_is_offered_for_its_kind_of_label(monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    monkeypatch.setattr(METRICS, "_items", dict(METRICS._items))
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    task = of_table("multilabel", "brier", ("x", "y"))
    assert not task.higher_is_better and task.main.title == "brier" and task.main.words.startswith("Brier score")
    units = units_of(task, n=30)
    each = [task.measure(units).values[f"brier_{name}"] for name in "xy"]
    own = Brier(task.outputs[1:]).value(units)
    assert task.main_value(units) == pytest.approx(np.mean(each)) and each[1] == pytest.approx(own)
    assert "brier" not in [metric.name for metric in of_table("regression", "").metrics]
