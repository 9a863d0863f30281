from __future__ import annotations

import os
import shutil

import numpy as np
import SimpleITK as sitk

from voco.data.cohort import load_cohort
from voco.data.prepare import PrepareSettings


def fingerprint(root, cache, seed=0, heldout=0.5):
    settings = PrepareSettings(spacing_mm=["native"])
    options = {"select": "all", "exclude": None, "patient_regex": None, "heldout": heldout, "seed": seed, "workers": 1}
    cohort = load_cohort(str(root), cache, settings, **options)
    assert not cohort.rejected, cohort.rejected
    return cohort.fingerprint


def test_the_fingerprint_is_of_the_scans_not_of_their_files(tmp_path):
    root = tmp_path / "a"
    root.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(-900, 900, (16, 20, 24 + number)).astype(np.int16)
        image = sitk.GetImageFromArray(noise)
        sitk.WriteImage(image, str(root / f"p{number}.nii.gz"))
    first = fingerprint(root, tmp_path / "cache")
    copy = tmp_path / "b"
    shutil.copytree(root, copy)
    for path in copy.iterdir():
        os.utime(path, (1e9, 1e9))
    assert fingerprint(copy, tmp_path / "cache2") == first
    assert fingerprint(root, tmp_path / "cache", seed=1, heldout=0) != first
    (copy / "p0.nii.gz").unlink()
    assert fingerprint(copy, tmp_path / "cache2") != first
