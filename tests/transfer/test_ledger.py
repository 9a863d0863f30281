"""Looks at the test set: every one is counted, also of many processes at once and after a torn line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from voco.errors import InputError
from voco.transfer.ledger import content_hash, ledger_path, looks, open_test, test_set_hash

CODE = """
import sys
from voco.transfer.ledger import open_test
for i in range(25):
    open_test(sys.argv[1], config_hash=f"{sys.argv[2]}-{i}", commit="c" * 3000, test_set="s")
"""


def test_each_look_adds_a_line_with_its_facts(tmp_path):
    split = tmp_path / "splits.csv"
    assert looks(split) == 0
    assert open_test(split, config_hash="a1", commit="c1", out="runs/x") == 1
    assert open_test(split, config_hash="a2", commit="c1") == 2 == looks(split)
    rows = [json.loads(line) for line in (tmp_path / "test_ledger.jsonl").read_text().splitlines()]
    assert [row["config_hash"] for row in rows] == ["a1", "a2"]
    assert rows[0]["commit"] == "c1" and rows[0]["out"] == "runs/x" and rows[0]["time"].endswith("+00:00")


def test_looks_at_another_test_set_do_not_count(tmp_path):
    one, other = test_set_hash(["a", "b"]), test_set_hash(["a", "c"])
    assert one == test_set_hash(["b", "a", "a"]) != other
    split = tmp_path / "splits.csv"
    assert open_test(split, config_hash="", commit="", test_set=one) == 1
    assert open_test(split, config_hash="", commit="", test_set=other) == 1
    assert open_test(split, config_hash="", commit="") == 3 and looks(split, one) == 2


def test_runs_with_splits_of_their_own_know_of_each_other(tmp_path):
    cache, files = tmp_path / "cache", [tmp_path / name / "splits.csv" for name in ("a", "b")]
    for folder in (cache, *(file.parent for file in files)):
        folder.mkdir()
    settings = {"config_hash": "", "commit": "", "shared": cache}
    assert open_test(files[0], test_set="s", **settings) == 1
    assert open_test(files[1], test_set="s", **settings) == 2, "the same patients, opened from another folder"
    assert open_test(files[1], test_set="other", **settings) == 1 == looks(files[0], "other", cache)
    assert looks(files[0], "s", cache) == 2 and looks(files[0], "s") == 1
    # the same file twice is one ledger, and a cache that is gone keeps nobody from counting beside the split
    assert looks(cache / "splits.csv", "s", cache) == 2
    assert open_test(files[0], test_set="s", config_hash="", commit="", shared=tmp_path / "gone") == 2


def test_looks_are_counted_by_what_the_scans_hold_and_not_by_their_names(tmp_path):
    scans, other = content_hash([b"1", b"2"]), content_hash([b"1", b"3"])
    assert scans == content_hash([b"2", b"1", b"1"]) != other
    split, cache = tmp_path / "splits.csv", tmp_path / "cache"
    cache.mkdir()
    settings = {"config_hash": "", "commit": "", "shared": cache}
    assert open_test(split, test_set="names", content=scans, **settings) == 1
    assert open_test(split, test_set="renamed", content=scans, **settings) == 2
    assert open_test(split, test_set="names", content=other, **settings) == 1, "the names of before, other scans"
    again = tmp_path / "again" / "splits.csv"
    again.parent.mkdir()
    assert open_test(again, test_set="new", content=scans, **settings) == 3, "known from the cache"
    # who knows the names alone counts what stands under the scans that had these names
    assert looks(split, "renamed") == 2 and looks(again, "new", cache) == 3


def test_lines_of_before_count_by_their_names(tmp_path):
    split = tmp_path / "splits.csv"
    open_test(split, test_set="names", config_hash="", commit="")
    open_test(split, test_set="others", config_hash="", commit="")
    assert open_test(split, test_set="names", content="c", config_hash="", commit="") == 2
    assert looks(split, "others", content="d") == 1


def test_writers_at_the_same_time_all_count(tmp_path):
    split = tmp_path / "splits.csv"
    running = [subprocess.Popen([sys.executable, "-c", CODE, str(split), str(k)]) for k in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    rows = [json.loads(line) for line in ledger_path(split).read_text().splitlines()]
    assert len(rows) == 100 == looks(split, "s") and len({row["config_hash"] for row in rows}) == 100


def test_a_torn_line_counts_and_spoils_nothing(tmp_path):
    split = tmp_path / "splits.csv"
    ledger_path(split).write_text('{"time": "2024')
    assert open_test(split, config_hash="x", commit="y", test_set="s") == 2
    assert json.loads(ledger_path(split).read_text().splitlines()[-1])["config_hash"] == "x"


def test_a_ledger_that_cannot_be_written_keeps_the_test_set_shut(tmp_path):
    with pytest.raises(InputError, match="cannot be opened"):
        open_test(tmp_path / "missing" / "splits.csv", config_hash="", commit="")
    os.mkdir(tmp_path / "test_ledger.jsonl")
    with pytest.raises(InputError, match="cannot be opened"):
        open_test(tmp_path / "splits.csv", config_hash="", commit="")
