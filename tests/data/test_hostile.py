"""What comes out of hospitals, archives and broken transfers: each is one sentence, nothing waits, nothing grows."""

from __future__ import annotations

import gzip
import importlib.util
import os
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from voco import read_volume
from voco.data.dicom import find_series
from voco.data.itk import detached_files
from voco.data.manifest import build_manifest, split_patients, write_rejected
from voco.data.prepare import PrepareSettings, case_key, prepare
from voco.errors import InputError, ScanError

_spec = importlib.util.spec_from_file_location("dicom_maker", Path(__file__).with_name("dicom_maker.py"))
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)


@pytest.fixture
def hu():
    return maker.anatomy((8, 10, 11))


def sentence(path) -> str:
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(path))
    return text


def image(hu):
    out = sitk.GetImageFromArray(hu)
    out.SetSpacing((0.5, 0.75, 2.0))
    return out


@pytest.mark.parametrize("size", [(32767, 32767, 32767), (3000, 3000, 2000)])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_nifti_header_that_claims_more_than_there_is(tmp_path, hu, size, suffix):
    nibabel.save(nibabel.Nifti1Image(hu.T, np.diag([-0.8, -0.7, 2, 1])), tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<8h", raw, 40, 3, *size, 1, 1, 1, 1)
    (tmp_path / f"b.{suffix}").write_bytes(gzip.compress(raw) if suffix == "nii.gz" else raw)
    assert f"{hu.nbytes} of {2 * int(np.prod(size, dtype=np.int64))} bytes" in sentence(tmp_path / f"b.{suffix}")


@pytest.mark.parametrize("size", [(0, 10, 8), (-5, 10, 8)])
def test_nifti_of_no_size(tmp_path, hu, size):
    nibabel.save(nibabel.Nifti1Image(hu.T, np.eye(4)), tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<8h", raw, 40, 3, *size, 1, 1, 1, 1)
    (tmp_path / "a.nii").write_bytes(raw)
    assert "size of" in sentence(tmp_path / "a.nii")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
def test_itk_header_that_claims_more_than_there_is(tmp_path, hu, suffix, compress):
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image(hu), str(path), compress)
    raw = path.read_bytes()
    changed = raw.replace(b"11 10 8\n", b"100000 100000 100000\n")
    assert changed != raw
    path.write_bytes(changed)
    assert str(2 * 10**15) in sentence(path)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("DimSize = 11 10 8", "DimSize = -3 10 8", "size of -3 10 8"),
        ("ElementSpacing = 0.5", "ElementSpacing = 0", "voxel size 0 "),
        ("ElementSpacing = 0.5", "ElementSpacing = -0.5", "voxel size -0.5"),
        ("ElementSpacing = 0.5", "ElementSpacing = nan", "voxel size nan"),
    ],
)
def test_metaimage_of_no_size(tmp_path, hu, old, new, expected):
    sitk.WriteImage(image(hu), str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text()
    assert old in text
    (tmp_path / "a.mhd").write_text(text.replace(old, new))
    assert expected in sentence(tmp_path / "a.mhd")


@pytest.mark.parametrize(("key", "value"), [("NDims", "93"), ("NDims", "2"), ("TransformMatrix", "1 0 0 1")])
def test_metaimage_with_lists_of_another_length(tmp_path, hu, key, value):
    """ITK writes beyond its own memory for some of these."""
    sitk.WriteImage(image(hu), str(tmp_path / "a.mha"))
    lines = (tmp_path / "a.mha").read_bytes().split(b"\n")
    lines = [f"{key} = {value}".encode() if line.startswith(f"{key} =".encode()) else line for line in lines]
    (tmp_path / "a.mha").write_bytes(b"\n".join(lines))
    assert "NDims" in sentence(tmp_path / "a.mha")


@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
def test_damage_inside_compressed_voxels_is_never_read(tmp_path, hu, suffix, capfd):
    """One flipped bit anywhere: ITK alone returns other voxels for many of them."""
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image(hu), str(path), True)
    data = next((p for p in tmp_path.iterdir() if p != path), path)
    good = data.read_bytes()
    np.testing.assert_array_equal(read_volume(path).array, hu)
    rng = np.random.default_rng(5)
    for at in rng.integers(len(good) - 1200, len(good), 40):
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        data.write_bytes(bad)
        sentence(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("naming", ["list", "pattern"])
def test_slices_beside_a_header_count_as_source(tmp_path, hu, naming):
    """A changed slice is another scan, also where the header lists many files."""
    for number, plane in enumerate(hu, 1):
        (tmp_path / f"s{number:02d}.raw").write_bytes(plane.tobytes())
    names = [f"s{n:02d}.raw" for n in range(1, 9)]
    meta = "NDims = 3\nDimSize = 11 10 8\nElementSpacing = 1 1 2\nElementType = MET_SHORT\nElementDataFile = "
    meta += "LIST\n" + "\n".join(names) if naming == "list" else "s%02d.raw 1 8 1"
    (tmp_path / "a.mhd").write_text(f"ObjectType = Image\n{meta}\n")
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 11 10 8\nencoding: raw\n"
    nrrd += "endian: little\nspace directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (0,0,0)\ndata file: "
    nrrd += "LIST\n" + "\n".join(names) if naming == "list" else "s%02d.raw 1 8 1"
    (tmp_path / "b.nhdr").write_text(f"{nrrd}\n")
    for name in ("a.mhd", "b.nhdr"):
        assert [file.name for file in detached_files(tmp_path / name)] == names
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, hu)
    cases = build_manifest(tmp_path).cases
    assert [case.path for case in cases] == ["a.mhd", "b.nhdr"]
    before = [case_key(case, tmp_path, PrepareSettings()) for case in cases]
    os.utime(tmp_path / "s05.raw", ns=(1, 1))
    assert not set(before) & {case_key(case, tmp_path, PrepareSettings()) for case in cases}


def test_pipes_and_dead_links_do_not_hold_up_a_cohort(tmp_path, hu):
    root = tmp_path / "scans"
    maker.series(root / "good", hu)
    for name in ("pipe", "pipe.dcm", "pipe.nii.gz", "pipe.mhd", "pipe.nrrd"):
        os.mkfifo(root / name)
    os.symlink("nowhere", root / "dead.nii.gz")
    os.symlink("itself", root / "itself")
    (root / "empty.nii.gz").touch()
    manifest = build_manifest(root)
    result = prepare(manifest.cases, root, tmp_path / "cache", progress=False)
    assert [entry.case.path for entry in result.entries] == ["good"]
    found = {item.path: item.reason for item in [*manifest.rejected, *result.rejected]}
    assert set(found) == {".", "dead.nii.gz", "empty.nii.gz", "pipe.nii.gz", "pipe.mhd", "pipe.nrrd"}
    assert "symbolic links" in found["."] and found["empty.nii.gz"] == "the file is empty"
    assert "pipe or device" in found["pipe.nrrd"] and found["dead.nii.gz"] == "No such file or directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission(tmp_path, hu):
    (path,) = maker.series(tmp_path, hu[:1])
    path.chmod(0)
    (tmp_path / "a.nii").write_bytes(b"x")
    (tmp_path / "a.nii").chmod(0)
    assert "cannot be opened (permission denied)" in sentence(tmp_path / "a.nii")
    assert "cannot be opened (Permission denied)" in build_manifest(tmp_path).rejected[0].reason


def test_each_reason_in_a_folder_is_told(tmp_path, hu):
    paths = maker.series(tmp_path / "a", hu)
    paths[2].write_bytes(b"")
    paths[5].write_bytes(paths[5].read_bytes()[:200])
    paths[6].write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "a/._im001.dcm").write_bytes(b"resource fork")
    reasons = sorted(record.problem for record in find_series(tmp_path) if record.problem)
    assert [reason.partition(":")[0] for reason in reasons][:2] == ["1 file", "2 files"]
    assert "empty or of another content" in reasons[0] and "without SeriesInstanceUID" in reasons[1]


@pytest.mark.parametrize("spacing", [["0", "0"], ["-1", "1"]])
def test_dicom_pixels_of_no_size(tmp_path, hu, spacing):
    maker.series(tmp_path, hu, PixelSpacing=spacing)
    assert "no valid PixelSpacing" in sentence(tmp_path)


def test_ct_without_modality_is_known_by_its_class(tmp_path, hu):
    maker.series(tmp_path, hu, Modality=None)
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


def test_a_claim_of_countless_frames(tmp_path, hu):
    maker.series(tmp_path, hu[:1], NumberOfFrames="2000000000")
    assert "2000000000 frames" in sentence(tmp_path)


def test_one_study_uid_under_two_patients_is_two_studies(tmp_path, hu):
    """The broken scan of one patient is lost, whatever the other patient has under the same UID."""
    maker.series(tmp_path / "a", hu, study="same", series="a", PatientID="A")
    gap = np.r_[0:4, 5:8]
    where = maker.positions(30)[np.r_[0:4, 20:23]]
    maker.series(tmp_path / "b", hu[gap], where=where, study="same", series="b", PatientID="B")
    maker.series(tmp_path / "c", hu, study="same2", series="c", PatientID="A")
    maker.series(tmp_path / "d", hu, study="same2", series="d", PatientID="B")
    manifest = build_manifest(tmp_path)
    assert [case.path for case in manifest.cases] == ["a", "c", "d"]
    assert [item.path for item in manifest.rejected] == ["b"] and "gap" in manifest.rejected[0].reason


def test_file_names_that_are_not_text(tmp_path, hu):
    root = os.fsencode(tmp_path / "scans")
    os.makedirs(root + b"/pat\xff")
    sitk.WriteImage(image(hu), str(tmp_path / "a.nii.gz"))
    for folder, name in ((b"pat\xff", b"one.nii.gz"), (b"", b"two \xc3\xa4,.nii.gz")):
        os.makedirs(os.path.join(root, folder), exist_ok=True)
        Path(os.fsdecode(os.path.join(root, folder, name))).write_bytes((tmp_path / "a.nii.gz").read_bytes())
    Path(os.fsdecode(root + b"/bad\xfe.nii.gz")).write_bytes(b"x")
    manifest = build_manifest(tmp_path / "scans")
    result = prepare(manifest.cases, manifest.root, tmp_path / "cache", progress=False)
    assert len(result.entries) == 2
    train, held = split_patients([entry.case for entry in result.entries], 0.5, 0)
    assert len(train) == len(held) == 1
    write_rejected(tmp_path / "rejected.csv", result.rejected)
    assert "bad\\udcfe.nii.gz" in (tmp_path / "rejected.csv").read_text(encoding="utf-8")


def test_what_is_not_read_is_named(tmp_path, hu):
    sitk.WriteImage(image(hu), str(tmp_path / "a.nii.gz"))
    nibabel.save(nibabel.Nifti1Pair(hu.T, np.eye(4)), tmp_path / "pair.img")
    (tmp_path / "more.zip").write_bytes(b"PK")
    (note,) = build_manifest(tmp_path).notes
    assert note.startswith("2 files of kinds that are not read") and "more.zip" in note


def test_lists_with_odd_entries(tmp_path, hu):
    sitk.WriteImage(image(hu), str(tmp_path / "a, b.nii.gz"))
    (tmp_path / "list.csv").write_bytes(
        b'\xef\xbb\xbfpath;patient\r\n"a, b.nii.gz";"P\n1"\r\n~nobody-here/x.nii;2\r\n/gone/away.nii;3\r\n'
    )
    manifest = build_manifest(tmp_path / "list.csv")
    assert [(case.path, case.patient) for case in manifest.cases] == [("a, b.nii.gz", "P\n1")]
    assert manifest.rejected[0].path == "~nobody-here/x.nii"
    assert manifest.rejected[1].path == "/gone/away.nii", "outside of the root: as the list has it"
    (tmp_path / "long.csv").write_text("path\n" + "x" * 200_000 + "\n")
    with pytest.raises(InputError, match="not a readable CSV"):
        build_manifest(tmp_path / "long.csv")
    (tmp_path / "d.json").write_bytes(b'\xef\xbb\xbf{"training": [{"image": "a, b.nii.gz"}, {"label": "x"}, 7, []]}')
    manifest = build_manifest(tmp_path / "d.json")
    assert len(manifest.cases) == 1 and len(manifest.rejected) == 3
