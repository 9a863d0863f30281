"""Copies of scans under other patients' names in a labeled cohort: on one side, or refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import SimpleITK as sitk

from finetune.run import main
from tests.finetune.made import SMALL, volume, write_cohort, write_table


def test_copies_stay_together_and_a_split_that_parts_them_is_refused(tmp_path, capsys):
    root = tmp_path / "scans"
    root.mkdir()
    rows = write_cohort(root, 12, 12)
    for number in (0, 5):
        copy = sitk.GetImageFromArray(np.pad(volume(number, number % 2 == 0)[:, :, ::-1], 4, constant_values=-1024))
        copy.SetSpacing((2.0, 2.0, 3.0))
        sitk.WriteImage(sitk.Cast(copy, sitk.sitkFloat32), str(root / f"t{number:02d}.nrrd"))
        rows.append((f"t{number:02d}.nrrd", rows[number][1], f"other-{number}", "a"))
    write_table(root / "labels.csv", rows)
    (tmp_path / "small.yaml").write_text(SMALL)
    common = ["--config", str(tmp_path / "small.yaml"), "--data.root", str(root / "labels.csv"), "--mode", "knn"]
    common += ["--probe.neighbours", "3", "--out"]
    assert main([*common, str(tmp_path / "a")]) == 0
    assert "4 patients are 2" in capsys.readouterr().err
    found = pd.read_csv(tmp_path / "a" / "duplicates.csv")
    assert set(found["done"]) == {"kept together"} and len(found) == 2 and set(found["how"]) == {"tissue"}
    split = pd.read_csv(tmp_path / "a" / "splits.csv").set_index("case")
    for one, two in zip(found["case_a"], found["case_b"]):
        assert (split.loc[one] == split.loc[two]).drop("path").all(), "one part and one patient"
    assert split["patient"].nunique() == 12

    given = split.reset_index()
    parted = given["case"] == found["case_b"][0]
    given.loc[parted, "split"] = "test" if given.loc[parted, "split"].item() == "train" else "train"
    given.loc[parted, "patient"] = "somebody else"
    given.to_csv(tmp_path / "given.csv", index=False)
    options = [str(tmp_path / "b"), "--split.file", str(tmp_path / "given.csv")]
    assert main([*common, *options]) == 2
    said = capsys.readouterr().err
    assert "same scan on two sides, 1 times" in said and "--allow_seen" in said
    assert all(path in said for path in (found["path_a"][0], found["path_b"][0]))
    assert main([*common, *options, "--allow_seen", "true"]) == 0
    marks = json.loads((tmp_path / "b" / "results.json").read_text())["marks"]
    assert any("1 pairs of the same scan lie on two sides" in mark for mark in marks)
    assert "parted by the split that was given" in (tmp_path / "b" / "duplicates.csv").read_text()
