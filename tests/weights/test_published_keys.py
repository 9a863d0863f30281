"""Files with the names and shapes of the published model classes, in their own wrappers, load whole."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch

from voco.encoders import create_encoder
from voco.weights.load import load_weights
from voco.weights.recognise import recognise

LISTINGS = Path(__file__).parent / "published_keys"

# listing: (encoder, project)
ENCODER_OF = {
    "ken_r2p1d18": ("resnet2p1d_18", "kenshohara"),
    "ken_r2p1d50": ("resnet2p1d_50", "kenshohara"),
    "ken_resnet18": ("resnet3d_18", "kenshohara"),
    "ken_resnet50": ("resnet3d_50", "kenshohara"),
    "ptv_c2d_r50": ("c2d_r50", "pytorchvideo"),
    "ptv_csn_r101": ("csn_r101", "pytorchvideo"),
    "ptv_i3d_r50": ("i3d_r50", "pytorchvideo"),
    "ptv_mvit_base_16": ("mvit_v1_b", "pytorchvideo"),
    "ptv_mvit_base_16x4": ("mvit_v1_b", "pytorchvideo"),
    "ptv_mvit_base_32x3": ("mvit_b_32x3", "pytorchvideo"),
    "ptv_r2plus1d_r50": ("r2plus1d_r50", "pytorchvideo"),
    "ptv_slow_r50": ("slow_r50", "pytorchvideo"),
    "ptv_slowfast_16x8_r101_50_50": ("slowfast_16x8_r101_50_50", "pytorchvideo"),
    "ptv_slowfast_r101": ("slowfast_r101", "pytorchvideo"),
    "ptv_slowfast_r50": ("slowfast_r50", "pytorchvideo"),
    "ptv_x3d_l": ("x3d_l", "pytorchvideo"),
    "ptv_x3d_m": ("x3d_m", "pytorchvideo"),
    "sf_i3d": ("i3d_r50", "SlowFast"),
    "sf_mvit_b_16x4": ("mvit_v1_b", "SlowFast"),
    "sf_mvitv2_s": ("mvit_v2_s", "SlowFast"),
    "sf_slow8x8": ("slow_r50", "SlowFast"),
    "sf_slowfast8x8": ("slowfast_r50", "SlowFast"),
    "sf_x3d_m": ("x3d_m", "SlowFast"),
    "tv_mc3_18": ("mc3_18", "torchvision"),
    "tv_mvit_v1_b": ("mvit_v1_b", "torchvision"),
    "tv_mvit_v2_s": ("mvit_v2_s", "torchvision"),
    "tv_r2plus1d_18": ("r2plus1d_18", "torchvision"),
    "tv_r3d_18": ("r3d_18", "torchvision"),
    "tv_s3d": ("s3d", "torchvision"),
    "tv_swin3d_b": ("swin3d_b", "torchvision"),
    "tv_swin3d_s": ("swin3d_s", "torchvision"),
    "tv_swin3d_t": ("swin3d_t", "torchvision"),
}
WRAPPERS = {
    "kenshohara": lambda s: {"state_dict": s, "arch": "resnet", "epoch": 200, "optimizer": {}, "scheduler": {}},
    "pytorchvideo": lambda s: {"model_state": s},
    "SlowFast": lambda s: {"model_state": s, "epoch": 1, "optimizer_state": {}, "cfg": "TRAIN: {}"},
    "torchvision": lambda s: s,
}


def random_file(listing, pool, seed):
    """Every tensor a different stretch of one pool of random numbers; variances and scales are positive."""
    state = {}
    for number, line in enumerate((LISTINGS / f"{listing}.txt").read_text().splitlines()):
        name, shape = line.split("\t")
        shape = ast.literal_eval(shape)
        if name.endswith(("num_batches_tracked", "relative_position_index")):
            state[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        start = (number * 7919 + seed) % 1000
        values = pool[start : start + math.prod(shape)]
        state[name] = (values.abs() + 0.5 if name.endswith("running_var") else values.clone()).reshape(shape)
    return state


def empty_encoder(name, **arguments):
    """Without the time that initial weights take: every parameter and every statistic is NaN until it is filled."""
    with torch.device("meta"):
        encoder = create_encoder(name, **arguments)
    encoder.to_empty(device="cpu")
    for value in encoder.state_dict().values():
        value.fill_(float("nan") if value.is_floating_point() else 0)
    return encoder


@pytest.fixture(scope="module")
def pool():
    return torch.randn(12_000_000, generator=torch.Generator().manual_seed(0)) * 0.05


def test_every_listing_is_tried():
    assert {path.stem for path in LISTINGS.glob("*.txt")} == set(ENCODER_OF)


@pytest.mark.parametrize("listing", ENCODER_OF)
def test_published_file_loads_whole(listing, pool, tmp_path):
    name, project = ENCODER_OF[listing]
    state = random_file(listing, pool, seed=len(listing))
    path = tmp_path / f"{listing}.pth"
    torch.save(WRAPPERS[project](state), path)

    assert name in [guess.arch for guess in recognise(path)]
    # SlowFast's X3D normalises one shortcut more; create_encoder(checkpoint=...) finds that out by itself.
    encoder = empty_encoder(name, **({"shortcut_norm": True} if listing == "sf_x3d_m" else {}))
    report = load_weights(encoder, path)
    assert project in report.format
    assert not report.unexpected
    assert report.coverage == 1.0
    assert not report.missing

    # What is neither a head nor a copy arrived, value for value or summed over the colours.
    sums = {round(float(value.double().sum()), 4) for value in state.values()}
    after = encoder.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    for key in report.loaded:
        if after[key].is_floating_point() and ".qkv." not in key:
            assert round(float(after[key].double().sum()), 4) in sums, key
    for key in encoder.stem_keys:
        assert report.adapted[key].startswith("sum of 3 input channels") or "2D kernel" in report.adapted[key]
        assert min(abs(float(after[key].double().sum()) - s) for s in sums) < 1e-3


@pytest.mark.parametrize(("listing", "name"), [("ptv_x3d_m", "x3d_xs"), ("ptv_x3d_m", "x3d_s")])
def test_smaller_twins_have_the_same_tensors(listing, name):
    with torch.device("meta"):
        twin, encoder = create_encoder(name).state_dict(), create_encoder(ENCODER_OF[listing][0]).state_dict()
    assert {key: value.shape for key, value in twin.items()} == {key: value.shape for key, value in encoder.items()}
