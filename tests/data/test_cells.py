"""What cells of tables mean: unknown words, numbers, names that look alike; CSV as spreadsheets write it."""

import numpy as np
import pandas as pd
import pytest
from pandas._libs.parsers import STR_NA_VALUES

from voco.data.cells import known_labels, look_alikes, name_or_none
from voco.data.text_tables import did_you_mean, read_rows
from voco.errors import InputError


def known(cells, **settings):
    return known_labels("x", cells, option="--task.unknown", **settings)[0]


def test_every_word_that_pandas_takes_for_missing_is_unknown():
    for word in STR_NA_VALUES - {"None"}:
        assert known(["a", "b", word]) == ["a", "b", ""], word
    assert known(["61.5", "60", "None"]) == ["61.5", "60", ""], "beside a measurement it is no class"


_WORDS = ["NA", "#N/A", "#NV", "#DIV/0!", "NaN", "n.a.", "<NA>", "[Not Available]", "?", ".", "未知", "N.A", "\\N"]
_WORDS += ["not_available", "\uff2e\uff0f\uff21", "#¡VALOR!", "غير معروف", "\u200b"]


@pytest.mark.parametrize("word", _WORDS)
def test_words_of_others(word):
    cells, note = known_labels("x", ["a", word, "", "b"], option="--task.unknown")
    assert cells == ["a", "", "", "b"]
    assert not word.isprintable() or (repr(word) in note and "--task.unknown" in note)


@pytest.mark.parametrize(
    ("cells", "settings", "words"),
    [
        (["a", "b", "none"], {}, "--task.unknown none to leave.*--task.unknown \\[\\] to take it as a class"),
        (["pos", "neg", "-", "NA"], {}, "'-' .1 of 4 rows.*--task.unknown NA - to.*--task.unknown NA to take"),
        (["none", "1", "2", "3"], {}, "'none'.*a class"),
        (["0", "1", "refused", "x"], {}, "'refused' .*'x' .*or a class. Say --task.unknown refused x to"),
        (["61.5", "60", "58.1", "see it"], {}, "among numbers. Say --task.unknown 'see it' to .* write numbers"),
        (["0", "1", "unclear"], {"kind": "binary"}, "among numbers. Say --task.unknown unclear"),
        (["0", "1", "9"], {}, "'9' .*a value"),
        (["61", "45", "1.5", "77", "-888"], {}, "'-888'.*a value"),
        (["EU", "NA", "NA"], {}, "'EU' and nothing else.*'NA' .2 rows.*If 'NA' is a class, say --task.unknown \\[\\]"),
        (["61", "45", "-999"], {}, "'-999' .*a value"),
        (["0", "1", "-9"], {}, "'-9' .*a value"),
        (["61", "45", "999"], {"kind": "regression"}, "'999' .*a value"),
        (["1", "inf", "2", "NA"], {}, "not finite .inf.*--task.unknown NA inf"),
        (["1", "nan", "2"], {"unknown": []}, "not finite .nan"),
        (["1,234", "2,345"], {}, "write 1.234 or 1234"),
        (["0,5", "1.5"], {}, "comma .'0,5'. and with a point .'1.5'"),
        (["Yes", "yes", "No"], {}, "'Yes' and 'yes'"),
    ],
)
def test_what_could_be_read_in_two_ways_is_asked(cells, settings, words):
    with pytest.raises(InputError, match=words):
        known(cells, **settings)


@pytest.mark.parametrize(
    ("cells", "settings", "expected"),
    [
        (["+", "-"], {}, ["+", "-"]),
        (["++", "+/-", "-"], {}, ["++", "+/-", "-"]),
        (["-1", "0", "1"], {}, ["-1", "0", "1"]),
        (["\u22121", "0", "1"], {}, ["-1", "0", "1"]),
        (["0", "1", "-"], {}, ["0", "1", ""]),
        (["0,5", "61,25", "3", "NA"], {}, ["0.5", "61.25", "3", ""]),
        (["none", "mild", "NA"], {"unknown": ["NA"]}, ["none", "mild", ""]),
        (["none", "mild"], {"unknown": ["None"]}, ["", "mild"]),
        (["none", "mild", "-"], {"classes": ["none", "mild"]}, ["none", "mild", ""]),
        (["none", "mild", "severe"], {"kind": "binary"}, ["", "mild", "severe"]),
        (["61", "45", "-999.0"], {"unknown": ["-999"]}, ["61", "45", ""]),
        (["99", "61", "60"], {}, ["99", "61", "60"]),
        (["1", "2", "3a", ">3"], {}, ["1", "2", "3a", ">3"]),
        (["0", "1", "x"], {"kind": "multiclass"}, ["0", "1", "x"]),
        (["0", "TRUE", "1", "False"], {}, ["0", "1", "1", "0"]),
        (["TRUE", "FALSE"], {}, ["TRUE", "FALSE"]),
        (["TRUE", "FALSE"], {"kind": "binary"}, ["1", "0"]),
        (["0\u200b", "\ufeff1"], {}, ["0", "1"]),
        (["e\u0301", "\u00e9", "b"], {}, ["\u00e9", "\u00e9", "b"]),
    ],
)
def test_what_is_plain(cells, settings, expected):
    assert known(cells, **settings) == expected


def test_names():
    assert look_alikes(["001", "1", "3", "3.0", "4", "P01", "p1", "12"]) == [("001", "1"), ("3", "3.0"), ("P01", "p1")]
    found = look_alikes(["P-001", "P 1", "1E+05", "100000", "1-12", "11-2", "a b", "a_b", "ab"])
    assert found == [("100000", "1E+05"), ("P 1", "P-001"), ("a b", "a_b")]
    assert [name_or_none(cell) for cell in ("NA", "-", "", None, "none", "7", "-7")] == [None] * 5 + ["7", "-7"]
    assert did_you_mean("mailgnant", ["size", "Malignant"]) == "; did you mean 'Malignant'?"
    assert did_you_mean("grade", ["size", "age_years"]) == ""


@pytest.mark.parametrize("sep", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_tables_as_pandas_writes_them(tmp_path, sep, encoding):
    frame = pd.DataFrame({"path": ["a, b;c\td.nii", 'q"q'], "Größe": ["0,5", "1,25"], "组": ["阴性", "+\n-"]})
    frame.to_csv(tmp_path / "t.csv", sep=sep, encoding=encoding, index=False, lineterminator="\r\n")
    table = read_rows(tmp_path / "t.csv")
    assert [row for _, row in table.rows] == frame.to_dict("records")


def test_tables_of_excel_and_r(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'sep=;\r\n"";"path";"y"\r\n"1";"a";"1"\r\n;;\r\n"2";"b"\r\n')
    table = read_rows(path)
    assert table.columns == ["path", "y"]
    assert table.rows == [(3, {"path": "a", "y": "1"}), (5, {"path": "b", "y": ""})]
    path.write_bytes(b'path|y|z\r\na|="007"|x\r\n')
    assert read_rows(path).rows == [(2, {"path": "a", "y": "007", "z": "x"})]
    for raw, words in [
        (b'path,y\na,"0\nb,1\n', "a quote is opened and not closed in the row that begins with 'a'"),
        (b"PK\x03\x04...", "is a workbook"),
        (b"path,y\nGr\xf6\xdfe,1\n", "not UTF-8 text .line 2"),
        (b"path,y\na,0,5\n", "line 2 has 3 cells, the first line names 2 columns.*decimal commas"),
        (b"path,y,y\na,0,5\n", "named twice: 'y'"),
    ]:
        path.write_bytes(raw)
        with pytest.raises(InputError, match=words):
            read_rows(path)


def test_numbers_as_numpy_reads_them():
    cells = ["1e-3", "-0,5", "+2", ".25"]
    with pytest.raises(InputError, match="with a point"):
        known(cells)
    assert np.allclose([float(c) for c in known(["-0,5", "+2", ",25", "1e3"])], [-0.5, 2, 0.25, 1000])
