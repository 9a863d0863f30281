from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from benchmarks.pages.charts.chart import Chart, Scale, fit, legend, log_ticks, styles, ticks
from benchmarks.pages.charts.curves import calibration, confusion, precision_overlay, roc_overlay
from benchmarks.read.rows import group_runs
from benchmarks.read.run import read_run
from tests.benchmarks.run_maker import write_run


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("one") / "run", patients=40)
    return group_runs([read_run(folder)])[0][0].rows[0]


@pytest.fixture(scope="module")
def table(row):
    return pd.read_csv(row.first.folder / "predictions.csv")


def drawn(chart: Chart) -> pd.DataFrame:
    return pd.DataFrame(chart.rows, columns=list(chart.columns))


def test_roc_and_precision_are_those_of_scikit_learn(row, table):
    test, output, look = table[table["split"] == "test"], row.first.task.outputs[0], styles([row.label])
    fpr, tpr, _ = roc_curve(test["label_label"], test["score_label"], drop_intermediate=False)
    roc = drawn(roc_overlay("r", "r", [row], output, look))
    inside = roc["false_positive_rate"] > 0
    expected = np.interp(roc["false_positive_rate"], fpr, tpr)
    np.testing.assert_allclose(roc["true_positive_rate"][inside], expected[inside], atol=1e-12)
    precision, recall, _ = precision_recall_curve(test["label_label"], test["score_label"])
    curve = drawn(precision_overlay("p", "p", [row], output, look))
    for at, value in zip(curve["recall"][1:], curve["precision"][1:]):
        # of all thresholds with at least this recall, the highest one
        assert value == pytest.approx(precision[np.flatnonzero(recall >= at - 1e-9)[-1]])


def test_calibration_is_that_of_scikit_learn(row, table):
    test = table[table["split"] == "test"]
    shown = drawn(calibration("c", "c", [row], row.first.task.outputs[0], styles([row.label])))
    true, mean = calibration_curve(test["label_label"], test["score_label"], n_bins=8, strategy="quantile")
    np.testing.assert_allclose(shown["mean_score"], mean, atol=1e-12)
    np.testing.assert_allclose(shown["share_true"], true, atol=1e-12)


def test_confusion_is_at_the_threshold_of_validation(row, table):
    validation, test = (table[table["split"] == name] for name in ("validation", "test"))
    fpr, tpr, thresholds = roc_curve(validation["label_label"], validation["score_label"], drop_intermediate=False)
    called = test["score_label"] >= thresholds[np.argmax(tpr - fpr)]
    shown = drawn(confusion("c", row, row.first.task.outputs[0]))
    np.testing.assert_array_equal(
        shown["count"].to_numpy().reshape(2, 2), confusion_matrix(test["label_label"], called)
    )


def test_a_chart_is_the_same_drawing_in_every_file(tmp_path):
    look = styles(["a", "b < c & d"])
    chart = Chart("x", "Title <1>", 200, columns=("a", "b"), rows=[(1, 2.5)])
    legend(chart, list(look), look, 10, 20)
    chart.line([(0, 0), (10, 10)], "c0", dash="2 3")
    chart.rect(1, 2, 3, 4)
    for shape in ("circle", "square", "triangle", "down", "diamond", "left", "right", "bar"):
        chart.marker(50, 50, shape=shape, tip="a < b")
    svg, pdf, csv = chart.save(tmp_path)
    tree = ElementTree.parse(svg)
    texts = {node.text for node in tree.iter() if node.tag.endswith("text")}
    assert "b < c & d" in texts and "var(--" not in svg.read_text()
    assert "var(--c0)" in chart.svg() and ElementTree.fromstring(chart.svg()) is not None
    assert pdf.read_bytes().startswith(b"%PDF") and csv.read_text() == "a,b\n1,2.5\n"
    before = pdf.read_bytes()
    chart.save(tmp_path)
    assert pdf.read_bytes() == before


def test_scales_and_ticks():
    assert ticks(0, 1, 5) == [0, 0.25, 0.5, 0.75, 1] and ticks(-0.02, 0.031, 5) == [-0.02, 0, 0.02]
    assert log_ticks(10, 200) == [10, 20, 50, 100, 200]
    x = Scale(10, 1000, 0, 100, log=True)
    assert x(100) == pytest.approx(50) and Scale(3, 3, 0, 10)(3) == 5
    assert fit("abcdef", 20, 10) == "ab…" and fit("ab", 100, 10) == "ab"
    looks = styles([str(i) for i in range(16)])
    assert len({(s.color, s.marker, s.dash) for s in looks.values()}) == 16
