"""The same scan twice under other names: found in a cohort, proven on voxels, kept on one side of every split."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.stats import norm

from tests.data.copies import SPACING, cut, scan, stored
from voco.data.alignment import agree, detail_of
from voco.data.alike import CANDIDATE_SCORE, LANDMARK_SCORE, PICTURE_CORRELATION, alike_within
from voco.data.cohort import load_cohort
from voco.data.duplicates import (
    CONFIRMED,
    SURE_CONFIRMED,
    SURE_SCORE,
    Duplicates,
    Pair,
    expected_false_merges,
    find_duplicates,
    proves,
    refuse_parted,
)
from voco.data.fingerprint import Fingerprints
from voco.data.landmarks import LANDMARKS, Landmarks, compare, find_landmarks
from voco.data.manifest import build_manifest
from voco.data.prepare import PrepareSettings, prepare
from voco.errors import InputError

SETTINGS = PrepareSettings((4.0, 3.0, 3.0), crop_body=True)


def write(array, path: Path, spacing=SPACING, kind=None, orientation=None) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(tuple(spacing)[::-1])
    if orientation:
        image = sitk.DICOMOrient(image, orientation)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.Cast(image, kind) if kind is not None else image, str(path))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six people; the first under seven more names, the second once more in another format, as floats, turned over."""
    root = tmp_path_factory.mktemp("scans")
    for number in range(6):
        write(scan(number), root / f"person-{number}00a.nii.gz")
    for number, (_, array, spacing) in enumerate(stored(scan(0), SPACING)):
        write(array, root / f"copy-{number}00b.mha", spacing)
    write(scan(1), root / "other-100c.nrrd", kind=sitk.sitkFloat32, orientation="RAI")
    return root


def pretraining(cohort, cache, **options):
    return load_cohort(
        str(cohort), cache, SETTINGS, select="all", exclude=None, patient_regex=None, heldout=0.4, workers=0,
        **{"seed": 0} | options,
    )  # fmt: skip


def test_landmarks_of_mirrored_and_cut_scans_fit_and_those_of_others_do_not():
    array = scan(3)
    whole = find_landmarks(array, SPACING)
    assert 20 <= len(whole) <= LANDMARKS
    for name, other, spacing in (*stored(array, SPACING), *cut(array, SPACING)):
        fit = compare(find_landmarks(other, spacing), whole)
        assert fit.score >= LANDMARK_SCORE, (name, fit.score)
        np.testing.assert_allclose(fit.turn @ fit.turn.T, np.eye(3), atol=1e-6)
    mirrored = compare(find_landmarks(array[:, :, ::-1], SPACING), whole)
    wide = (array.shape[2] - 1) * SPACING[2]
    np.testing.assert_allclose(mirrored.turn, np.diag([1, 1, -1]), atol=0.05)
    assert np.linalg.det(mirrored.turn) < 0 and abs(mirrored.shift[2] - wide) < 5
    assert all(compare(find_landmarks(scan(seed), SPACING), whole).score < CANDIDATE_SCORE for seed in (4, 5, 6))
    nothing = find_landmarks(np.full((8, 20, 20), -1000, np.int16), SPACING)
    assert len(nothing) == 0 and compare(nothing, whole).score == 0


def test_packed_landmarks_are_what_they_were_to_half_a_millimetre():
    whole = find_landmarks(scan(3), SPACING)
    few = Landmarks(whole.position_mm[:7], whole.look[:7])
    again = Landmarks.unpacked(*few.packed())
    assert len(again) == 7 and np.abs(again.position_mm - few.position_mm).max() <= 0.25
    np.testing.assert_array_equal(again.look, few.look)


def test_aligned_voxels_of_copies_agree_and_those_of_others_do_not():
    one, marks = detail_of(scan(3), SPACING), find_landmarks(scan(3), SPACING)
    for name, array, spacing in (*list(stored(scan(3), SPACING))[::3], *list(cut(scan(3), SPACING))[::3]):
        fit = compare(find_landmarks(array, spacing), marks)
        found = agree(detail_of(np.ascontiguousarray(array), spacing), one, fit.turn, fit.shift)
        assert proves(fit.score, found.correlation) and found.overlap > 0.5, (name, found)
    assert agree(one, one, np.eye(3), np.zeros(3)).difference_hu < 0.01
    assert agree(detail_of(scan(4), SPACING), one, np.eye(3), np.zeros(3)).correlation < 0.3


def test_copies_under_other_names_become_one_patient_in_pretraining(cohort, tmp_path):
    said = []
    found = pretraining(cohort, tmp_path / "cache", say=said.append)
    sides = [{e.case.id for patient in part for e in patient} for part in (found.train, found.heldout)]
    copies = {e.case.id for patient in (*found.train, *found.heldout) for e in patient if "copy" in e.case.id}
    original = next(name for name in set.union(*sides) if "person-000a" in name)
    assert len(copies) == 7 and sum(bool(side & (copies | {original})) for side in sides) == 1
    assert found.counts["train_patients"] + found.counts["heldout_patients"] == 6 and max(map(len, found.train)) <= 8
    assert "10 patients are 2" in said[-1] and "false merges" in said[-1]
    found.write(tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "duplicates.csv").read_text().splitlines()))
    assert {row["done"] for row in rows} == {"kept together"} and {"voxels", "tissue"} < {row["how"] for row in rows}
    assert rows[0]["path_a"] and rows[0]["patient_a"] != rows[0]["patient_b"]
    # the second time nothing is compared
    again = pretraining(cohort, tmp_path / "cache", seed=1)
    assert again.duplicates.pairs == found.duplicates.pairs
    empty = Duplicates()
    empty.write(tmp_path / "run")
    assert not (tmp_path / "run" / "duplicates.csv").exists() and empty.text() == ""


def test_a_list_that_parts_copies_is_refused_unless_allowed(cohort, tmp_path):
    table = tmp_path / "list.csv"
    rows = [(path, "validation" if "copy-0" in path.name else "train") for path in sorted(cohort.iterdir())]
    table.write_text("path,split\n" + "".join(f"{path},{part}\n" for path, part in rows))
    with pytest.raises(InputError, match=r"same scan on two sides(.|\n)*copy-000b(.|\n)*--data.allow_seen"):
        pretraining(table, tmp_path / "cache")
    found = pretraining(table, tmp_path / "cache", allow_seen=True)
    assert found.counts["heldout_scans"] == 1
    found.write(tmp_path / "run")
    assert "parted by the split that was given" in (tmp_path / "run" / "duplicates.csv").read_text()


def test_every_kind_of_copy_is_a_candidate_and_nobody_else(cohort, tmp_path):
    manifest = build_manifest(cohort)
    entries = prepare(manifest.cases, manifest.root, tmp_path, SETTINGS, progress=False).entries
    pairs = alike_within(Fingerprints.of_entries(entries))
    kinds = [{entries[i].case.id.split("-")[0] for i in (pair.one, pair.two)} for pair in pairs]
    assert len(pairs) >= 8 and all({"copy", "other"} & kind for kind in kinds)
    found = find_duplicates(entries, tmp_path)
    assert len(found.groups) == 10 and len(set(found.groups.values())) == 2
    assert not [pair for pair in found.pairs if not pair.confirmed]


def pair(a: str, b: str, confirmed: bool = True) -> Pair:
    return Pair(f"{a}.nii", f"{b}.nii", a, b, a, b, "landmarks", 5.0, 0.9, 3.0, 1.0, confirmed)


def test_groups_are_the_unions_of_confirmed_pairs():
    found = Duplicates((pair("d", "c"), pair("b", "c"), pair("x", "y"), pair("a", "x", confirmed=False)), 9)
    assert found.groups == {"b": "b", "c": "b", "d": "b", "x": "x", "y": "x"}
    sides = {"b": "train", "c": "train", "d": "test", "x": "test", "y": "test", "a": "train"}
    assert [p.case_a for p in found.parted(sides)] == ["d"]
    assert refuse_parted(found, [sides], "it", "") == [found.pairs[0]]
    with pytest.raises(InputError, match="1 times"):
        refuse_parted(found, [sides, sides], "it", "--go")
    assert "1 pairs of scans look alike" in found.text()


def test_false_merges_to_expect_are_pairs_times_tails():
    candidates = 0.0127 * math.exp(-(CANDIDATE_SCORE - 0.25) / 0.31)
    candidates += norm.sf((np.arctanh(PICTURE_CORRELATION) - 1.137) / 0.222)
    each = candidates * norm.sf((np.arctanh(CONFIRMED) - 0.559) / 0.085)
    sure = 0.0127 * math.exp(-(SURE_SCORE - 0.25) / 0.31)
    each += sure * (
        norm.sf((np.arctanh(SURE_CONFIRMED) - 0.559) / 0.085) - norm.sf((np.arctanh(CONFIRMED) - 0.559) / 0.085)
    )
    for scans in (1000, 160_000):
        assert expected_false_merges(scans) == pytest.approx(scans * (scans - 1) / 2 * each)
    assert expected_false_merges(1000) < 1e-3 and expected_false_merges(1) == 0


def test_random_labels_with_copies_give_chance(tmp_path):
    """Nearest neighbours of signatures, labels by lot, every scan twice: grouped patients leave nothing to remember."""
    from sklearn.metrics import roc_auc_score

    from voco.data.layouts.labeled import LabeledCase
    from voco.data.splits import make_splits

    people = 16
    for number in range(people):
        array = scan(200 + number, (16, 32, 36))
        write(array, tmp_path / "scans" / f"one-{number:02d}00a.nii.gz", (8, 6, 6))
        write(array[:, :, ::-1], tmp_path / "scans" / f"two-{number:02d}00b.mha", (8, 6, 6))
    manifest = build_manifest(tmp_path / "scans")
    settings = PrepareSettings((8, 6, 6))
    entries = prepare(manifest.cases, manifest.root, tmp_path / "cache", settings, progress=False).entries
    prints = Fingerprints.of_entries(entries).signatures.reshape(-1, 12, 12, 12).astype(float)
    prints = np.maximum(prints, prints[..., ::-1]).reshape(len(prints), -1)  # the same for mirrors
    names = find_duplicates(entries, tmp_path / "cache").groups
    assert len(names) == 2 * people and len(set(names.values())) == people
    auroc = {}
    for kind, groups in (("apart", {}), ("together", names)):
        scores, truth = [], []
        for seed in range(40):
            lot = np.random.default_rng(seed).permutation(np.arange(people) % 2)
            label = {e.case.id: int(lot[int(e.case.id.split("-")[1][:2])]) for e in entries}
            cases = [
                LabeledCase(
                    replace(e.case, patient=groups.get(e.case.patient, e.case.patient)), {"label": label[e.case.id]}
                )
                for e in entries
            ]
            splits = make_splits(cases, lambda case: str(case.labels["label"]), test=0.4, val=0, seed=seed)
            part = splits.folds[0].parts
            train, test = ([i for i, e in enumerate(entries) if part[e.case.id] == w] for w in ("train", "test"))
            similar = np.corrcoef(prints)[np.ix_(test, train)].argmax(1)
            scores += [label[entries[train[k]].case.id] for k in similar]
            truth += [label[entries[i].case.id] for i in test]
        auroc[kind] = roc_auc_score(truth, scores)
    assert auroc["apart"] > 0.7 and abs(auroc["together"] - 0.5) < 0.09, auroc
