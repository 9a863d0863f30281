from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pretrain.config import SCHEMA, check, check_same_data
from pretrain.volumes import VolumeJob
from voco.config import parse
from voco.encoders.spec import InputSpec
from voco.errors import InputError

SPEC = InputSpec(spacing_mm=(1.5, 1.5, 1.5))
COUNTS = {"train_patients": 20, "heldout_scans": 8, "heldout_patients": 8}


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
    ],
)
def test_settings_that_cannot_work_are_named(tmp_path, options, words):
    config = settings(tmp_path, *options)
    with pytest.raises(InputError, match=words):
        check(config, world=1)
        VolumeJob(config).check()


def test_processes_count_for_the_batch(tmp_path):
    config = settings(tmp_path, "--train.batch_size", "6", "--train.accumulate", "2")
    check(config, world=3)
    with pytest.raises(InputError, match="6 for 4 x 2"):
        check(config, world=4)


def cohort(shape=(60, 200, 200), **counts):
    """Scans of one shape, as far as notes look at them."""
    entry = SimpleNamespace(case=SimpleNamespace(id="thin"), shape=shape)
    return SimpleNamespace(counts=COUNTS | counts, train=[[entry]], heldout=[[entry]])


def test_notes_say_when_there_are_no_pairs_or_no_report(tmp_path):
    roomy = cohort((400, 400, 400))

    def notes(world, *options, **counts):
        return VolumeJob(settings(tmp_path, *options)).notes(world, cohort((400, 400, 400), **counts))

    assert VolumeJob(settings(tmp_path)).notes(1, roomy) == []
    assert "one volume at a time" in notes(1, "--train.batch_size", "4", "--train.accumulate", "4")[0]
    local = ("--train.batch_size", "4", "--method.preset", "v2")
    assert notes(2, *local) == [] and "one volume at a time" in notes(4, *local)[0]
    assert "one patient" in notes(1, train_patients=1)[0]
    assert "held-out" in notes(1, heldout_scans=0, heldout_patients=0)[0]
    assert "5 held-out patients are too few" in notes(1, heldout_patients=5)[0]
    assert notes(1, "--method.preset", "v1", "--train.batch_size", "1") == []


def test_notes_name_the_scans_that_are_smaller_than_the_window(tmp_path):
    config = settings(tmp_path, "--method.geometry.crop", "64")  # a window of 64 x 192 x 192 voxels
    train, heldout = VolumeJob(config).notes(1, cohort((32, 192, 400)))
    assert train.startswith("50% of the voxels in windows of training scans") and "thin 50%" in train
    assert "held-out scans" in heldout
    assert VolumeJob(config).notes(1, cohort((60, 192, 192))) == []
    whole = settings(tmp_path, "--method.preset", "v1", "--train.batch_size", "1")
    assert VolumeJob(whole).notes(1, cohort((32, 100, 100))) == []


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
