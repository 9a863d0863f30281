from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.cheap import main
from benchmarks.cheap_lines import kernel_of, scan_numbers
from benchmarks.read.run import read_run
from tests.data.dicom_maker import positions, series
from tests.finetune.made import write_pe
from voco.data.cache import PreparedVolume
from voco.data.manifest import Case
from voco.data.read import read_volume
from voco.transfer.results import recompute


def line(name, work, cohort, out, *options):
    data = ["--data.root", str(cohort / "labels.csv"), "--out", str(work / out)]
    return main(["--line", name, "--config", str(work / "small.yaml"), *data, *map(str, options)])


def test_the_prior_is_a_run_folder_that_knows_nothing(work, cohort):
    assert line("prior", work, cohort, "prior", "--eval", "test") == 0
    run = read_run(work / "prior")
    assert run.cheap and run.source == "class prior" and run.split == "test" and run.looks == 1
    assert run.results["main"]["value"] == 0.5
    train = pd.read_csv(work / "prior" / "splits.csv").query("split == 'train'")["case"]
    labels = pd.read_csv(cohort / "labels.csv")
    share = labels[labels["path"].str.removesuffix(".nii.gz").isin(train)]["label"].mean()
    assert run.predictions["score_label"].to_numpy() == pytest.approx(share)
    assert json.loads(json.dumps(run.results)) == recompute(work / "prior")
    assert run.trained is None and run.leaks == "no encoder that could have seen them", "three patients judge"


def test_lines_score_everybody_once_where_there_are_folds(work, cohort):
    assert line("metadata", work, cohort, "folded", "--eval", "test", "--folds", 3) == 0
    run = read_run(work / "folded")
    rows = run.predictions.query("split == 'test'")
    assert sorted(rows["fold"].unique()) == [0, 1, 2] and not rows["case"].duplicated().any()
    assert len(rows) == len(pd.read_csv(cohort / "labels.csv")) and run.results["main"]["value"] > 0.9


def test_a_finished_line_is_left_alone_and_another_one_refused(work, cohort, capsys):
    before = (work / "prior" / "results.json").stat().st_mtime_ns
    assert line("prior", work, cohort, "prior", "--eval", "test") == 0
    assert (work / "prior" / "results.json").stat().st_mtime_ns == before
    assert line("metadata", work, cohort, "prior", "--eval", "test") == 2
    assert "holds prior, not the line metadata" in capsys.readouterr().err
    assert line("position", work, cohort, "place") == 2
    assert "needs labels of slices" in capsys.readouterr().err
    assert line("slices", work, cohort, "flat") == 2
    assert "slices/NAME" in capsys.readouterr().err


def test_metadata_sees_what_hu_give_away(work, cohort):
    """The bright block of positive scans moves the moments of HU."""
    assert line("metadata", work, cohort, "metadata", "--split.test", 0) == 0
    run = read_run(work / "metadata")
    assert roc_auc_score(run.units["label_label"], run.units["score_label"]) == 1.0
    path = next((work / "cache").glob("*.b2nd"))
    meta = PreparedVolume.open(path).meta
    numbers, volume = scan_numbers(path), read_volume(cohort / meta["case"]["path"])
    assert numbers[:4] == pytest.approx([20, *volume.spacing_mm])
    assert numbers[4:7] == pytest.approx(np.array(volume.array.shape) * volume.spacing_mm)
    assert numbers[7] == pytest.approx(volume.array[volume.array > -900].mean(), abs=15)  # resized since


def test_slices_along_three_axes_find_the_bright_block(work, cohort):
    options = ("--split.test", 0, "--encoder.name", "slices/resnet10t", "--input.size", 24, 32, 32)
    assert line("slices", work, cohort, "axes", *options, "--planes", 4, "--side", 32, "--projection", 5) == 0
    run = read_run(work / "axes")
    facts = run.facts["training"]["0"]
    assert facts["feature_width"] == 3 * 5 * 1 * 1 and run.source == "frozen 2D slices"
    maps = [np.load(path) for path in (work / "cache" / "features").glob("axes-*/*.npy")]
    assert len(maps) == len(run.predictions) + facts["units"] and {m.shape for m in maps} == {(3, 512, 1, 1)}
    assert roc_auc_score(run.units["label_label"], run.units["score_label"]) > 0.7


def test_place_along_z_scores_images_and_not_studies(tmp_path, work):
    write_pe(tmp_path / "pe")
    data = ["--data.root", str(tmp_path / "pe"), "--out", str(tmp_path / "place")]
    assert main(["--line", "position", "--config", str(work / "slices.yaml"), *data]) == 0
    run = read_run(tmp_path / "place")
    assert run.results["main"]["value"] == 0.5
    images = pd.read_parquet(tmp_path / "place" / "predictions_images.parquet")
    mine = images[images["label"].notna()]
    value = roc_auc_score(mine["label"], mine["score"])
    assert value > 0.8  # all made-up emboli lie at slices 4 to 8
    assert run.results["parts"]["validation"]["metrics"]["image_auroc"]["value"] == pytest.approx(value)


@pytest.mark.parametrize(("value", "wanted"), [("B30f", "B30f"), (["Br40d", "3"], "Br40d/3"), ("", "")])
def test_the_kernel_is_read_from_the_header(tmp_path, value, wanted):
    (path,) = series(tmp_path, np.zeros((1, 8, 8), np.int16), where=positions(1), ConvolutionKernel=value)
    case = Case("a", "a", "p", files=(path.name,))
    assert kernel_of(path.parent, case) == wanted
    assert kernel_of(tmp_path, Case("a", "a.nii.gz", "p")) == ""
