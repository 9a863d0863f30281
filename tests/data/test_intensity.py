"""Values that are not Hounsfield units: refused or noted, and everything that a CT may be left alone."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from voco.cli import main
from voco.data.cache import read_footer
from voco.data.cohort import load_cohort
from voco.data.intensity import check_planes, check_values, judge
from voco.data.manifest import Case
from voco.data.prepare import PrepareSettings, case_key, made_with, prepare
from voco.data.read import read_volume
from voco.errors import InputError, ScanError

_spec = importlib.util.spec_from_file_location("dicom_maker", Path(__file__).with_name("dicom_maker.py"))
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)

CT = os.environ.get("VOCO_TEST_CT")


def chest(shape=(14, 44, 48), seed=0, noise=12.0):
    """A chest in air: fat, muscle, lungs, spine; int16 HU of at least -1024."""
    random = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(x / 0.9) ** 2 + (y / 0.75) ** 2 < 1] = -100
    hu[(x / 0.82) ** 2 + (y / 0.66) ** 2 < 1] = 45
    for middle in (-0.4, 0.4):
        hu[((x - middle) / 0.28) ** 2 + ((y + 0.05) / 0.42) ** 2 + (z / 1.2) ** 2 < 1] = -850
    hu[x**2 + (y - 0.5) ** 2 < 0.015] = 600
    return np.clip(np.rint(hu + random.normal(0, noise, shape)), -1024, 3071).astype(np.int16)


def skull(shape=(14, 44, 48)):
    """Inside of a head without any air or fat: brain and a thick skull."""
    random = np.random.default_rng(1)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    hu = np.where(radius > 1.1, 900 + 600 * np.sin(12 * radius), 35)
    return np.rint(hu + random.normal(0, 10, shape)).astype(np.int16)


def round_field(hu, padding):
    """The same with padding outside a round field of view."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in hu.shape[1:])
    out = hu.astype(np.int32)
    out[:, y[:, None] ** 2 + x[None] ** 2 > (min(hu.shape[1:]) / 2) ** 2] = padding
    return out


HU = chest().astype(np.int32)
WRONG = {
    "+1024": (HU + 1024, "about \\+10[02]", -1024),
    "+1024, -8192": (round_field(HU + 1024, -8192), "padding of -8192 apart", -1024),
    "+1024, -2000": (round_field(HU + 1024, -2000), "padding of -2000 apart", -1024),
    "+1024, -24": (round_field(HU + 1024, -24), "about \\+10[02]", -1024),
    "+1000, floor of -24": (HU + 1000, "about \\+10[02]", -1000),
    "+1000, -2000": (round_field(HU + 1000, -2000), "padding of -2000 apart", -1000),
    "-1024": (HU - 1024, "applied twice", 1024),
    "-1000, padded": (round_field(HU - 1000, -3024), "applied twice", 1000),
    "inverted": (-1 - HU, "inverted", None),
    "uint16 as int16": ((HU + 65536) % 65536 - 32768, "not Hounsfield", None),
    "times 16": (HU * 16, "from -1[0-9]+ to", None),
}


@pytest.mark.parametrize("kind", WRONG)
def test_values_that_are_surely_wrong(kind):
    values, sentence, offset = WRONG[kind]
    found = judge(values)
    assert found.wrong
    with pytest.raises(ScanError, match=sentence):
        check_values(values, "scan")
    if offset is not None:
        assert offset in found.offsets


RIGHT = {
    "as it is": HU,
    "padded": round_field(HU, -3024),
    "soft-tissue window": np.clip(HU, -160, 240),
    "the same in 256 steps": np.rint(np.rint((np.clip(HU, -160, 240) + 160) / 400 * 255) * 400 / 255 - 160),
    "lung window": np.clip(HU, -1000, 400),
    "bone window": np.clip(HU, -500, 1500),
    "contrast": np.where((HU > 20) & (HU < 80), HU + 250, HU),
    "metal": np.where(HU > 500, 20000, HU),
    "background of 0": np.where(HU > -300, HU, 0),
    "muscle and fat": HU[:, 8:14, 16:32],
    "inside a lung": HU[3:11, 16:26, 10:18],
    "noisy": chest(noise=60),
    "brain and skull": skull(),
    "brain window over air": np.where(skull() > 200, -1000, np.clip(skull(), 0, 80)),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_what_a_ct_may_be_is_not_refused(kind):
    found = judge(RIGHT[kind])
    assert not found.wrong, found
    assert not found.found or kind in ("inside a lung", "brain and skull")


def test_doubt_is_a_note_and_zero_is_an_answer(tmp_path):
    """Air alone may be an air phantom, or soft tissue with the intercept twice."""
    values = np.random.default_rng(0).normal(-990, 25, (10, 20, 20)).round().clip(-1024)
    found = judge(values)
    assert found.found.startswith("suspicious") and not found.wrong
    wrong = nifti(tmp_path / "a.nii", HU + 1000)
    with pytest.raises(ScanError, match=r"--data.offset -1000 .*--data.offset 0 takes"):
        read_volume(wrong)
    kept = read_volume(wrong, offset=0)
    np.testing.assert_array_equal(kept.array, HU + 1000)
    assert len(kept.notes) == 1 and "not Hounsfield" in kept.notes[0]
    moved = read_volume(wrong, offset=-1000)
    np.testing.assert_array_equal(moved.array, HU)
    assert moved.notes == ()


def nifti(path, values, inter=0.0):
    """(D, H, W) in LPS; ``inter`` stands in the header and is not taken off the values."""
    image = nibabel.Nifti1Image(values.T.astype(np.int16), np.diag([-2.0, -2.0, 3.0, 1.0]))
    image.header.set_slope_inter(1, inter)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


def test_an_intercept_on_top_of_hounsfield_units_is_named(tmp_path):
    path = tmp_path / "a.nii"
    nifti(path, HU)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    with pytest.raises(ScanError, match=r"header adds -1024.*--data.offset 1024 "):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, offset=1024).array, HU)


def test_complex_voxels_are_refused(tmp_path):
    nibabel.Nifti1Image(HU.T.astype(np.complex64), np.diag([-2.0, -2.0, 3.0, 1.0])).to_filename(tmp_path / "a.nii")
    with pytest.raises(ScanError, match="complex"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize(
    "each",
    [
        lambda k: {"RescaleSlope": None, "RescaleIntercept": None} if k == 5 else {},
        lambda k: {"RescaleIntercept": "0"} if k == 5 else {},
        lambda k: {"RescaleIntercept": "0"} if k < 2 else {},
        lambda k: {"RescaleIntercept": "-2048"} if k == 8 else {},
    ],
    ids=["missing", "zero", "two at the end", "twice"],
)
def test_slices_with_another_rescale_than_their_neighbours(tmp_path, each):
    maker.series(tmp_path, HU, each=each)
    with pytest.raises(ScanError, match=r"1 of 14 slices have no Rescale|in [12] of 14 slices"):
        read_volume(tmp_path)


def test_a_rescale_of_its_own_for_each_slice_is_not_a_shift(tmp_path):
    """As the standard allows: stored values and intercept differ together."""
    where = maker.positions(len(HU))
    for k, (plane, corner) in enumerate(zip(HU, where)):
        stored = (plane + 1024 + 40 * k).astype(np.uint16)
        ds = maker.dataset(stored, number=k + 1, position=corner, RescaleIntercept=str(-1024 - 40 * k))
        maker.save(ds, tmp_path / f"{k}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, HU)


def test_one_shifted_slice_without_headers():
    shifted = HU.copy()
    shifted[6] += 1000
    with pytest.raises(ScanError, match=r"1 of 14 slices: slice 7 lies about \+1000"):
        check_planes(shifted, "scan")
    check_planes(HU, "scan")
    steps = np.full((8, 20, 20), 40)
    steps[:3] = -1000  # slices of air alone above tissue alone: no shift
    check_planes(steps, "scan")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_monochrome1_keeps_its_values_in_every_encoding(tmp_path, compressor, signed):
    """Photometric interpretation is how a picture is shown: the rescale applies to what is stored."""
    import pydicom

    intercept = 0 if signed else -1024
    for k, (plane, corner) in enumerate(zip(HU[:5], maker.positions(5))):
        stored = (plane - intercept).astype(np.int16 if signed else np.uint16)
        image = sitk.GetImageFromArray(stored[None])
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(tmp_path / "frame.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.Execute(image)
        coded = pydicom.dcmread(tmp_path / "frame.dcm")
        ds = maker.dataset(stored, number=k + 1, position=corner, RescaleIntercept=str(intercept))
        ds.PhotometricInterpretation, ds.PixelData = "MONOCHROME1", coded.PixelData
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        maker.save(ds, tmp_path / "series" / f"{k}.dcm", syntax=coded.file_meta.TransferSyntaxUID)
        maker.save(
            maker.dataset(stored, number=k + 1, position=corner, RescaleIntercept=str(intercept),
                          PhotometricInterpretation="MONOCHROME1"),
            tmp_path / "plain" / f"{k}.dcm",
        )  # fmt: skip
    np.testing.assert_array_equal(read_volume(tmp_path / "series").array, HU[:5])
    np.testing.assert_array_equal(read_volume(tmp_path / "plain").array, HU[:5])


def doubtful(root):
    """Four good scans, one DICOM series and one NIfTI of air alone."""
    air = np.random.default_rng(0).normal(-990, 25, (10, 20, 20)).round().clip(-1024, -900)
    for k in range(4):
        nifti(root / f"p{k}/good.nii", chest(seed=k))
    nifti(root / "air/scan.nii", air)
    maker.series(root / "dicom", air.astype(np.int16))
    return root


def test_doubts_reach_the_run_and_the_tables(tmp_path, capsys):
    root, cache = doubtful(tmp_path / "scans"), tmp_path / "cache"
    said: list[str] = []
    how = {"select": "thinnest_axial", "exclude": None, "patient_regex": None, "heldout": 0.2, "seed": 0, "workers": 1}
    cohort = load_cohort(str(root), cache, PrepareSettings(6.0), **how, say=said.append)
    again = load_cohort(str(root), cache, PrepareSettings(6.0), **how)
    assert cohort.notes == again.notes
    assert sorted(note.split(":")[0] for note in cohort.notes) == ["air/scan.nii", "dicom"]
    [row] = cohort.series
    assert row["decision"] == "kept" and "perhaps not Hounsfield units" in row["reason"]
    assert main(["prepare", str(root), str(cache), "--spacing", "6", "--workers", "1"]) == 0
    assert capsys.readouterr().err.count("perhaps not Hounsfield units") == 2
    with (cache / "series.csv").open(newline="") as file:
        assert "perhaps not Hounsfield units" in next(csv.DictReader(file))["reason"]
    for path in (root / "air/scan.nii", root / "dicom", *cache.glob("*.b2nd")):
        assert main(["inspect", str(path)]) == 0
        facts = (read_footer(path) or {}).get("facts", {}) if path.suffix == ".b2nd" else {"notes": True}
        assert ("perhaps not Hounsfield units" in capsys.readouterr().out) == ("notes" in facts)


def test_a_series_that_its_values_rule_out_is_rejected_in_the_table(tmp_path):
    maker.series(tmp_path / "dicom", chest(), RescaleIntercept="-1")
    for k in range(4):
        nifti(tmp_path / f"p{k}/good.nii", chest(seed=k))
    cache = tmp_path.with_name("cache")
    main(["prepare", str(tmp_path), str(cache), "--spacing", "6", "--max_rejected", "0.5", "--workers", "1"])
    with (cache / "series.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["decision"] == "rejected" and "stored values" in row["reason"]


def test_another_offset_is_another_entry(tmp_path):
    """And none is what it was before there was one: old entries keep their names."""
    path = nifti(tmp_path / "a.nii", HU + 1000)
    case, cache = Case("a", "a.nii", "p"), tmp_path / "cache"
    plain, shifted = PrepareSettings("native"), PrepareSettings("native", offset=-1000)
    assert set(plain.to_dict()) == {"spacing_mm", "crop_body", "antialias", "size", "mask"}
    assert len({case_key(case, tmp_path, s) for s in (plain, shifted, PrepareSettings("native", offset=0))}) == 3
    assert prepare([case], tmp_path, cache, plain, progress=False).rejected
    first = prepare([case], tmp_path, cache, shifted, progress=False).entries[0]
    taken = prepare([case], tmp_path, cache, PrepareSettings("native", offset=0), progress=False).entries[0]
    assert first.path != taken.path and first.notes == () and taken.notes
    assert made_with({"settings": shifted.to_dict()}, plain) and not made_with(
        {"settings": plain.to_dict()}, PrepareSettings(2)
    )
    with pytest.raises(InputError, match="offset"):
        PrepareSettings(offset=float("nan"))
    assert path.is_file()


@pytest.mark.skipif(CT is None, reason="VOCO_TEST_CT is not set")
def test_no_real_scan_is_doubtful_and_every_shifted_one_is_refused():
    for path in sorted(Path(CT).iterdir()):
        volume = read_volume(path)
        assert volume.notes == ()
        small = volume.array[::1, ::4, ::4].astype(np.int32)
        for wrong in (small + 1024, small - 1000):
            assert judge(wrong).wrong


@pytest.mark.parametrize("largest", [355, 900, 2500])
def test_inverted_by_the_largest_value_is_said(largest):
    assert "inverted" in judge(largest - chest().astype(int)).found


def test_pictures_of_eight_bits_with_a_sign_are_said():
    picture = np.rint((np.clip(chest(), -160, 240) - 40) * 127 / 200)
    assert "8-bit pictures" in judge(picture).found
    assert not judge(np.clip(chest(), -160, 240)).found


def test_the_intercept_twice_with_the_air_cut_off():
    noisy = chest(noise=90.0)
    assert "applied twice" in judge(np.maximum(noisy - 1024, -1024)).found
    assert not judge(np.maximum(noisy, -1024)).found
