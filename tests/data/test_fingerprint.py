"""Hash and signature of a scan: the same for the same scan however it is stored, different for others."""

from __future__ import annotations

import importlib.util
import io
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from voco import read_volume
from voco.data import fingerprint as module
from voco.data import pictures
from voco.data.alike import PICTURE_CORRELATION
from voco.data.cache import read_footer
from voco.data.fingerprint import (
    Fingerprints,
    data_set_digest,
    patient_digest,
    signature,
    tissue_hash,
    voxel_hash,
)
from voco.data.manifest import build_manifest
from voco.data.pictures import nearest
from voco.data.prepare import PrepareSettings, prepare
from voco.data.privacy import hash_patient_id
from voco.data.resample import resample
from voco.errors import InputError

_spec = importlib.util.spec_from_file_location("dicom_maker", Path(__file__).with_name("dicom_maker.py"))
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)


def body(seed: int, shape=(40, 60, 66)) -> np.ndarray:
    """An ellipse of tissue in air with organs of its own, int16 HU."""
    rng = np.random.default_rng(seed)
    noise = sitk.DiscreteGaussian(sitk.GetImageFromArray(rng.normal(size=shape).astype(np.float32)), 12.0)
    inside = sitk.GetArrayFromImage(noise)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    wide = 0.75 + 0.1 * np.sin(2 * z + seed)
    hu = np.where((y / wide) ** 2 + (x / 0.85) ** 2 < 1, inside / inside.std() * 90, -1000)
    return np.clip(hu, -1000, 900).astype(np.int16)


def write(array, path, spacing=(5.0, 5.0, 5.0), kind=None, orientation=None):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    if orientation:
        image = sitk.DICOMOrient(image, orientation)
    if kind is not None:
        image = sitk.Cast(image, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def test_the_hash_is_of_the_scan_and_not_of_the_file(tmp_path):
    array = maker.anatomy((8, 20, 22))
    write(array, tmp_path / "a.nii.gz")
    write(array, tmp_path / "b.nii.gz", kind=sitk.sitkFloat32, orientation="RAS")
    write(array, tmp_path / "c.mha", kind=sitk.sitkInt32, orientation="PIR")
    write(array, tmp_path / "d.nrrd", orientation="LAI", kind=sitk.sitkFloat64)
    maker.series(tmp_path / "dicom", array)
    hashes = [voxel_hash(read_volume(tmp_path / n).array) for n in ("a.nii.gz", "b.nii.gz", "c.mha", "d.nrrd", "dicom")]
    assert len(set(hashes)) == 1 and len(hashes[0]) == 32
    other = array.copy()
    other[3, 4, 5] += 1
    assert voxel_hash(other) != hashes[0]
    assert voxel_hash(array.reshape(8, 22, 20)) != hashes[0]
    assert voxel_hash(np.asfortranarray(array)) == hashes[0]


def test_the_tissue_hash_outlasts_mirrors_right_angles_and_padding():
    array = body(0)
    same = tissue_hash(array)
    assert len(same) == 32
    for other in (array[::-1], array[:, :, ::-1], np.rot90(array, axes=(1, 2)), np.pad(array, 7, constant_values=-1024),
                  np.pad(array, 3), array[[3, 1, 2, 0, *range(4, 40)]], np.maximum(array, -600)):  # fmt: skip
        assert tissue_hash(other) == same
    changed = array.copy()
    changed[20, 30, 33] += 1
    assert len({same, tissue_hash(changed), tissue_hash(array[:20]), tissue_hash(body(1))}) == 4
    assert tissue_hash(np.full((9, 9, 9), -1000, np.int16)) == "" == tissue_hash(np.full((30, 30, 30), 40, np.int16))


def test_files_of_version_1_are_read_and_stay_what_they_are(tmp_path):
    found = Fingerprints(*(np.zeros((2, n), np.uint8) for n in (16, 1728, 8)), np.array([True, False]))
    old = found.to_bytes()
    with np.load(io.BytesIO(old)) as arrays:
        assert arrays["version"][0] == 1 and set(arrays) == {"version", "voxels", "signatures", "patients", "trained",
                                                            "data_sets"}  # fmt: skip
    again = Fingerprints.from_bytes(old)
    assert again.is_old and again.to_bytes() == old and len(again) == 2


def test_a_signature_is_the_means_of_the_cells():
    rng = np.random.default_rng(0)
    array = rng.integers(-150, 190, (31, 17, 25)).astype(np.int16)  # tissue everywhere: the box is the array
    got = signature(array, (5.0, 5.0, 5.0)).astype(float)

    def shares(size):  # by how much each voxel lies in each cell
        cells = itertools.pairwise(np.linspace(0, size, 13))
        return np.array([[max(0.0, min(b, i + 1) - max(a, i)) for i in range(size)] for a, b in cells])

    wanted = np.einsum("dhw,id,jh,kw->ijk", array.astype(float), *(shares(n) for n in array.shape))
    wanted /= np.prod([n / 12 for n in array.shape])
    assert np.abs(got - (wanted + 200) / 400 * 255).max() <= 0.5 + 1e-6


CHANGES = {
    "resampled": lambda a: resample(a, (5.0, 5.0, 5.0), (4.0, 6.0, 3.0)),
    "ends cut": lambda a: (a[3:-2], (5.0, 5.0, 5.0)),
    "abdominal window": lambda a: (np.clip(a, -175, 250), (5.0, 5.0, 5.0)),
    "lung window": lambda a: (np.clip(a, -1000, 500), (5.0, 5.0, 5.0)),
    "8 bits": lambda a: (np.rint(np.clip((a + 175) / 425, 0, 1) * 255) / 255 * 425 - 175, (5.0, 5.0, 5.0)),
    "noise": lambda a: (a + np.random.default_rng(3).normal(0, 30, a.shape), (5.0, 5.0, 5.0)),
    "air around": lambda a: (np.pad(a, ((0, 0), (9, 4), (5, 12)), constant_values=-1000), (5.0, 5.0, 5.0)),
}


def test_the_same_scan_stored_otherwise_is_found_among_others():
    known = np.stack([signature(body(seed), (5.0, 5.0, 5.0)).ravel() for seed in range(4)])
    for name, change in CHANGES.items():
        array, spacing = change(body(2))
        score, where = nearest(signature(np.asarray(array).astype(np.int16), spacing).reshape(1, -1), known)
        assert where[0] == 2 and score[0] >= PICTURE_CORRELATION, (name, score)
    score, _ = nearest(signature(body(9), (5.0, 5.0, 5.0)).reshape(1, -1), known)
    assert score[0] < 0.9


def test_nearest_does_not_depend_on_the_size_of_its_parts(monkeypatch):
    rng = np.random.default_rng(1)
    known = rng.integers(0, 255, (7, 1728)).astype(np.uint8)
    whole = nearest(known[[2, 6]], known)
    monkeypatch.setattr(pictures, "_CHUNK", 2)
    monkeypatch.setattr(pictures, "_CANDIDATES", 1)
    parts = nearest(known[[2, 6]], known)
    assert whole[1].tolist() == parts[1].tolist() == [2, 6]
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-6)
    plain = np.corrcoef(known.astype(float))[0, 1]
    assert nearest(known[:1], known[1:2])[0][0] >= plain - 1e-5
    empty = nearest(known[:2], known[:0])
    assert empty[0].tolist() == [-1, -1] and empty[1].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("site_a/LIDC-IDRI-0001.nii.gz", hash_patient_id("LIDC-IDRI-0001"), True),
        ("10004", "images/10004", True),
        ("0001-A", "0002-A", False),
    ],
)
def test_patients_by_any_of_their_names(one, two, same):
    assert (patient_digest(one) == patient_digest(two)) == same
    assert any(patient_digest(one)) and any(patient_digest(two))


@pytest.mark.parametrize(
    "name", ["patient_007", "case 12", "1", "0003", "Anonymous", "ct_chest.nii.gz", "TRN_0042", "", "PHANTOM-0001"]
)
def test_names_that_may_be_anybodys_name_nobody(name):
    assert not any(patient_digest(name))


def test_placeholders_in_dicom_headers_name_nobody():
    for text in ("anonymous", "ANONYMOUS", "1", "007"):
        assert not any(patient_digest(hash_patient_id(text)))
    assert any(patient_digest(hash_patient_id("4711-8832")))


def test_prepared_scans_carry_their_fingerprint_whatever_the_geometry(tmp_path):
    write(body(0), tmp_path / "scans" / "roe-jane-19700101.nii.gz")
    write(body(1), tmp_path / "scans" / "b.nii.gz")
    manifest = build_manifest(tmp_path / "scans")
    found = []
    for settings in (PrepareSettings((5, 5, 5)), PrepareSettings((9, 8, 7), crop_body=True)):
        result = prepare(manifest.cases, manifest.root, tmp_path / "cache", settings, progress=False)
        found.append(Fingerprints.of_entries(result.entries, trained=[True, False], data_sets=["LIDC IDRI"]))
    one, two = found
    for name in ("voxels", "tissue", "signatures", "places", "looks", "patients", "trained"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.voxels[0].tobytes().hex() == voxel_hash(body(1))  # sorted by path: b first
    assert one.trained.tolist() == [True, False] and one.data_sets == {data_set_digest("lidc-idri")}
    data = one.to_bytes()
    assert data == two.to_bytes() and b"roe" not in data
    again = Fingerprints.from_bytes(data)
    np.testing.assert_array_equal(again.signatures, one.signatures)
    assert again.data_sets == one.data_sets and len(again) == 2
    one.write(tmp_path / "f.npz")
    assert (tmp_path / "f.npz").read_bytes() == data
    entry = result.entries[0]
    assert len(str(read_footer(entry.path)["facts"])) < 13_000
    entry.path.unlink()
    with pytest.raises(InputError, match="prepare it again"):
        Fingerprints.of_entries([entry])


def test_files_that_cannot_be_compared_are_refused(monkeypatch):
    nothing = Fingerprints.of_entries([])
    with pytest.raises(InputError, match="no file of fingerprints"):
        Fingerprints.from_bytes(b"PK not really")
    monkeypatch.setattr(module, "VERSION", 99)
    newer = nothing.to_bytes()
    monkeypatch.undo()
    with pytest.raises(InputError, match="version 99"):
        Fingerprints.from_bytes(newer)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif("VOCO_TEST_CT" not in os.environ, reason="VOCO_TEST_CT names no folder of scans")
def test_real_scans_are_found_again_and_told_apart():
    volumes = [read_volume(path) for path in sorted(Path(os.environ["VOCO_TEST_CT"]).iterdir())]
    known = np.stack([signature(v.array, v.spacing_mm).ravel() for v in volumes])
    for i, volume in enumerate(volumes):
        a, mm = volume.array, volume.spacing_mm
        ends = max(1, round(0.05 * len(a)))
        changed = {
            "1.5 mm": resample(a, mm, (1.5, 1.5, 1.5)),
            "5 x 1.25 x 1.25 mm": resample(a, mm, (5.0, 1.25, 1.25)),
            "ends cut": (a[ends:-ends], mm),
            **{f"{low} to {high}": (np.clip(a, low, high), mm) for low, high in ((-175, 250), (-1000, 500))},
        }
        for name, (array, spacing) in changed.items():
            score, where = nearest(signature(array, spacing).reshape(1, -1), known)
            assert where[0] == i and score[0] >= PICTURE_CORRELATION, (i, name, score[0])
        others = np.delete(known, i, 0)
        assert nearest(known[i : i + 1], others)[0][0] < 0.85
