import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from voco.data.resample import body_box, parse_spacing, resample, rescale_affine
from voco.errors import InputError


def itk_linear(array, spacing, out_shape, out_spacing):
    image = sitk.GetImageFromArray(array.astype(np.float64))
    image.SetSpacing([float(s) for s in spacing[::-1]])
    moved = sitk.Resample(
        image, out_shape[::-1], sitk.Transform(), sitk.sitkLinear, (0, 0, 0), [float(s) for s in out_spacing[::-1]]
    )
    return sitk.GetArrayFromImage(moved)


@pytest.mark.parametrize(
    ("spacing", "target"),
    [
        ((3.0, 1.1, 1.3), (1.5, 1.5, 1.5)),
        ((0.7, 0.7, 0.7), (5.0, 1.25, 1.25)),
        ((5.0, 0.8, 0.8), (None, 1.5, 1.5)),
        ((2.5, 0.61, 0.97), (1.0, None, 2.0)),
        ((2.0, 2.0, 2.0), (None, None, 0.5)),
    ],
)
def test_equals_itk_linear(spacing, target):
    array = np.random.default_rng(0).integers(-1024, 3072, (23, 31, 29)).astype(np.int16)
    out, true = resample(array, spacing, target)
    assert true == tuple(s if t is None else t for s, t in zip(spacing, target))
    assert out.dtype == np.int16
    for n_out, n_in, new, old in zip(out.shape, array.shape, true, spacing):
        # The last voxel centre does not pass the last source centre, and one more would.
        assert (n_out - 1) * new <= (n_in - 1) * old + 1e-6 < n_out * new
    assert np.abs(out - itk_linear(array, spacing, out.shape, true)).max() <= 0.51


@pytest.mark.real
def test_equals_itk_linear_on_real_scans():
    from voco import read_volume

    if "VOCO_TEST_CT" not in os.environ:
        pytest.skip("set VOCO_TEST_CT to a folder with CT scans")
    for path in sorted(Path(os.environ["VOCO_TEST_CT"]).iterdir()):
        volume = read_volume(path)
        # 2.2 mm, to save time; the factors run from 0.3 to 3.6 over the scans.
        out, spacing = resample(volume.array, volume.spacing_mm, (2.2, 2.2, 2.2))
        part = itk_linear(volume.array, volume.spacing_mm, out.shape, spacing)
        assert np.abs(out - part).max() <= 0.51, path.name


def test_nothing_to_do_is_bit_exact():
    array = np.random.default_rng(1).integers(-32768, 32768, (5, 6, 7)).astype(np.int16)
    for target in [(None, None, None), (2.0, 1.0, 1.0), (2.001, 1.0005, None)]:
        out, spacing = resample(array, (2.0, 1.0, 1.0), target)
        assert out is array
        assert spacing == (2.0, 1.0, 1.0)  # the true one, not the wanted one


def test_antialias_averages_what_a_coarse_voxel_covers():
    rng = np.random.default_rng(2)
    noise = np.rint(rng.normal(0, 100, (400, 4, 4))).astype(np.int16)
    plain, _ = resample(noise, (1, 1, 1), (5, None, None))
    smooth, _ = resample(noise, (1, 1, 1), (5, None, None), antialias=True)
    assert plain.shape == smooth.shape
    np.testing.assert_array_equal(plain[:, 0, 0], noise[::5, 0, 0])
    # A triangle of half width 5 has squared weights that sum to (2*25 + 1) / (3 * 125): noise falls to 0.369.
    assert smooth[2:-2].std() == pytest.approx(100 * np.sqrt(51 / 375), rel=0.1)
    flat = np.full((41, 3, 3), 77, np.int16)
    np.testing.assert_array_equal(resample(flat, (1, 1, 1), (3, None, None), antialias=True)[0], 77)


def test_a_ramp_stays_where_it_is_in_space():
    # HU equals millimetres along each axis: every output voxel must carry its own coordinate.
    spacing, target = (4.0, 2.0, 3.0), (1.5, 2.5, 1.0)
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip((12, 15, 13), spacing)), indexing="ij")
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 3.0], [0, 2.0, 0], [4.0, 0, 0]])
    affine[:3, 3] = (-70, 20, 300)
    for axis in range(3):
        out, true = resample(grid[axis].astype(np.int16), spacing, target)
        new = rescale_affine(affine, (0, 0, 0), [t / s for t, s in zip(true, spacing)])
        index = np.stack(np.meshgrid(*map(np.arange, out.shape), indexing="ij"), -1)
        place = index @ new[:3, :3].T + new[:3, 3]
        millimetres = (place - affine[:3, 3])[..., 2 - axis]
        assert np.abs(out - millimetres).max() <= 0.5


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, (1.5, 1.5, 1.5)),
        ("1.5", (1.5, 1.5, 1.5)),
        (["5", "1.25", "1.25"], (5, 1.25, 1.25)),
        ("5 1.25 1.25", (5, 1.25, 1.25)),
        ("[native, 1, 1]", (None, 1, 1)),
        ("native", (None, None, None)),
        (None, (None, None, None)),
        ((None, 1, 2), (None, 1, 2)),
    ],
)
def test_spacing_settings(value, expected):
    assert parse_spacing(value) == expected


@pytest.mark.parametrize("value", ["", "1 2", "1 2 3 4", "thin", -1, 0, "nan", "inf", 1e9, [1, 2, "x"]])
def test_spacing_that_makes_no_sense(value):
    with pytest.raises(InputError, match="spacing"):
        parse_spacing(value)


def lying_patient(table: bool) -> tuple[np.ndarray, tuple[slice, ...]]:
    """An ellipse of tissue in air with lungs, in (D, H, W) of 5 x 1 x 1 mm, and the box that holds it."""
    scan = np.full((20, 200, 260), -1000, np.int16)
    h, w = np.ogrid[:200, :260]
    body = ((h - 90) / 50) ** 2 + ((w - 130) / 90) ** 2 <= 1
    scan[3:18, body] = 40
    lung = ((h - 90) / 30) ** 2 + ((w - 90) / 25) ** 2 <= 1
    scan[3:18, lung] = -850
    if table:
        scan[:, 150:153, 20:240] = 200
        scan[:, 140:150, 20:24] = 200
        scan[5, 10:14, 10:14] = 300
    return scan, (slice(3, 18), slice(40, 141), slice(40, 221))


@pytest.mark.parametrize("table", [False, True])
def test_body_box_holds_the_body_and_not_the_table(table):
    scan, body = lying_patient(table)
    box = body_box(scan, (5.0, 1.0, 1.0), margin_mm=6.0)
    for found, inside, spacing in zip(box, body, (5.0, 1.0, 1.0)):
        slack = 6.0 / spacing + 5 if spacing == 1 else 2
        assert inside.start - slack <= found.start <= inside.start
        assert inside.stop <= found.stop <= inside.stop + slack


def test_body_box_keeps_two_legs_and_gives_up_on_air():
    scan = np.full((10, 100, 200), -1000, np.int16)
    scan[:, 30:70, 20:60] = 50
    scan[:, 30:70, 120:170] = 50
    box = body_box(scan, (5.0, 1.0, 1.0))
    assert box[2].start <= 20 and box[2].stop >= 170
    air = np.full((6, 30, 40), -1000, np.int16)
    assert body_box(air, (1, 1, 1)) == (slice(0, 6), slice(0, 30), slice(0, 40))


@pytest.mark.real
def test_body_box_on_real_scans_keeps_tissue_and_drops_the_table():
    from voco import read_volume

    if "VOCO_TEST_CT" not in os.environ:
        pytest.skip("set VOCO_TEST_CT to a folder with CT scans")
    smaller = 0
    for path in sorted(Path(os.environ["VOCO_TEST_CT"]).iterdir()):
        volume = read_volume(path)
        box = body_box(volume.array, volume.spacing_mm)
        tissue = (volume.array > -150) & (volume.array < 250)
        assert tissue[box].sum() >= 0.95 * tissue.sum(), path.name
        smaller += np.prod([b.stop - b.start for b in box]) < 0.75 * volume.array.size
    assert smaller >= 3
