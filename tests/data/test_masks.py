from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

import voco
from voco.data.cache import PreparedVolume
from voco.data.manifest import Case
from voco.data.masks import mask_box, read_mask
from voco.data.prepare import PrepareSettings, prepare, prepare_volume
from voco.errors import InputError, ScanError

SPACING = (3.0, 1.0, 2.0)


def write(path, array, spacing=SPACING, orientation="LPS"):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((-20.0, -30.0, 5.0))
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A body of 40 HU in air, with two lungs of -800 HU and their mask."""
    folder = tmp_path_factory.mktemp("scans")
    hu = np.full((12, 40, 30), -1000, np.int16)
    hu[:, 4:36, 3:27] = 40
    mask = np.zeros(hu.shape, np.uint8)
    mask[3:9, 12:25, 6:12], mask[4:8, 12:28, 18:24] = 1, 2
    hu[mask > 0] = -800
    write(folder / "scan.nii.gz", hu)
    write(folder / "mask.nii.gz", mask)
    return folder, hu, mask > 0


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
def test_a_mask_lands_on_the_scan_however_its_axes_run(scan, tmp_path, orientation):
    folder, hu, mask = scan
    write(tmp_path / "mask.nii.gz", mask.astype(np.uint8), orientation=orientation)
    volume = voco.read_volume(folder / "scan.nii.gz")
    found = read_mask(tmp_path / "mask.nii.gz", volume)
    assert np.array_equal(found, mask) and (volume.array[found] == -800).all() and np.array_equal(volume.array, hu)


def test_masks_that_do_not_fit_are_refused(scan, tmp_path):
    folder, _, mask = scan
    volume = voco.read_volume(folder / "scan.nii.gz")
    write(tmp_path / "short.nii.gz", mask[:5].astype(np.uint8))
    with pytest.raises(ScanError, match=r"5 x 40 x 30 .*12 x 40 x 30"):
        read_mask(tmp_path / "short.nii.gz", volume)
    write(tmp_path / "empty.nii.gz", np.zeros(mask.shape, np.uint8))
    with pytest.raises(ScanError, match="empty"):
        read_mask(tmp_path / "empty.nii.gz", volume)
    (tmp_path / "torn.nii.gz").write_bytes(b"no mask")
    with pytest.raises(ScanError, match="cannot be read"):
        read_mask(tmp_path / "torn.nii.gz", volume)


def test_the_box_holds_the_mask_and_a_margin_and_stays_inside(scan):
    _, _, mask = scan
    assert mask_box(mask, SPACING) == (slice(1, 11), slice(6, 34), slice(3, 27))
    assert mask_box(mask, SPACING, margin_mm=0) == (slice(3, 9), slice(12, 28), slice(6, 24))
    assert mask_box(mask, SPACING, margin_mm=100) == tuple(slice(0, n) for n in mask.shape)
    assert mask_box(mask, SPACING, margin_mm=4.5) == (slice(1, 11), slice(7, 33), slice(3, 27))  # rounded up


def test_crop_and_fill_do_what_they_say_and_channels_fit_each_other(scan):
    _, hu, mask = scan
    volume = SimpleNamespace(
        array=hu, spacing_mm=SPACING, affine=np.eye(4), slices=None, source=SimpleNamespace(study="")
    )
    native = {"spacing_mm": "native"}
    cropped, _, meta = prepare_volume(volume, PrepareSettings(**native, crop_body=True, mask="crop"), mask)
    assert np.array_equal(cropped, hu[mask_box(mask, SPACING)])
    assert np.allclose(np.array(meta["affine"])[:3, 3], [1, 6, 3]), "the first voxel knows its place"
    filled, _, _ = prepare_volume(volume, PrepareSettings(**native, crop_body=True, mask="fill"), mask)
    plain, _, _ = prepare_volume(volume, PrepareSettings(**native, crop_body=True), mask)
    assert filled.shape == plain.shape, "the scan inside its mask is a channel beside the scan"
    assert sorted(np.unique(filled).tolist()) == [-1024, -800] and (filled == -800).sum() == mask.sum()
    assert (plain[filled == -800] == -800).all()
    without, _, _ = prepare_volume(volume, PrepareSettings(**native, mask="crop"), None)
    assert np.array_equal(without, hu)
    with pytest.raises(InputError, match="crop or to fill"):
        PrepareSettings(mask="box")


def test_the_prepared_scan_follows_its_mask_file(scan, tmp_path):
    folder, hu, _ = scan
    for name in ("scan.nii.gz", "mask.nii.gz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    case = Case("scan", "scan.nii.gz", "p", mask="mask.nii.gz")
    lost = Case("lost", "scan.nii.gz", "p", mask="gone.nii.gz")
    settings = PrepareSettings("native", mask="fill", size=(None, 20, 30))
    done = prepare([case, lost], tmp_path, tmp_path / "cache", settings, progress=False)
    assert [r.reason for r in done.rejected] and "scan.nii.gz" in done.rejected[0].path
    (entry,) = done.entries
    assert entry.shape == (12, 20, 30) and entry.spacing_mm == pytest.approx((3.0, 2.0, 2.0))
    stored = PreparedVolume.open(entry.path).read((0, 0, 0), entry.shape)
    assert (stored[:, :, 0] == -1024).all() and stored.max() == -800
    write(tmp_path / "mask.nii.gz", np.ones(hu.shape, np.uint8))
    again = prepare([case], tmp_path, tmp_path / "cache", settings, progress=False)
    assert again.made == 1 and again.entries[0].path != entry.path
    assert prepare([case], tmp_path, tmp_path / "cache", settings, progress=False).reused == 1
