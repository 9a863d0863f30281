"""MViT against torchvision's networks, which are built for one size each."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from voco.encoders import ENCODERS, create_encoder, with_windows
from voco.encoders.mvit import SPEC, MViTEncoder, PositionalEncoding
from voco.errors import InputError

WINDOWS = [(-1000, 500), (-100, 900), (-175, 250)]
LAST_BLOCKS = (0, 2, 13, 15)


@pytest.fixture(scope="module")
def video():
    return pytest.importorskip("torchvision.models.video")


def build(name, channels=3, **arguments):
    """A quarter of the published width, with tables that are large enough to be seen in the output."""
    spec = with_windows(SPEC, WINDOWS[:channels]) if channels > 1 else SPEC
    torch.manual_seed(0)
    encoder = MViTEncoder(spec, 1 if name == "mvit_v1_b" else 2, 16, width=24, **arguments).eval()
    with torch.no_grad():
        for key, parameter in encoder.named_parameters():
            if "pos" in key:
                parameter.normal_(std=0.3)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


@pytest.fixture(scope="module")
def encoders():
    return {name: build(name) for name in ("mvit_v1_b", "mvit_v2_s")}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def torchvision_twin(video, name, encoder, size, monkeypatch):
    """torchvision's network for one input size, filled from the encoder, v1's tables resized by the published rules."""
    settings = {"rel_pos_embed": False, "proj_after_attn": False}  # what mvit_v1_b leaves to the defaults
    monkeypatch.setattr(video.mvit, "_mvit", lambda **keywords: settings.update(keywords))
    getattr(video, name)(weights=None)
    monkeypatch.undo()
    for key in ("weights", "progress"):
        settings.pop(key)
    depth, height, width = (-(-n // stride) for n, stride in zip(size, (2, 4, 4)))
    settings |= {"spatial_size": (height * 4, width * 4), "temporal_size": depth * 2}
    state = encoder.state_dict()
    if name == "mvit_v1_b":
        plane = state["pos_encoding.spatial_pos"].t().reshape(1, 24, 56, 56)
        plane = F.interpolate(plane, size=(height, width), mode="bicubic", align_corners=False)
        state["pos_encoding.spatial_pos"] = plane.reshape(24, -1).t()
        line = state["pos_encoding.temporal_pos"].t()[None]
        state["pos_encoding.temporal_pos"] = F.interpolate(line, size=depth, mode="linear")[0].t()
    else:
        # Its own builder's tables are the published ones; the grid alone is what the forward pass reads.
        settings |= {"spatial_size": (224, 224), "temporal_size": 16}
    for block in settings["block_setting"]:
        block.input_channels, block.output_channels = block.input_channels // 4, block.output_channels // 4
    net = video.mvit.MViT(**settings).eval()
    net.head = torch.nn.Identity()
    assert not net.load_state_dict(state, strict=False).missing_keys
    net.pos_encoding.temporal_size, net.pos_encoding.spatial_size = depth, (height, width)
    return net


def torchvision_maps(net, x):
    """The pooled class token, and the patches at the end of each stage."""
    outputs = []
    hooks = [net.blocks[i].register_forward_hook(lambda _, __, out: outputs.append(out)) for i in LAST_BLOCKS]
    with torch.inference_mode():
        pooled = net(x)
        outputs[-1] = (net.norm(outputs[-1][0]), outputs[-1][1])
    for hook in hooks:
        hook.remove()
    return pooled, [tokens[:, 1:].transpose(1, 2).unflatten(2, grid) for tokens, grid in outputs]


@pytest.mark.parametrize("size", [(6, 64, 96), (5, 35, 66)])
@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_features_equal_torchvision(name, size, encoders, video, monkeypatch):
    """Also at sizes that no stride divides; torchvision rounds them up in the same way."""
    encoder, x = encoders[name], random(2, 3, *size)
    net = torchvision_twin(video, name, encoder, size, monkeypatch)
    pooled, expected = torchvision_maps(net, x)
    with torch.inference_mode():
        maps = encoder.pyramid(x)
        torch.testing.assert_close(encoder.pool(x), pooled, rtol=1e-5, atol=1e-5)
    for ours, theirs, info in zip(maps, expected, encoder.feature_info, strict=True):
        assert ours.shape[1] == info["num_chs"]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_features_at_the_published_size(name, video):
    encoder = create_encoder(name, window=WINDOWS).eval()
    net = getattr(video, name)(weights=None).eval()
    net.head = torch.nn.Identity()
    net.load_state_dict(encoder.state_dict())
    x = random(1, 3, 16, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.pool(x), net(x), rtol=1e-5, atol=1e-5)


def test_positions_are_torchvisions_at_the_stored_size(video):
    torch.manual_seed(0)
    ours, theirs = PositionalEncoding((8, 56, 56), 96, True), video.mvit.PositionalEncoding(96, (56, 56), 8, False)
    theirs.load_state_dict(ours.state_dict())
    patches = random(1, 96, 8, 56, 56)
    with torch.inference_mode():
        torch.testing.assert_close(ours(patches), theirs(patches.flatten(2).transpose(1, 2)))


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_names_and_shapes_are_torchvisions(name, video):
    with torch.device("meta"):
        ours, theirs = create_encoder(name, window=WINDOWS), getattr(video, name)(weights=None)
    expected = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("head.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


def test_32_frames_have_a_longer_table():
    with torch.device("meta"):
        short, long = create_encoder("mvit_v1_b").state_dict(), create_encoder("mvit_b_32x3").state_dict()
    different = {key: tuple(value.shape) for key, value in long.items() if value.shape != short[key].shape}
    assert different == {"pos_encoding.temporal_pos": (16, 96)}
    assert ENCODERS["mvit_b_32x3"].input_spec.size == (32, 224, 224)


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_pool_is_the_class_token_and_maps_are_the_patches(name, encoders):
    encoder, x = encoders[name], random(2, 3, 4, 32, 64)
    with torch.inference_mode():
        token, patches = encoder.pool(x), encoder.forward_features(x)
        half = copy.deepcopy(encoder).to(torch.bfloat16).pool(x.bfloat16())
    assert token.shape == (2, encoder.num_features) == (2, 192)
    assert patches.shape == (2, 192, 2, 1, 2)
    assert (token - patches.mean((2, 3, 4))).abs().max() > 0.1
    assert half.dtype == torch.float32


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_depth_stride_moves_the_patches_slice_by_slice(name, encoders):
    fine = build(name, depth_stride=1)
    assert [info["reduction"][0] for info in fine.feature_info] == [1, 1, 1, 1]
    for depth in (6, 7):
        x = random(1, 3, depth, 32, 40)
        with torch.inference_mode():
            torch.testing.assert_close(fine.conv_proj(x)[:, :, ::2], encoders[name].conv_proj(x))
            assert fine.forward_features(x).shape == (1, 192, depth, 1, 2)
    with pytest.raises(InputError, match="1, 2"):
        build(name, depth_stride=8)


def test_gray_input_equals_the_repeated_slice(encoders):
    state = encoders["mvit_v2_s"].state_dict()
    one = build("mvit_v2_s", channels=1)
    one.load_state_dict(state | {"conv_proj.weight": state["conv_proj.weight"].sum(1, keepdim=True)})
    hu = torch.randint(-500, 1400, (1, 1, 4, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    rgb = (((hu.float().clamp(-100, 900) + 100) / 1000 - 0.45) / 0.225).repeat(1, 3, 1, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(one(hu), encoders["mvit_v2_s"].pool(rgb), rtol=1e-4, atol=1e-5)
