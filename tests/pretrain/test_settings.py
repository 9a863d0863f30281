from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from pretrain.config import SCHEMA, check, check_same_data
from pretrain.run import _freeze
from pretrain.volumes import VolumeJob
from voco.config import parse
from voco.encoders import create_encoder
from voco.encoders.spec import InputSpec
from voco.errors import InputError

SPEC = InputSpec(spacing_mm=(1.5, 1.5, 1.5))
COUNTS = {"train_patients": 5, "heldout_scans": 1}


def settings(tmp_path, *options):
    return parse(SCHEMA, ["--out", str(tmp_path / "x"), "--data.root", str(tmp_path), *options])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train.accumulate", "0"], "train.accumulate must be at least 1"),
        (["--train.keep", "0"], "train.keep"),
        (["--eval.windows", "0"], "eval.windows"),
        (["--data.workers", "-1"], "data.workers"),
        (["--data.heldout", "1"], "data.heldout"),
        (["--train.steps", "10", "--train.milestones", "5", "11"], r"\[11\] are never reached"),
        (["--train.batch_size", "8", "--train.accumulate", "3"], "multiple of processes"),
        (["--train.steps", "10", "--train.schedule_steps", "9"], "ends before --train.steps 10"),
        (["--train.patience", "3"], "VoCo's loss does not say how good"),
    ],
)
def test_settings_that_cannot_work_are_named(tmp_path, options, words):
    config = settings(tmp_path, *options)
    with pytest.raises(InputError, match=words):
        check(config, world=1)
        VolumeJob(config).check()


def test_early_stopping_of_clips_counts_reports(tmp_path):
    options = ("--method.name", "video", "--train.patience", "3")
    check(settings(tmp_path, *options), world=1)
    with pytest.raises(InputError, match=r"set --eval.every"):
        check(settings(tmp_path, *options, "--eval.every", "0"), world=1)


def test_frozen_parts_keep_weights_that_were_learned():
    with torch.device("meta"):
        encoder, convolutions = create_encoder("viptt"), create_encoder("cnn3d_s")
    with pytest.raises(InputError, match=r"would keep random weights: give --encoder.weights"):
        _freeze(encoder, ["slices"])
    encoder.load_report = convolutions.load_report = object()  # as after loading weights
    with pytest.raises(InputError, match=r"freeze slice: no parameter begins so; parts are .*slices"):
        _freeze(encoder, ["slice"])
    _freeze(encoder, ["slices"])
    learns = {name.partition(".")[0] for name, p in encoder.named_parameters() if p.requires_grad}
    assert learns == {"stem", "lstm", "dense"}
    # as published, without the layer of ten classes
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == 1_060_880 - 10_250
    first = next(name for name, _ in convolutions.named_children())
    with pytest.raises(InputError, match="has BatchNorms"):
        _freeze(convolutions, [first])


def test_processes_count_for_the_batch(tmp_path):
    config = settings(tmp_path, "--train.batch_size", "6", "--train.accumulate", "2")
    check(config, world=3)
    with pytest.raises(InputError, match="6 for 4 x 2"):
        check(config, world=4)


def test_notes_say_when_there_are_no_pairs_or_no_report(tmp_path):
    assert VolumeJob(settings(tmp_path)).notes(1, COUNTS) == []
    alone = settings(tmp_path, "--train.batch_size", "4", "--train.accumulate", "4")
    assert "one volume at a time" in VolumeJob(alone).notes(1, COUNTS)[0]
    local = settings(tmp_path, "--train.batch_size", "4", "--method.preset", "v2")
    assert VolumeJob(local).notes(2, COUNTS) == [] and "one volume at a time" in VolumeJob(local).notes(4, COUNTS)[0]
    assert "one patient" in VolumeJob(settings(tmp_path)).notes(1, COUNTS | {"train_patients": 1})[0]
    assert "held-out" in VolumeJob(settings(tmp_path)).notes(1, COUNTS | {"heldout_scans": 0})[0]
    assert VolumeJob(settings(tmp_path, "--method.preset", "v1", "--train.batch_size", "1")).notes(1, COUNTS) == []


def test_a_continued_run_must_see_the_same_scans(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    (tmp_path / "run.json").write_text(json.dumps({"data_fingerprint": "aa", "data": {"train_scans": 3}}))
    check_same_data(checkpoint, SimpleNamespace(fingerprint="aa", counts={}))
    with pytest.raises(InputError, match=r"other scans: .*3.* then, .*4.* now"):
        check_same_data(checkpoint, SimpleNamespace(fingerprint="bb", counts={"train_scans": 4}))


@pytest.mark.parametrize(
    ("options", "prepared", "spacing", "size"),
    [
        ([], [1.5, 1.5, 1.5], (1.5, 1.5, 1.5), (64, 64, 64)),
        (["--data.spacing", "5", "1.25", "1.25"], [5, 1.25, 1.25], (5, 1.25, 1.25), (64, 64, 64)),
        (["--data.spacing", "native", "1", "1"], ["native", 1, 1], None, (64, 64, 64)),
        # crops of 96 voxels that the network gets as 64: its voxels are half as large again
        (
            ["--data.spacing", "2", "--method.geometry.crop", "96", "--method.geometry.network_size", "64"],
            [2],
            (3.0, 3.0, 3.0),
            (64, 64, 64),
        ),
        (["--method.preset", "v1"], ["native"], None, (64, 64, 64)),
    ],
)
def test_the_export_states_the_voxels_that_the_network_saw(tmp_path, options, prepared, spacing, size):
    config = settings(tmp_path, *options)
    assert VolumeJob(config)._spacing(SPEC) == prepared
    fed = VolumeJob(config).as_fed(SPEC)
    assert fed.spacing_mm == spacing and fed.size == size
