"""DICOM: finding, judging, choosing and reading series made here with every geometry and defect."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from voco.data.dicom import find_series, read_series, select_series
from voco.data.dicom_scan import quiet_pydicom, read_header
from voco.data.dicom_select import classify, kernel_rank
from voco.data.privacy import hash_patient_id
from voco.data.read import read_volume
from voco.errors import InputError, ScanError

_spec = importlib.util.spec_from_file_location("dicom_maker", Path(__file__).with_name("dicom_maker.py"))
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)
# printf %s MRN-778812 | sha256sum | cut -c1-12
DIGEST = "p-cfd412439308"
DERIVED = ["DERIVED", "SECONDARY", "AXIAL"]


@pytest.fixture
def hu():
    return maker.anatomy()


def chosen(root, rule="thinnest_axial"):
    return {Path(r.path).name: r for r in select_series(find_series(root), rule)}


def reason(root):
    records = select_series(find_series(root))
    assert len(records) == 1 and records[0].decision == "rejected"
    return records[0].reason


# --- order, values -------------------------------------------------------------------------------------------------


def test_slices_are_ordered_by_position_not_by_name_or_number(tmp_path, hu):
    shuffle = np.random.default_rng(0).permutation(len(hu))
    where = maker.positions(len(hu))
    maker.series(tmp_path, hu[shuffle], where=where[shuffle])
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert [s.z_mm for s in volume.slices] == pytest.approx(list(where[:, 2]))
    number = {maker.uid("s", "a", n + 1): z for n, z in enumerate(where[shuffle][:, 2])}
    assert all(number[s.sop_uid] == pytest.approx(s.z_mm) and s.kept for s in volume.slices)


def test_feet_first_series_is_listed_from_the_lowest_slice(tmp_path, hu):
    # Feet first, face up: columns run toward the patient's right, the normal points to the feet.
    where = maker.positions(len(hu), start=(60, -30, -100))
    maker.series(tmp_path, hu, where=where, orientation=(-1, 0, 0, 0, 1, 0))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu[:, :, ::-1])
    assert [s.z_mm for s in volume.slices] == pytest.approx(list(where[:, 2]))
    np.testing.assert_allclose(volume.affine @ [8, 0, 13, 1], [60, -30, -84, 1])


def test_rescale_is_applied_slice_by_slice(tmp_path, hu):
    even = (hu // 2) * 2
    where = maker.positions(len(hu))
    for i, plane in enumerate(even):
        slope, intercept = (2, -1024) if i % 2 else (1, -2000)
        stored = ((plane.astype(int) - intercept) // slope).astype(np.uint16)
        ds = maker.dataset(
            stored, number=i, position=where[i], RescaleSlope=str(slope), RescaleIntercept=str(intercept)
        )
        maker.save(ds, tmp_path / f"{i}")
    np.testing.assert_array_equal(read_volume(tmp_path).array, even)


def test_fractional_slope_is_rounded(tmp_path, hu):
    stored = (hu.astype(int) + 1024).astype(np.uint16)
    for i, where in enumerate(maker.positions(len(hu))):
        ds = maker.dataset(stored[i], number=i, position=where, RescaleSlope="0.5", RescaleIntercept="-1000.25")
        maker.save(ds, tmp_path / f"{i}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, np.rint(stored * 0.5 - 1000.25).astype(int))


@pytest.mark.parametrize(("kind", "padding", "intercept"), [(np.int16, -2000, -1024), (np.uint16, 63536, -1024)])
def test_padding_becomes_air(tmp_path, hu, kind, padding, intercept):
    stored = (hu.astype(int) - intercept).astype(kind)
    stored[:, :3] = padding
    for i, where in enumerate(maker.positions(len(hu))):
        maker.save(maker.dataset(stored[i], number=i, position=where, PixelPaddingValue=padding), tmp_path / f"{i}.dcm")
    array = read_volume(tmp_path).array
    assert (array[:, :3] == -1024).all()
    np.testing.assert_array_equal(array[:, 3:], hu[:, 3:])


def test_overlay_in_unused_bits_is_cut_off(tmp_path):
    hu = np.clip(maker.anatomy(), -1024, 3071)
    stored = (hu.astype(int) + 1024).astype(np.uint16) | 0x8000
    for i, where in enumerate(maker.positions(len(hu))):
        maker.save(maker.dataset(stored[i], number=i, position=where, BitsStored=12, HighBit=11), tmp_path / f"{i}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


def test_missing_rescale_is_told(tmp_path, hu):
    maker.series(tmp_path, hu, RescaleSlope=None, RescaleIntercept=None)
    with pytest.raises(ScanError, match="rescale intercept"):
        read_volume(tmp_path)


# --- repeats, gaps, tilt -------------------------------------------------------------------------------------------


def test_repeated_slices_are_dropped_and_listed(tmp_path, hu):
    maker.series(tmp_path / "a", hu)
    where = maker.positions(len(hu))
    again = (hu[3] + 1024).astype(np.uint16)
    maker.save(maker.dataset(again, number=4, position=where[3]), tmp_path / "copy" / "same_uid.dcm")
    maker.save(maker.dataset(again, number=4, position=where[3], copy=1), tmp_path / "copy" / "other_uid.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert len(volume.slices) == 11 and [s.kept for s in volume.slices[2:7]] == [True, True, False, False, True]
    record = select_series(find_series(tmp_path))[0]
    assert record.slices == 9 and len(record.files) == 11 and "2 repeated slices" in record.reason


def test_different_images_in_one_plane_are_refused(tmp_path, hu):
    maker.series(tmp_path, hu)
    maker.series(tmp_path, maker.anatomy(seed=5), name="b{}.dcm", each=lambda i: {"copy": 1})
    assert "different pixels" in reason(tmp_path)
    with pytest.raises(ScanError, match="9 slices lie in a plane"):
        read_volume(tmp_path)


def test_two_acquisitions_in_one_series_become_two_volumes(tmp_path, hu):
    maker.series(tmp_path, hu, name="x{}.dcm", each=lambda i: {"copy": 1, "AcquisitionNumber": 10})
    maker.series(tmp_path, hu[::-1].copy(), name="y{}.dcm", each=lambda i: {"copy": 2, "AcquisitionNumber": 2})
    records = select_series(find_series(tmp_path), "all")
    assert [(r.part, r.slices, r.decision) for r in records] == [(1, 9, "kept"), (2, 9, "kept")]
    np.testing.assert_array_equal(read_series(records[0], tmp_path).array, hu[::-1])
    np.testing.assert_array_equal(read_series(records[1], tmp_path).array, hu)
    assert [r.decision for r in select_series(records)] == ["kept", "left_out"]


def test_one_missing_slice_is_bridged(tmp_path, hu):
    where = maker.positions(len(hu))
    keep = [0, 1, 2, 3, 5, 6, 7, 8]
    maker.series(tmp_path, hu[keep], where=where[keep])
    volume = read_volume(tmp_path)
    assert volume.array.shape == hu.shape and volume.spacing_mm[0] == pytest.approx(2.0)
    np.testing.assert_array_equal(volume.array[keep], hu[keep])
    middle = (hu[3].astype(float) + hu[5]) / 2
    assert np.abs(volume.array[4] - middle).max() <= 0.5
    assert len(volume.slices) == 8
    assert "uneven slice steps of 2 to 4 mm" in select_series(find_series(tmp_path))[0].reason


def test_large_gap_is_refused(tmp_path):
    hu = maker.anatomy((16, 12, 14))
    where = maker.positions(16, step=5.0)
    keep = [0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15]
    maker.series(tmp_path, hu[keep], where=where[keep])
    assert "gap of 20 mm between slices 5 and 6 of 13" in reason(tmp_path)
    assert "about 3 slices are missing" in reason(tmp_path)


def test_uneven_steps_are_resampled_linearly(tmp_path, hu):
    z = np.array([0, 2, 4, 5, 6, 8, 10, 12, 14.0])
    where = np.stack([np.full(9, -40.0), np.full(9, -30.0), z - 100], axis=1)
    maker.series(tmp_path, hu, where=where)
    volume = read_volume(tmp_path)
    assert volume.array.shape == (8, 12, 14)
    for h, w in ((0, 0), (5, 7), (11, 13)):
        expected = np.interp(np.arange(8) * 2.0, z, hu[:, h, w].astype(float))
        assert np.abs(volume.array[:, h, w] - expected).max() <= 0.5
    assert [s.z_mm for s in volume.slices] == pytest.approx(list(where[:, 2]))


def test_rounded_positions_count_as_even(tmp_path, hu):
    where = maker.positions(len(hu), step=1.25)
    where[:, 2] = np.round(where[:, 2], 1)  # steps of 1.2 and 1.3
    maker.series(tmp_path, hu, where=where)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.spacing_mm[0] == pytest.approx((where[-1, 2] - where[0, 2]) / 8)


@pytest.mark.parametrize("degrees", [20.0, -12.0])
def test_gantry_tilt_is_undone(tmp_path, degrees):
    """A field that is linear in space is known everywhere: every voxel must carry the value of its own place."""
    tilt = np.radians(degrees)
    row, col = np.array([1.0, 0, 0]), np.array([0, np.cos(tilt), np.sin(tilt)])
    where = maker.positions(12, step=3.0)

    def field(points):
        return 300 + points @ np.array([8.0, -5.0, 6.0])

    grid = np.arange(20)[:, None, None] * 0.8 * col + np.arange(16)[None, :, None] * 0.7 * row
    hu = np.rint([field(grid + corner) for corner in where]).astype(np.int16)
    maker.series(tmp_path, hu, where=where, orientation=(*row, *col), GantryDetectorTilt=str(degrees))
    volume = read_volume(tmp_path)
    axes = volume.affine[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert volume.spacing_mm == pytest.approx((3.0 * np.cos(tilt), 0.8, 0.7))
    index = np.stack([*np.indices(volume.array.shape), np.ones(volume.array.shape)], axis=-1)
    expected = field((index @ volume.affine.T)[..., :3])
    inside = volume.array > -1000
    # Voxels mixed with the air around a shifted slice lie at its first and last row.
    wrong = inside & (np.abs(volume.array - expected) > 2)
    assert (wrong.any(axis=2).sum(axis=1) <= 1).all() and ((inside & ~wrong).sum(axis=(1, 2)) >= 19 * 16).all()
    assert "gantry tilt" in select_series(find_series(tmp_path))[0].reason
    middle = where[:, 2] + 9.5 * 0.8 * np.sin(tilt)  # 20 rows of 0.8 mm
    assert [s.z_mm for s in volume.slices] == pytest.approx(list(middle)) and len(volume.array) == 12


# --- what is not a volume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ({"Modality": "MR"}, "modality MR"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImagePositionPatient": None}, "9 of 9 slices have no valid ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "no valid ImageOrientationPatient"),
        ({"PixelSpacing": None}, "no valid PixelSpacing"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "3 colour values"),
        ({"ImageOrientationPatient": [0.3, 0, 0, 0, 1, 0]}, "unit vectors"),
    ],
)
def test_series_that_cannot_be_read_say_why(tmp_path, hu, tags, sentence, capfd):
    maker.series(tmp_path, hu, **tags)
    assert sentence in reason(tmp_path)
    with pytest.raises(ScanError, match=sentence.split(" (")[0]):
        read_volume(tmp_path)
    assert capfd.readouterr().err == ""


def test_too_few_slices(tmp_path, hu):
    maker.series(tmp_path, hu[:3])
    assert "3 different slice positions" in reason(tmp_path)


def test_another_modality_is_one_line(tmp_path, hu):
    maker.series(tmp_path, hu, Modality="MR", each=lambda i: {"PixelSpacing": [str(1 + i), "1"]})
    assert "modality MR" in reason(tmp_path)


def test_bolus_tracking_is_no_volume(tmp_path, hu):
    maker.series(tmp_path, hu, where=np.tile([[-40.0, -30, -100]], (9, 1)), each=lambda i: {"AcquisitionNumber": i})
    records = select_series(find_series(tmp_path))
    assert {r.decision for r in records} == {"rejected"} and "1 different slice positions" in records[0].reason


def test_scout_inside_the_series_is_set_apart(tmp_path, hu):
    maker.series(tmp_path, hu)
    scout = maker.dataset(np.zeros((30, 8), np.uint16), number=99, position=(0, 0, 0), orientation=(1, 0, 0, 0, 0, -1))
    maker.save(scout, tmp_path / "scout.dcm")
    records = select_series(find_series(tmp_path))
    assert [(r.slices, r.decision) for r in records] == [(9, "kept"), (1, "rejected")]
    assert "1 of 10 images of the series" in records[1].reason
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


def test_damaged_files(tmp_path, hu, capfd):
    paths = maker.series(tmp_path / "cut", hu)
    paths[4].write_bytes(paths[4].read_bytes()[:-50])
    with pytest.raises(ScanError, match=r"im004.dcm: the pixels are damaged or incomplete"):
        read_volume(tmp_path / "cut")
    paths = maker.series(tmp_path / "header", hu)
    for path in paths:
        path.write_bytes(path.read_bytes()[:600])
    record = select_series(find_series(tmp_path / "header"))[0]
    assert record.decision == "rejected" and record.reason
    with pytest.raises(ScanError):
        read_volume(tmp_path / "header")
    assert capfd.readouterr().err == ""


# --- folders -------------------------------------------------------------------------------------------------------


def test_messy_tree(tmp_path, hu):
    """Two series in one folder, one series in two folders, deep nesting, no extensions, other files beside."""
    other = maker.anatomy(seed=8)
    maker.series(tmp_path / "one/two/three", hu[:5], name="{}", study="s1", series="a")
    where = maker.positions(9)
    for i in range(5, 9):
        ds = maker.dataset((hu[i] + 1024).astype(np.uint16), study="s1", series="a", number=i + 1, position=where[i])
        maker.save(ds, tmp_path / f"one/four/IM{i}")
    maker.series(tmp_path / "one/four", other, name="Z{}.ima", study="s2", series="b")
    (tmp_path / "one/notes.txt").write_text("report")
    (tmp_path / "one/four/thumb.jpg").write_bytes(b"\xff\xd8" + b"0" * 500)
    (tmp_path / "one/four/README").write_bytes(b"DICOM is not here" * 30)
    (tmp_path / "one/empty").touch()
    (tmp_path / "DICOMDIR").write_bytes((maker.sample("dicomdirtests") / "DICOMDIR").read_bytes())
    (tmp_path / "sr").write_bytes(maker.sample("test-SR.dcm").read_bytes())
    (tmp_path / "plan.dcm").write_bytes(maker.sample("rtplan.dcm").read_bytes())
    records = select_series(find_series(tmp_path))
    found = {r.series: r for r in records if r.decision == "kept"}
    a, b = found[maker.uid("s1", "a")], found[maker.uid("s2", "b")]
    assert (a.path, b.path, len(found)) == ("one", "one/four", 2)
    np.testing.assert_array_equal(read_series(a, tmp_path).array, hu)
    np.testing.assert_array_equal(read_series(b, tmp_path).array, other)
    assert sorted(r.modality for r in records if r.decision == "rejected") == ["RTPLAN", "SR"]
    with pytest.raises(ScanError, match="2 studies"):
        read_volume(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path, series=b.series).array, other)
    np.testing.assert_array_equal(read_volume(tmp_path / "one/four/Z3.ima").array, other)
    files = [tmp_path / f for f in a.files]
    volume = read_volume(tmp_path / "one", series=a.series, files=files)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.source.path == str(tmp_path / "one") and volume.source.series == a.series


def test_linked_folders_are_searched_once(tmp_path, hu):
    maker.series(tmp_path / "archive" / "deep", hu)
    root = tmp_path / "data"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "archive", target_is_directory=True)
    (tmp_path / "archive" / "deep" / "back").symlink_to(tmp_path / "archive", target_is_directory=True)
    record = select_series(find_series(root))[0]
    assert (record.path, len(record.files)) == ("link/deep", 9)
    np.testing.assert_array_equal(read_series(record, root).array, hu)


def test_files_without_preamble_are_read(tmp_path, hu):
    for path in maker.series(tmp_path, hu):
        ds = pydicom.dcmread(path)
        path.unlink()
        with path.with_suffix("").open("wb") as file:
            pydicom.filewriter.dcmwrite(
                file, pydicom.Dataset(ds), implicit_vr=True, little_endian=True, enforce_file_format=False
            )
        assert path.with_suffix("").read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


def test_workers_and_a_given_file_list_find_the_same(tmp_path):
    hu = maker.anatomy((70, 6, 6))
    for name in "abcd":
        maker.series(tmp_path / name, hu, series=name)
    seen = []
    alone = find_series(tmp_path)
    together = find_series(tmp_path, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert alone == together and len(alone) == 4 and seen[-1] == (280, 280)
    some = find_series(tmp_path, [f"a/{p.name}" for p in (tmp_path / "a").iterdir()])
    assert some == alone[:1]


# --- selection -----------------------------------------------------------------------------------------------------


def study(root):
    """A hospital study: scout, thick, thin with two kernels, MIP, coronal, derived and a dose report picture."""
    plan = {
        "thick": (5.0, 6, {}),
        "thin_sharp": (1.0, 20, {"ConvolutionKernel": "B70f"}),
        "thin_soft": (1.0, 20, {"ConvolutionKernel": "B30f"}),
        "apart": (10.0, 5, {"SliceThickness": "0.6"}),
        "derived": (0.5, 30, {"ImageType": DERIVED}),
        "mip": (0.4, 10, {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MIP"]}),
        "mpr": (0.4, 10, {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}),
        "coronal": (0.4, 10, {"orientation": (1, 0, 0, 0, 0, -1)}),
        "iodine": (0.4, 10, {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "IODINE"]}),
        "scout": (1.0, 1, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    }
    for name, (step, count, tags) in plan.items():
        along = (0, 1, 0) if name == "coronal" else (0, 0, 1)
        tags = {"SliceThickness": str(step)} | tags
        where = maker.positions(count, step=step, along=along)
        maker.series(root / name, maker.anatomy((count, 8, 9)), where=where, series=name, **tags)


def test_thinnest_axial_of_a_hospital_study(tmp_path):
    study(tmp_path)
    records = chosen(tmp_path)
    assert {n for n, r in records.items() if r.decision == "kept"} == {"thin_soft"}
    assert {n for n, r in records.items() if r.decision == "rejected"} == {"scout"}
    for name, words in (
        ("thick", "5 mm slices; the kept series has 1 mm"),
        ("apart", "10 mm slices"),
        ("thin_sharp", "as thin as the kept series"),
        ("derived", "has an original axial series"),
        ("mip", "projection"),
        ("mpr", "reformat"),
        ("coronal", "reformat"),
        ("iodine", "parametric map"),
        ("scout", "localizer"),
    ):
        assert words in records[name].reason, name
    assert records["coronal"].orientation == "coronal" and records["thin_soft"].thickness_mm == 1.0
    volume = read_volume(tmp_path)
    assert volume.source.series == maker.uid("s", "thin_soft")
    np.testing.assert_array_equal(volume.array, maker.anatomy((20, 8, 9)))


def test_other_rules(tmp_path):
    study(tmp_path)
    kept = {n for n, r in chosen(tmp_path, "all").items() if r.decision == "kept"}
    assert kept == {"thick", "thin_soft", "thin_sharp", "apart", "derived"}
    assert {n for n, r in chosen(tmp_path, "largest").items() if r.decision == "kept"} == {"thin_soft"}
    with pytest.raises(InputError, match="thinnest_axial, largest, all"):
        chosen(tmp_path, "best")


@pytest.mark.parametrize(
    ("image_type", "kind"),
    [
        ("ORIGINAL PRIMARY AXIAL", "original"),
        ("ORIGINAL PRIMARY AXIAL CT_SOM5_SPI", "original"),
        ("ORIGINAL PRIMARY AXIAL HELIX", "original"),
        ("ORIGINAL PRIMARY VOLUME NONE", "original"),
        ("", "original"),
        ("DERIVED PRIMARY AXIAL JP2K_LOSSY_6:1", "derived"),
        ("DERIVED SECONDARY AXIAL", "derived"),
        ("DERIVED PRIMARY AXIAL CT_SOM5_MIP", "projection"),
        ("DERIVED SECONDARY REFORMATTED MIN_IP", "projection"),
        ("DERIVED SECONDARY REFORMATTED AVERAGE", "projection"),
        ("DERIVED SECONDARY PROJECTION_IMAGE", "projection"),
        ("DERIVED SECONDARY AXIAL VOLUME_RENDERED", "projection"),
        ("DERIVED SECONDARY MPR CT_SOM5_MPR", "reformat"),
        ("DERIVED SECONDARY OTHER CSA_MPR CSAPARALLEL", "reformat"),
        ("DERIVED SECONDARY CURVED", "reformat"),
        ("DERIVED PRIMARY PERFUSION CBF", "map"),
        ("DERIVED PRIMARY AXIAL DE_VNC", "map"),
        ("ORIGINAL PRIMARY LOCALIZER CT_SOM5_TOP", "localizer"),
    ],
)
def test_kind_from_image_type(tmp_path, image_type, kind):
    values = [v.replace("_", " ") if "CT" not in v else v for v in image_type.split()]
    with quiet_pydicom():  # the lossy mark that scanners write is not a legal value
        ds = maker.dataset(np.zeros((4, 4), np.uint16), position=(0, 0, 0), ImageType=values)
        headers = read_header(maker.save(ds, tmp_path / "a"))
    assert classify(headers)[0] == kind


@pytest.mark.parametrize(
    ("rank", "kernels"),
    [
        (0, ["B30f", "Br40d/3", "I30f", "STANDARD", "SOFT", "FC08", "B", "Body"]),
        (2, ["B70f", "Bl57", "I70f", "LUNG", "BONEPLUS", "FC51", "YB", "EDGE"]),
        (1, ["", "XYZ"]),
    ],
)
def test_kernels_are_ranked_by_sharpness(rank, kernels):
    assert {k: kernel_rank(k) for k in kernels} == dict.fromkeys(kernels, rank)


def test_derived_is_taken_where_there_is_nothing_else(tmp_path, hu):
    maker.series(tmp_path, hu, ImageType=["DERIVED", "PRIMARY", "AXIAL"])
    record = select_series(find_series(tmp_path))[0]
    assert record.decision == "kept" and "derived" in record.reason


def test_a_reformat_is_read_when_named(tmp_path, hu):
    # Coronal planes of hu: rows toward the left, columns toward the feet, planes toward the back.
    where = maker.positions(12, step=0.8, start=(-40, -30, -84), along=(0, 1, 0))
    maker.series(
        tmp_path, hu[::-1].transpose(1, 0, 2).copy(), where=where, orientation=(1, 0, 0, 0, 0, -1),
        PixelSpacing=["2", "0.7"],
    )  # fmt: skip
    with pytest.raises(ScanError, match="reformat"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, series=maker.uid("s", "a"))
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.spacing_mm == pytest.approx((2.0, 0.8, 0.7)) and volume.slices is None
    with pytest.raises(ScanError, match="no series"):
        read_volume(tmp_path, series="1.2.3")


# --- encodings -----------------------------------------------------------------------------------------------------


def test_enhanced_multi_frame(tmp_path, hu):
    order = np.random.default_rng(1).permutation(len(hu))
    where, intercepts = maker.positions(len(hu)), np.arange(len(hu)) * -10 - 1024
    maker.enhanced(tmp_path / "e.dcm", hu[order], where[order], intercepts)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.spacing_mm == pytest.approx((2.0, 0.8, 0.7))
    frames = [int(s.sop_uid.split("#")[1]) for s in volume.slices]
    np.testing.assert_array_equal(order[np.array(frames) - 1], np.arange(len(hu)))
    np.testing.assert_array_equal(read_volume(tmp_path / "e.dcm").array, hu)
    record = select_series(find_series(tmp_path))[0]
    assert (record.slices, record.files, record.decision) == (9, ("e.dcm",), "kept")
    assert record.thickness_mm == 2.0


def test_rle(tmp_path, hu):
    path = maker.series(tmp_path, hu, rle=True)[0]
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.name == "RLE Lossless"
    np.testing.assert_array_equal(read_volume(tmp_path).array, hu)


@pytest.mark.parametrize(
    ("file", "syntax"),
    [("MR_small_jpeg_ls_lossless.dcm", JPEGLSLossless), ("MR_small_jp2klossless.dcm", JPEG2000Lossless)],
)
def test_jpeg_ls_and_jpeg_2000(tmp_path, file, syntax):
    """The stream of a public sample in a CT header; the same picture, uncompressed, is the expectation."""
    source, plain = pydicom.dcmread(maker.sample(file)), pydicom.dcmread(maker.sample("MR_small.dcm"))
    assert source.file_meta.TransferSyntaxUID == syntax
    for i, where in enumerate(maker.positions(5)):
        ds = maker.dataset(plain.pixel_array, number=i, position=where, RescaleIntercept=str(-1024 - i))
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (
            source.BitsStored,
            source.HighBit,
            source.PixelRepresentation,
        )
        ds.PixelData = source.PixelData
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        maker.save(ds, tmp_path / f"{i}.dcm", syntax=syntax)
    expected = np.stack([plain.pixel_array.astype(int) - 1024 - i for i in range(5)])
    np.testing.assert_array_equal(read_volume(tmp_path).array, np.maximum(expected, -1024))


@pytest.mark.parametrize("step", [0, -10])
def test_compressed_multi_frame(tmp_path, step):
    source, plain = pydicom.dcmread(maker.sample("MR_small_jpeg_ls_lossless.dcm")), maker.sample("MR_small.dcm")
    picture = pydicom.dcmread(plain).pixel_array.astype(np.int32)
    intercepts = -1024 + step * np.arange(5)
    path = maker.enhanced(tmp_path / "e.dcm", picture + intercepts[:, None, None], maker.positions(5), intercepts)
    ds = pydicom.dcmread(path)
    for name in ("BitsStored", "HighBit", "PixelRepresentation"):
        setattr(ds, name, source[name].value)
    frame = next(pydicom.encaps.generate_frames(source.PixelData, number_of_frames=1))
    ds.PixelData = pydicom.encaps.encapsulate([frame] * 5)
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEGLSLossless
    ds.save_as(path)
    if step:
        with pytest.raises(ScanError, match="different rescale"):
            read_volume(path)
    else:
        np.testing.assert_array_equal(read_volume(path).array, np.maximum([picture - 1024] * 5, -1024))


def test_an_unknown_compression_is_named(tmp_path, hu, capfd):
    for path in maker.series(tmp_path, hu):
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"  # high-throughput JPEG 2000
        ds.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 60])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(path)
    with pytest.raises(ScanError, match="High-Throughput JPEG 2000"):
        read_volume(tmp_path)
    assert capfd.readouterr().err == ""


def test_reads_as_simpleitk_does(tmp_path, hu):
    maker.series(tmp_path, hu, where=maker.positions(9)[::-1], name="{:02d}")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = sitk.DICOMOrient(reader.Execute(), "LPS")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.to_sitk().GetOrigin(), image.GetOrigin())


# --- privacy -------------------------------------------------------------------------------------------------------


def test_nothing_that_names_a_person_is_kept(tmp_path, hu, capfd, caplog):
    paths = maker.series(tmp_path, hu)
    paths[0].with_name("bad").write_bytes(paths[0].read_bytes()[:700])
    records = select_series(find_series(tmp_path))
    volume = read_volume(tmp_path, series=maker.uid("s", "a"))
    out = capfd.readouterr()
    told = " ".join(map(repr, records)) + str([r.row() for r in records]) + repr(volume.source) + repr(volume.slices)
    told += out.out + out.err + caplog.text
    for secret in (*maker.SECRET.values(), "Roe", "ward"):
        assert secret not in told
    assert volume.source.patient == DIGEST == hash_patient_id(" MRN-778812 ")


def test_row_has_the_columns_of_the_table(tmp_path, hu):
    maker.series(tmp_path / "x", hu)
    row = select_series(find_series(tmp_path))[0].row()
    assert row["path"] == "x" and row["slices"] == 9 and row["spacing_mm"] == "2 0.8 0.7" and row["kernel"] == "B30f"
    assert row["decision"] == "kept" and row["reason"] and row["image_type"] == "ORIGINAL\\PRIMARY\\AXIAL"
