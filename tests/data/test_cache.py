import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

from voco.data import cache as cache_module
from voco.data.cache import EntryError, PreparedVolume, entry_key, read_footer, write_entry
from voco.errors import ScanError


def noisy_scan(shape, seed=0):
    rng = np.random.default_rng(seed)
    d, h, w = np.ogrid[: shape[0], : shape[1], : shape[2]]
    smooth = 400 * np.sin(d / 9.0) * np.cos(h / 11.0) * np.sin(w / 7.0)
    return np.clip(smooth + rng.normal(0, 30, shape), -1024, 3071).astype(np.int16)


@pytest.fixture
def entry(tmp_path):
    array = noisy_scan((70, 90, 131))
    path = tmp_path / f"{entry_key('a', 1)}.b2nd"
    write_entry(path, array, (5.0, 1.25, 1.25), {"case": {"id": "a"}, "slices": None})
    return path, array


def test_what_is_read_is_what_was_written_over_random_boxes(entry):
    path, array = entry
    volume = PreparedVolume.open(path)
    assert volume.shape == array.shape
    assert volume.spacing_mm == (5.0, 1.25, 1.25)
    margin = 40
    padded = np.pad(array, margin, constant_values=-1024)
    rng = np.random.default_rng(1)
    for _ in range(60):
        start = [int(rng.integers(-margin, n + margin - 1)) for n in array.shape]
        size = [int(rng.integers(1, min(80, n + margin - s) + 1)) for n, s in zip(array.shape, start)]
        expected = padded[tuple(slice(s + margin, s + margin + k) for s, k in zip(start, size))]
        found = volume.read(start, size)
        assert found.dtype == np.int16
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(volume.read((0, 0, 0), array.shape), array)
    assert (volume.read((-50, 0, 0), (50, 3, 3)) == -1024).all()
    assert (volume.read((70, 0, 0), (2, 3, 3)) == -1024).all()


def test_extreme_values_and_thin_volumes_survive(tmp_path):
    rng = np.random.default_rng(2)
    for shape in [(1, 5, 7), (4, 64, 64), (65, 1, 33), (64, 128, 3)]:
        array = rng.integers(-32768, 32768, shape).astype(np.int16)
        path = tmp_path / f"{entry_key(shape)}.b2nd"
        write_entry(path, array, (1, 1, 1), {})
        volume = PreparedVolume.open(path)
        volume.verify()
        np.testing.assert_array_equal(volume.read((0, 0, 0), shape), array)


@pytest.mark.parametrize("value", [0, -1024, 7])
def test_regions_of_one_value_survive(tmp_path, value):
    array = noisy_scan((70, 80, 90))
    array[:, :64, :64] = value
    path = tmp_path / f"{entry_key(value)}.b2nd"
    assert write_entry(path, array, (1, 1, 1), {}) == path.stat().st_size
    volume = PreparedVolume.open(path)
    volume.verify()
    np.testing.assert_array_equal(volume.read((0, 0, 0), array.shape), array)


def test_only_filled_int16_volumes_are_stored(tmp_path):
    for array in (np.zeros((4, 4, 4), np.float32), np.zeros((4, 4), np.int16), np.zeros((0, 4, 4), np.int16)):
        with pytest.raises(ScanError, match="int16"):
            write_entry(tmp_path / "x.b2nd", array, (1, 1, 1), {})
    assert list(tmp_path.iterdir()) == []


def test_plain_blosc2_reads_the_file_too(entry):
    import blosc2

    path, array = entry
    stored = blosc2.open(str(path), mode="r")
    np.testing.assert_array_equal(stored[:], array)
    assert json.loads(stored.schunk.vlmeta["voco"])["voxels_crc32"] == zlib.crc32(array)


def test_a_small_window_reads_a_small_part_of_the_file(entry, monkeypatch):
    path, _ = entry
    volume = PreparedVolume.open(path)
    volume.read((0, 0, 0), (8, 8, 8))
    assert volume._checked == {0}
    volume.read((60, 0, 124), (8, 8, 8))  # both sides of 64 along D and of 128 along W
    assert volume._checked == {0, 1, 2, 7, 8}


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.9, -1])
def test_a_truncated_entry_is_never_read(entry, keep):
    path, _ = entry
    data = path.read_bytes()
    cut = int(len(data) * keep) if isinstance(keep, float) else keep
    path.write_bytes(data[:cut])
    assert read_footer(path) is None
    with pytest.raises(EntryError, match="run voco prepare again"):
        PreparedVolume.open(path)


def test_an_entry_with_a_hole_or_flipped_bytes_is_never_read(entry):
    path, array = entry
    good = path.read_bytes()
    rng = np.random.default_rng(3)
    for start in [
        *rng.integers(0, len(good), 40),
        *range(0, 200, 9),
        *range(len(good) - 900, len(good), 37),
        4,
        len(good) - 3,
        len(good) - 30,
    ]:
        length = int(rng.integers(1, 3))
        part = bytes(255 - b for b in good[start : start + length])
        path.write_bytes(good[:start] + part + good[start + length :])
        with pytest.raises(EntryError, match="damaged"):
            PreparedVolume.open(path).read((0, 0, 0), array.shape)
    # A file system that lost a page: right length, zeros in the middle.
    path.write_bytes(good[:8192] + bytes(4096) + good[12288:])
    with pytest.raises(EntryError, match="damaged"):
        PreparedVolume.open(path).read((0, 0, 0), array.shape)


def test_an_entry_under_another_name_is_not_taken(entry, tmp_path):
    path, _ = entry
    other = tmp_path / f"{entry_key('b')}.b2nd"
    os.rename(path, other)
    assert read_footer(other) is None


def test_killed_in_the_middle_leaves_no_entry(tmp_path):
    """A writer that is killed at many moments leaves the old entry, whole, or the new one, whole."""
    path = tmp_path / "k.b2nd"
    code = (
        "import sys, numpy as np; from voco.data.cache import write_entry\n"
        "for i in range(10**6):\n"
        "    write_entry(sys.argv[1], np.full((64, 64, 64), i % 3000, np.int16), (1, 1, 1), {'i': i})\n"
        "    i or print('go', flush=True)"
    )
    for delay in (0.0, 0.013, 0.031, 0.07, 0.1):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        volume = PreparedVolume.open(path)
        volume.verify()
        assert (volume.read((0, 0, 0), (64, 64, 64)) == volume.meta["i"] % 3000).all()


def test_the_handle_is_not_carried_to_another_process(entry):
    path, array = entry
    volume = PreparedVolume.open(path)
    volume.read((0, 0, 0), (4, 4, 4))
    copy = pickle.loads(pickle.dumps(volume))
    assert copy._handle is None
    np.testing.assert_array_equal(copy.read((1, 2, 3), (9, 9, 9)), array[1:10, 2:11, 3:12])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_reader_does_not_hang(entry):
    path, _ = entry
    # In a process of its own: blosc2 may have been used in this one with threads, by another test.
    code = (
        "import os, sys; from voco.data.cache import PreparedVolume\n"
        "v = PreparedVolume.open(sys.argv[1]); parent = int(v.read((0, 0, 0), v.shape).astype('int64').sum())\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if int(v.read((0, 0, 0), v.shape).astype('int64').sum()) == parent else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60).returncode == 0


def test_key_depends_on_each_part():
    keys = {entry_key(*parts) for parts in [(), ("a",), ("a", 1), ("a", "1"), (["a", 1],), ("a", 1.5), ("a", None)]}
    assert len(keys) == 7
    assert entry_key({"b": 1, "a": 2}) == entry_key({"a": 2, "b": 1})


@pytest.mark.parametrize("hidden", [False, True])
def test_every_byte_is_under_a_checksum_wherever_chunks_lie(tmp_path, monkeypatch, hidden):
    """Also if blosc2 put bytes between its chunks, or did not keep them as they are: then all is checked on opening."""
    array = np.random.default_rng(1).integers(-9, 9, (70, 66, 20)).astype(np.int16)
    array[:64, 64:] = 0  # a chunk of zeros takes no room
    path = tmp_path / "k.b2nd"
    write_entry(path, array, (1, 1, 1), {})
    frame = path.read_bytes()[: read_footer(path)["frame_bytes"]]
    chunks = [bytes(c) for c in _chunks_of(path)]
    assert min(map(len, chunks)) <= 32 < max(map(len, chunks))
    spread = frame
    for chunk in chunks:
        if len(chunk) > 32:
            spread = spread.replace(chunk, chunk[::-1] if hidden else b"between" + chunk)
    table = cache_module._chunk_table(spread, _View(chunks))
    edges = [table["first"], *(table["first"] + np.cumsum(table["sizes"])).tolist()]
    parts = [spread[a:b] for a, b in itertools.pairwise(edges)]
    assert [zlib.crc32(part) if part else 0 for part in parts] == table["crc32"]
    assert zlib.crc32(spread[: edges[0]] + spread[edges[-1] :]) == table["around_crc32"]
    if hidden:
        assert table["first"] == len(spread) and not any(table["sizes"])
    else:
        assert all(part.startswith(chunk) for part, chunk in zip(parts, chunks) if part)
        assert sum(map(bool, parts)) == sum(len(chunk) > 32 for chunk in chunks)


class _View:
    def __init__(self, chunks):
        self.schunk, self.nchunks, self.get_chunk = self, len(chunks), chunks.__getitem__


def _chunks_of(path):
    import blosc2

    stored = blosc2.open(str(path), mode="r")
    return [stored.schunk.get_chunk(number) for number in range(stored.schunk.nchunks)]
