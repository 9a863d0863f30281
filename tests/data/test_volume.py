"""Reading NIfTI, MetaImage and NRRD: values and geometry against SimpleITK, nibabel and literal headers."""

from __future__ import annotations

import gzip
import importlib.util
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from voco.data.read import read_volume
from voco.data.volume import Source, canonical_volume, hounsfield
from voco.errors import ScanError

_spec = importlib.util.spec_from_file_location("dicom_maker", Path(__file__).with_name("dicom_maker.py"))
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)

SPACING = (2.0, 0.8, 0.7)
ORIGIN = (-40.0, -30.0, -100.0)


@pytest.fixture
def hu():
    return maker.anatomy()


def image_of(array, spacing=SPACING, origin=ORIGIN, direction=None):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(direction)
    return image


def nifti(path, array, sform=1, qform=1, affine=None, **header):
    """Write (D, H, W) in LPS by hand: NIfTI wants (x, y, z) and a RAS affine."""
    if affine is None:
        affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
        affine[:3, 3] = -ORIGIN[0], -ORIGIN[1], ORIGIN[2]
    out = nibabel.Nifti1Image(array.T if array.ndim == 3 else array, None, dtype=array.dtype)
    out.header.set_zooms((*SPACING[::-1], *[1.0] * (array.ndim - 3)))
    out.header.set_xyzt_units("mm")
    if qform:
        out.header.set_qform(affine, code=qform)
    if sform:
        out.header.set_sform(affine, code=sform)
    for name, value in header.items():
        out.header[name] = value
    data = out.header.copy()
    data["vox_offset"] = 352
    data["magic"] = b"n+1"
    raw = data.binaryblock + b"\0" * 4 + np.asfortranarray(out.dataobj).tobytes(order="F")
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def expect(volume, hu):
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, hu)
    np.testing.assert_allclose(volume.spacing_mm, SPACING, rtol=1e-6)
    affine = np.array([[0, 0, 0.7, -40], [0, 0.8, 0, -30], [2, 0, 0, -100], [0, 0, 0, 1]])
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)


def write_lps(path, fmt, hu):
    if fmt == "dicom":
        maker.series(path, hu)
    elif fmt == "nii.gz":
        nifti(path, hu)
    else:
        sitk.WriteImage(image_of(hu), str(path))


def write_turned(path, fmt, hu):
    """The same anatomy stored with other axes: NIfTI as (A, S, L), MHA and NRRD as (A, S, R), DICOM feet first."""
    d, h, w = hu.shape
    if fmt == "dicom":
        # Rows run toward the right and columns toward the front, so the normal still points to the head; files
        # are written from the head down.
        far = (ORIGIN[0] + (w - 1) * 0.7, ORIGIN[1] + (h - 1) * 0.8, ORIGIN[2])
        where = maker.positions(d, start=far)
        maker.series(path, hu[::-1, ::-1, ::-1], where=where[::-1], orientation=(-1, 0, 0, 0, -1, 0))
        return
    if fmt == "nii.gz":
        # voxel axes i, j, k run toward A, S, L: i = reversed H, j = D, k = W
        stored = hu.transpose(1, 0, 2)[::-1]
        affine = np.zeros((4, 4))
        affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = 0.8, 2.0, -0.7, 1.0
        affine[:3, 3] = -ORIGIN[0], -(ORIGIN[1] + (h - 1) * 0.8), ORIGIN[2]
        out = nibabel.Nifti1Image(np.ascontiguousarray(stored), affine)
        out.header.set_xyzt_units("mm")
        nibabel.save(out, path)
        return
    # ITK index axes i, j, k toward A, S, R; numpy axes are k, j, i
    stored = np.ascontiguousarray(hu[:, ::-1, ::-1].transpose(2, 0, 1))
    image = sitk.GetImageFromArray(stored)
    image.SetSpacing((0.8, 2.0, 0.7))
    image.SetDirection((0, 0, -1, -1, 0, 0, 0, 1, 0))
    image.SetOrigin((ORIGIN[0] + (w - 1) * 0.7, ORIGIN[1] + (h - 1) * 0.8, ORIGIN[2]))
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("fmt", ["nii.gz", "mha", "nrrd", "dicom"])
@pytest.mark.parametrize("write", [write_lps, write_turned])
def test_one_anatomy_in_four_formats_and_two_orientations(tmp_path, hu, fmt, write):
    path = tmp_path / ("scan" if fmt == "dicom" else f"scan.{fmt}")
    write(path, fmt, hu)
    expect(read_volume(path), hu)


def test_index_maps_to_the_same_point_as_itk(tmp_path, hu):
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])
    image = image_of(hu, direction=turn.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "oblique.mha"))
    volume = read_volume(tmp_path / "oblique.mha")
    np.testing.assert_array_equal(volume.array, hu)
    for index in ((0, 0, 0), (4, 7, 2), (8, 11, 13)):
        np.testing.assert_allclose(
            volume.affine @ [*index, 1], [*image.TransformIndexToPhysicalPoint(index[::-1]), 1], atol=1e-6
        )
    back = volume.to_sitk()
    np.testing.assert_allclose(back.GetDirection(), image.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-6)


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1)])
def test_nifti_with_either_form(tmp_path, hu, sform, qform):
    expect(read_volume(nifti(tmp_path / "a.nii", hu, sform, qform)), hu)


def test_nifti_without_orientation_is_refused(tmp_path, hu):
    with pytest.raises(ScanError, match="neither sform nor qform"):
        read_volume(nifti(tmp_path / "a.nii", hu, 0, 0))


def test_nifti_sheared_sform_falls_back_to_qform_or_is_refused(tmp_path, hu):
    path = nifti(tmp_path / "a.nii", hu)
    raw = bytearray(path.read_bytes())
    raw[280 + 4 : 280 + 8] = np.float32(0.3).tobytes()  # srow_x[1]: x also moves along j
    path.write_bytes(raw)
    volume = read_volume(path)
    expect(volume, hu)
    assert "the qform is taken" in volume.notes[0]
    raw[252:254] = np.int16(0).tobytes()  # qform_code
    path.write_bytes(raw)
    with pytest.raises(ScanError, match="not at right angles"):
        read_volume(path)


def test_nifti_in_metres_and_big_endian(tmp_path, hu):
    affine = np.diag([-0.0007, -0.0008, 0.002, 1.0])
    affine[:3, 3] = 0.04, 0.03, -0.1
    out = nibabel.Nifti1Image(hu.T, affine, header=nibabel.Nifti1Header(endianness=">"))
    out.header.set_xyzt_units("meter")
    nibabel.save(out, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    expect(read_volume(tmp_path / "a.nii"), hu)


def test_nifti_slope_and_intercept(tmp_path, hu):
    stored = ((hu.astype(np.int32) + 1024) // 2).astype(np.int16)
    path = nifti(tmp_path / "a.nii", stored, scl_slope=2.0, scl_inter=-1024.0)
    np.testing.assert_array_equal(read_volume(path).array, stored * 2 - 1024)
    np.testing.assert_array_equal(read_volume(path).array, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.float64])
def test_stored_types_and_rounding(tmp_path, hu, kind):
    values = hu.astype(kind) + (kind(0.4) if np.dtype(kind).kind == "f" else 0)
    sitk.WriteImage(image_of(values), str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nrrd").array, hu)


def test_padding_becomes_air_and_metal_is_clipped(tmp_path):
    hu = maker.anatomy((20, 20, 20)).astype(np.int32)
    hu[:, :2], hu[3, 5, 5], hu[3, 6, 6] = -3024, -1025, 40000
    sitk.WriteImage(image_of(hu), str(tmp_path / "a.mha"))
    array = read_volume(tmp_path / "a.mha").array
    assert (array[:, :2] == -1024).all() and array[3, 5, 5] == -1024 and array[3, 6, 6] == 32767
    untouched = (hu >= -1024) & (hu <= 32767)
    np.testing.assert_array_equal(array[untouched], hu[untouched])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (lambda hu: np.where(hu > 0, np.nan, hu), "not numbers"),
        (lambda hu: np.where(hu > 0, np.inf, hu), "not numbers"),
        (lambda hu: ((hu + 1024.0) / 20).astype(np.uint8), "not Hounsfield units"),
        (lambda hu: hu.astype(np.int32) + 1024, "rescale intercept"),
        (lambda hu: hu / 2000.0, "only run from"),
        (lambda hu: np.full_like(hu, -1000), "only run from"),
        (lambda hu: np.where(hu < 0, 62512, -hu.astype(np.int32)), "above 32767"),
    ],
)
def test_values_that_are_not_hounsfield_units(tmp_path, hu, values, sentence):
    sitk.WriteImage(image_of(np.asarray(values(hu))), str(tmp_path / "a.nrrd"))
    with pytest.raises(ScanError, match=sentence):
        read_volume(tmp_path / "a.nrrd")


def test_complex_values_are_refused():
    with pytest.raises(ScanError, match="complex"):
        hounsfield(np.zeros((4, 4, 4), np.complex64), "a")


@pytest.mark.parametrize("fmt", ["nii.gz", "mha", "nrrd"])
def test_shapes_that_are_no_volume(tmp_path, hu, fmt, capfd):
    def written(name, image):
        sitk.WriteImage(image, str(tmp_path / f"{name}.{fmt}"))
        return tmp_path / f"{name}.{fmt}"

    colour = sitk.GetImageFromArray(np.zeros((6, 6, 6, 3), np.uint8), isVector=True)
    with pytest.raises(ScanError, match=r"expected one Hounsfield unit|5-D|4-D"):
        read_volume(written("rgb", colour))
    with pytest.raises(ScanError, match=r"2-D|single image"):
        read_volume(written("flat", sitk.GetImageFromArray(hu[0])))
    with pytest.raises(ScanError, match="single image"):
        read_volume(written("one", image_of(hu[:1])))
    time = sitk.JoinSeries([image_of(hu), image_of(hu)])
    with pytest.raises(ScanError, match="4-D data of 14 x 12 x 9 x 2"):
        read_volume(written("time", time))
    once = written("once", sitk.JoinSeries([image_of(hu)]))
    if fmt == "nrrd":  # ITK writes 4-D NRRD without the name of its space
        with pytest.raises(ScanError, match="no 'space'"):
            read_volume(once)
    else:
        expect(read_volume(once), hu)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fmt", ["nii", "nii.gz", "mha", "nrrd", "nhdr", "mhd"])
@pytest.mark.parametrize("compress", [False, True])
def test_damaged_files_give_one_sentence(tmp_path, hu, fmt, compress, capfd):
    path = tmp_path / f"a.{fmt}"
    sitk.WriteImage(image_of(hu), str(path), useCompression=compress)
    data = next((p for p in tmp_path.iterdir() if p != path), path)
    whole = data.read_bytes()
    data.write_bytes(whole[: int(len(whole) * 0.7)])
    with pytest.raises(ScanError, match="incomplete") as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
    data.write_bytes(b"")
    with pytest.raises(ScanError):
        read_volume(path)
    path.write_bytes(b"not an image at all" * 40)
    with pytest.raises(ScanError):
        read_volume(path)
    assert capfd.readouterr().err == ""


def test_gzip_checksum_is_read(tmp_path, hu):
    path = nifti(tmp_path / "a.nii.gz", hu)
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1  # in the CRC-32, behind the last voxel
    path.write_bytes(raw)
    with pytest.raises(ScanError, match="damaged"):
        read_volume(path)


@pytest.mark.parametrize("name", ["voxels.raw", "a.mhd"])
def test_metaimage_with_a_part_missing(tmp_path, hu, name, capfd):
    sitk.WriteImage(image_of(hu), str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text()
    if name == "a.mhd":
        (tmp_path / name).write_text(text.replace("ElementType", "ElementKind"))
    else:
        (tmp_path / "a.raw").rename(tmp_path / name)
    with pytest.raises(ScanError, match=r"a.raw, which is not there|no ElementType"):
        read_volume(tmp_path / "a.mhd")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("spacing", [0.0, -0.7, np.nan, 900.0])
def test_impossible_spacing(tmp_path, hu, spacing):
    path = nifti(tmp_path / "a.nii", hu, sform=0)
    raw = bytearray(path.read_bytes())
    raw[84:88] = np.float32(spacing).tobytes()  # pixdim[2]
    path.write_bytes(raw)
    with pytest.raises(ScanError, match="voxel size"):
        read_volume(path)
    text = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 14 12 9\nencoding: raw\n"
        f"endian: little\nspace directions: (0.7,0,0) (0,{spacing},0) (0,0,2)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(text.encode() + hu.tobytes())
    if spacing == -0.7:  # a flipped axis in NRRD, not an error
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nrrd").array, hu[:, ::-1])
    else:
        with pytest.raises(ScanError):
            read_volume(tmp_path / "a.nrrd")


def test_singular_direction_and_missing_orientation(tmp_path, hu):
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 14 12 9\nencoding: raw\nendian: little\n"
    for name, lines, sentence in (
        ("flat", "space: LPS\nspace directions: (0.7,0,0) (0.7,0,0) (0,0,2)\n", "damaged|span"),
        ("none", "spacings: 0.7 0.8 2\n", "no 'space'"),
    ):
        (tmp_path / f"{name}.nrrd").write_bytes((head + lines + "\n").encode() + hu.tobytes())
        with pytest.raises(ScanError, match=sentence):
            read_volume(tmp_path / f"{name}.nrrd")


def test_missing_file_and_unknown_kind(tmp_path):
    with pytest.raises(ScanError, match="no such file"):
        read_volume(tmp_path / "a.nii.gz")
    (tmp_path / "b.txt").write_text("hello")
    with pytest.raises(ScanError, match="nor DICOM"):
        read_volume(tmp_path / "b.txt")
    with pytest.raises(ScanError, match="no DICOM images"):
        read_volume(tmp_path)


def test_canonical_volume_names_the_scan(hu):
    image = image_of(hu)
    image.SetOrigin((np.nan, 0, 0))
    with pytest.raises(ScanError, match="my scan"):
        canonical_volume(image, Source("my scan"))


REAL = os.environ.get("VOCO_TEST_CT")
REAL_FILES = sorted(p.name for p in Path(REAL).iterdir()) if REAL else []


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="VOCO_TEST_CT does not name a folder of real scans")
@pytest.mark.parametrize("name", REAL_FILES or ["none"])
def test_real_scans_voxel_for_voxel_as_simpleitk(name):
    path = Path(REAL, name)
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        image = reader.Execute()
    else:
        image = sitk.ReadImage(str(path))
    image = sitk.DICOMOrient(image, "LPS")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, np.maximum(sitk.GetArrayViewFromImage(image), -1024))
    back = volume.to_sitk()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(back, get)(), getattr(image, get)(), atol=1e-4)
    if path.is_dir():
        z = [s.z_mm for s in volume.slices]
        assert len(z) == len(volume.array) and all(s.kept for s in volume.slices)
        np.testing.assert_allclose(z, image.GetOrigin()[2] + np.arange(len(z)) * image.GetSpacing()[2], atol=1e-4)


def test_resample_changes_the_grid_and_not_the_place(tmp_path):
    array = np.random.default_rng(0).integers(-900, 900, (6, 8, 10)).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    volume = read_volume(tmp_path / "a.nii.gz")
    finer = volume.resample((1.5, None, 0.5))
    assert finer.spacing_mm == (1.5, 2.0, 0.5) and finer.array.shape == (11, 8, 19)
    np.testing.assert_array_equal(finer.array[::2, :, ::2], volume.array)
    np.testing.assert_allclose(finer.affine @ [2, 3, 4, 1], volume.affine @ [1, 3, 2, 1])
    np.testing.assert_array_equal(volume.resample(None).array, volume.array)
