"""Files appear whole or not at all, and what killed writers leave is swept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from voco.files import TEMPORARY, _host, sweep, whole, write_bytes, write_json, write_text


def test_text_bytes_and_json(tmp_path):
    assert write_text(tmp_path / "new" / "a.txt", "caf\udce9 é\n").read_bytes() == "caf\\udce9 é\n".encode()
    assert write_bytes(tmp_path / "b", b"12", b"3").read_bytes() == b"123"
    write_json(tmp_path / "c.json", {"a": float("nan"), "b": tmp_path}, indent=1, default=str)
    assert (tmp_path / "c.json").read_text().endswith("}\n")
    with pytest.raises(ValueError, match="compliant"):
        write_json(tmp_path / "c.json", {"a": float("nan")}, nan=False)
    assert json.loads((tmp_path / "c.json").read_text())["b"] == str(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c.json", "new"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path, monkeypatch):
    write_text(tmp_path / "a.csv", "old")
    with pytest.raises(RuntimeError), whole(tmp_path / "a.csv") as place:
        assert place.suffix != ".csv" and place.parent == tmp_path
        place.write_text("half")
        raise RuntimeError

    def no_space(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "a.csv", b"123")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"] and (tmp_path / "a.csv").read_text() == "old"


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with whole(tmp_path / "a") as one, whole(tmp_path / "a") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


WRITER = """
import sys, time
from voco.files import whole
with whole(sys.argv[1]) as place:
    place.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(tmp_path):
    (tmp_path / "deep").mkdir()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "deep" / f"{name}.json")], stdout=subprocess.PIPE
        )
        for name in "ab"
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"writing\n"
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        sweep(tmp_path)
        (left,) = (tmp_path / "deep").iterdir()
        assert f"-{writers[1].pid}-" in left.name
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()


def test_a_writer_on_another_machine_may_live(tmp_path):
    for name, age in (("young", 60), ("old", 7 * 3600)):
        path = tmp_path / f"{TEMPORARY}{_host()}x-1-{name}.tmp"
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    (tmp_path / "data.npy").touch()
    sweep(tmp_path)
    assert sorted(path.name.rpartition("-")[2] for path in tmp_path.iterdir()) == ["data.npy", "young.tmp"]
