from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import brier_score_loss, roc_auc_score

import finetune.features
import finetune.figures
import finetune.folds
import finetune.training
import voco
from finetune.run import main
from tests.finetune.made import in_processes, kill_at, write_scan
from tests.tasks.tables import Brier
from voco.data.cache import PreparedVolume
from voco.data.fingerprint import Fingerprints
from voco.data.layouts.labeled import SPLITS
from voco.data.manifest import Case
from voco.data.prepare import PreparedEntry
from voco.encoders import create_encoder
from voco.errors import InputError
from voco.tasks.metrics import METRICS
from voco.transfer.results import recompute
from voco.weights.export import save_encoder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pictures have tests of their own; ``finished`` draws them."""
    monkeypatch.setattr(finetune.figures, "draw_figures", lambda *args: [])


@pytest.fixture(scope="module")
def arguments(work, cohort):
    def make(out, *options):
        root = ["--data.root", str(cohort / "labels.csv")]
        return ["--config", str(work / "small.yaml"), *root, "--out", str(work / out), *map(str, options)]

    return make


@pytest.fixture(scope="module")
def finished(work, arguments):
    assert main(arguments("whole")) == 0
    return work / "whole"


def copy_of(finished, work, name):
    shutil.copytree(finished, work / name)
    return work / name


def results(out):
    return json.loads((out / "results.json").read_text())


def predictions(out) -> pd.DataFrame:
    return pd.read_csv(out / "predictions.csv", dtype={"case": str})


def test_a_run_can_be_extended(work, arguments, capsys):
    """Four constant steps, extended to six: every number of the run that took six at once, with its best weights."""
    same = ("--train.schedule", "constant", "--score.every", "2")
    extend = (*same, "--train.extend", work / "short")
    assert main(arguments("at_once", *same)) == 0
    assert main(arguments("short", *same, "--train.steps", "4")) == 0
    assert main(arguments("longer", *extend)) == 0
    note = "extended from step 4 of short (train.steps: 4 -> 6)"
    assert "resumed step-00000004" in capsys.readouterr().err
    for name in ("metrics.jsonl", "head.safetensors", "encoder/model.safetensors", "predictions.csv"):
        assert (work / "longer" / name).read_bytes() == (work / "at_once" / name).read_bytes(), name
    assert note in " ".join(results(work / "longer")["marks"]) and not results(work / "short")["marks"]
    assert note in json.loads((work / "longer/run.json").read_text())["extended"]["note"]
    assert note in (work / "longer/encoder/README.md").read_text()
    # the best model of the source stays the best where nothing after it is better
    assert main(arguments("worse", *extend, "--train.lr", "1e-9")) == 0
    facts = [json.loads((work / name / "model.json").read_text())["training"] for name in ("short", "worse")]
    assert facts[0]["best_step"] <= 4 <= facts[1]["last_step"] == 6
    for options, words in [
        (("--train.steps", "4"), "has 4 steps already"),
        (("--seed", "1"), "seed: 0 -> 1"),
        (("--split.seed", "1"), "split.seed: 0 -> 1"),
        (("--mode", "linear"), "--mode linear has none of"),
        (("--out", work / "short"), "is --out itself"),
    ]:
        assert main(arguments("bad", *extend, *options)) == 2
        assert words in capsys.readouterr().err
    assert not (work / "bad/run.json").exists()


def test_a_run_leaves_what_it_promises(finished, cohort):
    for name in ("config.yaml", "run.json", "metrics.jsonl", "timings.jsonl", "splits.csv", "results.json", "leaks.csv",
                 "rejected.csv", "model.json", "head.safetensors", "encoder/README.md"):  # fmt: skip
        assert (finished / name).is_file(), name
    record = json.loads((finished / "run.json").read_text())
    assert record["state"] == "finished"
    layers = sum(isinstance(m, torch.nn.BatchNorm3d) for m in create_encoder("cnn3d_s").modules())
    assert record["batch_statistics"] == {
        "batchnorm": "all", "layers": layers, "processes": 1, "samples": 4, "windows_at_most": 4,
    }  # fmt: skip
    assert len(list((finished / "figures").glob("*.png"))) >= 3
    assert not (finished / "best.safetensors").exists()
    split = pd.read_csv(finished / "splits.csv")
    cases = predictions(finished)
    validation = split[split["split"] == "validation"]
    assert sorted(cases["case"]) == sorted(validation["case"]) and set(cases["split"]) == {"validation"}
    assert split.groupby("patient")["split"].nunique().max() == 1 and set(split["split"]) == {
        "train",
        "validation",
        "test",
    }
    assert {"site", "label_label", "score_label", "unit", "patient"} <= set(cases.columns)
    assert not list(finished.glob("test_ledger*")), "nobody has looked"
    found = results(finished)
    auroc = roc_auc_score(cases["label_label"], cases["score_label"])
    assert found["main"]["value"] == pytest.approx(auroc, abs=1e-12) and found["split"] == "validation"
    assert recompute(finished) == found
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 7))
    assert [r["step"] for r in rows if "validation_auroc" in r] == [3, 6]
    assert all("validation_loss" in r for r in rows if "validation_auroc" in r)
    text = "".join((finished / n).read_text() for n in ("metrics.jsonl", "predictions.csv", "splits.csv", "leaks.csv"))
    assert str(cohort) not in text


def test_an_own_metric_decides_what_is_kept_and_is_judged(arguments, work, cohort, monkeypatch):
    monkeypatch.setitem(METRICS._items, "brier", Brier)
    assert main(arguments("brier", "--task.metric", "brier")) == 0
    out, found = work / "brier", results(work / "brier")
    cases = predictions(out)
    brier = brier_score_loss(cases["label_label"], cases["score_label"])
    assert found["main"]["name"] == "brier" and found["main"]["value"] == pytest.approx(brier, abs=1e-12)
    assert found["main"]["higher_is_better"] is False and recompute(out) == found
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    each = {row["step"]: row["validation_brier"] for row in rows if "validation_brier" in row}
    assert found["facts"]["training"]["0"]["best_step"] == min(each, key=each.get) and len(each) == 2
    monkeypatch.delitem(METRICS._items, "brier")
    with pytest.raises(InputError, match="'brier' is not one of auroc, ap"):
        recompute(out)


def test_every_table_has_the_path_and_the_same_patient(finished, cohort):
    wanted = pd.read_csv(cohort / "labels.csv", dtype=str).set_index("path")["patient"]
    for name in ("splits.csv", "predictions.csv", "leaks.csv"):
        table = pd.read_csv(finished / name, dtype=str)
        assert len(table) and (table["path"].map(wanted) == table["patient"]).all(), name
    assert list(pd.read_csv(finished / "rejected.csv")) == ["path", "reason", "patient"]


def test_the_encoder_and_the_config_can_be_used_again(finished, arguments, work):
    encoder = voco.load_encoder(finished / "encoder")
    assert encoder.input_spec.windows == ((-200.0, 400.0),) and encoder.provenance[-1]["method"] == "finetune table"
    assert yaml.safe_load((finished / "config.yaml").read_text())["input"]["size"] == [24, 32, 32]
    chained = ["--encoder.name", "cnn3d_s", "--encoder.weights", finished, "--mode", "knn", "--probe.neighbours", 3]
    assert main(arguments("chain", *chained)) == 0
    assert results(work / "chain")["facts"]["provenance"] == ["finetune table"]
    assert set(pd.read_csv(work / "chain" / "leaks.csv")["verdict"]) & {"seen"}, "it was trained on these scans"


def killed(arguments, module, name, call):
    kill_at(module, name, call)
    return main(arguments)


@pytest.mark.parametrize("module, name, call", [
    (finetune.training, "validate", 2),  # after the checkpoint of step 4, in the evaluation of step 6
    pytest.param(finetune.folds, "_keep", 1, marks=pytest.mark.slow),  # trained, not yet scored
    pytest.param(finetune.folds, "_save", 1, marks=pytest.mark.slow),  # scored, not yet saved
])  # fmt: skip
def test_killed_and_started_again_is_the_same_run(finished, arguments, work, module, name, call):
    out = f"killed{name}"
    assert in_processes(killed, arguments(out), module, name, call) == [-9]
    assert not (work / out / "model.json").exists() and not (work / out / "predictions.csv").exists()
    assert main(arguments(out)) == 0
    same = ["metrics.jsonl", "predictions.csv", "head.safetensors", "encoder/model.safetensors", "splits.csv"]
    for file in same:
        assert (work / out / file).read_bytes() == (finished / file).read_bytes(), file


@pytest.mark.slow
def test_the_first_loss_of_three_processes_is_that_of_one(arguments, work):
    """Through the whole stage; different numbers of windows are in ``test_cuts.py``."""
    view = ["--view", "tiles", "--input.spacing", 2, "--input.size", 32, "--train.batch_size", 6, "--train.steps", 2]
    losses = {}
    for world in (1, 3):
        for kind in ("all", "local", "frozen"):
            name = f"first-{world}-{kind}"
            assert in_processes(main, arguments(name, *view, "--train.batchnorm", kind), world=world) == [0] * world
            losses[world, kind] = json.loads((work / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert losses[3, "all"] == pytest.approx(losses[1, "all"], rel=1e-5)
    assert losses[3, "frozen"] == pytest.approx(losses[1, "frozen"], rel=1e-5)
    assert losses[1, "local"] == losses[1, "all"] != pytest.approx(losses[3, "local"], rel=1e-3)
    chunked = arguments("first-chunked", *view, "--input.chunk", 1)
    assert in_processes(main, chunked, world=3) == [0, 0, 0]
    assert json.loads((work / "first-chunked" / "run.json").read_text())["batch_statistics"]["windows_at_most"] == 3


def test_a_run_from_before_a_setting_existed_goes_on(finished, arguments, work):
    out = copy_of(finished, work, "older")
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["train"].pop("batchnorm") == "all"
    (out / "config.yaml").write_text(yaml.safe_dump(saved))
    assert main(arguments("older", "--train.batchnorm", "local")) == 0
    assert main(arguments("older")) == 2, "now it says which"


@pytest.mark.slow
def test_two_processes_killed_and_started_again_are_the_same_run(arguments, work):
    options = [
        "--train.freeze_steps",
        3,
        "--input.windows",
        2,
        "--view",
        "tiles",
        "--input.spacing",
        2,
        "--input.size",
        32,
    ]
    assert in_processes(main, arguments("pair", *options), world=2) == [0, 0]
    again = arguments("pair-killed", *options)
    assert in_processes(killed, again, finetune.training, "validate", 2, world=2) == [-9, -9]
    assert in_processes(main, again, world=2) == [0, 0]
    for file in ("metrics.jsonl", "predictions.csv", "head.safetensors", "encoder/model.safetensors"):
        assert (work / "pair-killed" / file).read_bytes() == (work / "pair" / file).read_bytes(), file


@pytest.mark.slow
def test_a_launched_run_is_that_of_this_process(finished, arguments, work):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "finetune.run"]
    subprocess.run([*launch, *arguments("launched")], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (work / "launched" / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()


def test_a_finished_run_is_not_trained_again(finished, arguments, work, monkeypatch):
    monkeypatch.setattr(finetune.training, "train_fold", None)
    monkeypatch.setattr(finetune.folds, "train_fold", None)
    out = copy_of(finished, work, "again")
    assert main(arguments("again")) == 0
    assert (out / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()


def test_the_test_set_is_opened_on_purpose_and_every_look_is_counted(finished, arguments, work, monkeypatch, capsys):
    monkeypatch.setattr(finetune.folds, "train_fold", None)  # scoring alone
    out = copy_of(finished, work, "opened")
    ledger = out / "test_ledger.jsonl"
    for looks, options in ((1, ()), (1, ()), (2, ("--tta",))):
        assert main(arguments("opened", "--eval", "test", *options)) == 0
        assert len(ledger.read_text().splitlines()) == looks
        found = results(out)
        assert found["looks_at_test"] == looks and found["split"] == "test"
        assert f"looks at this test set so far: {looks}" in capsys.readouterr().err
    entry = json.loads(ledger.read_text().splitlines()[0])
    assert entry["task"] == "table" and entry["time"] and entry["config_hash"] and entry["test_set"]
    assert "scores averaged over flips" in found["marks"]
    assert main(arguments("opened", "--eval", "test")) == 0  # the plain scores are still there
    cases, split = predictions(out), pd.read_csv(out / "splits.csv")
    tested = cases[cases["split"] == "test"]
    assert sorted(tested["case"]) == sorted(split[split["split"] == "test"]["case"])
    kept = cases[cases["split"] == "validation"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, predictions(finished))
    assert recompute(out) == results(out)


def test_other_settings_on_a_run_are_listed(finished, arguments, work, capsys):
    copy_of(finished, work, "other")
    assert main(arguments("other", "--train.lr", "0.01", "--seed", "4", "--data.workers", "1")) == 2
    said = capsys.readouterr().err
    assert "train.lr: 0.001 -> 0.01" in said and "seed: 0 -> 4" in said and "workers" not in said
    # a start that failed on a wrong setting leaves nothing that would hold the right one back
    assert main(arguments("fresh", "--train.balance", "--train.class_shares", '{"2": 1.0}')) == 2
    assert "names the classes 2" in capsys.readouterr().err
    assert main(arguments("fresh", "--mode", "knn")) == 0


def test_a_plan_says_what_a_run_would_be_and_writes_nothing(arguments, work, capsys):
    before = sorted(work.rglob("*"))
    tiles = ["--view", "tiles", "--input.size", 24, 16, 16, "--input.spacing", 3, 2, 2, "--input.windows", 2]
    assert main(arguments("planned", *tiles, "--plan")) == 0
    said = capsys.readouterr().err
    assert sorted(work.rglob("*")) == before
    # 20 slices of 3 mm, 36 x 40 pixels of 2 mm: one, three and three tiles
    assert "plan: 16 scans with labels" in said and "9 windows and 55,296 voxels per study" in said
    assert "pads 24 x 16 x 16 to 32 x 16 x 16, so that 25% of what it computes is air" in said
    # 6 steps of 4 studies, of which two tiles of 24 x 16 x 16 voxels are shown
    assert f"{6 * 4 * 2 * 24 * 16 * 16:.3g} voxels" in said and "6 steps of 4 studies" in said
    counts = {part: re.search(rf"fold 0 {part}: (\d+) scans \((\d+) x 0, (\d+) x 1\)", said) for part in SPLITS}
    assert sum(int(found[1]) for found in counts.values()) == 16 == sum(int(f[2]) + int(f[3]) for f in counts.values())


def test_data_that_changed_do_not_go_on_as_the_same_run(finished, arguments, work, cohort, capsys):
    """New rows part patients anew: some that the model was trained on would test."""
    out = copy_of(finished, work, "grown")
    rows = (cohort / "labels.csv").read_text().splitlines()
    more = cohort / "more.csv"
    write_scan(cohort / "s90.nii.gz", 90, True)
    more.write_text("\n".join([*rows, "s90.nii.gz,1,mrn-7900,a"]) + "\n")
    before = (out / "splits.csv").read_bytes()
    assert main(arguments("grown", "--data.root", more, "--eval", "test")) == 2
    assert "was started with other cases" in capsys.readouterr().err
    assert (out / "splits.csv").read_bytes() == before and not (out / "test_ledger.jsonl").exists()
    # the same cases with another label, parted as before
    first = rows[1].split(",")
    more.write_text("\n".join([rows[0], ",".join([first[0], str(1 - int(first[1])), *first[2:]]), *rows[2:]]) + "\n")
    given = ["--split.file", finished / "splits.csv"]
    assert main(arguments("relabeled", "--mode", "knn", "--probe.neighbours", 3, *given)) == 0
    assert main(arguments("relabeled", "--mode", "knn", "--probe.neighbours", 3, *given, "--data.root", more)) == 2
    assert "other studies or labels" in capsys.readouterr().err


def test_probes_use_features_that_are_computed_once(arguments, work, cohort, monkeypatch):
    cache = work / "features"
    computed = []
    plain = finetune.features.window_features
    monkeypatch.setattr(finetune.features, "window_features", lambda *a, **k: computed.append(1) or plain(*a, **k))
    linear = ["--mode", "linear", "--data.cache", cache]
    assert main(arguments("linear", *linear)) == 0
    first = len(computed)
    split = pd.read_csv(work / "linear" / "splits.csv")
    assert first == (split["split"] != "test").sum()
    facts = json.loads((work / "linear" / "model.json").read_text())
    chosen = facts["training"]["regularization"]["label"]
    assert chosen in [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0] and facts["mode"] == "linear"
    assert facts["training"]["chosen_among"] == 1, "validation chose nothing"
    assert main(arguments("knn", "--mode", "knn", "--data.cache", cache, "--probe.neighbours", 3)) == 0
    assert len(computed) == first, "another head on the same features"
    assert main(arguments("linear", *linear, "--eval", "test")) == 0
    assert len(computed) == len(split), "the features of the test scans, and no others"
    # the probability of k nearest neighbours, written out from the features on disk
    rows = predictions(work / "knn").set_index("case")
    folder = next((cache / "features").iterdir())
    places = {PreparedVolume.open(p).meta["case"]["id"]: p for p in cache.glob("*.b2nd")}
    vectors = {case: np.load(folder / f"{place.stem}.npy")[0].astype(np.float64) for case, place in places.items()}
    labels = pd.read_csv(cohort / "labels.csv").set_index("path")["label"]
    bank = list(split[split["split"] == "train"]["case"])
    for case, row in rows.iterrows():
        cosine = np.array([vectors[case] @ vectors[b] for b in bank])
        cosine /= np.linalg.norm(vectors[case]) * np.array([np.linalg.norm(vectors[b]) for b in bank])
        near = np.argsort(-cosine)[:3]
        weight = np.exp(cosine[near] / 0.07)
        vote = (weight * [labels[f"{bank[i]}.nii.gz"] for i in near]).sum() / weight.sum()
        assert row["score_label"] == pytest.approx(vote, abs=1e-4)


def test_jobs_of_an_array_and_their_collection_equal_one_run(arguments, work, capsys):
    folds = ["--folds", 2, "--mode", "linear", "--eval", "test"]
    assert main(arguments("serial", *folds)) == 0
    for fold in (1, 0):
        assert main(arguments("array", *folds, "--fold", fold)) == 0
        assert not (work / "array" / "results.json").exists()
    assert main(arguments("array", *folds)) == 0
    one, two = results(work / "serial"), results(work / "array")
    assert one["main"] == two["main"] and len(two["parts"]["test"]["folds"]) == 2
    # jobs of an array are one look, and the serial run had one at the same patients before
    assert one["looks_at_test"] == 1 and two["looks_at_test"] == 2
    for out in ("serial", "array"):
        assert len((work / out / "test_ledger.jsonl").read_text().splitlines()) == 2, "one of each fold"
    for name in ("predictions.csv", "splits.csv"):
        assert (work / "serial" / name).read_bytes() == (work / "array" / name).read_bytes()
    cases = predictions(work / "array")
    tested = cases[cases["split"] == "test"]
    assert len(tested) == tested["case"].nunique() == 16, "every case is tested once"
    assert main(arguments("array", *folds, "--fold", 2)) == 2
    assert main(arguments("single", "--fold", 0)) == 2
    assert "leave --fold out" in capsys.readouterr().err


def test_two_folds_are_trained_apart(arguments, work):
    short = ["--folds", 2, "--train.steps", 2, "--score.every", 2, "--augment.rotate", 0]
    assert main(arguments("folds", *short)) == 0
    weights = [torch.load for _ in ()] or [
        (work / "folds" / f"fold-{k}" / "head.safetensors").read_bytes() for k in (0, 1)
    ]
    assert weights[0] != weights[1] and not (work / "folds" / "model.json").exists()
    found = results(work / "folds")
    assert len(found["parts"]["validation"]["folds"]) == 2 and set(found["facts"]["training"]) == {"0", "1"}


def test_a_fraction_of_the_labels(arguments, work):
    probe = ["--mode", "knn", "--probe.neighbours", 2, "--eval", "test"]  # half may leave nobody to validate
    counts = {}
    for fraction, kind in ((1.0, "share"), (0.5, "share"), (0.5, "full")):
        out = f"part{fraction}{kind}"
        assert main(arguments(out, *probe, "--fraction", fraction, "--fraction_val", kind)) == 0
        split = pd.read_csv(work / out / "splits.csv")
        inside = split[split["in_fraction"] == 1]
        counts[fraction, kind] = {part: set(rows["patient"]) for part, rows in inside.groupby("split")}
    whole, half, full = counts.values()
    assert half["train"] < whole["train"] | whole["validation"] and full["train"] < whole["train"]
    assert full["validation"] == whole["validation"] and half["test"] == whole["test"]
    budget = len(half["train"] | half.get("validation", set()))
    assert budget == (len(whole["train"]) + len(whole["validation"])) // 2
    assert any("full validation set" in mark for mark in results(work / "part0.5full")["marks"])


def test_an_encoder_that_saw_a_test_scan_is_refused(finished, arguments, work, capsys):
    split = pd.read_csv(finished / "splits.csv").set_index("case")["split"]
    case = split[split == "test"].index[0]
    places = {PreparedVolume.open(p).meta["case"]["id"]: p for p in (work / "cache").glob("*.b2nd")}
    entry = PreparedEntry(Case(case, f"{case}.nii.gz", "somebody"), places[case], (1, 1, 1), (1, 1, 1))
    prints = Fingerprints.of_entries([entry]).to_bytes()
    torch.manual_seed(0)
    save_encoder(create_encoder("cnn3d_s"), work / "pretrained", {"method": "voco3d"}, fingerprints=prints)
    options = ["--encoder.weights", work / "pretrained", "--mode", "knn", "--probe.neighbours", 3]
    options += ["--split.file", finished / "splits.csv"]
    assert main(arguments("leak", *options)) == 0, "validation alone opens nothing"
    verdicts = pd.read_csv(work / "leak" / "leaks.csv").set_index("case")["verdict"]
    assert verdicts[verdicts == "seen"].index.tolist() == [case]
    before = _looks(finished)
    assert main(arguments("leak", *options, "--eval", "test")) == 2
    said = capsys.readouterr().err
    assert "were in the training of the encoder" in said and case in said and _looks(finished) == before
    assert not (work / "leak" / "scores" / "test").exists()
    assert main(arguments("leak", *options, "--eval", "test", "--allow_seen")) == 0
    assert any("allow_seen" in mark for mark in results(work / "leak")["marks"])
    assert _looks(finished) == before + 1, "the ledger lies beside the split that was given"


def _looks(folder):
    ledger = folder / "test_ledger.jsonl"
    return len(ledger.read_text().splitlines()) if ledger.exists() else 0
