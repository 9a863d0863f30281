"""2D-VoCo and videos through the same command, and one method started from what another one wrote."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

import voco
from pretrain.run import main
from tests.forks import forked

SMALL = """
data: {workers: 0, heldout: 0.34}
train: {steps: 3, batch_size: 2, lr: 1.0e-3, warmup: 1, save_every: 2, threads: 1}
eval: {every: 0, windows: 1, queries: 2}
log: {every: 1, with: []}
"""
CROPS = ("--data.spacing", "3", "--method.geometry.crop", "32", "--method.options.projector_dim", "32")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    (folder / "small.yaml").write_text(SMALL)
    (folder / "scans").mkdir()
    for seed in range(3):
        noise = sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=(36, 100, 100)).astype(np.float32))
        hu = sitk.GetArrayFromImage(sitk.DiscreteGaussian(noise, 6.0))
        image = sitk.GetImageFromArray(np.clip(hu / hu.std() * 300, -900, 900).astype(np.int16))
        image.SetSpacing((3.0, 3.0, 3.0))
        sitk.WriteImage(image, str(folder / "scans" / f"p{seed}.nii.gz"))
    return folder


def run(work, out, *options):
    arguments = ["--config", str(work / "small.yaml"), "--out", str(work / out), *options]
    done = forked(main, arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((work / out / "run.json").read_text())
    assert record["state"] == "finished"
    cost = record["cost"]
    assert cost["volumes_seen"] == 6
    assert cost["parameters_encoder"] > 1e5 and cost["flops_per_volume"] > 1e6 and cost["flops_rule"] == 2
    assert cost["peak_memory_bytes"] > 1e8 and cost["seconds_per_volume"] > 0
    return voco.load_encoder(work / out), done.stderr


@pytest.fixture(scope="module")
def clips(work):
    from voco.phantom.cohort import write_cohort

    pytest.importorskip("av")
    write_cohort(work / "clips", layout="video", cases=16, seed=0, workers=1, progress=False)
    return work / "clips"


def test_a_run_on_clips_ends_when_the_heldout_loss_does_and_exports_its_best(work, clips):
    """Nothing but the running statistics moves, so the loss wanders: three reports without a lower one come soon."""
    options = ["--config", str(work / "small.yaml"), "--out", str(work / "early"), "--method.name", "video"]
    options += ["--data.root", str(clips), "--encoder.name", "cnn3d_s", "--method.clip.frames", "16"]
    options += ["--method.clip.size", "32", "32", "--train.optimizer", "sgd", "--train.lr", "1e-9", "--train.momentum"]
    options += ["0", "--train.steps", "60", "--train.patience", "3", "--train.plateau", "1", "--eval.every", "1"]
    options += ["--train.lr_floor", "1", "--train.warmup", "0"]
    done = forked(main, options)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((work / "early" / "run.json").read_text())
    rows = [json.loads(line) for line in (work / "early" / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["heldout/loss"] for row in rows if "heldout/loss" in row and row["step"]}
    best, stale, expected = float("inf"), 0, None
    for step in sorted(losses):
        best, stale, expected = (losses[step], 0, step) if losses[step] < best else (best, stale + 1, expected)
    session = record["sessions"][-1]
    assert record["state"] == "finished" and session["last_step"] == max(losses) == expected + stale
    rates = [row["lr"] for row in rows if "lr" in row]
    assert rates[0] == 1e-9 and rates[-1] < 1.01e-10  # a plateau before the end
    assert stale == 3 and session["best_step"] == expected and session["stopped_early"]
    assert json.loads((work / "early" / "video.json").read_text())["step"] == expected
    assert voco.load_encoder(work / "early").provenance[0]["steps"] == expected
    again = forked(main, options)
    assert again.returncode == 0 and "is already finished" in again.stderr


@pytest.fixture(scope="module")
def video(work, clips):
    """A run on two synthetic actors: the encoder it wrote, what it said, and its command."""
    (clips / "moves_left").mkdir(exist_ok=True)
    (clips / "broken.mp4").write_bytes(b"no video")
    clip = ("--method.clip.frames", "16", "--method.clip.size", "32", "32", "--encoder.name", "cnn3d_s")
    options = ("--method.name", "video", "--data.root", str(work / "clips"), *clip)
    return *run(work, "video", *options), options


def test_a_run_on_clips_says_what_it_learned_and_hands_it_on(work, video):
    encoder, said, _ = video
    [first] = encoder.provenance
    assert first["method"] == "video" and len(first["classes"]) > 2 and first["cost"]["volumes_seen"] == 6
    assert "note: 1 held-out group is too few to say whether the run learns, at least 6 are needed" in said
    assert any(sentence.startswith("cannot be judged with 1 held-out group") for sentence in first["verdict"])
    assert first["verdict"] == json.loads((work / "video" / "video.json").read_text())["verdict"]
    lines = {f"{name} of features_top1_balanced" for name in ("constant", "step0", "untrained", "single_frame")}
    assert set(first["lines"]) == lines and "features_top1_balanced" in first["results"]
    for name in ("video.json", "figures/confusion.png", "figures/accuracy.png", "rejected.csv"):
        assert (work / "video" / name).is_file()


def test_a_resumed_run_on_clips_takes_up_what_version_0_1_left(work, video):
    folder = work / "video"
    rows, lines = (folder / "metrics.jsonl").read_bytes(), (folder / "video_lines.json").read_bytes()
    shutil.rmtree(folder / "checkpoints" / "step-00000003")
    old = {"single_frame": {"name": "single_frame", "classes": ["a"], "predicted": [0], "seed": 0}}
    (folder / "video_lines.json").write_text(json.dumps(old))
    _, said = run(work, "video", *video[2])
    assert "resumed step-00000002" in said
    assert (folder / "metrics.jsonl").read_bytes() == rows
    assert (folder / "video_lines.json").read_bytes() == lines


def test_video_then_voco3d_and_2d_voco(work, video):
    chained = ("--encoder.name", "cnn3d_s", "--encoder.weights", str(work / "video"))
    encoder, said = run(work, "voco3d", "--data.root", str(work / "scans"), *CROPS, *chained)
    assert [entry["method"] for entry in encoder.provenance] == ["video", "voco3d"]
    assert [entry["synthetic"] for entry in encoder.provenance] == [True, False]
    record = json.loads((work / "voco3d" / "run.json").read_text())
    assert record["load_report"]["coverage"] == 1.0
    assert "weights: model.safetensors -> cnn3d_s:" in said and "100.0% of the parameters" in said

    options = ("--method.name", "voco2d", "--encoder.name", "slices/resnet10t", "--method.options.slices", "4")
    encoder, said = run(work, "voco2d", "--data.root", str(work / "scans"), *CROPS, *options)
    assert encoder.name == "slices/resnet10t"
    assert encoder.provenance[0]["settings"]["options.slices"] == 4
    assert "histogram" in json.loads((work / "voco2d" / "health_lines.json").read_text())
    assert "did it learn?" in said
