"""Task lidc: labels of windows and studies, metrics."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.data.test_layouts_chest import lidc_series, nodule, reading, roi
from voco.data.layouts.labeled import LabeledCase
from voco.data.manifest import Case
from voco.errors import InputError, ScanError
from voco.tasks import create_task


def test_read_and_agreement(tmp_path):
    uid = lidc_series(tmp_path, "LIDC-IDRI-0001", "a")
    two = nodule(roi("u", 1.0)) * 2  # two annotations of one reader count twice, as in the published rule
    (tmp_path / "a.xml").write_text(reading(uid, two, nodule(roi("u", 1.0)), "", ""))
    for agreement, label in ((3, 1.0), (4, 0.0)):
        task = create_task("lidc", agreement=agreement)
        manifest = task.read(tmp_path)
        assert task.targets(manifest.cases[0]) == {"nodule": label}
        assert f"{label:.0f} of 1 studies have a positive slice" in manifest.notes
    csv = "SeriesInstanceUID,SOPInstanceUID,nodule_present_on_image\n" + f"{uid},u,0\n"
    (tmp_path / "slices.csv").write_text(csv)
    assert create_task("lidc", labels_csv="slices.csv").read(tmp_path).cases[0].labels == {"nodule": 0.0}


def test_labels_of_windows_and_studies():
    case = LabeledCase(Case("a", "a", "a"), {"nodule": 1.0})
    labels = np.isin(np.arange(64), range(30, 34)).astype(float)
    task, window = create_task("lidc"), create_task("lidc", study_label="window")
    assert task.window_targets(labels[:32]) == {"nodule": 0.0} and task.window_targets(labels[16:48]) == {"nodule": 1.0}
    assert task.targets_from_slices(case, np.arange(64.0), labels) == {"nodule": 1.0}
    assert window.targets_from_slices(case, np.arange(64.0), labels) == {"nodule": 0.0}
    assert window.targets_from_slices(case, np.arange(64.0), np.roll(labels, 5)) == {"nodule": 1.0}
    with pytest.raises(ScanError, match="order of slices"):
        window.targets_from_slices(case, np.zeros(0), np.zeros(0))
    with pytest.raises(InputError, match="agreement must be at least 1"):
        create_task("lidc", agreement=0)
    with pytest.raises(InputError, match="study_label must be one of"):
        create_task("lidc", study_label="both")


def test_metrics():
    rng = np.random.default_rng(0)
    units = pd.DataFrame({"unit": [f"c{k}" for k in range(30)], "label_nodule": rng.integers(0, 2, 30).astype(float)})
    units["score_nodule"] = rng.random(30).round(1)
    images = pd.DataFrame({"unit": rng.choice([*units["unit"], "other"], 200), "label": rng.integers(0, 2, 200) * 1.0})
    images["score"] = rng.random(200)
    images.loc[:20, "score"] = np.nan
    task = create_task("lidc")
    found = task.measure(units, images).values
    known = images[images["unit"].ne("other") & images["score"].notna()]
    assert found["auroc"] == pytest.approx(roc_auc_score(units["label_nodule"], units["score_nodule"]))
    assert found["ap"] == pytest.approx(average_precision_score(units["label_nodule"], units["score_nodule"]))
    assert found["image_auroc"] == pytest.approx(roc_auc_score(known["label"], known["score"]))
    assert task.main_value(units) == found["auroc"] and task.measure(units).values["image_auroc"] is None
    empty = task.measure(units[units["label_nodule"] == 0])
    assert empty.values["auroc"] is None and "no positive" in empty.reasons["ap"]
