"""Drawn scans and clips are known as such, however they are reached."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from voco.data.clip_cohort import load_clips
from voco.data.cohort import load_cohort
from voco.data.layouts.table import read_label_table
from voco.data.prepare import PrepareSettings
from voco.data.synthetic import IMPLEMENTATION_UID, MARK, is_synthetic, phantom_row
from voco.phantom.cohort import write_cohort
from voco.phantom.layouts.writers import write_dicom
from voco.phantom.video import write_clip, write_video

SMALL = {"size": (12, 24, 24), "spacing_mm": (12.0, 16.0, 16.0), "workers": 1, "progress": False}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A NIfTI file and a DICOM series."""
    folder = tmp_path_factory.mktemp("drawn")
    for format in ("nifti", "dicom"):
        write_cohort(folder / format, cases=1, format=format, **SMALL)
    return folder


def real_scan(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(-900, 900, (12, 24, 24)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


def test_a_file_that_was_moved_keeps_its_mark(drawn, tmp_path):
    nifti = next((drawn / "nifti").rglob("*.nii.gz"))
    slices = sorted((drawn / "dicom").rglob("*.dcm"))
    for number, path in enumerate((nifti, slices[0], slices[-1])):
        copy = tmp_path / f"copy-{number}{'.nii.gz' if number == 0 else ''}"
        shutil.copy(path, copy)
        assert is_synthetic(path) and is_synthetic(copy) and phantom_row(copy) is None
    unpacked = sitk.ReadImage(str(nifti))
    sitk.WriteImage(unpacked, str(tmp_path / "again.nrrd"))
    assert is_synthetic(tmp_path / "again.nrrd"), "headers that travel with a conversion count"
    assert not is_synthetic(real_scan(tmp_path / "real.nii.gz"))
    assert not is_synthetic(tmp_path / "nowhere.nii.gz")
    (tmp_path / "torn.nii.gz").write_bytes(nifti.read_bytes()[:100])
    assert not is_synthetic(tmp_path / "torn.nii.gz")


def test_the_list_above_a_scan_counts_where_the_file_itself_says_nothing(drawn, tmp_path):
    (name,) = (path.relative_to(drawn / "nifti") for path in (drawn / "nifti").rglob("*.nii.gz"))
    place = real_scan(tmp_path / "cohort" / name)  # as a tool leaves it that drops descriptions
    other = real_scan(tmp_path / "cohort" / "real" / "a.nii.gz")
    shutil.copy(drawn / "nifti" / "phantoms.jsonl", tmp_path / "cohort")
    link = tmp_path / "link.nii.gz"
    os.symlink(place, link)
    assert is_synthetic(place) and is_synthetic(link)
    assert not is_synthetic(other), "a real scan beside drawn ones"


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4")])
def test_clips(tmp_path, suffix, codec):
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 48, 3)).astype(np.uint8)
    write_video(tmp_path / f"a.{suffix}", frames, 12, codec=codec, comment=f"{MARK}: nobody")
    write_video(tmp_path / f"b.{suffix}", frames, 12, codec=codec)
    assert is_synthetic(tmp_path / f"a.{suffix}") and not is_synthetic(tmp_path / f"b.{suffix}")


def load(root, cache):
    settings = PrepareSettings(spacing_mm=["native"])
    options = {"select": "all", "exclude": None, "patient_regex": None, "heldout": 0.5, "seed": 0, "workers": 1}
    return load_cohort(str(root), cache, settings, **options)


def test_a_list_elsewhere_that_points_at_drawn_and_real_scans(drawn, tmp_path):
    nifti = next((drawn / "nifti").rglob("*.nii.gz"))
    series = next((drawn / "dicom").rglob("*.dcm")).parent
    reals = [real_scan(tmp_path / "real" / f"{i}.nii.gz", i) for i in range(2)]
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{path}\n" for path in (nifti, series, *reals)))
    for _ in range(2):  # made, then found again
        cohort = load(tmp_path / "list.csv", tmp_path / "cache")
        entries = [entry for side in (cohort.train, cohort.heldout) for found in side for entry in found]
        assert {entry.case.path.rpartition("real/")[2] for entry in entries if not entry.synthetic} == {
            "0.nii.gz",
            "1.nii.gz",
        }
        assert cohort.counts["synthetic_scans"] == 2 and len(entries) == 4
    assert "synthetic_scans" not in load(tmp_path / "real", tmp_path / "cache").counts


def test_clips_of_a_list_elsewhere(tmp_path):
    rows = [write_clip(tmp_path / "drawn", 0, number) for number in range(6)]
    table = tmp_path / "lists" / "clips.csv"
    table.parent.mkdir()
    table.write_text("path,label\n" + "".join(f"{path},{row['label']}\n" for path, row in rows))
    cohort = load_clips(str(table), tmp_path / "cache", heldout=0.0, seed=0, workers=0)
    assert cohort.counts["synthetic_clips"] == len(cohort.train) == 6


def test_twins_stay_together_through_a_table_elsewhere(tmp_path):
    root = tmp_path / "cohort"
    write_cohort(root, layout="imageclef_tb", cases=4, **SMALL)
    rows = [json.loads(line) for line in (root / "phantoms.jsonl").read_text().splitlines()]
    table = tmp_path / "elsewhere" / "labels.csv"
    table.parent.mkdir()
    lines = [f"{root / row['paths'][0]},{number % 2}" for number, row in enumerate(rows)]
    table.write_text("path,label\n" + "\n".join(lines) + "\n")
    pairs = {os.path.basename(row["paths"][0]): row["pair"] for row in rows}
    found, _ = read_label_table(table)
    assert {os.path.basename(case.case.path): case.patient for case in found.cases} == pairs
    assert any("one anatomy" in note for note in found.notes)


def test_dicom_of_other_software_has_no_mark(tmp_path):
    path, *_ = write_dicom(
        tmp_path, np.zeros((4, 8, 8), np.int16), (5, 1, 1), (0, 0, 0), patient="p", key=("k",), files=list("abcd")
    )
    raw = path.read_bytes()
    assert is_synthetic(path)
    path.write_bytes(raw.replace(IMPLEMENTATION_UID.encode(), b"1" * len(IMPLEMENTATION_UID)))
    assert not is_synthetic(path)
