"""Folds and the encoder on all scans in one command: what is left behind, stops, several processes, bad settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import voco
from pretrain.run import main
from tests.forks import forked
from tests.pretrain.test_run import write_scan
from voco.data.fingerprint import Fingerprints
from voco.engine.log import read_rows
from voco.health import HealthReport
from voco.health.monitor import NETWORKS

# a low rate, because Adam turns rounding in gradients near zero into steps of full size, which two processes differ in
SMALL = """
encoder: {name: cnn3d_s}
data: {spacing: [3, 3, 3], heldout: 0.34, workers: 0, crop_body: false}
method: {geometry: {crop: 16}, options: {projector_dim: 32}}
train: {steps: 3, batch_size: 2, lr: 1.0e-4, warmup: 1, save_every: 1, milestones: [2], threads: 1}
eval: {every: 0, windows: 1, queries: 4, cross: 3}
log: {every: 1, with: []}
"""
PATIENTS = 7
FILES = ("metrics.jsonl", "health.json", "health_lines.json", "encoder/model.safetensors", "fingerprints.npz")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cross")
    (folder / "small.yaml").write_text(SMALL)
    for seed in range(PATIENTS):
        (folder / "scans" / f"p{seed}").mkdir(parents=True)
        write_scan(folder / "scans" / f"p{seed}" / "first.nii.gz", seed, size=(36, 54, 54))
    write_scan(folder / "scans" / "p0" / "second.nii.gz", 100, size=(36, 54, 54))
    return folder


def command(work, out, *options) -> list[str]:
    data = str(work / "scans")
    return ["--config", str(work / "small.yaml"), "--data.root", data, "--out", str(work / out), *options]


def environment() -> dict:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def folds_of(out: Path) -> list[Path]:
    return sorted((out / "folds").iterdir())


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def fingerprints(run: Path) -> Fingerprints:
    return Fingerprints.from_bytes((run / "fingerprints.npz").read_bytes())


@pytest.fixture(scope="module")
def crossed(work):
    done = forked(main, command(work, "whole"))
    assert done.returncode == 0, done.stderr[-3000:]
    return work / "whole", done.stderr


def test_every_patient_is_judged_once_by_a_network_that_did_not_see_it(crossed):
    out, _ = crossed
    assert [fold.name for fold in folds_of(out)] == ["fold-1", "fold-2", "fold-3"]
    seen = [fingerprints(fold) for fold in folds_of(out)]
    held = [{bytes(v) for v in found.voxels[~found.trained]} for found in seen]
    trained = [{bytes(v) for v in found.voxels[found.trained]} for found in seen]
    assert all(not a & b for a, b in zip(held, trained))
    assert sum(map(len, held)) == len(set.union(*held)) == PATIENTS + 1
    assert all(len(a | b) == PATIENTS + 1 for a, b in zip(held, trained))
    counts = [read(fold / "run.json")["data"] for fold in folds_of(out)]
    assert sorted(c["heldout_patients"] for c in counts) == [2, 2, 3]
    assert all(c["heldout_patients"] + c["train_patients"] == PATIENTS for c in counts)
    final = fingerprints(out)
    assert final.trained.all() and len(final) == PATIENTS + 1


def test_the_verdict_is_pooled_over_patients_and_says_what_it_concerns(crossed):
    out, said = crossed
    health = read(out / "health.json")
    assert health["concerns"] == "recipe" and health["folds"] == 3 and health["step"] == 3
    first = (
        "note: this verdict concerns the recipe: 3 pretrainings, each judged on the patients that it did not see; the "
        "encoder of this run was trained on all scans and was not judged itself."
    )
    assert health["verdict"][0] == first and f"did it learn?\n  {first}" in said
    score = "encoder_position_accuracy_balanced"
    own = [HealthReport.from_dict(read(fold / "health.json")["report"]).tallies[score] for fold in folds_of(out)]
    hits, weight = (sum(getattr(tally, name).sum(0) for tally in own) for name in ("hits", "weight"))
    judged = {one["score"]: one for one in health["judged"]}[score]
    assert judged["clusters"] == PATIENTS
    assert judged["value"] == pytest.approx(np.mean(hits[weight > 0] / weight[weight > 0]))
    pooled = HealthReport.from_dict(health["report"])
    lines = {name: HealthReport.from_dict(line) for name, line in read(out / "health_lines.json").items()}
    assert pooled.scans == PATIENTS + 1 and len(lines["untrained"].networks) == NETWORKS
    for line in lines.values():  # the same questions to the same patients
        assert np.array_equal(line.tally(score).weight, pooled.tally(score).weight)
    for name in ("loss.png", "summary.png"):
        assert (out / "figures" / name).stat().st_size > 5000


def test_the_encoder_is_of_all_scans_and_carries_the_verdict(crossed):
    out, _ = crossed
    history = voco.load_encoder(out).provenance[-1]
    assert history["patients"] == PATIENTS and history["concerns"] == "recipe"
    assert history["verdict"] == read(out / "health.json")["verdict"]
    assert history["results"]["encoder_position_accuracy_balanced"] == pytest.approx(
        HealthReport.from_dict(read(out / "health.json")["report"]).score("encoder_position_accuracy_balanced")
    )
    assert (out / "milestones" / "step-00000002" / "encoder").is_dir()
    fold = voco.load_encoder(folds_of(out)[0])
    assert fold.provenance[-1]["fold"] == "1 of 3" and fold.provenance[-1]["patients"] < PATIENTS
    assert not (folds_of(out)[0] / "milestones").exists()
    assert read(out / "run.json")["cross"] == {"folds": 3, "done": 3} and read(out / "run.json")["state"] == "finished"


def test_without_folds_the_encoder_on_all_scans_is_the_same(crossed, work):
    done = forked(main, command(work, "plain", "--eval.cross", "0", "--data.heldout", "0"))
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("metrics.jsonl", "encoder/model.safetensors", "fingerprints.npz"):
        assert (work / "plain" / name).read_bytes() == (crossed[0] / name).read_bytes(), name
    assert not (work / "plain" / "folds").exists() and not (work / "plain" / "health.json").exists()


def test_stopped_in_a_fold_then_killed_then_started_again_gives_the_same_files(crossed, work):
    arguments, out = command(work, "stopped"), work / "stopped"
    whole = crossed[0]
    stop_at(arguments, out / "folds" / "fold-2" / "metrics.jsonl", signal.SIGTERM)
    record = read(out / "run.json")
    assert record["state"] == "stopped" and record["cross"] == {"folds": 3, "done": 1}
    assert not (out / "health.json").exists() and not (out / "checkpoints").exists()
    stop_at(arguments, out / "folds" / "fold-3" / "metrics.jsonl", signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in (out / "folds" / "fold-1").rglob("*")}
    done = forked(main, arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fold 1 of 3 is done already" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (out / "folds" / "fold-1").rglob("*")}
    for left, right in zip([out, *folds_of(out)], [whole, *folds_of(whole)], strict=True):
        for name in FILES:
            assert (left / name).read_bytes() == (right / name).read_bytes(), (left.name, name)


def stop_at(arguments, rows: Path, number: signal.Signals) -> None:
    """Start the command and send it a signal as soon as a file has a row with a loss."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pretrain.run", *arguments], stderr=subprocess.PIPE, env=environment()
    )
    end = time.time() + 200
    while not (rows.exists() and '"loss"' in rows.read_text()):
        assert time.time() < end and process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=100)
    assert process.returncode == (0 if number == signal.SIGTERM else -signal.SIGKILL), said.decode()


def test_other_folds_or_patients_are_not_mixed_with_those_that_began(crossed, work):
    before = (crossed[0] / "health.json").read_bytes()
    done = forked(main, command(work, "whole", "--eval.cross", "4"))
    assert done.returncode == 2 and "eval.cross: 3 -> 4" in done.stderr
    half = work / "half"
    (half / "folds").mkdir(parents=True)
    for name in ("config.yaml", "folds/fold-1"):
        os.symlink(crossed[0] / name, half / name)
    done = forked(main, command(work, "half", "--eval.cross", "0"))
    assert done.returncode == 2 and "eval.cross: 3 -> 0" in done.stderr
    (work / "leave_out.txt").write_text("p3\n")
    done = forked(main, command(work, "half", "--data.exclude", str(work / "leave_out.txt")))
    assert done.returncode == 2 and "data.exclude" in done.stderr
    done = forked(main, ["--config", str(folds_of(crossed[0])[1] / "config.yaml")])
    assert done.returncode == 2 and "is fold 2 of 3 of the run in" in done.stderr
    assert (crossed[0] / "health.json").read_bytes() == before


def test_finished_is_finished(crossed, work):
    done = forked(main, command(work, "whole"))
    assert done.returncode == 0 and "already finished" in done.stderr


def test_more_folds_than_patients(work):
    done = forked(main, command(work, "many", "--eval.cross", "8"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "8 folds of 7 patients cannot be dealt" in done.stderr


def test_the_plan_counts_every_pretraining(work):
    done = forked(main, command(work, "planned", "--plan"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 such pretrainings" in done.stderr and "3 pretrainings of 3 steps" in done.stderr
    assert not (work / "planned").exists()


def test_two_processes_give_the_folds_of_one(crossed, work):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "pretrain.run")
    done = subprocess.run(
        [sys.executable, *launcher, *command(work, "two")],
        capture_output=True, text=True, timeout=480, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = crossed[0], work / "two"
    for left, right in zip([one, *folds_of(one)], [two, *folds_of(two)], strict=True):
        for a, b in zip(read_rows(left / "metrics.jsonl"), read_rows(right / "metrics.jsonl"), strict=True):
            assert a.keys() == b.keys()
            for key in {"loss", "intra", "inter", "heldout/intra"} & a.keys():
                assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-4), (left.name, a["step"], key)
    pooled = [HealthReport.from_dict(read(run / "health.json")["report"]) for run in (one, two)]
    assert pooled[0].score("intra") == pytest.approx(pooled[1].score("intra"), rel=1e-4)
    assert read(one / "health.json")["verdict"][0] == read(two / "health.json")["verdict"][0]


@pytest.mark.slow
def test_slices_have_folds_as_well(work):
    options = ["--method.name", "voco2d", "--encoder.name", "slices/resnet10t", "--method.options.slices", "4"]
    options += ["--method.geometry.crop", "32", "--train.steps", "1", "--train.milestones", "[]", "--eval.cross", "2"]
    done = forked(main, command(work, "slices", *options))
    assert done.returncode == 0, done.stderr[-3000:]
    assert read(work / "slices" / "health.json")["concerns"] == "recipe"
