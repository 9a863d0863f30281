"""Bottleneck networks against numbers from PyTorchVideo's own classes, and against torchvision's 2D ResNet-50."""

from __future__ import annotations

import math

import pytest
import torch

from voco.encoders import create_encoder
from voco.errors import InputError
from voco.weights.load import load_weights

# Pooled features of PyTorchVideo 0.1.5 (hub builders, head pools made adaptive, read before ``proj``) for the weights
# and the input below: input size; mean, standard deviation, mean weighted from -1 (first feature) to 1 (last), feature
# 700, maximum.
PYTORCHVIDEO = {
    "slow_r50": ((6, 48, 64), 6.1678132, 6.7216082, 0.0039595614, 15.145515, 30.817871),
    "i3d_r50": ((6, 48, 64), 6.0066236, 7.9332461, -0.002709757, 15.74726, 28.927088),
    "r2plus1d_r50": ((9, 48, 64), 5.0953016, 6.7684278, -0.0014041556, 7.2790985, 26.99675),
    "csn_r101": ((16, 48, 64), 581.17364, 723.61515, 0.16646899, 77.206238, 2826.6147),
    "slowfast_r50": ((12, 48, 64), 7.959795, 11.736186, -0.8269862, 9.0236444, 51.498505),
    "x3d_m": ((6, 48, 64), 3.7910074, 5.2247003, -0.013942502, 14.984888, 18.244965),
}


def spread(shape, seed):
    """Numbers in [-1, 1) that look random and are the same on every machine."""
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((count * 0.6180339887498949 + seed * 0.7548776662466927) % 1 * 2 - 1).reshape(shape)


def fill(state):
    """Weights for every tensor, by its place in the alphabet."""
    filled = {}
    for seed, (key, value) in enumerate(sorted(state.items())):
        if key.endswith("num_batches_tracked"):
            filled[key] = torch.zeros((), dtype=torch.int64)
            continue
        values = spread(value.shape, seed)
        if value.ndim > 1:
            values = values * math.sqrt(6 / math.prod(value.shape[1:]))
        elif key.endswith("running_var") or key.endswith(".weight"):
            values = 1 + 0.3 * values
        else:
            values = 0.1 * values
        filled[key] = values.float()
    return filled


def build(name, windows=3, state=None, **arguments):
    with torch.device("meta"):
        encoder = create_encoder(name, window=[(-100, 900)] * windows, **arguments)
    encoder.load_state_dict(state or fill(encoder.state_dict()), assign=True)
    return encoder.eval()


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", PYTORCHVIDEO)
def test_features_are_those_of_pytorchvideo(name):
    size, *expected = PYTORCHVIDEO[name]
    with torch.inference_mode():
        features = build(name).pool(spread((1, 3, *size), 0.5).float())[0].double()
    slope = torch.linspace(-1, 1, len(features)).double()
    found = [features.mean(), features.std(), (features * slope).mean(), features[700], features.max()]
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected).double(), rtol=2e-5, atol=1e-5 * expected[1])


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(3)
    net = torchvision.models.resnet50().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("resnet") / "net.pth"
    torch.save(net.state_dict(), path)
    net.fc = torch.nn.Identity()
    return net, path


def test_slow_with_central_slices_is_the_2d_network_on_each_slice(resnet50):
    net, path = resnet50
    encoder = create_encoder("slow_r50", window=[(-100, 900)] * 3).eval()
    report = load_weights(encoder, path, inflate="centre")
    assert report.coverage == 1
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    x = torch.randn(1, 3, 4, 70, 45, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert_same(encoder.sequence(x)[0], net(x[0].transpose(0, 1)))


@pytest.mark.parametrize(("name", "inflate"), [("c2d_r50", "repeat"), ("i3d_r50", "centre")])
def test_constant_depth_gives_the_2d_features(name, inflate, resnet50):
    net, path = resnet50
    encoder = create_encoder(name, window=[(-100, 900)] * 3).eval()
    assert load_weights(encoder, path, inflate=inflate).coverage == 1
    image = torch.randn(1, 3, 64, 45, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = encoder.pool(image[:, :, None].expand(-1, -1, 6, -1, -1))
        assert_same(features, net(image))


def test_without_stride_c2d_gives_the_published_positions_and_those_between():
    """It convolves each slice alone, so that only the pool mixes slices."""
    published = build("c2d_r50", windows=1)
    state = published.state_dict()
    finer = build("c2d_r50", windows=1, state=state, depth_stride=1)
    unpooled = build("c2d_r50", windows=1, state=state, depth_pool=False)
    x = spread((1, 1, 8, 32, 48), 0.25).float()
    with torch.inference_mode():
        coarse, fine = published.forward_features(x), finer.forward_features(x)
        assert coarse.shape[2] == 4
        assert fine.shape[2] == 8
        assert_same(fine[:, :, ::2], coarse)
        first = unpooled.pyramid(x)[1]
        between = torch.maximum(first[:, :, 1:6:2], first[:, :, 2:7:2])
        for stage in list(finer.blocks)[3:]:
            between = stage(between)
        assert_same(fine[:, :, 1:6:2], between)


@pytest.mark.parametrize("name", ["c2d_r50", "i3d_r50"])
def test_pairs_of_slices_are_whole(name):
    """Published code drops an odd last slice; here there is none, so features are the published ones at any depth."""
    with torch.device("meta"):
        published, finer = create_encoder(name), create_encoder(name, depth_stride=1)
    assert published.input_spec.size_multiple == (2, 1, 1)
    assert finer.input_spec.size_multiple == (1, 1, 1)
    small = build(name, windows=1)
    assert small.prepare(torch.zeros(1, 1, 5, 32, 33)).shape == (1, 1, 6, 32, 33)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("c2d_r50", {1: (1, 1, 1, 1), 2: (1, 2, 2, 2)}),
        ("r2plus1d_r50", {1: (1, 1, 1, 1), 2: (1, 1, 2, 2), 4: (1, 1, 2, 4)}),
        ("csn_r101", {1: (1, 1, 1, 1), 2: (1, 2, 2, 2), 4: (1, 2, 4, 4), 8: (1, 2, 4, 8)}),
    ],
)
def test_depth_strides_go_from_the_back(name, strides):
    for total, expected in strides.items():
        with torch.device("meta"):
            encoder = create_encoder(name, depth_stride=total)
            if total == 2:
                maps = encoder.pyramid(torch.zeros(1, 1, 10, 33, 32))
                assert [m.shape[2] for m in maps] == [-(-10 // n) for n in (1, *expected)]
        assert tuple(info["reduction"][0] for info in encoder.feature_info[1:]) == expected
        assert encoder.input_spec.min_size[0] == max(4, 2 * total)
    with pytest.raises(InputError, match=rf"{name}.*{', '.join(map(str, strides))}; found depth_stride=3"):
        create_encoder(name, depth_stride=3)


def test_the_slow_pathway_sees_the_published_slices():
    index = torch.arange(32.0).reshape(1, 1, 32, 1, 1)

    def seen(depth, **arguments):
        with torch.device("meta"):
            encoder = create_encoder("slowfast_r50", **arguments)
        return encoder._slow_slices(index[:, :, :depth]).flatten().tolist()

    assert seen(32) == [0, 4, 8, 13, 17, 22, 26, 31]
    assert seen(32, alpha=8) == [0, 10, 20, 31]
    assert seen(10) == [0, 4, 9]
    assert seen(32, packing="regular") == [0, 4, 8, 12, 16, 20, 24, 28]
    assert seen(5, depth_stride=1) == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="linspace, regular; found 'first'"):
        create_encoder("slowfast_r50", packing="first")
    with pytest.raises(InputError, match="odd fusion_kernel; found 4 and 6"):
        create_encoder("slowfast_r50", fusion_kernel=6)
    with pytest.raises(InputError, match="depth stride of 1, 4; found depth_stride=2"):
        create_encoder("slowfast_r50", depth_stride=2)


def test_slowfast_takes_depths_that_are_no_multiple_of_four():
    encoder = build("slowfast_r50", windows=1)
    x = spread((1, 1, 10, 32, 40), 0.125).float()
    with torch.inference_mode():
        maps = encoder.pyramid(x)
        pairs = list(encoder._pathways(x))
    assert [tuple(m.shape[1:3]) for m in maps] == [(72, 3), (288, 3), (576, 3), (1152, 3), (2304, 3)]
    slow, fast = pairs[-1]
    assert fast.shape[2] == 10
    torch.testing.assert_close(maps[-1][:, :2048], slow)
    for position, slices in enumerate([fast[:, :, :4], fast[:, :, 4:8], fast[:, :, 8:]]):
        torch.testing.assert_close(maps[-1][:, 2048:, position], slices.mean(2))


def test_x3d_pools_what_its_classifier_sees():
    encoder = build("x3d_m", windows=1)
    x = spread((2, 1, 5, 40, 64), 0.25).float()
    head = encoder.blocks[-1].pool
    with torch.inference_mode():
        features = encoder.forward_features(x)
        wide = torch.relu(head.pre_norm(head.pre_conv(features))).mean((2, 3, 4))
        expected = torch.relu(wide @ head.post_conv.weight.flatten(1).T)
        assert features.shape[1] == encoder.feature_info[-1]["num_chs"] == 192
        torch.testing.assert_close(encoder.pool(x), expected)
    assert encoder.num_features == expected.shape[1] == 2048


def test_every_squeeze_width_is_the_published_one():
    state = build("x3d_m", windows=1).state_dict()
    widths = {
        key: value.shape[:2]
        for key, value in state.items()
        if key.endswith("res_blocks.0.branch2.norm_b.1.block.0.weight")
    }
    assert [tuple(v) for v in widths.values()] == [(8, 54), (8, 108), (16, 216), (32, 432)]
    assert "blocks.4.res_blocks.1.branch2.norm_b.1.block.0.weight" not in state  # every other block only
