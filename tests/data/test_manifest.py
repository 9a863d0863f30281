import csv
import importlib.util
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from voco.data.manifest import (
    Case,
    Rejection,
    build_manifest,
    check_rejected,
    split_patients,
    write_rejected,
    write_series,
)
from voco.data.privacy import hash_patient_id
from voco.data.walk import looks_like_labels
from voco.errors import InputError

_spec = importlib.util.spec_from_file_location("dicom_maker", Path(__file__).with_name("dicom_maker.py"))
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)


def touch(root, *names):
    """Listing looks at names; what is in a volume file is the prepare stage's business."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def patients(manifest):
    return {case.path: case.patient for case in manifest.cases}


def dicom(folder, **tags):
    return maker.series(folder, maker.anatomy((6, 8, 9)), **tags)


def test_a_folder_is_searched_at_any_depth(tmp_path):
    touch(tmp_path, "a.nii", "b/c.nii.gz", "b/d/e.MHA", "b/d/f.nrrd", "g.mhd", "g.raw", "h.nhdr", "notes.txt", "t.csv")
    touch(tmp_path, "._a.nii", ".hidden/x.nii", "b/.DS_Store", "DICOMDIR")
    dicom(tmp_path / "b" / "deep" / "er", name="IM{:04d}")  # no extension
    manifest = build_manifest(tmp_path)
    assert [case.path for case in manifest.cases] == [
        "a.nii",
        "b/c.nii.gz",
        "b/d/e.MHA",
        "b/d/f.nrrd",
        "b/deep/er",
        "g.mhd",
        "h.nhdr",
    ]
    series = manifest.cases[4]
    assert series.series == maker.uid("s", "a")
    assert series.files == tuple(f"b/deep/er/IM{i:04d}" for i in range(6))
    assert series.patient == hash_patient_id("MRN-778812")
    assert [row["decision"] for row in manifest.series] == ["kept"]
    assert manifest.rejected == []


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "store/x.nii", "root/y.nii")
    os.symlink(tmp_path / "store", tmp_path / "root" / "linked")
    os.symlink(tmp_path / "root", tmp_path / "root" / "loop")
    assert [case.path for case in build_manifest(tmp_path / "root").cases] == ["linked/x.nii", "y.nii"]


def test_a_folder_that_cannot_be_searched_is_reported(tmp_path, monkeypatch):
    touch(tmp_path, "open/a.nii", "locked/b.nii")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    manifest = build_manifest(tmp_path)
    assert [case.path for case in manifest.cases] == ["open/a.nii"]
    assert manifest.rejected == [Rejection("locked", "this folder cannot be searched: Permission denied")]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("case1_seg.nii.gz", True),
        ("labelsTr/case1.nii.gz", True),
        ("p/mask.nrrd", True),
        ("p/segmentation-2.nii", True),
        ("liver_label.nii.gz", True),
        ("masked_scan.nii.gz", False),
        ("segment_3.nii.gz", False),
        ("labelled/scan.nii.gz", False),
        ("imagesTr/case1.nii.gz", False),
    ],
)
def test_segmentations_are_known_by_their_names(name, label):
    assert looks_like_labels(name) is label


def test_segmentations_are_left_out_and_said_so(tmp_path):
    touch(tmp_path, "ct.nii", "ct_seg.nii", "masks/ct.nii")
    manifest = build_manifest(tmp_path)
    assert [case.path for case in manifest.cases] == ["ct.nii"]
    assert "2 files named like segmentations (1 in ./, 1 in masks/" in manifest.notes[0]


def test_a_folder_with_few_scans_is_a_patient(tmp_path):
    touch(tmp_path, "lonely.nii", *(f"site/p{i}/visit{v}/ct.nii" for i in range(5) for v in range(2)))
    touch(tmp_path, *(f"pool/scan{i}.nii" for i in range(9)), "few/imagesTr/x.nii", "imagesTs/y.nii")
    found = patients(build_manifest(tmp_path))
    assert found["lonely.nii"] == "lonely.nii"
    assert found["site/p3/visit0/ct.nii"] == found["site/p3/visit1/ct.nii"] == "site/p3"  # "site" holds ten
    assert found["pool/scan4.nii"] == "pool/scan4.nii"  # nine in one folder: a pool
    assert found["few/imagesTr/x.nii"] == "few"
    assert found["imagesTs/y.nii"] == "imagesTs/y.nii"  # sorted by purpose, not by person
    assert len(set(found.values())) == 1 + 5 + 9 + 1 + 1


def test_a_folder_with_scans_and_patients_is_nobodys(tmp_path):
    touch(tmp_path, "ward/a.nii", "ward/b.nii", "ward/p1/x.nii", "ward/p1/y.nii", "other/p2/z.nii")
    manifest = build_manifest(tmp_path)
    found = patients(manifest)
    assert found["ward/a.nii"] == "ward/a.nii" and found["ward/b.nii"] == "ward/b.nii"
    assert found["ward/p1/x.nii"] == found["ward/p1/y.nii"] == "ward/p1"
    assert any("2 scans share a folder" in note for note in manifest.notes)


def test_one_folder_with_all_scans_is_no_patient(tmp_path):
    touch(tmp_path, "cohort/a.nii", "cohort/b.nii")
    manifest = build_manifest(tmp_path)
    assert len(set(patients(manifest).values())) == 2


def test_patient_by_pattern(tmp_path):
    touch(tmp_path, "sub-01_ses-1.nii", "sub-01_ses-2.nii", "sub-02_ses-1.nii", "phantom.nii")
    manifest = build_manifest(tmp_path, patient_regex=r"(sub-\d+)_")
    assert patients(manifest) == {
        "phantom.nii": "phantom.nii",
        "sub-01_ses-1.nii": "sub-01",
        "sub-01_ses-2.nii": "sub-01",
        "sub-02_ses-1.nii": "sub-02",
    }
    assert manifest.notes == ["patient_regex does not match 1 of 4 paths (first: phantom.nii)"]
    with pytest.raises(InputError, match="matches none of the 4 paths"):
        build_manifest(tmp_path, patient_regex="nobody")
    with pytest.raises(InputError, match="no regular expression"):
        build_manifest(tmp_path, patient_regex="(")


def test_dicom_patients_are_known_by_their_hashed_id(tmp_path):
    dicom(tmp_path / "x", study="1", PatientID="A1")
    dicom(tmp_path / "y" / "z", study="2", PatientID="A1")
    dicom(tmp_path / "w", study="3", PatientID="B2")
    dicom(tmp_path / "v", study="4", PatientID="")
    found = patients(build_manifest(tmp_path))
    assert found == {"x": hash_patient_id("A1"), "y/z": hash_patient_id("A1"), "w": hash_patient_id("B2"), "v": "v"}


def test_one_patient_for_all_is_said(tmp_path):
    for study in "12":
        dicom(tmp_path / study, study=study, PatientID="ANONYMOUS")
    assert "of one patient" in build_manifest(tmp_path).notes[0]


def test_scouts_are_no_rejected_scans_but_broken_studies_are(tmp_path):
    dicom(tmp_path / "good", study="1", series="a")
    maker.series(
        tmp_path / "scout",
        maker.anatomy((1, 8, 9)),
        study="1",
        series="b",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    maker.series(tmp_path / "mr", maker.anatomy((6, 8, 9)), study="3", series="c", Modality="MR")
    maker.series(tmp_path / "stub", maker.anatomy((1, 8, 9)), study="1", series="d")  # its study has a good series
    maker.series(tmp_path / "lost", maker.anatomy((1, 8, 9)), study="2", series="e")
    manifest = build_manifest(tmp_path)
    assert [case.path for case in manifest.cases] == ["good"]
    assert [item.path for item in manifest.rejected] == ["lost"]
    assert {row["path"]: row["decision"] for row in manifest.series} == {
        "good": "kept",
        "scout": "rejected",
        "mr": "rejected",
        "stub": "rejected",
        "lost": "rejected",
    }


def test_csv(tmp_path):
    touch(tmp_path, "sub/a.nii", "b.nii.gz", "c.nii")
    dicom(tmp_path / "d", series="one")
    dicom(tmp_path / "d", series="two", name="other{}.dcm", ConvolutionKernel="B70f")
    (tmp_path / "list.csv").write_text(
        "\ufeffpath, patient, case, series, split, age\n"
        "sub/a.nii,P1,first,,train,50\n"
        "b.nii.gz,P2,,,validation,\n"
        f"{tmp_path}/c.nii,P1,,,,\n"
        f"d,P3,,{maker.uid('s', 'two')},train,\n"
        "c.nii,P1,,,,\n"
        "gone.nii,P9,,,,\n"
        ",P8,,,,\n"
        ",,,,,\n"
        "c.nii,P5,,,test,\n"
    )
    manifest = build_manifest(tmp_path / "list.csv")
    found = {case.path: case for case in manifest.cases}
    assert set(found) == {"sub/a.nii", "b.nii.gz", "c.nii", "d"}
    assert (found["sub/a.nii"].id, found["sub/a.nii"].patient, found["sub/a.nii"].split) == ("first", "P1", "train")
    assert (found["b.nii.gz"].id, found["b.nii.gz"].split) == ("b", "heldout")
    assert found["d"].series == maker.uid("s", "two") and len(found["d"].files) == 6
    assert found["d"].patient == "P3"
    assert [(item.path, item.reason) for item in manifest.rejected] == [
        ("line 8", "line 8 of list.csv has no path"),
        ("gone.nii", "no such file or folder"),
        ("c.nii", "listed twice; the first entry is used"),
    ]
    assert any("age" in note for note in manifest.notes)
    assert any("1 scans marked as test" in note for note in manifest.notes)
    train, held = split_patients(manifest.cases, 0.5, 0)
    assert {case.patient for case in held} == {"P2"} and len(train) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,patient\na.nii,1\n", "no path column, only file, patient"),
        ("paths\na.nii\n", "'paths' looks like 'path'"),
        ("path,Patient_ID\na.nii,1\n", "'Patient_ID' looks like 'patient'"),
        ("path,path\na.nii,b\n", "named twice"),
        ("path,split\na.nii,fold3\n", "split 'fold3' is not one of"),
        ("", "no path column"),
        ("path\n", "no entry"),
        ("path\ngone.nii\n", "1 of 1 scans cannot be used"),
        ("path,case\na.nii,../evil\n", "case id '../evil'"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, text, message):
    touch(tmp_path, "a.nii")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        build_manifest(tmp_path / "list.csv")


def test_csv_with_semicolons_and_a_dicom_slice(tmp_path):
    files = dicom(tmp_path / "d" / "e")
    (tmp_path / "list.csv").write_text(f"path;patient\nd/e/{files[2].name};x\n")
    case = build_manifest(tmp_path / "list.csv").cases[0]
    assert (case.path, case.patient, len(case.files)) == ("d/e", "x", 6)


def test_decathlon(tmp_path):
    touch(tmp_path, *(f"imagesTr/c{i}.nii.gz" for i in range(3)), "imagesTs/t.nii.gz")
    data = {
        "name": "Task",
        "modality": {"0": "CT"},
        "training": [
            {"image": "./imagesTr/c0.nii.gz", "label": "./labelsTr/c0.nii.gz"},
            {"image": ["./imagesTr/c1.nii.gz"], "patient": 7},
            {"image": ["a", "b"]},
            {"label": "x"},
        ],
        "validation": ["imagesTr/c2.nii.gz"],
        "test": ["./imagesTs/t.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    manifest = build_manifest(tmp_path / "dataset.json")
    assert [(case.path, case.split) for case in manifest.cases] == [
        ("imagesTr/c0.nii.gz", "train"),
        ("imagesTr/c1.nii.gz", "train"),
        ("imagesTr/c2.nii.gz", "heldout"),
    ]
    # Few scans in imagesTr: still three patients, one of them named.
    assert sorted(patients(manifest).values()) == ["7", "imagesTr/c0.nii.gz", "imagesTr/c2.nii.gz"]
    assert [item.reason for item in manifest.rejected] == [
        "entry 2 of 'training' names 2 images; expected one",
        "entry 3 of 'training' names no image; expected one",
    ]
    assert len(build_manifest(tmp_path / "dataset.json", test=True).cases) == 4


@pytest.mark.parametrize("listed", ["v1", "v2", "v2 with a list"])
def test_nnunet(tmp_path, listed):
    names = [f"imagesTr/c{i}_000{k}.nii.gz" for i in range(3) for k in range(2)]
    touch(tmp_path, *names, "imagesTs/t_0001.nii.gz", "imagesTs/t_0000.nii.gz")
    channels = {"0": "PET", "1": "CT"}
    data = {
        "v1": {
            "modality": channels,
            "training": [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(3)],
            "test": ["./imagesTs/t.nii.gz"],
        },
        "v2": {"channel_names": channels, "labels": {"background": 0}, "numTraining": 3, "file_ending": ".nii.gz"},
    }
    data["v2 with a list"] = data["v2"] | {"dataset": {f"c{i}": {"images": names[2 * i : 2 * i + 2]} for i in range(3)}}
    (tmp_path / "dataset.json").write_text(json.dumps(data[listed]))
    manifest = build_manifest(tmp_path / "dataset.json")
    assert [case.path for case in manifest.cases] == names[1::2] and not manifest.rejected
    assert len(patients(manifest)) == len(set(patients(manifest).values())) == 3
    assert "PET, CT; CT is read" in " ".join(manifest.notes)
    if "list" not in listed:
        assert len(build_manifest(tmp_path / "dataset.json", test=True).cases) == 4
    (tmp_path / "dataset.json").write_text(json.dumps(data[listed]).replace("CT", "T1w"))
    with pytest.raises(InputError, match="lists PET, T1w; expected CT"):
        build_manifest(tmp_path / "dataset.json")


def test_paths_of_windows(tmp_path):
    touch(tmp_path, "in/a/1.nii.gz", "in/a/2.nii.gz", "in/b/1.nii.gz", "out/3.nii.gz")
    rows = [
        r"a\1.nii.gz",
        r".\a\2.nii.gz",
        r"D:\study\in\b\1.nii.gz",
        r"..\out\3.nii.gz",
        r"\\srv\x\gone.nii",
        "/gone/x.nii",
    ]
    (tmp_path / "in/list.csv").write_text("path,patient\n" + "".join(f"{row},{i}\n" for i, row in enumerate(rows)))
    manifest = build_manifest(tmp_path / "in/list.csv")
    assert {c.patient: c.path for c in manifest.cases} == {
        "0": "a/1.nii.gz", "1": "a/2.nii.gz", "2": "b/1.nii.gz", "3": "../out/3.nii.gz"
    }  # fmt: skip
    assert [item.path for item in manifest.rejected] == [rows[4], "/gone/x.nii"], "as the list has them"
    touch(tmp_path, "in/b/u\u0308.nii.gz")
    (tmp_path / "in/list.csv").write_text("path\nE:/study/b/1.nii.gz\nb/\u00fc.nii.gz\n")
    assert [c.path for c in build_manifest(tmp_path / "in/list.csv").cases] == ["b/1.nii.gz", "b/u\u0308.nii.gz"]
    assert "2 paths are of Windows drives" in " ".join(manifest.notes)


def test_lists_of_spreadsheets(tmp_path):
    touch(tmp_path, *(f"{i}.nii.gz" for i in range(4)))
    text = "sep=;\r\npath;patient;split\r\n0.nii.gz;001;train\r\n1.nii.gz;1;\r\n2.nii.gz;NA;#NV\r\n3.nii.gz;-;\r\n"
    (tmp_path / "l.csv").write_text(text, encoding="utf-16")
    manifest = build_manifest(tmp_path / "l.csv")
    assert sorted(patients(manifest).values()) == ["001", "1", "2.nii.gz", "3.nii.gz"], "NA names nobody"
    assert "'001' and '1' look alike" in " ".join(manifest.notes)


def nnssl(images):
    sessions = {"ses-1": {"session_id": "ses-1", "images": images[:1]}, "ses-2": {"images": images[1:]}}
    return {
        "collection_index": 1,
        "collection_name": "Dataset001",
        "datasets": {"ds1": {"dataset_index": "ds1", "name": "N", "subjects": {"sub-1": {"sessions": sessions}}}},
    }


def test_nnssl(tmp_path, monkeypatch):
    touch(tmp_path, "raw/Dataset001/a.nii.gz", "raw/Dataset001/b.nii.gz", "else/c.nii.gz")
    masks = {"anatomy_mask": None, "anonymization_mask": None}
    images = [
        {"name": "a", "modality": "CT", "image_path": "$nnssl_raw/Dataset001/a.nii.gz", "associated_masks": masks},
        {"name": "b", "modality": "ct", "image_path": "b.nii.gz", "image_info": {}},
        {"name": "c", "modality": "CT", "image_path": "$STORE/c.nii.gz"},
        {"name": "m", "modality": "T1w", "image_path": "m.nii.gz"},
        {"name": "u", "modality": "CT", "image_path": "$UNSET_HERE/nowhere.nii.gz"},
    ]
    path = tmp_path / "raw" / "Dataset001" / "pretrain_data.json"
    path.write_text(json.dumps(nnssl(images)))
    monkeypatch.delenv("nnssl_raw", raising=False)
    monkeypatch.setenv("STORE", str(tmp_path / "else"))
    manifest = build_manifest(path)
    assert patients(manifest) == {
        "a.nii.gz": "ds1/sub-1",
        "b.nii.gz": "ds1/sub-1",
        "../../else/c.nii.gz": "ds1/sub-1",
    }
    assert all(".." not in case.id for case in manifest.cases)
    assert "1 T1w" in manifest.notes[0]
    assert "environment variable UNSET_HERE" in manifest.rejected[0].reason
    # A variable that is set wins over the search.
    monkeypatch.setenv("nnssl_raw", str(tmp_path / "gone"))
    assert "a.nii.gz" not in patients(build_manifest(path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "no valid JSON"),
        ("x.json", '{"images": []}', "holds images; expected a Decathlon list"),
        ("x.json", '{"datasets": {"a": {"subjects": []}}}', "form of an nnssl collection"),
        ("x.yaml", "a: 1", "is not a data root"),
    ],
)
def test_other_files_are_no_cohort(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        build_manifest(tmp_path / name)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        build_manifest(tmp_path / "gone")
    with pytest.raises(InputError, match="no file that is a CT scan"):
        build_manifest(tmp_path)
    maker.series(tmp_path / "mr", maker.anatomy((6, 8, 9)), Modality="MR")
    with pytest.raises(InputError, match=r"1 DICOM series, and none can be used: .*MR"):
        build_manifest(tmp_path)


def test_ids_are_unique_safe_and_stable(tmp_path):
    touch(tmp_path, "a b/ü.nii", "a_b/ü.nii", "x.nii", "x.nrrd", "X.mha", "a/b.nii", "a__b.nii", "-.nii")
    dicom(tmp_path / "s")
    ids = {case.path: case.id for case in build_manifest(tmp_path).cases}
    assert len({name.lower() for name in ids.values()}) == 9
    for name in ids.values():
        assert name.isascii() and not set(name) & set("/\\ :*?\"<>|'") and name[0] not in "-."
    assert ids["a/b.nii"] == "a__b"
    touch(tmp_path, "new.nii", "b/new2.nii")
    assert ids.items() <= {case.path: case.id for case in build_manifest(tmp_path).cases}.items()


def cases_of(*counts):
    return [Case(f"c{p}-{i}", f"{p}/{i}.nii", f"p{p}") for p, count in enumerate(counts) for i in range(count)]


def test_split_keeps_patients_together_whatever_the_order():
    cases = cases_of(*[1, 3, 2, 5] * 10)
    train, held = split_patients(cases, 0.2, 7)
    assert len({c.patient for c in held}) == 8
    assert not {c.patient for c in train} & {c.patient for c in held}
    assert sorted(c.id for c in train + held) == sorted(c.id for c in cases)
    shuffled = random.Random(1).sample(cases, len(cases))
    assert {c.id for c in split_patients(shuffled, 0.2, 7)[1]} == {c.id for c in held}
    assert {c.id for c in split_patients(cases, 0.2, 8)[1]} != {c.id for c in held}
    # One more patient displaces at most one of those held out.
    more = split_patients([*cases, Case("n", "n.nii", "new")], 0.2, 7)[1]
    assert len({c.patient for c in held} - {c.patient for c in more}) <= 1


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (1, 0.5, 0), (10, 0, 0), (10, 0.25, 2)]
)
def test_split_sizes(count, share, expected):
    train, held = split_patients(cases_of(*[1] * count), share, 0)
    assert (len(train), len(held)) == (count - expected, expected)


def test_split_is_fair():
    """Each of ten patients is held out in a tenth of many seeds: 300 draws, standard deviation 5.2."""
    cases = cases_of(*[1] * 10)
    counts = np.zeros(10)
    for seed in range(300):
        counts[int(split_patients(cases, 0.1, seed)[1][0].patient[1:])] += 1
    assert np.abs(counts - 30).max() < 4 * 5.2


def test_split_that_makes_no_sense():
    for share in (-0.1, 1.0, 2):
        with pytest.raises(InputError, match="held-out share"):
            split_patients(cases_of(1, 1), share, 0)
    both = [Case("a", "a", "p", split="train"), Case("b", "b", "p", split="heldout")]
    with pytest.raises(InputError, match="1 patients are both"):
        split_patients(both, 0.1, 0)


def test_exclude_names_patients_in_many_ways(tmp_path):
    touch(tmp_path, "root/p1/a.nii", "root/p1/b.nii", "root/x.nii", "root/y.nii.gz", "root/z.nii")
    dicom(tmp_path / "root" / "d", PatientID="MRN-1")
    file = tmp_path / "out.txt"
    everyone = {"p1/a.nii", "p1/b.nii", "x.nii", "y.nii.gz", "z.nii", "d"}
    for line, gone in [
        ("MRN-1", {"d"}),
        (hash_patient_id("MRN-1"), {"d"}),
        ("p1", {"p1/a.nii", "p1/b.nii"}),
        ("p1/a.nii", {"p1/a.nii", "p1/b.nii"}),  # its patient, not only the scan
        ("y", {"y.nii.gz"}),
        ("z.nii", {"z.nii"}),
        ("# all of these\npatient\nx\n\np1\n", {"x.nii", "p1/a.nii", "p1/b.nii"}),
        ("age,patient\n50,x\n60,MRN-1\n", {"x.nii", "d"}),
    ]:
        file.write_text(line)
        manifest = build_manifest(tmp_path / "root", exclude=file)
        assert {case.path for case in manifest.cases} == everyone - gone, line


def test_exclude_says_what_matched_nobody_without_repeating_it(tmp_path):
    touch(tmp_path, "root/x.nii", "root/y.nii")
    file = tmp_path / "out.txt"
    file.write_text("x\nMRN-99\n")
    note = build_manifest(tmp_path / "root", exclude=file).notes[-1]
    assert note == "out.txt leaves out 1 patients with 1 scans; 1 of 2 lines name nobody here"
    for text, message in [("MRN-99", "none of the 1 lines"), ("", "is empty"), ("x\ny", "excludes every patient")]:
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            build_manifest(tmp_path / "root", exclude=file)
    with pytest.raises(InputError, match="cannot be read"):
        build_manifest(tmp_path / "root", exclude=tmp_path / "gone.txt")


def test_share_of_rejected_scans():
    rejected = [Rejection(f"s{i}", f"reason {i}") for i in range(8)]
    check_rejected(40, rejected, 0.2)
    check_rejected(0, [], 0.0)
    with pytest.raises(InputError, match=r"8 of 39 scans .* 20%(.|\n)*s0: reason 0(.|\n)*and 3 more"):
        check_rejected(39, rejected, 0.2)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_tables(tmp_path):
    write_rejected(tmp_path / "rejected.csv", [Rejection("a,b", 'says "no"')])
    assert table(tmp_path / "rejected.csv") == [{"path": "a,b", "reason": 'says "no"', "patient": ""}]
    dicom(tmp_path / "d")
    write_series(tmp_path / "series.csv", build_manifest(tmp_path).series)
    row = table(tmp_path / "series.csv")[0]
    assert (row["path"], row["slices"], row["decision"]) == ("d", "6", "kept")
    assert not any(secret in (tmp_path / "series.csv").read_text() for secret in maker.SECRET.values())


@pytest.mark.real
def test_real_scans():
    if "VOCO_TEST_CT" not in os.environ:
        pytest.skip("set VOCO_TEST_CT to a folder with CT scans")
    manifest = build_manifest(os.environ["VOCO_TEST_CT"])
    assert not manifest.rejected
    top = [p for p in Path(os.environ["VOCO_TEST_CT"]).iterdir() if not p.name.startswith(".")]
    assert {case.path for case in manifest.cases} == {p.name for p in top}
    assert len({case.patient for case in manifest.cases}) == len(top)
