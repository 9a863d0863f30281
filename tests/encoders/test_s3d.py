"""S3D against torchvision's own network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from voco.encoders import create_encoder
from voco.encoders.s3d import SPEC

ENDS = (0, 3, 6, 12, 15)


@pytest.fixture(scope="module")
def torchvision_net():
    video = pytest.importorskip("torchvision.models.video")
    torch.manual_seed(5)
    net = video.s3d(weights=None).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return net


@pytest.fixture(scope="module")
def file(torchvision_net, tmp_path_factory):
    path = tmp_path_factory.mktemp("s3d") / "weights.pth"
    torch.save(torchvision_net.state_dict(), path)
    return path


def torchvision_maps(net, x):
    maps = []
    with torch.inference_mode():
        for index, module in enumerate(net.features):
            x = module(x)
            if index in ENDS:
                maps.append(x)
    return maps


def hu_volume(*size):
    return torch.randint(-500, 1400, (1, 1, *size), generator=torch.Generator().manual_seed(1), dtype=torch.int16)


@pytest.mark.parametrize("size", [(8, 64, 64), (13, 70, 96)])
def test_gray_input_equals_the_repeated_slice(torchvision_net, file, size):
    encoder = create_encoder("s3d", checkpoint=file).eval()
    x = encoder.prepare(hu_volume(*size))
    assert all(n % m == 0 for n, m in zip(x.shape[2:], (8, 32, 32)))
    expected = torchvision_maps(torchvision_net, x.repeat(1, 3, 1, 1, 1))
    with torch.inference_mode():
        maps, pooled = encoder.pyramid(x), encoder.pool(x)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled, expected[-1].mean((2, 3, 4)), rtol=1e-5, atol=1e-6)


def test_multiples_are_where_the_published_pooling_drops_nothing(torchvision_net):
    """An odd map before the last pooling loses its end: changing only that end changes nothing."""
    x = torch.randn(1, 3, 8, 64, 80, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        before = torchvision_net.features[:13](x)
        assert before.shape[2:] == (2, 4, 5)
        changed = before.clone()
        changed[..., 4] += 10
        tail = torchvision_net.features[13:]
        assert torch.equal(tail(before), tail(changed))
    assert SPEC.size_multiple == (8, 32, 32)


@pytest.mark.parametrize(("total", "depths"), [(4, (4, 4, 4, 2, 2)), (1, (8, 8, 8, 8, 8))])
def test_depth_strides_are_removed_from_the_end(torchvision_net, file, total, depths):
    """The same changes made to torchvision's network by hand."""
    encoder = create_encoder("s3d", checkpoint=file, depth_stride=total).eval()
    assert encoder.feature_info[-1]["reduction"] == (total, 32, 32)
    net = copy.deepcopy(torchvision_net)
    net.features[13] = nn.MaxPool3d((1, 2, 2))
    if total == 1:
        net.features[7].stride = (1, 2, 2)
        net.features[0][1][0].stride = (1, 1, 1)
    x = encoder.prepare(hu_volume(8, 64, 64))
    with torch.inference_mode():
        maps = encoder.pyramid(x)
    assert tuple(m.shape[2] for m in maps) == depths
    for ours, theirs in zip(maps, torchvision_maps(net, x.repeat(1, 3, 1, 1, 1)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_three_windows_use_the_stem_and_statistics_as_published(torchvision_net, file):
    encoder = create_encoder("s3d", checkpoint=file, window=[(-1000, 500), (-100, 900), (-175, 250)]).eval()
    assert encoder.load_report.adapted == {}
    assert encoder.input_spec.mean == (0.43216, 0.394666, 0.37645)
    assert encoder.input_spec.std == (0.22803, 0.22145, 0.216989)
    x = torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(encoder.forward_features(x), torchvision_maps(torchvision_net, x)[-1])


def test_layout(file):
    encoder = create_encoder("s3d", checkpoint=file)
    # 8,320,048 published, with the classifier (400 x 1024 + 400) and an RGB stem (64 x 3 x 7 x 7).
    assert sum(p.numel() for p in encoder.parameters()) == 8_320_048 - (400 * 1024 + 400) - 64 * 2 * 7 * 7
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm3d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 1e-3)}
    assert [(info["num_chs"], info["reduction"]) for info in encoder.feature_info] == [
        (64, (2, 2, 2)),
        (192, (2, 4, 4)),
        (480, (2, 8, 8)),
        (832, (4, 16, 16)),
        (1024, (8, 32, 32)),
    ]
