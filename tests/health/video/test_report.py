"""Scores of clips against literal loops, scikit-learn and SciPy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)
from sklearn.neighbors import NearestCentroid

from tests.health.video.answers import CLASSES, answers, known_line, known_report, probabilities
from voco.health.video import (
    HEADLINE,
    ClipLine,
    VideoReport,
    better_of,
    constant_lines,
    line_of,
    mean_of,
    nearest_centroid,
    report_of,
    verdict,
)


def test_scores_equal_those_of_scikit_learn():
    label, answer, groups = answers()
    nearest = probabilities(label, 7, 1.0, np.random.default_rng(5))
    report = report_of(np.arange(120), label, answer, classes=CLASSES, groups=groups, nearest=nearest)
    predicted = answer.argmax(1)
    assert report.score("top1") == pytest.approx((predicted == label).mean())
    assert report.score("top5") == pytest.approx(top_k_accuracy_score(label, answer, k=5))
    assert report.score("top1_balanced") == pytest.approx(balanced_accuracy_score(label, predicted))
    assert report.score("loss") == pytest.approx(log_loss(label, answer))
    assert report.score("features_top1") == pytest.approx((nearest.argmax(1) == label).mean())
    assert report.score(HEADLINE) == pytest.approx(balanced_accuracy_score(label, nearest.argmax(1)))
    assert np.array_equal(report.confusion(), confusion_matrix(label, predicted))
    assert list(report.recall().values()) == pytest.approx(recall_score(label, predicted, average=None))
    assert report.score("top4") is None and report.score("anything") is None
    assert (
        known_report(features=None).score(HEADLINE) is None and known_report(features=None).interval(HEADLINE) is None
    )


def test_intervals_are_those_of_a_t_test_over_groups_of_equal_size():
    label = np.tile(np.arange(4), 20)
    answer = probabilities(label, 4, 1.0, np.random.default_rng(0))
    groups = np.repeat([f"actor{i}" for i in range(10)], 8)
    report = report_of(np.arange(80), label, answer, classes="abcd", groups=groups)
    of_group = [(answer.argmax(1) == label)[groups == g].mean() for g in sorted(set(groups))]
    expected = ttest_1samp(of_group, 0).confidence_interval()
    assert report.interval("top1") == pytest.approx((expected.low, expected.high))
    assert report.interval("top1_balanced") == pytest.approx((expected.low, expected.high))  # two clips of each class
    metrics = report.metrics("heldout")
    assert metrics["heldout/top1_low"] == report.interval("top1")[0] and metrics["heldout/clips"] == 80
    assert metrics["heldout/groups"] == 10 and "heldout/top3" in metrics
    alone = report_of(np.arange(80), label, answer, classes="abcd", groups=["one"] * 80)
    assert alone.interval("top1") is None and "heldout/top1_low" not in alone.metrics()


def test_few_classes_name_the_k_that_was_scored():
    three, two = (known_report(classes=n, features=None) for n in (3, 2))
    assert three.score_names == ("top1", "top1_balanced", "top2", "loss")
    assert two.score_names == ("top1", "top1_balanced", "loss")
    assert "top1" in constant_lines(two) and "top5" in constant_lines(known_report())
    assert known_line(classes=3).score_names == ("top1", "top1_balanced", "top2")
    assert known_line(classes=3).tally("top5") is None


def test_views_of_a_clip_are_averaged():
    case, label = np.array([4, 9, 4, 9]), np.array([0, 1, 0, 1])
    answer = np.array([[0.4, 0.6], [0.3, 0.7], [0.9, 0.1], [0.6, 0.4]])
    groups = [str(i) for i in range(10)]
    report = report_of(case, label, answer, classes="ab", groups=groups, nearest=answer[:, ::-1])
    assert report.views == 2 and report.case.tolist() == [4, 9] and report.group == ("4", "9")
    assert report.predicted.tolist() == [0, 1] and report.features_place.tolist() == [1, 1]
    assert report.loss.tolist() == pytest.approx([-math.log(0.65), -math.log(0.55)])


def test_ties_and_answers_that_are_not_finite():
    equal = report_of(np.arange(3), np.arange(3), np.full((3, 3), 1 / 3), classes="abc", groups="ghi")
    assert equal.score("top1") == pytest.approx(1 / 3) and equal.score("top2") == pytest.approx(2 / 3)
    answer = np.array([[1.0, 0, 0], [np.nan, np.nan, np.nan], [0, 0, 1.0]])
    report = report_of(np.arange(3), np.arange(3), answer, classes="abc", groups="ghi", nearest=answer)
    assert report.predicted.tolist() == [0, -1, 2] and report.score("top2") == pytest.approx(2 / 3)
    assert report.confusion().sum() == 2 and report.score(HEADLINE) == pytest.approx(2 / 3)
    [sentence] = verdict(report, step=10, warmup_steps=0)
    assert sentence.startswith("broken: 1 of 3")


def test_reports_and_lines_survive_json():
    report, line = known_report(), mean_of([known_line(seed=s) for s in range(3)], "untrained")
    again = VideoReport.from_dict(json.loads(json.dumps(report.to_dict(), default=float)))
    assert again.metrics() == report.metrics() and again.classes == report.classes and again.group == report.group
    other = ClipLine.from_dict(json.loads(json.dumps(line.to_dict())))
    assert other.of_networks(HEADLINE) == line.of_networks(HEADLINE) and other.group == line.group
    old = {k: v for k, v in report.to_dict().items() if k != "features_place"} | {"seed": 3}
    assert HEADLINE not in VideoReport.from_dict(old).score_names


def test_a_line_of_several_networks_is_their_mean_in_the_better_state():
    states = [known_line(seed=s) for s in range(4)]
    scores = [state.score(HEADLINE) for state in states]
    assert len(set(scores)) > 1 and better_of(states).score(HEADLINE) == max(scores)
    line = mean_of(states, "untrained")
    assert line.of_networks(HEADLINE) == scores and line.score(HEADLINE) == pytest.approx(np.mean(scores))
    assert line.score("top1_balanced") == line.score(HEADLINE) and states[0].of_networks(HEADLINE) == []
    per_group = [state.tally("top1").contributions for state in states]
    assert line.tally("top1").contributions == pytest.approx(np.mean(per_group, axis=0))


def test_constant_lines_are_the_best_constant_answers():
    label = np.array([0] * 5 + [1] * 3 + [2] * 2)
    report = report_of(np.arange(10), label, np.full((10, 4), 0.25), classes="abcd", groups="0123456789")
    lines = constant_lines(report)
    assert lines == pytest.approx({"top1": 0.5, "top1_balanced": 1 / 3, "top3": 1.0, "loss": math.log(4)})
    assert report.score("loss") == pytest.approx(lines["loss"])


def test_nearest_centroid_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 90)
    train = rng.normal(size=(90, 6)) * [1, 5, 0.1, 1, 1, 0] + label[:, None]
    test = rng.normal(size=(40, 6)) + rng.integers(0, 3, 40)[:, None]
    scale = train.std(0)
    expected = NearestCentroid().fit(train / scale, label).predict(test / scale)
    found = nearest_centroid(train, label, test, classes=4)
    assert np.array_equal(found.argmax(1), expected)
    assert found.sum(1) == pytest.approx(1) and found[:, 3].max() == 0


def test_features_that_say_nothing_score_as_the_constant_answer():
    label = np.tile(np.arange(4), 5)
    nearest = nearest_centroid(np.full((8, 3), 2.5), np.tile(np.arange(4), 2), np.full((20, 3), 2.5), 4)
    line = line_of(np.arange(20), label, nearest, classes="abcd", groups=["g"] * 20, name="untrained")
    assert line.score("top1_balanced") == constant_lines(line)["top1_balanced"] == 0.25
