"""Published layouts of ImageCLEF TB and RSNA trauma, and tables of users: hand-made trees, whole and broken."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from voco.data.layouts.imageclef_tb import read_imageclef_tb, read_imageclef_tb_test
from voco.data.layouts.rsna_trauma import COLUMNS, read_rsna_trauma, read_rsna_trauma_test
from voco.data.layouts.table import read_label_table
from voco.data.privacy import hash_patient_id
from voco.errors import InputError

_spec = importlib.util.spec_from_file_location("dicom_maker", Path(__file__).with_name("dicom_maker.py"))
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)

UUID = "0a1b2c3d-0000-4000-8000-00000000beef"


def touch(root: Path, *names: str) -> None:
    """Empty files: layouts look at names and tables, never into scans."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def reasons(manifest) -> dict[str, str]:
    return {item.path: item.reason for item in manifest.rejected}


@pytest.fixture
def tb(tmp_path):
    touch(tmp_path, *(f"data/TRN_000{i}.nii.gz" for i in (1, 2, 3, 4)), "data/TST_0001.nii.gz")
    touch(tmp_path, *(f"masks/TrainSet_masks1/TRN_000{i}.nii.gz" for i in (1, 2, 3)), "masks2/TRN_0001.nii.gz")
    table = tmp_path / f"{UUID}_TrainSet_metaData.csv"
    table.write_text("FileName,TypeOfTB\nTRN_0001.nii.gz,1\nTRN_0002.nii.gz,5\nTRN_0003.nii.gz,3\nTRN_0009.nii.gz,1\n")
    return tmp_path


def test_tb_as_published(tb):
    (tb / f"{UUID}_TrainSet_add_metaData.csv").write_text("FileName,age\nTRN_0002.nii.gz,61\nTRN_0909.nii.gz,4\n")
    found = read_imageclef_tb(tb)
    assert [(c.id, c.case.path, c.patient, c.labels) for c in found.cases] == [
        (f"TRN_000{i}", f"data/TRN_000{i}.nii.gz", f"TRN_000{i}", {"TypeOfTB": t}) for i, t in ((1, 1), (2, 5), (3, 3))
    ]
    assert found.cases[0].masks == {
        "masks1": "masks/TrainSet_masks1/TRN_0001.nii.gz",
        "masks2": "masks2/TRN_0001.nii.gz",
    }
    assert found.cases[1].masks == {"masks1": "masks/TrainSet_masks1/TRN_0002.nii.gz"}
    assert [dict(case.attributes) for case in found.cases] == [{}, {"age": "61"}, {}]
    assert not found.patient_level
    # a labeled scan that is missing (the published set has one), and a scan that nobody labeled
    assert set(reasons(found)) == {"TRN_0009.nii.gz", "data/TRN_0004.nii.gz"}
    assert "no such file" in reasons(found)["TRN_0009.nii.gz"]
    assert "no row" in reasons(found)["data/TRN_0004.nii.gz"]
    notes = " ".join(found.notes)
    assert "1 official test scans" in notes and "2 scans have no file in masks2" in notes and "masks1" not in notes
    assert [case.id for case in read_imageclef_tb_test(tb).cases] == ["TST_0001"]


def test_tb_twins_of_a_synthetic_cohort(tb):
    rows = [
        {"ids": ["TRN_0001"], "pair": "p0"},
        {"ids": ["TRN_0002"], "pair": "p0"},
        {"ids": ["TRN_0003"], "pair": "p1"},
    ]
    files = {path.name.partition(".")[0]: path.relative_to(tb).as_posix() for path in (tb / "data").glob("TRN_*")}
    rows = [row | {"paths": [files[row["ids"][0]]]} for row in rows]
    (tb / "phantoms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [case.patient for case in read_imageclef_tb(tb).cases] == ["p0", "p0", "p1"]


def test_tb_file_twice(tb):
    touch(tb, "copy/TRN_0002.nii.gz")
    found = read_imageclef_tb(tb)
    assert [case.id for case in found.cases] == ["TRN_0001", "TRN_0003"]
    assert "2 files have this name" in reasons(found)["copy/TRN_0002.nii.gz"]
    assert "TRN_0002.nii.gz" not in reasons(found)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ("FileName,Type\nTRN_0001.nii.gz,1\n", "no column TypeOfTB, which is the published name .found Type; rename"),
        ("FileName,TypeOfTB\nTRN_0001.nii.gz,6\n", "line 2: '6'.*one of 1, 2, 3, 4, 5"),
        ("FileName,TypeOfTB\nTRN_0001.nii.gz,\n", "line 2: ''"),
        ("FileName,TypeOfTB\nTRN_0001.nii.gz,1\nTRN_0001.nii.gz,1\n", "1 ids more than once"),
        ("FileName,TypeOfTB\nTRN_0001.nii.gz,1\nTRN_0001,1\n", "1 scans more than once"),
        ("FileName,TypeOfTB\nscan7.nii.gz,1\n", "not like TRN_0001.nii.gz .first: 'scan7'"),
        ("FileName,TypeOfTB\nTRN_0008.nii.gz,1\n", "no labeled scan that can be used.*no such file"),
        ("File;TypeOfTB\n", "lacks the columns FileName"),
    ],
)
def test_tb_broken_tables(tb, table, match):
    (tb / f"{UUID}_TrainSet_metaData.csv").write_text(table)
    with pytest.raises(InputError, match=match):
        read_imageclef_tb(tb)


def test_tb_which_table(tb):
    table = tb / f"{UUID}_TrainSet_metaData.csv"
    table.rename(tb / "labels.csv")
    assert len(read_imageclef_tb(tb).cases) == 3
    (tb / "labels2.csv").write_bytes((tb / "labels.csv").read_bytes())
    with pytest.raises(InputError, match="2 tables of types"):
        read_imageclef_tb(tb)
    assert len(read_imageclef_tb(tb, table="labels2.csv").cases) == 3
    for name in ("labels.csv", "labels2.csv"):
        (tb / name).unlink()
    with pytest.raises(InputError, match="no table of types"):
        read_imageclef_tb(tb)
    with pytest.raises(InputError, match="not a folder"):
        read_imageclef_tb(tb / "nothing")
    (tb / "data/TST_0001.nii.gz").unlink()
    with pytest.raises(InputError, match="no test scan"):
        read_imageclef_tb_test(tb)


GRADES = {
    "10": "1,0,1,0,1,0,0,1,0,0,0,0,1,1",
    "9": "1,0,1,0,1,0,0,1,0,0,1,0,0,0",
    "7": "0,1,1,0,0,1,0,1,0,0,1,0,0,1",
}


def injuries(path: Path, rows: dict[str, str]) -> None:
    lines = [",".join(("patient_id", *COLUMNS, "any_injury")), *(f"{name},{row}" for name, row in rows.items())]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def trauma(tmp_path):
    for folder, count in (("10/55", 11), ("10/7", 2), ("9/8", 1)):
        touch(tmp_path, *(f"train_images/{folder}/{i}.dcm" for i in range(1, count + 1)))
    touch(tmp_path, "train_images/9/8/thumbs.db", "test_images/3/4/1.dcm")
    (tmp_path / "train_images/7").mkdir()
    injuries(tmp_path / "train.csv", GRADES)
    meta = "patient_id,series_id,aortic_hu,incomplete_organ\n10,55,210.5,0\n10,7,140.0,1\n9,8,99,0\n9,88,99,0\n"
    (tmp_path / "train_series_meta.csv").write_text(meta)
    return tmp_path


def test_trauma_as_published(trauma):
    assert COLUMNS[4:7] == ("kidney_healthy", "kidney_low", "kidney_high") and len(COLUMNS) == 13
    found = read_rsna_trauma(trauma)
    assert [(c.id, c.unit, c.patient, c.case.path) for c in found.cases] == [
        ("10-55", "10", "10", "train_images/10/55"),
        ("10-7", "10", "10", "train_images/10/7"),
        ("9-8", "9", "9", "train_images/9/8"),
    ]
    assert [name.split("/")[-1] for name in found.cases[0].case.files] == [f"{i}.dcm" for i in range(1, 12)]
    assert found.cases[2].case.files == ("train_images/9/8/1.dcm",)
    healthy = dict.fromkeys(("bowel", "extravasation", "kidney", "liver", "spleen"), 0.0)
    assert found.cases[0].labels == {**healthy, "spleen": 2.0} == found.cases[1].labels
    assert found.cases[2].labels == healthy
    assert found.cases[1].attributes == {"incomplete_organ": "1", "aortic_hu": "140.0"}
    assert found.patient_level
    # a patient with labels and an empty folder, a series that the second table alone knows
    assert set(reasons(found)) == {"train_images/7", "train_images/9/88"}
    assert "no series of images" in reasons(found)["train_images/7"]
    assert [(c.id, c.unit, c.labels) for c in read_rsna_trauma_test(trauma).cases] == [("3-4", "3", {})]


def test_trauma_rows_that_contradict_themselves(trauma):
    wrong = {
        "9": "1,0,1,0,1,1,0,1,0,0,1,0,0,1",
        "7": "1,0,1,0,1,0,0,1,0,0,1,0,0,1",
        "10": GRADES["10"],
        "8": "0,0,1,0,1,0,0,1,0,0,1,0,0,0",
    }
    injuries(trauma / "train.csv", wrong)
    touch(trauma, "train_images/11/1/1.dcm", "train_images/10/66/readme.txt")
    (trauma / "train_series_meta.csv").unlink()
    found = read_rsna_trauma(trauma)
    assert [case.id for case in found.cases] == ["10-55", "10-7"] and found.cases[0].attributes == {}
    assert "2 grades of kidney are marked; expected one of 3" in reasons(found)["train_images/9"]
    assert "any_injury is 1, but the organs say 0" in reasons(found)["train_images/7"]
    assert "0 grades of bowel" in reasons(found)["train_images/8"]
    assert "no row for this patient" in reasons(found)["train_images/11"]
    assert "no DICOM file" in reasons(found)["train_images/10/66"]
    assert any("no train_series_meta.csv" in note for note in found.notes)


def test_trauma_which_table(trauma):
    (trauma / "train_2024.csv").write_text((trauma / "train.csv").read_text())
    with pytest.raises(InputError, match=r"both train\.csv and train_2024\.csv"):
        read_rsna_trauma(trauma)
    assert len(read_rsna_trauma(trauma, table="train_2024.csv").cases) == 3
    (trauma / "train.csv").unlink()
    assert len(read_rsna_trauma(trauma).cases) == 3
    (trauma / "train_2024.csv").unlink()
    with pytest.raises(InputError, match=r"neither train\.csv nor"):
        read_rsna_trauma(trauma)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("kidney_low", "kidney_mid"), "lacks the columns kidney_low"),
        (("\n9,", "\n10,"), "1 ids more than once .10."),
        (("10,1,0", "10,2,0"), r"bowel_healthy are not usable .line 2: '2'.*one of 0, 1"),
    ],
)
def test_trauma_broken_tables(trauma, change, match):
    table = trauma / "train.csv"
    table.write_text(table.read_text().replace(*change))
    with pytest.raises(InputError, match=match):
        read_rsna_trauma(trauma)


def test_trauma_other_folders(tmp_path, trauma):
    with pytest.raises(InputError, match="is not a folder"):
        read_rsna_trauma(tmp_path / "nothing")
    (trauma / "train_images").rename(trauma / "images")
    with pytest.raises(InputError, match="train_images/<patient_id>/<series_id>"):
        read_rsna_trauma(trauma)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def scans(tmp_path):
    touch(tmp_path, *(f"ct/{name}.nii.gz" for name in "abcd"), "ct/e.dcm", "elsewhere/f.mha")
    return tmp_path


def test_table_of_a_user(scans):
    text = """path,patient,split,fold,site,tumour,age,label_old
ct/a.nii.gz,007,train,0,Bern,1,61.5,3
ct/b.nii.gz,007,Training,0,,0,,
ct/c.nii.gz,8,test,,Rome,,40,
ct/d.nii.gz,9,val,1,Rome,,,
ct/x.nii.gz,9,val,1,Rome,1,50,
,9,val,1,Rome,1,50,
ct/e.dcm,9,val,1,Rome,1,50,
"""
    found, names = read_label_table(write(scans / "t.csv", text), labels=["tumour", "age"])
    assert names == ["tumour", "age"]
    assert [(c.case.path, c.patient, c.case.split, c.fold, dict(c.labels)) for c in found.cases] == [
        ("ct/a.nii.gz", "007", "train", 0, {"tumour": "1", "age": "61.5"}),
        ("ct/b.nii.gz", "007", "train", 0, {"tumour": "0"}),
        ("ct/c.nii.gz", "8", "test", None, {"age": "40"}),
    ]
    assert found.cases[0].attributes == {"site": "Bern"} and found.cases[1].attributes == {"site": ""}
    assert found.patient_level and any("label_old" in note for note in found.notes)
    assert reasons(found) == {
        "ct/d.nii.gz": "no label is known of this scan",
        "ct/x.nii.gz": "no such file or folder",
        "line 7": "this row has no path",
        "ct/e.dcm": "neither NIfTI, MetaImage nor NRRD by its name; of a DICOM study, give the folder",
    }


def test_table_ids_and_folders(scans):
    """Ids are safe and stay the same when the table is elsewhere and paths start from the data root."""
    text = "path,case,label\nct/a.nii.gz,,1\nct/b.nii.gz,case-7,0\nelsewhere/f.mha,,0\n"
    here, _ = read_label_table(write(scans / "t.csv", text))
    (scans / "tables").mkdir()
    there, _ = read_label_table(write(scans / "tables/t.csv", text), root=scans)
    assert there.cases == here.cases and there.root == here.root == scans
    assert [case.id for case in here.cases] == ["case-7", "ct__a", "elsewhere__f"]
    assert not here.patient_level and any("3 of 3 scans have no patient" in note for note in here.notes)
    far, _ = read_label_table(scans / "tables/t.csv", root=scans, labeled=False)
    assert [case.labels for case in far.cases] == [{}] * 3


def test_table_of_dicom_folders(tmp_path):
    """Two studies of one person stay together, though the table does not say so."""
    for folder in ("s1", "s2"):
        maker.series(tmp_path / folder, np.zeros((3, 8, 8)), study=folder)
    maker.series(tmp_path / "s3", np.zeros((3, 8, 8)), PatientID="another")
    table = write(tmp_path / "t.csv", f"path,series,label\ns1,{maker.uid('s1', 'a')},1\ns2,,0\ns3,,0\n")
    found, _ = read_label_table(table)
    people = [hash_patient_id(name) for name in (maker.SECRET["PatientID"], maker.SECRET["PatientID"], "another")]
    by_path = {case.case.path: case for case in found.cases}
    assert [by_path[name].patient for name in ("s1", "s2", "s3")] == people and found.patient_level
    assert by_path["s1"].case.series == maker.uid("s1", "a") and by_path["s2"].case.series is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,label\nct/a.nii.gz,1\n", "lacks the columns path; found file, label"),
        ("path,tumour\nct/a.nii.gz,1\n", r"has no column label; name .* out of tumour"),
        ("path,label,Patient_ID\nct/a.nii.gz,1,4\n", "'Patient_ID' looks like 'patient'; rename"),
        ("path,label,subject\nct/a.nii.gz,1,4\n", "'subject' looks like 'patient'"),
        ("path,label\nct/a.nii.gz,1\n./ct/a.nii.gz,0\n", "twice, in lines 2 and 3"),
        ("path,label,case\nct/a.nii.gz,1,x\nct/b.nii.gz,0,X\n", "2 values of case more than once .X, x."),
        ("path,label,case\nct/a.nii.gz,1,../x\n", "may hold letters, digits"),
        ("path,label,split\nct/a.nii.gz,1,trian\n", "line 2: split 'trian' is not one of train, validation, test"),
        ("path,label,fold\nct/a.nii.gz,1,0.5\n", "folds are whole numbers"),
        ("path,label,fold\nct/a.nii.gz,1,one\n", "line 2: 'one'"),
        ("path,label,patient,split\nct/a.nii.gz,1,p,train\nct/b.nii.gz,0,p,test\n", "1 patients are in more than one"),
        ("path,label,patient,fold\nct/a.nii.gz,1,p,0\nct/b.nii.gz,0,p,1\n", "1 patients are in more than one fold"),
        ("path,label\nct/x.nii.gz,1\n", "no labeled scan that can be used. ct/x.nii.gz: no such file"),
    ],
)
def test_table_that_is_broken(scans, text, match):
    with pytest.raises(InputError, match=match):
        read_label_table(write(scans / "t.csv", text))


def test_table_labels_that_are_asked_for(scans):
    table = write(scans / "t.csv", "path,a,b\nct/a.nii.gz,1,2\n")
    for labels, match in (
        (["c"], "no label column c; there is a, b"),
        (["a", "a"], "twice"),
        (["path"], "column path"),
    ):
        with pytest.raises(InputError, match=match):
            read_label_table(table, labels=labels)


def test_table_rows_that_say_nothing_about_the_split(scans):
    table = write(scans / "t.csv", "path,label,split\nct/a.nii.gz,1,train\nct/b.nii.gz,1,\n")
    found, _ = read_label_table(table)
    assert [case.case.path for case in found.cases] == ["ct/a.nii.gz"] and "split column" in found.rejected[0].reason
    table.write_text("path,label,fold\nct/a.nii.gz,1,2\nct/b.nii.gz,1,\n")
    found, _ = read_label_table(table)
    assert [case.fold for case in found.cases] == [2] and "fold column" in found.rejected[0].reason
