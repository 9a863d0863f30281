from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import finetune.figures
import finetune.predict
import finetune.run
from tests.finetune.made import SLICES, SMALL, in_processes, write_cohort, write_pe, write_scan, write_table


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A cohort, two folds trained on it, and three new scans of which one is broken."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "cohort").mkdir()
    write_cohort(folder / "cohort")
    (folder / "small.yaml").write_text(SMALL)
    (folder / "new").mkdir()
    for seed in range(100, 105):
        write_scan(folder / "new" / f"n{seed}.nii.gz", seed, seed % 2 == 0)
    (folder / "new" / "torn.nii.gz").write_bytes(b"no scan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.figures, "draw_figures", lambda *args: [])
        command = [
            "--config",
            folder / "small.yaml",
            "--data.root",
            folder / "cohort" / "labels.csv",
            "--out",
            folder / "run",
        ]
        assert finetune.run.main([*map(str, command), "--mode", "linear", "--folds", "2"]) == 0
    return folder


def predict(work, out, *options, model="run"):
    fixed = [
        "--model",
        work / model,
        "--data.root",
        work / "new",
        "--out",
        work / out,
        "--data.workers",
        0,
        "--bootstrap",
        20,
    ]
    return list(map(str, [*fixed, "--threads", 1, *options]))


def rows(folder):
    return pd.read_csv(folder / "predictions.csv", dtype={"case": str}).set_index("case")


@pytest.fixture(scope="module")
def scored(work):
    assert finetune.predict.main(predict(work, "scored", "--data.max_rejected", 0.5)) == 0
    return work / "scored"


def test_folds_vote_by_the_mean_of_their_probabilities(work, scored):
    each = []
    for fold in (0, 1):
        options = ["--data.max_rejected", 0.5, "--data.cache", work / "scored" / "cache"]
        assert finetune.predict.main(predict(work, f"fold{fold}", *options, model=f"run/fold-{fold}")) == 0
        each.append(rows(work / f"fold{fold}")["score_label"])
    found = rows(scored)
    assert np.allclose(found["score_label"], (each[0] + each[1]) / 2, atol=1e-15) and not each[0].equals(each[1])
    assert list(found.index) == [f"n{seed}" for seed in range(100, 105)] and set(found["split"]) == {"test"}
    assert found["label_label"].isna().all() and not (scored / "results.json").exists()
    assert "torn.nii.gz" in (scored / "rejected.csv").read_text()
    leaks = pd.read_csv(scored / "leaks.csv")
    assert list(leaks["case"]) == list(found.index) and set(leaks["verdict"]) == {"no match found"}
    points = [json.loads((work / f"run/fold-{k}/model.json").read_text())["operating_points"] for k in (0, 1)]
    if all("label" in p for p in points):
        threshold = np.mean([p["label"]["threshold"] for p in points])
        assert (found["call_label"] == (found["score_label"] >= threshold)).all()


def test_two_processes_score_as_one(work, scored):
    options = ["--data.max_rejected", "0.5", "--data.cache", str(work / "scored" / "cache")]
    assert in_processes(finetune.predict.main, predict(work, "pair", *options), world=2) == [0, 0]
    assert (work / "pair" / "predictions.csv").read_bytes() == (scored / "predictions.csv").read_bytes()


def test_labels_give_metrics_operating_points_and_subgroups(work, scored, capsys):
    labels = [(f"n{seed}.nii.gz", int(seed % 2 == 0), "ab"[seed > 101]) for seed in range(100, 104)]
    # a row of a scan that cannot be read is no mistake of the table
    write_table(work / "truth.csv", [*labels, ("torn.nii.gz", 1, "a")], ("path", "label", "ward"))
    options = ["--data.max_rejected", 0.5, "--data.cache", scored / "cache", "--labels", work / "truth.csv"]
    assert finetune.predict.main(predict(work, "judged", *options, "--subgroups", "ward")) == 0
    found, results = rows(work / "judged"), json.loads((work / "judged" / "results.json").read_text())
    known = found[found["label_label"].notna()]
    assert len(found) == 5 and list(known.index) == ["n100", "n101", "n102", "n103"]
    auroc = roc_auc_score(known["label_label"], known["score_label"])
    assert results["main"]["value"] == pytest.approx(auroc) and results["parts"]["test"]["counts"]["units"] == 4
    assert set(results["subgroups"]["ward"]) == {"a", "b"}
    assert "ward = a: auroc" in capsys.readouterr().err
    assert finetune.predict.main(predict(work, "judged", *options, "--subgroups", "age")) == 2
    assert "--subgroups age: no such column; found ward" in capsys.readouterr().err


@pytest.mark.parametrize("options, words", [
    ((), "cannot be used"),  # more scans are broken than may be
    (("--data.root", "nowhere"), "nowhere does not exist"),
    (("--model", "nowhere"), "holds no trained model"),
    (("--layout", "unlabeled"), "is a folder; give the CSV"),
])  # fmt: skip
def test_what_cannot_be_scored_is_one_error(work, tmp_path, capsys, options, words):
    assert finetune.predict.main(predict(work, tmp_path / "out", "--data.max_rejected", 0.1, *options)) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("error:") == 1 and "Traceback" not in said


def test_exams_of_slices_from_training_to_new_scans(tmp_path, capsys):
    (tmp_path / "pe").mkdir()
    write_pe(tmp_path / "pe")
    (tmp_path / "slices.yaml").write_text(SLICES)
    command = ["--config", tmp_path / "slices.yaml", "--data.root", tmp_path / "pe", "--out", tmp_path / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.figures, "draw_figures", lambda *args: [])
        assert finetune.run.main(list(map(str, command))) == 0
    cases = rows(tmp_path / "run")
    images = pd.read_parquet(tmp_path / "run" / "predictions_images.parquet")
    assert set(images["case"]) == set(cases.index) and len(images) == 26 * len(cases)
    assert images["score"].notna().all() and set(images["split"]) == {"validation"}
    best = images.groupby("case")["score"].max()
    assert np.allclose(best[cases.index], cases["score_pe"]), "a study scores as its highest window"
    assert np.array_equal(images.groupby("case")["label"].max()[cases.index], cases["label_pe"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    metrics = results["parts"]["validation"]["metrics"]
    assert metrics["image_auroc"]["value"] is not None and metrics["log_loss"]["value"] is None
    training = json.loads((tmp_path / "run" / "model.json").read_text())["training"]
    split = pd.read_csv(tmp_path / "run" / "splits.csv")
    assert training["units"] == 3 * (split["split"] == "train").sum(), "windows at 0, 8 and 10 of 26 slices"
    # the same exams as new scans
    options = [
        "--model",
        tmp_path / "run",
        "--data.root",
        tmp_path / "pe",
        "--out",
        tmp_path / "again",
        "--layout",
        "labeled",
    ]
    fast = ["--data.workers", 0, "--bootstrap", 0, "--threads", 1, "--data.cache", tmp_path / "cache"]
    assert finetune.predict.main(list(map(str, [*options, *fast]))) == 0
    leaks = pd.read_csv(tmp_path / "again" / "leaks.csv").set_index("case")["verdict"]
    assert len(leaks) == 6 and set(leaks) == {"seen"}, "some were trained on, the others chose the model"
    marks = json.loads((tmp_path / "again" / "results.json").read_text())["marks"]
    assert marks == ["training of the model and these cases: 6 seen (leaks.csv)"]
    again = rows(tmp_path / "again")
    assert len(again) == 6 and np.array_equal(again.loc[cases.index, "score_pe"], cases["score_pe"])
    assert (again["label_pe"] == [float(i % 2 == 0) for i in _numbers(again)]).all()
    # and as the official test part, whose table has no labels
    (tmp_path / "pe" / "train").rename(tmp_path / "pe" / "test")
    pd.read_csv(tmp_path / "pe" / "train.csv").iloc[:, :3].to_csv(tmp_path / "pe" / "test.csv", index=False)
    options[-1], options[5] = "unlabeled", tmp_path / "blind"
    assert finetune.predict.main(list(map(str, [*options, *fast]))) == 0
    blind = rows(tmp_path / "blind")
    assert np.array_equal(blind.loc[again.index, "score_pe"], again["score_pe"]) and blind["label_pe"].isna().all()
    assert len(pd.read_parquet(tmp_path / "blind" / "predictions_images.parquet")) == 26 * 6


def _numbers(frame):
    from tests.data.dicom_maker import uid

    known = {uid(f"exam{number}"): number for number in range(6)}
    return [known[case] for case in frame.index]
