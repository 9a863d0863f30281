"""Results: recomputed from the files they equal what was written; folds, verdicts, counts, exact round trips."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from voco.errors import InputError
from voco.tasks import create_task
from voco.tasks.metrics import Metric
from voco.tasks.standard import AUROC, AveragePrecision, ImageAUROC
from voco.transfer.results import (
    constant_scores,
    judge,
    read_images,
    read_predictions,
    read_results,
    recompute,
    summarise,
    text_table,
    write_images,
    write_predictions,
    write_results,
)

TB = create_task("imageclef_tb")
PE = create_task("rsna_pe")


def binary(n=60, effect=2.0, folds=1, split="validation", seed=0, scans=1):
    rng = np.random.default_rng(seed)
    y = np.repeat((np.arange(n) % 3 == 0).astype(float), scans)
    z = effect * y + rng.normal(size=n * scans)
    ids = np.repeat(np.arange(n), scans)
    return pd.DataFrame(
        {
            "case": [f"{i:03d}-{k}" for k, i in enumerate(ids)],
            "patient": [f"{i:03d}" for i in ids],
            "unit": [f"{i:03d}-{k}" for k, i in enumerate(ids)],
            "fold": ids % folds,
            "split": split,
            "label_pe": y,
            "score_pe": 1 / (1 + np.exp(-z)),
            "site": np.where(ids % 2, "NA", "A"),
        }
    )


def multiclass(n=60, effect=3.0, folds=2, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 5
    z = effect * np.eye(5)[y] + rng.normal(size=(n, 5))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    keys = {"case": [f"c{i}" for i in range(n)], "fold": np.arange(n) // 5 % folds, "split": "validation"}
    frame = pd.DataFrame({**keys, TB.label_columns[0]: y.astype(float), **dict(zip(TB.score_columns, p.T))})
    return frame.assign(patient=frame["case"], unit=frame["case"])


def slices(frame, seed=1):
    """Ten slices a scan, positive ones in scans that are."""
    rng = np.random.default_rng(seed)
    rows = frame.loc[frame.index.repeat(10), ["case", "unit", "patient", "fold", "split", "label_pe"]]
    label = ((np.arange(len(rows)) % 10 < 4) * rows["label_pe"]).to_numpy()
    score = label + rng.normal(size=len(rows))
    score[::37] = np.nan  # outside every window
    uids = [f"1.2.{i}" for i in range(len(rows))]
    return rows.drop(columns="label_pe").assign(sop_uid=uids, z_mm=1.5, label=label, score=score).reset_index(drop=True)


def train(labels, column, folds=1):
    return pd.DataFrame({"fold": np.repeat(np.arange(folds), len(labels)), column: np.tile(labels, folds)})


@pytest.mark.parametrize("kind", ["binary", "multiclass", "images"])
def test_recomputed_from_the_files_it_is_the_same(tmp_path, kind):
    task, images = (TB, None) if kind == "multiclass" else (PE, None)
    frame = multiclass() if kind == "multiclass" else binary(folds=2, scans=2)
    if kind == "images":
        images = slices(frame)
        write_images(tmp_path, images)
    column = task.label_columns[0]
    constants = constant_scores(task, train([0.0, 0, 1], column, folds=2))
    results = summarise(
        task, frame, images, constants=constants, marks=["synthetic"], n=10, rule="kfold", facts={"a": 1}
    )
    write_predictions(tmp_path, frame)
    write_results(tmp_path, results)
    stored = read_results(tmp_path)
    assert stored == json.loads(json.dumps(results)) == recompute(tmp_path)
    # scores changed in the file are seen
    path = tmp_path / "predictions.csv"
    changed = read_predictions(tmp_path)
    changed.loc[:8, task.score_columns[0]] = 10.0
    changed.to_csv(path, index=False)
    assert recompute(tmp_path) != stored


def test_tables_keep_every_digit_and_every_name(tmp_path):
    frame = binary()
    frame["score_pe"] = np.random.default_rng(0).random(len(frame)) * 1e-5
    frame.loc[3, "label_pe"] = np.nan
    write_predictions(tmp_path, frame.sample(frac=1, random_state=0))
    again = read_predictions(tmp_path)
    assert again.equals(frame) and set(again["site"]) == {"A", "NA"} and again["case"][0] == "000-0"
    images = slices(frame)
    write_images(tmp_path, images)
    assert read_images(tmp_path).equals(images) and read_images(tmp_path / "none") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.csv", "predictions_images.parquet"]


def test_predictions_that_cannot_be(tmp_path):
    frame = binary()
    for wrong, match in (
        (frame.assign(score_pe=frame["score_pe"].where(frame.index > 0)), "1 of 60 cases have scores that are not"),
        (pd.concat([frame, frame[:2]]), "2 cases are predicted twice"),
        (frame.drop(columns="patient"), "lack the columns patient"),
    ):
        with pytest.raises(InputError, match=match):
            write_predictions(tmp_path, wrong)
    with pytest.raises(InputError, match="no prediction of the test part"):
        summarise(PE, frame, split="test", n=0)
    with pytest.raises(InputError, match="does not exist"):
        recompute(tmp_path)


def test_rankings_are_averaged_over_folds_and_never_pooled():
    frame = binary(folds=4)
    frame.loc[frame["fold"] == 1, "score_pe"] /= 10  # another model, another scale
    part = summarise(PE, frame, n=200)["parts"]["validation"]
    each = [roc_auc_score(own["label_pe"], own["score_pe"]) for _, own in frame.groupby("fold")]
    assert [fold["metrics"]["auroc"] for fold in part["folds"]] == pytest.approx(each, abs=1e-12)
    found = part["metrics"]["auroc"]
    assert found["value"] == pytest.approx(np.mean(each), abs=1e-12) and found["low"] < found["value"] < found["high"]
    assert part["pooled"]["auroc"]["value"] is None and part["pooled"]["ap"]["value"] is None
    assert part["metrics"]["image_auroc"]["value"] is None and "image" in part["metrics"]["image_auroc"]["reason"]
    tb = multiclass(folds=3)
    part = summarise(TB, tb, n=5)["parts"]["validation"]
    answers = tb[TB.score_columns].to_numpy().argmax(1)
    pooled = cohen_kappa_score(tb[TB.label_columns[0]], answers)
    assert part["pooled"]["kappa"]["value"] == pytest.approx(pooled, abs=1e-12)
    each = [cohen_kappa_score(tb[TB.label_columns[0]][tb["fold"] == f], answers[tb["fold"] == f]) for f in range(3)]
    assert part["metrics"]["kappa"]["value"] == pytest.approx(np.mean(each), abs=1e-12)
    assert part["counts"]["classes"][TB.outputs[0].name] == dict.fromkeys(TB.outputs[0].classes, 12)


def test_fast_and_slow_intervals_agree(monkeypatch):
    """Metrics by weights equal those of repeated rows on the same draws."""
    frame = binary(150, folds=2, scans=2)
    fast = summarise(PE, frame, slices(frame), n=10)["parts"]["validation"]["metrics"]
    monkeypatch.setattr("voco.transfer.intervals._IMAGE_DRAWS", 60)
    for metric in (AUROC, AveragePrecision, ImageAUROC):
        monkeypatch.setattr(metric, "of", Metric.of)
    monkeypatch.setattr(ImageAUROC, "table", "both")
    slow = summarise(PE, frame, slices(frame), n=10)["parts"]["validation"]["metrics"]
    assert {name for name, figure in fast.items() if figure["low"] is not None} == {"auroc", "ap", "image_auroc"}
    for name in ("auroc", "ap", "image_auroc"):
        for end in ("value", "low", "high"):
            assert fast[name][end] == pytest.approx(slow[name][end], abs=1e-12)


def test_lower_is_better_turns_the_verdict():
    task = create_task("rsna_trauma")
    rng = np.random.default_rng(0)
    n = 30
    frame = pd.DataFrame({"case": [f"c{i}" for i in range(n)], "fold": 0, "split": "validation"})
    frame = frame.assign(patient=frame["case"], unit=frame["case"])
    columns, labels = {}, {}
    for output in task.outputs:
        y = rng.integers(0, max(2, output.width), n)
        p = 0.2 / max(2, output.width) + 0.8 * np.eye(max(2, output.width))[y]
        labels[output.label_column] = y.astype(float)
        columns.update(zip(output.score_columns, p.T if output.width > 1 else p[:, 1:].T))
    frame = frame.assign(**labels, **columns)
    constants = constant_scores(task, frame)
    good = summarise(task, frame, constants=constants, n=5)
    assert good["verdict"]["trained"] is True and good["main"]["higher_is_better"] is False
    assert good["main"]["value"] < good["verdict"]["constant"] and "below" in good["verdict"]["text"]
    wrong = frame.assign(**{c: frame[c].to_numpy()[::-1] for c in task.score_columns})
    assert summarise(task, wrong, constants=constants, n=5)["verdict"]["trained"] is False


def test_verdicts_of_older_runs_are_made_anew(tmp_path):
    """A finished run of an older version lacks the number of scorings: it is counted, or nothing is said."""
    frame = binary(30, effect=2.0, seed=1)
    constants = constant_scores(PE, train([0.0, 0, 1], "label_pe"))
    facts = {"training": {"0": {"best_step": 20, "last_step": 40}}}
    write_predictions(tmp_path, frame)
    results = summarise(PE, frame, constants=constants, n=10, facts=facts)
    assert results["verdict"]["trained"] is None and "how many scorings" in results["verdict"]["text"]
    write_results(tmp_path, results | {"verdict": {"trained": True, "text": "trained", "constant": 0.5}})
    assert judge(tmp_path)["trained"] is None
    rows = [{"step": 10, "loss": 1.0}, {"step": 20, "validation_auroc": 0.9}, {"step": 40, "validation_auroc": 0.8}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = judge(tmp_path)
    assert found["chosen_among"] == 2 and found["trained"] is True and found == recompute(tmp_path)["verdict"]


def test_the_console_says_what_belongs_to_a_figure():
    frame = pd.concat([binary(), binary(split="test", seed=1)])
    results = summarise(
        PE, frame, split="test", constants={0: {"score_pe": 0.3}}, looks=3, marks=["synthetic patients"], n=50
    )
    assert set(results["parts"]) == {"validation", "test"} and results["main"] == {
        "name": "auroc",
        **results["parts"]["test"]["metrics"]["auroc"],
    }
    text = text_table(results)
    assert "looks at this test set so far: 3" in text and "mark: synthetic patients" in text
    assert f"auroc {results['main']['value']:.3f} (95 %: {results['main']['low']:.3f} to" in text
    assert "pe: 40 x 0, 20 x 1" in text and "higher is better" in text and "not defined (" in text


def test_the_users_own_classes_are_known_again_from_the_file(tmp_path):
    task = create_task("table", labels=["stage"], kind="multiclass", classes={"stage": ["early", "late"]})
    y = np.arange(20) % 2
    p = 0.3 + 0.4 * y
    keys = {"case": [f"{i:02d}" for i in range(20)], "fold": 0, "split": "validation", "label_stage": y.astype(float)}
    frame = pd.DataFrame({**keys, **dict(zip(task.score_columns, (1 - p, p)))})
    frame = frame.assign(patient=frame["case"], unit=frame["case"])
    write_predictions(tmp_path, frame)
    write_results(tmp_path, summarise(task, frame, n=5))
    stored = read_results(tmp_path)
    assert recompute(tmp_path) == stored and stored["main"]["value"] == 1.0
    stored["version"] += 1
    write_results(tmp_path, stored)
    with pytest.raises(InputError, match="of version"):
        recompute(tmp_path)
