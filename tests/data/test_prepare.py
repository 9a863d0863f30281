import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from voco import read_volume
from voco.data import prepare as prepare_module
from voco.data.cache import PreparedVolume
from voco.data.manifest import build_manifest
from voco.data.pool import Crashed, run_isolated
from voco.data.prepare import PrepareSettings, case_key, prepare
from voco.errors import InputError

_spec = importlib.util.spec_from_file_location("dicom_maker", Path(__file__).with_name("dicom_maker.py"))
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)


def write_scan(path, shape=(12, 20, 24), spacing=(3.0, 1.0, 1.5), seed=0, array=None):
    if array is None:
        array = np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((-40.0, -30.0, 100.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return array


@pytest.fixture
def cohort(tmp_path):
    root = tmp_path / "scans"
    for number in range(3):
        write_scan(root / f"s{number}.nii.gz", seed=number)
    maker.series(root / "dicom", maker.anatomy((8, 10, 11)))
    write_scan(root / "broken.nii.gz", array=np.ones((9, 9, 9), np.int16))  # a mask, not Hounsfield units
    return build_manifest(root)


def run(manifest, cache, workers=1, **settings):
    return prepare(manifest.cases, manifest.root, cache, PrepareSettings(**settings), workers=workers, progress=False)


def test_native_spacing_is_bit_exact_and_complete(cohort, tmp_path):
    result = run(cohort, tmp_path / "cache", spacing_mm="native")
    assert (result.made, result.reused) == (4, 0)
    assert [item.path for item in result.rejected] == ["broken.nii.gz"]
    assert [entry.case for entry in result.entries] == [c for c in cohort.cases if c.path != "broken.nii.gz"]
    for entry in result.entries:
        source = read_volume(cohort.root / entry.case.path)
        stored = PreparedVolume.open(entry.path)
        assert stored.shape == entry.shape == source.array.shape
        np.testing.assert_array_equal(stored.read((0, 0, 0), stored.shape), source.array)
        np.testing.assert_allclose(stored.spacing_mm, source.spacing_mm)
        np.testing.assert_allclose(stored.meta["affine"], source.affine)
        assert stored.meta["case"]["id"] == entry.case.id
        assert entry.bytes == entry.path.stat().st_size


def test_twice_does_nothing_the_second_time(cohort, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = run(cohort, cache)
    before = {p.name: p.stat().st_mtime_ns for p in cache.iterdir()}
    monkeypatch.setattr(prepare_module, "prepare_case", lambda job: pytest.fail("a scan was read again"))
    second = run(cohort, cache)
    assert (second.made, second.reused) == (0, 4)
    assert second.entries == first.entries
    assert second.rejected == first.rejected
    assert {p.name: p.stat().st_mtime_ns for p in cache.iterdir()} == before


def test_a_refused_scan_is_tried_again_when_asked_or_when_the_reader_changed(cohort, tmp_path, monkeypatch):
    tried = []
    real = prepare_module.prepare_case
    monkeypatch.setattr(prepare_module, "prepare_case", lambda job: tried.append(job.case.path) or real(job))
    cache = tmp_path / "cache"
    for expected, retry, reader in [(5, False, "a"), (0, False, "a"), (1, True, "a"), (1, False, "b"), (0, False, "b")]:
        monkeypatch.setattr(prepare_module, "_reader", lambda reader=reader: reader)
        tried.clear()
        result = prepare(cohort.cases, cohort.root, cache, progress=False, retry_rejected=retry)
        assert len(tried) == expected
        assert [item.path for item in result.rejected] == ["broken.nii.gz"] and len(result.entries) == 4


def test_files_that_no_reader_expects_are_rejected_too(tmp_path):
    root = tmp_path / "scans"
    write_scan(root / "good.nii.gz")
    (root / "words.nii.gz").write_bytes(b"not a scan")
    (root / "empty.mha").write_bytes(b"")
    write_scan(root / "half.nrrd")
    (root / "half.nrrd").write_bytes((root / "half.nrrd").read_bytes()[:3000])
    result = run(build_manifest(root), tmp_path / "cache")
    assert [e.case.path for e in result.entries] == ["good.nii.gz"]
    assert [r.path for r in result.rejected] == ["empty.mha", "half.nrrd", "words.nii.gz"]
    assert all(r.reason and str(root) not in r.reason for r in result.rejected)


def test_changed_sources_and_settings_are_prepared_anew(cohort, tmp_path):
    cache = tmp_path / "cache"
    run(cohort, cache)
    assert run(cohort, cache, crop_body=True).made == 4
    assert run(cohort, cache, spacing_mm=(None, 1.5, 1.5)).made == 4
    assert run(cohort, cache).made == 0
    changed = write_scan(cohort.root / "s1.nii.gz", seed=77)
    again = run(cohort, cache, spacing_mm="native")
    entry = next(e for e in again.entries if e.case.path == "s1.nii.gz")
    np.testing.assert_array_equal(PreparedVolume.open(entry.path).read((0, 0, 0), entry.shape), changed)
    assert run(cohort, cache).made == 1
    # The same size and another time is a change, as is one slice of a series.
    os.utime(cohort.root / "s0.nii.gz", ns=(1, 1))
    os.utime(cohort.root / "dicom" / "im003.dcm", ns=(1, 1))
    assert run(cohort, cache).made == 2


def test_voxels_beside_a_header_count_as_source(tmp_path):
    root = tmp_path / "scans"
    write_scan(root / "a.mhd")
    manifest = build_manifest(root)
    before = case_key(manifest.cases[0], root, PrepareSettings())
    os.utime(root / "a.raw", ns=(5, 5))
    assert case_key(manifest.cases[0], root, PrepareSettings()) != before


def test_the_folder_of_scans_may_move(cohort, tmp_path):
    cache = tmp_path / "cache"
    run(cohort, cache)
    moved = tmp_path / "elsewhere"
    shutil.move(cohort.root, moved)
    assert run(build_manifest(moved), cache).made == 0


def test_damaged_entries_are_made_again(cohort, tmp_path):
    cache = tmp_path / "cache"
    entries = run(cohort, cache).entries
    whole = PreparedVolume.open(entries[0].path).read((0, 0, 0), entries[0].shape)
    data = entries[0].path.read_bytes()
    entries[0].path.write_bytes(data[: len(data) // 2])
    entries[1].path.unlink()
    again = run(cohort, cache)
    assert (again.made, again.reused) == (2, 2)
    np.testing.assert_array_equal(PreparedVolume.open(entries[0].path).read((0, 0, 0), whole.shape), whole)


def test_processes_give_what_one_gives(cohort, tmp_path):
    one = run(cohort, tmp_path / "a")
    two = run(cohort, tmp_path / "b", workers=2)
    assert [e.path.name for e in one.entries] == [e.path.name for e in two.entries]
    for a, b in zip(one.entries, two.entries):
        a, b = PreparedVolume.open(a.path), PreparedVolume.open(b.path)
        np.testing.assert_array_equal(a.read((0, 0, 0), a.shape), b.read((0, 0, 0), b.shape))
        assert a.meta == b.meta
    assert one.rejected == two.rejected


def test_a_scan_that_kills_its_reader_does_not_stop_the_cohort(cohort, tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "from voco.data.prepare import prepare_case as real\n"
        "def prepare_case(job):\n"
        "    if job.case.path == 's1.nii.gz':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(job)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import deadly

    monkeypatch.setattr(prepare_module, "prepare_case", deadly.prepare_case)
    result = run(cohort, tmp_path / "cache", workers=2)
    assert result.made == 3
    reasons = {item.path: item.reason for item in result.rejected}
    assert set(reasons) == {"broken.nii.gz", "s1.nii.gz"}
    assert "SIGKILL" in reasons["s1.nii.gz"] and "memory" in reasons["s1.nii.gz"]
    # A crash may have been bad luck: it is tried again on the next run.
    monkeypatch.undo()
    assert run(cohort, tmp_path / "cache").made == 1


def test_pool_outlives_crashes():
    tasks = ["6 * 7", "__import__('os').abort()", "'a' * 3", "__import__('os')._exit(3)", "1 + 1"]
    found = dict(run_isolated(eval, tasks, 2))
    assert (found[0], found[2], found[4]) == (42, "aaa", 2)
    assert found[1] == Crashed("the process that read it died: SIGABRT")
    assert "exit code 3" in found[3].reason


def test_interrupted_at_any_moment_it_goes_on_where_it_was(tmp_path):
    root, cache = tmp_path / "scans", tmp_path / "cache"
    for number in range(12):
        write_scan(root / f"s{number:02d}.nii", shape=(40, 60, 60), seed=number)
    code = (
        "import sys; from voco.data.manifest import build_manifest; from voco.data.prepare import prepare\n"
        "m = build_manifest(sys.argv[1]); prepare(m.cases, m.root, sys.argv[2], progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(root), str(cache)])
    deadline = time.monotonic() + 60
    while not (cache.is_dir() and any(cache.glob("*.b2nd"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    manifest = build_manifest(root)
    result = run(manifest, cache)
    assert result.reused >= 1 and result.made + result.reused == 12
    for entry in result.entries:
        PreparedVolume.open(entry.path).verify()


def test_two_processes_may_prepare_into_one_folder(tmp_path):
    root, cache = tmp_path / "scans", tmp_path / "cache"
    for number in range(6):
        write_scan(root / f"s{number}.nii", shape=(30, 60, 60), seed=number)
    code = (
        "import sys; from voco.data.manifest import build_manifest; from voco.data.prepare import prepare\n"
        "m = build_manifest(sys.argv[1]); r = prepare(m.cases, m.root, sys.argv[2], progress=False)\n"
        "sys.exit(len(r.entries) != 6 or bool(r.rejected))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(root), str(cache)]) for _ in range(2)]
    assert [process.wait(timeout=100) for process in both] == [0, 0]
    assert len(list(cache.iterdir())) == 6
    assert run(build_manifest(root), cache).made == 0


def test_a_full_disk_is_one_sentence_and_keeps_what_is_there(cohort, tmp_path, monkeypatch):
    real, calls = prepare_module.write_entry, []

    def full_after_two(*args):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(prepare_module, "write_entry", full_after_two)
    with pytest.raises(InputError, match=r"No space left on device.*start the same command again"):
        run(cohort, tmp_path / "cache")
    monkeypatch.undo()
    assert run(cohort, tmp_path / "cache").reused == 2


def test_too_little_space_is_foretold(tmp_path, monkeypatch):
    root = tmp_path / "scans"
    for number in range(20):
        write_scan(root / f"s{number:02d}.nii", seed=number)
    monkeypatch.setattr(
        prepare_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(total=10**9, used=10**9, free=20_000)
    )
    with pytest.raises(InputError, match="12 scans still to prepare need about"):
        run(build_manifest(root), tmp_path / "cache")


def test_a_cache_that_cannot_be_a_folder(cohort, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache folder"):
        run(cohort, tmp_path / "file")


def test_nothing_of_a_person_is_stored(cohort, tmp_path):
    result = run(cohort, tmp_path / "cache")
    entry = next(e for e in result.entries if e.case.series)
    text = json.dumps(PreparedVolume.open(entry.path).meta) + repr(result.rejected)
    for secret in (*maker.SECRET.values(), "Roe", str(cohort.root)):
        assert secret not in text
    assert entry.case.patient in text


def test_slices_map_to_the_prepared_grid_and_back(tmp_path):
    """HU of each source slice says which it is: the prepared volume at the stored index must show the same number."""
    root = tmp_path / "scans"
    count, step = 14, 3.0
    hu = np.full((count, 40, 44), -1000, np.int16)
    hu[:, 8:32, 6:38] = (np.arange(count) * 20 - 100)[:, None, None]  # body from slice 0 on
    hu[:3] = -1000  # air alone below slice 3: cut away by crop_body
    maker.series(root / "a", hu, where=maker.positions(count, step))
    manifest = build_manifest(root)
    for crop in (False, True):
        result = run(manifest, tmp_path / "cache", spacing_mm=(1.25, None, None), crop_body=crop)
        volume = PreparedVolume.open(result.entries[0].path)
        meta, array = volume.meta, volume.read((0, 0, 0), volume.shape)
        assert [s["kept"] for s in meta["slices"]] == [True] * count
        middle = array[:, array.shape[1] // 2, array.shape[2] // 2].astype(float)
        first = meta["source"]["box"][0][0]
        assert (first > 0) == crop
        for number, info in enumerate(meta["slices"]):
            assert info["sop_uid"] == maker.uid("s", "a", number + 1)
            assert info["z_mm"] == pytest.approx(-100 + number * step)
            assert info["index"] == pytest.approx((number - first) * step / 1.25)
            if number >= 4 and info["index"] <= len(middle) - 1:
                assert np.interp(info["index"], np.arange(len(middle)), middle) == pytest.approx(
                    number * 20 - 100, abs=9
                )
        # Upright planes: the affine of the prepared grid says the same.
        affine = np.array(meta["affine"])
        for info in meta["slices"]:
            assert affine[2] @ [info["index"], 0, 0, 1] == pytest.approx(info["z_mm"])


def test_slices_at_uneven_distances_keep_their_place(tmp_path):
    root = tmp_path / "scans"
    z = np.array([0, 2, 4, 6, 8, 12, 14, 16, 18, 20.0])  # one slice is missing at 10
    where = np.array([[-40.0, -30.0, value] for value in z])
    hu = np.full((len(z), 20, 22), -900, np.int16)
    hu[:, 5:15, 5:15] = (z * 10)[:, None, None]
    maker.series(root / "a", hu, where=where)
    result = run(build_manifest(root), tmp_path / "cache", spacing_mm=(1.0, None, None))
    assert not result.rejected
    volume = PreparedVolume.open(result.entries[0].path)
    slices = volume.meta["slices"]
    np.testing.assert_allclose([s["z_mm"] for s in slices], z)
    np.testing.assert_allclose([s["index"] for s in slices], z, atol=0.05)
    line = volume.read((0, 10, 10), (volume.shape[0], 1, 1)).ravel()
    np.testing.assert_allclose(line[np.rint([s["index"] for s in slices]).astype(int)], z * 10, atol=6)


@pytest.mark.parametrize("tilted", [True, False])
def test_slices_of_leaning_planes_keep_their_place(tmp_path, tilted):
    """Gantry tilt (slices follow each other along z) and an oblique scan (along their normal), both by 20 degrees."""
    count, step, angle = 16, 3.0, np.deg2rad(20)
    column = (0.0, np.cos(angle), np.sin(angle))
    along = (0.0, 0.0, 1.0) if tilted else (0.0, -np.sin(angle), np.cos(angle))
    hu = np.full((count, 60, 44), -1000, np.int16)
    hu[:, 15:45, 6:38] = (np.arange(count) * 20 - 100)[:, None, None]
    where = maker.positions(count, step, along=along)
    maker.series(tmp_path / "scans" / "a", hu, where=where, orientation=(1.0, 0.0, 0.0, *column))
    result = run(build_manifest(tmp_path / "scans"), tmp_path / "cache", spacing_mm=(1.0, None, None))
    volume = PreparedVolume.open(result.entries[0].path)
    array = volume.read((0, 0, 0), volume.shape)
    shown = np.array([np.median(plane[plane > -500]) for plane in array])
    assert [s["kept"] for s in volume.meta["slices"]] == [True] * count
    for number, info in enumerate(volume.meta["slices"]):
        assert info["sop_uid"] == maker.uid("s", "a", number + 1)
        if info["index"] <= len(shown) - 1:
            assert np.interp(info["index"], np.arange(len(shown)), shown) == pytest.approx(number * 20 - 100, abs=4)


@pytest.mark.real
def test_real_scans_take_at_most_1_2_bytes_per_voxel(tmp_path):
    if "VOCO_TEST_CT" not in os.environ:
        pytest.skip("set VOCO_TEST_CT to a folder with CT scans")
    manifest = build_manifest(os.environ["VOCO_TEST_CT"])
    result = run(manifest, tmp_path / "cache", spacing_mm=1.5)
    assert not result.rejected and len(result.entries) == len(manifest.cases)
    for entry in result.entries:
        assert entry.bytes / np.prod(entry.shape) <= 1.2, entry.case.id
        PreparedVolume.open(entry.path).verify()
