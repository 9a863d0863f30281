from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from voco.tasks import create_task
from voco.transfer.operating import apply_operating_points, at_threshold, operating_points


def predictions(labels, scores) -> pd.DataFrame:
    names = [f"c{i:03d}" for i in range(len(labels))]
    return pd.DataFrame(
        {"case": names, "patient": names, "unit": names, "fold": 0, "split": "validation", "label_pe": labels,
         "score_pe": scores}
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_that_of_youden_on_the_roc_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random(80) < 0.3).astype(float)
    scores = np.round(1 / (1 + np.exp(-(labels + rng.normal(size=80)))), 2)  # with ties
    task = create_task("rsna_pe")
    found = operating_points(task, predictions(labels, scores))["pe"]
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert found["sensitivity"] + found["specificity"] - 1 == pytest.approx((tpr - fpr).max())
    called = scores >= found["threshold"]
    assert found["sensitivity"] == pytest.approx(called[labels == 1].mean())
    assert found["specificity"] == pytest.approx(1 - called[labels == 0].mean())


def test_units_are_judged_and_unknown_labels_left_out():
    frame = predictions([1, 1, 0, np.nan], [0.9, 0.1, 0.4, 0.99])
    frame["unit"] = ["a", "a", "b", "c"]  # unit a scores 0.5
    task = create_task("rsna_pe")
    assert operating_points(task, frame)["pe"]["threshold"] == 0.5
    applied = apply_operating_points(task, frame, {"pe": {"threshold": 0.45}})["pe"]
    assert applied == {"threshold": 0.45, "sensitivity": 1, "specificity": 1, "positive": 1, "negative": 1}


def test_one_class_gives_no_threshold_and_no_rate_of_the_other():
    task = create_task("rsna_pe")
    assert operating_points(task, predictions([1.0, 1.0], [0.2, 0.3])) == {}
    found = at_threshold(np.array([1.0, 1.0]), np.array([0.2, 0.3]), 0.3)
    assert found["sensitivity"] == 0.5 and np.isnan(found["specificity"])


def test_classes_have_no_operating_point():
    task = create_task("table", labels=["stage"], kind="multiclass", classes={"stage": ["I", "II"]})
    frame = predictions([0, 1], [0, 0]).rename(columns={"label_pe": "label_stage"})
    assert operating_points(task, frame.assign(score_stage_I=0.5, score_stage_II=0.5)) == {}
