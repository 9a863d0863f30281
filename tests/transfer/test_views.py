from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from voco.data.cache import PreparedVolume, entry_path, write_entry
from voco.data.resample import resize
from voco.encoders.spec import InputSpec
from voco.errors import InputError
from voco.transfer.views import View, make_view, measure_exposure

SPEC = InputSpec(windows=((-100.0, 900.0),), size=(16, 32, 32), min_size=(8, 16, 16), spacing_mm=(2.0, 1.0, 1.0))


def covered(view: View, shape) -> np.ndarray:
    """How many windows hold each voxel."""
    count = np.zeros(shape, int)
    for start in view.windows(shape):
        low = np.maximum(start, 0)
        count[tuple(slice(a, max(0, s + n)) for a, s, n in zip(low, start, view.size))] += 1
    return count


@pytest.mark.parametrize("stride", [None, (3, 4, 5), (8, 8, 8)])
@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 17, 30), (3, 8, 11), (24, 5, 2)])
def test_tiles_cover_every_voxel_and_the_last_one_ends_with_the_study(shape, stride):
    view = View("tiles", (8, 8, 8), (1, 1, 1), stride)
    starts = view.windows(shape)
    assert covered(view, shape).min() >= 1
    assert len(np.unique(starts, axis=0)) == len(starts)
    for axis, n in enumerate(shape):
        found = sorted(set(starts[:, axis]))
        if n > 8:
            assert found[0] == 0 and found[-1] == n - 8
            assert all(b - a <= (stride or view.size)[axis] for a, b in pairwise(found))
        else:  # in the middle, to a voxel
            assert len(found) == 1 and abs((-found[0]) - (8 - n + found[0])) <= 1
    assert starts.tolist() == sorted(starts.tolist())


@pytest.mark.parametrize("depth, stride, expected", [
    (16, None, [0]), (17, None, [0, 1]), (40, None, [0, 16, 24]), (40, 8, [0, 8, 16, 24]), (37, 8, [0, 8, 16, 21]),
    (5, None, [0]),
])  # fmt: skip
def test_windows_of_slices_keep_the_last_one_and_start_with_the_first_slice(depth, stride, expected):
    view = View("slice_windows", (16, 6, 6), stride=(stride, 6, 6) if stride else None, stored=(8, 9))
    assert view.windows((depth, 8, 9)).tolist() == [[d, 1, 1] for d in expected]


def test_a_small_volume_is_read_with_air_around_it(tmp_path):
    hu = np.full((3, 5, 5), 40, np.int16)
    path = entry_path(tmp_path, "a" * 32)
    write_entry(path, hu, (1, 1, 1), {})
    volume = PreparedVolume.open(path)
    tile = View("tiles", (4, 8, 8), (1, 1, 1))
    (start,) = tile.windows(volume.shape)
    window = volume.read(start, tile.size)
    assert (window == 40).sum() == hu.size and (window[window != 40] == -1024).all()
    assert (window[:3, 1:6, 1:6] == 40).all()
    slices = View("slice_windows", (4, 5, 5))
    assert (volume.read(slices.windows(volume.shape)[0], slices.size)[:3] == 40).all()


@pytest.mark.parametrize("view, shape", [
    (View("tiles", (8, 8, 8), (1, 1, 1)), (20, 8, 13)),
    (View("slice_windows", (8, 6, 6), stride=(4, 6, 6), stored=(9, 11)), (21, 9, 11)),
    (View("resize", (8, 6, 6), stored=(9, 11)), (8, 9, 11)),
])  # fmt: skip
def test_jitter_stays_inside_and_reaches_what_it_may(view, shape):
    draws = np.linspace(0, np.nextafter(np.float32(1), np.float32(0)), 40, dtype=np.float32)
    for start in view.windows(shape):
        moved = np.array([view.jitter(start, shape, np.full(3, d, np.float32)) for d in draws])
        assert (moved >= 0).all() and (moved + view.size <= shape).all()
        depth = np.abs(moved[:, 0] - start[0])
        assert depth.max() <= {"tiles": 4, "slice_windows": 2, "resize": 0}[view.kind]
        if view.kind != "tiles":  # anywhere in the stored plane
            assert set(moved[:, 1]) == set(range(4)) and set(moved[:, 2]) == set(range(6))
        still = [view.jitter(start, shape, np.full(3, d), axes=(1, 2))[0] for d in (0, 0.99)]
        assert still == [start[0], start[0]]


def test_a_resize_keeps_the_extent_as_simpleitk_and_torch_do():
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 1000, (7, 12, 10)).astype(np.int16)
    size, old = (13, 20, 25), (2.0, 0.8, 0.7)
    found, spacing, start = resize(hu, old, size)
    assert np.allclose(np.array(spacing) * size, np.array(old) * hu.shape), "the extent is that of the voxels"
    image = sitk.GetImageFromArray(hu.astype(np.float32))
    image.SetSpacing(old[::-1])
    grid = sitk.Image(*size[::-1], sitk.sitkFloat32)
    grid.SetSpacing(spacing[::-1])
    grid.SetOrigin([s * mm for s, mm in zip(start[::-1], old[::-1])])
    literal = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, 0.0))
    inside = (slice(1, -1), slice(1, -1), slice(2, -2))  # beyond the first centres SimpleITK knows nothing
    assert np.abs(found[inside] - literal[inside]).max() <= 0.51
    x = torch.from_numpy(hu).float()[None]
    up = torch.nn.functional.interpolate(x[None], size, mode="trilinear", align_corners=False)[0, 0]
    assert np.abs(found - up.numpy()).max() <= 0.51
    down, _, _ = resize(hu, old, (None, 5, 4))
    literal = torch.nn.functional.interpolate(x, (5, 4), mode="bilinear", align_corners=False, antialias=True)[0]
    assert down.shape == (7, 5, 4) and np.abs(down - literal.numpy()).max() <= 0.51
    same, mm, begin = resize(hu, old, hu.shape)
    assert same is hu and mm == old and begin == (0, 0, 0)


def test_exposure_counts_voxels_and_what_the_window_clips(tmp_path):
    hu = np.full((20, 10, 10), -1000, np.int16)
    hu[:, :5] = 0  # body inside the window
    hu[:10, 0] = 1500  # bone above it, in the first half
    hu[:, 4, 0] = -500  # lung below it
    path = entry_path(tmp_path, "b" * 32)
    write_entry(path, hu, (1, 1, 1), {})
    view = View("slice_windows", (10, 10, 10))
    found = measure_exposure(view, SPEC, [PreparedVolume.open(path)] * 2)
    assert (found.windows, found.voxels, found.studies) == (2, 2000, 2)
    assert found.clipped == pytest.approx((10 * 10 + 20) / (20 * 5 * 10))
    assert found.outside == 0 and "outside" not in found.text
    large = measure_exposure(View("tiles", (40, 20, 10)), SPEC, [PreparedVolume.open(path)])
    assert large.outside == pytest.approx(1 - 2000 / 8000) and "75% of the voxels in windows lie outside" in large.text
    two = InputSpec(windows=((-100.0, 900.0), (800.0, 2000.0)), mean=(0, 0), std=(1, 1))
    assert measure_exposure(view, two, [PreparedVolume.open(path)]).clipped == pytest.approx(20 / 1000)


def test_what_is_left_empty_is_the_encoders_own():
    view = make_view("tiles", SPEC)
    assert (view.size, view.spacing_mm, view.stride) == ((16, 32, 32), (2.0, 1.0, 1.0), None)
    assert view.prepare_settings().spacing_mm == (2.0, 1.0, 1.0)
    assert view.prepare_settings().size == (None, None, None)
    view = make_view("slice_windows", SPEC, size=[32], stride=[8], stored=[40, 48], mask="crop", crop_body=False)
    assert (view.size, view.stride) == ((32, 32, 32), (8, 32, 32))
    settings = view.prepare_settings()
    assert settings.size == (None, 40, 48) and settings.spacing_mm == (None,) * 3
    assert settings.mask == "crop" and not settings.crop_body
    assert make_view("resize", SPEC).prepare_settings().size == (16, 32, 32)
    assert make_view("tiles", SPEC, spacing=[3]).spacing_mm == (3, 3, 3)


@pytest.mark.parametrize("kind, settings, word", [
    ("tiles", {"size": [4, 32, 32]}, "smaller than this encoder takes"),
    ("tiles", {"size": [32, 32]}, "one number or D H W"),
    ("tiles", {"stride": [0]}, "positive"),
    ("tiles", {"stored": [40, 40]}, "tiles have none"),
    ("resize", {"stored": [30, 40]}, "at least the window"),
    ("resize", {"stride": [4]}, "stride"),
    ("resize", {"spacing": [1.5]}, "spacing"),
    ("slice_windows", {"spacing": [1.5]}, "spacing"),
])  # fmt: skip
def test_settings_that_cannot_be_or_would_do_nothing_are_refused(kind, settings, word):
    with pytest.raises(InputError, match=word):
        make_view(kind, SPEC, **settings)
