from __future__ import annotations

import math

import pytest

from voco.data.layouts.labeled import LabeledCase
from voco.data.manifest import Case
from voco.errors import InputError
from voco.tasks import create_task
from voco.transfer.labels import read_labels

CASES = {name: LabeledCase(Case(name, f"day/{name}.nii.gz", name)) for name in ("a", "b", "007")}
BINARY = {"labels": ["pe"], "kind": "binary"}
CLASSES = {"labels": ["stage"], "kind": "multiclass", "classes": {"stage": ["I", "II", "III or IV"]}}
NUMBER = {"labels": ["age"], "kind": "regression"}


def read(tmp_path, text, options, cases=CASES):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return read_labels(path, create_task("table", **options), cases)


def test_labels_find_their_scans_by_case_or_path(tmp_path):
    found = read(tmp_path, "case,pe,site\n007,1,north\na,,south\n", BINARY)
    assert set(found) == {"007", "a"} and found["007"].targets == {"pe": 1.0}
    assert found["007"].attributes == {"site": "north"} and math.isnan(found["a"].targets["pe"])
    by_path = read(tmp_path, "path,pe\nday/b.nii.gz,false\n", BINARY)
    assert by_path["b"].targets == {"pe": 0.0} and by_path["b"].attributes == {}


@pytest.mark.parametrize("options, cell, value", [
    (BINARY, "1.0", 1.0), (BINARY, "True", 1.0), (BINARY, "NaN", math.nan),
    (CLASSES, "III or IV", 2.0), (CLASSES, "II", 1.0), (CLASSES, "1", 1.0),
    (NUMBER, "-63.5", -63.5), (NUMBER, "1e-2", 0.01), (NUMBER, ".5", 0.5), (NUMBER, "5.", 5.0),
])  # fmt: skip
def test_cells_are_values(tmp_path, options, cell, value):
    name = options["labels"][0]
    found = read(tmp_path, f"case,{name}\na,{cell}\n", options)["a"].targets[name]
    assert found == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("options, text, words", [
    (BINARY, "case,pe\na,2\n", r"line 2: '2' .*0 or 1"),
    (BINARY, "case,pe\na,1\na,0\n", "line 3: a has a row already"),
    (BINARY, "case,pe\nstranger,1\n", r"1 rows name no scan .*stranger"),
    (BINARY, "case,PE\na,1\n", r"outputs pe; found case, PE"),
    (BINARY, "scan,pe\na,1\n", "column case or path"),
    (CLASSES, "case,stage\na,IV\n", "one of I, II, III or IV"),
    (CLASSES, "case,stage\na,3\n", "one of I, II, III or IV"),
    (NUMBER, "case,age\na,old\n", "a number"),
    (BINARY, "", "holds no row"),
])  # fmt: skip
def test_tables_that_do_not_fit_are_refused(tmp_path, options, text, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, text, options)


def test_a_path_that_two_scans_share_cannot_be_used(tmp_path):
    cases = {name: LabeledCase(Case(name, "day", name)) for name in ("a", "b")}
    with pytest.raises(InputError, match=r"day holds more than one scan.* case"):
        read(tmp_path, "path,pe\nday,1\n", BINARY, cases)
    assert read(tmp_path, "case,pe\nb,1\n", BINARY, cases)["b"].targets == {"pe": 1.0}


def test_rows_of_scans_that_cannot_be_read_are_left_out(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("path,pe\nday/a.nii.gz,1\nday/torn.nii.gz,0\n")
    found = read_labels(path, create_task("table", **BINARY), CASES, unusable=["day/torn.nii.gz"])
    assert list(found) == ["a"]
