"""Tuberculosis type: metrics against scikit-learn, masks, submission file."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from voco.data.layouts.labeled import LabeledCase
from voco.data.manifest import Case
from voco.errors import InputError
from voco.tasks import create_task

TASK = create_task("imageclef_tb")


def predictions(labels, scores, names=None):
    frame = pd.DataFrame(np.asarray(scores, float), columns=TASK.score_columns)
    ids = names or [f"TRN_{i + 1:04d}" for i in range(len(frame))]
    frame.insert(0, "label_tb_type", np.asarray(labels, float))
    for name, value in (("split", "test"), ("fold", 0), ("unit", ids), ("patient", ids), ("case", ids)):
        frame.insert(0, name, value)
    return frame


@pytest.mark.parametrize("seed", range(3))
def test_metrics_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 5, 50), rng.dirichlet(np.ones(5), 50)
    units = TASK.to_units(predictions(labels, scores))
    got = TASK.measure(units).values
    predicted = scores.argmax(1)
    assert got["kappa"] == pytest.approx(sk.cohen_kappa_score(labels, predicted), abs=1e-9)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-9)
    recall = sk.recall_score(labels, predicted, average=None, labels=range(5), zero_division=np.nan)
    for name, value in zip(("infiltrative", "focal", "tuberculoma", "miliary", "fibro_cavernous"), recall):
        assert got[f"recall_{name}"] == pytest.approx(value, abs=1e-9)
    assert TASK.main_value(units) == got["kappa"]


def test_missing_classes_and_no_labels():
    got = TASK.measure(TASK.to_units(predictions([0, 0, 3], np.eye(5)[[0, 1, 3]])))
    assert got.values["recall_focal"] is None and got.reasons["recall_focal"] == "no scan of this type"
    assert got.values["balanced_accuracy"] == 0.75
    assert got.values["kappa"] == pytest.approx(sk.cohen_kappa_score([0, 0, 3], [0, 1, 3]), abs=1e-9)
    got = TASK.measure(TASK.to_units(predictions([np.nan], [[1, 0, 0, 0, 0]])))
    assert got.values["kappa"] is None and got.reasons["kappa"] == "no scan with a known type"
    got = TASK.measure(TASK.to_units(predictions([2, 2], np.eye(5)[[2, 2]])))
    assert got.values["kappa"] is None and "one type" in got.reasons["kappa"]
    assert got.values["accuracy"] == 1


def test_targets():
    case = LabeledCase(Case("TRN_0001", "TRN_0001.nii.gz", "p"), {"TypeOfTB": 5.0})
    assert TASK.targets(case) == {"tb_type": 4.0} and TASK.stratum(case) == "fibro_cavernous"
    assert np.isnan(TASK.targets(LabeledCase(case.case))["tb_type"])


def test_masks(tmp_path):
    for name in ("TRN_0001.nii.gz", "TRN_0002.nii.gz", "TST_0001.nii.gz", "masks1/TRN_0001.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "x_TrainSet_metaData.csv").write_text("FileName,TypeOfTB\nTRN_0001.nii.gz,1\nTRN_0002.nii.gz,2\n")
    assert [case.case.mask for case in TASK.read(tmp_path).cases] == [None, None]
    found = create_task("imageclef_tb", masks="masks1").read(tmp_path)
    assert [case.case.mask for case in found.cases] == ["masks1/TRN_0001.nii.gz", None]
    assert "1 scans without masks1 are used whole (first: TRN_0002)" in found.notes
    with pytest.raises(InputError, match=r"task.masks is masks2, and .* holds no file of it"):
        create_task("imageclef_tb", masks="masks2").read(tmp_path)
    assert [case.id for case in TASK.read_unlabeled(tmp_path).cases] == ["TST_0001"]


def test_submission(tmp_path):
    scores = [[0.1, 0.6, 0.3, 0, 0], [0, 0, 0, 0.1, 0.9], [0, 0.2, 0.8, 0, 0]]
    rows = predictions([np.nan] * 3, scores, ["TST_0002", "TST_0001", "TST_0002"])
    path = TASK.write_submission(tmp_path / "run.txt", rows)
    # the two rows of TST_0002 are averaged: (0.05, 0.4, 0.55)
    assert path.read_text() == "TST_0001.nii.gz,5\nTST_0002.nii.gz,3\n"
    with pytest.raises(InputError, match=r"found 1 others .first: TRN_0001"):
        TASK.write_submission(path, predictions([0], [scores[0]]))
    with pytest.raises(InputError, match="needs the columns score_tb_type_focal"):
        TASK.write_submission(path, rows.drop(columns="score_tb_type_focal"))
    rows.loc[0, "score_tb_type_focal"] = np.inf
    with pytest.raises(InputError, match="finite score"):
        TASK.write_submission(path, rows)
    assert "repeated cross-validation" in TASK.evaluation and "never published" in TASK.evaluation
