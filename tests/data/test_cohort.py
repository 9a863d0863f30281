from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from voco.data.cohort import load_cohort
from voco.data.manifest import deal_patients
from voco.data.prepare import PrepareSettings
from voco.errors import InputError


def load(root, cache, seed=0, heldout=0.5):
    settings = PrepareSettings(spacing_mm=["native"])
    options = {"select": "all", "exclude": None, "patient_regex": None, "heldout": heldout, "seed": seed, "workers": 1}
    cohort = load_cohort(str(root), cache, settings, **options)
    assert not cohort.rejected, cohort.rejected
    return cohort


def fingerprint(root, cache, seed=0, heldout=0.5):
    return load(root, cache, seed, heldout).fingerprint


def write_scan(path, seed, width=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-900, 900, (16, 20, width)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(path))


def test_the_fingerprint_is_of_the_scans_not_of_their_files(tmp_path):
    root = tmp_path / "a"
    root.mkdir()
    for number in range(3):
        write_scan(root / f"p{number}.nii.gz", number, 24 + number)
    first = fingerprint(root, tmp_path / "cache")
    copy = tmp_path / "b"
    shutil.copytree(root, copy)
    for path in copy.iterdir():
        os.utime(path, (1e9, 1e9))
    assert fingerprint(copy, tmp_path / "cache2") == first
    assert fingerprint(root, tmp_path / "cache", seed=1, heldout=0) != first
    (copy / "p0.nii.gz").unlink()
    assert fingerprint(copy, tmp_path / "cache2") != first


@pytest.mark.parametrize(("patients", "folds"), [(2, 2), (7, 3), (9, 9), (100, 7)])
def test_every_patient_is_dealt_once(patients, folds):
    names = [f"p{number}" for number in range(patients)]
    dealt = deal_patients(names, folds, seed=0)
    assert len(dealt) == folds and sorted(name for fold in dealt for name in fold) == sorted(names)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert deal_patients(names[::-1] * 2, folds, seed=0) == dealt
    assert patients == 2 or folds == patients or deal_patients(names, folds, seed=1) != dealt


@pytest.mark.parametrize("folds", [-1, 0, 1, 4])
def test_folds_that_cannot_be_dealt(folds):
    with pytest.raises(InputError, match=f"{folds} folds of 3 patients"):
        deal_patients(["a", "b", "c"], folds, 0)


def test_folds_of_a_cohort_hold_every_patient_out_once(tmp_path):
    for number in range(4):
        write_scan(tmp_path / "scans" / f"p{number}" / "a.nii.gz", number)
    write_scan(tmp_path / "scans" / "p2" / "b.nii.gz", 9)
    whole = load(tmp_path / "scans", tmp_path / "cache", heldout=0)
    folds = whole.folds(3, seed=0)
    ids = {entry.case.id for patient in whole.train for entry in patient}
    held = [{entry.case.patient for patient in fold.heldout for entry in patient} for fold in folds]
    assert sorted(map(len, held)) == [1, 1, 2] and len(set.union(*held)) == 4
    for fold, out in zip(folds, held):
        trained = {entry.case.patient for patient in fold.train for entry in patient}
        assert not trained & out and len(trained | out) == 4
        assert {entry.case.id for patient in (*fold.train, *fold.heldout) for entry in patient} == ids
        counts = fold.counts
        assert counts["train_patients"] + counts["heldout_patients"] == 4 and counts["scans"] == 5
        assert counts["train_scans"] + counts["heldout_scans"] == 5
        assert counts["heldout_scans"] == sum(len(patient) for patient in fold.heldout)
    assert len({whole.fingerprint, *(fold.fingerprint for fold in folds)}) == 4
    # a fold is the same data as a run that holds the same patients out
    alone = load(tmp_path / "scans", tmp_path / "cache", heldout=0.25)
    same = [fold for fold, out in zip(whole.folds(4, seed=0), range(4)) if fold.heldout == alone.heldout]
    assert [fold.fingerprint for fold in same] == [alone.fingerprint]
    with pytest.raises(InputError, match="says by itself that 1 patients are held out"):
        alone.folds(3, seed=0)
