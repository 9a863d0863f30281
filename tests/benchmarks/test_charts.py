from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from benchmarks.pages.charts.chart import Chart, fit, framed, styles
from benchmarks.pages.charts.curves import calibration, confusion, precision_overlay, roc_overlay
from benchmarks.pages.charts.results import _log_ticks
from benchmarks.read.rows import group_runs
from benchmarks.read.run import read_run
from tests.benchmarks.run_maker import write_run
from voco.figures.export import tip


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
    look = styles(["a", "b < c & $d$"])
    figure, axes = framed(list(look), look, 120, ("x", "y"))
    chart = Chart("x", "Title <1>", figure, columns=("a", "b"), rows=[(1, 2.5)])
    for style in styles(list("abcdefgh")).values():
        tip(axes.plot([0.5], [0.5], **style.mark(hollow=True))[0], 'a < "b"')
    height = chart.size[1]
    chart.stamp("synthetic")
    assert chart.size == (420, height + 18) and chart.title == "Title <1> (synthetic)"
    svg, pdf, table = chart.save(tmp_path)
    tree, page = ElementTree.parse(svg).getroot(), ElementTree.fromstring(chart.svg())
    for root in (tree, page):
        texts = {node.text for node in root.iter() if node.tag.endswith("text")}
        assert {"b < c & $d$", "synthetic"} <= texts and root.get("viewBox") == f"0 0 420 {height + 18:g}"
        tips = [group[0].text for group in root.iter() if group.tag.endswith("g") and group[0].tag.endswith("title")]
        assert tips.count('a < "b"') == 8
    assert "var(--" not in svg.read_text() and tree[0].text == chart.title == page.get("aria-label")
    assert pdf.read_bytes().startswith(b"%PDF") and table.read_text() == "a,b\n1,2.5\n"
    before = [path.read_bytes() for path in (svg, pdf)]
    chart.save(tmp_path)
    assert [path.read_bytes() for path in (svg, pdf)] == before


def test_words_and_styles():
    assert fit("abcdef", 20, 10) == "ab…" and fit("ab", 100, 10) == "ab"
    looks = styles([str(i) for i in range(16)])
    assert len({(s.color, s.marker, s.dash) for s in looks.values()}) == 16
    assert _log_ticks(10, 200) == [10, 20, 50, 100, 200]
