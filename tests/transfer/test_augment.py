from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from voco.encoders import create_encoder
from voco.errors import InputError
from voco.rng import generator
from voco.transfer.augment import AIR_HU, StudyAugmentation, augment_windows

STILL = StudyAugmentation(flip_prob=0, rotate=0, zoom=0, translate=0, shift_hu=0, contrast=0)


def scan(height=12, width=12, windows=1, seed=0, low=-1000.0) -> torch.Tensor:
    return torch.rand(windows, 1, 5, height, width, generator=generator(seed)) * 1200 + low


def draws(windows=1, **changed) -> dict[str, torch.Tensor]:
    """Of doing nothing, but for what is named."""
    found = {
        "flips": torch.zeros(3, dtype=torch.bool), "turns": torch.tensor(0), "plane": torch.tensor([0, 1.0, 0, 0]),
        "values": torch.tensor([0, 1.0, 0]),
    }  # fmt: skip
    found |= {name: torch.as_tensor(value) for name, value in changed.items()}
    return {name: value.expand(windows, *value.shape) for name, value in found.items()}


def test_nothing_drawn_is_nothing_done():
    hu = scan(height=11, width=14)
    assert (augment_windows(hu, **draws()) - hu).abs().max() < 0.02


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_flips_are_those_of_torch(axes):
    hu = scan(height=11, width=14)
    flips = torch.tensor([axis in axes for axis in range(3)])
    assert (augment_windows(hu, **draws(flips=flips)) - hu.flip([2 + a for a in axes])).abs().max() < 0.05


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_those_of_torch(turns):
    hu = scan()
    assert (augment_windows(hu, **draws(turns=turns)) - torch.rot90(hu, turns, (3, 4))).abs().max() < 0.05


def test_a_quarter_turn_needs_a_square():
    hu = scan(height=11, width=14)
    assert (augment_windows(hu, **draws(turns=2)) - torch.rot90(hu, 2, (3, 4))).abs().max() < 0.05
    with pytest.raises(InputError, match="as high as wide"):
        augment_windows(hu, **draws(turns=1))


@pytest.mark.parametrize("degrees", [-20.0, 7.0, 45.0])
@pytest.mark.parametrize("height, width", [(24, 24), (20, 30)])
def test_a_rotation_is_that_of_scipy_with_air_around(degrees, height, width):
    hu = scan(height, width)
    hu = torch.from_numpy(ndimage.gaussian_filter(hu.numpy(), (0, 0, 0, 2, 2)))
    found = augment_windows(hu, **draws(plane=torch.tensor([math.radians(degrees), 1.0, 0, 0])))
    # grid-constant: the border blends into air, as with zero padding in torch
    literal = ndimage.rotate(
        hu.numpy(), degrees, axes=(3, 4), reshape=False, order=1, mode="grid-constant", cval=AIR_HU
    )
    assert np.abs(found.numpy() - literal).max() < 0.5
    assert (found[..., 0, 0] == AIR_HU).all() == (literal[..., 0, 0] == AIR_HU).all()


def test_zoom_and_shift_move_a_point_where_they_should():
    hu = torch.full((1, 1, 1, 21, 21), AIR_HU)
    hu[..., 14, 10] = 1000.0  # 4 voxels behind the middle
    enlarged = augment_windows(hu, **draws(plane=torch.tensor([0, 1.5, 0, 0])))[0, 0, 0]
    row, column = divmod(int(enlarged.argmax()), 21)
    assert (row, column) == (16, 10)
    moved = augment_windows(hu, **draws(plane=torch.tensor([0, 1.0, 4 / 10.5, -2 / 10.5])))[0, 0, 0]
    row, column = divmod(int(moved.argmax()), 21)
    assert (row, column) == (10, 12)  # what is shown lies 4 voxels further back, 2 to the other side


def test_air_is_air_in_every_channel_of_the_encoder():
    torch.manual_seed(0)
    encoder = create_encoder("cnn3d_s", window=[(-1000, 400), (-100, 900)])
    hu = scan(24, 24, low=0.0)  # tissue up to the border
    turned = augment_windows(hu, **draws(plane=torch.tensor([math.radians(45), 1.0, 0, 0]), values=[300.0, 1.2, 0]))
    assert (turned[..., 0, 0] == AIR_HU).all(), "a brighter scan does not fill its surroundings"
    deep = turned[:, 0].repeat_interleave(8, 1)[:, None]  # as deep as the encoder wants it
    outside = encoder.prepare(deep)[0, :, :, 0, 0]
    assert len(outside) == 2 and (outside == 0).all(), "below both Hounsfield windows"


def test_values_change_by_what_was_drawn_and_never_below_air():
    hu = torch.tensor([-1024.0, -1000.0, 0.0, 50.0]).view(1, 1, 1, 2, 2)
    found = augment_windows(hu, **draws(values=torch.tensor([-20.0, 1.1, 0]))).flatten().tolist()
    assert found == pytest.approx([-1024, -1024, -20, 35], abs=0.01)


def test_all_windows_and_both_versions_of_a_study_are_changed_alike():
    augmentation = StudyAugmentation(noise_hu=30.0, translate=0.1)
    drawn = augmentation.draw(generator(3), (0, 1, 2))
    hu = scan().repeat(3, 2, 1, 1, 1)  # one window three times, its masked version the same
    found = augment_windows(hu, **{name: value.expand(3, *value.shape) for name, value in drawn.items()})
    assert torch.equal(found[0], found[1]) and torch.equal(found[0, 0], found[2, 1])
    again = augment_windows(hu[:1], **{name: value[None] for name, value in drawn.items()})
    assert torch.equal(again[0], found[0]), "noise comes from its seed"
    other = {**drawn, "noise_seed": drawn["noise_seed"] + 1}
    assert not torch.equal(augment_windows(hu[:1], **{n: v[None] for n, v in other.items()}), again)


def test_noise_has_the_standard_deviation_that_was_drawn():
    hu = torch.zeros(1, 1, 8, 64, 64)
    found = augment_windows(hu, **draws(values=torch.tensor([0, 1.0, 25.0]), noise_seed=5))
    assert found.std().item() == pytest.approx(25, rel=0.03) and abs(found.mean().item()) < 0.5


@pytest.mark.parametrize("changed", [
    {"flip_prob": 1.0}, {"turn_prob": 1.0}, {"rotate": 90.0}, {"zoom": 0.5}, {"translate": 0.3}, {"shift_hu": 200.0},
    {"contrast": 0.5}, {"noise_hu": 50.0},
])  # fmt: skip
def test_the_number_of_draws_is_fixed_and_a_setting_changes_only_its_own(changed):
    setting = next(iter(changed))
    base = replace(StudyAugmentation(), turn_prob=0.5, noise_hu=5.0)
    first, second = generator(7), generator(7)
    one, two = base.draw(first, (2,)), replace(base, **changed).draw(second, (0, 1, 2))
    assert torch.equal(first.get_state(), second.get_state())
    own = {"flip_prob": ("flips", 0), "turn_prob": ("turns", 0), "rotate": ("plane", 0), "zoom": ("plane", 1),
           "translate": ("plane", 2), "shift_hu": ("values", 0), "contrast": ("values", 1),
           "noise_hu": ("values", 2)}[setting]  # fmt: skip
    for name in ("plane", "values", "noise_seed"):
        same = torch.eq(one[name], two[name]).flatten().tolist()
        expected = [
            name != own[0] or not (i == own[1] or (setting == "translate" and i == 3)) for i in range(len(same))
        ]
        assert same == expected, name


def test_draws_stay_in_their_ranges_and_flip_only_what_is_allowed():
    augmentation = StudyAugmentation(flip_prob=0.5, turn_prob=0.5, rotate=15, zoom=0.1, translate=0.05, noise_hu=9)
    found = [augmentation.draw(generator(1, i), (2,)) for i in range(400)]
    plane, values = (torch.stack([row[name] for row in found]) for name in ("plane", "values"))
    limits = torch.tensor([math.radians(15), 0.1, 0.1, 0.1])  # shifts are in units of half the width
    assert ((plane - torch.tensor([0, 1.0, 0, 0])).abs() <= limits + 1e-6).all()
    assert ((plane - torch.tensor([0, 1.0, 0, 0])).abs().amax(0) > 0.95 * limits).all()
    assert (values[:, 2] >= 0).all() and values[:, 2].max() <= 9 and values[:, 0].abs().max() <= 20
    flips = torch.stack([row["flips"] for row in found]).float().mean(0)
    assert flips[:2].tolist() == [0, 0] and 0.42 < flips[2] < 0.58
    turns = np.bincount([int(row["turns"]) for row in found], minlength=4) / 400
    assert 0.42 < turns[0] < 0.58 and turns[1:].min() > 0.1
    quiet = STILL.draw(generator(1), (0, 1, 2))
    assert (
        not quiet["flips"].any() and quiet["plane"].tolist() == [0, 1, 0, 0] and quiet["values"].tolist() == [0, 1, 0]
    )


@pytest.mark.parametrize("wrong", [{"flip_prob": 1.5}, {"rotate": -1.0}, {"zoom": 1.0}, {"noise_hu": -2.0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        StudyAugmentation(**wrong)
