"""Video ResNets against torchvision's own networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from voco.encoders import create_encoder
from voco.errors import InputError

MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
WINDOWS = [(-1000, 500), (-100, 900), (-175, 250)]


def with_statistics(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture(scope="module")
def torchvision_net():
    video = pytest.importorskip("torchvision.models.video")
    torch.manual_seed(5)
    return with_statistics(video.r3d_18(weights=None))


@pytest.fixture(scope="module")
def file(torchvision_net, tmp_path_factory):
    path = tmp_path_factory.mktemp("r3d") / "r3d_18.pth"
    torch.save(torchvision_net.state_dict(), path)
    return path


def r2plus1d_34(video):
    """The IG-65M network: torchvision's 34 layers with three other convolutions and another epsilon."""
    net = video.VideoResNet(video.BasicBlock, [video.Conv2Plus1D] * 4, [3, 4, 6, 3], video.R2Plus1dStem)
    net.layer2[0].conv2[0] = video.Conv2Plus1D(128, 128, 288)
    net.layer3[0].conv2[0] = video.Conv2Plus1D(256, 256, 576)
    net.layer4[0].conv2[0] = video.Conv2Plus1D(512, 512, 1152)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-3
    return net


def other_net(name):
    """Filled once, by a cheap draw of the scale that keeps activations: torchvision's initialisation takes longer."""
    video = pytest.importorskip("torchvision.models.video.resnet")
    with torch.device("meta"):
        net = r2plus1d_34(video) if name == "r2plus1d_34" else getattr(video, name)(weights=None)
    net.to_empty(device="cpu")
    torch.manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data.uniform_(-1, 1).mul_((6 / module.weight[0].numel()) ** 0.5)
        elif isinstance(module, nn.BatchNorm3d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return with_statistics(net)


def with_tensors_of(net, name, **arguments):
    """An RGB encoder that holds a network's tensors under their own names, all but the classifier."""
    with torch.device("meta"):
        encoder = create_encoder(name, window=WINDOWS, **arguments)
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("fc.")}
    encoder.load_state_dict(state, strict=True, assign=True)
    return encoder.eval()


def torchvision_maps(net, x):
    maps = []
    hooks = [
        getattr(net, name).register_forward_hook(lambda _, __, out: maps.append(out.clone()))
        for name in ("stem", "layer1", "layer2", "layer3", "layer4")
    ]
    with torch.inference_mode():
        net(x)
    for hook in hooks:
        hook.remove()
    return maps


@pytest.mark.parametrize("size", [(16, 48, 48), (9, 35, 51)])
def test_gray_input_equals_the_repeated_slice(torchvision_net, file, size):
    """The stem summed over RGB, on the window, mean and std that the encoder applies by itself."""
    encoder = create_encoder("r3d_18", checkpoint=file).eval()
    hu = torch.randint(-500, 1400, (1, 1, *size), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    gray = (hu.float().clamp(-100, 900) + 100) / 1000
    rgb = ((gray - sum(MEAN) / 3) / (sum(STD) / 3)).repeat(1, 3, 1, 1, 1)
    expected = torchvision_maps(torchvision_net, rgb)
    with torch.inference_mode():
        maps, pooled = encoder.pyramid(encoder.prepare(hu)), encoder(hu)
    for ours, theirs in zip(maps, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    torch.testing.assert_close(pooled, expected[-1].mean((2, 3, 4)), rtol=1e-4, atol=1e-5)


def test_three_windows_use_the_stem_as_published(torchvision_net, file):
    encoder = create_encoder("r3d_18", checkpoint=file, window=WINDOWS).eval()
    assert encoder.load_report.adapted == {}
    x = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours = encoder.forward_features(x)
    torch.testing.assert_close(ours, torchvision_maps(torchvision_net, x)[-1], rtol=1e-5, atol=1e-5)
    assert encoder.input_spec.mean == MEAN
    assert encoder.input_spec.std == STD


@pytest.mark.parametrize("name", ["mc3_18", "r2plus1d_18", "r2plus1d_34"])
def test_sisters_equal_torchvision(name):
    net = other_net(name)
    encoder = with_tensors_of(net, name)
    x = torch.randn(1, 3, 9, 33, 35, generator=torch.Generator().manual_seed(2))
    expected = torchvision_maps(net, x)
    with torch.inference_mode():
        for ours, theirs in zip(encoder.pyramid(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(encoder.pool(x), expected[-1].mean((2, 3, 4)), rtol=1e-5, atol=1e-5)
    depths = [info["reduction"][0] for info in encoder.feature_info]
    assert depths == ([1] * 5 if name == "mc3_18" else [1, 1, 2, 4, 8])


def test_batch_norm_of_the_34_layers():
    with torch.device("meta"):
        encoder, other = create_encoder("r2plus1d_34"), create_encoder("r2plus1d_34", bn_momentum=0.9)
    assert {(m.eps, m.momentum) for m in encoder.modules() if isinstance(m, nn.BatchNorm3d)} == {(1e-3, 0.1)}
    assert {m.momentum for m in other.modules() if isinstance(m, nn.BatchNorm3d)} == {0.9}


def test_depth_strides_are_removed_from_the_end(torchvision_net):
    """The same change made to torchvision's network by hand; the first strided stage keeps its stride."""
    encoder = with_tensors_of(torchvision_net, "r3d_18", depth_stride=2)
    net = copy.deepcopy(torchvision_net)
    for layer in (net.layer3, net.layer4):
        layer[0].conv1[0].stride = layer[0].downsample[0].stride = (1, 2, 2)
    x = torch.randn(1, 3, 9, 33, 35, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        maps = encoder.pyramid(x)
    for ours, theirs in zip(maps, torchvision_maps(net, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert [m.shape[2] for m in maps] == [9, 9, 5, 5, 5]
    assert [info["reduction"] for info in encoder.feature_info] == [
        (1, 2, 2),
        (1, 2, 2),
        (2, 4, 4),
        (2, 8, 8),
        (2, 16, 16),
    ]


@pytest.mark.parametrize(("name", "totals"), [("r2plus1d_18", (1, 2, 4, 8)), ("mc3_18", (1,))])
def test_depth_stride_of_separable_and_mixed_networks(name, totals):
    for total in totals:
        with torch.device("meta"):
            encoder = create_encoder(name, depth_stride=total)
            maps = encoder.pyramid(torch.zeros(1, 1, 9, 35, 35))
        assert maps[-1].shape[2] == -(-9 // total) == -(-9 // encoder.feature_info[-1]["reduction"][0])
    with pytest.raises(InputError, match=f"depth stride of {', '.join(map(str, totals))}; found depth_stride=3"):
        create_encoder(name, depth_stride=3)


def test_report_and_layout(file):
    encoder = create_encoder("r3d_18", checkpoint=file)
    report = encoder.load_report
    assert report.coverage == 1.0
    assert report.missing == ()
    assert report.unexpected == ()
    assert report.dropped == {"fc.bias": "classifier", "fc.weight": "classifier"}
    assert report.adapted == {"stem.0.weight": "sum of 3 input channels"}
    # The published count is 33,371,472 with the classifier (400 x 512 + 400) and an RGB stem (64 x 3 x 3 x 7 x 7).
    expected = 33_371_472 - (400 * 512 + 400) - 64 * 2 * 3 * 7 * 7
    assert sum(p.numel() for p in encoder.parameters()) == expected
    assert encoder.input_spec.windows == ((-100.0, 900.0),)
    assert encoder.input_spec.mean[0] == pytest.approx(0.4010920)
    assert encoder.input_spec.std[0] == pytest.approx(0.2221563)
    assert [info["reduction"] for info in encoder.feature_info] == [
        (1, 2, 2),
        (1, 2, 2),
        (2, 4, 4),
        (4, 8, 8),
        (8, 16, 16),
    ]
