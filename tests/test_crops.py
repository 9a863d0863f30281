"""Crops against literal numpy slicing, torch.rot90 and torch.flip, and counting voxels."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch

from voco.crops import augment, cut, overlap_labels, shift_intensity
from voco.encoders.spec import InputSpec
from voco.errors import InputError
from voco.geometry import Augmentation, Geometry
from voco.rng import generator

GEOMETRIES = [
    Geometry(crop=8),
    Geometry(grid=(4, 4), crop=6, random_crops=4),
    Geometry(grid=(2, 5), crop=7, crop_depth=4, random_crops=3),
    Geometry(crop=6, window_depth=11, random_axes="all", random_crops=5),
    Geometry(grid=(1, 3), crop=5, window_depth=8),
]


def count_overlap(start, base, size):
    """Overlap by marking voxels, not by a formula."""
    marked = np.zeros((64, 64, 64), bool)
    marked[tuple(slice(s, s + n) for s, n in zip(start, size))] = True
    return marked[tuple(slice(s, s + n) for s, n in zip(base, size))].mean()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_labels_count_shared_voxels(geometry):
    starts = torch.stack([geometry.draw_starts(generator(3, i)) for i in range(3)])
    labels = overlap_labels(starts, geometry)
    assert labels.shape == (3, geometry.random_crops, geometry.bases) and labels.dtype == torch.float32
    bases = geometry.base_starts().tolist()
    for b, k in itertools.product(range(3), range(geometry.random_crops)):
        expected = [count_overlap(starts[b, k].tolist(), base, geometry.size) for base in bases]
        np.testing.assert_allclose(labels[b, k], expected, atol=1e-6)
    if geometry.random_axes == "inplane":
        torch.testing.assert_close(labels.sum(-1), torch.ones(3, geometry.random_crops))


def test_bases_tile_the_window_row_by_row():
    geometry = Geometry(grid=(2, 3), crop=4, window_depth=6)
    assert geometry.window == (6, 8, 12) and geometry.bases == 6
    assert geometry.base_starts().tolist() == [[1, 0, 0], [1, 0, 4], [1, 0, 8], [1, 4, 0], [1, 4, 4], [1, 4, 8]]
    v1 = Geometry(grid=(4, 4), crop=96, network_size=64)
    assert v1.window == (96, 384, 384) and v1.network_shape == (64, 64, 64)


def test_published_bounds_of_random_places():
    """Centres are randint(32, 160), upper bound exclusive: starts 0 to 127, evenly."""
    starts = torch.cat([Geometry(random_crops=4096).draw_starts(generator(0, i)) for i in range(4)])
    assert starts[:, 0].unique().tolist() == [0]
    for axis in (1, 2):
        counts = starts[:, axis].bincount(minlength=128)
        assert len(counts) == 128 and counts.min() > 60 and counts.max() < 200
    inclusive = Geometry(crop=4, window_depth=6, random_axes="all", random_crops=4096).draw_starts(generator(1))
    assert inclusive.amin(0).tolist() == [0, 0, 0] and inclusive.amax(0).tolist() == [2, 8, 8]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_cut_equals_slicing(geometry):
    windows = torch.randint(-1024, 3000, (3, *geometry.window), dtype=torch.int16, generator=generator(1))
    random = torch.stack([geometry.draw_starts(generator(2, i)) for i in range(3)])
    starts = torch.cat([geometry.base_starts().expand(3, -1, -1), random], 1)
    crops = cut(windows, starts, geometry.size)
    assert crops.dtype == torch.int16 and crops.is_contiguous()
    for b, k in itertools.product(range(3), range(starts.shape[1])):
        z, y, x = starts[b, k].tolist()
        d, h, w = geometry.size
        np.testing.assert_array_equal(crops[b, k], windows.numpy()[b, z : z + d, y : y + h, x : x + w])


def test_cut_refuses_what_is_outside():
    with pytest.raises(InputError, match="does not fit"):
        cut(torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 3, dtype=torch.int64), (5, 4, 4))
    with pytest.raises(IndexError):
        cut(torch.zeros(1, 4, 8, 8), torch.tensor([[[0, 5, 0]]]), (4, 4, 4))


@pytest.mark.parametrize("axes", ["SPL", "RAS", "LPS", "IAR", "PSR"])
def test_augment_equals_flip_and_rot90_in_the_canonical_frame(axes):
    spec = InputSpec(axes=axes, windows=((0.0, 1.0),) * 2, mean=(0.5, 0.1), std=(0.25, 2.0))
    order, flipped = spec.axis_order
    cases = list(itertools.product(itertools.product([False, True], repeat=3), range(4)))
    canonical = torch.randn(len(cases), 2, 3, 5, 5, generator=generator(axes))
    flips, turns = torch.tensor([c[0] for c in cases]), torch.tensor([c[1] for c in cases])
    shift = torch.randn(len(cases), generator=generator(axes, 1)) * 0.1

    def network(x):
        return x.permute(0, 1, *(2 + a for a in order)).flip([2 + a for a in flipped]).contiguous()

    got = augment(network(canonical), flips, turns, shift, axis_order=order, flipped=flipped, std=spec.std)
    expected = torch.empty_like(canonical)
    for m, (flip, turn) in enumerate(cases):
        one = torch.flip(canonical[m], [1 + a for a in range(3) if flip[a]])
        expected[m] = torch.rot90(one, turn, dims=(2, 3))
        expected[m, 0] += shift[m] / 0.25
        expected[m, 1] += shift[m] / 2.0
    assert got.is_contiguous()
    torch.testing.assert_close(got, network(expected))


def test_shift_is_in_units_of_the_window():
    """Shifting the window before mean and std, and after them, is the same."""
    spec = InputSpec(windows=((-175.0, 250.0),), mean=(0.4,), std=(0.3,))
    scaled = torch.rand(4, 1, 2, 3, 3, generator=generator(0))
    shift = torch.tensor([0.1, -0.05, 0.0, 0.02])
    before = (scaled + shift.view(-1, 1, 1, 1, 1) - 0.4) / 0.3
    torch.testing.assert_close(shift_intensity((scaled - 0.4) / 0.3, shift, spec.std), before)


def test_augment_needs_square_crops():
    zero = torch.zeros(1)
    with pytest.raises(InputError, match="as high as wide"):
        augment(torch.zeros(1, 1, 4, 4, 6), torch.zeros(1, 3, dtype=torch.bool), zero.long(), zero)


def test_draws_follow_their_probabilities():
    draws = Augmentation(0.2, 0.2, 0.5, 0.1).draw(20000, generator(5))
    np.testing.assert_allclose(draws["flips"].float().mean(0), [0.2] * 3, atol=0.01)
    shares = draws["turns"].bincount(minlength=4) / 20000
    np.testing.assert_allclose(shares, [0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3], atol=0.01)
    moved = draws["shift"] != 0
    assert abs(moved.float().mean() - 0.5) < 0.01 and draws["shift"].abs().max() <= 0.1
    assert abs(draws["shift"][moved].std() - 0.2 / 12**0.5) < 0.002
    still = Augmentation(0, 0, 0, 0).draw(100, generator(5))
    assert not still["flips"].any() and not still["turns"].any() and not still["shift"].any()


def test_one_probability_leaves_the_other_draws_alone():
    first, second = (Augmentation(flip_prob=p, turn_prob=0.2).draw(50, generator(1)) for p in (0.2, 0.9))
    assert torch.equal(first["turns"], second["turns"]) and torch.equal(first["shift"], second["shift"])


@pytest.mark.parametrize(
    "settings",
    [{"grid": (1, 1)}, {"crop": 0}, {"window_depth": 4, "crop": 8}, {"random_axes": "z"}, {"random_crops": 0}],
)
def test_impossible_geometry_is_refused(settings):
    with pytest.raises(InputError):
        Geometry(**settings)


def test_settings_pickle():
    assert pickle.loads(pickle.dumps((Geometry(), Augmentation()))) == (Geometry(), Augmentation())
