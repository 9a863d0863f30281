"""voco.embed: one vector of a scan, written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import voco
from voco.data.cache import PreparedVolume, entry_path, write_entry
from voco.data.prepare import prepare_volume
from voco.data.volume import Source, Volume
from voco.encoders import InputSpec, create_encoder
from voco.errors import InputError
from voco.transfer.features import default_view, spread
from voco.transfer.views import View, make_view

SPEC = create_encoder("cnn3d_s").input_spec


def encoder(size=(16, 16, 16), spacing=(4.0, 4.0, 4.0)):
    torch.manual_seed(0)
    return create_encoder("cnn3d_s", input_spec=replace(SPEC, size=size, spacing_mm=spacing))


@pytest.fixture(scope="module")
def volume():
    """A block of tissue in air, with a table below; 3 x 2 x 2 mm."""
    rng = np.random.default_rng(0)
    array = rng.normal(-1000, 10, (30, 60, 60)).astype(np.int16)
    array[:, 10:42, 8:50] = rng.normal(40, 150, (30, 32, 42)).astype(np.int16)
    array[:, 54:55, :] = 300
    affine = np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    return Volume(array.clip(-1024), (3.0, 2.0, 2.0), affine, Source("block.nii.gz"))


def test_it_is_the_mean_over_the_tiles_of_the_prepared_body(volume):
    net = encoder()
    array, spacing, _ = prepare_volume(volume, default_view(net).prepare_settings())
    assert spacing == (4.0, 4.0, 4.0) and array.shape < (23, 30, 30), "air and table are cut away"
    places = [sorted({*range(0, n - 15, 16), n - 16}) for n in array.shape]
    assert [len(p) for p in places] == [2, 2, 2]
    tiles = np.stack([array[d:, h:, w:][:16, :16, :16] for d in places[0] for h in places[1] for w in places[2]])
    with torch.no_grad():
        wanted = net(torch.from_numpy(tiles)[:, None]).double().mean(0).numpy()
    found = voco.embed(net, volume)
    assert found.shape == (net.num_features,) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_chunks_change_nothing_and_windows_are_spread_evenly(volume):
    net = encoder()
    one, two, all_at_once = (voco.embed(net, volume, chunk=n) for n in (1, 3, 100))
    np.testing.assert_allclose(one, all_at_once, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(two, all_at_once, rtol=1e-5, atol=1e-6)
    places = np.arange(8)[:, None].repeat(3, 1)
    assert spread(places, 3)[:, 0].tolist() == [1, 4, 6] and len(spread(places, 0)) == len(spread(places, 9)) == 8
    assert not np.allclose(voco.embed(net, volume, windows=3), one, rtol=1e-3)


def test_no_gradients_no_traces_and_every_mode_as_before(volume):
    net = encoder().train()
    norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    norms[0].eval()
    modes, seen = [m.training for m in net.modules()], []
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    hook = norms[-1].register_forward_hook(lambda m, x, y: seen.append((m.training, y.requires_grad)))
    voco.embed(net, volume)
    assert seen and set(seen) == {(False, False)}
    hook.remove()
    broken = norms[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        voco.embed(net, volume)
    broken.remove()
    assert [m.training for m in net.modules()] == modes and torch.is_grad_enabled()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_scan_may_be_a_volume_a_path_or_prepared(volume, tmp_path):
    import SimpleITK as sitk

    net = encoder()
    sitk.WriteImage(volume.to_sitk(), str(tmp_path / "a.nii.gz"))
    wanted = voco.embed(net, voco.read_volume(tmp_path / "a.nii.gz"))
    array, spacing, meta = prepare_volume(volume, default_view(net).prepare_settings())
    path = entry_path(tmp_path, "c" * 32)
    write_entry(path, array, spacing, meta)
    for given in (volume, tmp_path / "a.nii.gz", str(tmp_path / "a.nii.gz"), path, PreparedVolume.open(path)):
        np.testing.assert_array_equal(voco.embed(net, given), wanted)
    with pytest.raises(InputError, match=r"voxels of 4 x 4 x 4 mm.* was prepared with .*, and this view needs"):
        voco.embed(net, path, view="resize")
    with pytest.raises(InputError, match="a path, or a prepared scan; found ndarray"):
        voco.embed(net, volume.array)


def test_views_and_readings_are_arguments(volume):
    net = encoder()
    view = make_view("resize", net.input_spec, size=(24, 32, 32), crop_body=False)
    array, *_ = prepare_volume(volume, view.prepare_settings())
    x = net.prepare(torch.from_numpy(array)[None, None])
    with torch.no_grad():
        wanted = torch.cat([m.amax((2, 3, 4)) for m in net.pyramid(x)], 1)[0].numpy()
    found = voco.embed(net, volume, view=view, features="pyramid", spatial="max")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    tiles = make_view("tiles", net.input_spec, stride=(8,))
    one = [voco.embed(net, volume, view=tiles, pooling=how) for how in ("mean", "max")]
    assert (one[1] >= one[0]).all() and (one[1] > one[0]).mean() > 0.5
    by_name = voco.embed(net, volume, view="resize")
    np.testing.assert_array_equal(by_name, voco.embed(net, volume, view=make_view("resize", net.input_spec)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"view": "whole"}, "view is one of resize, tiles, slice_windows"),
        ({"view": View("tiles", (16, 16, 16), mask="crop")}, "takes prepared scans"),
        ({"features": "sequence"}, "where nothing is learned, found 'sequence'"),
        ({"features": "decoder"}, "built without one"),
        ({"spatial": "max"}, "for features deepest and pyramid"),
        ({"pooling": "attention"}, "pooling is one of mean, max"),
        ({"chunk": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_is_one_sentence(volume, options, words):
    with pytest.raises(InputError, match=words):
        voco.embed(encoder(), volume, **options)


@pytest.mark.parametrize(
    ("name", "spec", "kind"),
    [
        ("slices/resnet10t", InputSpec(size=(4, 32, 32), spacing_mm=(5.0, 4.0, 4.0), windows=((-175, 250),)), "tiles"),
        ("r3d_18", None, "resize"),
        ("x3d_xs", None, "resize"),
        ("voco2d_lstm", InputSpec(size=(6, 64, 64), windows=((-175, 250),)), "resize"),
    ],
)
def test_slices_videos_and_sequences_are_shown_as_they_want(volume, name, spec, kind):
    torch.manual_seed(0)
    arguments = {"backbone": "resnet18"} if name == "voco2d_lstm" else {}
    net = create_encoder(name, input_spec=spec, **arguments)
    view = default_view(net)
    assert view.kind == kind and view.size == net.input_spec.size
    array, *_ = prepare_volume(volume, view.prepare_settings())
    starts = view.windows(array.shape)
    assert (len(starts) > 1) == (kind == "tiles")
    padded = np.pad(array, [(20, 20)] * 3, constant_values=-1024)
    boxes = [padded[d + 20 :, h + 20 :, w + 20 :][tuple(map(slice, view.size))] for d, h, w in starts]
    with torch.no_grad():
        wanted = net(torch.from_numpy(np.stack(boxes))[:, None]).mean(0).numpy()
    np.testing.assert_allclose(voco.embed(net, volume, chunk=2), wanted, rtol=1e-4, atol=1e-5)
