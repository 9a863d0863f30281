from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from pretrain.config import SCHEMA, check, check_same_data
from pretrain.pretraining import _freeze
from pretrain.sources import make_source, notes
from voco.config import parse
from voco.encoders import create_encoder
from voco.encoders.spec import InputSpec
from voco.errors import InputError

SPEC = InputSpec(spacing_mm=(1.5, 1.5, 1.5))


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
        (["--eval.cross", "1"], "eval.cross is a number of folds, at least 2, or 0 for none; found 1"),
        (["--eval.cross=-2"], "eval.cross .* found -2"),
        (["--eval.cross", "3", "--train.resume", "runs/other"], "no fold can go on from a checkpoint"),
        (["--eval.cross", "3", "--method.name", "video"], "eval.cross is for scans"),
        (["--train.steps", "10", "--train.schedule_steps", "9"], "ends before --train.steps 10"),
        (["--train.patience", "3"], "VoCo's loss does not say how good"),
    ],
)
def test_settings_that_cannot_work_are_named(tmp_path, options, words):
    config = settings(tmp_path, *options)
    with pytest.raises(InputError, match=words):
        check(config, world=1)


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


def source(config, cohort=None, spec=SPEC):
    made = make_source(config, SimpleNamespace(input_spec=spec))
    made.cohort = cohort
    return made


def said(config, cohort, world=1):
    return notes(source(config, cohort), world)


def cohort(train: int = 9, heldout: int = 8, shape=(200, 300, 300)):
    """Counts and shapes of so many patients with a scan each."""
    names = (f"p{number}" for number in range(train + heldout))
    one = lambda: [SimpleNamespace(case=SimpleNamespace(id=next(names)), shape=shape)]  # noqa: E731
    counts = {"train_scans": train, "train_patients": train, "heldout_scans": heldout, "heldout_patients": heldout}
    return SimpleNamespace(
        train=[one() for _ in range(train)], heldout=[one() for _ in range(heldout)], counts=counts, notes=()
    )


def test_notes_say_when_there_are_no_pairs_or_no_report(tmp_path):
    plain = settings(tmp_path)
    assert said(plain, cohort()) == []
    alone = settings(tmp_path, "--train.batch_size", "4", "--train.accumulate", "4")
    assert "one volume at a time" in said(alone, cohort())[0]
    local = settings(tmp_path, "--train.batch_size", "4", "--method.preset", "v2")
    assert said(local, cohort(), world=2) == [] and "one volume at a time" in said(local, cohort(), world=4)[0]
    assert "one patient" in said(plain, cohort(train=1))[0]
    assert "nothing will tell" in said(plain, cohort(heldout=0))[0]
    assert "one patient with 1 scan(s): nobody can be held out" in said(plain, cohort(train=1, heldout=0))[1]
    whole = settings(tmp_path, "--method.preset", "v1")
    assert "smaller than that: 100% of the voxels are made up" in said(whole, cohort(shape=(10, 20, 20)))[-1]
    assert "5 held-out patients are too few" in said(plain, cohort(heldout=5))[0]
    assert "--eval.cross 5" in said(plain, cohort(heldout=5))[0]
    assert "all 5 patients together are too few" in said(plain, cohort(train=3, heldout=2))[0]
    assert said(plain, cohort(heldout=6)) == []
    assert said(settings(tmp_path, "--method.preset", "v1", "--train.batch_size", "1"), cohort()) == []


def test_notes_say_what_folds_cost_and_when_they_are_no_help(tmp_path):
    config = settings(tmp_path, "--eval.cross", "5", "--train.steps", "300", "--train.milestones", "[]")
    [note] = said(config, cohort(train=9, heldout=0))
    assert "5 pretrainings of 300 steps" in note and "one on all 9 scans" in note and "0.1 is not used" in note
    assert "5 patients are too few to say whether the recipe learns" in said(config, cohort(train=5, heldout=0))[1]


def test_notes_name_scans_that_are_smaller_than_the_windows(tmp_path):
    [note] = said(settings(tmp_path), cohort(heldout=0, shape=(64, 96, 192)))[1:]
    # windows of 64 x 192 x 192: half of each lies outside
    assert note.startswith("50% of the voxels in windows of training scans") and "p0 50%" in note and "4 more" in note


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
    assert source(config)._spacing(SPEC) == prepared
    fed = source(config).as_fed(SPEC)
    assert fed.spacing_mm == spacing and fed.size == size
