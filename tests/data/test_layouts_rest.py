"""Published layouts of ImageCLEF TB and RSNA trauma, and tables of users: hand-made trees, whole and broken."""

import json
from pathlib import Path

import pytest

from voco.data.layouts.imageclef_tb import read_imageclef_tb, read_imageclef_tb_test
from voco.errors import InputError

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
