"""Video Swin against torchvision's networks, and against the definition of relative bias where those are wrong."""

from __future__ import annotations

import itertools

import pytest
import torch

from voco.encoders import create_encoder, swin3d, with_windows
from voco.encoders.layers import drop_path
from voco.errors import InputError

WINDOWS = [(-1000, 500), (-100, 900), (-175, 250)]
WINDOW = (8, 7, 7)
BLOCKS, HEADS = (2, 2, 2, 2), (1, 2, 4, 8)


@pytest.fixture(scope="module")
def video():
    return pytest.importorskip("torchvision.models.video")


@pytest.fixture(scope="module")
def torchvision_net(video):
    """swin3d_t at a quarter of its width, with two blocks in each stage."""
    torch.manual_seed(5)
    net = video.SwinTransformer3d([2, 4, 4], 24, list(BLOCKS), list(HEADS), list(WINDOW)).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias_table"):
                parameter.normal_()  # as initialised they are too small to be seen in the output
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


def build(net, channels=3, **arguments):
    spec = with_windows(swin3d.SPEC, WINDOWS[:channels]) if channels > 1 else swin3d.SPEC
    encoder = swin3d.Swin3DEncoder(spec, 24, BLOCKS, HEADS, **arguments).eval()
    state = net.state_dict()
    if channels == 1:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(1, keepdim=True)
    assert not encoder.load_state_dict(state, strict=False).missing_keys
    return encoder


@pytest.fixture(scope="module")
def encoder(torchvision_net):
    return build(torchvision_net)


@pytest.fixture
def attentions(video):
    """torchvision's attention and ours with the same weights."""
    from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

    torch.manual_seed(0)

    def build(shifted):
        theirs = ShiftedWindowAttention3d(12, list(WINDOW), [w // 2 * shifted for w in WINDOW], 3).double().eval()
        torch.nn.init.normal_(theirs.relative_position_bias_table)
        ours = swin3d.WindowAttention(12, 3, WINDOW, shifted).double().eval()
        ours.load_state_dict(theirs.state_dict(), strict=False)
        return theirs, ours

    return build


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def literal_bias(attention, window):
    """Bias between two tokens of a window: the row of the table that stands for the difference of their places."""
    d, h, w = WINDOW
    places = list(itertools.product(*(range(n) for n in window)))
    rows = [
        [
            ((a[0] - b[0] + d - 1) * (2 * h - 1) + a[1] - b[1] + h - 1) * (2 * w - 1) + a[2] - b[2] + w - 1
            for b in places
        ]
        for a in places
    ]
    return attention.relative_position_bias_table[torch.tensor(rows)].permute(2, 0, 1)


def torchvision_maps(net, x):
    with torch.inference_mode():
        x, maps = net.patch_embed(x), []
        for i, stage in enumerate(net.features):
            x = stage(x)
            if i % 2 == 0:
                maps.append(x)
        maps[-1] = net.norm(x)
    return [m.permute(0, 4, 1, 2, 3) for m in maps]


@pytest.mark.parametrize("size", [(4, 224, 224), (5, 195, 200)])
def test_maps_equal_torchvision(size, encoder, torchvision_net):
    x = random(1, 3, *size)
    expected = torchvision_maps(torchvision_net, x)
    with torch.inference_mode():
        maps = encoder.pyramid(x)
        torch.testing.assert_close(encoder.pool(x), expected[-1].mean((2, 3, 4)), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(8, 7, 7), (10, 9, 14), (3, 8, 15), (17, 7, 8)])
def test_attention_equals_torchvision_where_its_index_is_right(size, shifted, attentions):
    theirs, ours = attentions(shifted)
    x = random(2, *size, 12, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("window", "published_is_right"),
    [
        ((8, 7, 7), True),
        ((3, 7, 7), True),
        ((1, 7, 7), True),
        ((8, 4, 7), False),
        ((2, 7, 5), False),
        ((2, 4, 4), False),
    ],
)
def test_relative_bias_follows_the_coordinates(window, published_is_right, attentions):
    """Video Swin and torchvision cut the index of the full window, which is wrong once height or width is cut."""
    theirs, ours = attentions(False)
    with torch.inference_mode():
        expected = literal_bias(ours, window)
        assert torch.equal(ours.relative_bias(window), expected)
        assert torch.equal(theirs.get_relative_position_bias(list(window))[0], expected) == published_is_right


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(2, 4, 4), (9, 3, 8), (8, 14, 2)])
def test_attention_on_small_maps_is_torchvision_with_the_right_bias(size, shifted, attentions, monkeypatch):
    theirs, ours = attentions(shifted)
    bias = literal_bias(ours, [min(n, w) for n, w in zip(size, WINDOW)])
    x = random(2, *size, 12, dtype=torch.float64)
    with torch.inference_mode():
        published = theirs(x)
        monkeypatch.setattr(theirs, "get_relative_position_bias", lambda window: bias[None])
        torch.testing.assert_close(ours(x), theirs(x))
        assert (published - theirs(x)).abs().max() > 0.01


def test_gray_input_equals_the_repeated_slice(torchvision_net):
    encoder = build(torchvision_net, channels=1)
    hu = torch.randint(-500, 1400, (1, 1, 4, 224, 224), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    gray = (hu.float().clamp(-100, 900) + 100) / 1000
    rgb = ((gray - (0.485 + 0.456 + 0.406) / 3) / ((0.229 + 0.224 + 0.225) / 3)).repeat(1, 3, 1, 1, 1)
    expected = torchvision_maps(torchvision_net, rgb)[-1].mean((2, 3, 4))
    with torch.inference_mode():
        torch.testing.assert_close(encoder(hu), expected, rtol=1e-4, atol=1e-5)


def test_three_windows_bring_the_statistics_of_the_colours():
    with torch.device("meta"):
        spec = create_encoder("swin3d_t", window=WINDOWS).input_spec
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", ["swin3d_t", "swin3d_s", "swin3d_b"])
def test_names_and_shapes_are_torchvisions(name, video):
    with torch.device("meta"):
        ours, theirs = create_encoder(name, window=WINDOWS), getattr(video, name)(weights=None)
    expected = {k: v.shape for k, v in theirs.state_dict().items() if not k.endswith("position_index")}
    del expected["head.weight"], expected["head.bias"]
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected


def test_depth_stride_moves_the_patches_slice_by_slice(torchvision_net, encoder):
    fine = build(torchvision_net, depth_stride=1)
    assert [info["reduction"] for info in fine.feature_info] == [(1, 4, 4), (1, 8, 8), (1, 16, 16), (1, 32, 32)]
    for depth in (6, 7):
        x = random(1, 3, depth, 32, 40)
        with torch.inference_mode():
            torch.testing.assert_close(fine.patch_embed(x)[:, ::2], encoder.patch_embed(x))
            assert fine.forward_features(x).shape == (1, 192, depth, 1, 2)
    with pytest.raises(InputError, match="1, 2"):
        create_encoder("swin3d_t", depth_stride=4)


def test_other_attention_windows():
    with torch.device("meta"):
        encoder = create_encoder("swin3d_t", attention_window=[16, 7, 7])
    key = "features.0.0.attn.relative_position_bias_table"
    assert encoder.state_dict()[key].shape == (31 * 13 * 13, 3)


def test_residual_branches_are_left_out_per_volume(torchvision_net):
    torch.manual_seed(0)
    branch = torch.ones(4000, 2, 3)
    dropped = drop_path(branch, 0.25)
    per_volume = dropped[:, 0, 0]
    assert torch.equal(dropped, per_volume[:, None, None].expand_as(dropped))
    assert sorted(per_volume.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert float(per_volume.mean()) == pytest.approx(1.0, abs=0.04)
    assert drop_path(branch, 0.0) is branch
    encoder = build(torchvision_net, drop_path_rate=0.1).train()
    rates = [block.drop_rate for stage in encoder.features[::2] for block in stage]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])
    x = random(8, 3, 4, 32, 32)
    with torch.inference_mode():
        assert not torch.equal(encoder.pool(x), encoder.pool(x))
        encoder.eval()
        assert torch.equal(encoder.pool(x), encoder.pool(x))
