"""One check of geometry for all formats, and names of files that ITK cannot open."""

from __future__ import annotations

import os
import struct
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from voco.data.grid import check_geometry, nearest_rigid, shear_degrees
from voco.data.itk_path import detached_files
from voco.data.read import read_volume
from voco.errors import ScanError

SPACING, ORIGIN = (1.5, 1.25, 3.0), (-30.0, -36.0, -100.0)
LPS = "left-posterior-superior"


@pytest.fixture
def hu():
    """Air, lung, fat, muscle and bone at random: no symmetry, and no doubt that they are Hounsfield units."""
    random = np.random.default_rng(3)
    values = random.choice([-1000, -850, -100, 40, 600], (8, 10, 12)) + random.integers(-20, 20, (8, 10, 12))
    return values.astype(np.int16)


def shear(degrees):
    """(3, 3) columns x, y, z in mm; z leans toward y."""
    axes = np.diag(SPACING)
    axes[1, 2] = np.tan(np.radians(degrees)) * SPACING[2]
    return axes


def nrrd(path, hu, axes=None, space=LPS, lines="", directions=None):
    if directions is None:
        directions = " ".join(
            "({:.9g},{:.9g},{:.9g})".format(*column) for column in (np.diag(SPACING) if axes is None else axes).T
        )
    head = (
        f"NRRD0004\ntype: short\ndimension: 3\nspace: {space}\nsizes: {' '.join(map(str, hu.shape[::-1]))}\n"
        + (f"space directions: {directions}\n" if directions else "")
        + f"{lines}endian: little\nencoding: raw\nspace origin: ({ORIGIN[0]},{ORIGIN[1]},{ORIGIN[2]})\n\n"
    )
    path.write_bytes(head.encode() + hu.astype("<i2").tobytes())
    return path


def meta(path, hu, axes, lines=""):
    mm = np.linalg.norm(axes, axis=0)
    text = lambda values: " ".join(f"{v:.9g}" for v in values)  # noqa: E731
    head = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n{lines}"
        f"TransformMatrix = {text((axes / mm).T.ravel())}\nOffset = {text(ORIGIN)}\nElementSpacing = {text(mm)}\n"
        f"DimSize = {text(hu.shape[::-1])}\nElementType = MET_SHORT\nElementDataFile = "
    )
    data = hu.astype("<i2").tobytes()
    if path.suffix == ".mha":
        path.write_bytes(head.encode() + b"LOCAL\n" + data)
    else:
        path.write_bytes(head.encode() + b"voxels.raw\n")
        (path.parent / "voxels.raw").write_bytes(data)
    return path


def nifti(path, hu, sform, qform=None, zooms=SPACING, codes=(1, 0), **fields):
    """Affines and zooms in LPS mm; the header is written by hand."""
    image = nibabel.Nifti1Image(hu.T, None)
    header = image.header
    ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    header.set_qform(ras @ (np.diag([*SPACING, 1.0]) if qform is None else qform), codes[1])
    header.set_sform(ras @ sform, codes[0])
    header["pixdim"][1:4] = zooms
    header.set_xyzt_units("mm")
    raw = bytearray(image.to_bytes())
    for at, value in ((280 + 4 * i, v) for i, v in enumerate((ras @ sform)[:3].ravel())):
        struct.pack_into("<f", raw, at, value)
    struct.pack_into("<2h", raw, 252, codes[1], codes[0])
    struct.pack_into("<3f", raw, 80, *zooms)
    for at, value in fields.values():
        struct.pack_into("<f", raw, at, value)
    path.write_bytes(bytes(raw))
    return path


def affine(axes):
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = axes, ORIGIN
    return out


def write(kind, folder, hu, axes):
    path = folder / f"a.{kind}"
    if kind == "nii":
        return nifti(path, hu, affine(axes), zooms=np.linalg.norm(axes, axis=0))
    return nrrd(path, hu, axes) if kind == "nrrd" else meta(path, hu, axes)


@pytest.mark.parametrize("kind", ["nii", "nrrd", "mha", "mhd"])
def test_a_sheared_grid_is_refused_alike_in_every_format(tmp_path, hu, kind):
    with pytest.raises(ScanError, match=r"not at right angles \(15.0 degrees off.*resample it"):
        read_volume(write(kind, tmp_path, hu, shear(15)))


@pytest.mark.parametrize("kind", ["nii", "nrrd", "mha", "mhd"])
@pytest.mark.parametrize("degrees", [0, 0.05, 0.6])
def test_a_little_shear_is_straightened_and_said(tmp_path, hu, kind, degrees):
    volume = read_volume(write(kind, tmp_path, hu, shear(degrees)))
    np.testing.assert_array_equal(volume.array, hu)
    np.testing.assert_allclose(volume.spacing_mm, SPACING[::-1], rtol=1e-3)
    axes = volume.affine[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-7)
    assert [bool(note) for note in volume.notes] == [True] * (degrees == 0.6)
    assert degrees < 0.6 or "0.60 degrees off" in volume.notes[0]


def test_the_nearest_right_angles():
    """Against scipy's orthogonal Procrustes solution."""
    from scipy.linalg import orthogonal_procrustes

    axes = shear(0.5) / np.linalg.norm(shear(0.5), axis=0)
    rigid, change = nearest_rigid(axes)
    np.testing.assert_allclose(rigid, orthogonal_procrustes(np.eye(3), axes)[0], atol=1e-12)
    assert change == pytest.approx(np.abs(rigid - axes).max())
    assert shear_degrees(axes) == pytest.approx(0.5)
    with pytest.raises(ScanError, match="unit vectors"):
        check_geometry(SPACING, ORIGIN, np.diag([2.0, 1.0, 1.0]), "scan")


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed"])
def test_nrrd_spaces_that_do_not_name_sides(tmp_path, hu, space):
    with pytest.raises(ScanError, match=f"{space}.* does not say where left and right"):
        read_volume(nrrd(tmp_path / "a.nrrd", hu, space=space))


@pytest.mark.parametrize("space", ["RAS", "right-anterior-superior", "LAS", "lps"])
def test_nrrd_spaces_that_do(tmp_path, hu, space):
    volume = read_volume(nrrd(tmp_path / "a.nrrd", hu, space=space))
    flips = {"R": (1, 2), "r": (1, 2), "L": (1,), "l": ()}[space[0]]
    np.testing.assert_array_equal(volume.array, np.flip(hu, flips))


@pytest.mark.parametrize("directions", ["", "(1.5,0,0) (0,1.25,0) none", "none none none"])
def test_nrrd_axes_without_a_direction(tmp_path, hu, directions):
    with pytest.raises(ScanError, match="directions in the NRRD header"):
        read_volume(nrrd(tmp_path / "a.nrrd", hu, directions=directions))


def test_units_of_nrrd_and_metaimage(tmp_path, hu):
    centimetres = nrrd(tmp_path / "a.nrrd", hu, np.diag(SPACING) / 10, lines='space units: "cm" "cm" "cm"\n')
    metres = meta(tmp_path / "a.mha", hu, np.diag(SPACING) / 1000, lines="DistanceUnits = m\n")
    for path in (centimetres, metres):
        np.testing.assert_allclose(read_volume(path).spacing_mm, SPACING[::-1], rtol=1e-6)
    with pytest.raises(ScanError, match="lengths in furlong"):
        read_volume(nrrd(tmp_path / "b.nrrd", hu, lines='space units: "furlong" "furlong" "furlong"\n'))


def test_sform_of_direction_cosines(tmp_path, hu):
    cosines, right = affine(np.eye(3)), affine(np.diag(SPACING))
    volume = read_volume(nifti(tmp_path / "a.nii", hu, cosines, right, codes=(1, 1)))
    np.testing.assert_allclose(volume.spacing_mm, SPACING[::-1], rtol=1e-6)
    assert "without voxel sizes" in volume.notes[0]
    with pytest.raises(ScanError, match=r"sform says voxels of 1 x 1 x 1 mm, pixdim 1.5 x 1.25 x 3 mm"):
        read_volume(nifti(tmp_path / "b.nii", hu, cosines, codes=(1, 0)))
    with pytest.raises(ScanError, match=r"sform says voxels of 3 x 2.5 x 6 mm"):
        read_volume(nifti(tmp_path / "c.nii", hu, affine(np.diag(SPACING) * 2), right, codes=(1, 1)))
    with pytest.raises(ScanError, match="which is right is not known"):  # and the qform is turned as well
        turned = affine(np.diag(SPACING)[:, [1, 0, 2]] * [1, -1, 1])
        read_volume(nifti(tmp_path / "d.nii", hu, cosines, turned, codes=(1, 1)))


def test_a_pixdim_of_ones_was_never_filled_in(tmp_path, hu):
    volume = read_volume(nifti(tmp_path / "a.nii", hu, affine(np.diag(SPACING)), zooms=(1, 1, 1)))
    np.testing.assert_allclose(volume.spacing_mm, SPACING[::-1], rtol=1e-6)
    assert volume.notes == ()


def test_sform_and_qform_that_differ_in_sides(tmp_path, hu):
    mirrored = affine(np.diag(SPACING) * [-1, 1, 1])
    volume = read_volume(nifti(tmp_path / "a.nii", hu, affine(np.diag(SPACING)), mirrored, codes=(1, 1)))
    np.testing.assert_array_equal(volume.array, hu)
    assert "which side is left" in volume.notes[0]


def test_vox_offset_of_zero(tmp_path, hu):
    path = nifti(tmp_path / "a.nii", hu, affine(np.diag(SPACING)), offset=(108, 0.0))
    np.testing.assert_array_equal(read_volume(path).array, hu)
    raw = path.read_bytes()
    (tmp_path / "b.nii").write_bytes(raw[:352] + b"\0" * 16 + raw[352:])
    with pytest.raises(ScanError, match="vox_offset 0 lies inside the header"):
        read_volume(tmp_path / "b.nii")


@pytest.mark.parametrize("name", ["Müller_患者", "M\udcfcller"], ids=["utf8", "latin1"])
def test_data_files_outside_ascii(tmp_path, hu, name):
    path = meta(tmp_path / "a.mhd", hu, np.diag(SPACING))
    os.rename(tmp_path / "voxels.raw", tmp_path / f"{name}.raw")
    path.write_bytes(path.read_bytes().replace(b"voxels", os.fsencode(name)))
    assert [os.fsencode(file.name) for file in detached_files(path)] == [os.fsencode(f"{name}.raw")]
    np.testing.assert_array_equal(read_volume(path).array, hu)


def test_a_data_file_that_was_named_on_another_system(tmp_path, hu):
    """The header has cp1252 bytes, the file was copied and has UTF-8."""
    path = meta(tmp_path / "a.mhd", hu, np.diag(SPACING))
    os.rename(tmp_path / "voxels.raw", tmp_path / "Müller.raw")
    path.write_bytes(path.read_bytes().replace(b"voxels", "Müller".encode("cp1252")))
    np.testing.assert_array_equal(read_volume(path).array, hu)


_CHILD = """
import sys, os, numpy as np
from voco.data.read import read_volume
from voco.errors import ScanError
for path in sys.argv[1:]:
    print(read_volume(path).array.sum())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_names_that_are_not_utf8_do_not_end_the_process(tmp_path, hu):
    folder = tmp_path / "M\udcfcller"
    folder.mkdir()
    sitk.WriteImage(sitk.DICOMOrient(sitk.GetImageFromArray(hu), "LPS"), str(tmp_path / "plain.nrrd"))
    paths = [nrrd(folder / "a.nrrd", hu), meta(folder / "a.mhd", hu, np.diag(SPACING)), folder / "h\udcfc.nhdr"]
    paths += [
        nifti(folder / "\udcff.nii", hu, affine(np.diag(SPACING))),
        meta(folder / "\udcff.mha", hu, np.diag(SPACING)),
    ]
    nrrd(paths[2], hu)
    head = paths[2].read_bytes()[: -hu.nbytes].rstrip(b"\n") + b"\ndata file: voxels.raw\n\n"
    paths[2].write_bytes(head)
    done = subprocess.run([sys.executable, "-c", _CHILD, *map(os.fsencode, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(hu.sum())] * 5


@pytest.mark.parametrize(
    "header", ["a%20b #1.raw", "D:\\scans\\old\\a%20b #1.raw", ".\\sub\\x.raw", "/old/a%20b #1.raw"]
)
def test_data_files_that_itk_does_not_find(tmp_path, hu, header):
    """Percent signs, backslashes, and folders of another machine: the file of that name beside the header is meant."""
    file = tmp_path / ("sub/x.raw" if "sub" in header else "a%20b #1.raw")
    file.parent.mkdir(exist_ok=True)
    path = meta(tmp_path / "a.mhd", hu, np.diag(SPACING))
    os.rename(tmp_path / "voxels.raw", file)
    path.write_bytes(path.read_bytes().replace(b"voxels.raw", header.encode()))
    assert detached_files(path) == [file]
    np.testing.assert_array_equal(read_volume(path).array, hu)
    plain = nrrd(tmp_path / "a.nhdr", hu)
    plain.write_bytes(plain.read_bytes()[: -hu.nbytes].rstrip(b"\n") + f"\ndata file: {header}\n\n".encode())
    np.testing.assert_array_equal(read_volume(plain).array, hu)


def test_lists_and_suffixes_that_itk_does_not_find(tmp_path, hu):
    for number, plane in enumerate(hu):
        (tmp_path / f"ü{number}.raw").write_bytes(plane.tobytes())
    path = meta(tmp_path / "A.MHD", hu, np.diag(SPACING))
    names = "\n".join(f".\\ü{number}.raw" for number in range(len(hu)))
    path.write_text(path.read_text().replace("voxels.raw", f"LIST\n{names}\n"))
    np.testing.assert_array_equal(read_volume(path).array, hu)
    path.write_text(path.read_text().replace(f"LIST\n{names}\n", "gone.raw"))
    with pytest.raises(ScanError, match=r"gone\.raw, which is not there; put that file beside the header"):
        read_volume(path)
