from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import voco
from pretrain.run import main
from tests.forks import forked
from voco.engine.checkpoint import list_checkpoints

SMALL = """
encoder: {name: cnn3d_s}
data: {spacing: [3, 3, 3], heldout: 0.34, workers: 1, crop_body: false}
method: {geometry: {crop: 16}, options: {projector_dim: 64}}
train: {steps: 6, batch_size: 4, lr: 1.0e-3, warmup: 2, save_every: 2, milestones: [3], threads: 1}
eval: {every: 3, windows: 1, queries: 4}
log: {every: 1}
"""


def write_scan(path, seed: int, size=(40, 60, 60)) -> None:
    """A smooth random body in air: different everywhere, so that positions can be told apart."""
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.normal(size=size).astype(np.float32))
    smooth = sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, 6.0))
    hu = np.clip(smooth / smooth.std() * 300, -900, 900).astype(np.int16)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((3.0, 3.0, 3.0))
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    for seed in range(6):
        write_scan(root / f"p{seed}.nii.gz", seed)
    (root / "broken.nii.gz").write_bytes(b"not a scan")
    return root


@pytest.fixture(scope="module")
def work(tmp_path_factory, scans):
    folder = tmp_path_factory.mktemp("work")
    (folder / "small.yaml").write_text(SMALL)
    return folder


def command(work, scans, out, *options):
    return ["--config", str(work / "small.yaml"), "--data.root", str(scans), "--out", str(work / out), *options]


def run(arguments, launcher=None, check=True):
    """The command, in a copy of this process or, with a launcher, as a user starts it."""
    if launcher is None:
        done = forked(main, arguments)
    else:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, *launcher, *arguments], capture_output=True, text=True, timeout=240, env=environment
        )
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(work, scans):
    done = run(command(work, scans, "whole"))
    return work / "whole", done


def test_a_run_leaves_what_it_promises(finished, scans):
    out, done = finished
    record = json.loads((out / "run.json").read_text())
    assert record["state"] == "finished" and record["data"]["train_scans"] == 4
    assert record["data"]["rejected_scans"] == 1 and record["sessions"][0]["versions"]["torch"]
    assert record["batch_statistics"] == {
        "norm_scope": "global", "layers": 12, "processes": 1, "samples": 4, "projector_norm": "batch",
        "volumes_paired": 4,
    }  # fmt: skip
    for name in ("config.yaml", "metrics.jsonl", "timings.jsonl", "health.json", "health_lines.json"):
        assert (out / name).is_file(), name
    assert list(out.glob("events.out.tfevents*")) and not [p for p in out.iterdir() if p.name.isdigit()]
    for name in ("loss.png", "positions.png", "similarity.png", "crops.png"):
        assert (out / "figures" / name).stat().st_size > 5000, name
    rows = list(csv.DictReader((out / "rejected.csv").open()))
    assert [r["path"] for r in rows] == ["broken.nii.gz"] and rows[0]["reason"]
    assert "load with" in done.stderr and "did it learn?" in done.stderr
    assert [p.name for p in list_checkpoints(out / "checkpoints")] == ["step-00000004", "step-00000006"]
    text = "".join(p.read_text() for p in [out / "run.json", out / "rejected.csv", out / "metrics.jsonl"])
    assert str(scans) not in text, "paths in a run folder are relative to the data root"


def test_a_run_can_be_extended(work, scans):
    """Two steps of a cosine laid out for three, extended to three: every number of the run that took three at once."""

    def start(out, *options):
        plain = ("--data.heldout", "0", "--data.workers", "0", "--train.milestones", "[]", "--log.with", "[]")
        return run(command(work, scans, out, *plain, *options))

    longer = ("longer", "--train.steps", "3", "--train.extend", str(work / "short"))
    start("at_once", "--train.steps", "3")
    start("short", "--train.steps", "2", "--train.schedule_steps", "3")
    done = start(*longer)
    note = "extended from step 2 of short (train.schedule_steps: 3 -> 0; train.steps: 2 -> 3)"
    assert "resumed step-00000002" in done.stderr and note in done.stderr
    assert "not the result of one run" in done.stderr
    assert metrics(work / "longer") == metrics(work / "at_once")
    weights = [(work / name / "encoder/model.safetensors").read_bytes() for name in ("longer", "at_once", "short")]
    assert weights[0] == weights[1] != weights[2]
    record = json.loads((work / "longer/run.json").read_text())["extended"]
    assert record["runs"][0]["run"] == "short" and record["runs"][0]["step"] == 2 and note in record["note"]
    assert voco.load_encoder(work / "longer/encoder").provenance[-1]["extended"] == record["note"]
    assert record["note"] in (work / "longer/encoder/README.md").read_text()
    assert "already finished" in start(*longer).stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train.steps", "6"], "step-00000006 has 6 steps already and --train.steps is 6.*give more than 6"),
        (["--train.steps", "9", "--train.weight_decay", "0.5"], "train.weight_decay: 0.01 -> 0.5.*--encoder.weights"),
        (["--train.steps", "9", "--train.batch_size", "2"], "train.batch_size: 4 -> 2"),
        (["--train.steps", "9", "--data.heldout", "0.2"], "data.heldout: 0.34 -> 0.2"),
        (["--train.steps", "9", "--train.resume", "never"], "leave --train.resume never out"),
        (["--train.steps", "9", "--eval.cross", "2"], "the folds judged a recipe of fewer steps"),
    ],
)
def test_what_cannot_be_extended(work, scans, finished, options, words):
    done = run(command(work, scans, "bad", "--train.extend", str(finished[0]), *options), check=False)
    assert done.returncode == 2 and re.search(words, done.stderr, re.DOTALL), done.stderr
    assert not (work / "bad/run.json").exists()


def test_an_extension_needs_a_run_and_a_folder_of_its_own(work, scans, finished, tmp_path):
    done = run(command(work, scans, "whole", "--train.extend", str(finished[0]), "--train.steps", "9"), check=False)
    assert done.returncode == 2 and "is --out itself" in done.stderr
    done = run(command(work, scans, "bad", "--train.extend", str(tmp_path)), check=False)
    assert done.returncode == 2 and "no checkpoint there" in done.stderr


def test_the_encoder_loads_in_one_line_and_tells_scans_apart(finished, scans):
    encoder = voco.load_encoder(finished[0] / "encoder")
    hu = [torch.from_numpy(voco.read_volume(scans / f"p{i}.nii.gz").array)[None, None] for i in range(2)]
    with torch.no_grad():
        features = torch.cat([encoder(x) for x in hu])
    assert features.shape == (2, encoder.num_features) and torch.isfinite(features).all()
    assert (features[0] - features[1]).abs().max() > 1e-3
    assert encoder.provenance[-1]["synthetic"] is False  # no list of phantoms beside the scans
    assert encoder.provenance[-1]["volumes_seen"] == 24 and encoder.input_spec.spacing_mm == (3.0, 3.0, 3.0)
    early = voco.load_encoder(finished[0] / "milestones" / "step-00000003")
    assert early.provenance[-1]["steps"] == 3
    with torch.no_grad():
        assert not torch.equal(early(hu[0]), features[:1])


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain.run", *arguments],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def wait_for_rows(process, folder, key):
    end = time.time() + 120
    while not ((folder / "metrics.jsonl").exists() and any(key in r for r in metrics(folder))):
        assert time.time() < end and process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)


def test_killed_then_stopped_then_restarted_gives_the_same_file(finished, work, scans):
    arguments, rows = command(work, scans, "stopped"), work / "stopped" / "metrics.jsonl"
    process = start(arguments)
    wait_for_rows(process, rows.parent, "heldout/intra")
    process.kill()  # before its first checkpoint: the next start begins again, and leaves no row twice
    process.wait()
    process = start(arguments)
    wait_for_rows(process, rows.parent, "loss")
    assert "in use by another run" in run(arguments, check=False).stderr
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    stopped_at = json.loads((work / "stopped" / "run.json").read_text())["sessions"][1]["last_step"]
    assert 1 <= stopped_at <= 6
    if stopped_at < 6:
        assert b"stopped by SIGTERM" in err
        assert "resumed step-" in run(arguments).stderr
    assert rows.read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_give_the_curve_of_one(work, scans, accumulate):
    # a low rate, because Adam turns rounding in gradients near zero into steps of full size
    options = ["--train.accumulate", str(accumulate), "--train.batch_size", str(4 * accumulate), "--train.lr", "1e-4"]
    options += ["--train.steps", "3", "--eval.every", "0"]
    run(command(work, scans, f"one{accumulate}", *options))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")  # finds a free port
    run(command(work, scans, f"two{accumulate}", *options), launcher=(*launcher, "-m", "pretrain.run"))
    one, two = metrics(work / f"one{accumulate}"), metrics(work / f"two{accumulate}")
    assert [r["step"] for r in one] == [r["step"] for r in two]
    # exact equality, in float64, is tested with the method; here float32 rounding of whole runs
    for a, b in zip(one, two):
        for key in ("loss", "intra", "inter", "reg"):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-4), (a["step"], key)


def test_changed_settings_are_listed_instead_of_resumed(finished, work, scans):
    done = run(command(work, scans, "whole", "--train.lr", "0.5"), check=False)
    assert done.returncode == 2 and "train.lr: 0.001 -> 0.5" in done.stderr and "Traceback" not in done.stderr


def test_a_finished_run_is_left_as_it_is(finished, work, scans):
    before = (finished[0] / "metrics.jsonl").read_bytes()
    done = run(command(work, scans, "whole"))
    assert (finished[0] / "metrics.jsonl").read_bytes() == before
    assert "already finished" in done.stderr


def test_continuing_from_an_encoder_keeps_its_input_and_history(finished, work, scans):
    weights = str(finished[0])
    run(command(work, scans, "next", "--encoder.weights", weights, "--train.steps", "1", "--train.milestones", "1"))
    encoder = voco.load_encoder(work / "next")
    assert len(encoder.provenance) == 2
    report = json.loads((work / "next" / "run.json").read_text())["load_report"]
    assert report["coverage"] == 1.0


def test_plan_trains_nothing(work, scans):
    done = run(command(work, scans, "planned", "--plan", "--train.batch_size", "4", "--train.accumulate", "2"))
    assert "volumes per hour" in done.stderr and "largest batch" in done.stderr
    assert "model size: 0.505 M parameters for" in done.stderr and "second-hand" in done.stderr
    said = re.search(r"a budget of ([\d,]+) volumes.* the budget is (\S+) % of that of its runs", done.stderr)
    assert float(said[2]) == pytest.approx(int(said[1].replace(",", "")) / 320_000, rel=0.1)
    assert not (work / "planned").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.root", "nowhere"], "does not exist"),
        (["--train.batch_size", "3", "--train.accumulate", "2"], "multiple of processes"),
        (["--encoder.name", "swim_b"], "did you mean"),
        (["--data.max_rejected", "0.1"], "broken.nii.gz"),
        (["--train.precision", "fp16"], "needs a GPU"),
        (["--log.with", "wandbb"], "no such tracker"),
        (["--method.geometry.crop", "8"], "at least (16, 16, 16)"),
    ],
)
def test_bad_settings_stop_with_one_sentence(work, scans, options, words):
    done = run(command(work, scans, "bad", *options), check=False)
    assert done.returncode == 2, done.stderr[-2000:]
    assert words in done.stderr and "Traceback" not in done.stderr
