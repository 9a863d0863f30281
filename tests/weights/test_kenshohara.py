"""Files of kenshohara/3D-ResNets-PyTorch in their training checkpoints, and 2D ImageNet files in their place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from voco.encoders import create_encoder
from voco.errors import InputError
from voco.weights.contents import find_tensors
from voco.weights.examine import examine, misfit
from voco.weights.load import load_weights
from voco.weights.sources import all_sources, find_source


@pytest.fixture(scope="module")
def state():
    """Names and shapes of the public resnet18 class with 700 classes: an RGB stem and a classifier."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in create_encoder("resnet3d_18").state_dict().items()}
    shapes |= {"conv1.weight": (64, 3, 7, 7, 7), "fc.weight": (700, 512), "fc.bias": (700,)}
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(shape, generator=generator) + 0.5 if len(shape) else torch.tensor(5)
        for key, shape in shapes.items()
    }


def training_checkpoint(state, prefix=""):
    """As the project's main.py saves: optimiser and scheduler beside the weights."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [50, 100, 150])
    return {
        "epoch": 200,
        "arch": "resnet-18",
        "state_dict": {prefix + key: value for key, value in state.items()},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


def test_training_checkpoint_loads_whole(state, tmp_path):
    torch.save(training_checkpoint(state, "module."), tmp_path / "r3d18_K_200ep.pth")
    encoder = create_encoder("resnet3d_18", checkpoint=tmp_path / "r3d18_K_200ep.pth")
    report = encoder.load_report
    assert report.wrapper == ("state_dict",)
    assert report.format == "kenshohara 3D-ResNets"
    assert report.coverage == 1.0
    assert not report.missing
    assert not report.unexpected
    assert report.dropped == {"module.fc.weight": "classifier", "module.fc.bias": "classifier"}
    assert report.adapted == {"conv1.weight": "sum of 3 input channels"}
    ours = encoder.state_dict()
    assert torch.equal(ours.pop("conv1.weight"), state["conv1.weight"].sum(1, keepdim=True))
    for key, value in ours.items():
        assert torch.equal(value, state[key]), key
    assert encoder.input_spec.mean[0] == pytest.approx((0.4345 + 0.4051 + 0.3775) / 3)
    assert encoder.input_spec.std[0] == pytest.approx((0.2768 + 0.2713 + 0.2737) / 3)
    assert encoder.provenance[0]["source"] == "resnet3d_18.kinetics700"


def test_video_resnet_of_torchvision_is_another_network(state, tmp_path):
    """Its residual blocks have the same shapes, its names and stem do not."""
    torch.save(training_checkpoint(state), tmp_path / "file.pth")
    encoder = create_encoder("r3d_18")
    with pytest.raises(InputError, match=r"the stem is missing(.|\n)*resnet3d_18 \(kenshohara 3D-ResNets\)"):
        load_weights(encoder, tmp_path / "file.pth")
    assert encoder.load_report is None


def test_files_without_shortcut_weights_are_refused(state):
    """Older files of 18 and 34 layers were trained with a shortcut that has no weights (type A)."""
    without = {f"module.{key}": value for key, value in state.items() if "downsample" not in key}
    with torch.device("meta"):
        encoder = create_encoder("resnet3d_18")
    found = examine(encoder, find_tensors(without, Path("resnet-18-kinetics.pth")))
    assert re.search(r"99\.\d% of the parameters, 100% are needed", misfit(encoder, found))
    assert all(".downsample." in key for key in found.report.missing)


def test_image_network_by_number(tmp_path):
    """A 2D file under any name: kernels inflated, the stem summed, and the input that ImageNet weights saw."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    image = models.resnet18(weights=None).state_dict()
    torch.save(image, tmp_path / "mine.pth")
    encoder = create_encoder("resnet3d_18", checkpoint=tmp_path / "mine.pth")
    report = encoder.load_report
    assert report.format == "ImageNet ResNet (2D)"
    assert report.coverage == 1.0
    assert not report.unexpected
    assert encoder.input_spec.mean[0] == pytest.approx((0.485 + 0.456 + 0.406) / 3)

    kernel = image["layer3.1.conv2.weight"]
    zero = torch.zeros_like(kernel)
    slices = {"repeat": [kernel / 3] * 3, "centre": [zero, kernel, zero]}
    words = {"repeat": "repeated over depth 7 / 7", "centre": "as the centre of depth 7"}
    for how in ("repeat", "centre"):
        report = load_weights(encoder, tmp_path / "mine.pth", inflate=how)
        ours = encoder.state_dict()
        assert report.adapted["conv1.weight"] == f"2D kernel {words[how]}; sum of 3 input channels"
        assert torch.equal(ours["layer3.1.conv2.weight"], torch.stack(slices[how], 2))
        torch.testing.assert_close(ours["conv1.weight"].sum(2)[:, 0], image["conv1.weight"].sum(1))
        assert torch.equal(ours["layer2.0.downsample.0.weight"][:, :, 0], image["layer2.0.downsample.0.weight"])


def test_drive_files_are_fetched_by_hand():
    sources = [s for s in all_sources().values() if s.format == "kenshohara 3D-ResNets"]
    assert not any(s.download or s.sha256 or s.md5 for s in sources)
    assert find_source("resnet3d_50", "kinetics700_moments_stair").file == "r3d50_KMS_200ep.pth"
    assert find_source("resnet3d_50", "kinetics700_moments").data == ("Kinetics-700", "Moments in Time")
    with pytest.raises(InputError, match=r"r3d18_K_200ep\.pth"):
        create_encoder("resnet3d_18.kinetics700")
