"""kenshohara's 3D ResNets, assembled from torchvision's blocks for comparison; 2D networks inflated into them."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from voco.encoders import create_encoder

WINDOWS = [(-1000, 500), (-100, 900), (-175, 250)]
MID = {64: 144, 128: 288, 256: 576, 512: 1152}
NETS = {
    "resnet3d_18": ([2, 2, 2, 2], False, False),
    "resnet3d_34": ([3, 4, 6, 3], False, False),
    "resnet3d_50": ([3, 4, 6, 3], True, False),
    "resnet3d_101": ([3, 4, 23, 3], True, False),
    "resnet2p1d_18": ([2, 2, 2, 2], False, True),
    "resnet2p1d_50": ([3, 4, 6, 3], True, True),
}
STEM_NAMES = {False: {0: "conv1", 1: "bn1"}, True: {0: "conv1_s", 1: "bn1_s", 3: "conv1_t", 4: "bn1_t"}}


def assembled(name):
    """torchvision's blocks behind kenshohara's stem, with the mid width of each separable convolution its own."""
    video = pytest.importorskip("torchvision.models.video.resnet")
    blocks, bottleneck, separable = NETS[name]

    def stem():
        if separable:
            first = nn.Conv3d(3, 110, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
            second = nn.Conv3d(110, 64, (7, 1, 1), 1, (3, 0, 0), bias=False)
            convs = [first, nn.BatchNorm3d(110), nn.ReLU(), second, nn.BatchNorm3d(64), nn.ReLU()]
        else:
            convs = [nn.Conv3d(3, 64, 7, (1, 2, 2), 3, bias=False), nn.BatchNorm3d(64), nn.ReLU()]
        return nn.Sequential(*convs, nn.MaxPool3d(3, 2, 1))

    block = video.Bottleneck if bottleneck else video.BasicBlock
    conv = video.Conv2Plus1D if separable else video.Conv3DSimple
    net = video.VideoResNet(block, [conv] * 4, blocks, stem)
    for module in net.modules():
        old = module.conv2[0] if isinstance(module, block) else None
        if isinstance(old, video.Conv2Plus1D):
            width = old[3].out_channels
            module.conv2[0] = video.Conv2Plus1D(width, width, MID[width], old[3].stride[0])
    return net


def public_names(net, separable):
    given, state = net.state_dict(), {}
    for key, value in given.items():
        if key.startswith("fc."):
            continue
        if match := re.fullmatch(r"stem\.(\d)\.(.*)", key):
            key = f"{STEM_NAMES[separable][int(match[1])]}.{match[2]}"
        elif match := re.fullmatch(r"(layer\d\.\d+\.)conv(\d)\.(\d)\.(?:(\d)\.)?(\w+)", key):
            place, number, outer, inner, leaf = match.groups()
            pair = f"{place}conv{number}.0.3.weight" in given
            kind = "conv" if outer == "0" and inner in (None, "0", "3") else "bn"
            suffix = ("_s" if outer == "0" and inner in ("0", "1") else "_t") if pair else ""
            key = f"{place}{kind}{number}{suffix}.{leaf}"
        state[key] = value
    return state


def filled(name):
    """By a cheap draw of the scale that keeps activations: the usual initialisation takes longer."""
    with torch.device("meta"):
        net = assembled(name)
    net.to_empty(device="cpu")
    torch.manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data.uniform_(-1, 1).mul_((6 / module.weight[0].numel()) ** 0.5)
        elif isinstance(module, nn.BatchNorm3d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return with_statistics(net)


def with_statistics(net):
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def maps_of(net, x):
    maps = []
    with torch.inference_mode():
        for index, module in enumerate(net.stem):
            x = module(x)
            if index == len(net.stem) - 2:
                maps.append(x.clone())
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(net, name)(x)
            maps.append(x)
    return maps


@pytest.mark.parametrize("name", ["resnet3d_34", "resnet3d_101"])
def test_names_and_shapes(name, monkeypatch):
    for init in ("kaiming_normal_", "kaiming_uniform_"):  # slow on the meta device
        monkeypatch.setattr(nn.init, init, lambda tensor, **_: tensor)
    with torch.device("meta"):
        expected = public_names(assembled(name), NETS[name][2])
        encoder = create_encoder(name, window=WINDOWS)
    assert {key: tuple(value.shape) for key, value in encoder.state_dict().items()} == {
        key: tuple(value.shape) for key, value in expected.items()
    }


@pytest.mark.parametrize("name", ["resnet3d_18", "resnet2p1d_18", "resnet2p1d_50"])
def test_features_equal_the_assembled_network(name):
    net = filled(name)
    with torch.device("meta"):
        encoder = create_encoder(name, window=WINDOWS).eval()
    encoder.load_state_dict(public_names(net, NETS[name][2]), strict=True, assign=True)
    x = torch.randn(1, 3, 5, 66, 70, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        maps, pooled = encoder.pyramid(x), encoder.pool(x)
    for ours, theirs in zip(maps, maps_of(net, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    torch.testing.assert_close(pooled, maps[-1].mean((2, 3, 4)))
    assert [info["reduction"] for info in encoder.feature_info] == [
        (1, 2, 2),
        (2, 4, 4),
        (4, 8, 8),
        (8, 16, 16),
        (16, 32, 32),
    ]


@pytest.mark.parametrize(("total", "depths"), [(4, (16, 8, 4, 4, 4)), (1, (16, 16, 16, 16, 16))])
@pytest.mark.parametrize("name", ["resnet3d_18", "resnet2p1d_18"])
def test_depth_strides_are_removed_from_the_end(name, total, depths):
    with torch.device("meta"):
        encoder = create_encoder(name, depth_stride=total)
        maps = encoder.pyramid(torch.zeros(1, 1, 16, 64, 64))
    assert tuple(m.shape[2] for m in maps) == depths
    assert tuple(16 // info["reduction"][0] for info in encoder.feature_info) == depths


def test_a_shallower_pooling_changes_no_value_that_remains():
    """Without strides the first two maps hold the published ones: a stride only picks slices there."""
    torch.manual_seed(0)
    published = create_encoder("resnet3d_18").eval()
    with torch.device("meta"):
        full = create_encoder("resnet3d_18", depth_stride=1).eval()
    full.load_state_dict(published.state_dict(), assign=True)
    x = torch.randn(1, 1, 8, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(full.pyramid(x)[0], published.pyramid(x)[0])
        stem = published.pyramid(x)[0]
        torch.testing.assert_close(full.maxpool(stem)[:, :, ::2], published.maxpool(stem))


@pytest.fixture(scope="module")
def image_net():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(5)
    return with_statistics(models.resnet18(weights=None))


@pytest.fixture(scope="module")
def image_file(image_net, tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "resnet18.pth"
    torch.save(image_net.state_dict(), path)
    return path


def image_maps(net, image):
    maps = []
    with torch.inference_mode():
        x = net.relu(net.bn1(net.conv1(image)))
        maps.append(x)
        x = net.maxpool(x)
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            maps.append(x)
    return maps


def constant_in_depth(encoder, depth, plane=(64, 80)):
    hu = torch.randint(-500, 1400, (1, 1, 1, *plane), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    x = encoder.prepare(hu.expand(-1, -1, depth, -1, -1))
    return x, x[:, :, 0].repeat(1, 3, 1, 1)


def assert_every_slice(maps, expected):
    for ours, theirs in zip(maps, expected, strict=True):
        theirs = theirs.unsqueeze(2).expand_as(ours)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_centre_slice_equals_the_2d_network(image_net, image_file):
    """Exact on a volume that is constant in depth, borders included: no kernel sees the padding in depth."""
    encoder = create_encoder("resnet3d_18", checkpoint=image_file, inflate="centre").eval()
    x, image = constant_in_depth(encoder, 5)
    with torch.inference_mode():
        maps, pooled = encoder.pyramid(x), encoder.pool(x)
    expected = image_maps(image_net, image)
    assert_every_slice(maps, expected)
    torch.testing.assert_close(pooled, expected[-1].mean((2, 3)), rtol=1e-4, atol=1e-5)

    # Of any volume the stem still treats each slice alone; the max pooling after it does not.
    x = torch.randn(1, 1, 4, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        stem = encoder.pyramid(x)[0]
    for position in range(4):
        theirs = image_maps(image_net, x[:, :, position].repeat(1, 3, 1, 1))[0]
        torch.testing.assert_close(stem[:, :, position], theirs, rtol=1e-4, atol=1e-5)


def test_repeated_kernels_equal_the_2d_network_away_from_the_depth_padding(image_net, image_file):
    encoder = create_encoder("resnet3d_18", checkpoint=image_file).eval()
    assert encoder.load_report.coverage == 1.0
    x, image = constant_in_depth(encoder, 32, (64, 64))
    expected = image_maps(image_net, image)
    with torch.inference_mode():
        stem, layer1 = encoder.pyramid(x)[:2]
    # Zeros reach 3 slices of the stem; pooled 2 of 16, and one more with each of the four convolutions of layer1.
    assert_every_slice([stem[:, :, 3:-3], layer1[:, :, 6:10]], expected[:2])
    for border in (stem[:, :, 2], stem[:, :, -3], layer1[:, :, 0], layer1[:, :, -1]):
        theirs = expected[0] if border.shape[-1] == 32 else expected[1]
        assert (border - theirs).abs().max() > 0.01 * theirs.abs().max()


def test_repeated_kernels_equal_the_2d_network_where_depth_is_padded_by_its_ends(image_net, image_file):
    encoder = create_encoder("resnet3d_18", checkpoint=image_file).eval()
    for module in encoder.modules():
        if isinstance(module, nn.Conv3d) and (pad := module.padding[0]):
            module.padding = (0, *module.padding[1:])
            module.register_forward_pre_hook(lambda _, xs, n=pad: F.pad(xs[0], (0, 0, 0, 0, n, n), mode="replicate"))
    x, image = constant_in_depth(encoder, 5)
    with torch.inference_mode():
        assert_every_slice(encoder.pyramid(x), image_maps(image_net, image))


@pytest.mark.parametrize(
    "name", ["i3resnet50", *(pytest.param(f"i3resnet{n}", marks=pytest.mark.slow) for n in (101, 152))]
)
def test_inflated_networks_are_their_image_network_on_volumes_that_are_constant_in_depth(name, tmp_path):
    """Kernels in the middle of depth: every slice away from the ends has the image network's activations."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    image = getattr(models, name.replace("i3", ""))(weights=None).eval()
    for module in image.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
    torch.save(image.state_dict(), tmp_path / "image.pth")
    encoder = create_encoder(name, checkpoint=tmp_path / "image.pth", inflate="centre")
    assert encoder.load_report.coverage == 1.0
    assert encoder.load_report.dropped == {"fc.weight": "classifier", "fc.bias": "classifier"}
    x = torch.rand(1, 1, 1, 64, 64)
    body = nn.Sequential(*list(image.children())[:-2])
    with torch.inference_mode():
        expected = body(x[:, :, 0].expand(-1, 3, -1, -1))
        # The network's axes are head, right, front.
        found = encoder._deepest(x.expand(-1, -1, 16, -1, -1).contiguous())
    assert found.shape == (1, 2048, 1, 2, 2)
    torch.testing.assert_close(found[:, :, 0], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_axes_and_window_of_inflated_networks():
    with torch.device("meta"):
        encoder = create_encoder("i3resnet50")
    hu = torch.zeros(1, 1, 4, 64, 64)
    hu[0, 0, 1, 2, 3] = 500.0  # second slice from below, third row from the front, fourth column from the right
    x = encoder.prepare(hu)
    assert float(x[0, 0, 1, 64 - 1 - 3, 64 - 1 - 2]) == 0.75  # head, then right, then front
    assert x.unique().tolist() == [0.5, 0.75]
