"""Which slices make a volume: phases, patients, monitoring images and jitter inside one series."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from voco.data.dicom import find_series, read_series, select_series
from voco.data.manifest import build_manifest
from voco.data.read import read_volume
from voco.errors import ScanError

_spec = importlib.util.spec_from_file_location("dicom_maker", Path(__file__).with_name("dicom_maker.py"))
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)
STEP = 3.0


def body(z, seed=0):
    """A noisy body in air whose organs change along z: int16 HU (slices, 48, 42)."""
    random = np.random.default_rng(seed)
    lean, wide = random.uniform(-0.4, 0.4, 2)
    z = np.asarray(z, float)[:, None, None] / 36
    y, x = (np.linspace(-1, 1, n) for n in (48, 42))
    y, x = y[None, :, None], x[None, None, :]
    hu = np.where((x / 0.9) ** 2 + (y / 0.75) ** 2 < 1, 40.0, -1000.0)
    hu = hu + 0 * z
    hu[(x - 0.4 + lean * z) ** 2 + (y + 0.2 * z) ** 2 < (0.35 + 0.2 * z * wide) ** 2] = -850
    hu[(x + 0.4 - 0.3 * z) ** 2 + (y - lean * z) ** 2 < 0.08 + 0.05 * z] = 200 + 300 * wide
    return np.clip(np.rint(hu + random.normal(0, 8, hu.shape)), -1024, 3000).astype(np.int16)


def write(folder, hu, z, name="a{:03d}.dcm", **tags):
    """A series of slices at z; every call has SOPInstanceUIDs of its own, all calls one study and series."""
    where = np.stack([np.full(len(z), -40.0), np.full(len(z), -30.0), np.asarray(z, float)], axis=1)
    each = tags.pop("each", lambda i: {})
    return maker.series(folder, hu, where=where, name=name, each=lambda i: {"copy": name} | each(i), **tags)


def records(root, rule="all"):
    return select_series(find_series(root), rule)


def volumes(root):
    return [read_series(r, root).array for r in records(root) if r.decision == "kept"]


Z = np.arange(12) * STEP
TELLS = {
    "AcquisitionNumber": ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
    "AcquisitionTime": ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101533.25"}),
    "ConvolutionKernel": ({}, {"ConvolutionKernel": "B60f"}),
    "PatientID": ({"PatientID": "A"}, {"PatientID": "B"}),
    "FrameOfReferenceUID": ({"FrameOfReferenceUID": "1.2.3"}, {"FrameOfReferenceUID": "1.2.4"}),
}


@pytest.mark.parametrize("key", [*TELLS, "folder", "time slice by slice"])
@pytest.mark.parametrize("apart", [0.0, 1.0, 1.5])
def test_two_scans_in_one_series_are_two_volumes(tmp_path, key, apart):
    """At the same planes, a third and half a step apart; told apart by one thing alone."""
    first, second = body(Z), body(Z + apart, seed=4)
    left, right = TELLS.get(key, ({}, {}))
    if key == "time slice by slice":
        left = {"each": lambda i: {"AcquisitionTime": f"1015{i * 0.4:09.6f}"}}
        right = {"each": lambda i: {"AcquisitionTime": f"1016{i * 0.4:09.6f}"}}
    write(tmp_path / "x", first, Z, **left)
    write(tmp_path / ("y" if key == "folder" else "x"), second, Z + apart, name="b{:03d}.dcm", **right)
    found = volumes(tmp_path)
    assert len(found) == 2
    assert all(any(np.array_equal(volume, truth) for volume in found) for truth in (first, second))
    assert all(
        f"told apart by {key.split(' ')[0].replace('time', 'AcquisitionTime')}" in r.reason for r in records(tmp_path)
    )
    kept = build_manifest(tmp_path).cases
    assert len(kept) == (2 if key == "PatientID" else 1)
    array = read_volume(tmp_path / kept[0].path, files=[tmp_path / f for f in kept[0].files]).array
    assert any(np.array_equal(array, truth) for truth in (first, second))


@pytest.mark.parametrize("apart", [1.0, 1.5])
def test_two_scans_that_nothing_tells_apart_are_refused(tmp_path, apart):
    write(tmp_path, body(Z), Z, each=lambda i: {"InstanceNumber": 2 * i})
    write(
        tmp_path, body(Z + apart, seed=4), Z + apart, name="b{:03d}.dcm", each=lambda i: {"InstanceNumber": 2 * i + 1}
    )
    with pytest.raises(ScanError, match="every other of its 24 slices"):
        read_volume(tmp_path)


@pytest.mark.parametrize("apart", [1.0, 1.5, 16.5, 36.0])
def test_scans_whose_images_are_counted_anew_are_two(tmp_path, apart):
    """One folder, and nothing else in the headers tells them apart."""
    one, other = body(Z), body(Z + apart, seed=4)
    write(tmp_path, one, Z)
    write(tmp_path, other, Z + apart, name="b{:03d}.dcm")
    found = volumes(tmp_path)
    assert len(found) == 2
    np.testing.assert_array_equal(found[0], one)
    np.testing.assert_array_equal(found[1], other)


@pytest.mark.parametrize("moved", [0, 1])
def test_two_acquisitions_that_are_counted_anew_are_one(tmp_path, moved):
    """They share a plane; the patient moved a little between them."""
    hu = body(Z)
    write(tmp_path, hu[:6], Z[:6])
    second = np.roll(body(Z, seed=0)[5:], moved, axis=1)
    write(tmp_path, second, Z[5:], name="b{:03d}.dcm", AcquisitionNumber=2)
    array = read_volume(tmp_path).array
    assert len(array) == 12
    np.testing.assert_array_equal(array[:5], hu[:5])
    np.testing.assert_array_equal(array[6:], second[1:])


def test_two_of_one_number_in_one_plane_are_not_told_apart_by_it(tmp_path):
    write(tmp_path, body(Z), Z)
    write(tmp_path, body(Z, seed=4), Z, name="b{:03d}.dcm")
    with pytest.raises(ScanError, match="different pixels"):
        read_volume(tmp_path)


def test_monitoring_images_outside_of_the_scan(tmp_path):
    hu = body(Z)
    write(tmp_path, hu, Z, AcquisitionNumber=3)
    write(tmp_path, body(np.full(6, 90.0), seed=2), np.full(6, 90.0), name="m{:03d}.dcm", AcquisitionNumber=2)
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)
    assert [r.kind for r in records(tmp_path)] == ["original", "monitoring"]


def test_masks_with_the_intercept_of_their_scan_are_masks(tmp_path):
    hu = body(Z)
    write(tmp_path, hu, Z)
    labels = np.where(hu > 100, np.int16(255), np.int16(0)) - np.int16(1024)
    write(tmp_path / "liver", labels, Z, name="m{:03d}.dcm", series="9.9")
    assert sorted((r.kind, r.decision) for r in records(tmp_path)) == [("mask", "rejected"), ("original", "kept")]


@pytest.mark.parametrize(
    "each",
    [
        lambda i: {"AcquisitionNumber": 1 + i % 2},
        lambda i: {"AcquisitionNumber": i},
        lambda i: {"AcquisitionNumber": 1 + i // 6},
        lambda i: {"AcquisitionTime": f"10{10 + 7 * (i % 2)}00"},
        lambda i: {"PatientID": f"P{i}"},
        lambda i: {"PatientID": f"P{i % 2}"},
        lambda i: {"FrameOfReferenceUID": f"1.2.{i}", "KVP": str(80 + 40 * (i % 2))},
        lambda i: {"SOPInstanceUID": "1.2.3"},
        lambda i: {"InstanceNumber": (5 * i) % 12},
    ],
)
def test_no_value_alone_parts_a_volume(tmp_path, each):
    hu = body(Z)
    write(tmp_path, hu, Z, each=each)
    assert [np.array_equal(volume, hu) for volume in volumes(tmp_path)] == [True]


def test_files_dealt_to_folders_are_one_volume(tmp_path):
    hu = body(Z)
    for i in range(12):
        write(tmp_path / f"DIR{i % 3}", hu[i : i + 1], Z[i : i + 1], name=f"{i:03d}")
    assert [np.array_equal(volume, hu) for volume in volumes(tmp_path)] == [True]


def test_one_uid_for_all_files_of_two_phases(tmp_path):
    first, second = body(Z), body(Z, seed=4)
    write(tmp_path, first, Z, SOPInstanceUID="1.2.3")
    write(tmp_path, second, Z, name="b{}.dcm", SOPInstanceUID="1.2.3", AcquisitionNumber=2)
    found = volumes(tmp_path)
    assert len(found) == 2 and np.array_equal(found[0], first) and np.array_equal(found[1], second)
    assert "share 1 SOPInstanceUID" in records(tmp_path)[0].reason


def test_equal_uids_of_two_patients_do_not_make_copies(tmp_path):
    first, second = body(Z), body(Z, seed=4)
    uids = {"each": lambda i: {"SOPInstanceUID": f"1.2.{i}"}}
    write(tmp_path / "p1", first, Z, **uids)
    write(tmp_path / "p2", second, Z, **uids)
    found = volumes(tmp_path)
    assert len(found) == 2 and np.array_equal(found[0], first) and np.array_equal(found[1], second)


def test_a_copy_of_the_folder_is_no_second_volume(tmp_path):
    hu = body(Z)
    for folder, uid in (("a", "1.2.3."), ("backup", "1.2.3."), ("sent", "1.2.4.")):
        write(tmp_path / folder, hu, Z, each=lambda i, uid=uid: {"SOPInstanceUID": f"{uid}{i}"})
    assert [np.array_equal(volume, hu) for volume in volumes(tmp_path)] == [True]
    assert "24 repeated slices dropped" in records(tmp_path)[0].reason


@pytest.mark.parametrize("order", ["one above the other", "interleaved"])
def test_two_patients_of_one_folder(tmp_path, order):
    z = Z + (12 * STEP if order == "one above the other" else STEP / 2)
    first, second = body(Z), body(z, seed=4)
    write(tmp_path, first, Z, PatientID="A")
    write(tmp_path, second, z, name="b{}.dcm", PatientID="B")
    manifest = build_manifest(tmp_path)
    assert len(manifest.cases) == 2 and len({case.patient for case in manifest.cases}) == 2
    found = volumes(tmp_path)
    assert np.array_equal(found[0], first) and np.array_equal(found[1], second)


def test_two_scans_one_above_the_other_are_told_apart_by_their_pixels(tmp_path):
    first, second = body(Z), body(Z[::-1], seed=4)
    write(tmp_path, first, Z, AcquisitionNumber=1)
    write(tmp_path, second, Z + 12 * STEP, name="b{}.dcm", AcquisitionNumber=2)
    assert [len(volume) for volume in volumes(tmp_path)] == [12, 12]
    np.testing.assert_array_equal(read_volume(tmp_path / "b3.dcm").array, second)


@pytest.mark.parametrize("tell", [{"AcquisitionNumber": 2}, {"AcquisitionTime": "101400"}, {"SliceThickness": "10"}])
@pytest.mark.parametrize("at", [6, 6.5])
def test_monitoring_images_are_set_aside(tmp_path, tell, at):
    hu = body(Z)
    write(tmp_path, hu, Z, AcquisitionNumber=1, AcquisitionTime="101500")
    monitor = np.repeat(body([at * STEP], seed=0), 5, axis=0) + (10 * np.arange(5)[:, None, None]).astype(np.int16)
    tags = {"AcquisitionNumber": 1, "AcquisitionTime": "101500"} | tell
    write(tmp_path, monitor, np.full(5, at * STEP), name="m{}.dcm", **tags)
    found = {record.kind: record for record in records(tmp_path)}
    assert (found["original"].decision, found["original"].slices) == ("kept", 12)
    assert found["monitoring"].decision == "rejected" and "5 images in 1 plane" in found["monitoring"].reason
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)
    manifest = build_manifest(tmp_path)
    assert len(manifest.cases) == 1 and not manifest.rejected
    assert {row["kind"] for row in manifest.series} == {"original", "monitoring"}


@pytest.mark.parametrize("cut", [7, 12])
def test_acquisitions_that_share_a_plane_are_one_volume(tmp_path, cut):
    """Thirteen images of twelve planes: of the shared one the better fitting image stays."""
    hu = body(Z)
    other = np.clip(hu[cut - 1].astype(int) + 150, -1024, 3000).astype(np.int16)
    write(tmp_path, hu[:cut], Z[:cut])
    write(tmp_path, np.r_[other[None], hu[cut:]], Z[cut - 1 :], name="b{}.dcm", AcquisitionNumber=2)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    if cut < 12:
        assert len(volume.slices) == 13 and sum(s.kept for s in volume.slices) == 12
        assert "left aside (b0.dcm)" in records(tmp_path)[0].reason


@pytest.mark.parametrize("about", ["corner", "middle"])
def test_slices_that_jitter_are_one_volume(tmp_path, about):
    """0.2 degrees about two axes, as some anonymisers and table encoders leave them."""
    random, hu = np.random.default_rng(1), body(Z)
    half = np.array([41 * 0.7, 47 * 0.8]) / 2
    for i, z in enumerate(Z):
        a, b = np.radians(random.uniform(-0.2, 0.2, 2))
        row, col = np.array([np.cos(a), 0, np.sin(a)]), np.array([0, np.cos(b), np.sin(b)])
        corner = np.array([-40.0, -30, z])
        if about == "middle":
            corner = corner + half[0] * (np.array([1.0, 0, 0]) - row) + half[1] * (np.array([0, 1.0, 0]) - col)
        ds = maker.dataset((hu[i] + 1024).astype(np.uint16), number=i, position=corner, orientation=(*row, *col))
        maker.save(ds, tmp_path / f"{i}.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.spacing_mm[0] == pytest.approx(STEP, rel=0.005)
    (record,) = records(tmp_path)
    assert "turned against each other by up to 0.2" in record.reason


def test_masks_stored_as_ct_are_no_scans(tmp_path):
    """A liver data set with one folder for the scan and one for each organ, all with the same UIDs."""
    hu = body(Z)
    write(tmp_path / "PATIENT_DICOM", hu, Z)
    for organ, level in (("liver", 30), ("bone", 100)):
        mask = np.where(hu > level, 255, 0).astype(np.int16) - np.int16(1024)
        write(tmp_path / "MASKS_DICOM" / organ, mask, Z, name=f"{organ}{{}}", RescaleIntercept=None, RescaleSlope=None)
    manifest = build_manifest(tmp_path)
    assert [case.path for case in manifest.cases] == ["PATIENT_DICOM"] and not manifest.rejected
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)
    assert [row["kind"] for row in manifest.series].count("mask") == 2
    assert any("a mask: whole numbers from 0 to 255" in row["reason"] for row in manifest.series)
