"""R3D-18 against torchvision's own network."""

from __future__ import annotations

import pytest
import torch

from voco.encoders import create_encoder

MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


@pytest.fixture(scope="module")
def torchvision_net():
    video = pytest.importorskip("torchvision.models.video")
    torch.manual_seed(5)
    net = video.r3d_18(weights=None).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return net


@pytest.fixture(scope="module")
def file(torchvision_net, tmp_path_factory):
    path = tmp_path_factory.mktemp("r3d") / "r3d_18.pth"
    torch.save(torchvision_net.state_dict(), path)
    return path


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


@pytest.mark.parametrize("size", [(16, 64, 64), (9, 35, 51)])
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
    encoder = create_encoder("r3d_18", checkpoint=file, window=[(-1000, 500), (-100, 900), (-175, 250)]).eval()
    assert encoder.load_report.adapted == {}
    x = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours = encoder.forward_features(x)
    torch.testing.assert_close(ours, torchvision_maps(torchvision_net, x)[-1], rtol=1e-5, atol=1e-5)


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
