"""The user's own labels: kinds taken from values, classes, metrics against scikit-learn and SciPy."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as sk

from voco.errors import InputError
from voco.tasks import create_task
from voco.tasks.base import Output
from voco.tasks.column_names import column_names


def table(tmp_path, columns: dict[str, list], **options):
    """A task that has read a table with these columns."""
    n = len(next(iter(columns.values())))
    for i in range(n):
        (tmp_path / f"s{i:02d}.nii.gz").touch()
    frame = pd.DataFrame({"path": [f"s{i:02d}.nii.gz" for i in range(n)], **columns})
    frame.to_csv(tmp_path / "t.csv", index=False)
    task = create_task("table", labels=list(columns), **options)
    return task, task.read(tmp_path / "t.csv")


def frame(task, labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Predictions: labels (n, outputs), scores (n, columns)."""
    ids = [f"s{i:02d}" for i in range(len(labels))]
    rows = pd.DataFrame({"case": ids, "patient": ids, "unit": ids, "fold": 0, "split": "test"})
    rows[task.label_columns], rows[task.score_columns] = labels, scores
    return rows


@pytest.mark.parametrize(
    ("columns", "kind", "note"),
    [
        ({"x": [0, 1, 1, 0]}, "binary", "x binary (2 positive of 4)"),
        ({"x": ["0.0", "1.0", "", "0"]}, "binary", "x binary (1 positive of 3)"),
        ({"x": [0, 1, 1, 0], "y": [1, 0, None, 1]}, "multilabel", "x binary (2 positive of 4); y binary (2 positive"),
        ({"x": [1, 2, 2, 1]}, "multiclass", "x 2 classes (1: 2, 2: 2)"),
        ({"x": ["b", "a", "b", "c"]}, "multiclass", "x 3 classes (a: 1, b: 2, c: 1)"),
        ({"x": [10.0, 9, 10, 9]}, "multiclass", "x 2 classes (9: 2, 10: 2)"),
        ({"x": [61, 62, 70, 44]}, "regression", "x regression (4 values from 44 to 70)"),
        ({"x": [0.5, 1, 0, 1]}, "regression", "x regression (4 values from 0 to 1)"),
    ],
)
def test_kind_from_values(tmp_path, columns, kind, note):
    task, manifest = table(tmp_path, columns)
    assert task.options.kind == kind
    assert any(note in text for text in manifest.notes), manifest.notes
    # what was found makes the same task again, for new scans
    again = create_task("table", **{k: v for k, v in asdict(task.options).items() if k != "name"})
    for name in ("outputs", "main_metric", "higher_is_better", "flips", "options"):
        assert getattr(again, name) == getattr(task, name)
    np.testing.assert_equal([again.targets(c) for c in manifest.cases], [task.targets(c) for c in manifest.cases])


def test_targets(tmp_path):
    task, manifest = table(tmp_path, {"Grade (1-3)": ["III", "I", "", "II"], "b/c": ["x", "y", "x", None]})
    assert [o.name for o in task.outputs] == ["Grade_1_3", "b_c"]
    assert task.score_columns == [*(f"score_Grade_1_3_{c}" for c in ("I", "II", "III")), "score_b_c_x", "score_b_c_y"]
    values = [list(task.targets(case).values()) for case in manifest.cases]
    np.testing.assert_array_equal(values, [[2, 0], [0, 1], [np.nan, 0], [1, np.nan]])
    task, manifest = table(tmp_path, {"s": ["lo", "hi", "lo", "hi"]}, classes={"s": ["lo", "mid", "hi"]})
    assert [task.targets(case)["s"] for case in manifest.cases] == [0, 2, 0, 2] and task.outputs[0].width == 3


@pytest.mark.parametrize(
    ("columns", "options", "match"),
    [
        ({"x": [1, 1, 1]}, {}, "holds '1' and nothing else"),
        ({"x": [0, 1, 2]}, {"kind": "binary"}, r"1 labels of column x are not usable \(s02: '2'\); expected 0 or 1"),
        ({"x": [0.5, "low", 2]}, {"kind": "regression"}, r"'low' .1 of 3 rows.*among numbers.*--task.unknown low"),
        ({"x": ["a", "b", "z"]}, {"kind": "multiclass", "classes": {"x": ["a", "b"]}}, "s02: 'z'.*one of a, b"),
        ({"x": [0, 1, 1], "y": [0.5, 3.5, 4]}, {}, "several kinds .x: binary, y: regression."),
        ({"x": [f"id{i}" for i in range(12)]}, {}, "12 different texts in 12 rows, such as 'id0'"),
        ({"x": ["a", "b_c", "d"], "x_b": ["c", "d", "e"]}, {}, "share columns of predictions .score_x_b_c"),
        ({"x": [0, 1, 1]}, {"metric": "f1"}, "'f1' is not one of auroc, ap"),
        ({"x": [0, 1, 1]}, {"flips": [3]}, "found 3"),
    ],
)
def test_labels_that_cannot_be(tmp_path, columns, options, match):
    with pytest.raises(InputError, match=match):
        table(tmp_path, columns, **options)


def test_where_the_table_is(tmp_path):
    _, manifest = table(tmp_path, {"x": [0, 1, 1]})
    with pytest.raises(InputError, match=r"is a folder; give the CSV with --task\.csv"):
        create_task("table").read(tmp_path)
    inside = create_task("table", csv="t.csv", labels=["x"]).read(tmp_path)
    outside = create_task("table", csv=str(tmp_path / "t.csv"), labels=["x"]).read(tmp_path)
    assert inside.cases == outside.cases == manifest.cases
    assert [c.labels for c in create_task("table", csv="t.csv").read_unlabeled(tmp_path).cases] == [{}] * 3


def test_flips_are_refused_unless_asked_for(tmp_path):
    assert table(tmp_path, {"x": [0, 1, 1]})[0].flips == ()
    assert table(tmp_path, {"x": [0, 1, 1]}, flips=[2, 0])[0].flips == (0, 2)


def test_multilabel_metrics(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"x": [0, 1] * 20, "y": [1, 0] * 20, "z": [0, 1] * 20}
    task, _ = table(tmp_path, columns)
    labels, scores = rng.integers(0, 2, (40, 3)).astype(float), rng.random((40, 3))
    labels[:7, 1] = np.nan
    labels[:, 2] = 0
    out = task.measure(task.to_units(frame(task, labels, scores)))
    x, y = (sk.roc_auc_score(labels[k:, i], scores[k:, i]) for i, k in ((0, 0), (1, 7)))
    assert out.values["auroc_x"] == pytest.approx(x, abs=1e-9) and out.values["auroc_y"] == pytest.approx(y, abs=1e-9)
    assert out.values["auroc_z"] is None and out.reasons["auroc_z"] == "no positive among 40"
    assert out.values["auroc"] == pytest.approx((x + y) / 2, abs=1e-9)
    ap = [sk.average_precision_score(labels[k:, i], scores[k:, i]) for i, k in ((0, 0), (1, 7))]
    assert out.values["ap"] == pytest.approx(np.mean(ap), abs=1e-9)
    assert task.main_value(frame(task, labels, scores)) == out.values["auroc"]


def test_multiclass_metrics(tmp_path):
    rng = np.random.default_rng(1)
    task, _ = table(tmp_path, {"x": ["a", "b", "c"] * 10})
    labels, scores = rng.integers(0, 3, 30).astype(float), rng.dirichlet(np.ones(3), 30)
    got = task.measure(frame(task, labels[:, None], scores)).values
    expected = sk.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert got["auroc"] == pytest.approx(expected, abs=1e-9)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, scores.argmax(1)), abs=1e-9)
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, scores.argmax(1)), abs=1e-9)
    assert got["kappa"] == pytest.approx(sk.cohen_kappa_score(labels, scores.argmax(1)), abs=1e-9)
    one = task.measure(frame(task, np.ones((4, 1)), scores[:4]))
    assert one.values["auroc"] is None and one.reasons["auroc"] == "all cases are of one class"


def test_regression(tmp_path):
    rng = np.random.default_rng(2)
    task, manifest = table(tmp_path, {"age": [20.5, 40.5, 60.5, 81]}, metric="rmse")
    assert task.main_metric == "rmse" and not task.higher_is_better
    assert [m.name for m in task.metrics if not m.higher_is_better] == ["mae", "rmse"]
    assert [task.stratum(case) for case in manifest.cases] == ["q1", "q2", "q3", "q4"]
    labels, scores = rng.normal(60, 10, 30).round(), rng.normal(60, 10, 30).round()
    out = task.measure(frame(task, labels[:, None], scores[:, None])).values
    assert out["mae"] == pytest.approx(sk.mean_absolute_error(labels, scores), abs=1e-9)
    assert out["rmse"] == pytest.approx(sk.root_mean_squared_error(labels, scores), abs=1e-9)
    assert out["r2"] == pytest.approx(sk.r2_score(labels, scores), abs=1e-9)
    assert out["spearman"] == pytest.approx(spearmanr(labels, scores).statistic, abs=1e-9)
    constant = task.measure(frame(task, labels[:, None], np.full((30, 1), 60.0)))
    assert constant.values["spearman"] is None and constant.values["mae"] is not None


def test_scale_of_regression_targets(tmp_path):
    import torch

    task, manifest = table(tmp_path, {"age": [20.5, 40.5, 60.5, 81], "mm": [0.01, 0.02, 0.03, ""]})
    scale = task.target_scale(manifest.cases[:3])
    assert scale == {"age": pytest.approx((40.5, np.std([20.5, 40.5, 60.5]))), "mm": pytest.approx((0.02, 0.008164966))}
    terms = task.loss(
        {name: torch.full((2, 1), mean + std) for name, (mean, std) in scale.items()},
        {name: torch.tensor([mean, float("nan")]) for name, (mean, _) in scale.items()},
        expected=dict.fromkeys(scale, 0.5),
    )
    assert [float(term) for term in terms.values()] == pytest.approx([1, 1], rel=1e-4)
    assert table(tmp_path, {"x": [0, 1, 1]})[0].target_scale([]) == {}


def test_classes_in_any_script_and_with_signs(tmp_path):
    for classes, names in [
        (["-", "+"], ["minus", "plus"]),
        (["ER-", "ER+"], ["ER_minus", "ER_plus"]),
        (["<5mm", ">5mm"], ["lt_5mm", "gt_5mm"]),
        (["-1", "0", "1"], ["minus_1", "0", "1"]),
        (["阴性", "阳性"], ["阴性", "阳性"]),
        (["a-b", "a b"], ["a_b", "a_b_2"]),
    ]:
        task, manifest = table(tmp_path, {"befund": classes * 3}, kind="auto")
        found = dict(zip(task.words(task.outputs[0]), task.outputs[0].classes))
        assert found == dict(zip(classes, names)) or set(found) == set(classes)
        assert all(str(c.labels["befund"]) == task.words(task.outputs[0])[int(task.targets(c)["befund"])]
                   for c in manifest.cases)  # fmt: skip
    assert column_names(["Größe (mm)", "HER2-low", "≤ 5 %", "-0.5", "+/-", "हाँ"]) == [
        "Größe_mm", "HER2_low", "le_5_percent", "minus_0_5", "plusminus", "हाँ"
    ]  # fmt: skip
    assert column_names(["\U0001f44d\U0001f3fd", "\U0001f44e", "\u2714\ufe0f ok", "**", "?"]) == [
        "thumbs_up", "thumbs_down", "heavy_check_mark_ok", "asterisk_asterisk", "question_mark"
    ]  # fmt: skip


def test_tables_as_spreadsheets_write_them(tmp_path):
    for i in range(4):
        (tmp_path / f"s{i}.nii.gz").touch()
    text = "path;patient;größe\r\ns0.nii.gz;001;0,5\r\ns1.nii.gz;1;#NV\r\n.\\s2.nii.gz;3;61,25\r\ns3.nii.gz;NA;2\r\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-16")
    task = create_task("table", labels=["größe"])
    manifest = task.read(tmp_path / "t.csv")
    assert [task.targets(case)["größe"] for case in manifest.cases] == [
        0.5,
        61.25,
        2.0,
    ] and task.options.kind == "regression"
    notes = " ".join(manifest.notes)
    assert "'001' and '1' look alike" in notes and "'#NV' (1)" in notes
    assert "1 of 3 scans have no patient" in notes, "NA names nobody"
    with pytest.raises(InputError, match="did you mean 'größe'"):
        create_task("table", labels=["groesse"]).read(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("Path,label\ns0.nii.gz,1\n")
    with pytest.raises(InputError, match="did you mean 'Path'"):
        create_task("table").read(tmp_path / "t.csv")


def test_what_is_wrong_with_a_table_is_said_with_the_mend(tmp_path):
    for i in range(12):
        (tmp_path / f"s{i}.nii.gz").touch()

    def message(header, *labels):
        rows = [f"s{i}.nii.gz,{label}" for i, label in enumerate(labels)]
        (tmp_path / "t.csv").write_text("\n".join([header, *rows]))
        with pytest.raises(InputError) as caught:
            create_task("table").read(tmp_path / "t.csv")
        return str(caught.value)

    assert "found file, label; the first line must name the columns" in message("file,label", "0", "1")
    assert "no row has a label in label; fill" in message("path,label", "", "")
    assert "'pid' looks like 'patient'" in message("path,label,pid", "0,1", "1,2")
    assert "more than that, such as '0 mm'; write the number" in message("path,label", *(f"{i} mm" for i in range(12)))
    (tmp_path / "t.csv").write_text("path,label\ns0.nii.gz,a\ns1.nii.gz,b\ns2.nii.gz,unclear\n")
    manifest = create_task("table", unknown=["uncler"]).read(tmp_path / "t.csv")
    assert "names 'uncler', which no cell of label holds; did you mean 'unclear'?" in " ".join(manifest.notes)


def test_words_for_unknown_can_be_named(tmp_path):
    with pytest.raises(InputError, match=r"'none' .*--task.unknown none to leave.*--task.unknown \[\] to take it"):
        table(tmp_path, {"x": ["none", "mild", "severe", "mild"]})
    task, manifest = table(tmp_path, {"x": ["none", "mild", "severe", "mild"]}, unknown=["none"])
    assert task.words(task.outputs[0]) == ("mild", "severe") and len(manifest.cases) == 3
    task, manifest = table(tmp_path, {"x": ["none", "mild", "NA", "mild"]}, unknown=[])
    assert task.words(task.outputs[0]) == ("NA", "mild", "none") and len(manifest.cases) == 4


def test_names_of_a_model_of_another_version_stay(tmp_path):
    task, _ = table(tmp_path, {"Größe (>3)": [0, 1, 1]})
    assert task.outputs[0].name == "Größe_gt_3"
    task.adopt([Output("Gr_e_3")])
    assert task.columns == {"Gr_e_3": "Größe (>3)"} and task.score_columns == ["score_Gr_e_3"]
